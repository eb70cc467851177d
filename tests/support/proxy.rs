//! A TCP proxy that makes faults: delay, throttle, black hole, cut in the middle of a frame, half-close, refusal, each
//! direction by itself and while connections run.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A direction of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client that connected to the server behind the proxy.
    Up,
    /// From the server to the client.
    Down,
}

/// What happens to the bytes of one direction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// Each piece arrives this much later.
    pub delay: Duration,
    /// At most so many bytes a second.
    pub bytes_per_second: Option<u64>,
    /// Nothing passes; the connection stays.
    pub black_hole: bool,
    /// After so many further bytes the connection is reset, in the middle of whatever it carries.
    pub cut_after: Option<u64>,
    /// This direction is closed in an orderly way, the other goes on.
    pub half_close: bool,
}

#[derive(Debug)]
struct Shared {
    rules: [watch::Sender<Rules>; 2],
    /// Cancelled to reset every connection of this generation.
    cut: Mutex<CancellationToken>,
    refuse: watch::Sender<bool>,
    target: Mutex<String>,
}

/// A running proxy; dropping it resets its connections.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Proxy {
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let rules = [watch::Sender::new(Rules::default()), watch::Sender::new(Rules::default())];
        let shared = Arc::new(Shared {
            rules,
            cut: Mutex::new(CancellationToken::new()),
            refuse: watch::Sender::new(false),
            target: Mutex::new(target),
        });
        let stop = CancellationToken::new();
        let (state, stopped) = (shared.clone(), stop.clone());
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = stopped.cancelled() => return,
                };
                let Ok((client, _)) = accepted else { continue };
                if *state.refuse.borrow() {
                    reset(&client);
                    continue;
                }
                let target = state.target.lock().clone();
                tokio::spawn(relay(client, target, state.clone(), stopped.clone()));
            }
        });
        Self { address, shared, stop }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Changes the rules of one direction; counts begin anew.
    pub fn rules(&self, way: Way, rules: Rules) {
        self.shared.rules[way as usize].send_replace(rules);
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.rules(Way::Up, Rules::default());
        self.rules(Way::Down, Rules::default());
        self.shared.refuse.send_replace(false);
    }

    /// Resets every connection there is.
    pub fn cut(&self) {
        std::mem::replace(&mut *self.shared.cut.lock(), CancellationToken::new()).cancel();
    }

    /// New connections go to another server, as when a name points elsewhere after a failover.
    pub fn lead_to(&self, target: String) {
        *self.shared.target.lock() = target;
    }

    /// New connections are reset at once.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refuse.send_replace(refuse);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
        self.cut();
    }
}

fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// The end in an orderly way: what was written still arrives.
async fn close(to: &mut WriteHalf<'_>) {
    let _ = socket2::SockRef::from(AsRef::<TcpStream>::as_ref(&*to)).set_linger(None);
    let _ = to.shutdown().await;
}

async fn relay(mut client: TcpStream, target: String, shared: Arc<Shared>, stop: CancellationToken) {
    let cut = shared.cut.lock().clone();
    let Ok(mut server) = TcpStream::connect(&target).await else {
        return reset(&client);
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    for stream in [&client, &server] {
        reset(stream); // from here on every close that is not a shutdown is a reset
    }
    // Borrowed halves: owned ones would send an orderly end before the reset when they are dropped.
    let ((client_in, client_out), (server_in, server_out)) = (client.split(), server.split());
    let here = CancellationToken::new();
    let up = pump(client_in, server_out, shared.rules[0].subscribe(), here.clone());
    let down = pump(server_in, client_out, shared.rules[1].subscribe(), here.clone());
    tokio::select! {
        biased; // behind a cut nothing passes any more
        () = cut.cancelled() => {}
        () = stop.cancelled() => {}
        () = here.cancelled() => {}
        _ = async { tokio::join!(up, down) } => {}
    }
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut rules: watch::Receiver<Rules>,
    cut: CancellationToken,
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut left = rules.borrow_and_update().cut_after;
    loop {
        if rules.has_changed().unwrap_or(false) {
            left = rules.borrow_and_update().cut_after;
        }
        let now = *rules.borrow();
        if now.half_close {
            close(&mut to).await;
            // Whoever sends does not know: what comes now goes nowhere.
            let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
            return;
        }
        if now.black_hole {
            if rules.changed().await.is_err() {
                return;
            }
            left = rules.borrow_and_update().cut_after;
            continue;
        }
        let most =
            now.bytes_per_second.map_or(buffer.len(), |rate| buffer.len().min((rate / 50).max(1) as usize));
        let most = left.map_or(most, |left| most.min(left.max(1) as usize));
        let read = tokio::select! {
            biased; // new rules hold for whatever is read after them
            changed = rules.changed() => if changed.is_ok() {
                left = rules.borrow_and_update().cut_after;
                continue;
            } else {
                return;
            },
            read = from.read(&mut buffer[..most]) => read,
        };
        let Ok(length @ 1..) = read else { return close(&mut to).await };
        if !now.delay.is_zero() {
            tokio::time::sleep(now.delay).await;
        }
        if let Some(rate) = now.bytes_per_second {
            tokio::time::sleep(Duration::from_secs_f64(length as f64 / rate as f64)).await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
        if let Some(left) = &mut left {
            *left = left.saturating_sub(length as u64);
            if *left == 0 {
                return cut.cancel();
            }
        }
    }
}
