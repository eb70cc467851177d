//! Expiries on the side that is being written to are *padded*: stored [`PAD_MS`] later than they are.
//!
//! While a mirror is behind, its destination must not expire a key on its own: the application may have
//! extended that key on the source, and the extension would find nothing. So the destination holds
//! `T + PAD_MS`, and the source's own DEL, which comes in the stream, is what removes the key. Before a
//! switch the expiries are made exact again.
//!
//! A padded expiry can be told from an exact one by its value alone, without a clock: 2^52 ms is 142,000
//! years, below what a double holds exactly (scripts see these numbers), and far above any date that an
//! application means ("year 9999" is 2^47.8 ms).

/// What is added to an expiry, in milliseconds.
pub const PAD_MS: u64 = 1 << 52;

/// From here on an expiry is taken for a padded one, and a true expiry is left as it is.
const HORIZON_MS: u64 = PAD_MS / 2;

/// What to store for a key that expires at `at_ms` (unix time in milliseconds).
pub fn padded(at_ms: u64) -> u64 {
    if at_ms >= HORIZON_MS { at_ms } else { at_ms + PAD_MS }
}

/// Whether `stored_ms` is an expiry that [`padded`] made.
pub fn is_padded(stored_ms: u64) -> bool {
    (PAD_MS..PAD_MS + HORIZON_MS).contains(&stored_ms)
}

/// When a key really expires whose stored expiry is `stored_ms`: the pad removed, if there is one.
pub fn true_expiry(stored_ms: u64) -> u64 {
    if is_padded(stored_ms) { stored_ms - PAD_MS } else { stored_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pad_comes_off_again_and_is_never_put_on_twice() {
        let year_9999 = 253_402_300_799_000;
        for at in [1, 1_790_000_000_000, year_9999, HORIZON_MS - 1] {
            assert!(!is_padded(at));
            assert_eq!(true_expiry(at), at);
            assert!(is_padded(padded(at)));
            assert_eq!(true_expiry(padded(at)), at);
            assert_eq!(padded(padded(at)), padded(at));
        }
        for far in [HORIZON_MS, PAD_MS - 1, i64::MAX as u64] {
            assert_eq!(padded(far), far);
        }
    }
}
