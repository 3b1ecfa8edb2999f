//! Hand-written forward and backward operations on tensors: for the CPU here, for a GPU in `cuda`. Knows no
//! model and no training.
//!
//! CPU tensors are `f32` and row-major; a sample of `t` tokens is a matrix of `t` rows. Each CPU function
//! runs on one thread and computes in a fixed order. Parallelism is across samples, not within an operation.

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

pub use attention::{AttentionGradients, AttentionInputs, AttentionShape, attention, attention_backward};
pub use cuda::{DeviceError, cuda_device_count};
pub use elementwise::{add, embed, swiglu, swiglu_backward};
pub use health::{
    GpuHealthMonitor, GpuReading, GpuSelector, HealthError, HealthEvent, HealthSample, visible_gpu,
};
pub use loss::{TargetToken, cross_entropy};
pub use matmul::{Accumulate, MatmulSize, matmul_nn, matmul_nt, matmul_tn};
pub use norm::{rms_norm, rms_norm_backward};
pub use rope::{Direction, Rope};
pub use wait_tracker::{ActiveWait, WaitTracker};

/// A device on which a model is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceId {
    /// The CPU.
    Cpu,
    /// The CUDA device with this ordinal, counted from 0.
    Cuda(usize),
}

/// Storage type of weights and activations on a GPU. Sums, the adapter and its moments are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit IEEE 754 floats.
    F32,
    /// bfloat16: the upper half of an f32.
    Bf16,
}
