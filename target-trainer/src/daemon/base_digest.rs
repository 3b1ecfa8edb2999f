//! The digest of the base model, which is part of each job's id. A thread computes it: the base may be large,
//! or its disk may hang, and the daemon goes on meanwhile. Trains nothing.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use super::error::AcceptError;
use crate::model::{BaseCheck, BaseModel, BaseModelError};

/// What tells that the files are still those that the digest was made of: device, inode, length and time of
/// the last change, of each file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp(Vec<[i64; 5]>);

/// A digest, and the files that it was made of.
struct KnownDigest {
    stamp: Stamp,
    digest: String,
}

/// The digest of the base model, as far as it is known.
pub(super) struct BaseDigest {
    dir: PathBuf,
    check: BaseCheck,
    known: Option<KnownDigest>,
    running: Option<Receiver<Result<KnownDigest, BaseModelError>>>,
}

impl BaseDigest {
    pub(super) fn new(dir: PathBuf, check: BaseCheck) -> BaseDigest {
        BaseDigest { dir, check, known: None, running: None }
    }

    /// The digest. `None` while it is being computed.
    ///
    /// # Errors
    /// If the base model can't be read, or the thread can't be started.
    pub(super) fn get(&mut self) -> Result<Option<String>, AcceptError> {
        if let Some(running) = &self.running {
            match running.try_recv() {
                Err(TryRecvError::Empty) => return Ok(None),
                Err(TryRecvError::Disconnected) => self.running = None,
                Ok(result) => {
                    self.running = None;
                    self.known = Some(result?);
                }
            }
        }
        let stamp = stamp(&self.dir);
        match (&self.known, &stamp) {
            (Some(known), Some(stamp)) if known.stamp == *stamp => return Ok(Some(known.digest.clone())),
            _ => {}
        }
        let (sender, receiver) = channel();
        let (dir, check) = (self.dir.clone(), self.check);
        let compute = move || {
            let digest = BaseModel::digest(&dir, check);
            // The receiver is gone if the daemon exits.
            let _ = sender
                .send(digest.map(|digest| KnownDigest { stamp: stamp.unwrap_or(Stamp(Vec::new())), digest }));
        };
        std::thread::Builder::new().name("base-digest".into()).spawn(compute).map_err(AcceptError::Thread)?;
        self.running = Some(receiver);
        Ok(None)
    }
}

/// The stamp of the base's files. `None` if one of them is missing.
fn stamp(dir: &Path) -> Option<Stamp> {
    let of_file = |path: PathBuf| {
        let metadata = path.metadata().ok()?;
        let (device, inode, len) = (metadata.dev() as i64, metadata.ino() as i64, metadata.len() as i64);
        Some([device, inode, len, metadata.ctime(), metadata.ctime_nsec()])
    };
    BaseModel::files(dir).into_iter().map(of_file).collect::<Option<Vec<_>>>().map(Stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(digest: &mut BaseDigest) -> Result<String, AcceptError> {
        loop {
            if let Some(digest) = digest.get()? {
                return Ok(digest);
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_digest_is_that_of_the_files_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let mut digest = BaseDigest::new(dir.path().into(), BaseCheck::Full);
        assert!(wait(&mut digest).is_err());
        BaseModel::files(dir.path()).iter().for_each(|path| std::fs::write(path, "1").unwrap());
        let first = wait(&mut digest).unwrap();
        assert_eq!(first, BaseModel::digest(dir.path(), BaseCheck::Full).unwrap());
        std::fs::write(&BaseModel::files(dir.path())[1], "22").unwrap();
        let second = wait(&mut digest).unwrap();
        assert_ne!(first, second);
        assert_eq!(digest.get().unwrap(), Some(second), "it is not computed again");
    }
}
