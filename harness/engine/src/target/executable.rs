//! Whether a program that is to be started exists, before anything runs. Starts nothing.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use scenarios::{CommandArgument, TargetFile};

/// Why a program cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ExecutableError {
    /// No program of this name on PATH.
    #[error("`{name}` is not on PATH{}; correct the name, or give a path", nearest_hint(.nearest.as_deref()))]
    NotOnPath { name: String, nearest: Option<String> },
    /// The path does not exist, or cannot be reached.
    #[error("there is no program `{path}`; correct the path", path = .path.display())]
    NotThere { path: PathBuf, source: std::io::Error },
    /// The path is that of a file that is not executable.
    #[error(
        "`{path}` is not executable; run `chmod +x` on it, or name its interpreter",
        path = .path.display()
    )]
    NotExecutable { path: PathBuf },
    /// The path is that of a directory.
    #[error("`{path}` is a directory, not a program; correct the path", path = .path.display())]
    IsDirectory { path: PathBuf },
}

fn nearest_hint(nearest: Option<&str>) -> String {
    nearest.map(|nearest| format!(" (nearest: `{nearest}`)")).unwrap_or_default()
}

/// A name on PATH that differs in more letters is not suggested.
const MAX_DISTANCE: usize = 2;

/// Finds a program as a shell does: a bare name on PATH, a path below `relative_to`.
///
/// # Errors
/// If there is no such file, or it is not executable.
pub fn find_executable(program: &OsStr, relative_to: &Path) -> Result<PathBuf, ExecutableError> {
    let path = Path::new(program);
    if path.components().count() > 1 || program.as_encoded_bytes().contains(&b'/') {
        return check_executable(relative_to.join(path));
    }
    let found = path_dirs().into_iter().map(|dir| dir.join(path)).find(|path| is_executable(path));
    found.ok_or_else(|| not_on_path(program))
}

/// Checks that the programs exist that the commands of a target start by a bare name. Paths are relative to
/// directories that the harness does not know yet.
///
/// # Errors
/// If one is not on PATH.
pub fn check_command_programs(target: &TargetFile) -> Result<(), ExecutableError> {
    let commands = [target.start(), target.resume()].into_iter();
    let commands = commands.chain(target.verify()).chain(target.submit());
    let commands = commands.chain(target.prepare().iter().map(Vec::as_slice));
    let commands = commands.chain(target.generate().values().map(Vec::as_slice));
    let programs = commands.filter_map(|arguments| arguments.first());
    let mut bare_names =
        programs.filter_map(CommandArgument::literal).filter(|program| !program.contains('/'));
    bare_names.try_for_each(|program| find_executable(OsStr::new(program), Path::new("")).map(drop))
}

/// The path itself, if it is that of an executable file.
pub(super) fn check_executable(path: PathBuf) -> Result<PathBuf, ExecutableError> {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Err(ExecutableError::IsDirectory { path }),
        Ok(_) if is_executable(&path) => Ok(path),
        Ok(_) => Err(ExecutableError::NotExecutable { path }),
        Err(source) => Err(ExecutableError::NotThere { path, source }),
    }
}

/// The error for a bare name, with the most similar program that there is.
pub(super) fn not_on_path(program: &OsStr) -> ExecutableError {
    let name = program.to_string_lossy().into_owned();
    let entries =
        path_dirs().into_iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
    let similar = entries.filter_map(|entry| {
        let known = entry.file_name().into_string().ok()?;
        let distance = strsim::damerau_levenshtein(&known, &name);
        (distance <= MAX_DISTANCE && distance < name.len() && is_executable(&entry.path()))
            .then_some((distance, known))
    });
    let nearest = similar.min().map(|(_, known)| known);
    ExecutableError::NotOnPath { name, nearest }
}

fn path_dirs() -> Vec<PathBuf> {
    let path: OsString = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path).collect()
}

pub(super) fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
