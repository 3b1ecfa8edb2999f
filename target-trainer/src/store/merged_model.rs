//! A merged model as a directory: a Hugging Face model with a report that has the digests of its files, and
//! the note that takes the place of an adapter that is gone. Writes nothing.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::record_format::{RECORD_FORMAT, refuse_newer};
use crate::bounded_read::{open_regular, read_regular};
use crate::plain_text::shown;
use crate::progress::ProgressReader;

/// The file that says what was merged.
const MERGE_REPORT: &str = "merge.json";
/// The files of the model.
const MODEL_FILES: [&str; 2] = ["config.json", "model.safetensors"];
/// Largest report.
const MAX_REPORT_BYTES: u64 = 1 << 20;

/// The content of `merge.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergeReport {
    /// Earlier versions have not written it.
    #[serde(default)]
    pub format: u32,
    /// The job whose adapter was merged.
    pub job: String,
    /// Digest of the adapter.
    pub adapter: String,
    /// Digest of the base model.
    pub base: String,
    /// Largest difference of the logits to those of base and adapter, relative to the largest: all in f32.
    pub difference_in_f32: f32,
    /// The same for the weights as they are stored, in the types of the base.
    pub difference_as_stored: f32,
    /// Digests of the files of the model.
    #[serde(default)]
    pub files: Vec<String>,
}

/// Why there is no valid merged model.
#[derive(Debug, thiserror::Error)]
#[error("`{path}`: {reason}", path = .path.display())]
pub struct MergedProblem {
    path: PathBuf,
    reason: String,
}

/// Whether a directory has the report of a merged model. Nothing of it is read.
pub fn has_merge_report(dir: &Path) -> bool {
    dir.join(MERGE_REPORT).symlink_metadata().is_ok()
}

/// The files of a merged model, the report last.
pub fn merged_files(
    report: MergeReport,
    config: Vec<u8>,
    weights: Vec<u8>,
) -> Result<Vec<(&'static str, Vec<u8>)>, serde_json::Error> {
    let contents = [config, weights];
    let files = contents.iter().map(|bytes| blake3::hash(bytes).to_hex().to_string()).collect();
    let report = serde_json::to_vec_pretty(&MergeReport { format: RECORD_FORMAT, files, ..report })?;
    Ok(MODEL_FILES.into_iter().zip(contents).chain([(MERGE_REPORT, report)]).collect())
}

/// Reads a merged model and compares each file with its digest.
///
/// # Errors
/// If something is missing, damaged, or belongs to another job.
pub fn read_merged(dir: &Path, job: &str) -> Result<MergeReport, MergedProblem> {
    let wrong = |name: &str, reason: &dyn std::fmt::Display| MergedProblem {
        path: dir.join(name),
        reason: reason.to_string(),
    };
    let bytes = read_regular(&dir.join(MERGE_REPORT), MAX_REPORT_BYTES);
    let bytes = bytes.map_err(|error| wrong(MERGE_REPORT, &error))?;
    refuse_newer(&bytes).map_err(|error| wrong(MERGE_REPORT, &error))?;
    let report: MergeReport = serde_json::from_slice(&bytes).map_err(|error| wrong(MERGE_REPORT, &error))?;
    if report.job != job {
        return Err(wrong(MERGE_REPORT, &format!("it is the report of job `{}`", shown(&report.job))));
    }
    for (index, name) in MODEL_FILES.into_iter().enumerate() {
        let mut digest = blake3::Hasher::new();
        open_regular(&dir.join(name))
            .and_then(|file| digest.update_reader(ProgressReader(file)).map(drop))
            .map_err(|error| wrong(name, &error))?;
        if report.files.get(index).map(String::as_str) != Some(digest.finalize().to_hex().as_str()) {
            return Err(wrong(name, &"it is not the one that merge.json has the digest of"));
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merged_model_is_valid_only_with_every_byte_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let text = |text: &str| text.to_owned();
        let report = MergeReport {
            format: 0,
            job: text("j"),
            adapter: text("a"),
            base: text("b"),
            difference_in_f32: 1e-7,
            difference_as_stored: 1e-3,
            files: Vec::new(),
        };
        let files = merged_files(report.clone(), b"{}".to_vec(), b"weights".to_vec()).unwrap();
        files.iter().for_each(|(name, bytes)| std::fs::write(dir.path().join(name), bytes).unwrap());
        assert_eq!(read_merged(dir.path(), "j").unwrap().adapter, "a");
        assert!(read_merged(dir.path(), "other").is_err());
        for (name, bytes) in &files {
            let path = dir.path().join(name);
            for len in [0, 1, bytes.len() - 1] {
                std::fs::write(&path, &bytes[..len]).unwrap();
                assert!(
                    read_merged(dir.path(), "j").unwrap_err().to_string().contains(name),
                    "{name} is cut to {len} bytes"
                );
            }
            std::fs::remove_file(&path).unwrap();
            assert!(read_merged(dir.path(), "j").is_err(), "{name} is missing");
            std::fs::write(&path, bytes).unwrap();
        }
        assert!(read_merged(dir.path(), "j").is_ok());
    }
}
