//! Operations on numbers, forward and backward, each written out by hand: what the CUDA kernels will mirror.
//!
//! The CPU's are here. All tensors are `f32`, row-major; a sample of `t` tokens is a matrix of `t` rows. Each function
//! runs on one thread and always in the same order: samples, not operations, are what is done in parallel.

mod attention;
mod elementwise;
mod loss;
mod matmul;
mod norm;
mod rope;
mod sys;

#[cfg(test)]
mod check;

pub use attention::{AttentionGradients, AttentionShape, attention, attention_backward};
pub use elementwise::{add, embed, swiglu, swiglu_backward};
pub use loss::{Target, cross_entropy};
pub use matmul::{Accumulate, matmul_nn, matmul_nt, matmul_tn};
pub use norm::{rms_norm, rms_norm_backward};
pub use rope::{Rope, Turn};
