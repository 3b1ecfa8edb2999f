//! Two crashes in a row: the recovery from a state is recorded in turn, and its own crash states are tried.

use std::collections::BTreeSet;
use std::path::PathBuf;

use scenarios::Outcome;

use super::expedition::{Explored, Progress, Tried, explore};
use super::layout::lay_out;
use super::states::{Crash, State};
use super::{ExploreError, Orders};

/// States whose recovery is looked into.
const STATES: usize = 6;

/// The states of which the recovery was explored, with what was found; recoveries that change no file are left out.
pub fn second(
    orders: &Orders,
    first: &Explored,
    report: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<(State, Explored)>, ExploreError> {
    let mut found = Vec::new();
    for (number, one) in chosen(&first.tried).into_iter().enumerate() {
        if (orders.cancelled)() {
            break;
        }
        let Some((_, way)) = one.state.hardest() else { continue };
        let dir = orders.dir.join(format!("second-{number}"));
        let base = dir.join("left");
        let names: Vec<String> = (0..orders.watch.len()).map(|root| root.to_string()).collect();
        let folders: Vec<PathBuf> = names.iter().map(|name| base.join(name)).collect();
        for folder in folders.iter().chain([&dir.join("rooms")]) {
            std::fs::create_dir_all(folder).map_err(ExploreError::file("create", folder))?;
        }
        lay_out(&first.recording, &way.candidate, (&base, names), orders.began)
            .map_err(ExploreError::file("lay out a state in", &base))?;
        let again = Orders {
            after: Some((folders, way.promised)),
            command: orders.resume.clone(),
            dir: dir.join("rooms"),
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
fn chosen(tried: &[Tried]) -> Vec<&Tried> {
    let mut kills: Vec<&Tried> =
        tried.iter().filter(|one| one.outcomes.get(&Crash::Process) == Some(&Outcome::Recovered)).collect();
    kills.sort_by_key(|one| one.state.candidate().k);
    let count = kills.len();
    let at: BTreeSet<usize> = (1..=STATES).map(|nth| nth * count / (STATES + 1)).collect();
    at.into_iter().filter_map(|at| kills.get(at).copied()).collect()
}
