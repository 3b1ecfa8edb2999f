//! Finds the stand-in's library; builds it first when the harness itself runs from its workspace.

use std::path::PathBuf;

use crate::target::{Member, ProgramError, built};

/// The library, as cargo names it.
const FILE: &str = "libsimgpu.so";

/// The library's path.
pub fn find_library() -> Result<PathBuf, ProgramError> {
    built(&Member {
        package: "simgpu",
        file: FILE.into(),
        sources: &["harness/simgpu", "target-trainer/kernels"],
        is_program: false,
    })
}
