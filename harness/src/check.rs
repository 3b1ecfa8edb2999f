//! `check`: reads scenario and target files and prints all errors of each file. Runs nothing.

use std::path::{Path, PathBuf};

use scenarios::{InvalidFile, Scenario, TargetFile};

use crate::args::HostAccessArgs;
use crate::error::CliError;
use crate::exit::CommandExit;
use crate::host_access_options::{LocatedTarget, host_access};
use crate::scenario_library::{self, LibraryError};
use crate::{diagnostics, print};
use engine::file_error::chain;
use engine::target::{inherited_variables, is_program_available};

/// Checks each file on its own, so that an invalid file does not hide the errors of the next one.
pub(crate) fn check(files: &[PathBuf]) -> CommandExit {
    CommandExit::worst(files.iter().map(|file| check_file(file)))
}

fn check_file(path: &Path) -> CommandExit {
    match scenario_library::read_source(path).and_then(|source| check_source(&source)) {
        Ok(CheckedFile { result, notes }) => {
            print::line(&format!("{}: {result}", path.display()));
            notes.iter().for_each(|note| print::line(&format!("  note: {note}")));
            CommandExit::Success
        }
        Err(error) => {
            let error = CliError::from(error);
            diagnostics::print_failure(&error);
            error.exit()
        }
    }
}

/// What a valid file is, and what to know before it is run.
struct CheckedFile {
    result: String,
    notes: Vec<String>,
}

fn check_source(source: &scenario_library::LibrarySource) -> Result<CheckedFile, LibraryError> {
    let file = source.path.display().to_string();
    let invalid = |error: InvalidFile| LibraryError::Invalid(vec![error]);
    if is_target_file(&source.text) {
        let target = TargetFile::parse(&source.text, &file).map_err(invalid)?;
        let dir = source.path.parent().map(Path::to_path_buf).unwrap_or_default();
        let result = format!("target `{}` is valid", target.id());
        return Ok(CheckedFile { result, notes: machine_notes(LocatedTarget { file: &target, dir: &dir }) });
    }
    let scenario = Scenario::parse(&source.text, &file).map_err(invalid)?;
    let (target, dir) = scenario_library::check_target(&scenario, &source.path)?;
    let mut notes = machine_notes(LocatedTarget { file: &target, dir: &dir });
    if scenario_library::is_id_of_another_shipped(scenario.id(), &source.text) {
        notes.push(format!(
            "a shipped scenario has the id `{}` too; `run {0}` runs that one, and both cannot run at once",
            scenario.id()
        ));
    }
    Ok(CheckedFile { result: format!("scenario `{}` is valid", scenario.id()), notes })
}

/// What the target needs of the machine, and this one does not have.
fn machine_notes(target: LocatedTarget<'_>) -> Vec<String> {
    let LocatedTarget { file, dir } = target;
    let mut notes = Vec::new();
    if !is_program_available(file.program(), dir) {
        notes.push(format!("there is no program `{}` on this machine", file.program().display()));
    }
    let inherited = inherited_variables(file);
    for name in file.inherit().iter().filter(|name| !inherited.contains(name)) {
        notes.push(format!("`{name}` is not set here, so the target does not inherit it"));
    }
    if let Err(error) = host_access(&HostAccessArgs::default(), Some(target)) {
        notes.push(chain(&error));
    }
    notes
}

/// The key `announces` is required in target files and unknown in scenarios.
fn is_target_file(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("announces:"))
}
