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

/// The harness's current directory, which is a command's working directory if it names no other.
///
/// # Errors
/// If it has been removed.
pub fn current_dir() -> Result<PathBuf, SandboxError> {
    std::env::current_dir().map_err(SandboxError::system("find the current directory"))
}
