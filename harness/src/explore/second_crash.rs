//! Two crashes in a row: the recovery from a state is recorded in turn, and its own crash states are tried.

use std::collections::BTreeSet;
use std::path::PathBuf;

use scenarios::Outcome;

use super::enumerate::{CrashKind, CrashState};
use super::materialize::materialize;
use super::pipeline::{ExploreProgress, ExploreResult, TriedState, explore};
use super::{ExploreConfig, ExploreError};

/// States whose recovery is looked into.
const MAX_FIRST_STATES: usize = 6;

/// The states of which the recovery was explored, with what was found; recoveries that change no file are left out.
pub fn explore_second_crashes(
    orders: &ExploreConfig,
    first: &ExploreResult,
    report: &(dyn Fn(ExploreProgress) + Sync),
) -> Result<Vec<(CrashState, ExploreResult)>, ExploreError> {
    let mut found = Vec::new();
    for (number, one) in choose_first_states(&first.tried).into_iter().enumerate() {
        if (orders.cancelled)() {
            break;
        }
        let Some((_, way)) = one.state.strictest_witness() else { continue };
        let dir = orders.work_dir.join(format!("second-{number}"));
        let base = dir.join("left");
        let names: Vec<String> = (0..orders.watched_dirs.len()).map(|root| root.to_string()).collect();
        let folders: Vec<PathBuf> = names.iter().map(|name| base.join(name)).collect();
        for folder in folders.iter().chain([&dir.join("rooms")]) {
            std::fs::create_dir_all(folder).map_err(ExploreError::file("create", folder))?;
        }
        materialize(&first.recording, &way.candidate, (&base, names), orders.began_unix_s)
            .map_err(ExploreError::file("lay out a state in", &base))?;
        let again = ExploreConfig {
            after_crash: Some((folders, way.acknowledged)),
            command: orders.resume.clone(),
            work_dir: dir.join("rooms"),
            ..orders.clone()
        };
        match explore(&again, report) {
            Ok(explored) => found.push((one.state.clone(), explored)),
            // A recovery that changes no file has no crash states.
            Err(ExploreError::NothingRecorded) => {}
            Err(error) => return Err(error),
        }
        // Only what was found is kept of it.
        std::fs::remove_dir_all(&dir).map_err(ExploreError::file("remove", &dir))?;
    }
    Ok(found)
}

/// Kills that were come back from, far apart.
fn choose_first_states(tried: &[TriedState]) -> Vec<&TriedState> {
    let mut kills: Vec<&TriedState> = tried
        .iter()
        .filter(|one| one.outcomes.get(&CrashKind::Process) == Some(&Outcome::Recovered))
        .collect();
    kills.sort_by_key(|one| one.state.candidate().op_count);
    let count = kills.len();
    let at: BTreeSet<usize> =
        (1..=MAX_FIRST_STATES).map(|nth| nth * count / (MAX_FIRST_STATES + 1)).collect();
    at.into_iter().filter_map(|at| kills.get(at).copied()).collect()
}
