//! Recalls blocked commands before a switch: the server ends their waiting with an empty answer (CLIENT UNBLOCK), and the gateway issues
//! them again where the clients are served from then on.
//!
//! CLIENT UNBLOCK of a command that waits because of CLIENT PAUSE ends Redis 6.2 to 8.0 and Valkey up to 8.1 ("Unknown btype in
//! replyToBlockedClientOnTimeout", `blocked.c`), and nothing tells such a command from one that waits for an element. So it comes in a
//! transaction with a command that a paused server keeps for later, as all that might be replicated; in one that runs it
//! nothing waits because of a pause.
//!
//! A server that is paused, or busy, may run the transaction when the switch has long been given up. What it recalls is then issued again at
//! once. An XREAD that follows a stream from its end (`$`) would miss what came in between; so the transaction also asks where
//! that end is.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::Worker;
use super::switching::resume;
use crate::error::{Error, Result, Side};
use crate::proxy::Active;
use crate::proxy::moving::{Recall, Whom, last_id};
use crate::proxy::session::Session;
use crate::resp::value::Value;
use crate::resp::write;
use crate::server::paused::{self, Guard, executed};
use crate::server::{Client, passes};

/// For the connection.
const CONNECTED: Duration = Duration::from_secs(2);
/// For an answer: as long as a pause or a script may last that somebody waits for.
const ANSWERED: Duration = Duration::from_secs(60);

pub(super) type Recalls = Vec<(Rc<Session>, Recall)>;

/// A connection with the gateway's own credentials.
pub(super) struct Recaller {
    client: Client,
    /// `None`: the gateway's user may not use any, so nothing is recalled.
    guard: Option<Guard>,
    /// Whether that user may look at clients' streams.
    asks: bool,
}

/// Opens the connection for [`recall`].
pub(super) async fn open_recaller(worker: &Worker, side: Active) -> std::result::Result<(), String> {
    let endpoint = worker.options().endpoint(side).ok_or("no such server is configured")?;
    let mut client = Client::open(endpoint, CONNECTED).await.map_err(|error| error.to_string())?;
    let guard = match paused::guard(&mut client).await {
        Ok(guard) => Some(guard),
        Err(error) if error.retry => return Err(error.to_string()),
        Err(error) => {
            tracing::warn!("blocked commands cannot be recalled: {error}");
            None
        }
    };
    client.set_timeout(ANSWERED);
    *worker.recaller.borrow_mut() = Some(Recaller { client, guard, asks: true });
    Ok(())
}

/// Recalls blocked commands, and waits for that until `deadline`; without a connection, opens one.
pub(super) async fn recall(worker: &Rc<Worker>, blocked: Recalls, deadline: tokio::time::Instant) {
    let side = worker.active.get();
    let taken = worker.recaller.borrow_mut().take();
    let Some(mut recaller) = taken else {
        let opened = tokio::time::timeout_at(deadline, open_recaller(worker, side)).await;
        if let Ok(Err(error)) = opened {
            tracing::info!("blocked commands cannot be recalled: {error}");
        }
        return;
    };
    let Some(guard) = recaller.guard else {
        *worker.recaller.borrow_mut() = Some(recaller);
        return;
    };
    worker.recalling.set(worker.recalling.get() + 1);
    let here = Rc::clone(worker);
    let recalled = tokio::task::spawn_local(async move {
        let outcome = recaller.recall(guard, &blocked).await;
        here.recalling.set(here.recalling.get() - 1);
        if !here.gate_closed() {
            // The switch was given up. Those that came back have waited for where their streams end.
            resume(&here, here.active.get());
        }
        match outcome {
            Ok(()) if here.active.get() == side => {
                here.recaller.borrow_mut().get_or_insert(recaller);
            }
            Ok(()) => {}
            Err(error) => tracing::info!("blocked commands cannot be recalled: {error}"),
        }
    });
    if tokio::time::timeout_at(deadline, recalled).await.is_err() {
        tracing::info!("the server is paused or busy: blocked commands were not recalled in time");
    }
}

impl Recaller {
    async fn recall(&mut self, guard: Guard, blocked: &Recalls) -> Result<()> {
        let ids = self.ids_of(blocked).await?;
        let mut outcome = self.attempt(guard, blocked, &ids).await?;
        if outcome.as_ref().is_err_and(|why| !passes(why)) && self.asks {
            // It may not look at those streams, or a cluster has them in other slots.
            self.asks = false;
            outcome = self.attempt(guard, blocked, &ids).await?;
        }
        outcome.map_err(|why| Error::new(Side::Client, format!("CLIENT UNBLOCK was refused: {why}")))
    }

    /// Gives why the server refuses the transaction.
    ///
    /// # Errors
    /// The connection failed.
    async fn attempt(
        &mut self,
        guard: Guard,
        blocked: &Recalls,
        ids: &[Option<Vec<u8>>],
    ) -> Result<std::result::Result<(), String>> {
        let asks = self.asks;
        let asks = |recall: &Recall| asks && !recall.ends.is_empty();
        let known = || blocked.iter().zip(ids).filter_map(|(one, id)| Some((one, id.as_ref()?)));
        let mut commands = Vec::new();
        let mut count = 0;
        let mut add = |command: &[&[u8]]| {
            write::command(&mut commands, command);
            count += 1;
        };
        add(&[b"MULTI"]);
        add(&guard.iter().map(|word| word.as_bytes()).collect::<Vec<_>>());
        for ((_, recall), id) in known() {
            if asks(recall) {
                add(&[b"SELECT", recall.db.to_string().as_bytes()]);
                recall.ends.iter().for_each(|(_, key)| add(&[b"XINFO", b"STREAM", key]));
            }
            add(&[b"CLIENT", b"UNBLOCK", id]);
        }
        add(&[b"EXEC"]);
        let results = match executed(self.client.pipeline(&commands, count).await?) {
            Ok(results) => results,
            Err(why) => return Ok(Err(why)),
        };
        let mut results = results.into_iter().skip(1);
        for ((session, recall), _) in known() {
            let mut found: Vec<((usize, Bytes), Bytes)> = Vec::new();
            if asks(recall) {
                results.next();
                for end in &recall.ends {
                    found.extend(results.next().as_ref().and_then(last_id).map(|id| (end.clone(), id)));
                }
            }
            match results.next() {
                // It waited, so there was nothing behind those ends.
                Some(Value::Integer(1)) => session.follow_from(recall.db, found),
                Some(Value::Error(text)) => {
                    tracing::info!("CLIENT UNBLOCK was refused: {}", String::from_utf8_lossy(&text));
                }
                _ => {}
            }
        }
        Ok(Ok(()))
    }

    /// The server's ids of connections, those that are known by their address looked up in CLIENT LIST.
    async fn ids_of(&mut self, blocked: &Recalls) -> Result<Vec<Option<Vec<u8>>>> {
        let list = if blocked.iter().any(|(_, recall)| matches!(recall.whom, Whom::From(_))) {
            self.client.call(&["CLIENT", "LIST"]).await?
        } else {
            Value::Nil
        };
        let by_address: HashMap<&[u8], &[u8]> = list
            .as_bytes()
            .unwrap_or_default()
            .split(|&byte| byte == b'\n')
            .filter_map(|line| {
                let field =
                    |name: &[u8]| line.split(|&byte| byte == b' ').find_map(|word| word.strip_prefix(name));
                Some((field(b"addr=")?, field(b"id=")?))
            })
            .collect();
        let id = |(_, recall): &(Rc<Session>, Recall)| match recall.whom {
            Whom::Id(id) => Some(id.to_string().into_bytes()),
            Whom::From(address) => by_address.get(address.to_string().as_bytes()).map(|id| id.to_vec()),
        };
        Ok(blocked.iter().map(id).collect())
    }
}
