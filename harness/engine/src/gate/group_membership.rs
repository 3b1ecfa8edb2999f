//! A call that is made for the target keeps or clears the setgid bit of a file as the target's own call would.
//!
//! The kernel clears the setgid bit of a file that nobody of its group may execute, or ignores it in a mode, if the
//! calling thread is not in the group and has no `CAP_FSETID` in its user namespace. The supervisor has neither:
//! without this capability it clears setuid bits, as the target does. So it joins the group for the call if the
//! target is in it or has the capability. Source: `setattr_should_drop_sgid` and `mode_strip_sgid` of the kernel.

use nix::libc;

use super::calls::{CallRequest, OpenHow};
use super::follow_error::FollowError;
use super::resolve_call::ResolvedCall;
use super::stat::FileStat;
use super::sys;
use super::thread_status::status_field;

/// The bits of a mode of which the group of the file decides: setgid, and permission for the group to execute.
const GROUP_BITS: u32 = 0o2010;
const SETGID: u32 = 0o2000;

/// This thread is a member of a group until this value is dropped.
pub(super) struct GroupMembership {
    /// The other groups of this thread.
    before: Vec<u32>,
}

impl GroupMembership {
    /// Joins the group on which the result of the call depends, if the target's own call would keep the bit. `None`:
    /// the call does not depend on a group, the target would not keep it, or this thread must not change its groups
    /// (it has the target's groups then, because both belong to an ordinary user).
    ///
    /// # Errors
    /// The target has ended, or its status cannot be read.
    pub(super) fn for_call(
        tid: i32,
        request: &CallRequest,
        call: &ResolvedCall,
    ) -> Result<Option<GroupMembership>, FollowError> {
        match deciding_group(request, call) {
            Some(group) if keeps_setgid(tid, group)? => Ok(join(group)),
            _ => Ok(None),
        }
    }
}

impl Drop for GroupMembership {
    fn drop(&mut self) {
        // What this thread could change before, it can change back.
        let _ = sys::set_thread_groups(&self.before);
    }
}

fn join(group: u32) -> Option<GroupMembership> {
    let groups = nix::unistd::getgroups().ok()?;
    let before: Vec<u32> = groups.into_iter().map(nix::unistd::Gid::as_raw).collect();
    sys::set_thread_groups(&[group]).ok()?;
    Some(GroupMembership { before })
}

/// The group whose members keep a setgid bit with this call, if it can clear one.
fn deciding_group(request: &CallRequest, call: &ResolvedCall) -> Option<u32> {
    let path = call.resolved_path.as_ref();
    let file = call.file.as_ref().map(|file| file.stat).or_else(|| path.and_then(|path| path.stat));
    let new_mode = match request {
        CallRequest::SetAttributes(attributes) => {
            return file
                .filter(|_| attributes.mode.is_some_and(|mode| mode & SETGID != 0))
                .map(|file| file.gid);
        }
        CallRequest::Open { how: OpenHow { mode, .. }, .. } => *mode as u32,
        CallRequest::Mknod { mode, .. } => *mode,
        _ => 0,
    };
    let is_cleared_by_change =
        |file: &FileStat| file.file_type() == libc::S_IFREG && file.mode & GROUP_BITS == SETGID;
    if let Some(file) = file.filter(is_cleared_by_change) {
        return Some(file.gid);
    }
    // A new file of a setgid directory gets the group of the directory.
    let gives_its_group = |dir: &FileStat| dir.file_type() == libc::S_IFDIR && dir.mode & SETGID != 0;
    let dir = file.filter(gives_its_group).or(path.map(|path| path.dir_stat).filter(gives_its_group));
    dir.filter(|_| new_mode & GROUP_BITS == GROUP_BITS).map(|dir| dir.gid)
}

/// Whether a thread of the target is in a group, or has `CAP_FSETID` in its user namespace.
fn keeps_setgid(tid: i32, group: u32) -> Result<bool, FollowError> {
    let capabilities = u64::from_str_radix(&status_field(tid, "CapEff:")?, 16).unwrap_or(0);
    if capabilities & u64::from(sys::CAP_FSETID) != 0 {
        return Ok(true);
    }
    let is_group = |id: &str| id.parse() == Ok(group);
    // Four ids: real, effective, saved, and the one for files.
    let own = status_field(tid, "Gid:")?;
    Ok(own.split_whitespace().next_back().is_some_and(is_group)
        || status_field(tid, "Groups:")?.split_whitespace().any(is_group))
}
