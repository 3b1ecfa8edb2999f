//! Finds a target's program. If it is a member of the workspace that the harness was built in, and the
//! harness runs under cargo, builds it first. Knows nothing of what the program does.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cargo_build::run_cargo;
use super::executable::{ExecutableError, check_executable, is_executable, not_on_path};
use crate::sandbox::is_interrupted;

/// Why the program cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// No program of this name.
    #[error("`{name}` is neither in `{directory}` nor on PATH; {advice}", directory = .directory.display())]
    NotFound { name: String, directory: PathBuf, advice: ProgramAdvice },
    /// No library of this name.
    #[error("`{name}` is not in `{directory}`; {advice}", directory = .directory.display())]
    NoLibrary { name: String, directory: PathBuf, advice: ProgramAdvice },
    /// There is no such program outside of the workspace.
    #[error(transparent)]
    Executable(#[from] ExecutableError),
    /// The command was interrupted while cargo built it.
    #[error("interrupted while cargo built `{name}`")]
    Interrupted { name: String },
    /// Cargo could not be started to build it.
    #[error("could not build `{name}`")]
    CargoNotStarted { name: String, source: std::io::Error },
    /// Cargo could not build it. All that cargo wrote has been passed on.
    #[error("could not build `{name}`: {reason}")]
    NotBuilt { name: String, reason: String },
}

/// What to do about a file that was not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramAdvice {
    /// It is built by a package of the workspace that the harness was built in.
    #[error("build it (`{command}`)")]
    Build { command: String },
    /// It is a program of the user.
    #[error("install it, or give its path as `program` in the target file")]
    InstallProgram,
    /// It is a library of Trainwreck, and the workspace is not on this machine.
    #[error("copy it there from a build of Trainwreck's workspace")]
    CopyLibrary,
}

/// What happens while a member of the workspace is built, which takes minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildEvent<'a> {
    /// Cargo is started for this package.
    Started { package: &'a str },
    /// Cargo wrote this line, without its line end.
    CargoLine(&'a str),
}

/// Is called with the progress of a build.
pub type OnBuild<'a> = &'a dyn Fn(BuildEvent<'_>);

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
/// relative to `relative_to`, the directory of the target file. Builds it first if it is a member of the
/// workspace.
///
/// # Errors
/// If there is no such executable file, or it cannot be built.
pub fn find_program(
    program: &Path,
    relative_to: &Path,
    on_build: OnBuild<'_>,
) -> Result<PathBuf, ProgramError> {
    if program.components().count() > 1 {
        return Ok(check_executable(relative_to.join(program))?);
    }
    with_member(program, |member| find_or_build(member, on_build))
}

/// Calls `use_member` with the member of the workspace that would build a program of this name.
fn with_member<T>(program: &Path, use_member: impl FnOnce(&WorkspaceMember<'_>) -> T) -> T {
    let package = program.display().to_string();
    let sources = ["src", "kernels", "build.rs", "Cargo.toml"].map(|part| format!("{package}/{part}"));
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    let file = program.into();
    use_member(&WorkspaceMember { package: &package, file, sources: &sources, is_program: true })
}

/// Finds the built file next to the harness's own binary or, for a program, on PATH.
///
/// # Errors
/// If there is no such file, or it cannot be built.
pub(crate) fn find_or_build(
    member: &WorkspaceMember<'_>,
    on_build: OnBuild<'_>,
) -> Result<PathBuf, ProgramError> {
    let dirs = search_dirs();
    build_if_member(member, &dirs, on_build)?;
    find_built(member, &dirs)
}

/// Where built files are: first the directory of the harness's own binary. Test programs are one directory
/// deeper than the binaries.
fn search_dirs() -> [PathBuf; 2] {
    let own_path = std::env::current_exe().unwrap_or_default();
    let directory = own_path.parent().map(Path::to_path_buf).unwrap_or_default();
    let above = directory.parent().map(Path::to_path_buf).unwrap_or_default();
    [directory, above]
}

fn find_built(member: &WorkspaceMember<'_>, dirs: &[PathBuf; 2]) -> Result<PathBuf, ProgramError> {
    let on_path = std::env::var_os("PATH").filter(|_| member.is_program).unwrap_or_default();
    let candidates =
        dirs.iter().cloned().chain(std::env::split_paths(&on_path)).map(|dir| dir.join(&member.file));
    candidates.into_iter().find(|path| is_usable(path, member)).ok_or_else(|| {
        let (name, directory) = (member.file.to_string_lossy().into_owned(), dirs[0].clone());
        let advice = match (workspace_of(member), member.is_program) {
            (Some(workspace), _) => {
                ProgramAdvice::Build { command: build_command(member, &workspace, &dirs[0]) }
            }
            (None, true) => ProgramAdvice::InstallProgram,
            (None, false) => ProgramAdvice::CopyLibrary,
        };
        match member.is_program {
            true if workspace_of(member).is_none() => not_on_path(&member.file).into(),
            true => ProgramError::NotFound { name, directory, advice },
            false => ProgramError::NoLibrary { name, directory, advice },
        }
    })
}

/// The command that puts the file where it is looked for, from any working directory. `own_dir`: that of the
/// harness's own binary.
fn build_command(member: &WorkspaceMember<'_>, workspace: &Path, own_dir: &Path) -> String {
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
    let package = member.package;
    let profile = own_dir.file_name().and_then(|name| name.to_str());
    match (profile, own_dir.parent()) {
        (Some("release" | "debug"), Some(target_dir)) => {
            let release = if profile == Some("release") { " --release" } else { "" };
            let manifest = quoted(&workspace.join("Cargo.toml"));
            let target_dir = quoted(target_dir);
            format!("cargo build{release} -p {package} --manifest-path {manifest} --target-dir {target_dir}")
        }
        _ if member.is_program => format!("cargo install --path {}", quoted(&workspace.join(package))),
        _ => format!(
            "cargo build --release -p {package} --manifest-path {}` and copy `{}",
            quoted(&workspace.join("Cargo.toml")),
            member.file.display()
        ),
    }
}

fn is_usable(path: &Path, member: &WorkspaceMember<'_>) -> bool {
    if member.is_program { is_executable(path) } else { path.is_file() }
}

/// Under `cargo run`, cargo has built only the harness. Builds the member too, unless an existing file is up
/// to date.
fn build_if_member(
    member: &WorkspaceMember<'_>,
    dirs: &[PathBuf],
    on_build: OnBuild<'_>,
) -> Result<(), ProgramError> {
    let (Some(cargo), Some(workspace)) = (std::env::var_os("CARGO"), workspace_of(member)) else {
        return Ok(());
    };
    if dirs.iter().any(|dir| is_up_to_date(&dir.join(&member.file), &workspace, member)) {
        return Ok(());
    }
    let mut build = Command::new(cargo);
    build.current_dir(workspace).args(["build", "-p", member.package]);
    if dirs.iter().any(|dir| dir.ends_with("release")) {
        build.arg("--release");
    }
    let name = member.package.to_owned();
    on_build(BuildEvent::Started { package: member.package });
    match run_cargo(&mut build, &|line| on_build(BuildEvent::CargoLine(line))) {
        Err(source) => Err(ProgramError::CargoNotStarted { name, source }),
        Ok(built) if built.status.success() => Ok(()),
        Ok(_) if is_interrupted() => Err(ProgramError::Interrupted { name }),
        Ok(built) => Err(ProgramError::NotBuilt { name, reason: built.reason() }),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_member_of_the_workspace_is_to_be_built() {
        let dirs = [PathBuf::from("/a"), PathBuf::from("/b")];
        let not_built = with_member(Path::new("target-trainer"), |member| {
            let member = WorkspaceMember { file: "no-such-file".into(), ..*member };
            find_built(&member, &dirs).unwrap_err()
        });
        let text = not_built.to_string();
        assert!(
            text.contains("build it (`cargo install --path '") && text.contains("/target-trainer'`)"),
            "{text}"
        );
        let command = with_member(Path::new("target-trainer"), |member| {
            build_command(member, Path::new("/my code"), Path::new("/tmp/t/release"))
        });
        let expected = "cargo build --release -p target-trainer --manifest-path '/my code/Cargo.toml' \
                        --target-dir '/tmp/t'";
        assert_eq!(command, expected);
        let unknown = with_member(Path::new("pyton3"), |member| find_built(member, &dirs).unwrap_err());
        assert!(!unknown.to_string().contains("cargo"), "{unknown}");
    }
}
