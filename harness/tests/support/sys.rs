//! What needs unsafe code: extended attributes of files, which no crate of the tests reads, and system calls that
//! fail on purpose. Knows nothing of the tests.

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

/// Makes a system call of the calling thread fail with this errno from now on. Other threads are not affected.
pub(crate) fn fail_own_calls(number: nix::libc::c_long, errno: nix::errno::Errno) {
    use nix::libc;
    let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        // The number is the first word of `seccomp_data`.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    nix::sys::prctl::set_no_new_privs().unwrap();
    // SAFETY: `program` and the instructions that it points to are live, and the kernel copies them.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    assert_eq!(result, 0, "{}", Error::last_os_error());
}
