//! What happens to a file system call when a fault is injected at it. Knows no fault and no gate.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::operation::{CallKind, Errno};

/// A file system call at which a fault may be injected, as the baseline run saw it.
#[derive(Debug, Clone, Copy)]
pub struct CallSite {
    /// Its kind. `None` if the baseline run did not count it.
    pub kind: Option<CallKind>,
    /// Requested bytes of a read or write, otherwise 0.
    pub len_bytes: u64,
    /// The fault is tried at each matching call, one trial each.
    pub is_one_of_every: bool,
    /// No later call matches.
    pub is_last: bool,
    /// The fault is injected at every later call too.
    pub is_persistent: bool,
}

/// What happens to a call.
#[derive(Debug, Clone, PartialEq)]
pub enum CallInjection {
    /// Every process is killed before the call.
    KillBefore,
    /// Every process is killed after the first `bytes` bytes are written.
    KillInside { bytes: u64 },
    /// Every process is killed after the call.
    KillAfter,
    /// The call returns an error. `performed`: its effect happens all the same. `persistent`: so does every
    /// later call.
    Fail { errno: Errno, performed: bool, persistent: bool },
    /// The read or write moves at most this many bytes.
    Short { bytes: u32 },
    /// The call takes this long.
    Delay { duration: Duration },
    /// The file at the call's path is replaced before the call.
    Swap { by: Replacement },
    /// The call waits until the run has injected the fault.
    HoldUntilInjected,
}

/// What a path refers to after the swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Replacement {
    /// The file is removed.
    Nothing,
    /// An empty file.
    EmptyFile,
    /// A symbolic link to a name that does not exist.
    DanglingLink,
}

impl CallInjection {
    /// Whether it kills the target.
    pub fn is_kill(&self) -> bool {
        matches!(
            self,
            CallInjection::KillBefore | CallInjection::KillInside { .. } | CallInjection::KillAfter
        )
    }

    /// What happens, as a part of a sentence about the call.
    pub fn describe(&self) -> String {
        match self {
            CallInjection::KillBefore => "killed before".into(),
            CallInjection::KillInside { bytes } => format!("killed after {bytes} bytes of"),
            CallInjection::KillAfter => "killed after".into(),
            CallInjection::Fail { errno, performed, persistent } => {
                let performed = if *performed { " although it was performed" } else { "" };
                let repeated = if *persistent { ", as does every later call" } else { "" };
                format!("fails with {errno}{performed}{repeated}")
            }
            CallInjection::Short { bytes } => format!("moves only {bytes} bytes"),
            CallInjection::Delay { duration: delay } => format!("takes {delay:?}"),
            CallInjection::Swap { by: Replacement::Nothing } => "the file was removed".into(),
            CallInjection::Swap { by: Replacement::EmptyFile } => {
                "the file was replaced by an empty file".into()
            }
            CallInjection::Swap { by: Replacement::DanglingLink } => {
                "the file was replaced by a dangling link".into()
            }
            CallInjection::HoldUntilInjected => "the fault is injected".into(),
        }
    }
}
