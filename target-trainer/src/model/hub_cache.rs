//! A base model in the cache of the Hugging Face hub, where each file is a link to a blob that is named by its
//! digest: finds the files, and holds blobs to their names. Reads no model.
//!
//! Layout (huggingface_hub, "Understand caching"): `models--ORG--NAME/refs/main` holds the name of a revision,
//! `snapshots/REVISION/FILE` is a link to `blobs/DIGEST`. The digest is SHA-256 for large files, and for
//! others the SHA-1 by which git names a file. `blobs/DIGEST.incomplete` is a download that has not ended.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::bounded_read::read_text;
use crate::names::{is_file_name, is_hidden};
use crate::plain_text::shown;

const BLOBS: &str = "blobs";
const SNAPSHOTS: &str = "snapshots";
const MAIN: &str = "refs/main";
/// Begin of the name of a model's directory. Its parts are separated by `--`.
const MODEL_PREFIX: &str = "models--";
/// More than the name of any revision.
const MAX_REVISION_BYTES: u64 = 1 << 10;
/// Links from one link to another that are followed.
const MAX_LINKS: usize = 16;

/// Why a file in the cache of the Hugging Face hub can't be used.
#[derive(Debug, thiserror::Error)]
pub enum HubCacheError {
    /// The content of a blob is not what its name says.
    #[error(
        "`{blob}` is damaged: the {algorithm} of its content is {found}, and its name is the one that it had when \
         it was downloaded; delete the file, and download it again{remedy}", blob = .blob.display()
    )]
    Damaged { blob: PathBuf, algorithm: &'static str, found: String, remedy: Remedy },
    /// The download has not ended.
    #[error(
        "`{file}` is not downloaded completely: there is only `{incomplete}`; wait for the download, or start it \
         again{remedy}", file = .file.display(), incomplete = .incomplete.display()
    )]
    Incomplete { file: PathBuf, incomplete: PathBuf, remedy: Remedy },
    /// A link leads to nothing.
    #[error(
        "`{file}` is a link to `{blob}`, which does not exist; download it again{remedy}",
        file = .file.display(), blob = .blob.display()
    )]
    Dangling { file: PathBuf, blob: PathBuf, remedy: Remedy },
    /// It is not known which of the revisions is meant.
    #[error(
        "`{dir}` has no usable `{MAIN}`, and its revisions are: {}; write the name of one of them into that file",
        shown(revisions), dir = .dir.display()
    )]
    Revision { dir: PathBuf, revisions: String },
    /// The revision was not downloaded.
    #[error(
        "`{dir}/{MAIN}` names the revision {}, which is not in `{SNAPSHOTS}`; download it again{remedy}",
        shown(revision), dir = .dir.display()
    )]
    NoSnapshot { dir: PathBuf, revision: String, remedy: Remedy },
}

/// The command that downloads a model again, if its name is known.
#[derive(Debug)]
pub struct Remedy(Option<String>);

impl std::fmt::Display for Remedy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(model) => write!(f, ": `hf download {}`", shown(model)),
            None => Ok(()),
        }
    }
}

impl Remedy {
    /// For a path below the model's directory.
    fn for_path(path: &Path) -> Remedy {
        let names = path.ancestors().filter_map(|dir| dir.file_name()?.to_str());
        let model = names.filter_map(|name| name.strip_prefix(MODEL_PREFIX)).next();
        Remedy(model.map(|model| model.replace("--", "/")))
    }
}

impl HubCacheError {
    /// Whether another attempt may succeed without anybody's help: a download may be going on.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, HubCacheError::Incomplete { .. } | HubCacheError::Dangling { .. })
    }
}

/// The directory of a model's files: `dir`, or its snapshot if `dir` is the model's directory in the cache.
///
/// # Errors
/// If it has no snapshot, or it is not known which one is meant.
pub(super) fn files_dir(dir: &Path) -> Result<PathBuf, HubCacheError> {
    let snapshots = dir.join(SNAPSHOTS);
    if !snapshots.is_dir() {
        return Ok(dir.to_owned());
    }
    let revision = read_text(&dir.join(MAIN), MAX_REVISION_BYTES).unwrap_or_default().trim().to_owned();
    if is_file_name(&revision) && !is_hidden(&revision) {
        let snapshot = snapshots.join(&revision);
        let remedy = || Remedy::for_path(dir);
        return match snapshot.is_dir() {
            true => Ok(snapshot),
            false => Err(HubCacheError::NoSnapshot { dir: dir.to_owned(), revision, remedy: remedy() }),
        };
    }
    let entries = std::fs::read_dir(&snapshots).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut revisions: Vec<String> = names.filter(|name| !is_hidden(name)).collect();
    revisions.sort();
    match revisions.as_slice() {
        [only] => Ok(snapshots.join(only)),
        _ => Err(HubCacheError::Revision { dir: dir.to_owned(), revisions: revisions.join(", ") }),
    }
}

/// Holds the content of a file to the name of the blob that it is a link to.
pub(super) struct BlobCheck {
    /// `None`: the file is not in the cache, so that nothing says what it should hold.
    blob: Option<(PathBuf, BlobHasher)>,
}

enum BlobHasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl BlobCheck {
    /// For files that are not looked at.
    pub(super) fn none() -> BlobCheck {
        BlobCheck { blob: None }
    }

    /// For the file at `path`, which has `len` bytes.
    pub(super) fn new(path: &Path, len: u64) -> BlobCheck {
        let blob = path.canonicalize().ok().filter(|file| is_in_blobs(file));
        let hasher = |blob: &PathBuf| {
            let name = blob.file_name()?.to_str()?;
            let is_hex = name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            match name.len() {
                64 if is_hex => Some(BlobHasher::Sha256(Sha256::new())),
                40 if is_hex => Some(BlobHasher::Git(Sha1::new().chain_update(format!("blob {len}\0")))),
                _ => None,
            }
        };
        BlobCheck { blob: blob.and_then(|blob| hasher(&blob).map(|hasher| (blob, hasher))) }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.blob {
            Some((_, BlobHasher::Sha256(hasher))) => hasher.update(bytes),
            Some((_, BlobHasher::Git(hasher))) => hasher.update(bytes),
            None => {}
        }
    }

    /// Compares the digest of all bytes with the name.
    ///
    /// # Errors
    /// If they differ.
    pub(super) fn finish(self) -> Result<(), HubCacheError> {
        let Some((blob, hasher)) = self.blob else { return Ok(()) };
        let (algorithm, found) = match hasher {
            BlobHasher::Sha256(hasher) => ("sha256", hex(&hasher.finalize())),
            BlobHasher::Git(hasher) => ("git SHA-1", hex(&hasher.finalize())),
        };
        if blob.file_name().is_some_and(|name| name == found.as_str()) {
            return Ok(());
        }
        let remedy = Remedy::for_path(&blob);
        Err(HubCacheError::Damaged { blob, algorithm, found, remedy })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn is_in_blobs(file: &Path) -> bool {
    file.parent().and_then(Path::file_name).is_some_and(|dir| dir == BLOBS)
}

/// Fails if the file is a link that leads to a blob which is not there.
///
/// # Errors
/// With the blob, and whether a part of it was downloaded.
pub(super) fn check_link(file: &Path) -> Result<(), HubCacheError> {
    if file.exists() {
        return Ok(());
    }
    let Some(blob) = end_of_links(file) else { return Ok(()) };
    let mut incomplete = blob.clone().into_os_string();
    incomplete.push(".incomplete");
    let incomplete = PathBuf::from(incomplete);
    let (file, remedy) = (file.to_owned(), Remedy::for_path(&blob));
    if incomplete.exists() {
        return Err(HubCacheError::Incomplete { file, incomplete, remedy });
    }
    Err(HubCacheError::Dangling { file, blob, remedy })
}

/// Where the links from `file` on end. `None` if it is no link, or they lead in a circle.
fn end_of_links(file: &Path) -> Option<PathBuf> {
    let mut at = file.to_owned();
    for links in 0..MAX_LINKS {
        match at.read_link() {
            Ok(target) => {
                let dir = at.parent().unwrap_or(Path::new("")).canonicalize().ok()?;
                at = dir.join(target);
            }
            Err(_) if links == 0 => return None,
            Err(_) => {
                // Without `..`, so that the name of the model's directory is in it.
                let (dir, name) = (at.parent()?, at.file_name()?);
                return Some(dir.canonicalize().unwrap_or(dir.to_owned()).join(name));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::model::{BaseCheck, BaseModel, Preset, preset_files};

    const REVISION: &str = "6f1c2a";

    /// The bytes of a tiny model.
    fn files() -> Vec<(&'static str, Vec<u8>)> {
        let (config, weights) = preset_files(Preset::Tiny, 1).unwrap();
        vec![("config.json", config.into_bytes()), ("model.safetensors", weights)]
    }

    fn git_name(bytes: &[u8]) -> String {
        hex(&Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
    }

    /// A cache as huggingface_hub makes it: large files by SHA-256, others by git's name. Returns the model's
    /// directory and the blobs.
    fn cache(dir: &Path) -> (PathBuf, Vec<PathBuf>) {
        let model = dir.join("models--some-lab--tiny");
        let snapshot = model.join(SNAPSHOTS).join(REVISION);
        let dirs = [&snapshot, &model.join(BLOBS), &model.join("refs")];
        dirs.iter().for_each(|dir| std::fs::create_dir_all(dir).unwrap());
        std::fs::write(model.join(MAIN), REVISION).unwrap();
        let add = |(name, bytes): (&str, Vec<u8>)| {
            let is_large = name.ends_with(".safetensors");
            let blob = if is_large { hex(&Sha256::digest(&bytes)) } else { git_name(&bytes) };
            std::fs::write(model.join(BLOBS).join(&blob), bytes).unwrap();
            symlink(Path::new("../../blobs").join(&blob), snapshot.join(name)).unwrap();
            model.join(BLOBS).join(blob)
        };
        let blobs = files().into_iter().map(add).collect();
        (model, blobs)
    }

    fn digest(dir: &Path) -> Result<String, String> {
        BaseModel::digest(dir, BaseCheck::Full).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_is_what_git_and_sha256sum_say() {
        assert_eq!(git_name(b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a", "`git hash-object`");
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(hex(&Sha256::digest(b"hello\n")), sha256, "`sha256sum`");
    }

    #[test]
    fn a_model_in_the_cache_is_the_same_as_one_that_was_copied() {
        let dir = tempfile::tempdir().unwrap();
        let (model, _) = cache(dir.path());
        let copy = dir.path().join("copy");
        std::fs::create_dir(&copy).unwrap();
        files().iter().for_each(|(name, bytes)| std::fs::write(copy.join(name), bytes).unwrap());
        let linked = dir.path().join("base");
        symlink(model.join(SNAPSHOTS).join(REVISION), &linked).unwrap();
        let expected = digest(&copy).unwrap();
        for dir in [&model, &model.join(SNAPSHOTS).join(REVISION), &linked] {
            assert_eq!(digest(dir).unwrap(), expected);
            assert!(BaseModel::read(dir, BaseCheck::Full).is_ok());
        }
    }

    #[test]
    fn each_changed_byte_of_each_blob_is_noticed_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let (model, blobs) = cache(dir.path());
        for blob in &blobs {
            let whole = std::fs::read(blob).unwrap();
            for at in [0, whole.len() / 2, whole.len() - 1] {
                let mut damaged = whole.clone();
                damaged[at] ^= 1;
                std::fs::write(blob, damaged).unwrap();
                let error = digest(&model).unwrap_err();
                assert!(error.contains(blob.to_str().unwrap()) && error.contains("is damaged"), "{error}");
                assert!(error.ends_with("download it again: `hf download some-lab/tiny`"), "{error}");
                assert!(BaseModel::digest(&model, BaseCheck::Off).is_ok(), "the guard is off");
            }
            std::fs::write(blob, &whole[..whole.len() - 1]).unwrap();
            assert!(digest(&model).unwrap_err().contains("is damaged"));
            std::fs::write(blob, whole).unwrap();
        }
        assert!(digest(&model).is_ok());
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (model, blobs) = cache(dir.path());
        for blob in &blobs {
            let whole = std::fs::read(blob).unwrap();
            let mut incomplete = blob.clone().into_os_string();
            incomplete.push(".incomplete");
            std::fs::rename(blob, &incomplete).unwrap();
            let error = BaseModel::digest(&model, BaseCheck::Full).unwrap_err();
            assert!(
                error.may_pass() && error.to_string().contains("is not downloaded completely"),
                "{error}"
            );
            std::fs::remove_file(&incomplete).unwrap();
            let error = digest(&model).unwrap_err();
            let link = format!("is a link to `{}`, which does not exist", blob.display());
            assert!(error.contains(&link) && error.contains("`hf download some-lab/tiny`"), "{error}");
            std::fs::write(blob, whole).unwrap();
        }
    }

    #[test]
    fn a_revision_is_found_or_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let (model, _) = cache(dir.path());
        let main = model.join(MAIN);
        for text in ["", "..", "a/b", ".", "\n"] {
            std::fs::write(&main, text).unwrap();
            assert!(digest(&model).is_ok(), "there is only one");
        }
        std::fs::create_dir(model.join(SNAPSHOTS).join("9")).unwrap();
        assert!(digest(&model).unwrap_err().contains("its revisions are: 6f1c2a, 9;"));
        std::fs::write(&main, "7\n").unwrap();
        assert!(digest(&model).unwrap_err().contains("names the revision 7, which is not in `snapshots`"));
    }

    #[test]
    fn missing_shards_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let shard = |n: u32| format!("model-{n:05}-of-00007.safetensors");
        let map: Vec<_> = (1..8).map(|n| format!("\"layer.{n}\": \"{}\"", shard(n))).collect();
        let index = format!("{{\"weight_map\": {{{}}}}}", map.join(", "));
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        std::fs::write(dir.path().join(shard(3)), "").unwrap();
        let error = digest(dir.path()).unwrap_err();
        let missing = "of these files are missing: `model-00001-of-00007.safetensors`, ";
        assert!(error.contains(missing) && error.ends_with("and 1 more"), "{error}");
        assert!(!error.contains(&shard(3)), "{error}");
    }
}
