//! Decodes the calls that change attributes of a file: permission bits, owner, times, extended attributes.
//! Pure. Most arguments with new values are not decoded: the kernel performs these calls.

use nix::libc;

use super::CallKind;

/// What a call on attributes acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttributeObject {
    Fd(i32),
    /// A path from a directory, with the address of its text in the target's memory. `follow`: if its last
    /// component is a symbolic link, the link is followed. Without a text, or with an empty one, the object is
    /// the descriptor itself.
    Path {
        dir_fd: i32,
        text_address: u64,
        follow: bool,
    },
}

/// A decoded call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AttributeCall {
    pub(super) kind: CallKind,
    pub(super) object: AttributeObject,
    /// The new permission bits, for a chmod.
    pub(super) mode: Option<u32>,
}

/// `setxattrat` and `removexattrat` of Linux 6.13. All architectures have the same numbers.
const SYS_SETXATTRAT: i64 = 463;
const SYS_REMOVEXATTRAT: i64 = 466;

const CURRENT_DIR: u64 = libc::AT_FDCWD as u64;
const NO_FLAGS: u64 = 0;
const NOFOLLOW: u64 = libc::AT_SYMLINK_NOFOLLOW as u64;

/// The numbers of all calls that [`decode_attribute_call`] decodes.
pub(super) fn attribute_call_numbers() -> Vec<i64> {
    let mut numbers = vec![
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fchmodat2,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_utimensat,
        libc::SYS_setxattr,
        libc::SYS_lsetxattr,
        libc::SYS_fsetxattr,
        SYS_SETXATTRAT,
        libc::SYS_removexattr,
        libc::SYS_lremovexattr,
        libc::SYS_fremovexattr,
        SYS_REMOVEXATTRAT,
    ];
    #[cfg(target_arch = "x86_64")]
    numbers.extend([
        libc::SYS_chmod,
        libc::SYS_chown,
        libc::SYS_lchown,
        libc::SYS_utime,
        libc::SYS_utimes,
        libc::SYS_futimesat,
    ]);
    numbers
}

/// Decodes a call that changes attributes. Returns `None` for every other call.
pub(super) fn decode_attribute_call(number: i64, args: [u64; 6]) -> Option<AttributeCall> {
    let [a, b, c, d, e, _] = args;
    let by_fd = |kind| AttributeCall { kind, object: AttributeObject::Fd(a as i32), mode: None };
    Some(match number {
        libc::SYS_fchmod => by_fd(CallKind::Chmod).with_mode(b),
        libc::SYS_fchmodat => at_path(CallKind::Chmod, a, b, NO_FLAGS).with_mode(c),
        libc::SYS_fchmodat2 => at_path(CallKind::Chmod, a, b, d).with_mode(c),
        libc::SYS_fchown => by_fd(CallKind::Chown),
        libc::SYS_fchownat => at_path(CallKind::Chown, a, b, e),
        libc::SYS_utimensat => at_path(CallKind::Utimens, a, b, d),
        libc::SYS_setxattr | libc::SYS_removexattr => at_path(CallKind::SetXattr, CURRENT_DIR, a, NO_FLAGS),
        libc::SYS_lsetxattr | libc::SYS_lremovexattr => at_path(CallKind::SetXattr, CURRENT_DIR, a, NOFOLLOW),
        // Since Linux 6.13 these two take AT_FDCWD for the working directory.
        libc::SYS_fsetxattr | libc::SYS_fremovexattr if a as i32 == libc::AT_FDCWD => {
            at_path(CallKind::SetXattr, a, 0, NO_FLAGS)
        }
        libc::SYS_fsetxattr | libc::SYS_fremovexattr => by_fd(CallKind::SetXattr),
        SYS_SETXATTRAT | SYS_REMOVEXATTRAT => at_path(CallKind::SetXattr, a, b, c),
        _ => return decode_legacy(number, args),
    })
}

/// Decodes the calls that only older architectures have.
#[cfg(target_arch = "x86_64")]
fn decode_legacy(number: i64, args: [u64; 6]) -> Option<AttributeCall> {
    let [a, b, ..] = args;
    Some(match number {
        libc::SYS_chmod => at_path(CallKind::Chmod, CURRENT_DIR, a, NO_FLAGS).with_mode(b),
        libc::SYS_chown => at_path(CallKind::Chown, CURRENT_DIR, a, NO_FLAGS),
        libc::SYS_lchown => at_path(CallKind::Chown, CURRENT_DIR, a, NOFOLLOW),
        libc::SYS_utime | libc::SYS_utimes => at_path(CallKind::Utimens, CURRENT_DIR, a, NO_FLAGS),
        libc::SYS_futimesat => at_path(CallKind::Utimens, a, b, NO_FLAGS),
        _ => return None,
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn decode_legacy(_number: i64, _args: [u64; 6]) -> Option<AttributeCall> {
    None
}

fn at_path(kind: CallKind, dir_fd: u64, text_address: u64, flags: u64) -> AttributeCall {
    let follow = flags & NOFOLLOW == 0;
    let object = AttributeObject::Path { dir_fd: dir_fd as i32, text_address, follow };
    AttributeCall { kind, object, mode: None }
}

impl AttributeCall {
    fn with_mode(self, mode: u64) -> AttributeCall {
        AttributeCall { mode: Some(mode as u32), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_decoded() {
        for number in attribute_call_numbers() {
            assert!(decode_attribute_call(number, [3; 6]).is_some(), "{number}");
        }
        assert_eq!(decode_attribute_call(libc::SYS_write, [3; 6]), None);
    }

    #[test]
    fn the_flags_decide_whether_a_link_is_followed() {
        let follows = |number, args| match decode_attribute_call(number, args) {
            Some(AttributeCall {
                object: AttributeObject::Path { dir_fd, text_address, follow }, ..
            }) => Some((follow, dir_fd, text_address)),
            _ => None,
        };
        assert_eq!(follows(libc::SYS_fchmodat2, [3, 4, 5, NOFOLLOW, 0, 0]), Some((false, 3, 4)));
        assert_eq!(follows(libc::SYS_fchmodat, [3, 4, 5, NOFOLLOW, 0, 0]), Some((true, 3, 4)));
        assert_eq!(follows(libc::SYS_fchownat, [3, 4, 5, 6, NOFOLLOW, 0]), Some((false, 3, 4)));
        assert_eq!(follows(SYS_SETXATTRAT, [3, 4, NOFOLLOW, 6, 7, 0]), Some((false, 3, 4)));
        assert_eq!(follows(libc::SYS_lsetxattr, [9, 4, 5, 6, 7, 0]), Some((false, libc::AT_FDCWD, 9)));
    }
}
