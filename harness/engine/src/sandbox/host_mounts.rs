//! The mount points that this process sees, as the kernel lists them (proc_pid_mountinfo(5)). Changes nothing.

use std::ffi::OsString;
use std::io::Error;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The mount points, in the order in which they were mounted.
pub struct HostMounts(Vec<PathBuf>);

impl HostMounts {
    /// Reads them.
    ///
    /// # Errors
    /// If the kernel's list cannot be read.
    pub fn read() -> Result<HostMounts, Error> {
        Ok(HostMounts::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    /// The first mount point below a directory, in the order of their names.
    pub fn inside(&self, dir: &Path) -> Option<&Path> {
        let inside = self.0.iter().filter(|point| point.starts_with(dir) && *point != dir);
        inside.min().map(PathBuf::as_path)
    }

    fn parse(mountinfo: &[u8]) -> HostMounts {
        let points =
            mountinfo.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
        HostMounts(points.map(unescaped).collect())
    }
}

/// A path of the list, in which some characters are written as a backslash and three octal digits.
fn unescaped(text: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.first_chunk::<3>().filter(|_| *first == b'\\');
        let digits = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_below_is_found_and_the_directory_itself_is_not() -> Result<(), Error> {
        let mounts = HostMounts::read()?;
        assert!(mounts.inside(Path::new("/")).is_some());
        assert_eq!(mounts.inside(Path::new("/proc/sys/kernel")), None);
        let list = b"1 2 0:3 / /a rw - tmpfs x rw\n2 2 0:3 / /a\\040b/c rw - tmpfs x rw\n3 2 0:3 / /a/\\134d\\303 rw\n";
        let mounts = HostMounts::parse(list);
        let first = |dir: &str| {
            mounts.inside(Path::new(dir)).map(|point| point.as_os_str().as_encoded_bytes().to_vec())
        };
        assert_eq!(first("/a"), Some(b"/a/\\d\xc3".to_vec()));
        assert_eq!(first("/a b"), Some(b"/a b/c".to_vec()));
        assert_eq!(first("/a b/c"), None);
        Ok(())
    }
}
