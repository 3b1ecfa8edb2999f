//! The user and group ids of a sandbox: root sees all ids as they are, an ordinary user only its own. Runs in
//! the parent of a sandbox's init, before and after it creates its user namespace.

use std::io::{Error, Read, Write};
use std::path::PathBuf;

use nix::sys::wait::WaitStatus;
use nix::unistd::{ForkResult, Gid, Pid, Uid, getegid, geteuid, getpid};

use super::sys;

/// Writes the id maps of a user namespace that this process creates later. Ids of other users can be mapped
/// only from outside of the new namespace, so root has a child process that stays outside.
pub(super) enum IdMapper {
    /// All ids of the present namespace: the child process waits for a byte in the pipe.
    AllIds { child: Pid, go: std::fs::File, gid: Gid },
    /// Only the ids of this process.
    OwnIds { uid: Uid, gid: Gid },
}

impl IdMapper {
    /// Prepares to map ids. Call it before the namespace is created.
    pub(super) fn prepare() -> Result<IdMapper, Error> {
        let (uid, gid) = (geteuid(), getegid());
        if !uid.is_root() {
            return Ok(IdMapper::OwnIds { uid, gid });
        }
        let (wait, go) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let parent = getpid();
        match sys::fork()? {
            ForkResult::Child => {
                drop(go);
                let mut byte = [0];
                let told = std::fs::File::from(wait).read_exact(&mut byte).is_ok();
                let written = told && write_all_ids(parent).is_ok();
                std::process::exit(i32::from(!written))
            }
            ForkResult::Parent { child } => Ok(IdMapper::AllIds { child, go: go.into(), gid }),
        }
    }

    /// Maps the ids. Call it after the namespace was created, in the process that created it.
    pub(super) fn map(self) -> Result<(), Error> {
        match self {
            IdMapper::AllIds { child, mut go, gid } => {
                go.write_all(b"g")?;
                drop(go);
                let is_mapped = nix::sys::wait::waitpid(child, None)? == WaitStatus::Exited(child, 0);
                // A container may forbid root to map the ids of others.
                if is_mapped { Ok(()) } else { write_own_ids(Uid::from_raw(0), gid) }
            }
            IdMapper::OwnIds { uid, gid } => write_own_ids(uid, gid),
        }
    }
}

fn write_own_ids(uid: Uid, gid: Gid) -> Result<(), Error> {
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Maps every id of this namespace to itself in the namespace of `process`.
fn write_all_ids(process: Pid) -> Result<(), Error> {
    for map in ["uid_map", "gid_map"] {
        let own = std::fs::read_to_string(PathBuf::from("/proc/self").join(map))?;
        let identity: String = own.lines().filter_map(identity_line).collect();
        std::fs::write(format!("/proc/{process}/{map}"), identity)?;
    }
    Ok(())
}

/// The line that maps the ids of one line of an id map to themselves.
fn identity_line(line: &str) -> Option<String> {
    let mut numbers = line.split_whitespace();
    let (first, _, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
    Some(format!("{first} {first} {count}\n"))
}

#[cfg(test)]
mod tests {
    use super::identity_line;

    #[test]
    fn ids_are_mapped_to_themselves() {
        assert_eq!(identity_line("         0     100000      65536"), Some("0 0 65536\n".into()));
        assert_eq!(identity_line("0 0"), None);
    }
}
