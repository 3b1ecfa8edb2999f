//! The fault `environment`: what the target is started with, and who reads its output.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::effect::checker::Checker;
use crate::effect::keys::{TriggerDraft, fault};
use crate::effect::measurements::Measurements;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::yaml::leaf::SettingValue;
use crate::yaml::spanned::Spanned;

/// Largest umask.
const MAX_UMASK: u32 = 0o777;

fault!(
    /// What the target is started with from then on, or whether somebody reads its output.
    EnvironmentDraft {
        /// Environment variables with their values.
        set: Option<BTreeMap<String, SettingValue>>,
        /// Environment variables that the target does not have.
        unset: Option<Spanned<Vec<String>>>,
        /// The umasks, as octal numbers in quotes, one trial each: `['000', '077']`.
        umask: Option<Spanned<Vec<Spanned<String>>>>,
        /// `closed`: the target has no standard input.
        stdin: Option<StreamDraft>,
        /// `unread`: nobody reads the standard output, until the fault is reverted.
        stdout: Option<StreamDraft>,
        /// `closed`: the target has no standard error. `full`: it is `/dev/full`, and each write fails with ENOSPC.
        stderr: Option<StreamDraft>,
    }
);

/// What becomes of a standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StreamDraft {
    /// It is closed when the target starts.
    Closed,
    /// Writes to it fail as on a full disk.
    Full,
    /// Nobody reads it, so that writes to it wait once its pipe is full.
    Unread,
}

/// What the target is started with, or that nobody reads its output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// Environment variables with their values.
    pub set: BTreeMap<String, String>,
    /// Environment variables that it does not have.
    pub unset: Vec<String>,
    /// The umasks. Only one in a planned trial, if there is any.
    pub umasks: Vec<u32>,
    /// Its standard input is closed.
    pub stdin_closed: bool,
    /// Its standard error is closed.
    pub stderr_closed: bool,
    /// Its standard error is `/dev/full`.
    pub stderr_full: bool,
    /// Nobody reads its standard output.
    pub stdout_unread: bool,
}

impl Environment {
    /// What it does, one part for each key.
    fn parts(&self) -> Vec<String> {
        let set = self.set.iter().map(|(name, value)| format!("{name}={value}"));
        let unset = self.unset.iter().map(|name| format!("no {name}"));
        let umask = self.umasks.first().map(|umask| format!("umask {umask:03o}"));
        let streams = [
            (self.stdin_closed, "standard input closed"),
            (self.stderr_closed, "standard error closed"),
            (self.stderr_full, "/dev/full as standard error"),
            (self.stdout_unread, "nobody who reads standard output"),
        ];
        let streams = streams.into_iter().filter(|(is_so, _)| *is_so).map(|(_, text)| text.to_owned());
        set.chain(unset).chain(umask).chain(streams).collect()
    }

    /// Whether it changes what the target is started with.
    pub fn changes_start(&self) -> bool {
        *self != Environment { stdout_unread: self.stdout_unread, ..Environment::default() }
    }
}

impl CheckEffect for EnvironmentDraft {
    type Checked = Environment;

    fn check(&self, checker: &mut Checker) -> Environment {
        let mut umasks = Vec::new();
        for umask in self.umask.iter().flat_map(|umasks| &umasks.value) {
            match u32::from_str_radix(&umask.value, 8) {
                Ok(number) if number <= MAX_UMASK => umasks.push(number),
                _ => {
                    let problem = umask.problem("not a umask");
                    checker
                        .problems
                        .push(problem.help("write three octal digits in quotes, such as `'077'`"));
                }
            }
        }
        let set = self.set.iter().flatten().map(|(name, value)| (name.clone(), value.0.clone())).collect();
        let checked = Environment {
            set,
            unset: self.unset.as_ref().map(|names| names.value.clone()).unwrap_or_default(),
            umasks,
            stdin_closed: self.stdin == Some(StreamDraft::Closed),
            stderr_closed: self.stderr == Some(StreamDraft::Closed),
            stderr_full: self.stderr == Some(StreamDraft::Full),
            stdout_unread: self.stdout == Some(StreamDraft::Unread),
        };
        if checker.is_complete {
            self.check_as_a_whole(&checked, checker);
        }
        checked
    }
}

impl EnvironmentDraft {
    fn check_as_a_whole(&self, checked: &Environment, checker: &mut Checker) {
        let streams = [("stdin", self.stdin), ("stdout", self.stdout), ("stderr", self.stderr)];
        for (key, stream) in streams {
            let is_done = match (key, stream) {
                (_, None) => true,
                ("stdin", Some(stream)) => stream == StreamDraft::Closed,
                ("stdout", Some(stream)) => stream == StreamDraft::Unread,
                (_, Some(stream)) => stream != StreamDraft::Unread,
            };
            if !is_done {
                let help =
                    "`stdin` can be `closed`, `stdout` can be `unread`, `stderr` can be `closed` or `full`";
                checker.method_problem(format!("`{key}` of `environment` can't be that"), help);
            }
        }
        let names = checked.set.keys().chain(&checked.unset);
        for name in names.filter(|name| name.is_empty() || name.contains(['=', '\0'])) {
            let message = format!("`{}` is not the name of an environment variable", name.escape_debug());
            checker.method_problem(message, "write a name without `=`");
        }
        let has_stream = streams.iter().any(|(_, stream)| stream.is_some());
        if *checked == Environment::default() && self.umask.is_none() && !has_stream {
            checker.method_problem("`environment` changes nothing", "add a key, such as `umask: ['077']`");
        }
        let before_a_start = matches!(self.when, None | Some(TriggerDraft::Start | TriggerDraft::Restart));
        if checked.changes_start() && !before_a_start {
            checker.method_problem(
                "the environment of a running target can't be changed",
                "use `when: start` or `when: restart`; only `stdout: unread` can come later",
            );
        }
    }
}

impl EffectSpec for Environment {
    fn describe(&self) -> String {
        self.parts().join(", ")
    }

    fn choices(&self, _measured: Measurements<'_>) -> Vec<Environment> {
        if self.umasks.is_empty() {
            return vec![self.clone()];
        }
        self.umasks.iter().map(|umask| Environment { umasks: vec![*umask], ..self.clone() }).collect()
    }
}
