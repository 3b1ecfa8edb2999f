//! The model on a card: frozen weights in one buffer, samples packed without padding, LoRA fused into the base's products.
//! Knows no optimizer.

mod batch;
mod cuda_model;
mod frozen_layout;

pub use batch::{PackedBatch, WeightedSample};
pub use cuda_model::CudaModel;
