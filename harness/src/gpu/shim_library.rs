//! Finds the stand-in's library; builds it first when the harness itself runs from its workspace.

use std::path::PathBuf;

use crate::target::{ProgramError, WorkspaceMember, find_or_build};

/// The library, as cargo names it.
const LIBRARY_FILE: &str = "libsimgpu.so";

/// The library's path.
pub fn find_shim_library() -> Result<PathBuf, ProgramError> {
    find_or_build(&WorkspaceMember {
        package: "simgpu",
        file: LIBRARY_FILE.into(),
        sources: &["harness/simgpu", "target-trainer/kernels"],
        is_program: false,
    })
}
