//! Sums of a two-digit and a one-digit number: `37+5=42`. Some pairs are held out: no seed generates them, so
//! that a correct answer to one of them is not memorized.

use crate::random::Random;

const LEFT_COUNT: u64 = 90;
const RIGHT_COUNT: u64 = 10;

/// True for about one pair in eight, the same pairs for every seed.
fn is_held_out(left: u64, right: u64) -> bool {
    Random::new(left * 1000 + right).below(8) == 0
}

fn sample_line(left: u64, right: u64, filler: usize) -> String {
    let mut random = Random::new(left * 31 + right);
    let filler: String = (0..filler).map(|_| char::from(b'a' + random.below(26) as u8)).collect();
    format!(r#"{{"prompt":"{filler}{left}+{right}=","completion":"{}"}}"#, left + right)
}

/// `samples` JSON lines. Random letters before the sum fill each text up to about `length` bytes; 0 adds
/// none.
pub fn arithmetic(seed: u64, samples: u32, length: usize) -> impl Iterator<Item = String> {
    let mut random = Random::new(seed ^ 0xDA7A);
    let filler = length.saturating_sub("37+5=42".len());
    let mut draw = move || {
        loop {
            let (left, right) = (10 + random.below(LEFT_COUNT), random.below(RIGHT_COUNT));
            if !is_held_out(left, right) {
                break (left, right);
            }
        }
    };
    (0..samples).map(move |_| {
        let (left, right) = draw();
        sample_line(left, right, filler)
    })
}

/// JSON lines of the held-out pairs: at most `samples`, evenly spread over all of them.
pub fn held_out(samples: usize) -> Vec<String> {
    let pairs = (10..10 + LEFT_COUNT).flat_map(|left| (0..RIGHT_COUNT).map(move |right| (left, right)));
    let all: Vec<(u64, u64)> = pairs.filter(|(left, right)| is_held_out(*left, *right)).collect();
    let every = all.len().div_ceil(samples.max(1));
    all.into_iter().step_by(every.max(1)).map(|(left, right)| sample_line(left, right, 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sample_has_a_held_out_pair() {
        let held: std::collections::BTreeSet<String> = held_out(1000).into_iter().collect();
        assert!(held.len() > 60);
        assert!(arithmetic(3, 5000, 0).all(|line| !held.contains(&line)));
    }

    #[test]
    fn the_same_seed_gives_the_same_samples_of_the_given_length() {
        assert!(arithmetic(3, 50, 0).eq(arithmetic(3, 50, 0)));
        assert!(!arithmetic(3, 50, 0).eq(arithmetic(4, 50, 0)));
        assert!(arithmetic(3, 5, 512).all(|line| line.len() > 512 && line.len() < 560));
    }
}
