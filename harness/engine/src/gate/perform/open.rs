//! Opens files.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::libc;
use nix::sys::stat::Mode;

use super::context::{CallContext, PerformResult, Performed, proc_fd_path};
use crate::gate::calls::OpenHow;
use crate::gate::follow_error::FollowError;
use crate::gate::handler::CallEffect;
use crate::gate::open_file::{OpenFile, reopen_path};
use crate::gate::path_walk::ResolvedPath;
use crate::gate::stat::FileStat;
use crate::gate::sys;

/// The errno of an open without a free descriptor. The kernel looks at the flags, then for a number, and at the
/// path only after that: an empty path shows what it says to the flags.
fn without_descriptor(how: OpenHow, strict: bool) -> Errno {
    let opened = match strict {
        true => sys::openat2(nix::fcntl::AT_FDCWD, c"", how.flags | libc::O_CLOEXEC as u64, how.mode),
        false => openat(nix::fcntl::AT_FDCWD, c"", flag_bits(how), mode_of(how)),
    };
    match opened {
        Err(errno @ (Errno::EINVAL | Errno::E2BIG)) => errno,
        _ => Errno::EMFILE,
    }
}

impl CallContext<'_> {
    /// Opens a name in a directory. `strict`: as openat2 does.
    pub(super) fn open_entry(&mut self, path: &ResolvedPath, how: OpenHow, strict: bool) -> PerformResult {
        if !self.thread.has_free_descriptor()? {
            return Ok(Some(Performed::Failed(without_descriptor(how, strict))));
        }
        let file = match strict {
            true => self.creating(how, |how| {
                sys::openat2(path.dir.as_fd(), &path.text, how.flags | libc::O_CLOEXEC as u64, how.mode)
            })?,
            false => self
                .creating(how, |how| openat(&path.dir, path.text.as_c_str(), flag_bits(how), mode_of(how)))?,
        };
        let stat = FileStat::of_file(file.as_fd())?;
        let created = path.stat.is_none();
        let truncated =
            !created && has(how, libc::O_TRUNC) && path.stat.is_some_and(|stat| stat.size_bytes > 0);
        self.handler.on_effect(CallEffect::Opened {
            entry: path.entry(),
            file_id: stat.file_id,
            created: created.then(|| reopen_path(file.as_fd())).transpose()?,
            truncated,
        });
        if truncated {
            self.announce_lost_modes(&OpenFile {
                fd: reopen_path(file.as_fd())?,
                stat: path.stat.unwrap_or(stat),
            })?;
        }
        Ok(Some(opened(file, how)))
    }

    /// Opens a file that exists and has no last name in the call's path, or an unnamed file in a directory.
    pub(super) fn open_object(&mut self, object: &OpenFile, how: OpenHow, strict: bool) -> PerformResult {
        if !self.thread.has_free_descriptor()? {
            return Ok(Some(Performed::Failed(without_descriptor(how, strict))));
        }
        let is_unnamed = has(how, libc::O_TMPFILE);
        if !is_unnamed && object.stat.file_type() != libc::S_IFREG {
            return Ok(None);
        }
        let path = proc_fd_path(&object.fd);
        // What the path leads to is a link of /proc here.
        let how = OpenHow { flags: how.flags & !(libc::O_NOFOLLOW as u64), ..how };
        let file = match strict {
            true => self.creating(how, |how| {
                sys::openat2(object.fd.as_fd(), &path, how.flags | libc::O_CLOEXEC as u64, how.mode)
            })?,
            false => self.creating(how, |how| {
                openat(nix::fcntl::AT_FDCWD, path.as_c_str(), flag_bits(how), mode_of(how))
            })?,
        };
        let stat = FileStat::of_file(file.as_fd())?;
        if is_unnamed {
            let created = reopen_path(file.as_fd())?;
            self.handler.on_effect(CallEffect::CreatedUnnamed { file_id: stat.file_id, file: created });
        } else if has(how, libc::O_TRUNC) && object.stat.size_bytes > 0 {
            self.handler.on_effect(CallEffect::Truncated { file_id: stat.file_id, size_bytes: 0 });
        }
        Ok(Some(opened(file, how)))
    }

    /// Opens a file, with the umask of the target if the call may create one.
    fn creating(
        &self,
        how: OpenHow,
        open: impl FnOnce(OpenHow) -> Result<OwnedFd, Errno> + Send,
    ) -> Result<OwnedFd, FollowError> {
        match has(how, libc::O_CREAT) || has(how, libc::O_TMPFILE) {
            true => self.with_umask(|| self.as_allowed(|| open(how))),
            false => self.as_allowed(|| open(how)),
        }
    }
}

fn has(how: OpenHow, flag: i32) -> bool {
    how.flags as i32 & flag == flag
}

fn flag_bits(how: OpenHow) -> OFlag {
    OFlag::from_bits_retain(how.flags as i32 | libc::O_CLOEXEC)
}

fn mode_of(how: OpenHow) -> Mode {
    Mode::from_bits_truncate(how.mode as u32 & 0o7777)
}

fn opened(file: OwnedFd, how: OpenHow) -> Performed {
    Performed::File { file, close_on_exec: has(how, libc::O_CLOEXEC) }
}
