//! The thread that reads the snapshot and writes it to the destination's connection, with other expiries.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{Broken, Served, Unfit, lost, reads, unreadable};
use crate::backfill::OWN_PREFIX;
use crate::backfill::feeder::renamed;
use crate::backfill::{Pace, Progress, Throttle};
use crate::error::{Error, Side};
use crate::mirror::expiry::{field_padded, padded};
use crate::mirror::{Mapping, Selection};
use crate::rdb::{Entry, Item, RawValue, ReadOptions, Reader, Stopped, Writer};
use crate::server::{self, Capabilities};

/// What is written at once.
const PIECE: usize = 128 * 1024;
/// The type of vector sets.
const VECTOR_SET: &str = "vectorset";
/// Scripts of an old source are kept in memory until the load is over.
const SCRIPTS: usize = 16 << 20;

/// What the thread needs to know.
pub(super) struct Pass {
    pub(super) capabilities: Capabilities,
    pub(super) databases: u64,
    pub(super) max_memory: u64,
    /// Whether the destination has the module for vector sets, which Redis brings along from 8.0.
    pub(super) vector_sets: bool,
    pub(super) own: Vec<(Vec<u8>, Vec<u8>)>,
    /// What ends the transfer.
    pub(super) mark: String,
    pub(super) big_value: usize,
    pub(super) select: Option<Arc<Selection>>,
    pub(super) map: Option<Arc<Mapping>>,
    pub(super) throttle: Arc<Throttle>,
    pub(super) progress: Arc<Progress>,
    pub(super) cancel: CancellationToken,
}

/// Ends the connection, and with it whatever the thread is writing, when the load is given up.
struct Leash(Option<std::net::TcpStream>);

impl Drop for Leash {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Pass {
    /// Runs the thread; when this future is dropped, the connection ends, and the thread at its next read or write.
    pub(super) async fn run<R: Read + Send + 'static>(
        self,
        from: R,
        socket: TcpStream,
        timeout: Duration,
    ) -> Result<(Served, TcpStream), Broken> {
        let socket = socket.into_std().map_err(lost)?;
        let prepared = socket
            .set_nonblocking(false)
            .and_then(|()| socket.set_write_timeout(Some(timeout)))
            .and_then(|()| socket.try_clone())
            .map_err(lost)?;
        let mut leash = Leash(Some(socket.try_clone().map_err(lost)?));
        let (done, outcome) = oneshot::channel();
        std::thread::Builder::new()
            .name("snapshot-server".into())
            .spawn(move || {
                crate::server::processors::roam();
                // The other side is gone when the load was given up.
                let _ = done.send(self.pass(from, prepared));
            })
            .map_err(|cause| {
                let error = Error::passing(Side::Gateway, "cannot start the thread that reads the snapshot");
                Broken::Snapshot(error.because(cause))
            })?;
        let broke =
            || Broken::Snapshot(Error::new(Side::Gateway, "the thread that reads the snapshot broke"));
        let served = outcome.await.map_err(|_| broke())??;
        leash.0 = None;
        socket.set_nonblocking(true).map_err(lost)?;
        Ok((served, TcpStream::from_std(socket).map_err(lost)?))
    }

    fn pass<R: Read>(self, from: R, to: std::net::TcpStream) -> Result<Served, Broken> {
        // From 8.10 on.
        let keep_templates =
            self.capabilities.flavour == server::Flavour::Redis && self.capabilities.version >= (8, 10, 0);
        let mut reader = Reader::new(from, ReadOptions { big_value: self.big_value, keep_templates });
        let header = reader.header().map_err(unreadable)?;
        if !reads(&self.capabilities, header) {
            return Err(Unfit::new("it does not read files of that version").into());
        }
        // A replica that hears nothing for long begins anew.
        let pace = Pace::new(Arc::clone(&self.throttle), Instant::now()).that_never_stops();
        let mut out = Outgoing {
            to,
            writer: Writer::new(header),
            pace,
            keys: 0,
            lost: None,
            cancel: self.cancel.clone(),
        };
        let mut served = Served::default();
        let (mut kept, mut written_by) = (0, None);
        let progress = &self.progress;
        let select = self.select.as_deref();
        let map = self.map.as_deref();
        let outside =
            |db, key: &[u8], type_id| select.is_some_and(|select| !select.keeps_value(db, key, type_id));
        loop {
            if out.writer.bytes().len() >= PIECE {
                out.flush()?;
                progress.keys_loaded.store(served.keys, Relaxed);
                progress.bytes_read.store(reader.bytes_read(), Relaxed);
            }
            let Some(item) = reader.next_item().map_err(unreadable)? else { break };
            match item {
                Item::Entry(entry) if outside(entry.db, entry.key, entry.value.type_id) => {}
                Item::Big(entry) if outside(entry.db, &entry.key, entry.type_id) => {}
                Item::SelectDb(db) if select.is_some_and(|select| !select.keeps_db(db)) => {}
                Item::Entry(entry) if entry.key.starts_with(OWN_PREFIX) => served.own_keys += 1,
                Item::Big(entry) if entry.key.starts_with(OWN_PREFIX) => served.own_keys += 1,
                Item::Entry(entry) => {
                    let name = renamed(map, entry.db, entry.key).map_err(Broken::Snapshot)?;
                    let entry = match &name {
                        Some((db, key)) => Entry { db: *db, key, ..entry },
                        None => entry,
                    };
                    self.known(&entry.value, written_by)?;
                    out.writer.entry(&entry, entry.expire_at_ms.map(padded), field_padded);
                    out.keys += 1;
                    served.keys += 1;
                }
                Item::Big(entry) if !keep_templates && entry.has_template() => {
                    return Err(Unfit::new("it does not know the templates of a large hash").into());
                }
                Item::Big(mut entry) => {
                    if let Some((db, key)) = renamed(map, entry.db, &entry.key).map_err(Broken::Snapshot)? {
                        (entry.db, entry.key) = (db, key);
                    }
                    out.writer.big_entry(&entry, entry.expire_at_ms.map(padded));
                    out.keys += 1;
                    served.keys += 1;
                    let copied = entry.copy(field_padded, &mut |bytes| {
                        progress.bytes_read.fetch_add(bytes.len() as u64, Relaxed);
                        out.write(bytes)
                    });
                    if let Some(cause) = out.lost.take() {
                        return Err(lost(cause).into());
                    }
                    copied.map_err(unreadable)?;
                }
                Item::SelectDb(db) => {
                    // One that cannot have its number there is refused with its first key.
                    let db = map.map_or(Ok(db), |map| map.db(db)).unwrap_or(db);
                    if u64::from(db) >= self.databases {
                        let text =
                            format!("it has {} databases, the source uses number {db}", self.databases);
                        return Err(Unfit::new(text).into());
                    }
                    out.writer.select_db(db);
                }
                Item::ResizeDb { keys, expires } => {
                    progress.keys_expected.fetch_add(keys, Relaxed);
                    // Room for all of them would be too much.
                    if select.is_none() {
                        out.writer.resize_db(keys, expires);
                    }
                }
                Item::Aux { name, value } if name == b"lua" => {
                    kept += value.len();
                    if kept > SCRIPTS {
                        return Err(Unfit::new("the snapshot carries many scripts").into());
                    }
                    served.scripts.push(value);
                }
                Item::Aux { name, value } if name == b"redis-ver" => {
                    written_by = std::str::from_utf8(&value).ok().map(server::version);
                    out.writer.aux(&name, &value);
                }
                Item::Aux { name, value } if name == b"used-mem" && self.is_too_much(&value) => {
                    return Err(Unfit::new("its maxmemory is less than the source uses").into());
                }
                // Where the source stands is nothing that the destination should believe of itself.
                Item::Aux { name, .. } if name.starts_with(b"repl-") => {}
                Item::Aux { name, value } => out.writer.aux(&name, &value),
                Item::Template { id, fields } => out.writer.template(id, &fields),
                Item::Function(source) => {
                    out.writer.function(&source);
                    served.functions += 1;
                }
                Item::FunctionPreGa { .. } => {
                    return Err(Unfit::new("the snapshot holds functions of a release candidate").into());
                }
                Item::ModuleAux { module } => {
                    return Err(Unfit::new(format!("the snapshot holds data of the module {module}")).into());
                }
            }
        }
        out.writer.select_db(0);
        for (key, value) in &self.own {
            out.writer.string(key, value);
        }
        out.writer.end();
        out.flush()?;
        out.to.write_all(self.mark.as_bytes()).map_err(lost)?;
        progress.keys_loaded.store(served.keys, Relaxed);
        progress.bytes_read.store(reader.bytes_read(), Relaxed);
        Ok(served)
    }

    /// Refuses the value of a module, which ends a server that does not know it; vector sets are known to be understood by
    /// servers that are no older than the one that wrote them.
    fn known(&self, value: &RawValue<'_>, written_by: Option<(u16, u16, u16)>) -> Result<(), Unfit> {
        match value.module() {
            None => Ok(()),
            Some(name)
                if name == VECTOR_SET
                    && self.vector_sets
                    && written_by.is_some_and(|version| version <= self.capabilities.version) =>
            {
                Ok(())
            }
            Some(name) => Err(Unfit::new(format!("the snapshot holds values of the module {name}"))),
        }
    }

    fn is_too_much(&self, used: &[u8]) -> bool {
        let used = std::str::from_utf8(used).ok().and_then(|text| text.parse::<u64>().ok());
        self.max_memory > 0 && used.is_none_or(|used| used > self.max_memory)
    }
}

/// The connection, and what goes there next.
struct Outgoing {
    to: std::net::TcpStream,
    writer: Writer,
    pace: Pace,
    /// Keys begun since the last write.
    keys: u32,
    lost: Option<std::io::Error>,
    cancel: CancellationToken,
}

impl Outgoing {
    fn flush(&mut self) -> Result<(), Unfit> {
        self.send().map_err(lost)
    }

    /// A part of a large value; they come field by field.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        self.writer.raw(bytes);
        if self.writer.bytes().len() < PIECE {
            return Ok(());
        }
        self.send().map_err(|error| {
            self.lost = Some(error);
            Stopped
        })
    }

    fn send(&mut self) -> std::io::Result<()> {
        self.pace.wait(self.writer.bytes().len(), u64::from(std::mem::take(&mut self.keys)), &self.cancel);
        self.to.write_all(self.writer.bytes())?;
        self.writer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::rdb::{Flavour, Header};
    use crate::server;

    fn destination() -> Capabilities {
        Capabilities {
            flavour: server::Flavour::Redis,
            version: (7, 0, 15),
            compatible: (7, 0, 15),
            rdb_version: 10,
            cluster: false,
            psync: true,
            pause_write: true,
            rdb_filter: true,
            pexpiretime: true,
            functions: true,
            client_unblock: true,
            restore_absttl: true,
            restore: true,
            unlink: true,
        }
    }

    /// A file of that version, with what `fill` writes.
    fn file(version: u32, fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::new(Header { flavour: Flavour::Redis, version });
        fill(&mut writer);
        writer.end();
        writer.bytes().to_vec()
    }

    /// What comes of a file, and what the destination was sent.
    async fn passed(file: Vec<u8>) -> (Result<Served, Broken>, Vec<u8>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(listener.accept(), TcpStream::connect(address));
        let (ours, mut theirs) = (ours.unwrap().0, theirs.unwrap());
        let pass = Pass {
            capabilities: destination(),
            databases: 16,
            max_memory: 1000,
            vector_sets: true,
            own: vec![(b"crossfade:position".to_vec(), b"mark".to_vec())],
            mark: "m".repeat(40),
            big_value: 1 << 20,
            select: None,
            map: None,
            throttle: Arc::default(),
            progress: Arc::default(),
            cancel: CancellationToken::new(),
        };
        let outcome = pass.run(std::io::Cursor::new(file), ours, Duration::from_secs(5)).await;
        let mut sent = Vec::new();
        let outcome = outcome.map(|(served, socket)| {
            drop(socket);
            served
        });
        theirs.read_to_end(&mut sent).await.unwrap();
        (outcome, sent)
    }

    #[tokio::test]
    async fn what_ends_a_server_is_not_sent() {
        let cases: [(&str, Vec<u8>); 4] = [
            ("16 databases", file(10, |to| to.select_db(16))),
            ("maxmemory", file(10, |to| to.aux(b"used-mem", b"1001"))),
            ("of that version", file(11, |to| to.string(b"k", b"v"))),
            // A module's value: its id, then the end mark.
            (
                "the module AAAAAAAAA",
                [&b"REDIS0010\x07\x01k\x81\0\0\0\0\0\0\0\x01\0"[..], &[255; 1], &[0; 8]].concat(),
            ),
        ];
        for (why, file) in cases {
            let (outcome, sent) = passed(file).await;
            let Err(Broken::Unfit(unfit)) = outcome else { panic!("{why}: {outcome:?}") };
            assert!(unfit.to_string().contains(why), "{unfit}");
            assert!(!sent.windows(40).any(|end| end == "m".repeat(40).as_bytes()), "{why}");
        }
        let (outcome, _) = passed(b"REDIS0010\xfe\0\0\x01k".to_vec()).await;
        assert!(matches!(outcome, Err(Broken::Snapshot(_))), "{outcome:?}");
    }

    #[tokio::test]
    async fn everything_else_arrives_with_our_keys_at_its_end() {
        let whole = file(10, |to| {
            to.aux(b"redis-ver", b"7.0.15");
            to.aux(b"repl-id", b"x");
            to.aux(b"lua", b"return 1");
            to.aux(b"used-mem", b"1000");
            to.select_db(15);
            to.string(b"crossfade:position", b"of somebody else");
            to.string(b"k", b"v");
        });
        let (outcome, sent) = passed(whole).await;
        let served = outcome.unwrap();
        assert_eq!((served.keys, served.own_keys, served.scripts.len()), (1, 1, 1));
        let mut expected = file(10, |to| {
            to.aux(b"redis-ver", b"7.0.15");
            to.aux(b"used-mem", b"1000");
            to.select_db(15);
            to.string(b"k", b"v");
            to.select_db(0);
            to.string(b"crossfade:position", b"mark");
        });
        expected.extend("m".repeat(40).bytes());
        assert_eq!(sent.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }
}
