//! Operations on numbers, forward and backward, each written out by hand: the CPU's, and those of a card in `cuda`.
//!
//! Of the CPU's: all tensors are `f32`, row-major; a sample of `t` tokens is a matrix of `t` rows. Each function
//! runs on one thread and always in the same order: samples, not operations, are what is done in parallel.

mod attention;
pub mod cuda;
mod elementwise;
mod health;
mod loss;
mod matmul;
mod norm;
mod rope;
mod sys;
mod wait_tracker;

#[cfg(test)]
mod finite_differences;

pub use attention::{AttentionGradients, AttentionShape, attention, attention_backward};
pub use cuda::{DeviceError, cuda_device_count};
pub use elementwise::{add, embed, swiglu, swiglu_backward};
pub use health::{GpuHealthMonitor, GpuReading, HealthEvent, HealthSample};
pub use loss::{TargetToken, cross_entropy};
pub use matmul::{Accumulate, matmul_nn, matmul_nt, matmul_tn};
pub use norm::{rms_norm, rms_norm_backward};
pub use rope::{Direction, Rope};
pub use wait_tracker::{ActiveWait, WaitTracker};

/// Where training runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceId {
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
}

/// What weights and activations are stored as on a card. Sums, the adapter and its moments are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    Bf16,
}
