//! Where a command writes its report: the paths that the user names, checked before anything runs, or a
//! directory of the user's state. Knows no report.

use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::error::CliError;
use crate::print;

/// The name of the link to the newest report, beside the reports.
const LATEST: &str = "latest";

/// The directory of a report.
pub(crate) struct ReportDir {
    path: PathBuf,
    /// Whether it is among the reports of the user's state, so that `latest` points to the newest.
    is_in_state: bool,
}

impl ReportDir {
    /// Creates the directory that `--out` names, with its parents; it must be new or empty, so that no
    /// earlier report is overwritten. Without `--out` it is `$XDG_STATE_HOME/trainwreck/<run>`.
    ///
    /// # Errors
    /// If the directory cannot be created or written, or is not empty.
    pub(crate) fn create(out: Option<&Path>, run: &str) -> Result<ReportDir, CliError> {
        match out {
            Some(out) => Ok(ReportDir { path: create_empty_dir(out)?, is_in_state: false }),
            None => Ok(ReportDir { path: create_in_state(run)?, is_in_state: true }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its path without links.
    pub(crate) fn real_path(&self) -> PathBuf {
        resolve_existing_part(&self.path)
    }

    /// Removes the directory if nothing was written to it.
    pub(crate) fn remove_if_empty(&self) {
        // Fails if it is not empty.
        let _ = std::fs::remove_dir(&self.path);
    }

    /// Makes `latest` point to this report, if it is in the user's state.
    pub(crate) fn become_latest(&self) {
        let (true, Some(parent), Some(name)) = (self.is_in_state, self.path.parent(), self.path.file_name())
        else {
            return;
        };
        // Renamed into place, so that `latest` exists all along.
        let new = parent.join(format!(".{LATEST}-{}", std::process::id()));
        let replaced = std::os::unix::fs::symlink(name, &new)
            .and_then(|()| std::fs::rename(&new, parent.join(LATEST)))
            .inspect_err(|_| drop(std::fs::remove_file(&new)));
        if let Err(error) = replaced {
            print::notice(&format!(
                "could not make `{}` point to it: {error}",
                parent.join(LATEST).display()
            ));
        }
    }
}

fn create_empty_dir(out: &Path) -> Result<PathBuf, CliError> {
    let unusable = |doing, cause| CliError::OutDirUnusable { doing, path: out.into(), cause };
    if out.metadata().is_ok_and(|metadata| !metadata.is_dir()) {
        return Err(CliError::OutDirIsFile { path: out.into() });
    }
    std::fs::create_dir_all(out).map_err(|error| unusable("create", error))?;
    let mut entries = std::fs::read_dir(out).map_err(|error| unusable("read", error))?;
    if entries.next().is_some() {
        return Err(CliError::OutDirNotEmpty { path: out.into() });
    }
    may_write(out).map_err(|error| unusable("write to", error))?;
    Ok(out.into())
}

/// Creates a directory for a run below the user's state. Two runs may start in the same second.
fn create_in_state(run: &str) -> Result<PathBuf, CliError> {
    let parent = state_dir().ok_or(CliError::NoStateDir)?;
    let unusable = |doing, path: &Path, cause| CliError::OutDirUnusable { doing, path: path.into(), cause };
    std::fs::create_dir_all(&parent).map_err(|error| unusable("create", &parent, error))?;
    let numbered = |number: u32| match number {
        1 => parent.join(run),
        _ => parent.join(format!("{run}-{number}")),
    };
    for path in (1..).map(numbered) {
        match std::fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(unusable("create", &path, error)),
        }
    }
    Err(CliError::NoStateDir)
}

/// Where reports are kept: as the XDG Base Directory Specification says, a path that is not absolute is
/// ignored.
fn state_dir() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("trainwreck"))
}

/// Checks the path of `--json`: a file that can be written, or a new name in a directory.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn check_json_path(path: &Path) -> Result<(), CliError> {
    let unusable = |cause| CliError::JsonUnusable { path: path.into(), cause };
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Err(unusable(std::io::ErrorKind::IsADirectory.into())),
        Ok(_) => may_write(path).map_err(unusable),
        Err(_) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or_else(|| Path::new("."));
            parent.read_dir().map_err(unusable)?;
            may_write(parent).map_err(unusable)
        }
    }
}

fn may_write(path: &Path) -> Result<(), std::io::Error> {
    Ok(access(path, AccessFlags::W_OK)?)
}

/// Checks that a report does not go into a directory that the trainer saves in, nor the other way round.
///
/// # Errors
/// If it does.
pub(crate) fn check_apart(
    option: &'static str,
    path: &Path,
    watched_dirs: &[PathBuf],
) -> Result<(), CliError> {
    let resolved = resolve_existing_part(path);
    let meets = |watched: &&PathBuf| {
        let watched = resolve_existing_part(watched);
        resolved.starts_with(&watched) || watched.starts_with(&resolved)
    };
    match watched_dirs.iter().find(meets) {
        Some(watched) => {
            Err(CliError::ReportInWatched { option, path: path.into(), watched: watched.clone() })
        }
        None => Ok(()),
    }
}

/// The path without links and `..`, as far as it exists.
fn resolve_existing_part(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let mut existing = absolute.as_path();
    let mut missing = Vec::new();
    loop {
        match (existing.canonicalize(), existing.parent(), existing.components().next_back()) {
            (Ok(resolved), ..) => return missing.iter().rev().fold(resolved, |path, name| path.join(name)),
            (Err(_), Some(parent), Some(last)) => {
                missing.push(last.as_os_str().to_owned());
                existing = parent;
            }
            _ => return absolute,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_in_a_watched_directory_is_refused_whatever_its_path_looks_like() -> Result<(), std::io::Error>
    {
        let dir = tempfile::tempdir()?;
        let root = dir.path().canonicalize()?;
        std::fs::create_dir_all(root.join("runs/a"))?;
        std::os::unix::fs::symlink("runs/a", root.join("link"))?;
        let watched = [root.join("link/../a/..")];
        for inside in ["runs", "runs/out", "runs/new/out", "link/out", "runs/../runs/out", ".", ".."] {
            assert!(check_apart("--out", &root.join(inside), &watched).is_err(), "{inside}");
        }
        for apart in ["out", "runs-out", "out/runs"] {
            assert!(check_apart("--out", &root.join(apart), &watched).is_ok(), "{apart}");
        }
        Ok(())
    }
}
