//! Rotary position embedding (RoPE, Su et al. 2021) in the layout of Hugging Face's Llama: element `i` of a
//! head's first half is rotated with element `i` of its second half. Knows no model.

/// Rotary position embedding for one head size and base frequency.
#[derive(Debug, Clone)]
pub struct Rope {
    head_dim: usize,
    theta: f32,
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
    /// Creates the embedding for heads of size `head_dim` and base frequency `theta`.
    pub fn new(head_dim: usize, theta: f32) -> Rope {
        Rope { head_dim, theta }
    }

    /// Rotates `x[t, heads * head_dim]` in place. Row `t` is position `t`.
    pub fn rotate(&self, x: &mut [f32], heads: usize, direction: Direction) {
        let half = self.head_dim / 2;
        for (position, row) in x.chunks_exact_mut(heads * self.head_dim).enumerate() {
            for i in 0..half {
                let frequency = self.theta.powf(-2.0 * i as f32 / self.head_dim as f32);
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                let sin = if direction == Direction::Backward { -sin } else { sin };
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
    use crate::device::finite_differences::{assert_gradient_matches, random_values};

    #[test]
    fn gradient_matches_finite_differences() {
        let rope = Rope::new(4, 100.0);
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
