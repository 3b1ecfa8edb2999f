//! Finds a target's program; builds it first when it is a member of the workspace that the harness itself runs from.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("`{name}` is neither beside `{beside}` nor on PATH; build it (`cargo build --release -p {package}`) or give a path in the target file", beside = .beside.display())]
    NotFound { name: String, package: String, beside: PathBuf },
    #[error("`{name}` is not beside `{beside}`; build it (`cargo build --release -p {package}`)", beside = .beside.display())]
    NoLibrary { name: String, package: String, beside: PathBuf },
    #[error("`{path}` from the target file is not a file that can be executed", path = .path.display())]
    NotExecutable { path: PathBuf },
    #[error("could not build `{name}`: {detail}")]
    Build { name: String, detail: String },
}

/// Something that one package of the workspace builds.
pub(crate) struct WorkspaceMember<'a> {
    pub(crate) package: &'a str,
    /// Name of the file that is built.
    pub(crate) file: OsString,
    /// Files and folders of the workspace that it is built from.
    pub(crate) sources: &'a [&'a str],
    /// It may also lie on PATH, and can be executed.
    pub(crate) is_program: bool,
}

/// The program's path. `relative_to` is the folder of the target file.
pub fn find_program(program: &Path, relative_to: &Path) -> Result<PathBuf, ProgramError> {
    if program.components().count() > 1 {
        let path = relative_to.join(program);
        return if is_executable(&path) { Ok(path) } else { Err(ProgramError::NotExecutable { path }) };
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

/// The built file, beside the harness's own binary or, for a program, on PATH.
pub(crate) fn find_or_build(member: &WorkspaceMember<'_>) -> Result<PathBuf, ProgramError> {
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.parent().map(Path::to_path_buf).unwrap_or_default();
    // Test programs lie one folder deeper than the binaries.
    let folders = [beside.clone(), beside.parent().map(Path::to_path_buf).unwrap_or_default()];
    build_if_member(member, &folders)?;
    let on_path = std::env::var_os("PATH").filter(|_| member.is_program).unwrap_or_default();
    let candidates =
        folders.into_iter().chain(std::env::split_paths(&on_path)).map(|folder| folder.join(&member.file));
    candidates.into_iter().find(|path| is_usable(path, member)).ok_or_else(|| {
        let (name, package) = (member.file.to_string_lossy().into_owned(), member.package.to_owned());
        match member.is_program {
            true => ProgramError::NotFound { name, package, beside },
            false => ProgramError::NoLibrary { name, package, beside },
        }
    })
}

fn is_usable(path: &Path, member: &WorkspaceMember<'_>) -> bool {
    if member.is_program { is_executable(path) } else { path.is_file() }
}

/// Under `cargo run`, cargo has built only our own binary; ask it for the rest too, unless what is there is up to date.
fn build_if_member(member: &WorkspaceMember<'_>, beside: &[PathBuf]) -> Result<(), ProgramError> {
    let (Some(cargo), Some(workspace)) = (std::env::var_os("CARGO"), workspace_of(member)) else {
        return Ok(());
    };
    if beside.iter().any(|folder| is_up_to_date(&folder.join(&member.file), &workspace, member)) {
        return Ok(());
    }
    let mut build = Command::new(cargo);
    build.current_dir(workspace).args(["build", "--quiet", "-p", member.package]).stdin(Stdio::null());
    if beside.iter().any(|folder| folder.ends_with("release")) {
        build.arg("--release");
    }
    let failed = |detail: String| ProgramError::Build { name: member.package.into(), detail };
    let output = build.output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

/// No source of the member is newer than what was built.
fn is_up_to_date(file: &Path, workspace: &Path, member: &WorkspaceMember<'_>) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|facts| facts.modified()).ok();
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

/// The workspace that this harness was built in, if it is still there and has the member.
fn workspace_of(member: &WorkspaceMember<'_>) -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    member.sources.iter().any(|source| workspace.join(source).exists()).then(|| workspace.to_path_buf())
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}
