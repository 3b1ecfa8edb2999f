//! Finds a target's program; builds it first when it is a member of the workspace that the harness itself runs from.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("`{name}` is neither beside `{beside}` nor on PATH; build it (`cargo build --release -p {name}`) or give a path in the target file", beside = .beside.display())]
    NotFound { name: String, beside: PathBuf },
    #[error("`{path}` from the target file is not a file that can be executed", path = .path.display())]
    NotExecutable { path: PathBuf },
    #[error("could not build `{name}`: {detail}")]
    Build { name: String, detail: String },
}

/// The program's path. `relative_to` is the folder of the target file.
pub fn find_program(program: &Path, relative_to: &Path) -> Result<PathBuf, ProgramError> {
    if program.components().count() > 1 {
        let path = relative_to.join(program);
        return if is_executable(&path) { Ok(path) } else { Err(ProgramError::NotExecutable { path }) };
    }
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.parent().map(Path::to_path_buf).unwrap_or_default();
    // Test programs lie one folder deeper than the binaries.
    let folders = [beside.clone(), beside.parent().map(Path::to_path_buf).unwrap_or_default()];
    build_if_member(program, &folders)?;
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let candidates =
        folders.into_iter().chain(std::env::split_paths(&on_path)).map(|folder| folder.join(program));
    candidates
        .into_iter()
        .find(|path| is_executable(path))
        .ok_or_else(|| ProgramError::NotFound { name: program.display().to_string(), beside })
}

/// Under `cargo run`, cargo has built only our own binary; ask it for the trainer too, unless what is there is up to date.
fn build_if_member(program: &Path, beside: &[PathBuf]) -> Result<(), ProgramError> {
    let name = program.display().to_string();
    let (Some(cargo), Some(workspace)) = (std::env::var_os("CARGO"), workspace_of(&name)) else {
        return Ok(());
    };
    if beside.iter().any(|folder| is_up_to_date(&folder.join(program), &workspace.join(&name))) {
        return Ok(());
    }
    let mut build = Command::new(cargo);
    build.current_dir(workspace).args(["build", "--quiet", "-p", &name]).stdin(Stdio::null());
    if beside.iter().any(|folder| folder.ends_with("release")) {
        build.arg("--release");
    }
    let failed = |detail: String| ProgramError::Build { name: name.clone(), detail };
    let output = build.output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

/// No source of the member is newer than its binary.
fn is_up_to_date(binary: &Path, member: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|facts| facts.modified()).ok();
    let Some(built) = modified(binary) else { return false };
    let mut folders = vec![member.join("src")];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if modified(&path).is_none_or(|changed| changed > built) {
                return false;
            }
        }
    }
    modified(&member.join("Cargo.toml")).is_some_and(|changed| changed <= built)
}

fn workspace_of(name: &str) -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    workspace.join(name).join("Cargo.toml").is_file().then(|| workspace.to_path_buf())
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}
