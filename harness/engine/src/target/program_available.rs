//! Whether a target's program exists, for a note in `check`. Builds and starts nothing.

use std::path::{Path, PathBuf};

use super::executable::is_executable;

/// Whether `find_program` would find the program. A program of the workspace counts as available under cargo,
/// because it would be built.
pub fn is_program_available(program: &Path, relative_to: &Path) -> bool {
    if program.components().count() > 1 {
        return is_executable(&relative_to.join(program));
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    let is_member = workspace.is_some_and(|dir| dir.join(program).join("Cargo.toml").is_file());
    if std::env::var_os("CARGO").is_some() && is_member {
        return true;
    }
    let own_path = std::env::current_exe().unwrap_or_default();
    let own_dirs = own_path.ancestors().skip(1).take(2).map(Path::to_path_buf);
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = own_dirs.chain(std::env::split_paths(&on_path)).collect();
    dirs.iter().any(|dir| is_executable(&dir.join(program)))
}
