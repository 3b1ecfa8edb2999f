//! A single file that the user names for a result: checked before anything runs, written at the end. Knows
//! nothing of what is written.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use engine::file_error::file_error;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{AccessFlags, access};

use crate::error::CliError;

/// A place that can be written, as far as that shows without writing.
pub(crate) struct OutputFile {
    path: PathBuf,
    /// A pipe or a device, such as `/dev/stdout`. It is opened at once, because that may wait or fail.
    opened: Option<File>,
}

impl OutputFile {
    /// Checks a path: a file that can be written, a new name in a directory, a pipe that somebody reads, or a
    /// device that takes text. Nothing is created or changed.
    ///
    /// # Errors
    /// If it is something else, or cannot be written.
    pub(crate) fn check(option: &'static str, path: &Path) -> Result<OutputFile, CliError> {
        let opened = open_stream(path).and_then(|opened| match opened {
            Some(stream) => Ok(Some(stream)),
            None => check_file(path).map(|()| None),
        });
        match opened {
            Ok(opened) => Ok(OutputFile { path: path.into(), opened }),
            Err(cause) => Err(CliError::OutputUnusable { option, path: path.into(), cause }),
        }
    }

    /// Writes the text. A file that exists is overwritten.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn write(self, text: &str) -> Result<(), CliError> {
        let written = match self.opened {
            Some(mut stream) => stream.write_all(text.as_bytes()),
            None => std::fs::write(&self.path, text),
        };
        written.map_err(file_error::<CliError>("write", &self.path))
    }
}

/// Opens a pipe or a character device. `None`: it is neither.
fn open_stream(path: &Path) -> Result<Option<File>, Error> {
    let Ok(metadata) = path.metadata() else { return Ok(None) };
    let kind = metadata.file_type();
    if !kind.is_fifo() && !kind.is_char_device() {
        return Ok(None);
    }
    // Without this flag, the open of a pipe that nobody reads never returns.
    let opened =
        OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY).open(path);
    let mut stream = match opened {
        Err(error) if kind.is_fifo() && error.raw_os_error() == Some(nix::libc::ENXIO) => {
            return Err(Error::new(error.kind(), "it is a pipe, and nothing reads from it"));
        }
        opened => opened?,
    };
    fcntl(&stream, FcntlArg::F_SETFL(OFlag::empty()))?;
    if kind.is_char_device() {
        // Writes nothing; `/dev/full` refuses that too.
        let _ = stream.write(&[])?;
    }
    Ok(Some(stream))
}

/// Checks that this is a file that can be written, or a new name in a directory that can.
fn check_file(path: &Path) -> Result<(), Error> {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Err(ErrorKind::IsADirectory.into()),
        Ok(metadata) if !metadata.is_file() => Err(Error::other("it is neither a file nor a pipe")),
        // Only opened: the file keeps its content until the result is there.
        Ok(_) => OpenOptions::new().write(true).open(path).map(drop),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Err(error) => {
            let bytes = path.as_os_str().as_bytes();
            if bytes.is_empty() {
                return Err(error);
            }
            if bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
                return Err(ErrorKind::IsADirectory.into());
            }
            let new = crate::report_paths::resolve_existing_part(path);
            let parent = new.parent().ok_or(error)?;
            parent.read_dir()?;
            Ok(access(parent, AccessFlags::W_OK)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn each_kind_of_place_is_taken_or_refused_before_anything_is_written() -> Result<(), Error> {
        let dir = tempfile::tempdir()?;
        let root = dir.path();
        std::fs::write(root.join("file"), "kept")?;
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU)?;
        drop(std::os::unix::net::UnixListener::bind(root.join("socket"))?);
        for (link, to) in [
            ("to-file", "file"),
            ("to-new", "new"),
            ("to-missing", "missing/new"),
            ("loop", "loop"),
            ("to-full", "/dev/full"),
        ] {
            symlink(to, root.join(link))?;
        }
        let check = |name: &str| OutputFile::check("--json", &root.join(name)).is_ok();
        for usable in ["file", "new", "to-file", "to-new", "../new-trainwreck-test", "/dev/null"] {
            assert!(check(usable), "{usable}");
        }
        let long = "n".repeat(300);
        for unusable in [
            "",
            ".",
            "new/",
            "new/.",
            "missing/new",
            "file/new",
            "pipe",
            "socket",
            "to-missing",
            "loop",
            "to-full",
            "/dev/full",
            &long,
        ] {
            assert!(!check(unusable), "{unusable}");
        }
        assert!(OutputFile::check("--json", Path::new("")).is_err());
        let left: std::collections::BTreeSet<_> =
            root.read_dir()?.map(|entry| Ok(entry?.file_name())).collect::<Result<_, Error>>()?;
        assert!(
            !left.contains(std::ffi::OsStr::new("new"))
                && std::fs::read_to_string(root.join("file"))? == "kept"
        );
        Ok(())
    }

    #[test]
    fn a_pipe_that_is_read_gets_the_text() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU)?;
        let mut reader = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&pipe)?;
        OutputFile::check("--json", &pipe)?.write("text")?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut reader, &mut text)?;
        assert_eq!(text, "text");
        Ok(())
    }
}
