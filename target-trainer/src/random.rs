//! A random number generator whose state is part of every checkpoint: xoshiro256++ (Blackman and Vigna 2019),
//! seeded by splitmix64.

/// A xoshiro256++ generator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Random {
    state: [u64; 4],
}

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        let mut seed = seed;
        let mut next = || {
            seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        Random { state: [next(), next(), next(), next()] }
    }

    /// Continues from the state that [`Random::state`] returned.
    pub(crate) fn from_state(state: [u64; 4]) -> Random {
        Random { state }
    }

    pub(crate) fn state(&self) -> [u64; 4] {
        self.state
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let result = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        result
    }

    /// A number in `0..bound`. The bias is at most `bound / 2^64` (multiplication, Lemire 2019).
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `0.0..1.0` with 24 random bits.
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// A normally distributed number with mean 0 and variance 1 (Box and Muller 1958).
    pub(crate) fn normal(&mut self) -> f32 {
        let (u, v) = (f64::from(1.0 - self.uniform()), f64::from(self.uniform()));
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }

    /// A random permutation of `0..count` (Fisher and Yates).
    pub(crate) fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for index in (1..count).rev() {
            order.swap(index, self.below(index as u64 + 1) as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn a_generator_continues_from_a_stored_state() {
        let mut random = Random::new(7);
        random.next_u64();
        let mut restored = Random::from_state(random.state());
        assert_eq!(random.permutation(50), restored.permutation(50));
    }

    #[test]
    fn a_permutation_contains_every_number_once() {
        let mut order = Random::new(1).permutation(100);
        order.sort_unstable();
        assert!(order.iter().enumerate().all(|(index, number)| index == *number));
    }
}
