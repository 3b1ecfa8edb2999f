//! The system calls of Landlock, each behind a safe function.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

/// `LANDLOCK_CREATE_RULESET_VERSION` of linux/landlock.h.
const CREATE_RULESET_VERSION: u32 = 1;
/// `LANDLOCK_RULE_PATH_BENEATH`.
const RULE_PATH_BENEATH: u32 = 1;

/// `struct landlock_ruleset_attr` of the first version: without rules for the network.
#[repr(C)]
struct RulesetAttributes {
    handled_access_fs: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// The version of Landlock that the kernel has.
pub(super) fn version() -> Result<u32, Errno> {
    // SAFETY: with this flag the call takes no attributes, and accesses no memory of ours.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<RulesetAttributes>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    Ok(u32::try_from(Errno::result(version)?).unwrap_or(0))
}

/// Makes a ruleset that denies these rights everywhere until rules grant them.
pub(super) fn create_ruleset(handled_access_fs: u64) -> Result<OwnedFd, Errno> {
    let attributes = RulesetAttributes { handled_access_fs };
    // SAFETY: `attributes` is live during the call, and its size is the one that is passed.
    let made = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const attributes,
            size_of::<RulesetAttributes>(),
            0_u32,
        )
    };
    let fd = i32::try_from(Errno::result(made)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just created this descriptor for this process, and nothing else owns it yet.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Grants rights to a file, or to a directory and everything below it.
pub(super) fn add_rule(
    ruleset: BorrowedFd<'_>,
    path: BorrowedFd<'_>,
    allowed_access: u64,
) -> Result<(), Errno> {
    let rule = PathBeneath { allowed_access, parent_fd: path.as_raw_fd() };
    // SAFETY: `rule` is of the type that the kind of rule asks for, and is live during the call.
    let added = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            RULE_PATH_BENEATH,
            &raw const rule,
            0_u32,
        )
    };
    Errno::result(added).map(drop)
}

/// Takes from the calling thread, and from what it starts, the rights that the ruleset does not grant. For ever.
pub(super) fn restrict_thread(ruleset: BorrowedFd<'_>) -> Result<(), Errno> {
    nix::sys::prctl::set_no_new_privs()?;
    // SAFETY: the call takes a descriptor and flags, and accesses no memory of ours.
    let restricted = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) };
    Errno::result(restricted).map(drop)
}
