//! The commands of a target file with every placeholder filled in, and its program.
//! Starts no process. Knows no fault and no scenario.

mod cargo_build;
mod executable;
mod program;
mod program_available;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use scenarios::{CommandArgument, Placeholder, TargetFile, Template};

pub use executable::{ExecutableError, check_command_programs, find_executable};
pub use program::{BuildEvent, OnBuild, ProgramAdvice, ProgramError, find_program};
pub(crate) use program::{WorkspaceMember, find_or_build};
pub use program_available::is_program_available;

use crate::sandbox::LaunchSpec;

/// A variable with which Python writes its output at once, so that the lines about saves arrive when they are
/// printed, and not at the end of the run. An empty value switches it off.
pub const UNBUFFERED_PYTHON: [&str; 2] = ["PYTHONUNBUFFERED", "1"];

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

/// A data file that a command writes or submits.
#[derive(Default)]
struct DataFile<'a> {
    path: Option<&'a Path>,
    samples: u32,
    /// Without it, `{length}` is 0.
    length: Option<u32>,
}

impl Trainer<'_> {
    /// The commands that prepare an empty root.
    pub fn prepare(&self) -> Vec<LaunchSpec> {
        self.file.prepare().iter().map(|arguments| self.launch(arguments, &DataFile::default())).collect()
    }

    /// The command that starts the target.
    pub fn start(&self) -> LaunchSpec {
        self.launch(self.file.start(), &DataFile::default())
    }

    /// The command that resumes the target after a crash.
    pub fn resume(&self) -> LaunchSpec {
        self.launch(self.file.resume(), &DataFile::default())
    }

    /// The target's own check of its files, if it has one.
    pub fn verify(&self) -> Option<LaunchSpec> {
        self.file.verify().map(|arguments| self.launch(arguments, &DataFile::default()))
    }

    /// The command that submits a data file, if the target has one.
    pub fn submit(&self, file: &Path) -> Option<LaunchSpec> {
        let file = DataFile { path: Some(file), ..DataFile::default() };
        self.file.submit().map(|arguments| self.launch(arguments, &file))
    }

    /// The command that generates a data file, if the target has one for this kind. Without `length`,
    /// `{length}` is 0.
    pub fn generate(&self, kind: &str, samples: u32, length: Option<u32>, file: &Path) -> Option<LaunchSpec> {
        let file = DataFile { path: Some(file), samples, length };
        self.file.generate().get(kind).map(|arguments| self.launch(arguments, &file))
    }

    /// A command of a scenario. `copy`: the number of the copy.
    pub fn command(&self, arguments: &[Template], copy: u32) -> LaunchSpec {
        let none = DataFile::default();
        let value = |placeholder: &Placeholder| match placeholder {
            // In a scenario no other word that is not reserved has a value.
            Placeholder::Place(_) => copy.to_string().into(),
            placeholder => self.value_of(placeholder, &none),
        };
        let argv = arguments.iter().map(|argument| argument.fill(value)).collect();
        LaunchSpec { argv, env: self.environment(), cwd: None }
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

    fn launch(&self, arguments: &[CommandArgument], file: &DataFile<'_>) -> LaunchSpec {
        let argv = arguments.iter().flat_map(|argument| match argument {
            CommandArgument::Settings => {
                self.settings.iter().flat_map(|(key, value)| self.setting_args(key, value)).collect()
            }
            CommandArgument::Template(template) => {
                vec![template.fill(|placeholder| self.value_of(placeholder, file))]
            }
        });
        LaunchSpec { argv: argv.collect(), env: self.environment(), cwd: None }
    }

    /// The value of a placeholder in a command or an environment variable.
    fn value_of(&self, placeholder: &Placeholder, file: &DataFile<'_>) -> OsString {
        match placeholder {
            Placeholder::Program => self.program.into(),
            Placeholder::Root => self.root.into(),
            Placeholder::Seed => self.seed.to_string().into(),
            Placeholder::Place(name) => self.place(name).into(),
            Placeholder::File => file.path.map(OsString::from).unwrap_or_default(),
            Placeholder::Samples => file.samples.to_string().into(),
            Placeholder::Length => file.length.unwrap_or_default().to_string().into(),
            // The checks of a target file allow these in `setting-args` alone.
            Placeholder::Key | Placeholder::Value => OsString::new(),
        }
    }

    /// The arguments that pass one setting to the target.
    fn setting_args(&self, key: &str, value: &str) -> Vec<OsString> {
        let value_of = |placeholder: &Placeholder| match placeholder {
            Placeholder::Key => key.into(),
            Placeholder::Value => value.into(),
            other => self.value_of(other, &DataFile::default()),
        };
        self.file.setting_args().iter().map(|argument| argument.fill(value_of)).collect()
    }

    /// A small environment, so that a run does not depend on the caller's. Of the caller's, it has `PATH` and
    /// what the file inherits. Python does not buffer its output, unless the file or what it inherits says so.
    fn environment(&self) -> Vec<(OsString, OsString)> {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
        let mut environment: BTreeMap<OsString, OsString> =
            [("PATH".into(), path), ("LANG".into(), "C.UTF-8".into()), ("HOME".into(), self.root.into())]
                .into();
        let [name, value] = UNBUFFERED_PYTHON;
        environment.insert(name.into(), value.into());
        let inherited = self.file.inherit().iter();
        environment.extend(inherited.filter_map(|name| Some((name.into(), std::env::var_os(name)?))));
        let none = DataFile::default();
        let of_file = self.file.environment().iter();
        environment.extend(
            of_file.map(|(name, value)| {
                (name.into(), value.fill(|placeholder| self.value_of(placeholder, &none)))
            }),
        );
        for (name, value) in self.environment {
            environment
                .entry(name.clone())
                .and_modify(|known| *known = [value.as_os_str(), known].join(OsStr::new(":")))
                .or_insert_with(|| value.clone());
        }
        environment.into_iter().collect()
    }
}

/// The environment variables that the target inherits: those that the file names and that are set here.
pub fn inherited_variables(file: &TargetFile) -> Vec<String> {
    file.inherit().iter().filter(|name| std::env::var_os(name).is_some()).cloned().collect()
}
