//! Reads a file of the root that somebody else may have replaced: never waits for a pipe, never reads a
//! device, takes a bounded amount of memory, and follows a symbolic link only where people may put one.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;

use crate::denial::{Access, explained};
use crate::progress::ProgressReader;

/// Opens a regular file for reading.
///
/// # Errors
/// If it can't be opened, or is not a regular file: the error then has the kind `InvalidData`.
pub(crate) fn open_regular(path: &Path) -> std::io::Result<File> {
    open(path, nix::libc::O_NOFOLLOW)
}

/// Like [`open_regular`], also through symbolic links: for files that people put there, such as a base model.
///
/// # Errors
/// As for [`open_regular`].
pub(crate) fn open_regular_or_linked(path: &Path) -> std::io::Result<File> {
    open(path, 0)
}

fn open(path: &Path, flags: i32) -> std::io::Result<File> {
    let flags = flags | nix::libc::O_NONBLOCK;
    let not_regular = |what| Error::new(ErrorKind::InvalidData, format!("{what}, not a regular file"));
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error)
            if error.raw_os_error() == Some(Errno::ELOOP as i32) && flags & nix::libc::O_NOFOLLOW != 0 =>
        {
            return Err(not_regular("a symbolic link"));
        }
        // A socket can't be opened at all.
        Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => {
            return Err(not_regular("a socket"));
        }
        file => file.map_err(|error| explained(error, path, Access::Read))?,
    };
    match file.metadata()?.file_type() {
        kind if kind.is_file() => Ok(file),
        kind if kind.is_dir() => Err(not_regular("a directory")),
        _ => Err(not_regular("a pipe or a device")),
    }
}

/// Reads a regular file of at most `max_bytes` bytes.
///
/// # Errors
/// If it can't be read, is not a regular file, or is larger; in the last two cases with the kind
/// `InvalidData`.
pub(crate) fn read_regular(path: &Path, max_bytes: u64) -> std::io::Result<Vec<u8>> {
    read_all(open_regular(path)?, max_bytes)
}

/// Reads a text of at most `max_bytes` bytes, also through symbolic links.
///
/// # Errors
/// As for [`read_regular`], and with the kind `InvalidData` if it is not UTF-8.
pub(crate) fn read_text(path: &Path, max_bytes: u64) -> std::io::Result<String> {
    let bytes = read_all(open_regular_or_linked(path)?, max_bytes)?;
    String::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::InvalidData, "not UTF-8"))
}

fn read_all(file: File, max_bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    ProgressReader(file).take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::new(ErrorKind::InvalidData, format!("larger than {max_bytes} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn nothing_but_a_regular_file_of_the_size_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "12345").unwrap();
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = UnixListener::bind(path("socket")).unwrap();
        assert_eq!(read_regular(&path("file"), 5).unwrap(), b"12345");
        let message = |path: &Path| {
            let error = read_regular(path, 4).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
            error.to_string()
        };
        assert_eq!(message(&path("file")), "larger than 4 bytes");
        assert_eq!(message(&path("link")), "a symbolic link, not a regular file");
        assert_eq!(message(&path("pipe")), "a pipe or a device, not a regular file");
        assert_eq!(message(&path("socket")), "a socket, not a regular file");
        assert_eq!(message(dir.path()), "a directory, not a regular file");
        assert_eq!(message(Path::new("/dev/zero")), "a pipe or a device, not a regular file");
        assert_eq!(read_regular(&path("none"), 4).unwrap_err().kind(), ErrorKind::NotFound);
        // Where people may put a link, it is followed, but no pipe behind it is waited for.
        std::os::unix::fs::symlink(path("pipe"), path("link-to-pipe")).unwrap();
        assert_eq!(read_text(&path("link"), 5).unwrap(), "12345");
        for odd in ["pipe", "socket", "link-to-pipe", "."] {
            assert_eq!(read_text(&path(odd), 5).unwrap_err().kind(), ErrorKind::InvalidData, "{odd}");
        }
    }
}
