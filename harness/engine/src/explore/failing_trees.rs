//! Leaves the files of failing crash states on the disk, with the whole output of a recovery from each. Knows no causes.

use std::path::{Path, PathBuf};

use scenarios::Finding;

use super::error::ExploreError;
use super::record::Recording;
use super::repeated_states::RepeatedStates;
use super::replay::{CompletedRecovery, MaterializePlace, materialize};
use super::states::{CrashCandidate, StateName};
use crate::file_error::file_error;
use crate::sandbox::ProcessExit;

/// The files of one crash state, as they are before the recovery, and what the recovery printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailingTree {
    /// The directory that contains all of it.
    pub dir: PathBuf,
    /// The name of the state.
    pub state: String,
}

/// Where the files of failing states go.
#[derive(Clone, Copy)]
pub(super) struct FailingTreesSpec<'a> {
    /// An existing directory.
    pub(super) dir: &'a Path,
    pub(super) recording: &'a Recording,
    /// Modification times count from here, in seconds since 1970.
    pub(super) began_unix_s: i64,
}

impl FailingTreesSpec<'_> {
    /// Leaves the state that each finding shows in a directory of its own. Without findings, the state `only`.
    ///
    /// # Errors
    /// A recovery could not be run, or a file could not be written.
    pub(super) fn keep(
        self,
        findings: &[Finding],
        only: Option<&StateName>,
        repeats: &mut RepeatedStates<'_, '_>,
    ) -> Result<Vec<FailingTree>, ExploreError> {
        let numbered = (1..).zip(findings);
        let shown: Vec<KeptState> =
            numbered.filter_map(|(number, finding)| KeptState::of_finding(number, finding)).collect();
        let only = only.filter(|_| findings.is_empty()).map(|name| KeptState {
            dir_name: "state".into(),
            name: name.clone(),
            text: String::new(),
        });
        let mut kept = Vec::new();
        for state in shown.into_iter().chain(only) {
            kept.extend(self.keep_one(&state, repeats)?);
        }
        Ok(kept)
    }

    /// `None`: the exploration was interrupted before.
    fn keep_one(
        self,
        state: &KeptState,
        repeats: &mut RepeatedStates<'_, '_>,
    ) -> Result<Option<FailingTree>, ExploreError> {
        let candidate = &state.name.candidate;
        let Some(recovery) = repeats.run_with_whole_output(candidate)? else { return Ok(None) };
        let dir = self.dir.join(&state.dir_name);
        std::fs::create_dir(&dir).map_err(file_error::<ExploreError>("create", &dir))?;
        self.write_files(candidate, &dir)?;
        let CompletedRecovery { resume, check } = recovery;
        let mut texts = vec![("stdout", resume.stdout), ("stderr", resume.stderr)];
        let mut ending =
            format!("one more recovery, after those that are judged: {}\n", ProcessExit::ending(resume.exit));
        if let Some(check) = check {
            texts.extend([("check-stdout", check.stdout), ("check-stderr", check.stderr)]);
            ending += &format!("check: {}\n", ProcessExit::ending(check.exit));
        }
        texts.push(("state.txt", format!("state: {}\n{}{ending}", state.name, state.text)));
        for (name, text) in texts {
            let path = dir.join(name);
            std::fs::write(&path, text).map_err(file_error::<ExploreError>("write", &path))?;
        }
        Ok(Some(FailingTree { dir, state: state.name.to_string() }))
    }

    /// Writes the files of each watched directory: to `files`, or with several of them to `files-0` and so on.
    fn write_files(self, candidate: &CrashCandidate, dir: &Path) -> Result<(), ExploreError> {
        let dir_names: Vec<String> = match self.recording.roots.len() {
            1 => vec!["files".into()],
            count => (0..count).map(|number| format!("files-{number}")).collect(),
        };
        for name in &dir_names {
            let path = dir.join(name);
            std::fs::create_dir(&path).map_err(file_error::<ExploreError>("create", &path))?;
        }
        let place = MaterializePlace { base: dir.into(), dir_names, began_unix_s: self.began_unix_s };
        materialize(self.recording, candidate, place)
            .map_err(file_error::<ExploreError>("materialize a crash state in", dir))?;
        let pool = dir.join("pool");
        std::fs::remove_dir_all(&pool).map_err(file_error::<ExploreError>("remove", &pool))
    }
}

/// A state whose files are kept.
struct KeptState {
    dir_name: String,
    name: StateName,
    text: String,
}

impl KeptState {
    /// The state that a finding shows. `number`: that of the finding on the screen.
    fn of_finding(number: usize, finding: &Finding) -> Option<KeptState> {
        let dir_name = format!("{number}-{}-{}", finding.cause, finding.outcome);
        let text = format!("finding: {} -> {}\nrepeat: {}\n", finding.cause, finding.outcome, finding.repeat);
        Some(KeptState { dir_name, name: StateName::parse(&finding.state)?, text })
    }
}
