//! The dashboard, opened in a headless Chromium: what it shows is what the gateway says, and it goes on by itself; its
//! buttons do what they say; it tells of trouble, its own loss of contact included.

use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::fill;
use crossfade::cli::demo::workload::{Plan, Workload};
use serde_json::{Value as Json, json};

use crate::support::browser::{DESKTOP, PHONE, Page};
use crate::support::proxy::{Rules, Way};
use crate::support::{Lab, PATIENCE, Setup, eventually, operations};

async fn open(lab: &Lab) -> Page {
    Page::open(&format!("http://{}/", lab.gateway.admin())).await
}

/// The buttons that can be pressed, once they are these.
async fn wait_buttons(page: &Page, expected: &[&str]) {
    let possible =
        "[...document.querySelectorAll('#actions button:enabled')].map(b => b.dataset.order).join()";
    page.wait(&format!("{possible} === {:?}", expected.join(","))).await;
}

async fn wait_side(page: &Page, side: &str) {
    page.wait(&format!("[...document.querySelectorAll('.node.on')].map(n => n.id).join() === {side:?}"))
        .await;
}

async fn press(page: &Page, order: &str) {
    page.click(&format!("[data-order={order}]")).await;
}

async fn pictures(page: &Page, name: &str) {
    page.screenshot(name).await;
    page.size(PHONE).await;
    page.screenshot(&format!("{name}-phone")).await;
    // as narrow as it is, nothing stands outside
    let wide = "document.documentElement.scrollWidth <= window.innerWidth";
    assert_eq!(page.value(wide).await, true, "{name}: the page is wider than a phone");
    page.size(DESKTOP).await;
}

/// As the page writes numbers: groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join("\u{202f}")
}

/// As the page writes milliseconds.
fn milliseconds(value: &Json) -> String {
    let value = value.as_f64().unwrap();
    match value {
        10_000.0.. => format!("{:.1} s", value / 1000.0),
        100.0.. => format!("{value:.0} ms"),
        10.0.. => format!("{value:.1} ms"),
        _ => format!("{value:.2} ms"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_follows_a_migration_and_its_buttons_do_what_they_say() {
    // By commands, for a replica would come past the proxy that makes the load slow.
    let slow = "[snapshot]\nmethod = \"commands\"\n";
    let mut lab = Setup::new().gateway(&["--name", "orders-cache"]).config(slow).proxies().build().await;
    fill::fill(&lab.source.address(), 20_000, 1 << 18).await.unwrap();
    let page = open(&lab).await;

    page.wait_text("phase", "forwarding").await;
    assert_eq!(page.text("name").await, "orders-cache");
    wait_side(&page, "source").await;
    wait_buttons(&page, &["start"]).await;
    assert_eq!(page.text("lag").await, "–", "without a mirror there is no lag");

    // live: the clients' commands are counted without anybody's doing
    let workload = Workload::start(&Plan { pace: Some(2000), ..Plan::new(lab.gateway.address()) });
    page.wait("status.traffic.commands_per_second > 100 && status.clients.connected >= 32").await;
    let before = page.text("commands").await;
    page.wait(&format!("document.getElementById('commands').innerText !== {before:?}")).await;
    pictures(&page, "1-forwarding").await;

    // the snapshot comes through slowly enough to be watched
    let proxy = lab.destination_proxy.as_ref().unwrap();
    proxy.rules(Way::Up, Rules { bytes_per_second: Some(100_000), ..Rules::default() });
    press(&page, "start").await;
    page.wait_text("phase", "snapshot").await;
    page.wait_text("snapshot-text", "keys/s").await;
    page.wait("status.snapshot.keys_loaded > 0").await;
    let early = page.value("status.snapshot.keys_loaded").await;
    page.wait(&format!("status.snapshot.keys_loaded > {early} && status.phase === 'snapshot'")).await;
    pictures(&page, "2-snapshot").await;
    wait_buttons(&page, &["pause", "abort"]).await;
    lab.destination_proxy.as_ref().unwrap().heal();
    page.wait_text("phase", "mirroring").await;
    let loaded = lab.gateway.status().await.unwrap()["snapshot"]["keys_loaded"].as_u64().unwrap();
    assert!(loaded >= 20_000, "{loaded}");
    page.wait_text("snapshot-text", &grouped(loaded)).await;
    wait_buttons(&page, &["cutover", "rehearse", "pause", "finish", "abort"]).await;
    page.wait("status.mirror.commands_applied > 0").await;
    pictures(&page, "3-mirroring").await;

    press(&page, "pause").await;
    page.wait_text("phase", "paused").await;
    assert_eq!(lab.gateway.status().await.unwrap()["phase"], "paused");
    wait_buttons(&page, &["resume", "finish", "abort"]).await;
    page.wait("status.mirror.lag_ms > 1000 && document.getElementById('lag').className.includes('busy')")
        .await;
    page.screenshot("4-paused").await;
    press(&page, "resume").await;
    page.wait_text("phase", "mirroring").await;
    page.wait_text("answer", "resume: done").await;
    operations(&workload, 200).await;

    press(&page, "rehearse").await;
    page.click("#yes").await;
    page.wait_text("answer", "rehearse: rehearsed").await;
    page.wait_text("switches", "rehearsed").await;
    wait_side(&page, "source").await;

    // a question that is not answered with yes changes nothing
    press(&page, "cutover").await;
    page.wait_text("ask-text", "switched to the destination").await;
    page.screenshot("5-question").await;
    page.click("#no").await;
    press(&page, "cutover").await;
    page.press("Escape").await;
    page.wait("!document.getElementById('ask').open").await;
    let status = lab.gateway.status().await.unwrap();
    assert_eq!((&status["active"], status["switches"].as_array().unwrap().len()), (&json!("source"), 1));

    press(&page, "cutover").await;
    page.click("#yes").await;
    page.wait_text("phase", "cut-over").await;
    wait_side(&page, "destination").await;
    page.wait_text("answer", "cutover: committed").await;
    page.wait_text("epoch", "a rollback loses nothing").await;
    let status = lab.gateway.status().await.unwrap();
    assert_eq!((&status["active"], &status["epoch"]), (&json!("destination"), &json!(1)));
    let entry = &status["switches"][1];
    assert_eq!(page.text("pause").await, milliseconds(&entry["pause_ms"]));
    let first = page.value("document.querySelector('#switches tbody tr').innerText").await.to_string();
    for part in ["cutover → epoch 1", "committed", &milliseconds(&entry["max_hold_ms"])] {
        assert!(first.contains(part), "{part} in {first}");
    }
    wait_buttons(&page, &["rollback", "rehearse", "pause", "finish"]).await;
    operations(&workload, 200).await;
    pictures(&page, "6-cut-over").await;
    page.prefer("dark").await;
    pictures(&page, "6-cut-over-dark").await;
    page.prefer("light").await;

    press(&page, "rollback").await;
    page.click("#yes").await;
    page.wait_text("answer", "rollback: committed").await;
    page.wait_text("phase", "mirroring").await;
    wait_side(&page, "source").await;
    lab.judge(workload).await;

    press(&page, "cutover").await;
    page.click("#yes").await;
    page.wait_text("answer", "cutover: committed").await;
    page.wait_text("phase", "cut-over").await;
    press(&page, "finish").await;
    page.wait_text("ask-text", "clients stay on the destination").await;
    page.click("#yes").await;
    page.wait_text("phase", "finished").await;
    wait_side(&page, "destination").await;
    wait_buttons(&page, &[]).await;
    assert_eq!(lab.gateway.status().await.unwrap()["phase"], "finished");

    page.judge(&lab.gateway.admin(), &[]);
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_asks_for_the_token_and_says_why_an_order_is_refused() {
    let lab = Setup::new().env("CROSSFADE_ADMIN_TOKEN", "s3cret").build().await;
    lab.destination.call(&["SET", "left-over", "1"]).await.unwrap();
    let page = open(&lab).await;
    page.wait_text("phase", "forwarding").await;

    press(&page, "start").await;
    page.wait_text("login-text", "asks for its admin token").await;
    page.type_in("guess").await;
    page.press("Enter").await;
    page.wait_text("login-text", "did not accept").await;
    page.screenshot("7-token").await;
    page.click("#login-no").await;
    page.wait_text("answer", "not done, without a token").await;
    assert_eq!(lab.gateway.status().await.unwrap()["phase"], "forwarding");

    press(&page, "start").await;
    page.wait_text("login-text", "asks for its admin token").await;
    for (wrong, said) in [("guess", "did not accept"), ("s3cret\u{f6}", "did not accept"), ("s3cret", "")] {
        page.type_in(wrong).await;
        page.press("Enter").await;
        page.wait_text("login-text", said).await;
    }
    // the token is right now; what refuses is the destination, which is not empty
    let refusal = page.wait_text("answer", "refused by the destination").await;
    assert!(refusal.contains("What to do: empty it"), "{refusal}");
    pictures(&page, "8-refused").await;

    // it is not asked for again, and kept nowhere else
    lab.destination.call(&["FLUSHALL"]).await.unwrap();
    press(&page, "start").await;
    page.wait_text("phase", "mirroring").await;
    let kept = "JSON.stringify([document.cookie, {...localStorage}, {...sessionStorage}, location.href])";
    assert!(!page.value(kept).await.to_string().contains("s3cret"));
    press(&page, "abort").await;
    page.click("#yes").await;
    page.wait_text("phase", "finished").await;
    wait_side(&page, "source").await;
    wait_buttons(&page, &["start"]).await;

    page.judge(&lab.gateway.admin(), &["status of 401", "status of 409"]);
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_tells_of_a_server_that_is_away_and_of_a_gateway_that_is() {
    let mut lab = Setup::new().proxies().build().await;
    // a server out of reach and a gateway that is killed: their log lines are not the subject here
    lab.expect_log("");
    lab.mirror().await;
    let page = open(&lab).await;
    page.wait_text("phase", "mirroring").await;

    let proxy = lab.destination_proxy.as_ref().unwrap();
    proxy.refuse(true);
    proxy.cut();
    lab.source.call(&["SET", "k", "1"]).await.unwrap();
    page.wait_text("problem-side", "DESTINATION").await;
    let mut said = Json::Null;
    eventually("the page has the gateway's words", async || {
        said = lab.gateway.status().await.unwrap()["error"].clone();
        page.text("problem-text").await == said["message"].as_str().unwrap()
    })
    .await;
    page.wait_text("problem-until", "tries by itself until").await;
    page.wait_text("problem-remedy", said["remedy"].as_str().unwrap_or("see whether the destination runs"))
        .await;
    assert_eq!(page.value("document.getElementById('phase').className").await, "busy", "not green");
    assert!(page.value("document.title").await.as_str().unwrap().starts_with('\u{26a0}'));
    pictures(&page, "9-destination-away").await;
    proxy.refuse(false);
    page.wait("!document.getElementById('problem').checkVisibility()").await;
    page.wait("document.getElementById('phase').className === 'good'").await;

    // a gateway that hangs: the page says so, offers nothing, and goes on when it does
    lab.gateway.signal("STOP").unwrap();
    page.wait_text("lost-text", "No answer since").await;
    wait_buttons(&page, &[]).await;
    lab.gateway.signal("CONT").unwrap();
    page.wait("!document.getElementById('lost').checkVisibility()").await;

    // an order that gets no answer: nobody claims that it was not carried out
    wait_buttons(&page, &["cutover", "rehearse", "pause", "finish", "abort"]).await;
    lab.gateway.signal("STOP").unwrap();
    press(&page, "pause").await;
    page.wait_text("answer", "pause …").await;
    lab.gateway.kill();
    page.wait_text("answer", "may have been done or not").await;
    page.wait_text("lost-text", "No answer since").await;
    assert!(page.value("document.title").await.as_str().unwrap().contains("no contact"));
    assert_eq!(page.value("document.body.classList.contains('lost')").await, true, "old values are greyed");
    pictures(&page, "10-no-contact").await;

    lab.gateway.restart().await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    page.wait("!document.getElementById('lost').checkVisibility()").await;
    page.wait_text("phase", "mirroring").await;
    wait_buttons(&page, &["cutover", "rehearse", "pause", "finish", "abort"]).await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["SET", "k", "2"]).await.unwrap();
    page.wait("status.traffic.commands > 0").await;

    page.judge(&lab.gateway.admin(), &["net::ERR_"]);
    page.close().await;
}
