//! `check`: are these files right? All errors of each, with carets.

use std::path::{Path, PathBuf};

use scenarios::{InvalidFile, Scenario, TargetFile};

use crate::cli::exit::CommandExit;
use crate::cli::scenario_library::{self, LibraryError};
use crate::cli::{diagnostics, print};

pub(super) fn check(files: &[PathBuf]) -> CommandExit {
    CommandExit::worst(files.iter().map(|file| check_file(file)))
}

fn check_file(path: &Path) -> CommandExit {
    let source = match scenario_library::read_source(path) {
        Ok(source) => source,
        Err(error) => return diagnostics::print_library_error(&error),
    };
    match check_source(&source) {
        Ok(what) => {
            print::line(&format!("{}: {what}", path.display()));
            CommandExit::Success
        }
        Err(error) => diagnostics::print_library_error(&error),
    }
}

fn check_source(source: &scenario_library::LibrarySource) -> Result<String, LibraryError> {
    let file = source.path.display().to_string();
    let invalid = |error: InvalidFile| LibraryError::Invalid(vec![error]);
    if is_target_file(&source.text) {
        let target = TargetFile::parse(&source.text, &file).map_err(invalid)?;
        return Ok(format!("target `{}` is right", target.id()));
    }
    let scenario = Scenario::parse(&source.text, &file).map_err(invalid)?;
    scenario_library::check_target(&scenario, &source.path)?;
    Ok(format!("scenario `{}` is right", scenario.id()))
}

/// Only target files say how a trainer announces itself.
fn is_target_file(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("announces:"))
}
