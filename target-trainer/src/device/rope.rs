//! Rotary position embedding (Su et al. 2021), in the layout of Hugging Face's Llama: the second half of a head's
//! values is turned against the first half.

/// Cosines and sines for positions and frequencies.
#[derive(Debug, Clone)]
pub struct Rope {
    head_dim: usize,
    theta: f32,
}

/// Which way: the backward pass turns back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Forward,
    Back,
}

impl Rope {
    pub fn new(head_dim: usize, theta: f32) -> Rope {
        Rope { head_dim, theta }
    }

    /// Turns `x[t, heads * head_dim]` in place; row `t` is position `t`.
    pub fn turn(&self, x: &mut [f32], heads: usize, turn: Turn) {
        let half = self.head_dim / 2;
        for (position, row) in x.chunks_exact_mut(heads * self.head_dim).enumerate() {
            for i in 0..half {
                let frequency = self.theta.powf(-2.0 * i as f32 / self.head_dim as f32);
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                let sin = if turn == Turn::Back { -sin } else { sin };
                for head in row.chunks_exact_mut(self.head_dim) {
                    let (a, b) = (head[i], head[i + half]);
                    (head[i], head[i + half]) = (a * cos - b * sin, b * cos + a * sin);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::check::{gradient_matches, numbers};

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let rope = Rope::new(4, 100.0);
        let (x, dy) = (numbers(1, 24), numbers(2, 24));
        let forward = |x: &[f32]| {
            let mut y = x.to_vec();
            rope.turn(&mut y, 2, Turn::Forward);
            y
        };
        let mut dx = dy.clone();
        rope.turn(&mut dx, 2, Turn::Back);
        gradient_matches(&x, &dx, &dy, forward);
    }
}
