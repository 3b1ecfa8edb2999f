//! `check`: are these files right? All errors of each, with carets.

use std::path::{Path, PathBuf};

use scenarios::{InvalidFile, Scenario, TargetFile};

use crate::cli::exit::Exit;
use crate::cli::library::{self, LibraryError};
use crate::cli::{diagnose, print};

pub(super) fn check(files: &[PathBuf]) -> Exit {
    Exit::of_all(files.iter().map(|file| one(file)))
}

fn one(path: &Path) -> Exit {
    let source = match library::from_file(path) {
        Ok(source) => source,
        Err(error) => return diagnose::library_error(&error),
    };
    match checked(&source) {
        Ok(what) => {
            print::line(&format!("{}: {what}", path.display()));
            Exit::Survived
        }
        Err(error) => diagnose::library_error(&error),
    }
}

fn checked(source: &library::Source) -> Result<String, LibraryError> {
    let file = source.path.display().to_string();
    let invalid = |error: InvalidFile| LibraryError::Invalid(vec![error]);
    if is_target(&source.text) {
        let target = TargetFile::parse(&source.text, &file).map_err(invalid)?;
        return Ok(format!("target `{}` is right", target.id()));
    }
    let scenario = Scenario::parse(&source.text, &file).map_err(invalid)?;
    library::check_target(&scenario, &source.path)?;
    Ok(format!("scenario `{}` is right", scenario.id()))
}

/// Only target files say how a trainer announces itself.
fn is_target(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("announces:"))
}
