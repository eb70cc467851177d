//! More than one worker: clients of different threads see one gateway. They find each other in CLIENT LIST, end and unblock each
//! other, hear each other's messages, and are switched together.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crossfade::cli::demo::servers::Server;
use crossfade::cli::demo::workload::{Plan, Workload, create_library, create_user};
use futures_util::future::join_all;
use tokio::task::JoinSet;

use crate::support::resp3::Client;
use crate::support::{Lab, Setup, eventually, operations};

const WORKERS: usize = 3;
const CLIENTS: usize = 48;

/// A client, and the worker that serves it.
struct Member {
    client: Client,
    id: String,
    name: String,
    worker: String,
}

async fn lab() -> Lab {
    Setup::new().config(&format!("listen.workers = {WORKERS}\n")).build().await
}

/// The ids of the server's connections whose last command was this one.
async fn connections(server: &Server, command: &str) -> Vec<String> {
    let list = server.call(&["CLIENT", "LIST"]).await.unwrap();
    let list = String::from_utf8_lossy(list.bytes().unwrap()).into_owned();
    let lines = list.lines().filter(|line| line.contains(&format!(" cmd={command} ")));
    lines.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

/// Clients of all workers. Every worker has one connection to the server for ordinary commands: the one over which a client's
/// command came tells which worker that client has.
async fn members(lab: &Lab) -> Vec<Member> {
    let mut members = Vec::new();
    for number in 0..CLIENTS {
        let mut client = Client::open_resp2(&lab.gateway.address()).await;
        let name = format!("member-{number}");
        assert_eq!(client.ask(&["CLIENT", "SETNAME", &name]).await, "OK");
        let id = client.ask(&["CLIENT", "ID"]).await;
        client.ask(&["ECHO", "here"]).await;
        let over = connections(&lab.source, "echo").await;
        client.ask(&["PING"]).await;
        assert_eq!(over.len(), 1, "{over:?}");
        members.push(Member { client, id, name, worker: over[0].clone() });
    }
    let workers: HashSet<&str> = members.iter().map(|member| member.worker.as_str()).collect();
    assert_eq!(workers.len(), WORKERS, "the system spreads {CLIENTS} clients over all workers");
    members
}

/// One member of each worker.
fn one_of_each(members: Vec<Member>) -> Vec<Member> {
    let mut seen = HashSet::new();
    let each: Vec<Member> = members.into_iter().filter(|member| seen.insert(member.worker.clone())).collect();
    assert_eq!(each.len(), WORKERS);
    each
}

/// Waits until CLIENT LIST shows the flag for so many clients.
async fn flagged(asker: &mut Client, flag: &str, count: usize) {
    let flag = format!(" flags={flag} ");
    eventually("all of them have the flag", async || {
        let list = asker.ask(&["CLIENT", "LIST"]).await;
        list.lines().filter(|line| line.contains(&flag)).count() == count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_share_their_clients() {
    let lab = lab().await;
    let members = members(&lab).await;
    let threads = std::fs::read_dir(format!("/proc/{}/task", lab.gateway.pid())).unwrap();
    let names: HashSet<String> = threads
        .filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).ok())
        .filter(|name| name.starts_with("worker-"))
        .map(|name| name.trim().to_owned())
        .collect();
    assert_eq!(names, (0..WORKERS).map(|index| format!("worker-{index}")).collect());

    // Whoever asks sees everybody, and by CLIENT INFO itself.
    let ids: HashSet<String> = members.iter().map(|member| member.id.clone()).collect();
    assert_eq!(ids.len(), CLIENTS, "an id is given once");
    let mut members = members;
    for member in &mut members {
        let list = member.client.ask(&["CLIENT", "LIST"]).await;
        let listed: HashSet<String> =
            list.lines().map(|line| line["id=".len()..line.find(' ').unwrap()].to_owned()).collect();
        assert_eq!(listed, ids);
        let info = member.client.ask(&["CLIENT", "INFO"]).await;
        assert!(info.starts_with(&format!("id={} ", member.id)), "{info}");
        assert!(info.contains(&format!(" name={} ", member.name)), "{info}");
    }
    eventually("the status counts them", async || {
        lab.gateway.status().await.unwrap()["clients"]["connected"] == CLIENTS
    })
    .await;

    // By pairs of different workers, both ways.
    let mut each = one_of_each(members);
    for asker in 0..WORKERS {
        for waiter in (0..WORKERS).filter(|waiter| *waiter != asker) {
            for (mode, answer) in [(&["TIMEOUT"][..], "nil"), (&["ERROR"], "-UNBLOCKED"), (&[], "nil")] {
                each[waiter].client.queue(&["BLPOP", "nothing", "0"]);
                each[waiter].client.flush().await;
                flagged(&mut each[asker].client, "b", 1).await;
                let id = each[waiter].id.clone();
                let words = [&["CLIENT", "UNBLOCK", &id][..], mode].concat();
                // The flag says that the command has left for the server, not that it has come there.
                eventually("the client is unblocked", async || each[asker].client.ask(&words).await == "1")
                    .await;
                let reply = each[waiter].client.frame().await.text;
                assert!(reply.starts_with(answer), "{mode:?}: {reply}");
            }
        }
    }
    while let Some(mut victim) = each.pop() {
        let Some(Member { client: killer, .. }) = each.first_mut() else { break };
        assert_eq!(killer.ask(&["CLIENT", "KILL", "ID", &victim.id]).await, "1");
        victim.client.ended().await;
        eventually("the list does not show it any more", async || {
            !killer.ask(&["CLIENT", "LIST"]).await.contains(&format!("name={} ", victim.name))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_pass_messages_and_invalidations_to_each_other() {
    let mut lab = lab().await;
    let mut each = one_of_each(members(&lab).await);
    let address = lab.gateway.address();
    lab.mirror().await;
    let mut listeners = Vec::new();
    for _ in 0..CLIENTS {
        let mut listener = Client::open(&address).await;
        for (command, channel) in [("SUBSCRIBE", "news"), ("SSUBSCRIBE", "shard"), ("PSUBSCRIBE", "ne*")] {
            listener.queue(&[command, channel]);
            listener.flush().await;
            listener.push().await;
        }
        listeners.push(listener);
    }
    // One that tracks keys, one that is told of them: the server knows either by another worker's connection.
    let mut told = Client::open_resp2(&address).await;
    let id = told.ask(&["CLIENT", "ID"]).await;
    assert!(told.ask(&["SUBSCRIBE", "__redis__:invalidate"]).await.contains("subscribe"));
    let mut tracking: Vec<Client> = Vec::new();
    for _ in 0..WORKERS {
        let mut client = Client::open_resp2(&address).await;
        assert_eq!(client.ask(&["CLIENT", "TRACKING", "ON", "REDIRECT", &id]).await, "OK");
        tracking.push(client);
    }
    for turn in 0..3 {
        match turn {
            1 => drop(lab.cutover().await),
            2 => drop(lab.rollback().await),
            _ => {}
        }
        if turn > 0 {
            assert_eq!(told.frame().await.text, "[message __redis__:invalidate nil]", "turn {turn}");
        }
        for from in 0..WORKERS {
            let text = format!("{turn}/{from}");
            let receivers = each[from].client.ask(&["PUBLISH", "news", &text]).await;
            assert_eq!(receivers, (2 * CLIENTS).to_string(), "turn {turn}");
            let receivers = each[from].client.ask(&["SPUBLISH", "shard", &text]).await;
            assert_eq!(receivers, CLIENTS.to_string(), "turn {turn}");
            for heard in join_all(listeners.iter_mut().map(|listener| async {
                [listener.push().await, listener.push().await, listener.push().await]
            }))
            .await
            {
                let expected = [
                    format!("[message news {text}]"),
                    format!("[pmessage ne* news {text}]"),
                    format!("[smessage shard {text}]"),
                ];
                assert_eq!(heard, expected, "each message once, in order");
            }
            let key = format!("key:{turn}:{from}");
            tracking[from].ask(&["GET", &key]).await;
            each[from].client.ask(&["SET", &key, "new"]).await;
            assert_eq!(told.frame().await.text, format!("[message __redis__:invalidate [{key}]]"));
        }
    }
    lab.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_switch_their_blocked_clients_together() {
    let mut lab = lab().await;
    let address = lab.gateway.address();
    let waiters = members(&lab).await;
    let mut asker = Client::open(&address).await;
    lab.mirror().await;
    let taken = Arc::new(AtomicUsize::new(0));
    let mut waiting = JoinSet::new();
    for Member { mut client, .. } in waiters {
        let taken = Arc::clone(&taken);
        // All wait for the same list: each element goes to one of them, whatever worker it has.
        waiting.spawn(async move {
            let mut got = Vec::new();
            loop {
                let reply = client.ask(&["BLPOP", "queue", "0"]).await;
                let element = reply.strip_prefix("[queue ").unwrap_or_else(|| panic!("{reply}"));
                if element == "end]" {
                    return got;
                }
                got.push(element.to_owned());
                taken.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut pushing = JoinSet::new();
    for number in 0..WORKERS * 4 {
        let (address, stop) = (address.clone(), Arc::clone(&stop));
        pushing.spawn(async move {
            let mut pusher = Client::open(&address).await;
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let length = pusher.ask(&["RPUSH", "queue", &format!("{number}:{count}")]).await;
                assert!(length.parse::<usize>().is_ok(), "{length}");
                count += 1;
                // Slower than they are taken, so that most clients wait most of the time.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            count
        });
    }
    for turn in 0..6 {
        let more = taken.load(Ordering::Relaxed) + 200;
        let (active, _) = lab.active().await;
        eventually("elements are taken, and clients wait", async || {
            let blocked: usize = active.info("blocked_clients").await.unwrap().parse().unwrap();
            taken.load(Ordering::Relaxed) >= more && blocked > CLIENTS / 2
        })
        .await;
        let entry = if turn % 2 == 0 { lab.cutover().await } else { lab.rollback().await };
        assert_eq!(entry["outcome"], "committed");
    }
    stop.store(true, Ordering::Relaxed);
    let pushed: usize = pushing.join_all().await.into_iter().sum();
    for _ in 0..CLIENTS {
        asker.ask(&["RPUSH", "queue", "end"]).await;
    }
    let got: Vec<String> = waiting.join_all().await.into_iter().flatten().collect();
    let once: HashSet<&String> = got.iter().collect();
    assert_eq!((got.len(), once.len()), (pushed, pushed), "each element exactly once");
    assert_eq!(asker.ask(&["LLEN", "queue"]).await, "0");
    flagged(&mut asker, "b", 0).await;
    lab.same().await;
}

/// What one worker learns from its clients serves those of the others: scripts, cursors, what WATCH saw.
#[tokio::test(flavor = "multi_thread")]
async fn workers_carry_state_over_a_switch_for_each_other() {
    let mut lab = lab().await;
    let mut each = one_of_each(members(&lab).await);
    lab.mirror().await;
    let mut hashes = Vec::new();
    for (number, member) in each.iter_mut().enumerate() {
        hashes.push(member.client.ask(&["SCRIPT", "LOAD", &format!("return {number}")]).await);
        for key in 0..200 {
            member.client.ask(&["SADD", "set", &format!("{number}-{key}")]).await;
        }
    }
    for turn in 0..2 {
        for member in &mut each {
            assert_eq!(member.client.ask(&["WATCH", "watched"]).await, "OK");
            assert_eq!(member.client.ask(&["MULTI"]).await, "OK");
            assert_eq!(member.client.ask(&["INCR", "together"]).await, "QUEUED");
        }
        if turn == 0 {
            lab.cutover().await
        } else {
            lab.rollback().await
        };
        for (number, member) in each.iter_mut().enumerate() {
            // What was watched cannot be followed to the other side: as if it had changed.
            assert_eq!(member.client.ask(&["EXEC"]).await, "nil");
            let hash = &hashes[(number + 1) % WORKERS];
            let expected = ((number + 1) % WORKERS).to_string();
            assert_eq!(member.client.ask(&["EVALSHA", hash, "0"]).await, expected);
        }
        // A scan whose steps go to all workers by turns.
        let (mut cursor, mut found, mut step) = ("0".to_owned(), HashSet::new(), 0);
        loop {
            let reply = each[step % WORKERS].client.ask(&["SSCAN", "set", &cursor]).await;
            let (next, members) = reply[1..reply.len() - 2].split_once(" [").unwrap();
            found.extend(members.split(' ').filter(|member| !member.is_empty()).map(str::to_owned));
            cursor = next.to_owned();
            step += 1;
            if cursor == "0" {
                break;
            }
        }
        assert_eq!(found.len(), 200 * WORKERS, "turn {turn}");
        // WATCH sees the writes of another worker's client.
        assert_eq!(each[0].client.ask(&["WATCH", "watched"]).await, "OK");
        each[1].client.ask(&["INCR", "watched"]).await;
        assert_eq!(each[0].client.ask(&["MULTI"]).await, "OK");
        assert_eq!(each[0].client.ask(&["INCR", "together"]).await, "QUEUED");
        assert_eq!(each[0].client.ask(&["EXEC"]).await, "nil");
    }
    assert_eq!(each[2].client.ask(&["EXISTS", "together"]).await, "0");
    lab.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_switch_under_load() {
    let mut lab = lab().await;
    create_user(&lab.destination.address()).await.unwrap();
    let user = Some(create_user(&lab.source.address()).await.unwrap());
    create_library(&lab.source.address()).await.unwrap();
    let plan = Plan { clients: 64, user, modern: true, monitored: true, ..Plan::new(lab.gateway.address()) };
    let workload = Workload::start(&plan);
    lab.mirror().await;
    for turn in 0..4 {
        operations(&workload, 4000).await;
        let entry = if turn % 2 == 0 { lab.cutover().await } else { lab.rollback().await };
        assert_eq!(entry["outcome"], "committed");
    }
    operations(&workload, 4000).await;
    let verdict = lab.judge(workload).await;
    assert_eq!(verdict.reconnects, 0);
}
