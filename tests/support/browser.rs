//! One page in a headless Chromium, steered by the DevTools protocol over a pipe.
//!
//! With `--remote-debugging-pipe` Chromium reads commands from descriptor 3 and writes answers and events to
//! descriptor 4, each a JSON document that ends with a zero byte. It ends by itself when the pipe is closed. No port
//! is opened. Everything that the page asks for on the network and every complaint of the console is kept.
//!
//! With `CROSSFADE_SCREENSHOTS=DIR` every call of [`Page::screenshot`] writes `DIR/NAME.png`.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use parking_lot::Mutex;
use serde_json::{Value as Json, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;

use super::{PATIENCE, eventually};

/// What the packages of the distributions call it.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];

/// A desktop window, and a phone held upright.
pub const DESKTOP: (u32, u32) = (1280, 900);
pub const PHONE: (u32, u32) = (360, 740);

#[derive(Default)]
struct Heard {
    /// Who waits for the answer to which command.
    waiting: HashMap<u64, oneshot::Sender<Json>>,
    /// Addresses that the page asked for.
    requests: Vec<String>,
    /// Warnings and errors of the console, and exceptions that nobody caught.
    complaints: Vec<String>,
    /// The pipe is closed.
    ended: bool,
}

/// A page, and the browser that shows it.
pub struct Page {
    child: Mutex<Child>,
    commands: tokio::sync::Mutex<ChildStdin>,
    heard: Arc<Mutex<Heard>>,
    session: String,
    serial: AtomicU64,
    log: std::path::PathBuf,
    _profile: tempfile::TempDir,
}

impl Page {
    /// Starts the browser and opens the address.
    ///
    /// # Panics
    /// No Chromium is installed, or it does not come up; the message says which.
    pub async fn open(url: &str) -> Self {
        let profile = tempfile::Builder::new().prefix("crossfade-browser-").tempdir().unwrap();
        let log = profile.path().join("chromium.log");
        // sh moves the pipe to the descriptors 3 and 4 and then becomes the browser: the process id stays
        let mut child = Command::new("sh")
            .args(["-c", r#"exec "$@" 3<&0 4>&1 </dev/null >&2"#, "sh", installed()])
            .args(["--headless=new", "--remote-debugging-pipe", "--no-first-run", "--hide-scrollbars"])
            // root has no sandbox, nor has a container; nothing but the gateway's own page is opened
            .args(["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let answers = BufReader::new(child.stdout.take().unwrap());
        tokio::spawn(listen(answers, heard.clone()));
        let mut page = Self {
            commands: tokio::sync::Mutex::new(child.stdin.take().unwrap()),
            child: Mutex::new(child),
            heard,
            session: String::new(),
            serial: AtomicU64::new(0),
            log,
            _profile: profile,
        };
        let target = page.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = page.call("Target.attachToTarget", attach).await;
        page.session = session["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Runtime.enable", "Log.enable", "Network.enable", "Page.enable"] {
            page.call(domain, json!({})).await;
        }
        page.size(DESKTOP).await;
        let gone = page.call("Page.navigate", json!({"url": url})).await;
        assert!(gone.get("errorText").is_none(), "{url}: {gone}");
        page.wait(&format!("location.href === {url:?} && document.readyState === 'complete'")).await;
        page
    }

    /// Makes the window so many points wide and high.
    pub async fn size(&self, (width, height): (u32, u32)) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Light or dark, as the system of the one who looks at it prefers.
    pub async fn prefer(&self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", features).await;
    }

    /// The value of an expression in the page.
    pub async fn value(&self, expression: &str) -> Json {
        let ask = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", ask).await;
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// The text that a person can see of an element; empty while it is hidden.
    pub async fn text(&self, id: &str) -> String {
        let text = self.value(&format!("document.getElementById({id:?}).innerText")).await;
        let shown = self.value(&format!("document.getElementById({id:?}).checkVisibility()")).await;
        if shown == true { text.as_str().unwrap().to_owned() } else { String::new() }
    }

    /// Waits until the visible text of an element contains this.
    pub async fn wait_text(&self, id: &str, part: &str) -> String {
        let mut last = String::new();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let text = self.text(id).await;
            if text.contains(part) {
                return text;
            }
            last = if text.is_empty() { last } else { text };
            if tokio::time::Instant::now() > deadline {
                panic!(
                    "#{id} never showed {part:?}; last: {last:?}; {}",
                    self.value("document.body.innerText").await
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until an expression in the page is true.
    pub async fn wait(&self, expression: &str) {
        eventually(expression, async || self.value(expression).await == true).await;
    }

    /// Presses the mouse where the element is, as soon as it can be pressed. What covers it gets the click.
    pub async fn click(&self, selector: &str) {
        let place = format!(
            "(() => {{ const e = document.querySelector({selector:?}); if (e.disabled || !e.checkVisibility()) return null; \
             e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect(); \
             return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        );
        let mut at = Json::Null;
        eventually(&format!("{selector} can be pressed"), async || {
            at = self.value(&place).await;
            !at.is_null()
        })
        .await;
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({"type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", event).await;
        }
    }

    /// Types into what has the focus.
    pub async fn type_in(&self, text: &str) {
        self.call("Input.insertText", json!({"text": text})).await;
    }

    /// Presses and releases a key, such as `Enter`.
    pub async fn press(&self, key: &str) {
        let code = match key {
            "Enter" => 13,
            "Escape" => 27,
            _ => panic!("no such key here: {key}"),
        };
        for kind in ["rawKeyDown", "keyUp"] {
            let event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            self.call("Input.dispatchKeyEvent", event).await;
        }
    }

    /// Keeps a picture of the whole page when `CROSSFADE_SCREENSHOTS` names a directory.
    pub async fn screenshot(&self, name: &str) {
        let Some(dir) = std::env::var_os("CROSSFADE_SCREENSHOTS") else { return };
        let picture = self.call("Page.captureScreenshot", json!({"captureBeyondViewport": true})).await;
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(std::path::Path::new(&dir).join(format!("{name}.png")), bytes).unwrap();
    }

    /// Asserts that the page asked no other host for anything and that the console has no complaint but these.
    pub fn judge(&self, host: &str, expected: &[&str]) {
        let heard = self.heard.lock();
        let own = format!("http://{host}/");
        let strangers: Vec<_> =
            heard.requests.iter().filter(|url| !url.starts_with(&own) && !url.starts_with("data:")).collect();
        assert!(heard.requests.contains(&own), "the page itself was asked for");
        assert!(strangers.is_empty(), "requests to others than {own}: {strangers:#?}");
        let odd: Vec<_> =
            heard.complaints.iter().filter(|text| !expected.iter().any(|part| text.contains(part))).collect();
        assert!(odd.is_empty(), "the console complains: {odd:#?}");
    }

    /// Ends the browser in an orderly way.
    pub async fn close(mut self) {
        self.session.clear();
        self.call("Browser.close", json!({})).await;
        let status = tokio::time::timeout(PATIENCE, self.child.get_mut().wait())
            .await
            .expect("the browser ends")
            .unwrap();
        assert!(status.success(), "the browser: {status}");
    }

    async fn call(&self, method: &str, params: Json) -> Json {
        let id = self.serial.fetch_add(1, Ordering::Relaxed);
        let mut command = json!({"id": id, "method": method, "params": params});
        if !self.session.is_empty() {
            command["sessionId"] = json!(self.session);
        }
        let (sender, answer) = oneshot::channel();
        {
            let mut heard = self.heard.lock();
            assert!(!heard.ended, "the browser has ended; its log:\n{}", self.tail());
            heard.waiting.insert(id, sender);
        }
        let mut bytes = command.to_string().into_bytes();
        bytes.push(0);
        // a browser that ends closes the pipe, and the wait for the answer says so
        let _ = self.commands.lock().await.write_all(&bytes).await;
        let answer = match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => panic!("the browser ended during {method}; its log:\n{}", self.tail()),
            Err(_) => panic!("the browser does not answer {method}; its log:\n{}", self.tail()),
        };
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// How it ended, if it did, and the end of its log.
    fn tail(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let ended = self.child.lock().try_wait();
        format!("{}\n(its process: {ended:?})", crossfade::cli::demo::gateway::tail(&log, 15))
    }
}

impl Drop for Page {
    /// A test that failed leaves no browser, and no profile that the browser still writes to.
    fn drop(&mut self) {
        let child = self.child.get_mut();
        let _ = child.start_kill();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while matches!(child.try_wait(), Ok(None)) && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

async fn listen(mut answers: BufReader<ChildStdout>, heard: Arc<Mutex<Heard>>) {
    let mut document = Vec::new();
    while answers.read_until(0, &mut document).await.is_ok_and(|read| read > 0) {
        document.pop();
        let message: Json = serde_json::from_slice(&document).unwrap_or_default();
        document.clear();
        let mut heard = heard.lock();
        if let Some(id) = message["id"].as_u64() {
            if let Some(waiting) = heard.waiting.remove(&id) {
                let _ = waiting.send(message);
            }
            continue;
        }
        let params = &message["params"];
        match message["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                heard.requests.push(params["request"]["url"].as_str().unwrap_or_default().to_owned());
            }
            Some("Network.webSocketCreated") => {
                heard.requests.push(params["url"].as_str().unwrap_or_default().to_owned());
            }
            Some("Log.entryAdded") if loud(&params["entry"]["level"]) => {
                heard.complaints.push(params["entry"].to_string());
            }
            Some("Runtime.consoleAPICalled") if loud(&params["type"]) => {
                heard.complaints.push(params["args"].to_string());
            }
            Some("Runtime.exceptionThrown") => {
                heard.complaints.push(params["exceptionDetails"].to_string());
            }
            _ => {}
        }
    }
    let mut heard = heard.lock();
    heard.ended = true;
    heard.waiting.clear();
}

fn loud(level: &Json) -> bool {
    matches!(level.as_str(), Some("error" | "warning" | "assert"))
}

/// The browser on PATH.
fn installed() -> &'static str {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &&str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    NAMES.into_iter().find(found).unwrap_or_else(|| {
        panic!(
            "no Chromium on PATH, and the dashboard can only be tested in a browser: install the package chromium \
             (scripts/test.sh does); looked for {}",
            NAMES.join(", ")
        )
    })
}
