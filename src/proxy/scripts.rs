//! Scripts that clients brought, so that EVALSHA goes on working behind a switch.
//!
//! Servers of Redis 7 and later replicate what scripts do, not the scripts; nor can a server be asked for the text of
//! a digest (Valkey 8 can). So the texts are kept as they pass, and loaded on the other side with SCRIPT LOAD: all of
//! them while a switch is prepared, those that came since when the gate is closed and everything has been answered.
//!
//! What is kept is bounded: texts of SCRIPT LOAD up to [`LOADED_BYTES`]; of EVAL the latest [`EVALUATED`], as many as
//! Redis 7.4 keeps itself. A script that was loaded before its clients came to the gateway, and never since, is not known
//! here: EVALSHA then answers NOSCRIPT, as after a restart of the server.
//!
//! A gateway that is started anew finds them in `state_dir`: [`book`].

mod book;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::error::Result;
use crate::resp::write;
use crate::server::{Client, Endpoint};

/// Texts of SCRIPT LOAD, in bytes together.
const LOADED_BYTES: usize = 32 * 1024 * 1024;
/// Texts of EVAL, in number and in bytes together.
const EVALUATED: usize = 500;
const EVALUATED_BYTES: usize = 8 * 1024 * 1024;
/// Bytes that are sent before the replies are read.
const PORTION: usize = 1024 * 1024;
/// For one portion to be answered.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Texts that are looked at without letting go of the lock.
const GLANCE: usize = 1024;
/// For the last ones to be written at the end.
const LAST: Duration = Duration::from_secs(2);

/// The scripts that clients brought.
#[derive(Debug, Default)]
pub(super) struct Scripts {
    kept: Mutex<Kept>,
    /// For the thread that writes them down: something changed.
    changed: Condvar,
    writer: Mutex<Option<JoinHandle<()>>>,
    carrier: tokio::sync::Mutex<Option<Carrier>>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Each text, and where it stands in `order`.
    places: HashMap<Bytes, Place>,
    /// In the order in which they came, by a number that only grows.
    order: BTreeMap<u64, Bytes>,
    next: u64,
    loaded_bytes: usize,
    evaluated: BTreeSet<u64>,
    evaluated_bytes: usize,
    full: bool,
    /// How often a client flushed them.
    flushes: u64,
    /// Nothing comes any more.
    closing: bool,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    number: u64,
    loaded: bool,
}

/// A connection to the side that a switch goes to.
#[derive(Debug)]
struct Carrier {
    client: Client,
    /// The number behind the last script that was loaded there.
    next: u64,
}

impl Scripts {
    /// Those that the file at `path` holds; from now on what comes is written there, by a thread of its own. A file that
    /// cannot be used is no reason not to serve.
    pub(super) fn open(path: &Path) -> Arc<Self> {
        let scripts = Arc::new(Self::default());
        match book::open(path, |text, loaded| scripts.keep(text, loaded)) {
            Ok(mut book) => {
                book.next = scripts.kept.lock().next;
                let shared = Arc::clone(&scripts);
                match std::thread::Builder::new().name("scripts".into()).spawn(move || book.keep_up(&shared))
                {
                    Ok(thread) => *scripts.writer.lock() = Some(thread),
                    Err(error) => book::unwritten(path, &error),
                }
            }
            Err(error) => book::unwritten(path, &error),
        }
        scripts
    }

    /// Nothing comes any more: waits until the last ones are written.
    pub(super) async fn close(&self) {
        self.kept.lock().closing = true;
        self.changed.notify_one();
        let Some(thread) = self.writer.lock().take() else { return };
        let _ = tokio::time::timeout(LAST, tokio::task::spawn_blocking(|| thread.join())).await;
    }

    /// Looks at a command of a script family: takes its text, or forgets all.
    pub(super) fn learn(&self, name: &str, args: &[&[u8]]) {
        match (name, args) {
            ("eval" | "eval_ro", [_, text, ..]) => self.keep(text, false),
            ("script", [_, sub, text]) if sub.eq_ignore_ascii_case(b"load") => self.keep(text, true),
            ("script", [_, sub, ..]) if sub.eq_ignore_ascii_case(b"flush") => self.flush(),
            _ => {}
        }
    }

    fn flush(&self) {
        let mut kept = self.kept.lock();
        let Kept { next, flushes, closing, .. } = *kept;
        *kept = Kept { next, flushes: flushes + 1, closing, ..Kept::default() };
        drop(kept);
        self.changed.notify_one();
    }

    fn keep(&self, text: &[u8], loaded: bool) {
        let mut kept = self.kept.lock();
        if kept.places.get(text).is_some_and(|place| place.loaded >= loaded) {
            return;
        }
        if loaded && kept.loaded_bytes + text.len() > LOADED_BYTES {
            if !std::mem::replace(&mut kept.full, true) {
                tracing::warn!(
                    "clients loaded more than {} MiB of scripts: further ones will not be known behind a switch",
                    LOADED_BYTES >> 20
                );
            }
            return;
        }
        if !loaded && text.len() > EVALUATED_BYTES {
            return;
        }
        kept.forget(text);
        kept.add(Bytes::copy_from_slice(text), loaded);
        drop(kept);
        self.changed.notify_one();
    }

    /// Opens a connection to the side that a switch goes to, and loads everything there.
    ///
    /// # Errors
    /// The server does not answer.
    pub(super) async fn prepare(&self, endpoint: &Endpoint, timeout: Duration) -> Result<()> {
        let mut client = Client::open(endpoint, timeout).await?;
        client.set_timeout(TIMEOUT);
        let mut carrier = Carrier { client, next: 0 };
        self.load(&mut carrier).await?;
        *self.carrier.lock().await = Some(carrier);
        Ok(())
    }

    /// Loads what came since [`Self::prepare`]; without a word to the server when nothing did.
    ///
    /// # Errors
    /// The server does not answer.
    pub(super) async fn catch_up(&self) -> Result<()> {
        match self.carrier.lock().await.as_mut() {
            Some(carrier) => self.load(carrier).await,
            None => Ok(()),
        }
    }

    /// The switch is over, one way or the other.
    pub(super) async fn rest(&self) {
        self.carrier.lock().await.take();
    }

    async fn load(&self, carrier: &mut Carrier) -> Result<()> {
        loop {
            let texts = self.kept.lock().portion(&mut carrier.next);
            if texts.is_empty() {
                return Ok(());
            }
            let mut commands = Vec::new();
            for (text, _) in &texts {
                write::command(&mut commands, &[b"SCRIPT".as_slice(), b"LOAD", text]);
            }
            let replies = carrier.client.pipeline(&commands, texts.len()).await?;
            // A text that does not compile was refused to its client as well.
            if let Some(text) = replies.iter().find_map(crate::resp::value::Value::error) {
                tracing::debug!(side = %carrier.client.side(), %text, "a script was not loaded");
            }
        }
    }
}

impl Kept {
    /// The next ones from number `next` on, as many as go at once, and whether each was loaded; moves `next` behind them.
    fn portion(&self, next: &mut u64) -> Vec<(Bytes, bool)> {
        let (mut texts, mut bytes) = (Vec::new(), 0);
        for (&number, text) in self.order.range(*next..).take(GLANCE) {
            texts.push((text.clone(), !self.evaluated.contains(&number)));
            *next = number + 1;
            bytes += text.len();
            if bytes > PORTION {
                break;
            }
        }
        texts
    }

    fn add(&mut self, text: Bytes, loaded: bool) {
        let number = self.next;
        self.next += 1;
        if loaded {
            self.loaded_bytes += text.len();
        } else {
            self.evaluated.insert(number);
            self.evaluated_bytes += text.len();
        }
        self.order.insert(number, text.clone());
        self.places.insert(text, Place { number, loaded });
        while self.evaluated.len() > EVALUATED || self.evaluated_bytes > EVALUATED_BYTES {
            let oldest = self.evaluated.first().and_then(|oldest| self.order.get(oldest)).cloned();
            let Some(text) = oldest else { return };
            self.forget(&text);
        }
    }

    fn forget(&mut self, text: &[u8]) {
        let Some(place) = self.places.remove(text) else { return };
        self.order.remove(&place.number);
        if place.loaded {
            self.loaded_bytes -= text.len();
        } else {
            self.evaluated.remove(&place.number);
            self.evaluated_bytes -= text.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn texts(scripts: &Scripts) -> Vec<String> {
        let kept = scripts.kept.lock();
        assert_eq!(kept.places.len(), kept.order.len());
        kept.order.values().map(|text| String::from_utf8_lossy(text).into_owned()).collect()
    }

    #[test]
    fn texts_are_kept_once_and_flushed() {
        let scripts = Scripts::default();
        scripts.learn("eval", &[b"eval", b"return 1", b"0"]);
        scripts.learn("eval_ro", &[b"EVAL_RO", b"return 1", b"0"]);
        scripts.learn("script", &[b"SCRIPT", b"Load", b"return 2"]);
        scripts.learn("evalsha", &[b"evalsha", b"abc", b"0"]);
        assert_eq!(texts(&scripts), ["return 1", "return 2"]);
        let before = scripts.kept.lock().next;
        scripts.learn("script", &[b"script", b"FLUSH", b"ASYNC"]);
        assert!(texts(&scripts).is_empty());
        scripts.learn("eval", &[b"eval", b"return 1", b"0"]);
        assert!(
            scripts.kept.lock().next > before,
            "numbers only grow: a carrier goes on behind its last one"
        );
    }

    #[test]
    fn the_oldest_evaluated_one_goes_loaded_ones_stay() {
        let scripts = Scripts::default();
        scripts.learn("script", &[b"script", b"load", b"loaded"]);
        scripts.learn("eval", &[b"eval", b"becomes loaded", b"0"]);
        scripts.learn("script", &[b"script", b"load", b"becomes loaded"]);
        for n in 0..EVALUATED + 10 {
            scripts.learn("eval", &[b"eval", n.to_string().as_bytes(), b"0"]);
        }
        let texts = texts(&scripts);
        assert_eq!(texts.len(), EVALUATED + 2);
        assert_eq!(texts[..3], ["loaded", "becomes loaded", "10"]);
    }

    #[test]
    fn memory_is_bounded() {
        let scripts = Scripts::default();
        for n in 0..40_u8 {
            scripts.learn("script", &[b"script", b"load", &vec![n; 1024 * 1024]]);
            scripts.learn("eval", &[b"eval", &vec![100 + n; 1024 * 1024], b"0"]);
        }
        let kept = scripts.kept.lock();
        let held: usize = kept.order.values().map(Bytes::len).sum();
        assert_eq!(held, kept.loaded_bytes + kept.evaluated_bytes);
        assert!(kept.loaded_bytes <= LOADED_BYTES && kept.evaluated_bytes <= EVALUATED_BYTES);
        assert_eq!(held, LOADED_BYTES + EVALUATED_BYTES, "what fits is kept");
    }
}
