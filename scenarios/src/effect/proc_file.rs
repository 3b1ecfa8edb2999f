//! The fault `proc-file`: the target reads another text in a file of `/proc`, as on a machine in another state.

use std::path::{Component, Path, PathBuf};

use crate::effect::checker::Checker;
use crate::effect::keys::fault;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::yaml::spanned::Spanned;

/// Longest text, in bytes.
const MAX_TEXT_BYTES: usize = 32 << 10;

fault!(
    /// Another text in a file of `/proc`.
    ProcFileDraft {
        /// The file, such as `/proc/meminfo`. It must exist on this machine, and be the same for all processes.
        path: Spanned<String>,
        /// What the target reads in it, whole. At most 32 KiB.
        holds: Spanned<String>,
    }
);

/// Another text in a file of `/proc`, for the target only.
#[derive(Debug, Clone)]
pub struct ProcFile {
    /// Absolute, below `/proc`, and of no single process.
    pub path: PathBuf,
    /// The whole text.
    pub text: String,
}

impl CheckEffect for ProcFileDraft {
    type Checked = ProcFile;

    fn check(&self, checker: &mut Checker) -> ProcFile {
        let path = PathBuf::from(&self.path.value);
        if let Some(reason) = reason_against(&path) {
            let message = format!("`path` is `{}`: {reason}", self.path.value);
            checker.problems.push(self.path.problem(message).help("name a file such as `/proc/meminfo`"));
        }
        if self.holds.value.len() > MAX_TEXT_BYTES {
            let message = format!("`holds` has {} bytes; at most {MAX_TEXT_BYTES}", self.holds.value.len());
            checker.problems.push(self.holds.problem(message));
        }
        ProcFile { path, text: self.holds.value.clone() }
    }
}

/// Why another text can't be put at this path.
fn reason_against(path: &Path) -> Option<&'static str> {
    let Ok(below) = path.strip_prefix("/proc") else { return Some("it is not below `/proc`") };
    // Compared as texts: `components` leaves out what a path does not need, such as `/./`.
    let is_plain = below.components().all(|part| matches!(part, Component::Normal(_)));
    let plain: PathBuf = Path::new("/proc").join(below).components().collect();
    if !is_plain || plain.as_os_str() != path.as_os_str() {
        return Some("it is not written as a plain path");
    }
    let first = below.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
    match first.as_deref() {
        None => Some("it is a directory"),
        Some("self" | "thread-self" | "net" | "mounts") => Some("it is another file for each process"),
        Some(name) if name.bytes().all(|byte| byte.is_ascii_digit()) => Some("it belongs to one process"),
        Some("sys") => Some("it is a setting of the kernel, which programs also write"),
        Some(_) => None,
    }
}

impl EffectSpec for ProcFile {
    fn describe(&self) -> String {
        format!("`{}` holds another text", self.path.display())
    }

    fn needed_mechanism(&self) -> Option<&'static str> {
        Some("fresh-proc")
    }

    fn needed_file(&self) -> Option<&Path> {
        // A kernel may be built without them. The name of any other file that is missing may be a mistake.
        self.path.starts_with("/proc/pressure").then_some(self.path.as_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_are_the_same_for_all_processes() {
        for path in ["/proc/meminfo", "/proc/vmstat", "/proc/pressure/memory", "/proc/fs/ext4/sda/mb_groups"]
        {
            assert_eq!(reason_against(Path::new(path)), None, "{path}");
        }
        for path in [
            "",
            "meminfo",
            "/etc/passwd",
            "/process/x",
            "/proc",
            "/proc/",
            "/proc/1/status",
            "/proc/self/status",
            "/proc/thread-self/io",
            "/proc/net/dev",
            "/proc/mounts",
            "/proc/sys/vm/swappiness",
            "/proc/../etc/passwd",
            "/proc/./meminfo",
            "/proc//meminfo",
            "/proc/meminfo/",
            "/proc/fs/../1/status",
            "//proc/meminfo",
        ] {
            assert!(reason_against(Path::new(path)).is_some(), "{path}");
        }
    }
}
