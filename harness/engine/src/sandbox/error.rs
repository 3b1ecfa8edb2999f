//! Why a sandbox could not be built, used or removed.

use std::path::{Path, PathBuf};

use crate::file_error::{FileError, file_error};

/// Why a sandbox could not be built, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// An operation on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A system call failed.
    #[error("could not {doing}")]
    System { doing: &'static str, source: std::io::Error },
    /// The kernel refuses so long an argument list or environment.
    #[error(
        "could not start `{program}`: argument list too long; Linux takes at most 128 KiB for one argument or \
         environment variable, and a quarter of the stack limit for all together (2 MiB with the usual `ulimit \
         -s 8192`): pass long values in a file, unset variables that the program does not need, or raise the \
         stack limit"
    )]
    ArgumentsTooLong { program: String },
    /// A program could not be started.
    #[error("could not start `{program}`")]
    NotStarted { program: String, source: std::io::Error },
    /// The sandbox's init reported a failure.
    #[error("the sandbox's init could not {doing}: {detail}")]
    Init { doing: String, detail: String },
    /// The sandbox's init ended, or did not reply in time.
    #[error("the sandbox's init does not reply any more; was it killed?")]
    InitGone,
    /// All sandboxes of this process were ended early.
    #[error("interrupted")]
    Interrupted,
    /// The directory for runs can be changed by other users.
    #[error(
        "`{path}` is a link, belongs to another user, or is writable for others; remove it, or set TMPDIR \
         to a directory of your own",
        path = .path.display()
    )]
    NotOwned { path: PathBuf },
}

impl SandboxError {
    /// Whether the error says that a command cannot be started as it was given: there is no such program, it is
    /// not a program, or its arguments are too long.
    pub fn is_unusable_command(&self) -> bool {
        match self {
            SandboxError::ArgumentsTooLong { .. } => true,
            SandboxError::NotStarted { source, .. } => is_about_the_program(source),
            _ => false,
        }
    }

    /// Adds to an I/O error what was done, and to which file.
    pub(super) fn file(
        doing: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> SandboxError + use<> {
        file_error(doing, path)
    }

    /// Adds to the error of a system call what was done.
    pub(super) fn system<E: Into<std::io::Error>>(doing: &'static str) -> impl FnOnce(E) -> SandboxError {
        move |error| SandboxError::System { doing, source: error.into() }
    }
}

fn is_about_the_program(error: &std::io::Error) -> bool {
    use nix::errno::Errno::{EACCES, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOEXEC, ENOTDIR};
    let errno = error.raw_os_error().map(nix::errno::Errno::from_raw);
    errno
        .is_some_and(|errno| [EACCES, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOEXEC, ENOTDIR].contains(&errno))
}
