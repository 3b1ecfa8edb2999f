//! Where a command writes its report: the paths that the user names, checked before anything runs, or a
//! directory of the user's state. Knows no report.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::error::CliError;
use crate::print;

/// The name of the link to the newest report, beside the reports.
const LATEST: &str = "latest";
/// As many links are followed in one path as the kernel follows.
const MAX_LINKS: usize = 40;

/// The directory of a report.
pub(crate) struct ReportDir {
    path: PathBuf,
    /// The first directory of its path that was created for it. `None`: it was there already.
    created_from: Option<PathBuf>,
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
            Some(out) => create_empty_dir("--out", out),
            None => create_in_state(run),
        }
    }

    /// Creates the directory that another option names, in the same way.
    ///
    /// # Errors
    /// If the directory cannot be created or written, or is not empty.
    pub(crate) fn create_for(option: &'static str, dir: &Path) -> Result<ReportDir, CliError> {
        create_empty_dir(option, dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its path without links.
    pub(crate) fn real_path(&self) -> PathBuf {
        resolve_existing_part(&self.path)
    }

    /// Removes what was created for the report, if nothing was written to it.
    pub(crate) fn remove_if_empty(&self) {
        let Some(first) = &self.created_from else { return };
        for dir in self.path.ancestors().take_while(|dir| dir.starts_with(first)) {
            // Fails if it is not empty.
            let _ = std::fs::remove_dir(dir);
        }
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

/// The report to which a kept recording belongs, without links.
pub(crate) fn report_of_recording(recording: &Path) -> Option<PathBuf> {
    let recording = recording.canonicalize().ok()?;
    let report = recording.parent()?;
    report.join("explore.json").is_file().then(|| report.to_path_buf())
}

fn create_empty_dir(option: &'static str, out: &Path) -> Result<ReportDir, CliError> {
    let unusable = |doing, cause| CliError::OutDirUnusable { option, doing, path: out.into(), cause };
    if out.metadata().is_ok_and(|metadata| !metadata.is_dir()) {
        return Err(CliError::OutDirIsFile { option, path: out.into() });
    }
    let created_from = first_missing(out);
    let is_new = create_dir_or_find(out).map_err(|error| unusable("create", error))?;
    let mut entries = std::fs::read_dir(out).map_err(|error| unusable("read", error))?;
    // What appears in a directory that this process has created just now is nobody's report.
    if !is_new && entries.next().is_some() {
        return Err(CliError::OutDirNotEmpty { option, path: out.into() });
    }
    access(out, AccessFlags::W_OK).map_err(|error| unusable("write to", error.into()))?;
    Ok(ReportDir { path: out.into(), created_from, is_in_state: false })
}

/// Creates a directory and its parents. Returns whether this call has created it: another run may have been
/// faster.
fn create_dir_or_find(path: &Path) -> std::io::Result<bool> {
    let created = match (std::fs::create_dir(path), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(parent)?;
            std::fs::create_dir(path)
        }
        (created, _) => created,
    };
    match created {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            // An error if it is no directory. With a slash after the name of a file, the kernel says so only here.
            let is_a_file = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotADirectory;
            let found = std::fs::create_dir_all(path).map(|()| false);
            found.map_err(|error| path.metadata().err().filter(is_a_file).unwrap_or(error))
        }
        created => created.map(|()| true),
    }
}

/// The first directory of a path that does not exist.
fn first_missing(path: &Path) -> Option<PathBuf> {
    let missing =
        path.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && dir.symlink_metadata().is_err());
    missing.last().map(Path::to_path_buf)
}

/// Creates a directory for a run below the user's state. Two runs may start in the same second.
fn create_in_state(run: &str) -> Result<ReportDir, CliError> {
    let parent = state_dir().ok_or(CliError::NoStateDir)?;
    let unusable = |doing, path: &Path, cause| CliError::OutDirUnusable {
        option: "--out",
        doing,
        path: path.into(),
        cause,
    };
    std::fs::create_dir_all(&parent).map_err(|error| unusable("create", &parent, error))?;
    let numbered = |number: u32| match number {
        1 => parent.join(run),
        _ => parent.join(format!("{run}-{number}")),
    };
    for path in (1..).map(numbered) {
        match std::fs::create_dir(&path) {
            Ok(()) => {
                return Ok(ReportDir { created_from: Some(path.clone()), path, is_in_state: true });
            }
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

/// Checks that the file of `--json` is not part of the report.
///
/// # Errors
/// If it is one of the report's files, its directory, or a directory above it.
pub(crate) fn check_json_apart(json: &Path, out: &Path, report_files: &[&str]) -> Result<(), CliError> {
    let (file, dir) = (resolve_existing_part(json), resolve_existing_part(out));
    let is_of_report =
        file.strip_prefix(&dir).is_ok_and(|below| report_files.iter().any(|name| below.starts_with(name)));
    if dir.starts_with(&file) || is_of_report {
        return Err(CliError::SameOutput { json: json.into(), out: out.into() });
    }
    Ok(())
}

/// Checks that what an option names is not part of something else that this command reads or writes.
///
/// # Errors
/// If one of the two contains the other.
pub(crate) fn check_apart_from(option: &'static str, path: &Path, other: &Path) -> Result<(), CliError> {
    let (dir, other_path) = (resolve_existing_part(path), resolve_existing_part(other));
    match dir.starts_with(&other_path) || other_path.starts_with(&dir) {
        true => Err(CliError::NestedOutput { option, path: path.into(), other: other.into() }),
        false => Ok(()),
    }
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

/// The path without links and `..`. What does not exist is part of it as it would be created: what a link leads
/// to that leads nowhere yet.
pub(crate) fn resolve_existing_part(path: &Path) -> PathBuf {
    let mut existing = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let mut missing: Vec<OsString> = Vec::new();
    let mut links = 0;
    loop {
        if let Ok(resolved) = existing.canonicalize() {
            return missing.iter().rev().fold(resolved, |path, name| with_part(path, name));
        }
        let (Some(parent), Some(last)) = (existing.parent(), existing.components().next_back()) else {
            return existing;
        };
        match existing.read_link() {
            Ok(to) if links < MAX_LINKS => {
                links += 1;
                existing = parent.join(to);
            }
            _ => {
                missing.push(last.as_os_str().to_owned());
                existing = parent.to_path_buf();
            }
        }
    }
}

/// Below a directory that does not exist, `..` leads to the directory that contains it.
fn with_part(path: PathBuf, part: &OsStr) -> PathBuf {
    match (part == "..", path.parent()) {
        (true, Some(parent)) => parent.to_path_buf(),
        _ => path.join(part),
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
        std::os::unix::fs::symlink("runs/nothing", root.join("dangling"))?;
        std::os::unix::fs::symlink("dangling", root.join("twice"))?;
        std::os::unix::fs::symlink("loop", root.join("loop"))?;
        let watched = [root.join("link/../a/..")];
        for inside in [
            "runs",
            "runs/out",
            "runs/new/out",
            "link/out",
            "runs/../runs/out",
            ".",
            "..",
            "dangling",
            "twice",
            "dangling/out",
            "new/../runs/out",
            "new/a/../../runs",
        ] {
            assert!(check_apart("--out", &root.join(inside), &watched).is_err(), "{inside}");
        }
        for apart in ["out", "runs-out", "out/runs", "loop", "new/../out"] {
            assert!(check_apart("--out", &root.join(apart), &watched).is_ok(), "{apart}");
        }
        Ok(())
    }

    #[test]
    fn two_outputs_never_meet() -> Result<(), std::io::Error> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().canonicalize()?;
        std::fs::create_dir(root.join("out"))?;
        std::os::unix::fs::symlink("out", root.join("link"))?;
        std::os::unix::fs::symlink("out/explore.html", root.join("page"))?;
        let check = |json: &str, out: &str| {
            check_json_apart(&root.join(json), &root.join(out), &["explore.json", "explore.html"]).is_ok()
        };
        for json in [
            "out",
            "out/.",
            ".",
            "link",
            "out/explore.json",
            "link/explore.html",
            "page",
            "out/explore.json/x",
            "out/../out/explore.json",
        ] {
            assert!(!check(json, "out") && !check(json, "link"), "{json}");
        }
        assert!(!check("new", "new") && !check("new", "new/report"));
        for json in ["j", "out/j", "out/report.json", "link/j", "explore.json"] {
            assert!(check(json, "out"), "{json}");
        }
        Ok(())
    }

    #[test]
    fn what_was_created_for_a_report_is_removed_again_and_nothing_else() -> Result<(), CliError> {
        let dir = tempfile::tempdir().map_err(CliError::Signals)?;
        for (out, left) in [("a/b/c", "."), ("a", "."), ("kept", "kept"), ("kept/new", "kept")] {
            let _ = std::fs::create_dir(dir.path().join("kept"));
            ReportDir::create(Some(&dir.path().join(out)), "")?.remove_if_empty();
            assert!(dir.path().join(left).exists() && !dir.path().join("a").exists(), "{out}");
            assert!(!dir.path().join("kept/new").exists());
        }
        Ok(())
    }
}
