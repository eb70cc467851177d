use super::*;
use bytes::Bytes;
use std::time::{Duration, Instant};

const ID: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";

fn at(replid: &str, offset: u64) -> Position {
    Position { replid: replid.into(), offset, db: 0 }
}

fn small() -> JournalOptions {
    JournalOptions { segment_bytes: 4096, keep_bytes: 0, recent_bytes: 1024, max_bytes: None }
}

/// A stream whose every byte tells its offset.
fn stream(from: u64, to: u64) -> Vec<u8> {
    (from..=to).map(|offset| (offset % 251) as u8).collect()
}

fn fill(journal: &Journal, to: u64, piece: u64) {
    while journal.received() < to {
        let from = journal.received() + 1;
        let last = (from + piece - 1).min(to);
        if !journal.append(Bytes::from(stream(from, last))) || from.is_multiple_of(3) {
            journal.flush().unwrap();
        }
    }
}

async fn collect(journal: &Journal, after: u64) -> Vec<u8> {
    let mut reader = journal.reader(after).unwrap();
    let mut all = Vec::new();
    while after + (all.len() as u64) < journal.received() {
        let chunk = reader.next().await.unwrap();
        assert_eq!(chunk.offset, after + all.len() as u64 + 1);
        assert!(chunk.arrived_ms > 1_600_000_000_000);
        all.extend_from_slice(&chunk.bytes);
        assert_eq!(reader.position(), after + all.len() as u64);
    }
    all
}

#[tokio::test]
async fn what_is_written_is_read_from_memory_from_disk_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    {
        let journal = Journal::open_with(dir.path(), small()).unwrap();
        assert_eq!((journal.generation(), journal.replid(), journal.received()), (0, None, 0));
        assert!(!journal.can_continue());
        journal.begin_tail(Some(ID), 1000).unwrap();
        assert_eq!((journal.generation(), journal.start(), journal.received()), (1, 1000, 1000));
        fill(&journal, 50_000, 77);
        journal.flush().unwrap();
        assert!(journal.shared.inner.lock().segments.len() > 5);
        assert!(journal.shared.inner.lock().recent_bytes <= 1024 + 77);
        for after in [1000, 1001, 5098, 5099, 20_000, 49_999, 50_000] {
            assert_eq!(collect(&journal, after).await, stream(after + 1, 50_000), "{after}");
        }
        assert!(journal.reader(999).is_err() && journal.reader(50_001).is_err());
    }
    let journal = Journal::open_with(dir.path(), small()).unwrap();
    assert_eq!((journal.generation(), journal.replid().as_deref()), (1, Some(ID)));
    assert_eq!((journal.start(), journal.received()), (1000, 50_000));
    assert!(journal.can_continue());
    assert_eq!(collect(&journal, 1000).await, stream(1001, 50_000));
    fill(&journal, 60_000, 501);
    assert_eq!(collect(&journal, 1000).await, stream(1001, 60_000));
}

#[tokio::test]
async fn large_pieces_become_several_records() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    journal.begin_tail(Some(ID), 0).unwrap();
    assert!(!journal.append(Bytes::from(stream(1, 3_000_000))));
    journal.append(Bytes::from(stream(3_000_001, 3_000_002)));
    journal.flush().unwrap();
    drop(journal);
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(collect(&journal, 0).await, stream(1, 3_000_002));
}

#[tokio::test]
async fn a_torn_tail_is_cut_off_at_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = [1u64, 30, 7, 100];
    let path = {
        let journal = Journal::open(dir.path()).unwrap();
        journal.begin_tail(Some(ID), 500).unwrap();
        for size in sizes {
            let from = journal.received() + 1;
            journal.append(Bytes::from(stream(from, from + size - 1)));
            journal.flush().unwrap();
        }
        journal.shared.inner.lock().segments[0].path.clone()
    };
    let whole = std::fs::read(&path).unwrap();
    let expected = |length: usize| {
        let (mut at, mut end) = (24, 500);
        for size in sizes {
            at += 24 + size as usize;
            if length < at {
                break;
            }
            end += size;
        }
        end
    };
    for length in 0..=whole.len() {
        // What a crash leaves behind: a file that is too short, or as long as it should be and zero at its end.
        let mut zeroed = whole[..length].to_vec();
        zeroed.resize(whole.len(), 0);
        for torn in [&whole[..length], &zeroed] {
            std::fs::write(&path, torn).unwrap();
            let journal = Journal::open(dir.path()).unwrap();
            let end = expected(length);
            assert_eq!(journal.received(), end, "{length}");
            assert_eq!(collect(&journal, 500).await, stream(501, end));
            journal.append(Bytes::from(stream(end + 1, end + 9)));
            journal.flush().unwrap();
            drop(journal);
            let journal = Journal::open(dir.path()).unwrap();
            assert_eq!(collect(&journal, 500).await, stream(501, end + 9));
        }
    }
}

#[tokio::test]
async fn a_segment_that_is_missing_or_damaged_ends_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let segments = {
        let journal = Journal::open_with(dir.path(), small()).unwrap();
        journal.begin_tail(Some(ID), 0).unwrap();
        fill(&journal, 30_000, 100);
        journal.flush().unwrap();
        let segments: Vec<_> = journal.shared.inner.lock().segments.iter().cloned().collect();
        segments
    };
    // In the same boot only the end is read again: damage before it is found by the reader.
    let mut bytes = std::fs::read(&segments[2].path).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&segments[2].path, bytes).unwrap();
    {
        let journal = Journal::open_with(dir.path(), small()).unwrap();
        assert_eq!(journal.received(), 30_000);
        let mut reader = journal.reader(0).unwrap();
        let error = loop {
            match reader.next().await {
                Ok(chunk) => assert!(chunk.end() < segments[3].base),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("damaged"), "{error}");
    }
    // After a power loss everything is checked.
    let text = std::fs::read_to_string(dir.path().join("journal.json")).unwrap();
    std::fs::write(dir.path().join("journal.json"), text.replace(&meta::boot_id(), "another")).unwrap();
    let journal = Journal::open_with(dir.path(), small()).unwrap();
    assert!(journal.received() >= segments[2].base && journal.received() < segments[3].base);
    assert!(!segments[3].path.exists());
    assert_eq!(collect(&journal, 0).await, stream(1, journal.received()));
}

#[tokio::test]
async fn trimming_takes_whole_segments_that_are_applied() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open_with(dir.path(), JournalOptions { keep_bytes: 5000, ..small() }).unwrap();
    journal.begin_tail(Some(ID), 0).unwrap();
    fill(&journal, 30_000, 100);
    journal.trim(4000);
    assert_eq!(journal.start(), 0);
    journal.trim(20_000);
    let start = journal.start();
    assert!(start > 10_000 && start <= 15_000, "{start}");
    assert_eq!(collect(&journal, start).await, stream(start + 1, 30_000));
    assert!(!journal.covers(&at(ID, start - 1)) && journal.covers(&at(ID, start)));
    drop(journal);
    let journal = Journal::open_with(dir.path(), small()).unwrap();
    assert_eq!(journal.start(), start);
}

#[tokio::test]
async fn a_reader_at_the_end_waits_and_a_reader_of_an_old_stream_fails() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Arc::new(Journal::open(dir.path()).unwrap());
    journal.begin_tail(Some(ID), 10).unwrap();
    let mut reader = journal.reader(10).unwrap();
    assert!(reader.try_next().is_none());
    let writer = journal.clone();
    let writing = tokio::spawn(async move {
        for n in 11..=200 {
            writer.append(Bytes::from(stream(n, n)));
            tokio::task::yield_now().await;
        }
    });
    let mut seen = 10;
    while seen < 200 {
        let chunk = reader.next().await.unwrap();
        assert_eq!(chunk.offset, seen + 1);
        seen = chunk.end();
        while let Some(chunk) = reader.try_next() {
            assert_eq!(chunk.offset, seen + 1);
            seen = chunk.end();
        }
    }
    writing.await.unwrap();
    journal.begin_tail(Some(OTHER), 7).unwrap();
    assert!(reader.is_superseded());
    assert!(reader.next().await.unwrap_err().retry);
    assert_eq!((journal.received(), journal.generation()), (7, 2));
}

#[test]
fn histories_and_positions() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert!(!journal.covers(&at(ID, 0)));
    journal.begin_tail(Some(ID), 100).unwrap();
    fill(&journal, 200, 50);
    journal.adopt(OTHER).unwrap();
    journal.adopt(OTHER).unwrap();
    fill(&journal, 300, 50);
    journal.flush().unwrap();
    for journal in [journal, Journal::open(dir.path()).unwrap()] {
        assert_eq!(journal.replid().as_deref(), Some(OTHER));
        assert!(
            journal.covers(&at(ID, 100)) && journal.covers(&at(ID, 200)) && !journal.covers(&at(ID, 201))
        );
        assert!(journal.covers(&at(OTHER, 150)) && journal.covers(&at(OTHER, 300)));
        assert!(!journal.covers(&at(OTHER, 301)) && !journal.covers(&at(OTHER, 99)));
        assert!(!journal.covers(&at(&"f".repeat(40), 150)));
    }
    let journal = Journal::open(dir.path()).unwrap();
    journal.begin_at(&at(OTHER, 5000)).unwrap();
    assert_eq!((journal.generation(), journal.start(), journal.received()), (1, 5000, 5000));
    assert!(journal.can_continue());
}

#[test]
fn a_snapshot_is_kept_when_it_is_whole() {
    use std::io::Read;
    let dir = tempfile::tempdir().unwrap();
    {
        let journal = Journal::open(dir.path()).unwrap();
        let mut writer = journal.begin(Some(ID), 77, Some(9)).unwrap();
        assert_eq!(writer.write(b"REDIS").unwrap(), 5);
        let info = journal.snapshot().unwrap();
        assert_eq!((info.bytes, info.expected, info.complete, info.offset), (5, Some(9), false, 77));
        assert!(!journal.can_continue());
    }
    {
        // The gateway was killed midway.
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!((journal.snapshot(), journal.generation(), journal.can_continue()), (None, 1, false));
        let mut writer = journal.begin(Some(ID), 80, None).unwrap();
        writer.write(b"REDIS0011").unwrap();
        journal.finish(&mut writer).unwrap();
        drop(writer);
        fill(&journal, 90, 3);
        journal.flush().unwrap();
    }
    let journal = Journal::open(dir.path()).unwrap();
    let info = journal.snapshot().unwrap();
    assert!(info.complete && info.generation == 2 && info.bytes == 9 && info.offset == 80);
    let mut text = String::new();
    journal.snapshot_reader().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "REDIS0011");
    assert!(journal.can_continue() && journal.covers(&at(ID, 80)));
    journal.trim(80);
    assert!(info.path.exists());
    journal.trim(81);
    assert!(!info.path.exists() && journal.snapshot().is_none() && journal.snapshot_reader().is_err());
    drop(journal);
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!((journal.start(), journal.received(), journal.can_continue()), (80, 90, true));
}

#[test]
fn an_unsynced_snapshot_does_not_survive_another_boot() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.json");
    let read = || serde_json::from_slice::<Meta>(&std::fs::read(&path).unwrap()).unwrap();
    {
        let journal = Journal::open(dir.path()).unwrap();
        let mut writer = journal.begin(Some(ID), 80, None).unwrap();
        writer.write(b"REDIS0011").unwrap();
        journal.finish(&mut writer).unwrap();
        fill(&journal, 90, 3);
        journal.flush().unwrap();
        // The snapshot is synced behind the writer's back; after that nobody writes the description again.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !read().snapshot.is_some_and(|snapshot| snapshot.synced) {
            assert!(Instant::now() < deadline, "the snapshot was not synced");
            std::thread::yield_now();
        }
    }
    let mut meta = read();
    meta.boot = "another".into();
    meta.snapshot.as_mut().unwrap().synced = false;
    meta.store(dir.path()).unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!((journal.snapshot(), journal.can_continue(), journal.received()), (None, false, 80));
}

#[test]
fn files_without_a_description_are_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    {
        let journal = Journal::open(dir.path()).unwrap();
        journal.begin_tail(Some(ID), 0).unwrap();
        journal.begin_tail(Some(ID), 0).unwrap();
        fill(&journal, 90, 3);
        journal.flush().unwrap();
    }
    std::fs::write(dir.path().join("journal.json"), "{\"format\":").unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert!(!journal.can_continue() && !journal.covers(&at(ID, 0)));
    assert_eq!(journal.generation(), 2);
    journal.begin_tail(Some(ID), 5).unwrap();
    assert_eq!((journal.generation(), journal.start(), journal.received()), (3, 5, 5));
}

/// A run of random steps against a model that is only numbers; `CROSSFADE_SEED` replays one.
#[tokio::test]
async fn any_order_of_steps_keeps_the_stream_whole() {
    let fixed = std::env::var("CROSSFADE_SEED").ok();
    let fixed = fixed.map(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap());
    let seeds: Vec<u64> = fixed.map_or_else(|| (1..=15).collect(), |seed| vec![seed]);
    for seed in seeds {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let dir = tempfile::tempdir().unwrap();
        let options =
            JournalOptions { segment_bytes: 3000, keep_bytes: 2000, recent_bytes: 700, max_bytes: None };
        let mut journal = Journal::open_with(dir.path(), options).unwrap();
        journal.begin_tail(Some(ID), 50).unwrap();
        let mut flushed = 50;
        let mut reader = journal.reader(50).unwrap();
        for step in 0..400 {
            let what = format!("CROSSFADE_SEED={seed:#x}, step {step}");
            let end = journal.received();
            match random(12) {
                0..=3 => {
                    journal.append(Bytes::from(stream(end + 1, end + 1 + random(300))));
                }
                4 | 5 => {
                    journal.flush().unwrap();
                    flushed = journal.received();
                }
                6..=8 => {
                    // The one that is never trimmed away reads on a little.
                    for _ in 0..random(8) {
                        let at = reader.position();
                        if at < journal.received() {
                            let chunk = reader.next().await.unwrap();
                            assert_eq!(chunk.offset, at + 1, "{what}");
                            assert_eq!(&chunk.bytes[..], stream(chunk.offset, chunk.end()), "{what}");
                        }
                    }
                    journal.trim(reader.position());
                }
                9 => {
                    let (start, end) = (journal.start(), journal.received());
                    let after = start + random(end - start + 1);
                    assert_eq!(collect(&journal, after).await, stream(after + 1, end), "{what}");
                }
                10 => {
                    // kill -9: what was pending is gone, and the source sends it again.
                    let at = reader.position();
                    let start = journal.start();
                    drop((journal, reader));
                    journal = Journal::open_with(dir.path(), options).unwrap();
                    assert_eq!((journal.start(), journal.received()), (start, flushed), "{what}");
                    if at <= flushed {
                        reader = journal.reader(at).unwrap();
                    } else {
                        // The destination is ahead of the journal.
                        assert!(!journal.covers(&super::Position { replid: ID.into(), offset: at, db: 0 }));
                        journal.begin_at(&self::at(ID, at)).unwrap();
                        flushed = at;
                        reader = journal.reader(at).unwrap();
                    }
                }
                _ => {
                    assert!(journal.covers(&at(ID, journal.received())), "{what}");
                    assert!(!journal.covers(&at(ID, journal.received() + 1)), "{what}");
                    let inner = journal.shared.inner.lock();
                    assert!(
                        inner.recent_bytes as u64 <= 700 + (journal.received() - inner.flushed) + 301,
                        "{what}"
                    );
                }
            }
        }
    }
}
