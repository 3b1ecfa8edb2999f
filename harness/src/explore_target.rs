//! `explore --target`: prepares the trainer of a target file, and turns the target file into what `explore`
//! needs to know.

use std::collections::BTreeMap;
use std::path::Path;

use scenarios::{SubmittedFile, TargetFile};

use crate::args::ExploreArgs;
use crate::build_display::on_build;
use crate::error::CliError;
use crate::explore_options::{PreparedExploration, parse_consumed, parse_state, scope};
use crate::host_access_options::{LocatedTarget, check_apart, host_access};
use crate::option_error::OptionError;
use crate::scenario_library;
use engine::explore::{JudgeSpec, RECORDING_FACTOR};
use engine::file_error::file_error;
use engine::plan::Workload;
use engine::run::prepared_root;
use engine::sandbox::runs_path;
use engine::target::{ProgramError, Trainer, check_command_programs, find_program};

/// Number of samples in the data file that is submitted to the trainer.
const SAMPLE_COUNT: u32 = 64;
/// Seed for the data and for the trainer.
const SEED: u64 = 1;

/// Prepares a root of the trainer in `dir`, an existing, empty directory.
///
/// # Errors
/// If the target or an option cannot be used, or the target cannot be prepared.
pub(crate) fn prepare_target(
    args: &ExploreArgs,
    name: &str,
    dir: &Path,
) -> Result<PreparedExploration, CliError> {
    let (file, target_dir) = scenario_library::load_target(name)?;
    let program = find_program(file.program(), &target_dir, &on_build)?;
    let located = LocatedTarget { file: &file, dir: &target_dir };
    let host_access = host_access(&args.host_access, Some(located))?;
    check_command_programs(&file).map_err(ProgramError::from)?;
    let settings = guard_off_settings(&file, args.without.as_deref())?;
    let root = dir.join("root");
    std::fs::create_dir_all(&root).map_err(file_error::<CliError>("create", &root))?;
    check_apart(&host_access, &[runs_path()])?;
    // Without a way to submit data, none is generated.
    let kind = file.generate().keys().next().filter(|_| file.submit().is_some());
    let generated =
        |kind: &String| SubmittedFile::Generated { kind: kind.clone(), samples: SAMPLE_COUNT, length: None };
    let submit = kind.map(generated).into_iter().collect();
    let workload = Workload { seed: SEED, settings, submit, mounts: Vec::new(), gpu: None };
    let visible_root =
        prepared_root(&dir.join("preparation"), &root, &file, &program, &host_access, &workload)?;
    let settings = &workload.settings;
    let trainer = Trainer {
        file: &file,
        program: &program,
        root: &visible_root,
        seed: SEED,
        settings,
        environment: &[],
    };
    let announces = file.announces();
    let saved_pattern = announces.saved().cloned();
    let judge = JudgeSpec {
        saved: saved_pattern.clone(),
        resumed: announces.resumed().cloned(),
        step: Some(announces.step().clone()),
        consumed: parse_consumed(args.consumed.as_deref())?,
        same: file.same().cloned(),
        refused_exits: file.refused_exits().to_vec(),
        has_several_jobs: false,
    };
    Ok(PreparedExploration {
        watched_dirs: vec![visible_root.clone()],
        originals: Some(vec![root]),
        host_access,
        saved_pattern,
        judge,
        scope: scope(args),
        only_state: parse_state(args)?,
        command: trainer.start(),
        resume: trainer.resume(),
        check: trainer.verify(),
        timeout: file.finish(),
        // The root has no name outside of the sandbox.
        unfollowed: Vec::new(),
        record_timeout: args.record_timeout.or(Some(file.finish() * RECORDING_FACTOR)),
    })
}

/// The settings that remove the guard.
fn guard_off_settings(
    file: &TargetFile,
    guard: Option<&str>,
) -> Result<BTreeMap<String, String>, OptionError> {
    let Some(guard) = guard else { return Ok(BTreeMap::new()) };
    file.guards().get(guard).cloned().ok_or_else(|| OptionError::UnknownGuard {
        guard: guard.into(),
        target: file.id().into(),
        known: file.guards().keys().cloned().collect(),
    })
}
