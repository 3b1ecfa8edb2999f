//! Starts a target: a target file's commands with everything filled in. Knows no fault and no scenario.

mod output_patterns;
mod program;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use scenarios::TargetFile;

pub use output_patterns::{OutputPatterns, ParsedLine};
pub use program::{ProgramError, find_program};
pub(crate) use program::{WorkspaceMember, find_or_build};

use crate::sandbox::LaunchSpec;

/// A target file bound to the program that it names and the folder that it works in.
#[derive(Clone, Copy)]
pub struct Trainer<'a> {
    pub file: &'a TargetFile,
    pub program: &'a Path,
    /// As the target sees it.
    pub root: &'a Path,
    pub seed: u64,
    pub settings: &'a BTreeMap<String, String>,
    /// Variables beside those of the file; where both have one, theirs stand first, as in a path.
    pub environment: &'a [(OsString, OsString)],
}

impl Trainer<'_> {
    /// The commands that make an empty root ready.
    pub fn prepare(&self) -> Vec<LaunchSpec> {
        self.file.prepare().iter().map(|words| self.launch(words, &[])).collect()
    }

    pub fn start(&self) -> LaunchSpec {
        self.launch(self.file.start(), &[])
    }

    pub fn resume(&self) -> LaunchSpec {
        self.launch(self.file.resume(), &[])
    }

    pub fn verify(&self) -> Option<LaunchSpec> {
        self.file.verify().map(|words| self.launch(words, &[]))
    }

    pub fn submit(&self, file: &Path) -> Option<LaunchSpec> {
        self.file.submit().map(|words| self.launch(words, &[("{file}", file.display().to_string())]))
    }

    /// Makes a data file. None where the target knows no such kind.
    pub fn generate(&self, kind: &str, samples: u32, length: Option<u32>, file: &Path) -> Option<LaunchSpec> {
        let length = length.map_or_else(|| "0".into(), |length| length.to_string());
        let values = [
            ("{file}", file.display().to_string()),
            ("{samples}", samples.to_string()),
            ("{length}", length),
        ];
        self.file.generate().get(kind).map(|words| self.launch(words, &values))
    }

    /// A place as the target sees it.
    pub fn place(&self, name: &str) -> PathBuf {
        self.root.join(self.place_below_root(name))
    }

    /// A place relative to the root; the root itself for a name that the checked files can't contain.
    pub fn place_below_root(&self, name: &str) -> PathBuf {
        self.file.places().get(name).cloned().unwrap_or_default()
    }

    fn launch(&self, words: &[String], values: &[(&str, String)]) -> LaunchSpec {
        let argv = words.iter().flat_map(|word| self.fill_in(word, values)).map(OsString::from).collect();
        LaunchSpec { argv, env: self.environment(), cwd: None }
    }

    fn fill_in(&self, word: &str, values: &[(&str, String)]) -> Vec<String> {
        if word == "{settings}" {
            return self.settings.iter().flat_map(|setting| self.setting_args(setting)).collect();
        }
        let mut filled = word
            .replace("{program}", &self.program.display().to_string())
            .replace("{root}", &self.root.display().to_string())
            .replace("{seed}", &self.seed.to_string());
        for (name, place) in self.file.places() {
            filled = filled.replace(&format!("{{{name}}}"), &self.root.join(place).display().to_string());
        }
        vec![values.iter().fold(filled, |filled, (name, value)| filled.replace(name, value))]
    }

    fn setting_args(&self, (key, value): (&String, &String)) -> Vec<String> {
        self.file
            .setting_args()
            .iter()
            .map(|word| word.replace("{key}", key).replace("{value}", value))
            .collect()
    }

    /// A small fixed environment, so that a run does not depend on the caller's.
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
