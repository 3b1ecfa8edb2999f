//! Finds the shim's library. Builds it first if the harness runs from its workspace.

use std::path::PathBuf;

use crate::target::{OnBuild, ProgramError, WorkspaceMember, find_or_build};

/// File name of the library.
const LIBRARY_FILE: &str = "libsimgpu.so";

/// Returns the library's path.
///
/// # Errors
/// If the library can't be found or built.
pub fn find_shim_library(on_build: OnBuild<'_>) -> Result<PathBuf, ProgramError> {
    let member = WorkspaceMember {
        package: "simgpu",
        file: LIBRARY_FILE.into(),
        sources: &["harness/simgpu", "target-trainer/kernels"],
        is_program: false,
    };
    find_or_build(&member, on_build)
}
