//! A Llama-style decoder: a frozen base model with LoRA matrices on its projections. Writes no files and
//! knows no optimizer.

mod base;
mod base_check;
mod config;
mod cpu_pass;
mod cuda;
mod hub_cache;
mod lora;
mod loss_and_gradient;
mod merge;
mod preset;
mod tokens;

pub use base::{BaseChecksum, BaseModel, BaseModelError, WeightsError};
pub use base_check::BaseCheck;
pub use config::{ConfigError, ModelConfig};
pub use cpu_pass::{generate_greedy, logits, sample_loss_and_gradient};
pub use cuda::{CudaModel, PackedBatch, WeightedSample};
pub use lora::{AdapterLayout, AdapterMismatch};
pub use loss_and_gradient::LossAndGradient;
pub use merge::{MergedModel, merge, probe_logits, probe_logits_of_base, relative_difference};
pub use preset::{Preset, preset_files};
pub use tokens::{BOS, EOS, TokenizedSample, VOCABULARY_SIZE, tokenize};
