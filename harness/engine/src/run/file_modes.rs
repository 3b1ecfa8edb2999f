//! Whether the modes of files allow a call, so that another rule of the kernel must have denied it.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};
use scenarios::CallKind;

use crate::gate::InterceptedCall;

/// Whether the modes allow a call that still waits. What can't be found out counts as not allowed. The target has the
/// identity of this process.
pub(super) fn modes_allow(call: &InterceptedCall) -> bool {
    let root = PathBuf::from(format!("/proc/{}/root", call.tid));
    let path = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let names = AccessFlags::W_OK | AccessFlags::X_OK;
    let dir_allows = |inside: &Path| inside.parent().is_some_and(|dir| allows(&path(dir), names) == Ok(()));
    match call.kind {
        CallKind::OpenToRead => allows(&path(&call.path), AccessFlags::R_OK) == Ok(()),
        CallKind::Open | CallKind::Truncate => match allows(&path(&call.path), AccessFlags::W_OK) {
            Err(Errno::ENOENT) => dir_allows(&call.path),
            allowed => allowed == Ok(()),
        },
        _ => dir_allows(&call.path) && call.to.as_deref().is_none_or(dir_allows),
    }
}

/// Landlock and the gate have no say in this call; SELinux and AppArmor have.
fn allows(path: &Path, access: AccessFlags) -> Result<(), Errno> {
    faccessat(AT_FDCWD, path, access, AtFlags::AT_EACCESS)
}
