//! What the expectations of a scenario ask for: lines and endings while the target runs, its own check and its files at the end.

use std::path::Path;
use std::time::{Duration, Instant};

use regex::Regex;
use scenarios::{Expectation, Fact, Probed, Scenario};

use crate::run::RunError;
use crate::run::trial_env::TrialEnv;

/// How long the target's own check may take.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a tree of processes may take to end.
const PROCESS_EXIT_TIMEOUT: Duration = Duration::from_millis(500);
/// Files looked into for a pattern are read up to this many bytes.
const MAX_SEARCHED_BYTES: u64 = 1 << 20;

/// When a question is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeTime {
    /// Of files as a crash left them.
    BeforeResume,
    AtEnd,
}

/// The answer, for a fact that has to be asked for then; none for those that the events tell.
pub(super) fn evaluate(
    stage: &TrialEnv<'_>,
    expectation: &Expectation,
    when: ProbeTime,
) -> Result<Option<Probed>, RunError> {
    let due = match &expectation.fact {
        Fact::VerifiesBeforeResume | Fact::Files { before_resume: true, .. } => ProbeTime::BeforeResume,
        _ => ProbeTime::AtEnd,
    };
    if due != when {
        return Ok(None);
    }
    let answer = match &expectation.fact {
        Fact::Verifies | Fact::VerifiesBeforeResume => verify(stage)?,
        Fact::LeavesNoProcess => leaves_no_process(stage),
        Fact::Files { matching, containing, min, max, .. } => {
            let count = count_files(&stage.sandbox.host_path_in_root(Path::new("")), &|path, file| {
                matching.is_match(path) && containing.as_ref().is_none_or(|pattern| contains(file, pattern))
            });
            (count >= *min && max.is_none_or(|max| count <= max), format!("{count} files"))
        }
        _ => return Ok(None),
    };
    Ok(Some(Probed { probe: expectation.text.clone(), held: answer.0, found: answer.1 }))
}

/// The end of a tree takes a moment; what lives longer than that was left behind.
fn leaves_no_process(stage: &TrialEnv<'_>) -> (bool, String) {
    let until = Instant::now() + PROCESS_EXIT_TIMEOUT;
    loop {
        let left = stage.sandbox.processes();
        if left.is_empty() || Instant::now() > until {
            let names: Vec<String> =
                left.iter().map(|process| format!("{} ({})", process.name, process.pid_inside)).collect();
            return (left.is_empty(), format!("{} processes left: {}", left.len(), names.join(", ")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn verify(stage: &TrialEnv<'_>) -> Result<(bool, String), RunError> {
    let Some(launch) = stage.trainer().verify() else {
        return Ok((false, "the target file has no `verify` command".into()));
    };
    let answer = stage.run_command(&launch, VERIFY_TIMEOUT)?;
    Ok((answer.is_success(), format!("{}: {}", answer.ending(), answer.text)))
}

/// Counts files below `folder`, symbolic links not followed; `wanted` gets the path below the root, and the file's.
fn count_files(folder: &Path, wanted: &dyn Fn(&Path, &Path) -> bool) -> u64 {
    let mut found = 0;
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() => {
                    found += u64::from(wanted(path.strip_prefix(folder).unwrap_or(&path), &path))
                }
                _ => {}
            }
        }
    }
    found
}

fn contains(file: &Path, pattern: &Regex) -> bool {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read =
        std::fs::File::open(file).and_then(|file| file.take(MAX_SEARCHED_BYTES).read_to_end(&mut bytes));
    read.is_ok() && pattern.is_match(&String::from_utf8_lossy(&bytes))
}

/// Exit codes that are expected of a target that was asked to end, each with its expectation's text.
pub(super) fn expected_exit_codes(scenario: &Scenario) -> Vec<(String, Vec<i32>)> {
    let codes = scenario.expect().iter().filter_map(|expectation| match &expectation.fact {
        Fact::EndsWith(codes) => Some((expectation.text.clone(), codes.clone())),
        _ => None,
    });
    codes.collect()
}

/// Lines that the scenario's expectations and faults ask for.
pub(super) fn requested_lines(scenario: &Scenario) -> Vec<Regex> {
    let says = scenario.expect().iter().filter_map(|expectation| match &expectation.fact {
        Fact::Output(pattern) => Some(pattern.clone()),
        _ => None,
    });
    let landed = scenario.method().iter().filter_map(|fault| fault.effective_if_output.clone());
    says.chain(landed).collect()
}
