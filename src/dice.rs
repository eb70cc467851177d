//! Dice for seeded simulations: the same seed gives the same run, and `CROSSFADE_SEED=0x…` replays one.

/// Reproducible randomness (xorshift64*).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }
}

/// The seed to replay, else `runs` seeds that are far apart.
pub(crate) fn seeds(runs: u64) -> Vec<u64> {
    let given = std::env::var("CROSSFADE_SEED").ok();
    match given.and_then(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()) {
        Some(seed) => vec![seed],
        None => (1..=runs).map(|run| run.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect(),
    }
}
