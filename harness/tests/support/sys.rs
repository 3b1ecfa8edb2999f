//! Extended attributes of files, which no crate of the tests reads. Knows nothing of the tests.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io::Error;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Larger than all attributes that the tests set.
const MAX_BYTES: usize = 64 << 10;

/// The extended attributes of a file or of a link itself, by their names. Empty if its file system has none.
pub(crate) fn extended_attributes(path: &Path) -> BTreeMap<CString, Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut names = vec![0u8; MAX_BYTES];
    // SAFETY: `path` ends with a NUL byte, and the kernel writes at most `names.len()` bytes to `names`.
    let length = unsafe { nix::libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(length).unwrap_or_default());
    let names = names.split_inclusive(|byte| *byte == 0);
    let names = names.map(|name| CStr::from_bytes_with_nul(name).unwrap().to_owned());
    names.map(|name| (name.clone(), attribute(&path, &name))).collect()
}

fn attribute(path: &CStr, name: &CStr) -> Vec<u8> {
    let mut value = vec![0u8; MAX_BYTES];
    // SAFETY: `path` and `name` end with a NUL byte, and the kernel writes at most `value.len()` bytes to
    // `value`.
    let length =
        unsafe { nix::libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(length).unwrap_or_default());
    value
}

/// Sets an extended attribute.
///
/// # Errors
/// If the file system has no extended attributes of users.
pub(crate) fn set_extended_attribute(path: &Path, name: &CStr, value: &[u8]) -> Result<(), Error> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: `path` and `name` end with a NUL byte, and the kernel reads `value.len()` bytes of `value`.
    let result =
        unsafe { nix::libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}
