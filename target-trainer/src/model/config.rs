//! The keys of Hugging Face's Llama `config.json` that affect the computation. Knows no weights.

use serde::Deserialize;
use serde_json::Value;

use super::base_check::BaseCheck;
use super::tokens::{BOS, EOS, VOCABULARY_SIZE};
use crate::plain_text::shown;
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

/// The keys as they are in the file, as far as they say how to compute.
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
}

/// The nested form of the keys for the rotary position embedding.
#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: Option<f32>,
}

/// Keys that this file reads, and keys that do not change what is computed in training. Any other key must
/// have a value that switches nothing on, see [`is_neutral`], or is refused by its name.
const HARMLESS_KEYS: &[&str] = &[
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
    // Checked by `unsupported_value`.
    "model_type",
    "architectures",
    "hidden_act",
    "rope_scaling",
    "rope_parameters",
    "bos_token_id",
    "eos_token_id",
    // What was trained and saved how, and how texts are generated.
    "pad_token_id",
    "dtype",
    "torch_dtype",
    "initializer_range",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "pretraining_tp",
    "use_cache",
    "transformers_version",
    "unsloth_version",
    "unsloth_fixed",
    "name_or_path",
    "max_length",
    "temperature",
    "top_p",
    "top_k",
];

/// Whether a value switches nothing on.
fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::Bool(true) => false,
    }
}

/// The first key whose value asks for a computation, or for tokens, that the trainer does not have.
fn unsupported_value(config: &serde_json::Map<String, Value>) -> Option<ConfigError> {
    let supported = |key: &str, value: &Value| match key {
        "model_type" => value == "llama",
        "architectures" => *value == serde_json::json!(["LlamaForCausalLM"]),
        "hidden_act" => value == "silu" || value == "swish",
        "rope_scaling" | "rope_parameters" => is_plain_rope(value),
        // The tokens are bytes, whatever the model was trained with.
        "bos_token_id" => *value == BOS,
        "eos_token_id" => *value == EOS,
        key => HARMLESS_KEYS.contains(&key) || key.starts_with('_') || is_neutral(value),
    };
    let (key, value) = config.iter().find(|(key, value)| !value.is_null() && !supported(key, value))?;
    let value = shown(&value.to_string());
    Some(match key.as_str() {
        "bos_token_id" | "eos_token_id" => ConfigError::Tokens { key: key.clone(), value },
        key => ConfigError::Unsupported { key: shown(key), value },
    })
}

/// Whether the rotary frequencies are the plain ones.
fn is_plain_rope(value: &Value) -> bool {
    let Some(parameters) = value.as_object() else { return value.is_null() };
    parameters.iter().all(|(key, value)| match key.as_str() {
        "rope_theta" => true,
        "rope_type" | "type" => value == "default",
        "partial_rotary_factor" | "factor" => value.as_f64() == Some(1.0),
        _ => is_neutral(value),
    })
}

/// Why a `config.json` is not that of a supported Llama model.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not JSON, or a key is missing.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A key asks for something that the trainer does not compute.
    #[error("`{key}` is {value}, which is not supported; supported are plain Llama models")]
    Unsupported { key: String, value: String },
    /// The model was trained on other tokens.
    #[error("`{key}` is {value}: the model's tokens are not bytes; the trainer has no other tokenizer")]
    Tokens { key: String, value: String },
    /// A constant is not a positive number.
    #[error("`{key}` must be a positive number")]
    NotPositive { key: &'static str },
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
    pub fn parse(text: &str, check: BaseCheck) -> Result<ModelConfig, ConfigError> {
        let value: Value = serde_json::from_str(text)?;
        if let Some(error) =
            value.as_object().filter(|_| check == BaseCheck::Full).and_then(unsupported_value)
        {
            return Err(error);
        }
        let names_begin = value.get("bos_token_id").is_some_and(|id| !id.is_null());
        let draft: ConfigDraft = serde_json::from_value(value)?;
        if check == BaseCheck::Full && !names_begin && draft.vocab_size > VOCABULARY_SIZE {
            return Err(ConfigError::Tokens { key: "bos_token_id".into(), value: "missing".into() });
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
        for (key, value) in [("rms_norm_eps", self.norm_eps), ("rope_theta", self.rope_theta)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(ConfigError::NotPositive { key });
            }
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
    use serde_json::{Value, json};

    use super::ModelConfig;
    use crate::model::BaseCheck;
    use crate::model::Preset;

    fn parse_with(key: &str, value: Value) -> Result<ModelConfig, String> {
        let mut config: Value = serde_json::from_str(&Preset::Tiny.config().to_json()).unwrap();
        config[key] = value;
        ModelConfig::parse(&config.to_string(), BaseCheck::Full).map_err(|error| error.to_string())
    }

    #[test]
    fn a_vocabulary_smaller_than_the_tokenizers_is_rejected() {
        assert!(parse_with("vocab_size", json!(258)).is_ok());
        assert_eq!(
            parse_with("vocab_size", json!(257)).unwrap_err(),
            "vocab_size 257 is too small: the largest token is 257"
        );
    }

    /// Keys of published models, each of which changes what has to be computed.
    #[test]
    fn each_key_that_the_trainer_does_not_compute_is_refused_by_name() {
        let llama_3 = json!({"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"});
        for (key, value) in [
            ("rope_scaling", llama_3.clone()),
            ("rope_parameters", llama_3),
            ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
            ("rope_scaling", json!({"factor": 2.0})),
            ("rope_parameters", json!({"rope_theta": 1e4, "partial_rotary_factor": 0.5})),
            ("partial_rotary_factor", json!(0.5)),
            ("hidden_act", json!("gelu")),
            ("hidden_activation", json!("gelu_pytorch_tanh")),
            ("model_type", json!("qwen2")),
            ("model_type", json!("mistral")),
            ("architectures", json!(["LlamaForSequenceClassification"])),
            ("sliding_window", json!(4096)),
            ("attention_bias", json!(true)),
            ("mlp_bias", json!(true)),
            ("attention_dropout", json!(0.1)),
            ("attention_multiplier", json!(0.5)),
            ("embedding_multiplier", json!(12.0)),
            ("residual_multiplier", json!(0.2)),
            ("logits_scaling", json!(8.0)),
            ("attn_logit_softcapping", json!(50.0)),
            ("final_logit_softcapping", json!(30.0)),
            ("num_local_experts", json!(8)),
            ("no_rope_layers", json!([1, 0])),
            ("quantization_config", json!({"quant_method": "gptq", "bits": 4})),
            ("some_key_of_tomorrow", json!("on")),
        ] {
            let error = parse_with(key, value.clone()).unwrap_err();
            assert!(error.starts_with(&format!("`{key}` is ")), "{key} {value}: {error}");
        }
    }

    #[test]
    fn a_model_whose_tokens_are_not_bytes_is_refused() {
        for (key, value) in [
            ("bos_token_id", json!(1)),
            ("eos_token_id", json!(2)),
            ("bos_token_id", json!(128_000)),
            ("eos_token_id", json!([128_001, 128_008])),
        ] {
            let error = parse_with(key, value).unwrap_err();
            assert!(error.contains(key) && error.contains("tokens are not bytes"), "{error}");
        }
        let mut config: Value = serde_json::from_str(&Preset::Llama124m.config().to_json()).unwrap();
        assert!(ModelConfig::parse(&config.to_string(), BaseCheck::Full).is_ok());
        config["bos_token_id"] = Value::Null;
        let error = ModelConfig::parse(&config.to_string(), BaseCheck::Full).unwrap_err().to_string();
        assert!(error.contains("tokens are not bytes"), "{error}");
    }

    #[test]
    fn keys_that_switch_nothing_on_are_accepted() {
        for (key, value) in [
            ("rope_scaling", Value::Null),
            ("rope_scaling", json!({"rope_type": "default"})),
            ("sliding_window", Value::Null),
            ("attention_bias", json!(false)),
            ("attention_dropout", json!(0.0)),
            ("_name_or_path", json!("somewhere")),
            ("torch_dtype", json!("bfloat16")),
        ] {
            assert!(parse_with(key, value.clone()).is_ok(), "{key} {value}");
        }
    }

    #[test]
    fn constants_must_be_positive() {
        for key in ["rms_norm_eps", "rope_theta"] {
            for value in [json!(0), json!(-1.0), json!(1e300)] {
                assert!(parse_with(key, value).unwrap_err().contains("positive"), "{key}");
            }
        }
    }
}
