//! Compiles the small targets in `tests/targets/*.c`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// What the compiler printed.
#[derive(Debug)]
pub(crate) struct CompilerError(String);

/// Compiles a target, unless the program is newer than its source. Returns the program's path.
///
/// # Errors
/// If the compiler fails, for example because there is no static C library.
pub(crate) fn compile(source: &str, flags: &[&str]) -> Result<PathBuf, CompilerError> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let name = source.replace(".c", &flags.concat());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets").join(source);
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
    let changed = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    if changed(&program) > changed(&source) {
        return Ok(program);
    }
    // Test programs may run at the same time: each compiles into its own file, and none runs half a program.
    let new_program = program.with_extension(format!("{}.new", std::process::id()));
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-o"]).arg(&new_program).arg(&source).args(flags).args(["-lpthread", "-ldl"]);
    let output = compiler.output().map_err(|error| CompilerError(format!("cc: {error}")))?;
    if !output.status.success() {
        return Err(CompilerError(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    std::fs::rename(new_program, &program).unwrap();
    Ok(program)
}
