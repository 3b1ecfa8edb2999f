//! `check`: reads scenario and target files and prints all errors of each file. Runs nothing.

use std::path::{Path, PathBuf};

use scenarios::{InvalidFile, Scenario, TargetFile};

use crate::error::CliError;
use crate::exit::CommandExit;
use crate::scenario_library::{self, LibraryError};
use crate::{diagnostics, print};

/// Checks each file on its own, so that an invalid file does not hide the errors of the next one.
pub(crate) fn check(files: &[PathBuf]) -> CommandExit {
    CommandExit::worst(files.iter().map(|file| check_file(file)))
}

fn check_file(path: &Path) -> CommandExit {
    match scenario_library::read_source(path).and_then(|source| check_source(&source)) {
        Ok(result) => {
            print::line(&format!("{}: {result}", path.display()));
            CommandExit::Success
        }
        Err(error) => {
            let error = CliError::from(error);
            diagnostics::print_failure(&error);
            error.exit()
        }
    }
}

fn check_source(source: &scenario_library::LibrarySource) -> Result<String, LibraryError> {
    let file = source.path.display().to_string();
    let invalid = |error: InvalidFile| LibraryError::Invalid(vec![error]);
    if is_target_file(&source.text) {
        let target = TargetFile::parse(&source.text, &file).map_err(invalid)?;
        return Ok(format!("target `{}` is valid", target.id()));
    }
    let scenario = Scenario::parse(&source.text, &file).map_err(invalid)?;
    scenario_library::check_target(&scenario, &source.path)?;
    Ok(format!("scenario `{}` is valid", scenario.id()))
}

/// The key `announces` is required in target files and unknown in scenarios.
fn is_target_file(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("announces:"))
}
