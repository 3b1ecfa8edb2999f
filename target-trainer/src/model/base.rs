//! The frozen base model: reads and checks a Hugging Face Llama directory. Knows no LoRA.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};

use super::base_check::BaseCheck;
use super::config::{ConfigError, ModelConfig};
use super::hub_cache::{self, BlobCheck, HubCacheError};
use crate::bounded_read::{open_regular_or_linked, read_text};
use crate::file_error::{FileError, file_error};
use crate::names::is_file_name;
use crate::plain_text::shown;
use crate::progress::{self, ProgressReader};
use crate::state::Projection;

const CONFIG_FILE: &str = "config.json";
const WEIGHTS_FILE: &str = "model.safetensors";
/// Files of a tokenizer in Hugging Face's formats.
const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "tekken.json",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
];
/// Names the files of weights that are in several of them.
const SHARDS_FILE: &str = "model.safetensors.index.json";
/// Weights that go into the checksum at once.
const CHECKSUM_VALUES: usize = 1 << 14;
/// End of the name of a buffer that old checkpoints contain. It follows from the configuration.
const FREQUENCIES_SUFFIX: &str = "rotary_emb.inv_freq";

/// Why a directory can't be used as a base model.
#[derive(Debug, thiserror::Error)]
pub enum BaseModelError {
    /// A file can't be read.
    #[error("base: {0}")]
    File(#[from] FileError),
    /// The configuration is not that of a supported model.
    #[error("base: `{path}`", path = .path.display())]
    Config { path: PathBuf, source: ConfigError },
    /// The model comes with a tokenizer, so that its tokens are not bytes.
    #[error("base: `{path}`: the trainer has no tokenizer, its tokens are bytes", path = .path.display())]
    Tokenizer { path: PathBuf },
    /// The weights are in several files.
    #[error(
        "base: `{path}`: weights in several files are not supported; write them into one `{WEIGHTS_FILE}`{}",
        also_missing(missing), path = .path.display()
    )]
    Sharded {
        path: PathBuf,
        /// Files that it names and that are not there.
        missing: Vec<String>,
    },
    /// A file in the cache of the Hugging Face hub is damaged or missing.
    #[error("base: {0}")]
    HubCache(#[from] HubCacheError),
    /// The weights do not fit the configuration.
    #[error("base: `{path}`", path = .path.display())]
    Weights { path: PathBuf, source: WeightsError },
}

/// Why tensors can't be used as the weights of a model.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The bytes are not in the format.
    #[error("not a safetensors file")]
    Format(#[from] SafeTensorError),
    /// The file has no such tensor.
    #[error("tensor `{0}` is missing")]
    Missing(String),
    /// There are fewer tensors than layers.
    #[error("`num_hidden_layers` is {expected}, and there are only {tensors} tensors")]
    Layers { expected: usize, tensors: usize },
    /// A tensor does not fit the configuration.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize> },
    /// The file has a tensor that the computation does not use, such as a bias: the model is another one.
    #[error("tensor `{}` is not part of a plain Llama model with this config.json", shown(.0))]
    Unused(String),
    /// A weight is NaN or infinite: every step would be.
    #[error("tensor `{0}` has a value that is not finite")]
    NotFinite(String),
    /// The numbers of a tensor have a format that is not supported.
    #[error("tensor `{name}` has type {dtype:?}; supported are F32, BF16 and F16")]
    Type { name: String, dtype: Dtype },
}

/// Weights of one layer. Projections are `[out, in]`.
#[derive(Debug, Clone)]
pub(super) struct LayerWeights {
    /// Weight of the norm before attention, `[hidden]`.
    pub(super) input_norm: Vec<f32>,
    /// Weight of the norm before the MLP, `[hidden]`.
    pub(super) post_norm: Vec<f32>,
    /// In the order of [`Projection::ALL`].
    projections: Vec<Vec<f32>>,
}

/// A checksum of all weights of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChecksum(blake3::Hash);

/// The frozen weights of a model, as f32.
#[derive(Debug, Clone)]
pub struct BaseModel {
    /// Sizes and constants.
    pub config: ModelConfig,
    /// `[vocabulary, hidden]`.
    pub(super) embedding: Vec<f32>,
    pub(super) layers: Vec<LayerWeights>,
    /// Weight of the final norm, `[hidden]`.
    pub(super) norm: Vec<f32>,
    /// Empty if the embedding is also the output head.
    head: Vec<f32>,
}

impl BaseModelError {
    /// Whether another attempt may succeed: a file could not be read.
    pub fn may_pass(&self) -> bool {
        match self {
            BaseModelError::File(_) => true,
            BaseModelError::HubCache(error) => error.may_pass(),
            _ => false,
        }
    }
}

/// Says which files are missing besides.
fn also_missing(names: &[String]) -> String {
    const SHOWN: usize = 5;
    if names.is_empty() {
        return String::new();
    }
    let listed: Vec<_> = names.iter().take(SHOWN).map(|name| format!("`{}`", shown(name))).collect();
    let more = names.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("; of these files are missing: {}{more}", listed.join(", "))
}

fn read_file(path: &Path) -> Result<Vec<u8>, BaseModelError> {
    let mut bytes = Vec::new();
    let mut read = || ProgressReader(open_regular_or_linked(path)?).read_to_end(&mut bytes);
    read().map_err(file_error("read", path))?;
    Ok(bytes)
}

impl LayerWeights {
    /// Weight of a projection, `[out, in]`.
    pub(super) fn weight(&self, projection: Projection) -> &[f32] {
        Projection::ALL
            .iter()
            .zip(&self.projections)
            .find(|(known, _)| **known == projection)
            .map_or(&[], |(_, weight)| weight)
    }
}

impl BaseModel {
    /// Weight of a projection of a layer, `[out, in]`.
    pub(super) fn weight_mut(&mut self, layer: usize, projection: Projection) -> Option<&mut [f32]> {
        let index = Projection::ALL.iter().position(|known| *known == projection)?;
        self.layers.get_mut(layer)?.projections.get_mut(index).map(Vec::as_mut_slice)
    }

    /// Reads `config.json` and `model.safetensors` from `dir`.
    ///
    /// # Errors
    ///
    /// If a file can't be read, or if its content is not a supported Llama model.
    pub fn read(dir: &Path, check: BaseCheck) -> Result<BaseModel, BaseModelError> {
        let config = BaseModel::read_config(dir, check)?;
        let dir = hub_cache::files_dir(dir)?;
        check_other_files(&dir, check)?;
        let path = dir.join(WEIGHTS_FILE);
        BaseModel::from_bytes(config, &read_file(&path)?, check)
            .map_err(|source| BaseModelError::Weights { path, source })
    }

    /// Reads `config.json` from `dir`.
    ///
    /// # Errors
    ///
    /// If it can't be read, or if its content is not that of a supported Llama model.
    pub fn read_config(dir: &Path, check: BaseCheck) -> Result<ModelConfig, BaseModelError> {
        let path = hub_cache::files_dir(dir)?.join(CONFIG_FILE);
        hub_cache::check_link(&path)?;
        ModelConfig::parse(&String::from_utf8_lossy(&read_file(&path)?), check)
            .map_err(|source| BaseModelError::Config { path, source })
    }

    /// The files that a base model consists of. `dir` may be a model's directory in the cache of the Hugging
    /// Face hub.
    pub fn files(dir: &Path) -> [PathBuf; 2] {
        let dir = hub_cache::files_dir(dir).unwrap_or_else(|_| dir.to_owned());
        [CONFIG_FILE, WEIGHTS_FILE].map(|name| dir.join(name))
    }

    /// BLAKE3 of the configuration and weights in `dir`, in hexadecimal.
    ///
    /// # Errors
    ///
    /// If a file can't be read, there are files of a model that is not supported, or a file is a blob of the
    /// Hugging Face cache whose content is not what its name says.
    pub fn digest(dir: &Path, check: BaseCheck) -> Result<String, BaseModelError> {
        check_other_files(&hub_cache::files_dir(dir)?, check)?;
        let mut hasher = blake3::Hasher::new();
        for path in BaseModel::files(dir) {
            hub_cache::check_link(&path)?;
            let file = open_regular_or_linked(&path).map_err(file_error("read", &path))?;
            let len = file.metadata().map_err(file_error("read", &path))?.len();
            let mut blob =
                if check == BaseCheck::Full { BlobCheck::new(&path, len) } else { BlobCheck::none() };
            let each = |bytes: &[u8]| {
                hasher.update(bytes);
                blob.update(bytes);
            };
            read_in_parts(ProgressReader(file), each).map_err(file_error("read", &path))?;
            blob.finish()?;
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Creates a base model from the bytes of a safetensors file.
    ///
    /// # Errors
    ///
    /// If the bytes are not a safetensors file, if a tensor is missing or has the wrong shape or type, if it
    /// has a value that is not finite, or if there is a tensor that would not be used.
    pub fn from_bytes(
        config: ModelConfig,
        bytes: &[u8],
        check: BaseCheck,
    ) -> Result<BaseModel, WeightsError> {
        let file = SafeTensors::deserialize(bytes)?;
        // Before the names of all layers are listed: there may be very many.
        if config.layers > file.len() {
            return Err(WeightsError::Layers { expected: config.layers, tensors: file.len() });
        }
        let shapes = config.tensor_shapes();
        let used: HashSet<&str> = shapes.iter().map(|(name, _)| name.as_str()).collect();
        let is_unused = |name: &&str| !used.contains(name) && !is_redundant(&file, name);
        let is_checked = check == BaseCheck::Full;
        if let Some(name) = file.names().into_iter().filter(is_unused).min().filter(|_| is_checked) {
            return Err(WeightsError::Unused(name.to_owned()));
        }
        let mut tensors = Vec::new();
        for (name, shape) in shapes {
            let Ok(view) = file.tensor(&name) else { return Err(WeightsError::Missing(name)) };
            if view.shape() != shape {
                let found = view.shape().to_vec();
                return Err(WeightsError::Shape { name, found, expected: shape });
            }
            let tensor = to_f32(&name, &view)?;
            if is_checked && !tensor.iter().all(|value| value.is_finite()) {
                return Err(WeightsError::NotFinite(name));
            }
            tensors.push(tensor);
            progress::advance();
        }
        Ok(BaseModel::from_tensors(config, tensors))
    }

    /// Creates a random base model, the same as [`preset_files`](super::preset_files) writes for this seed.
    pub fn random(config: ModelConfig, seed: u64) -> BaseModel {
        let tensors =
            super::preset::random_tensors(&config, seed).into_iter().map(|tensor| tensor.data).collect();
        BaseModel::from_tensors(config, tensors)
    }

    /// `tensors` must be in the order of [`ModelConfig::tensor_shapes`].
    fn from_tensors(config: ModelConfig, tensors: Vec<Vec<f32>>) -> BaseModel {
        let mut tensors = tensors.into_iter();
        let mut next = || tensors.next().unwrap_or_default();
        let embedding = next();
        let layer = |_| LayerWeights {
            input_norm: next(),
            post_norm: next(),
            projections: Projection::ALL.iter().map(|_| next()).collect(),
        };
        let layers = (0..config.layers).map(layer).collect();
        BaseModel { embedding, layers, norm: next(), head: next(), config }
    }

    /// A checksum of the weights in memory: one flipped bit gives another.
    pub fn checksum(&self) -> BaseChecksum {
        let layers = self
            .layers
            .iter()
            .flat_map(|layer| [&layer.input_norm, &layer.post_norm].into_iter().chain(&layer.projections));
        let tensors = layers.chain([&self.embedding, &self.norm, &self.head]);
        let mut hasher = blake3::Hasher::new();
        let mut bytes = Vec::new();
        for part in tensors.flat_map(|tensor| tensor.chunks(CHECKSUM_VALUES)) {
            bytes.clear();
            bytes.extend(part.iter().flat_map(|value| value.to_bits().to_le_bytes()));
            hasher.update(&bytes);
            progress::advance();
        }
        BaseChecksum(hasher.finalize())
    }

    /// Weight of the output head, `[vocabulary, hidden]`.
    pub(super) fn head(&self) -> &[f32] {
        if self.config.tied_embeddings { &self.embedding } else { &self.head }
    }
}

/// Calls `each` with all bytes in order.
fn read_in_parts(mut file: impl Read, mut each: impl FnMut(&[u8])) -> std::io::Result<()> {
    let mut part = vec![0; 1 << 16];
    loop {
        match file.read(&mut part) {
            Ok(0) => return Ok(()),
            Ok(len) => each(&part[..len]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The files that an index of shards names and that are not in `dir`.
fn missing_shards(index: &Path, dir: &Path) -> Vec<String> {
    const MAX_BYTES: u64 = 64 << 20;
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index = read_text(index, MAX_BYTES).ok().and_then(|text| serde_json::from_str::<Index>(&text).ok());
    let names: std::collections::BTreeSet<String> =
        index.into_iter().flat_map(|index| index.weight_map.into_values()).collect();
    // A name that leads elsewhere is missing, too: nothing outside of the directory is looked for.
    names.into_iter().filter(|name| !is_file_name(name) || !dir.join(name).exists()).collect()
}

/// Fails if the directory has files that only models have which are not supported.
fn check_other_files(dir: &Path, check: BaseCheck) -> Result<(), BaseModelError> {
    if check == BaseCheck::Off {
        return Ok(());
    }
    if let Some(path) = TOKENIZER_FILES.map(|name| dir.join(name)).into_iter().find(|path| path.exists()) {
        return Err(BaseModelError::Tokenizer { path });
    }
    let path = dir.join(SHARDS_FILE);
    if path.exists() {
        let missing = missing_shards(&path, dir);
        return Err(BaseModelError::Sharded { path, missing });
    }
    Ok(())
}

/// Whether a tensor says nothing that others do not: the frequencies of the rotation, or an output head that
/// is the embedding once more.
fn is_redundant(file: &SafeTensors<'_>, name: &str) -> bool {
    let is_the_embedding = || match (file.tensor("lm_head.weight"), file.tensor("model.embed_tokens.weight"))
    {
        (Ok(head), Ok(embedding)) => head.dtype() == embedding.dtype() && head.data() == embedding.data(),
        _ => false,
    };
    name.ends_with(FREQUENCIES_SUFFIX) || (name == "lm_head.weight" && is_the_embedding())
}

/// Converts a tensor to f32. The half-precision types convert without loss.
fn to_f32(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>, WeightsError> {
    let data = view.data();
    let pairs = || data.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
    match view.dtype() {
        Dtype::F32 => Ok(data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
        Dtype::BF16 => Ok(pairs().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect()),
        Dtype::F16 => Ok(pairs().map(half_to_single).collect()),
        dtype => Err(WeightsError::Type { name: name.to_owned(), dtype }),
    }
}

/// Converts IEEE 754 binary16 to binary32.
fn half_to_single(bits: u16) -> f32 {
    let sign = if bits & 0x8000 != 0 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from((bits >> 10) & 0x1f), f32::from(bits & 0x3ff));
    match exponent {
        0 => sign * fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        exponent => sign * (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::{BaseCheck, BaseModel, WeightsError};
    use crate::model::Preset;
    use crate::model::preset::random_tensors;
    use crate::state::NamedTensor;
    use crate::store::encode;

    /// Reads a tiny model after a change of its tensors.
    fn read_changed(
        tied_embeddings: bool,
        change: impl Fn(&mut Vec<NamedTensor>),
    ) -> Result<BaseModel, WeightsError> {
        let mut config = Preset::Tiny.config();
        config.tied_embeddings = tied_embeddings;
        let mut tensors = random_tensors(&config, 1);
        change(&mut tensors);
        BaseModel::from_bytes(config, &encode(&tensors).unwrap(), BaseCheck::Full)
    }

    fn tensor(name: &str, data: Vec<f32>) -> NamedTensor {
        NamedTensor { name: name.to_owned(), shape: vec![data.len()], data }
    }

    #[test]
    fn a_tensor_that_would_not_be_used_is_refused_by_name() {
        for name in [
            "model.layers.0.self_attn.q_proj.bias",
            "model.layers.1.self_attn.q_norm.weight",
            "model.layers.2.input_layernorm.weight",
            "model.embed_tokens.lora_A.weight",
            "score.weight",
        ] {
            let error = read_changed(false, |tensors| tensors.push(tensor(name, vec![0.0; 64]))).unwrap_err();
            assert!(matches!(&error, WeightsError::Unused(found) if found == name), "{error}");
        }
        let other_head =
            |tensors: &mut Vec<NamedTensor>| tensors.push(tensor("lm_head.weight", vec![0.5; 64]));
        assert!(matches!(read_changed(true, other_head), Err(WeightsError::Unused(_))));
    }

    #[test]
    fn a_model_of_another_kind_is_refused_by_its_files() {
        let dir = tempfile::tempdir().unwrap();
        for name in super::TOKENIZER_FILES.into_iter().chain([super::SHARDS_FILE]) {
            let path = dir.path().join(name);
            std::fs::write(&path, "{}").unwrap();
            let error = BaseModel::digest(dir.path(), BaseCheck::Full).unwrap_err();
            assert!(error.to_string().contains(name) && !error.may_pass(), "{error}");
            std::fs::remove_file(path).unwrap();
        }
        let mut config = Preset::Tiny.config();
        let bytes = encode(&random_tensors(&config, 1)).unwrap();
        config.layers = 1 << 20;
        let error = BaseModel::from_bytes(config, &bytes, BaseCheck::Full).unwrap_err();
        assert!(error.to_string().contains("`num_hidden_layers` is 1048576"), "{error}");
    }

    #[test]
    fn a_tensor_that_says_nothing_new_is_accepted() {
        let frequencies = |tensors: &mut Vec<NamedTensor>| {
            tensors.push(tensor("model.layers.0.self_attn.rotary_emb.inv_freq", vec![1.0; 8]));
        };
        assert!(read_changed(false, frequencies).is_ok());
        let same_head = |tensors: &mut Vec<NamedTensor>| {
            let head = NamedTensor { name: "lm_head.weight".into(), ..tensors[0].clone() };
            tensors.push(head);
        };
        assert!(read_changed(true, same_head).is_ok());
    }

    #[test]
    fn a_weight_that_is_not_finite_is_refused_by_name() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for index in [0, 1, 5] {
                let error = read_changed(false, |tensors| tensors[index].data[7] = value).unwrap_err();
                assert!(matches!(error, WeightsError::NotFinite(_)), "{error}");
            }
        }
    }

    #[test]
    fn half_precision_widens_exactly() {
        for (bits, value) in [
            (0x3c00u16, 1.0f32),
            (0xc000, -2.0),
            (0x0001, 2f32.powi(-24)),
            (0x7bff, 65504.0),
            (0x7c00, f32::INFINITY),
        ] {
            assert_eq!(super::half_to_single(bits), value);
        }
    }
}
