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
//!
//! The fields of hashes have their own: Redis stores no expiry of a field beyond 2^46 ms (`HFE_MAX_ABS_TIME_MSEC` in `t_hash.c`), so
//! the pad is 2^45. A field that expires behind the year 2527 (2^44) keeps its expiry. What would be the padded form of an expiry before
//! this program was written is none: it is a true one of the years 3084 to 3138.

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

/// What is added to the expiry of a hash's field, in milliseconds.
pub const FIELD_PAD_MS: u64 = 1 << 45;

/// The same for fields as the key's horizon.
const FIELD_HORIZON_MS: u64 = FIELD_PAD_MS / 2;

/// Nothing that was to expire before (November 2023) has ever been padded.
const FIELD_FLOOR_MS: u64 = 1_700_000_000_000;

/// What to store for a field that expires at `at_ms`.
pub fn field_padded(at_ms: u64) -> u64 {
    if (FIELD_FLOOR_MS..FIELD_HORIZON_MS).contains(&at_ms) { at_ms + FIELD_PAD_MS } else { at_ms }
}

/// Whether `stored_ms` is an expiry that [`field_padded`] made.
pub fn is_field_padded(stored_ms: u64) -> bool {
    (FIELD_PAD_MS + FIELD_FLOOR_MS..FIELD_PAD_MS + FIELD_HORIZON_MS).contains(&stored_ms)
}

/// When a field really expires whose stored expiry is `stored_ms`.
pub fn true_field_expiry(stored_ms: u64) -> u64 {
    if is_field_padded(stored_ms) { stored_ms - FIELD_PAD_MS } else { stored_ms }
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
        for at in [FIELD_FLOOR_MS, 1_790_000_000_000, FIELD_HORIZON_MS - 1] {
            assert!(!is_field_padded(at) && is_field_padded(field_padded(at)));
            assert_eq!((true_field_expiry(at), true_field_expiry(field_padded(at))), (at, at));
            assert_eq!(field_padded(field_padded(at)), field_padded(at));
            assert!(field_padded(at) < 1 << 46, "Redis stores nothing beyond");
        }
        for as_it_is in [1, FIELD_FLOOR_MS - 1, FIELD_HORIZON_MS, FIELD_PAD_MS + FIELD_FLOOR_MS - 1] {
            assert_eq!((field_padded(as_it_is), true_field_expiry(as_it_is)), (as_it_is, as_it_is));
        }
        for far in [HORIZON_MS, PAD_MS - 1, i64::MAX as u64] {
            assert_eq!(padded(far), far);
        }
    }
}
