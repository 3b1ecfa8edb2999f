//! Finds a target's program. If it is a member of the workspace that the harness was built in, and the
//! harness runs under cargo, builds it first. Knows nothing of what the program does.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::cargo_build::run_cargo;
use super::executable::{ExecutableError, check_executable, is_executable, not_on_path};
use crate::sandbox::is_interrupted;

/// Why the program cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// No program of this name.
    #[error(
        "`{name}` is neither in `{directory}` nor on PATH; \
         build it (`cargo build --release -p {package}`) or give a path in the target file",
        directory = .directory.display()
    )]
    NotFound { name: String, package: String, directory: PathBuf },
    /// No library of this name.
    #[error(
        "`{name}` is not in `{directory}`; build it (`cargo build --release -p {package}`)",
        directory = .directory.display()
    )]
    NoLibrary { name: String, package: String, directory: PathBuf },
    /// There is no such program outside of the workspace.
    #[error(transparent)]
    Executable(#[from] ExecutableError),
    /// The command was interrupted while cargo built it.
    #[error("interrupted while cargo built `{name}`")]
    Interrupted { name: String },
    /// Cargo could not be started to build it.
    #[error("could not build `{name}`")]
    CargoNotStarted { name: String, source: std::io::Error },
    /// Cargo could not build it, and wrote this.
    #[error("could not build `{name}`: {output}")]
    NotBuilt { name: String, output: String },
}

/// A file that one package of the workspace builds.
pub(crate) struct WorkspaceMember<'a> {
    /// Name of the package.
    pub(crate) package: &'a str,
    /// Name of the built file.
    pub(crate) file: OsString,
    /// Files and directories of the workspace that it is built from.
    pub(crate) sources: &'a [&'a str],
    /// It is executable and may also be found on PATH.
    pub(crate) is_program: bool,
}

/// Finds the program. A bare name is searched next to the harness's own binary, then on PATH. A path is
/// relative to `relative_to`, the directory of the target file.
///
/// # Errors
/// If there is no such executable file, or it cannot be built.
pub fn find_program(program: &Path, relative_to: &Path) -> Result<PathBuf, ProgramError> {
    if program.components().count() > 1 {
        return Ok(check_executable(relative_to.join(program))?);
    }
    let package = program.display().to_string();
    let sources = ["src", "kernels", "build.rs", "Cargo.toml"].map(|part| format!("{package}/{part}"));
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    find_or_build(&WorkspaceMember {
        package: &package,
        file: program.into(),
        sources: &sources,
        is_program: true,
    })
}

/// Finds the built file next to the harness's own binary or, for a program, on PATH.
///
/// # Errors
/// If there is no such file, or it cannot be built.
pub(crate) fn find_or_build(member: &WorkspaceMember<'_>) -> Result<PathBuf, ProgramError> {
    let own_path = std::env::current_exe().unwrap_or_default();
    let directory = own_path.parent().map(Path::to_path_buf).unwrap_or_default();
    // Test programs are one directory deeper than the binaries.
    let dirs = [directory.clone(), directory.parent().map(Path::to_path_buf).unwrap_or_default()];
    build_if_member(member, &dirs)?;
    let on_path = std::env::var_os("PATH").filter(|_| member.is_program).unwrap_or_default();
    let candidates =
        dirs.into_iter().chain(std::env::split_paths(&on_path)).map(|dir| dir.join(&member.file));
    candidates.into_iter().find(|path| is_usable(path, member)).ok_or_else(|| {
        let (name, package) = (member.file.to_string_lossy().into_owned(), member.package.to_owned());
        match member.is_program {
            true if workspace_of(member).is_none() => not_on_path(&member.file).into(),
            true => ProgramError::NotFound { name, package, directory },
            false => ProgramError::NoLibrary { name, package, directory },
        }
    })
}

fn is_usable(path: &Path, member: &WorkspaceMember<'_>) -> bool {
    if member.is_program { is_executable(path) } else { path.is_file() }
}

/// Under `cargo run`, cargo has built only the harness. Builds the member too, unless an existing file is up
/// to date.
fn build_if_member(member: &WorkspaceMember<'_>, dirs: &[PathBuf]) -> Result<(), ProgramError> {
    let (Some(cargo), Some(workspace)) = (std::env::var_os("CARGO"), workspace_of(member)) else {
        return Ok(());
    };
    if dirs.iter().any(|dir| is_up_to_date(&dir.join(&member.file), &workspace, member)) {
        return Ok(());
    }
    let mut build = Command::new(cargo);
    build.current_dir(workspace).args(["build", "--quiet", "-p", member.package]).stdin(Stdio::null());
    if dirs.iter().any(|dir| dir.ends_with("release")) {
        build.arg("--release");
    }
    let name = member.package.to_owned();
    match run_cargo(&mut build) {
        Err(source) => Err(ProgramError::CargoNotStarted { name, source }),
        Ok(built) if built.status.success() => Ok(()),
        Ok(_) if is_interrupted() => Err(ProgramError::Interrupted { name }),
        Ok(built) => Err(ProgramError::NotBuilt { name, output: built.stderr }),
    }
}

/// Whether no source of the member is newer than the built file.
fn is_up_to_date(file: &Path, workspace: &Path, member: &WorkspaceMember<'_>) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let Some(built) = modified(file) else { return false };
    let mut paths: Vec<PathBuf> = member.sources.iter().map(|source| workspace.join(source)).collect();
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            paths.extend(entries.map(|entry| entry.path()));
        } else if modified(&path).is_some_and(|changed| changed > built) {
            return false;
        }
    }
    true
}

/// The workspace in which this harness was built, if it still exists and has the member.
fn workspace_of(member: &WorkspaceMember<'_>) -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.parent()?;
    member.sources.iter().any(|source| workspace.join(source).exists()).then(|| workspace.to_path_buf())
}
