use std::io::Write;
use std::net::SocketAddr;

use parking_lot::Mutex;
use serde_json::json;

use super::*;
use crate::migration::status::{Phase, StepTimes, SwitchEntry, SwitchOutcome};
use crate::mirror::ThrottleRequest;
use crate::server::Secret;

/// A migration that notes what it is asked and answers as told.
struct Fake {
    status: watch::Sender<Status>,
    orders: Mutex<Vec<Order>>,
    slow: bool,
}

impl Control for Fake {
    fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    fn order(&self, order: Order) -> Answer {
        self.orders.lock().push(order.clone());
        let status = self.status.clone();
        let slow = self.slow;
        Box::pin(async move {
            if slow {
                tokio::time::sleep(Duration::from_millis(100)).await;
                status.send_modify(|status| status.epoch = 7);
            }
            match order {
                Order::Start => Err(Error::new(Side::Gateway, "it runs already").remedy("nothing to do")),
                Order::Resume(_) => Err(Error::passing(Side::Destination, "cannot connect to b:1")),
                Order::Switch(kind, _) => Ok(json!({"kind": kind, "outcome": "committed"})),
                _ => Ok(serde_json::to_value(status.borrow().clone()).unwrap()),
            }
        })
    }
}

struct Server {
    fake: Arc<Fake>,
    address: SocketAddr,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<()>>,
}

async fn server(token: Option<&str>, slow: bool) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let admin = Admin {
        listener,
        address,
        token: token.map(Secret::new),
        metrics: Arc::new(Metrics::new("orders", "")),
    };
    let status = Status { name: "orders".into(), phase: Phase::Mirroring, ..Status::default() };
    let fake = Arc::new(Fake { status: watch::Sender::new(status), orders: Mutex::default(), slow });
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(admin.serve(fake.clone(), shutdown.clone()));
    Server { fake, address, shutdown, task }
}

/// Status, headers and body of a request written by hand.
async fn raw(address: SocketAddr, request: String) -> (u16, String, String) {
    use std::io::Read;
    tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    })
    .await
    .unwrap()
}

impl Server {
    async fn get(&self, path: &str) -> (u16, String, String) {
        let host = self.address;
        raw(host, format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
    }

    async fn post(&self, path: &str, headers: &str, body: &str) -> (u16, Json) {
        let host =
            if headers.contains("Host:") { String::new() } else { format!("Host: {}\r\n", self.address) };
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\n{host}Content-Length: {length}\r\nConnection: close\r\n{headers}"
        );
        let (status, _, body) = raw(self.address, format!("{head}\r\n{body}")).await;
        (status, serde_json::from_str(&body).unwrap())
    }

    fn orders(&self) -> Vec<Order> {
        self.fake.orders.lock().clone()
    }
}

const JSON: &str = "Content-Type: application/json\r\n";

#[tokio::test]
async fn what_can_be_read() {
    let server = server(Some("s3cret"), false).await;
    let (status, head, body) = server.get("/v1/status").await;
    assert_eq!(status, 200);
    assert!(
        head.contains("content-type: application/json") && head.contains("cache-control: no-store"),
        "{head}"
    );
    let document: Status = serde_json::from_str(&body).unwrap();
    assert_eq!((document.name.as_str(), document.phase), ("orders", Phase::Mirroring));
    let (status, head, body) = server.get("/metrics").await;
    assert!(status == 200 && head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(body.contains(r#"crossfade_phase{name="orders",phase="mirroring"} 1"#), "{body}");
    assert_eq!(server.get("/healthz").await.0, 200);
    assert_eq!(server.get("/readyz").await.0, 200);
    let (status, head, body) = server.get("/").await;
    assert!(status == 200 && head.contains("text/html") && body.contains("<title>"), "{head}");
    for outside in ["http://", "https://", "//cdn", "@import", "src="] {
        assert!(!body.contains(outside), "the page asks for {outside}");
    }
    let (status, _, body) = server.get("/nowhere").await;
    assert!(status == 404 && body.contains("\"side\":\"gateway\""), "{body}");
    assert_eq!(server.get("/v1/start").await.0, 405);
}

#[tokio::test]
async fn orders_reach_the_migration() {
    let server = server(None, false).await;
    let (status, answer) =
        server.post("/v1/cutover", JSON, r#"{"max_pause": "300ms", "rehearse": true}"#).await;
    assert_eq!((status, answer["outcome"].as_str()), (200, Some("committed")));
    let (status, _) = server.post("/v1/rollback", JSON, "").await;
    assert_eq!(status, 200);
    let (status, answer) =
        server.post("/v1/pause", "Content-Type: Application/JSON; charset=utf-8\r\n", "{}").await;
    assert_eq!((status, answer["phase"].as_str()), (200, Some("mirroring")));
    let (status, _) = server.post("/v1/verify", JSON, r#"{"sample": 10}"#).await;
    assert_eq!(status, 200);
    let request = SwitchRequest {
        max_pause: Some(Duration::from_millis(300)),
        rehearse: true,
        ..SwitchRequest::default()
    };
    assert_eq!(
        server.orders(),
        [
            Order::Switch(SwitchKind::Cutover, request),
            Order::Switch(SwitchKind::Rollback, SwitchRequest::default()),
            Order::Pause,
            Order::Verify(VerifyRequest { sample: Some(10), ..VerifyRequest::default() }),
        ]
    );
}

#[tokio::test]
async fn errors_have_a_side_a_remedy_and_a_fitting_status() {
    let server = server(None, false).await;
    let (status, answer) = server.post("/v1/start", JSON, "{}").await;
    let error =
        json!({"error": {"side": "gateway", "message": "it runs already", "remedy": "nothing to do"}});
    assert_eq!((status, answer), (409, error));
    let (status, answer) = server.post("/v1/resume", JSON, "{}").await;
    assert_eq!((status, answer["error"]["side"].as_str()), (503, Some("destination")));
    server.post("/v1/resume", JSON, r#"{"skip_failed": true}"#).await;
    let resumes = [false, true]
        .map(|skip_failed| Order::Resume(ResumeRequest { skip_failed, ..ResumeRequest::default() }));
    assert_eq!(server.orders()[1..], resumes);
    server.post("/v1/throttle", JSON, r#"{"mirror_ops": "off", "snapshot_bytes": "2MB/s"}"#).await;
    let asked = ThrottleRequest {
        mirror_ops: Some(None),
        snapshot_bytes: Some(Some(2_000_000)),
        ..Default::default()
    };
    assert_eq!(server.orders()[3], Order::Throttle(asked));
    for (path, body, expected) in [
        ("/v1/cutover", r#"{"max_pauze": "1s"}"#, 400),
        ("/v1/cutover", r#"{"max_pause": "soon"}"#, 400),
        ("/v1/cutover", "nonsense", 400),
        ("/v1/finish", r#"{"force": true}"#, 400),
        ("/v1/resume", r#"{"skip": true}"#, 400),
        ("/v1/throttle", r#"{"mirror_ops": "0/s"}"#, 400),
        ("/v1/throttle", r#"{"mirror_opps": "1/s"}"#, 400),
        ("/v1/explode", "{}", 404),
    ] {
        let (status, answer) = server.post(path, JSON, body).await;
        assert_eq!(status, expected, "{path} {body}");
        assert!(answer["error"]["remedy"].is_string(), "{answer}");
    }
}

#[tokio::test]
async fn who_may_change_something() {
    let open = server(None, false).await;
    let address = open.address;
    let port = address.port();
    for (headers, expected) in [
        ("".to_owned(), 415),
        ("Content-Type: text/plain\r\n".to_owned(), 415),
        ("Content-Type: application/x-www-form-urlencoded\r\n".to_owned(), 415),
        (format!("{JSON}Host: evil.example:{port}\r\n"), 403),
        (format!("{JSON}Host: localhost.evil.example:{port}\r\n"), 403),
        (format!("{JSON}Origin: http://evil.example\r\n"), 403),
        (format!("{JSON}Origin: null\r\n"), 403),
        (format!("{JSON}Origin: http://{address}\r\n"), 200),
        (format!("{JSON}Host: localhost:{port}\r\n"), 200),
        (JSON.to_owned(), 200),
    ] {
        let (status, answer) = open.post("/v1/pause", &headers, "{}").await;
        assert_eq!(status, expected, "{headers:?}: {answer}");
    }
    assert_eq!(open.orders().len(), 3);

    let guarded = server(Some("s3cret"), false).await;
    for (authorization, expected) in [
        ("", 401),
        ("Authorization: Bearer wrong\r\n", 401),
        ("Authorization: Bearer s3cre\r\n", 401),
        ("Authorization: s3cret\r\n", 401),
        ("Authorization: Bearer s3cret\r\n", 200),
        ("Authorization: bearer s3cret\r\n", 200),
    ] {
        let (status, answer) = guarded.post("/v1/pause", &format!("{JSON}{authorization}"), "{}").await;
        assert_eq!(status, expected, "{authorization:?}: {answer}");
        assert!(!answer.to_string().contains("s3cret"));
    }
}

#[tokio::test]
async fn an_order_goes_on_when_the_one_who_asked_hangs_up() {
    let server = server(None, true).await;
    let mut news = server.fake.status.subscribe();
    let request = format!(
        "POST /v1/cutover HTTP/1.1\r\nHost: {}\r\n{JSON}Content-Length: 2\r\n\r\n{{}}",
        server.address
    );
    let address = server.address;
    tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        // Until the server has begun; then the connection is dropped.
        std::thread::sleep(Duration::from_millis(50));
    })
    .await
    .unwrap();
    let seen = tokio::time::timeout(Duration::from_secs(5), news.wait_for(|status| status.epoch == 7)).await;
    assert!(seen.is_ok(), "the order was torn down");
}

#[tokio::test]
async fn events_tell_of_every_phase_and_switch() {
    let server = server(None, false).await;
    let address = server.address;
    let (lines, mut seen) = tokio::sync::mpsc::channel::<String>(64);
    let reader = tokio::task::spawn_blocking(move || {
        use std::io::BufRead;
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET /v1/events HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
        for line in std::io::BufReader::new(stream).lines().map_while(std::result::Result::ok) {
            if line.starts_with("event: ") && lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let mut next =
        async || tokio::time::timeout(Duration::from_secs(5), seen.recv()).await.expect("an event");
    assert_eq!(next().await.as_deref(), Some("event: status"));
    server.fake.status.send_modify(|status| {
        status.phase = Phase::CutOver;
        status.switches.push(SwitchEntry {
            kind: SwitchKind::Cutover,
            outcome: SwitchOutcome::Committed,
            reason: None,
            epoch: 1,
            pause_ms: 8.0,
            held_commands: 1,
            max_hold_ms: 8.0,
            steps_ms: StepTimes::default(),
            at: None,
        });
    });
    assert_eq!(next().await.as_deref(), Some("event: phase"));
    assert_eq!(next().await.as_deref(), Some("event: switch"));
    assert_eq!(next().await.as_deref(), Some("event: status"));
    server.shutdown.cancel();
    assert_eq!(next().await, None);
    reader.await.unwrap();
}

#[tokio::test]
async fn it_ends_although_somebody_keeps_a_connection() {
    let server = server(None, false).await;
    let _idle = tokio::net::TcpStream::connect(server.address).await.unwrap();
    server.get("/healthz").await;
    server.shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(5), server.task).await;
    ended.expect("it ends").unwrap().unwrap();
}
