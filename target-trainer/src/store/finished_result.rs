//! The result of a job: its files, and the one check whether it is complete. The worker, the daemon and
//! `verify` use it. Writes nothing.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::adapter::{ADAPTER_CONFIG_FILE, ADAPTER_FILE, adapter_files};
use super::record_format::{NewerFormat, RECORD_FORMAT, refuse_newer};
use super::removed_adapter::is_removed;
use super::tensors::TensorError;
use crate::bounded_read::{open_regular, read_regular};
use crate::file_error::{FileError, file_error};
use crate::plain_text::shown;
use crate::progress::ProgressReader;
use crate::state::{Recipe, TrainState};

/// The file that says what the result is. It is written with the others, all or none of them.
const REPORT_FILE: &str = "report.json";
/// The key of `adapter_config.json` that people change when they move an adapter.
const BASE_PATH_KEY: &str = "base_model_name_or_path";
/// Largest JSON file of a result.
const MAX_JSON_BYTES: u64 = 1 << 20;

/// The content of `report.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Report {
    /// Earlier versions have not written it.
    #[serde(default)]
    format: u32,
    job: String,
    step: u64,
    #[serde(default)]
    updates: u64,
    /// Digest of the adapter.
    adapter: String,
    /// Digest of the adapter's configuration, apart from the path of the base model. Earlier versions have
    /// not written it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config: Option<String>,
    /// Digest of the base model. Earlier versions have not written it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<String>,
}

/// A complete result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedResult {
    /// The last step.
    pub step: u64,
    /// Digest of the adapter.
    pub adapter: String,
    /// Digest of the base model that it was trained on. `None` if an earlier version has trained it.
    pub base: Option<String>,
}

/// The files of a result, by name, and what they say.
pub struct ResultFiles {
    pub files: Vec<(&'static str, Vec<u8>)>,
    pub result: FinishedResult,
}

/// Why there is no complete result.
#[derive(Debug, thiserror::Error)]
pub enum ResultProblem {
    /// There is none, or a part of it is missing, damaged, or belongs to something else.
    #[error("`{path}`: {reason}", path = .path.display())]
    Incomplete { path: PathBuf, reason: String },
    /// It can't be told, because a file can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A newer version has written it. Whether it is complete can't be told.
    #[error("`{path}`: {source}", path = .path.display())]
    Newer { path: PathBuf, source: NewerFormat },
}

/// Makes the files of a result.
///
/// # Errors
/// If a tensor's data does not fit its shape.
pub fn result_files(
    job: &str,
    base: &str,
    recipe: &Recipe,
    state: &TrainState,
) -> Result<ResultFiles, TensorError> {
    let [config, adapter] = adapter_files(recipe, &state.adapter)?;
    let digest = digest_text(&blake3::hash(&adapter.1));
    let report = Report {
        format: RECORD_FORMAT,
        job: job.to_owned(),
        step: state.cursor.step,
        updates: state.cursor.updates,
        adapter: digest.clone(),
        config: config_digest(&config.1),
        base: Some(base.to_owned()),
    };
    let report = serde_json::to_vec(&report).map_err(TensorError::Json)?;
    let result = FinishedResult { step: state.cursor.step, adapter: digest, base: Some(base.to_owned()) };
    Ok(ResultFiles { files: vec![config, adapter, (REPORT_FILE, report)], result })
}

/// Reads the result of a job in this directory, and checks that it is complete: every file is there and has
/// the digest that the report has.
///
/// # Errors
/// If it is not complete, or if that can't be told.
pub fn read_result(dir: &Path, job: &str) -> Result<FinishedResult, ResultProblem> {
    let path = dir.join(REPORT_FILE);
    let incomplete = |path: &Path, reason: String| ResultProblem::Incomplete { path: path.into(), reason };
    let bytes = read_regular(&path, MAX_JSON_BYTES).map_err(|error| problem(&path, error))?;
    refuse_newer(&bytes).map_err(|source| ResultProblem::Newer { path: path.clone(), source })?;
    let report: Report =
        serde_json::from_slice(&bytes).map_err(|error| incomplete(&path, error.to_string()))?;
    if report.job != job {
        return Err(incomplete(&path, format!("it is the report of job `{}`", shown(&report.job))));
    }
    let path = dir.join(ADAPTER_CONFIG_FILE);
    let bytes = read_regular(&path, MAX_JSON_BYTES).map_err(|error| problem(&path, error))?;
    match (config_digest(&bytes), &report.config) {
        (None, _) => return Err(incomplete(&path, "it is not the configuration of a LoRA adapter".into())),
        (Some(found), Some(expected)) if found != *expected => {
            return Err(incomplete(&path, "it is not the one that report.json has the digest of".into()));
        }
        (Some(_), _) => {}
    }
    let path = dir.join(ADAPTER_FILE);
    let result = FinishedResult { step: report.step, adapter: report.adapter, base: report.base };
    if is_removed(dir, &result.adapter) {
        return Ok(result);
    }
    let mut digest = blake3::Hasher::new();
    open_regular(&path)
        .and_then(|file| digest.update_reader(ProgressReader(file)).map(drop))
        .map_err(|error| problem(&path, error))?;
    if digest_text(&digest.finalize()) != result.adapter {
        return Err(incomplete(&path, "it is not the one that report.json has the digest of".into()));
    }
    Ok(result)
}

/// What is missing, or is not a regular file, is not complete. Other errors may pass.
fn problem(path: &Path, error: std::io::Error) -> ResultProblem {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidData => {
            ResultProblem::Incomplete { path: path.into(), reason: error.to_string() }
        }
        _ => ResultProblem::File(file_error("read", path)(error)),
    }
}

/// The digest of a configuration, apart from its form and the path of the base model. `None` if it is not
/// that of a LoRA adapter.
fn config_digest(bytes: &[u8]) -> Option<String> {
    let mut config: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes).ok()?;
    if config.get("peft_type").and_then(|value| value.as_str()) != Some("LORA") {
        return None;
    }
    config.remove(BASE_PATH_KEY);
    Some(digest_text(&blake3::hash(&serde_json::to_vec(&config).ok()?)))
}

fn digest_text(digest: &blake3::Hash) -> String {
    format!("blake3:{}", digest.to_hex())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Cursor, NamedTensor};

    fn write(dir: &Path) -> FinishedResult {
        let cursor = Cursor { step: 7, updates: 7, epoch: 0, position: 0, random: Default::default() };
        let tensor = NamedTensor { name: "lora_A".into(), shape: vec![2], data: vec![1.0, 2.0] };
        let state = TrainState { adapter: vec![tensor], optimizer: Vec::new(), cursor };
        let ResultFiles { files, result } = result_files("job", "base", &Recipe::default(), &state).unwrap();
        files.iter().for_each(|(name, bytes)| std::fs::write(dir.join(name), bytes).unwrap());
        result
    }

    /// Each file of a result is removed, emptied, cut, changed in each of its bytes, or is not a file.
    #[test]
    fn a_result_is_complete_only_with_every_file_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let expected = write(dir.path());
        let read = || read_result(dir.path(), "job");
        assert_eq!(read().unwrap(), expected);
        let is_incomplete = || matches!(read(), Err(ResultProblem::Incomplete { .. }));
        for name in [REPORT_FILE, ADAPTER_CONFIG_FILE, ADAPTER_FILE] {
            let path = dir.path().join(name);
            let good = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            assert!(is_incomplete(), "{name} is missing");
            std::fs::create_dir(&path).unwrap();
            assert!(is_incomplete(), "{name} is a directory");
            std::fs::remove_dir(&path).unwrap();
            for len in [0, 1, good.len() / 2, good.len() - 2] {
                std::fs::write(&path, &good[..len]).unwrap();
                assert!(is_incomplete(), "{name} is cut to {len} bytes");
            }
            for index in (0..good.len()).filter(|_| name == ADAPTER_FILE) {
                let mut bad = good.clone();
                bad[index] ^= 1;
                std::fs::write(&path, &bad).unwrap();
                assert!(is_incomplete(), "byte {index} of {name}");
            }
            std::fs::write(&path, good).unwrap();
        }
        assert_eq!(read().unwrap(), expected);
        assert!(read_result(dir.path(), "other").is_err(), "the result of another job");
        assert!(read_result(&dir.path().join(REPORT_FILE), "job").is_err(), "a file in the place");
    }

    #[test]
    fn a_configuration_may_have_another_path_of_the_base_and_no_other_rank() {
        let dir = tempfile::tempdir().unwrap();
        let expected = write(dir.path());
        let path = dir.path().join(ADAPTER_CONFIG_FILE);
        let good = std::fs::read_to_string(&path).unwrap();
        let with = |from: &str, to: &str| {
            assert!(good.contains(from));
            std::fs::write(&path, good.replacen(from, to, 1)).unwrap();
            read_result(dir.path(), "job")
        };
        assert_eq!(with("../../base", "meta-llama/Llama-3.2-1B").unwrap(), expected);
        assert!(with("\"r\": 8", "\"r\": 9").is_err());
        // An earlier version has written no digest of it.
        let report = dir.path().join(REPORT_FILE);
        let mut old: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
        old.as_object_mut().unwrap().remove("config").unwrap();
        std::fs::write(report, old.to_string()).unwrap();
        assert_eq!(with("\"r\": 8", "\"r\": 9").unwrap(), expected);
        assert!(with("LORA", "IA3").is_err());
    }
}
