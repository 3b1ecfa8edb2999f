//! Rotary position embedding (RoPE, Su et al. 2021) in the layout of Hugging Face's Llama: element `i` of a
//! head's first half is rotated with element `i` of its second half. Knows no model.

/// Rotary position embedding for one head size, base frequency and number of positions.
#[derive(Debug, Clone)]
pub struct Rope {
    head_dim: usize,
    /// The sines and cosines of the angles, `[positions, head_dim / 2]`.
    turns: Vec<Turn>,
}

/// Sine and cosine of an angle.
#[derive(Debug, Clone, Copy)]
struct Turn {
    sin: f32,
    cos: f32,
}

/// Direction of the rotation. The backward pass rotates by the negative angle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// By the position's angle.
    Forward,
    /// By the negative angle.
    Backward,
}

impl Rope {
    /// Creates the embedding for heads of size `head_dim`, base frequency `theta` and the positions 0 to
    /// `positions - 1`.
    pub fn new(head_dim: usize, theta: f32, positions: usize) -> Rope {
        let half = head_dim / 2;
        let frequencies: Vec<f32> =
            (0..half).map(|i| theta.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        let mut turns = Vec::with_capacity(positions * half);
        for position in 0..positions {
            turns.extend(frequencies.iter().map(|frequency| {
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                Turn { sin, cos }
            }));
        }
        Rope { head_dim, turns }
    }

    /// Rotates `x[t, heads * head_dim]` in place. Row `t` is position `t`.
    ///
    /// # Panics
    ///
    /// If `x` has more rows than there are positions.
    pub fn rotate(&self, x: &mut [f32], heads: usize, direction: Direction) {
        let half = self.head_dim / 2;
        for (position, row) in x.chunks_exact_mut(heads * self.head_dim).enumerate() {
            let turns = &self.turns[position * half..][..half];
            for head in row.chunks_exact_mut(self.head_dim) {
                let (first, second) = head.split_at_mut(half);
                for ((a, b), Turn { sin, cos }) in first.iter_mut().zip(second).zip(turns) {
                    let sin = if direction == Direction::Backward { -sin } else { *sin };
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::finite_differences::{assert_gradient_matches, random_values};

    #[test]
    fn gradient_matches_finite_differences() {
        let rope = Rope::new(4, 100.0, 3);
        let (x, dy) = (random_values(1, 24), random_values(2, 24));
        let forward = |x: &[f32]| {
            let mut y = x.to_vec();
            rope.rotate(&mut y, 2, Direction::Forward);
            y
        };
        let mut dx = dy.clone();
        rope.rotate(&mut dx, 2, Direction::Backward);
        assert_gradient_matches(&x, &dx, &dy, forward);
    }
}
