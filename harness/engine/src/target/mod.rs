//! The commands of a target file with every placeholder filled in, its program and its output patterns.
//! Starts no process. Knows no fault and no scenario.

mod cargo_build;
mod executable;
mod output_patterns;
mod program;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use scenarios::TargetFile;

pub use executable::{check_command_programs, find_executable};
pub use output_patterns::{OutputPatterns, ParsedLine};
pub use program::{ProgramError, find_program};
pub(crate) use program::{WorkspaceMember, find_or_build};

use crate::sandbox::LaunchSpec;

/// A target file with the values of its placeholders: program, root, seed and settings.
#[derive(Clone, Copy)]
pub struct Trainer<'a> {
    /// The checked target file.
    pub file: &'a TargetFile,
    /// Path of the program.
    pub program: &'a Path,
    /// Path at which the target sees its root.
    pub root: &'a Path,
    /// Seed of the workload.
    pub seed: u64,
    /// Settings of the workload.
    pub settings: &'a BTreeMap<String, String>,
    /// Environment variables in addition to those of the file. If the file has the same variable, this value
    /// comes first, separated by `:`, as in `PATH`.
    pub environment: &'a [(OsString, OsString)],
}

/// The value of a placeholder that only one command has.
struct PlaceholderValue {
    placeholder: &'static str,
    value: String,
}

impl Trainer<'_> {
    /// The commands that prepare an empty root.
    pub fn prepare(&self) -> Vec<LaunchSpec> {
        self.file.prepare().iter().map(|arguments| self.launch(arguments, &[])).collect()
    }

    /// The command that starts the target.
    pub fn start(&self) -> LaunchSpec {
        self.launch(self.file.start(), &[])
    }

    /// The command that resumes the target after a crash.
    pub fn resume(&self) -> LaunchSpec {
        self.launch(self.file.resume(), &[])
    }

    /// The target's own check of its files, if it has one.
    pub fn verify(&self) -> Option<LaunchSpec> {
        self.file.verify().map(|arguments| self.launch(arguments, &[]))
    }

    /// The command that submits a data file, if the target has one.
    pub fn submit(&self, file: &Path) -> Option<LaunchSpec> {
        let file = PlaceholderValue { placeholder: "{file}", value: file.display().to_string() };
        self.file.submit().map(|arguments| self.launch(arguments, &[file]))
    }

    /// The command that generates a data file, if the target has one for this kind. Without `length`,
    /// `{length}` is 0.
    pub fn generate(&self, kind: &str, samples: u32, length: Option<u32>, file: &Path) -> Option<LaunchSpec> {
        let length = length.map_or_else(|| "0".into(), |length| length.to_string());
        let values = [
            PlaceholderValue { placeholder: "{file}", value: file.display().to_string() },
            PlaceholderValue { placeholder: "{samples}", value: samples.to_string() },
            PlaceholderValue { placeholder: "{length}", value: length },
        ];
        self.file.generate().get(kind).map(|arguments| self.launch(arguments, &values))
    }

    /// Path of a place as the target sees it.
    pub fn place(&self, name: &str) -> PathBuf {
        self.root.join(self.place_below_root(name))
    }

    /// Path of a place relative to the root. Returns the root itself for an unknown name, which checked files
    /// cannot contain.
    pub fn place_below_root(&self, name: &str) -> PathBuf {
        self.file.places().get(name).cloned().unwrap_or_default()
    }

    fn launch(&self, arguments: &[String], values: &[PlaceholderValue]) -> LaunchSpec {
        let argv = arguments
            .iter()
            .flat_map(|argument| self.fill_in(argument, values))
            .map(OsString::from)
            .collect();
        LaunchSpec { argv, env: self.environment(), cwd: None }
    }

    /// One argument of a command with its placeholders filled in. `{settings}` becomes several.
    fn fill_in(&self, argument: &str, values: &[PlaceholderValue]) -> Vec<String> {
        if argument == "{settings}" {
            return self.settings.iter().flat_map(|(key, value)| self.setting_args(key, value)).collect();
        }
        let mut filled = argument
            .replace("{program}", &self.program.display().to_string())
            .replace("{root}", &self.root.display().to_string())
            .replace("{seed}", &self.seed.to_string());
        for (name, place) in self.file.places() {
            filled = filled.replace(&format!("{{{name}}}"), &self.root.join(place).display().to_string());
        }
        let fill = |text: String, given: &PlaceholderValue| text.replace(given.placeholder, &given.value);
        vec![values.iter().fold(filled, fill)]
    }

    /// The arguments that pass one setting to the target.
    fn setting_args(&self, key: &str, value: &str) -> Vec<String> {
        self.file
            .setting_args()
            .iter()
            .map(|argument| argument.replace("{key}", key).replace("{value}", value))
            .collect()
    }

    /// A small, fixed environment, so that a run does not depend on the caller's. Only `PATH` is taken from
    /// there.
    fn environment(&self) -> Vec<(OsString, OsString)> {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
        let mut environment: Vec<(OsString, OsString)> =
            vec![("PATH".into(), path), ("LANG".into(), "C.UTF-8".into()), ("HOME".into(), self.root.into())];
        environment.extend(self.file.environment().iter().map(|(name, value)| (name.into(), value.into())));
        for (name, value) in self.environment {
            match environment.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => *known = [value.as_os_str(), known].join(OsStr::new(":")),
                None => environment.push((name.clone(), value.clone())),
            }
        }
        environment
    }
}
