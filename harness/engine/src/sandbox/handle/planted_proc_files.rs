//! Files of the sandbox's own `/proc` that hold another text than the kernel's.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::Sandbox;
use crate::sandbox::error::SandboxError;
use crate::sandbox::protocol::ControlRequest;

/// A file of `/proc` that holds another text until it is removed, or the sandbox ends.
#[derive(Debug)]
pub struct PlantedProcFile {
    path: PathBuf,
    id: u64,
}

impl Sandbox {
    /// Lets programs in the sandbox read another text in an existing regular file of `/proc`. Of several texts, the
    /// last one counts.
    ///
    /// # Errors
    /// If the kernel refuses it, or init has ended.
    pub fn plant_proc_file(&self, path: &Path, text: &str) -> Result<PlantedProcFile, SandboxError> {
        let id = self.next_proc_file.fetch_add(1, Ordering::Relaxed);
        let request = ControlRequest::PlantProcFile { path: path.into(), id, text: text.into() };
        self.parts.client.execute(&request)?;
        Ok(PlantedProcFile { path: path.into(), id })
    }

    /// Removes a text, so that an earlier one or the kernel's counts again.
    ///
    /// # Errors
    /// If the kernel refuses it, or init has ended.
    pub fn remove_proc_file(&self, planted: PlantedProcFile) -> Result<(), SandboxError> {
        let PlantedProcFile { path, id } = planted;
        self.parts.client.execute(&ControlRequest::RemoveProcFile { path, id }).map(drop)
    }
}
