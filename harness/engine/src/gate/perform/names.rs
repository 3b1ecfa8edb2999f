//! Changes names: renames, links, removals, new directories and special files.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;

use super::context::{CallContext, PerformResult, Performed, proc_fd_path};
use crate::gate::follow_error::FollowError;
use crate::gate::handler::{CallEffect, Swap};
use crate::gate::open_file::OpenFile;
use crate::gate::path_walk::ResolvedPath;
use crate::gate::resolve_call::ResolvedCall;
use crate::gate::stat::{FileId, FileStat};
use crate::gate::sys;

/// Mode of the empty file that replaces a file.
const SWAPPED_IN_MODE: u32 = 0o644;

impl CallContext<'_> {
    pub(super) fn rename(&mut self, from: &ResolvedPath, to: &ResolvedPath, flags: u32) -> PerformResult {
        let flags = RenameFlags::from_bits_retain(flags);
        let rename = || renameat2(&from.dir, from.text.as_c_str(), &to.dir, to.text.as_c_str(), flags);
        let renamed = self.as_allowed(rename);
        if renamed == Err(FollowError::Target(Errno::EXDEV)) && from.dir_stat.mount_id == to.dir_stat.mount_id
        {
            self.handler.on_effect(CallEffect::RenameRefused { path: from.path() });
        }
        renamed?;
        let exchanged = flags.contains(RenameFlags::RENAME_EXCHANGE);
        // The kernel does nothing if both are names of one file.
        if from.file_id() != to.file_id() {
            self.on_renamed(from, to, exchanged);
        }
        Ok(Some(Performed::Value(0)))
    }

    fn on_renamed(&mut self, from: &ResolvedPath, to: &ResolvedPath, exchanged: bool) {
        let is_recorded = |path: &ResolvedPath| path.stat.is_some_and(|stat| stat.has_recorded_type());
        self.handler.on_effect(match (is_recorded(from), exchanged) {
            (true, _) => CallEffect::Renamed { from: from.entry(), to: to.entry(), exchanged },
            // No recording has the socket or device: all that it shows is what became of the other name.
            (false, _) if !is_recorded(to) => return,
            (false, false) => CallEffect::Unlinked { entry: to.entry() },
            (false, true) => CallEffect::Renamed { from: to.entry(), to: from.entry(), exchanged: false },
        });
    }

    /// Links a file that the call names by a path. If the call follows links, the path was followed already.
    pub(super) fn hard_link(&mut self, from: &ResolvedPath, to: &ResolvedPath) -> PerformResult {
        let no_flags = AtFlags::empty();
        self.as_allowed(|| {
            nix::unistd::linkat(&from.dir, from.text.as_c_str(), &to.dir, to.text.as_c_str(), no_flags)
        })?;
        self.on_linked(from.file_id().ok_or(Errno::ENOENT)?, to);
        Ok(Some(Performed::Value(0)))
    }

    /// Links a file that the call names by a descriptor.
    pub(super) fn link_object(&mut self, file: &OpenFile, to: &ResolvedPath) -> PerformResult {
        let path = proc_fd_path(&file.fd);
        let cwd = nix::fcntl::AT_FDCWD;
        let follow = AtFlags::AT_SYMLINK_FOLLOW;
        self.as_allowed(|| nix::unistd::linkat(cwd, path.as_c_str(), &to.dir, to.text.as_c_str(), follow))?;
        self.on_linked(file.stat.file_id, to);
        Ok(Some(Performed::Value(0)))
    }

    fn on_linked(&mut self, file_id: FileId, to: &ResolvedPath) {
        let new = FileStat::of_entry(to.dir.as_fd(), &to.name).ok();
        if new.is_some_and(|stat| !stat.has_recorded_type()) {
            return;
        }
        let new_id = new.map_or(file_id, |stat| stat.file_id);
        self.handler.on_effect(CallEffect::Linked { file_id, entry: to.entry(), new_id });
    }

    pub(super) fn symlink(&mut self, text_address: u64, path: &ResolvedPath) -> PerformResult {
        let text = self.thread.read_string(text_address)?;
        self.as_allowed(|| nix::unistd::symlinkat(text.as_c_str(), &path.dir, path.text.as_c_str()))?;
        let OpenFile { fd: link, stat } = path.open_node()?;
        let link_text = PathBuf::from(OsStr::from_bytes(text.as_bytes()));
        let (file_id, entry) = (stat.file_id, path.entry());
        self.handler.on_effect(CallEffect::Symlinked { file_id, entry, link_text, link });
        Ok(Some(Performed::Value(0)))
    }

    pub(super) fn unlink(&mut self, path: &ResolvedPath, is_dir: bool) -> PerformResult {
        let flags = if is_dir { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        self.as_allowed(|| nix::unistd::unlinkat(&path.dir, path.text.as_c_str(), flags))?;
        let entry = path.entry();
        self.handler.on_effect(if is_dir {
            CallEffect::RemovedDir { entry }
        } else {
            CallEffect::Unlinked { entry }
        });
        Ok(Some(Performed::Value(0)))
    }

    pub(super) fn mkdir(&mut self, path: &ResolvedPath, mode: u32) -> PerformResult {
        let mode = Mode::from_bits_truncate(mode & 0o7777);
        let make = || nix::sys::stat::mkdirat(&path.dir, path.text.as_c_str(), mode);
        self.with_umask(|| self.as_allowed(make))?;
        let OpenFile { fd: dir, stat } = path.open_node()?;
        self.handler.on_effect(CallEffect::CreatedDir { file_id: stat.file_id, entry: path.entry(), dir });
        Ok(Some(Performed::Value(0)))
    }

    pub(super) fn mknod(&mut self, path: &ResolvedPath, mode: u32, device: u64) -> PerformResult {
        // Whether a device may be created depends on the rights of the target.
        if matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK) {
            return Ok(None);
        }
        let make = || sys::mknodat(path.dir.as_fd(), &path.text, mode, device);
        self.with_umask(|| self.as_allowed(make))?;
        let OpenFile { fd: file, stat } = path.open_node()?;
        let (file_id, entry) = (stat.file_id, path.entry());
        self.handler.on_effect(match stat.file_type() {
            libc::S_IFREG => CallEffect::Opened { entry, file_id, created: Some(file), truncated: false },
            _ => CallEffect::CreatedSpecial { entry, file_id, file },
        });
        Ok(Some(Performed::Value(0)))
    }

    /// Replaces the file that the call acts on. Fails with ENOENT if there is no such file.
    pub(in crate::gate) fn swap(&mut self, call: &ResolvedCall, with: Swap) -> Result<(), Errno> {
        let path = call.resolved_path.as_ref().filter(|path| path.stat.is_some()).ok_or(Errno::ENOENT)?;
        nix::unistd::unlinkat(&path.dir, path.name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
        match with {
            Swap::Nothing => {}
            Swap::EmptyFile => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                drop(openat(
                    &path.dir,
                    path.name.as_c_str(),
                    flags,
                    Mode::from_bits_truncate(SWAPPED_IN_MODE),
                )?);
            }
            Swap::DanglingLink => {
                nix::unistd::symlinkat(c"swapped-away", &path.dir, path.name.as_c_str())?;
            }
        }
        self.handler.on_effect(CallEffect::Swapped { path: call.path.clone() });
        Ok(())
    }
}
