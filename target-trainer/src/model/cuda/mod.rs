//! The model on a card: frozen weights in one buffer, samples packed without padding, LoRA fused into the base's products.
//! Knows no optimizer.

mod batch;
mod frozen;
mod net;

pub use batch::{Batch, Weighed};
pub use net::CudaNet;
