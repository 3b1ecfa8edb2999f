//! Answers the expectations that the events of a run cannot answer: the target's own check, its files, its
//! processes. Also lists the lines and exit codes that a run has to record for the expectations. Gives no
//! verdict.

use std::path::Path;
use std::time::{Duration, Instant};

use regex::Regex;
use scenarios::{Expectation, Fact, Probed, Scenario};

use crate::run::RunError;
use crate::run::trial_env::TrialEnv;

/// How long the target's `verify` command may take.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the target's remaining processes may take to exit.
const PROCESS_EXIT_TIMEOUT: Duration = Duration::from_millis(500);
/// How many bytes of a file are searched for a pattern.
const MAX_SEARCHED_BYTES: u64 = 1 << 20;

/// When an expectation is evaluated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeTime {
    /// On the files that a crash left, before the target is resumed.
    BeforeResume,
    /// After the last attempt, when every fault is reverted.
    AtEnd,
}

/// Evaluates the expectation if it is due at `time`. Returns `None` if it is not, or if the events answer it.
///
/// # Errors
/// If a command cannot be run in the sandbox.
pub(super) fn evaluate(
    env: &TrialEnv<'_>,
    expectation: &Expectation,
    time: ProbeTime,
) -> Result<Option<Probed>, RunError> {
    let due = match &expectation.fact {
        Fact::VerifiesBeforeResume | Fact::Files { before_resume: true, .. } => ProbeTime::BeforeResume,
        _ => ProbeTime::AtEnd,
    };
    if due != time {
        return Ok(None);
    }
    let (held, found) = match &expectation.fact {
        Fact::Verifies | Fact::VerifiesBeforeResume => verify(env)?,
        Fact::LeavesNoProcess => leaves_no_process(env),
        Fact::Files { matching, containing, min, max, .. } => {
            let count = count_files(&env.sandbox.host_path_in_root(Path::new("")), &|path, file| {
                matching.is_match(path) && containing.as_ref().is_none_or(|pattern| contains(file, pattern))
            });
            (count >= *min && max.is_none_or(|max| count <= max), format!("{count} files"))
        }
        _ => return Ok(None),
    };
    Ok(Some(Probed { probe: expectation.text.clone(), held, found }))
}

/// Processes may take a moment to exit. Those that live longer than [`PROCESS_EXIT_TIMEOUT`] were left
/// behind.
fn leaves_no_process(env: &TrialEnv<'_>) -> (bool, String) {
    let deadline = Instant::now() + PROCESS_EXIT_TIMEOUT;
    loop {
        let left = env.sandbox.processes();
        if left.is_empty() || Instant::now() > deadline {
            let names: Vec<String> =
                left.iter().map(|process| format!("{} ({})", process.name, process.pid_inside)).collect();
            return (left.is_empty(), format!("{} processes left: {}", left.len(), names.join(", ")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn verify(env: &TrialEnv<'_>) -> Result<(bool, String), RunError> {
    let Some(launch) = env.trainer().verify() else {
        return Ok((false, "the target file has no `verify` command".into()));
    };
    let output = env.run_command(&launch, VERIFY_TIMEOUT)?;
    Ok((output.is_success(), format!("{}: {}", output.ending(), output.text)))
}

/// Counts the files below `root` that are selected. Does not follow symbolic links. `is_selected` gets the
/// path relative to the root and the full path.
fn count_files(root: &Path, is_selected: &dyn Fn(&Path, &Path) -> bool) -> u64 {
    let mut count = 0;
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(path),
                Ok(kind) if kind.is_file() => {
                    count += u64::from(is_selected(path.strip_prefix(root).unwrap_or(&path), &path))
                }
                _ => {}
            }
        }
    }
    count
}

fn contains(file: &Path, pattern: &Regex) -> bool {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read =
        std::fs::File::open(file).and_then(|file| file.take(MAX_SEARCHED_BYTES).read_to_end(&mut bytes));
    read.is_ok() && pattern.is_match(&String::from_utf8_lossy(&bytes))
}

/// Exit codes expected after a SIGTERM, each with the text of its expectation.
pub(super) fn expected_exit_codes(scenario: &Scenario) -> Vec<(String, Vec<i32>)> {
    let codes = scenario.expect().iter().filter_map(|expectation| match &expectation.fact {
        Fact::EndsWith(codes) => Some((expectation.text.clone(), codes.clone())),
        _ => None,
    });
    codes.collect()
}

/// Patterns of the lines that the scenario's expectations and faults need.
pub(super) fn requested_lines(scenario: &Scenario) -> Vec<Regex> {
    let expected = scenario.expect().iter().filter_map(|expectation| match &expectation.fact {
        Fact::Output(pattern) => Some(pattern.clone()),
        _ => None,
    });
    let effective_if = scenario.method().iter().filter_map(|fault| fault.effective_if_output.clone());
    expected.chain(effective_if).collect()
}
