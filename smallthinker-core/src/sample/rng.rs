//! The random generator: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
//! generators", 2014). Integer arithmetic only, so every platform draws the same sequence, and its whole
//! state is one word, which makes it easy to save.

use std::hash::{BuildHasher, Hasher};

/// A 64-bit generator with 64 bits of state and period 2^64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// A generator that starts at `seed`; every value is as good as another.
    pub fn new(seed: u64) -> Self {
        SplitMix64 { state: seed }
    }

    /// The state; a generator made from it continues the sequence.
    pub fn state(&self) -> u64 {
        self.state
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in [0, 1): a multiple of 2^-53, every one equally likely.
    pub fn next_unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

/// A fresh seed. The standard library keys its hash maps from the system's random source; hashing
/// nothing with such a key hands that randomness over without another dependency.
pub(super) fn seed_from_os() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_sequence() {
        // First outputs for seed 1234567, as the reference C implementation prints them.
        let mut rng = SplitMix64::new(1_234_567);
        let expected: [u64; 5] = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        for value in expected {
            assert_eq!(rng.next_u64(), value);
        }
    }

    #[test]
    fn unit_is_below_one() {
        // Without the shift to 53 bits, the conversion could round up to 1.
        let mut rng = SplitMix64::new(7);
        assert!((0..10_000).map(|_| rng.next_unit()).all(|u| (0.0..1.0).contains(&u)));
    }

    #[test]
    fn fresh_seeds_differ() {
        assert_ne!(seed_from_os(), seed_from_os());
    }
}
