//! The model on a CUDA device: frozen weights in one buffer, samples packed without padding, LoRA fused into
//! the products of the base model. Knows no optimizer.

mod batch;
mod cuda_model;
mod device_weights;
mod frozen_layout;
mod micro_batch_pass;

pub use batch::{PackedBatch, WeightedSample};
pub use cuda_model::CudaModel;
