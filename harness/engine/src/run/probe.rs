//! Answers the expectations that the events of a run cannot answer: the target's own check, its files, its
//! processes, its exit code. Gives no verdict.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use regex::Regex;
use scenarios::{Expectation, Fact, ProbeKind, Probed, Scenario};

use crate::run::error::RunError;
use crate::run::trial_env::TrialEnv;
use crate::sandbox::ProcessExit;

/// How long the target's `verify` command may take.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the target's remaining processes may take to exit.
const PROCESS_EXIT_TIMEOUT: Duration = Duration::from_millis(500);
/// How many bytes of a file are searched for a pattern.
const MAX_SEARCHED_BYTES: u64 = 1 << 20;
/// How many of the found files are named.
const MAX_NAMED_FILES: usize = 5;

/// When an expectation is evaluated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeTime {
    /// On the files that a crash left, before the target is resumed.
    BeforeResume,
    /// After the last attempt, when every fault is reverted.
    AtEnd,
}

/// What a probe found, and whether it is what the expectation states.
struct ProbeResult {
    held: bool,
    found: String,
}

/// Evaluates every expectation of the scenario that is due at `time` and that the events do not answer.
///
/// # Errors
/// If a command cannot be run in the sandbox.
pub(super) fn evaluate_due(
    env: &TrialEnv<'_>,
    scenario: &Scenario,
    time: ProbeTime,
) -> Result<Vec<Probed>, RunError> {
    let mut probed = Vec::new();
    for (index, expectation) in scenario.expect().iter().enumerate() {
        let Some(kind) = probe_kind(&expectation.fact) else { continue };
        if probe_time(&expectation.fact) == time
            && let Some(ProbeResult { held, found }) = evaluate(env, &expectation.fact)?
        {
            probed.push(Probed { expectation: index, kind, probe: expectation.text.clone(), held, found });
        }
    }
    Ok(probed)
}

/// What is examined for the fact. `None`: the other events answer it.
fn probe_kind(fact: &Fact) -> Option<ProbeKind> {
    match fact {
        Fact::Verifies => Some(ProbeKind::Verifies),
        Fact::VerifiesBeforeResume => Some(ProbeKind::VerifiesBeforeResume),
        Fact::EndsWith(_) | Fact::CommandsEndWith(_) => Some(ProbeKind::ExitCode),
        Fact::Answers { .. } => Some(ProbeKind::Answers),
        Fact::LeavesNoProcess => Some(ProbeKind::Processes),
        Fact::Files { .. } => Some(ProbeKind::Files),
        _ => None,
    }
}

fn probe_time(fact: &Fact) -> ProbeTime {
    match fact {
        Fact::VerifiesBeforeResume | Fact::Files { before_resume: true, .. } => ProbeTime::BeforeResume,
        _ => ProbeTime::AtEnd,
    }
}

/// Returns `None` for a fact that is answered elsewhere: by the events, or, for an exit code, when the target
/// exits.
fn evaluate(env: &TrialEnv<'_>, fact: &Fact) -> Result<Option<ProbeResult>, RunError> {
    Ok(match fact {
        Fact::Verifies | Fact::VerifiesBeforeResume => Some(verify(env)?),
        Fact::LeavesNoProcess => Some(leaves_no_process(env)),
        Fact::Files { matching, containing, min, max, writable_by_others, .. } => {
            let files = selected_files(&env.sandbox.host_path_in_root(Path::new("")), &|path, file| {
                matching.is_match(path)
                    && (!writable_by_others || is_writable_by_others(file))
                    && containing.as_ref().is_none_or(|pattern| contains(file, pattern))
            });
            let count = files.len() as u64;
            let held = count >= *min && max.is_none_or(|max| count <= max);
            Some(ProbeResult { held, found: describe_files(&files) })
        }
        _ => None,
    })
}

/// Processes may take a moment to exit. Those that live longer than [`PROCESS_EXIT_TIMEOUT`] were left
/// behind.
fn leaves_no_process(env: &TrialEnv<'_>) -> ProbeResult {
    let deadline = Instant::now() + PROCESS_EXIT_TIMEOUT;
    loop {
        let left = env.sandbox.processes();
        if left.is_empty() || Instant::now() > deadline {
            let names: Vec<String> =
                left.iter().map(|process| format!("{} ({})", process.name, process.pid_inside)).collect();
            let found = format!("{} processes left: {}", left.len(), names.join(", "));
            return ProbeResult { held: left.is_empty(), found };
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn verify(env: &TrialEnv<'_>) -> Result<ProbeResult, RunError> {
    let Some(launch) = env.trainer().verify() else {
        return Ok(ProbeResult { held: false, found: "the target file has no `verify` command".into() });
    };
    let output = env.run_command(&launch, VERIFY_TIMEOUT)?;
    let found = format!("{}: {}", output.ending(), output.text());
    Ok(ProbeResult { held: output.is_success(), found })
}

/// The number of files, and the first of their names.
fn describe_files(files: &BTreeSet<PathBuf>) -> String {
    let names: Vec<String> =
        files.iter().take(MAX_NAMED_FILES).map(|path| path.display().to_string()).collect();
    let more = files.len() - names.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    match files.len() {
        0 => "0 files".into(),
        1 => format!("1 file: {}", names.join("")),
        count => format!("{count} files: {}{more}", names.join(", ")),
    }
}

/// The files below `root` that are selected, relative to it. Does not follow symbolic links. `is_selected`
/// gets the path relative to the root and the full path.
fn selected_files(root: &Path, is_selected: &dyn Fn(&Path, &Path) -> bool) -> BTreeSet<PathBuf> {
    let mut selected = BTreeSet::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(path),
                Ok(kind) if kind.is_file() => {
                    let relative = path.strip_prefix(root).unwrap_or(&path);
                    if is_selected(relative, &path) {
                        selected.insert(relative.to_path_buf());
                    }
                }
                _ => {}
            }
        }
    }
    selected
}

fn is_writable_by_others(file: &Path) -> bool {
    file.symlink_metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o002 != 0)
}

fn contains(file: &Path, pattern: &Regex) -> bool {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read =
        std::fs::File::open(file).and_then(|file| file.take(MAX_SEARCHED_BYTES).read_to_end(&mut bytes));
    read.is_ok() && pattern.is_match(&String::from_utf8_lossy(&bytes))
}

/// Exit codes that the scenario expects: of the target after a signal that asks it to exit, or of the commands of
/// its method.
pub(super) struct ExitCodeProbe {
    /// Index of the expectation in the scenario.
    expectation: usize,
    text: String,
    codes: Vec<i32>,
}

impl ExitCodeProbe {
    /// One probe for each expectation of the target's exit code.
    pub(super) fn of_target(scenario: &Scenario) -> Vec<ExitCodeProbe> {
        ExitCodeProbe::all_of(scenario, |fact| match fact {
            Fact::EndsWith(codes) => Some(codes),
            _ => None,
        })
    }

    /// One probe for each expectation of the exit codes of commands.
    pub(super) fn of_commands(scenario: &Scenario) -> Vec<ExitCodeProbe> {
        ExitCodeProbe::all_of(scenario, |fact| match fact {
            Fact::CommandsEndWith(codes) => Some(codes),
            _ => None,
        })
    }

    fn all_of(scenario: &Scenario, codes_of: fn(&Fact) -> Option<&Vec<i32>>) -> Vec<ExitCodeProbe> {
        let expectations = scenario.expect().iter().enumerate();
        let probe = |(index, expectation): (usize, &Expectation)| {
            Some(ExitCodeProbe {
                expectation: index,
                text: expectation.text.clone(),
                codes: codes_of(&expectation.fact)?.clone(),
            })
        };
        expectations.filter_map(probe).collect()
    }

    /// Compares the expected codes with how the process exited.
    pub(super) fn evaluate(&self, exit: ProcessExit) -> Probed {
        Probed {
            expectation: self.expectation,
            kind: ProbeKind::ExitCode,
            probe: self.text.clone(),
            held: matches!(exit, ProcessExit::Exited(code) if self.codes.contains(&code)),
            found: exit.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_that_were_found_are_named_up_to_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let found = |root: &Path| describe_files(&selected_files(root, &|path, _| path.starts_with("queue")));
        assert_eq!(found(dir.path()), "0 files");
        std::fs::create_dir(dir.path().join("queue")).unwrap();
        std::fs::write(dir.path().join("other"), "").unwrap();
        for (number, expected) in [
            (1, "1 file: queue/1"),
            (2, "2 files: queue/1, queue/2"),
            (7, "7 files: queue/1, queue/2, queue/3, queue/4, queue/5 and 2 more"),
        ] {
            (1..=number)
                .for_each(|name| std::fs::write(dir.path().join(format!("queue/{name}")), "").unwrap());
            assert_eq!(found(dir.path()), expected);
        }
    }
}
