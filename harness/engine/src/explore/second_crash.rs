//! Two crashes in a row: records the recovery from a crash state and explores the crash states of that
//! recovery.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use scenarios::Outcome;

use super::error::ExploreError;
use super::explore_config::ExploreConfig;
use super::explore_progress::ExploreProgress;
use super::pipeline::{ExploreResult, SECOND_STATE_OPTION, explore};
use super::record::{FirstCrash, KeptRecording};
use super::replay::{MaterializePlace, TriedState, materialize};
use super::report::{describe_state, name_of_state};
use super::states::{CrashKind, StateName, Witness};
use crate::file_error::file_error;
use crate::sandbox::remove_tree;

/// How many operations a second has in the modification times of crash states.
const OPERATIONS_PER_SECOND: u32 = 100;
/// At most this many first crash states are used.
const MAX_FIRST_STATES: usize = 6;

/// The exploration of the recovery from one crash state.
pub struct SecondCrash {
    /// Which first crash the recovery is from, in one line.
    pub after: String,
    /// The crash states of the recovery.
    pub result: ExploreResult,
}

/// The explorations of some recoveries.
#[derive(Default)]
pub struct SecondCrashes {
    /// One for each recovery that changed a file.
    pub explored: Vec<SecondCrash>,
    /// How many recoveries were not explored, because the exploration was interrupted or its time was over.
    pub untried: usize,
    /// Whether its time was over.
    pub is_late: bool,
    /// How many recoveries were not explored, because they failed or exceeded their time limit while they were
    /// recorded.
    pub unrecorded: usize,
}

/// Explores the recoveries from a few crash states of `first`. Leaves out recoveries that change no file.
///
/// # Errors
/// Those of [`explore`] except `NothingRecorded` and `BaselineFailed`; or a directory or a file cannot be written.
pub fn explore_second_crashes(
    config: &ExploreConfig,
    first: &ExploreResult,
    report: &(dyn Fn(ExploreProgress) + Sync),
) -> Result<SecondCrashes, ExploreError> {
    let mut results = SecondCrashes::default();
    let chosen = choose_first_states(&first.tried);
    let count = chosen.len();
    let mut warm = first.warm.clone();
    for (number, tried) in chosen.into_iter().enumerate() {
        if config.replay.is_over() {
            results.untried = count - number;
            results.is_late = !(config.replay.cancelled)();
            break;
        }
        let Some(witness) = tried.state.witnesses.get(&CrashKind::Process) else { continue };
        let name = name_of_state(&first.recording, CrashKind::Process, &witness.candidate);
        let after = describe_state(&first.recording, &tried.state);
        report(ExploreProgress::SecondCrash { number: number + 1, count, after: after.clone() });
        let dir = config.replay.work_dir.join(format!("second-{number}"));
        let mut second_config = config_after(config, first, witness, &name, &dir)?;
        second_config.replay.warm = warm.clone();
        match explore(&second_config, report) {
            Ok(result) => {
                warm = result.warm.clone();
                results.explored.push(SecondCrash { after, result });
            }
            // A recovery that changes no file has no crash states.
            Err(ExploreError::NothingRecorded { .. }) => {
                if let Some(name) = config.second_state.as_ref().map(StateName::to_string) {
                    return Err(ExploreError::RecordingDiffers { option: SECOND_STATE_OPTION, name });
                }
            }
            // The results so far count.
            Err(_) if (config.replay.cancelled)() => {
                results.untried = count - number;
                break;
            }
            Err(ExploreError::BaselineFailed(_)) => results.unrecorded += 1,
            Err(error) => return Err(error),
        }
        // The results hold everything that is needed.
        remove_tree(&dir)?;
    }
    Ok(results)
}

/// Materializes the files of a first crash below `dir`, and returns the configuration that explores the recovery
/// from them. `name`: that of the first crash.
///
/// # Errors
/// A directory or a file cannot be written.
fn config_after(
    config: &ExploreConfig,
    first: &ExploreResult,
    witness: &Witness,
    name: &StateName,
    dir: &Path,
) -> Result<ExploreConfig, ExploreError> {
    let base = dir.join("after-crash");
    let dir_names: Vec<String> = (0..config.replay.watched_dirs.len()).map(|root| root.to_string()).collect();
    let dirs: Vec<PathBuf> = dir_names.iter().map(|name| base.join(name)).collect();
    let sandboxes = dir.join("sandboxes");
    for new_dir in dirs.iter().chain([&sandboxes]) {
        std::fs::create_dir_all(new_dir).map_err(file_error::<ExploreError>("create", new_dir))?;
    }
    let began_unix_s = config.replay.began_unix_s;
    let place = MaterializePlace { base: base.clone(), dir_names, began_unix_s };
    materialize(&first.recording, &witness.candidate, place)
        .map_err(file_error::<ExploreError>("materialize a crash state in", &base))?;
    let mut second_config = match first.kept {
        Some(KeptRecording::Kept) => {
            ExploreConfig { report: config.report.with_kept_recording(), ..config.clone() }
        }
        _ => config.clone(),
    }
    .after_first_crash(name, &sandboxes);
    second_config.record.command = config.replay.resume.clone();
    second_config.judge.has_several_jobs = first.has_several_jobs;
    second_config.record.time_limit = Some(config.replay.timeout);
    // The files of the second crash are newer than those of the first.
    second_config.replay.began_unix_s += 1 + i64::from(witness.candidate.op_count / OPERATIONS_PER_SECOND);
    second_config.record.first_crash = Some(FirstCrash {
        dirs,
        lower_layers: first.recording.lower_layers.clone(),
        acknowledged: witness.acknowledged,
    });
    Ok(second_config)
}

/// How many states there are after process crashes whose recovery ended with exit code 0. Each
/// could crash too.
pub fn recovered_kills(first: &ExploreResult) -> u64 {
    first.tried.iter().filter(|tried| is_recovered_kill(tried)).count() as u64
}

fn is_recovered_kill(tried: &TriedState) -> bool {
    let outcome = tried.outcomes.get(&CrashKind::Process);
    matches!(outcome, Some(Outcome::Recovered | Outcome::NotJudged))
}

/// States after process crashes whose recovery ended with exit code 0, with crash points far apart. Whether the
/// recovery is right may not be known.
fn choose_first_states(tried: &[TriedState]) -> Vec<&TriedState> {
    let mut recovered: Vec<&TriedState> = tried.iter().filter(|tried| is_recovered_kill(tried)).collect();
    recovered.sort_by_key(|tried_state| tried_state.state.candidate().op_count);
    let count = recovered.len();
    let chosen: BTreeSet<usize> =
        (1..=MAX_FIRST_STATES).map(|nth| nth * count / (MAX_FIRST_STATES + 1)).collect();
    chosen.into_iter().filter_map(|index| recovered.get(index).copied()).collect()
}
