//! Rests of the thread that serves a busy stream.
//!
//! Every write of the source could wake the thread, and every answer of the destination once more. On a busy stream that costs more
//! than the writes themselves. So the receiver asks for a rest when it has read, and the thread, once it has nothing left to do,
//! sleeps whatever comes: behind a rest it finds the answer and the next part of the stream together. Timers of the
//! runtime would not do, for they are coarser and let sockets wake the thread.

use std::cell::Cell;

use tokio::time::Instant;

thread_local! {
    static UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Asks for a rest of this thread, which begins when it has nothing to do.
pub(crate) fn until(end: Instant) {
    UNTIL.set(Some(end));
}

/// Takes the wish for a rest back: something is ready and waits for an answer.
pub(crate) fn forgo() {
    UNTIL.set(None);
}

/// Rests if somebody asked for it. For [`tokio::runtime::Builder::on_thread_park`].
pub(crate) fn take() {
    if let Some(end) = UNTIL.take() {
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_thread_rests_once_and_only_when_asked() {
        let timed = || {
            let began = Instant::now();
            take();
            began.elapsed()
        };
        let long = Duration::from_millis(50);
        assert!(timed() < long);
        until(Instant::now() + long);
        assert!(timed() > long / 2);
        assert!(timed() < long / 2);
        until(Instant::now() + long);
        forgo();
        assert!(timed() < long / 2);
    }
}
