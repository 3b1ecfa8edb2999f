//! What a target file says, as an expedition's orders: its root is prepared in a room, and then watched.

use std::collections::BTreeMap;
use std::path::Path;

use scenarios::{SubmittedFile, TargetFile};

use crate::cli::args::ExploreArgs;
use crate::cli::explore::{PreparedExploration, parse_state, scope};
use crate::cli::scenario_library;
use crate::explore::OutputOracle;
use crate::plan::Workload;
use crate::run::prepared_root;
use crate::target::{Trainer, find_program};

/// Samples of the data that is handed in.
const SAMPLE_COUNT: u32 = 64;
const SEED: u64 = 1;

/// Prepares a root in `dir`, an existing, empty folder. `Err`: what is wrong, and what to do.
pub(super) fn prepare_target(
    args: &ExploreArgs,
    name: &str,
    dir: &Path,
) -> Result<PreparedExploration, String> {
    let (file, beside) = scenario_library::load_target(name).map_err(|error| error.to_string())?;
    let program = find_program(file.program(), &beside).map_err(|error| error.to_string())?;
    let settings = guard_off_settings(&file, args.without.as_deref())?;
    let root = dir.join("root");
    std::fs::create_dir_all(&root).map_err(|error| format!("creating `{}`: {error}", root.display()))?;
    // Data that can't be handed in is not made.
    let kind = file.generate().keys().next().filter(|_| file.submit().is_some());
    let made =
        |kind: &String| SubmittedFile::Generated { kind: kind.clone(), samples: SAMPLE_COUNT, length: None };
    let submit = kind.map(made).into_iter().collect();
    let workload = Workload { seed: SEED, settings, submit, mounts: Vec::new(), gpu: None };
    prepared_root(&dir.join("preparation"), &root, (&file, &program), &workload)
        .map_err(|error| error.to_string())?;
    let settings = &workload.settings;
    let trainer =
        Trainer { file: &file, program: &program, root: &root, seed: SEED, settings, environment: &[] };
    let announces = file.announces();
    let ear = OutputOracle {
        saved: announces.saved().cloned(),
        resumed: announces.resumed().cloned(),
        step: Some(announces.step().clone()),
        consumed: None,
        same: file.same().cloned(),
        refused_exits: file.refused_exits().to_vec(),
    };
    Ok(PreparedExploration {
        watched_dirs: vec![root.clone()],
        created_dirs: Vec::new(),
        oracle: ear,
        scope: scope(args),
        only_state: parse_state(args)?,
        command: trainer.start(),
        resume: trainer.resume(),
        check: trainer.verify(),
        timeout: file.finish(),
    })
}

fn guard_off_settings(file: &TargetFile, guard: Option<&str>) -> Result<BTreeMap<String, String>, String> {
    let Some(guard) = guard else { return Ok(BTreeMap::new()) };
    file.guards().get(guard).cloned().ok_or_else(|| {
        let known: Vec<&str> = file.guards().keys().map(String::as_str).collect();
        format!("--without `{guard}`: target `{}` has no such guard; it has: {}", file.id(), known.join(", "))
    })
}
