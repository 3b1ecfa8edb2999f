//! The fault `landlock`: a policy of the kernel denies calls below the root that the modes of the files allow.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::effect::checker::Checker;
use crate::effect::keys::{TriggerDraft, fault};
use crate::effect::measurements::Measurements;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::yaml::spanned::Spanned;

fault!(
    /// What the target may not do below its root, although the modes of the files allow it.
    LandlockDraft {
        /// The rights that are denied.
        deny: Spanned<Vec<DeniedRight>>,
        /// Denies one right in each trial, one trial for each. Default: `false`, all in the same trial.
        #[serde(default)]
        each: bool,
    }
);

/// A right to files. The kernel denies it below the root of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeniedRight {
    /// To open a file for reading: EACCES.
    ReadFile,
    /// To open a file for writing: EACCES.
    WriteFile,
    /// To set the size of a file, by a call or when it is opened: EACCES.
    Truncate,
    /// To list a directory: EACCES.
    ReadDir,
    /// To make a directory, or rename one to a name: EACCES.
    MakeDir,
    /// To make a regular file, or rename or link one to a name: EACCES.
    MakeFile,
    /// To make a symbolic link: EACCES.
    MakeLink,
    /// To make a named pipe: EACCES.
    MakePipe,
    /// To make a socket: EACCES.
    MakeSocket,
    /// To remove a file, or rename it away: EACCES.
    RemoveFile,
    /// To remove a directory, or rename it away: EACCES.
    RemoveDir,
    /// To rename or link from one directory into another: EXDEV.
    RenameAcross,
}

impl DeniedRight {
    /// Its name in a scenario file.
    fn name(self) -> &'static str {
        match self {
            DeniedRight::ReadFile => "read-file",
            DeniedRight::WriteFile => "write-file",
            DeniedRight::Truncate => "truncate",
            DeniedRight::ReadDir => "read-dir",
            DeniedRight::MakeDir => "make-dir",
            DeniedRight::MakeFile => "make-file",
            DeniedRight::MakeLink => "make-link",
            DeniedRight::MakePipe => "make-pipe",
            DeniedRight::MakeSocket => "make-socket",
            DeniedRight::RemoveFile => "remove-file",
            DeniedRight::RemoveDir => "remove-dir",
            DeniedRight::RenameAcross => "rename-across",
        }
    }
}

/// A policy that denies rights below the root, for programs that are started while it is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landlock {
    /// The rights, in the order of the file, each once.
    pub denied: Vec<DeniedRight>,
    /// One right in each trial. Never in a planned trial with several rights.
    pub each: bool,
}

impl CheckEffect for LandlockDraft {
    type Checked = Landlock;

    fn check(&self, checker: &mut Checker) -> Landlock {
        checker.require_not_empty(&self.deny, "`deny` is empty; name at least one right, such as `make-dir`");
        let mut denied: Vec<DeniedRight> = Vec::new();
        for right in &self.deny.value {
            match denied.contains(right) {
                true => {
                    let message = format!("`deny` has `{}` twice", right.name());
                    checker.problems.push(self.deny.problem(message).help("remove one of them"));
                }
                false => denied.push(*right),
            }
        }
        if !matches!(self.when, None | Some(TriggerDraft::Start | TriggerDraft::Restart)) {
            checker.method_problem(
                "a policy can't be put over a running target",
                "use `when: start` or `when: restart` with `landlock`",
            );
        }
        Landlock { denied, each: self.each }
    }
}

impl EffectSpec for Landlock {
    fn describe(&self) -> String {
        let names: Vec<&str> = self.denied.iter().map(|right| right.name()).collect();
        format!("a policy denies {} below the root", names.join(", "))
    }

    fn choices(&self, _measured: Measurements<'_>) -> Vec<Landlock> {
        match self.each {
            true => self.denied.iter().map(|right| Landlock { denied: vec![*right], each: false }).collect(),
            false => vec![self.clone()],
        }
    }

    fn needed_mechanism(&self) -> Option<&'static str> {
        Some("landlock")
    }

    fn is_shown_by_failed_calls(&self) -> bool {
        true
    }
}
