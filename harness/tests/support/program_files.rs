//! Writes programs that tests run. A program cannot be started while anybody has it open for writing, and a
//! process that another thread of this test program starts at the same moment has it open too. So a process of
//! its own writes the file. Must not know any program.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Copies a program, with its mode.
pub(crate) fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("--").arg(from).arg(to).status().unwrap().success(), "{}", to.display());
}

/// Writes a script with this mode.
pub(crate) fn write_script(path: &Path, text: &str, mode: u32) {
    let mut writer = Command::new("/bin/sh")
        .args(["-c", "cat > \"$0\" && chmod \"$1\" \"$0\""])
        .arg(path)
        .arg(format!("{mode:o}"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success(), "{}", path.display());
}
