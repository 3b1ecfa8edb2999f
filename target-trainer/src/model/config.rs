//! The keys of Hugging Face's Llama `config.json` that affect the computation. Knows no weights.

use serde::Deserialize;

use super::tokens::{BOS, EOS};
use crate::state::Projection;

/// Largest value of a size.
const MAX_SIZE: usize = 1 << 20;

/// Sizes and constants of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Number of tokens.
    pub vocabulary: usize,
    /// Elements of the residual stream.
    pub hidden: usize,
    /// Elements of the MLP's hidden layer.
    pub intermediate: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head; even.
    pub head_dim: usize,
    /// Epsilon of RMSNorm.
    pub norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Whether the embedding is also the output head.
    pub tied_embeddings: bool,
}

/// The keys as they are in the file.
#[derive(Deserialize)]
struct ConfigDraft {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    rope_parameters: Option<RopeParameters>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

/// The nested form of the keys for the rotary position embedding.
#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: Option<f32>,
    rope_type: Option<String>,
}

/// Why a `config.json` is not that of a supported Llama model.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not JSON, or a key is missing.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The positions are scaled.
    #[error("rope_type `{0}` is not supported; use `default`")]
    RopeType(String),
    /// A projection has a bias.
    #[error("projections with a bias are not supported")]
    Bias,
    /// A size is 0 or too large.
    #[error("a size is not between 1 and {MAX_SIZE}")]
    Size,
    /// Tokens are bytes, BOS and EOS. With a smaller table, the embedding look-up would read past its end.
    #[error("vocab_size {0} is too small: the largest token is {EOS}")]
    Vocabulary(usize),
    /// Query heads can't share the heads of keys and values evenly.
    #[error("num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")]
    Heads { heads: usize, kv_heads: usize },
    /// The rotation needs pairs.
    #[error("head_dim {0} is odd; it must be even")]
    HeadDim(usize),
}

impl ModelConfig {
    /// Parses and checks the text of a `config.json`.
    ///
    /// # Errors
    ///
    /// If the text is not JSON, a key is missing, or the model is not supported.
    pub fn parse(text: &str) -> Result<ModelConfig, ConfigError> {
        let draft: ConfigDraft = serde_json::from_str(text)?;
        let kind =
            draft.rope_parameters.as_ref().and_then(|rope| rope.rope_type.as_deref()).unwrap_or("default");
        if kind != "default" {
            return Err(ConfigError::RopeType(kind.to_owned()));
        }
        if draft.attention_bias || draft.mlp_bias {
            return Err(ConfigError::Bias);
        }
        let nested = draft.rope_parameters.and_then(|rope| rope.rope_theta);
        let heads = draft.num_attention_heads;
        let config = ModelConfig {
            vocabulary: draft.vocab_size,
            hidden: draft.hidden_size,
            intermediate: draft.intermediate_size,
            layers: draft.num_hidden_layers,
            heads,
            kv_heads: draft.num_key_value_heads.unwrap_or(heads),
            head_dim: draft.head_dim.unwrap_or(draft.hidden_size / heads.max(1)),
            norm_eps: draft.rms_norm_eps,
            rope_theta: draft.rope_theta.or(nested).unwrap_or(10_000.0),
            tied_embeddings: draft.tie_word_embeddings,
        };
        config.validated()
    }

    /// Checks that all sizes are in range.
    fn validated(self) -> Result<ModelConfig, ConfigError> {
        let sizes = [
            self.vocabulary,
            self.hidden,
            self.intermediate,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
        ];
        if sizes.iter().any(|size| !(1..=MAX_SIZE).contains(size)) {
            return Err(ConfigError::Size);
        }
        if self.vocabulary <= EOS as usize {
            return Err(ConfigError::Vocabulary(self.vocabulary));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(ConfigError::Heads { heads: self.heads, kv_heads: self.kv_heads });
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError::HeadDim(self.head_dim));
        }
        Ok(self)
    }

    /// Shape of a projection's weight, `[out, in]`.
    pub(super) fn projection_shape(&self, projection: Projection) -> (usize, usize) {
        let (heads, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match projection {
            Projection::QProj => (heads, self.hidden),
            Projection::KProj | Projection::VProj => (kv, self.hidden),
            Projection::OProj => (self.hidden, heads),
            Projection::GateProj | Projection::UpProj => (self.intermediate, self.hidden),
            Projection::DownProj => (self.hidden, self.intermediate),
        }
    }

    /// Names and shapes of all tensors of a base model.
    pub(super) fn tensor_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocabulary, self.hidden])];
        for layer in 0..self.layers {
            let name = |module: &str| format!("model.layers.{layer}.{module}.weight");
            tensors.push((name("input_layernorm"), vec![self.hidden]));
            tensors.push((name("post_attention_layernorm"), vec![self.hidden]));
            tensors.extend(Projection::ALL.map(|projection| {
                (
                    name(projection.module_name()),
                    Vec::from(<[usize; 2]>::from(self.projection_shape(projection))),
                )
            }));
        }
        tensors.push(("model.norm.weight".to_owned(), vec![self.hidden]));
        if !self.tied_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocabulary, self.hidden]));
        }
        tensors
    }

    /// Returns the text of `config.json` for this model.
    pub fn to_json(&self) -> String {
        let json = serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": f64::from(self.norm_eps),
            "rope_theta": f64::from(self.rope_theta),
            "tie_word_embeddings": self.tied_embeddings,
            "max_position_embeddings": 4096,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "torch_dtype": "float32",
        });
        format!("{json:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::ModelConfig;

    #[test]
    fn a_vocabulary_smaller_than_the_tokenizers_is_rejected() {
        let config = |vocabulary: u32| {
            format!(
                r#"{{"vocab_size":{vocabulary},"hidden_size":8,"intermediate_size":8,
                "num_hidden_layers":1,"num_attention_heads":2,"rms_norm_eps":1e-5}}"#
            )
        };
        assert!(ModelConfig::parse(&config(258)).is_ok());
        assert_eq!(
            ModelConfig::parse(&config(257)).unwrap_err().to_string(),
            "vocab_size 257 is too small: the largest token is 257"
        );
    }
}
