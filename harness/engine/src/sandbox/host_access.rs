//! What of the host a target may touch, as data. Mounts nothing, and knows no target.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::SandboxError;

/// What of the host a target may touch. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAccess {
    /// Directories that the target sees as they are. What it writes there stays. Absolute, without symbolic
    /// links.
    pub writable: Vec<PathBuf>,
    /// Directories of the harness that the target does not see, such as the one of the report. Absolute, without
    /// symbolic links.
    pub hidden: Vec<PathBuf>,
    /// The network that the target sees.
    pub network: NetworkAccess,
}

/// The network that a target sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkAccess {
    /// A network of the sandbox's own, with a loopback device only.
    #[default]
    Private,
    /// The host's network.
    Host,
}

/// A directory for what the harness gives to the target. The host has none of this name, so that it exists in
/// sandboxes only.
pub fn unused_top_directory() -> PathBuf {
    let numbered = (2..).map(|number| PathBuf::from(format!("/trainwreck-{number}")));
    let mut names = std::iter::once(PathBuf::from("/trainwreck")).chain(numbered);
    names.find(|dir| dir.symlink_metadata().is_err()).unwrap_or_default()
}

/// The harness's current directory, which is a command's working directory if it names no other.
///
/// # Errors
/// If it has been removed.
pub fn current_dir() -> Result<PathBuf, SandboxError> {
    std::env::current_dir().map_err(SandboxError::system("find the current directory"))
}
