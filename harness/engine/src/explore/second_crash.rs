//! Two crashes in a row: records the recovery from a crash state and explores the crash states of that
//! recovery.

use std::collections::BTreeSet;
use std::path::PathBuf;

use scenarios::Outcome;

use super::enumerate::{CrashKind, CrashState};
use super::materialize::materialize;
use super::pipeline::{ExploreProgress, ExploreResult, TriedState, explore};
use super::{ExploreConfig, ExploreError};

/// At most this many first crash states are used.
const MAX_FIRST_STATES: usize = 6;

/// Explores the recoveries from a few crash states of `first`. Returns those states with the results; leaves
/// out recoveries that change no file.
///
/// # Errors
/// Those of [`explore`] except `NothingRecorded`; or a directory or a file cannot be written.
pub fn explore_second_crashes(
    config: &ExploreConfig,
    first: &ExploreResult,
    report: &(dyn Fn(ExploreProgress) + Sync),
) -> Result<Vec<(CrashState, ExploreResult)>, ExploreError> {
    let mut results = Vec::new();
    for (number, tried) in choose_first_states(&first.tried).into_iter().enumerate() {
        if (config.cancelled)() {
            break;
        }
        let Some((_, witness)) = tried.state.strictest_witness() else { continue };
        let dir = config.work_dir.join(format!("second-{number}"));
        let base = dir.join("after-crash");
        let names: Vec<String> = (0..config.watched_dirs.len()).map(|root| root.to_string()).collect();
        let dirs: Vec<PathBuf> = names.iter().map(|name| base.join(name)).collect();
        for new_dir in dirs.iter().chain([&dir.join("sandboxes")]) {
            std::fs::create_dir_all(new_dir).map_err(ExploreError::file("create", new_dir))?;
        }
        materialize(&first.recording, &witness.candidate, (&base, names), config.began_unix_s)
            .map_err(ExploreError::file("materialize a crash state in", &base))?;
        let second_config = ExploreConfig {
            after_crash: Some((dirs, witness.acknowledged)),
            command: config.resume.clone(),
            work_dir: dir.join("sandboxes"),
            ..config.clone()
        };
        match explore(&second_config, report) {
            Ok(result) => results.push((tried.state.clone(), result)),
            // A recovery that changes no file has no crash states.
            Err(ExploreError::NothingRecorded) => {}
            Err(error) => return Err(error),
        }
        // The results hold everything that is needed.
        std::fs::remove_dir_all(&dir).map_err(ExploreError::file("remove", &dir))?;
    }
    Ok(results)
}

/// States after process crashes from which the target recovered, with crash points far apart.
fn choose_first_states(tried: &[TriedState]) -> Vec<&TriedState> {
    let mut recovered: Vec<&TriedState> = tried
        .iter()
        .filter(|tried_state| tried_state.outcomes.get(&CrashKind::Process) == Some(&Outcome::Recovered))
        .collect();
    recovered.sort_by_key(|tried_state| tried_state.state.candidate().op_count);
    let count = recovered.len();
    let chosen: BTreeSet<usize> =
        (1..=MAX_FIRST_STATES).map(|nth| nth * count / (MAX_FIRST_STATES + 1)).collect();
    chosen.into_iter().filter_map(|index| recovered.get(index).copied()).collect()
}
