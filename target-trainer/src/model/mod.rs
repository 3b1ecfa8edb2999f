//! The decoder of the Llama kind: a frozen base, and LoRA matrices on its projections. Writes nothing.

mod base;
mod config;
mod cuda;
mod lora;
mod pass;
mod preset;
mod tokens;

pub use base::{Base, BaseError};
pub use config::Config;
pub use cuda::{Batch, CudaNet, Weighed};
pub use lora::Adapter;
pub use pass::{greedy, logits, sample_pass};
pub use preset::{Preset, preset};
pub use tokens::{BOS, EOS, Tokens, VOCABULARY, tokenize};
