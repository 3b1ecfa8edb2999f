//! Resolves what an intercepted call acts on: which file or directory entry, and whether it is watched.
//! Changes nothing.

use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::libc;

use super::CallKind;
use super::attribute_calls::{AttributeCall, AttributeObject};
use super::calls::{CallRequest, OpenHow, PathArgument, opens_for_writing};
use super::follow_error::FollowError;
use super::open_file::{OpenFile, fd_path};
use super::path_walk::{LastName, ResolvedPath, WalkOptions, WalkedPath};
use super::stat::{FileStat, WatchedMounts};
use super::target_thread::{MappedRange, TargetThread};

/// What a call acts on. Resolved before the call takes effect.
pub(super) struct ResolvedCall {
    pub(super) kind: CallKind,
    pub(super) watched: bool,
    pub(super) path: PathBuf,
    pub(super) requested_bytes: Option<u64>,
    /// For a call on a path. For a rename or link, the source.
    pub(super) resolved_path: Option<ResolvedPath>,
    /// The destination of a rename or link.
    pub(super) resolved_to: Option<ResolvedPath>,
    /// For a call on a descriptor, a duplicate of it. For a call on a path without a last name, the file.
    pub(super) file: Option<OpenFile>,
    /// The kernel would refuse the call with this errno, but with another one behind the gate.
    pub(super) refused: Option<Errno>,
}

impl ResolvedCall {
    /// A call on neither a path nor a descriptor.
    fn new(kind: CallKind, watched: bool, path: PathBuf) -> ResolvedCall {
        ResolvedCall {
            kind,
            watched,
            path,
            requested_bytes: None,
            resolved_path: None,
            resolved_to: None,
            file: None,
            refused: None,
        }
    }
}

/// Resolves calls of one thread.
pub(super) struct CallResolver<'a> {
    /// The thread that makes the call.
    pub(super) thread: &'a TargetThread,
    /// The mounts whose files are watched.
    pub(super) watched: &'a WatchedMounts,
    /// Whether the path of a call on a descriptor is needed.
    pub(super) needs_fd_paths: bool,
}

impl CallResolver<'_> {
    /// Resolves a call. Returns `None` if it acts on nothing that could be watched.
    ///
    /// # Errors
    /// The call is wrong, so that the kernel refuses it too, or what it acts on cannot be found out.
    pub(super) fn resolve(&self, request: &CallRequest) -> Result<Option<ResolvedCall>, FollowError> {
        Ok(Some(match request {
            CallRequest::Open { path, how, .. } => return self.open_call(*path, *how),
            CallRequest::TruncatePath { path, .. } => {
                self.call_on_path(CallKind::Truncate, *path, LastName::Followed)?
            }
            CallRequest::SetAttributes(call) => self.attribute_call(*call)?,
            CallRequest::ByPath { kind, path } => {
                let last = if *kind == CallKind::Stat { LastName::NotFollowed } else { LastName::Followed };
                self.call_on_path(*kind, *path, last)?
            }
            CallRequest::Unlink { path, is_dir } => {
                let kind = if *is_dir { CallKind::Rmdir } else { CallKind::Unlink };
                self.call_on_path(kind, *path, LastName::Changed)?
            }
            CallRequest::Mkdir { path, .. } => {
                self.call_on_path(CallKind::Mkdir, *path, LastName::Changed)?
            }
            CallRequest::Mknod { path, .. } => {
                self.call_on_path(CallKind::Mknod, *path, LastName::Changed)?
            }
            CallRequest::Symlink { path, .. } => {
                self.call_on_path(CallKind::Symlink, *path, LastName::Changed)?
            }
            CallRequest::Rename { from, to, .. } => {
                let from = self.thread.walk(*from, WalkOptions::new(LastName::Changed))?;
                self.call_between_paths(CallKind::Rename, from, *to)?
            }
            CallRequest::Link { from, to, flags } => self.link_call(*from, *to, *flags)?,
            CallRequest::Write { fd, buffer, .. } => {
                self.call_on_fd(CallKind::Write, *fd, Some(self.thread.buffer_len(*buffer)?))?
            }
            CallRequest::Read { fd, buffer, .. } => {
                self.call_on_fd(CallKind::Read, *fd, Some(self.thread.buffer_len(*buffer)?))?
            }
            CallRequest::Transfer { out_fd, len_bytes, .. } => {
                self.call_on_fd(CallKind::Write, *out_fd, Some(*len_bytes))?
            }
            CallRequest::Clone { fd, .. } => self.call_on_fd(CallKind::Write, *fd, None)?,
            CallRequest::Truncate { fd, .. } => self.call_on_fd(CallKind::Truncate, *fd, None)?,
            CallRequest::Allocate { fd, .. } => self.call_on_fd(CallKind::Allocate, *fd, None)?,
            CallRequest::ByFd { kind, fd } => self.call_on_fd(*kind, *fd, None)?,
            CallRequest::Map { fd } => self.call_on_fd(CallKind::Map, *fd, None)?,
            CallRequest::Sync { fd, data_only } => {
                self.call_on_fd(if *data_only { CallKind::Fdatasync } else { CallKind::Fsync }, *fd, None)?
            }
            CallRequest::SyncAll { fd: Some(fd) } => ResolvedCall {
                watched: self
                    .watched
                    .has_file_system_of(&OpenFile::new(self.thread.duplicate_fd(*fd)?)?.stat),
                ..ResolvedCall::new(CallKind::Syncfs, true, "/".into())
            },
            CallRequest::SyncAll { fd: None } => ResolvedCall::new(CallKind::Syncfs, true, "/".into()),
            CallRequest::Msync { address, len_bytes, .. } => {
                return Ok(self.msync_call(*address, *len_bytes));
            }
            CallRequest::Openat2 { .. } | CallRequest::Refused { .. } => return Ok(None),
        }))
    }

    fn open_call(&self, path: PathArgument, how: OpenHow) -> Result<Option<ResolvedCall>, FollowError> {
        let has = |flag: i32| how.flags as i32 & flag == flag;
        if has(libc::O_PATH) {
            return Ok(None);
        }
        let kind = if opens_for_writing(how.flags) { CallKind::Open } else { CallKind::OpenToRead };
        let keeps_link = has(libc::O_NOFOLLOW) || has(libc::O_CREAT | libc::O_EXCL);
        let last = if keeps_link { LastName::NotFollowed } else { LastName::Followed };
        let walked = self.thread.walk(path, WalkOptions { last, resolve: how.resolve })?;
        if has(libc::O_TMPFILE) {
            // The path names the directory of the new file.
            return Ok(Some(self.call_on_object(kind, walked.open_node()?)));
        }
        Ok(Some(self.call_on_walked(kind, walked)))
    }

    fn call_on_path(
        &self,
        kind: CallKind,
        path: PathArgument,
        last: LastName,
    ) -> Result<ResolvedCall, FollowError> {
        Ok(self.call_on_walked(kind, self.thread.walk(path, WalkOptions::new(last))?))
    }

    fn call_on_walked(&self, kind: CallKind, walked: WalkedPath) -> ResolvedCall {
        let resolved = match walked {
            WalkedPath::Entry(resolved) => resolved,
            WalkedPath::Object(file) => return self.call_on_object(kind, file),
        };
        // Opening a pipe could wait for its other end.
        let opens = matches!(kind, CallKind::Open | CallKind::OpenToRead | CallKind::Truncate);
        let has_supported_type =
            |stat: &FileStat| stat.has_recorded_type() && !(opens && stat.file_type() == libc::S_IFIFO);
        let watched = self.watched.contains(&resolved.dir_stat)
            && resolved.stat.as_ref().is_none_or(has_supported_type);
        let path = resolved.path();
        ResolvedCall { resolved_path: Some(resolved), ..ResolvedCall::new(kind, watched, path) }
    }

    /// A call on a file that exists and that the path reaches without a last name.
    fn call_on_object(&self, kind: CallKind, file: OpenFile) -> ResolvedCall {
        let has_supported_type = matches!(file.stat.file_type(), libc::S_IFREG | libc::S_IFDIR);
        let watched = self.watched.contains(&file.stat) && has_supported_type;
        let path = fd_path(file.fd.as_fd());
        ResolvedCall { file: Some(file), ..ResolvedCall::new(kind, watched, path) }
    }

    fn call_between_paths(
        &self,
        kind: CallKind,
        from: WalkedPath,
        to: PathArgument,
    ) -> Result<ResolvedCall, FollowError> {
        let to = self.thread.walk(to, WalkOptions::new(LastName::Changed))?;
        let mut call = self.call_on_walked(kind, from);
        match to {
            WalkedPath::Entry(to) => {
                call.watched |= self.watched.contains(&to.dir_stat);
                call.resolved_to = Some(to);
            }
            // The kernel refuses `.`, `..` and `/` as a new name.
            WalkedPath::Object(_) => call.watched = false,
        }
        Ok(call)
    }

    /// Resolves a link call. Its source may be a descriptor, passed with an empty path or by a link of /proc.
    fn link_call(
        &self,
        from: PathArgument,
        to: PathArgument,
        flags: i32,
    ) -> Result<ResolvedCall, FollowError> {
        let by_descriptor =
            flags & libc::AT_EMPTY_PATH != 0 && self.thread.read_string(from.text_address)?.is_empty();
        let source = if by_descriptor {
            WalkedPath::Object(self.thread.open_object(from, LastName::Followed)?)
        } else {
            let follows = flags & libc::AT_SYMLINK_FOLLOW != 0;
            let last = if follows { LastName::Followed } else { LastName::NotFollowed };
            self.thread.walk(from, WalkOptions::new(last))?
        };
        if !by_descriptor {
            return self.call_between_paths(CallKind::Link, source, to);
        }
        // The kernel looks at the new name only for whoever opened the file. Behind the gate that is the supervisor.
        let to = match self.thread.walk(to, WalkOptions::new(LastName::Changed)) {
            Ok(WalkedPath::Entry(to)) => Ok(to),
            Ok(WalkedPath::Object(_)) => Err(Errno::EEXIST),
            Err(FollowError::Target(errno)) => Err(errno),
            Err(failure) => return Err(failure),
        };
        let mut call = self.call_on_walked(CallKind::Link, source);
        call.refused = to.as_ref().err().copied();
        call.resolved_to = to.ok();
        call.watched |= call.resolved_to.as_ref().is_some_and(|to| self.watched.contains(&to.dir_stat));
        Ok(call)
    }

    /// Resolves an msync call by the watched files that are mapped in its range.
    fn msync_call(&self, address: u64, len_bytes: u64) -> Option<ResolvedCall> {
        let ranges = self.thread.mapped_files(address, len_bytes);
        let may_be_synced = |range: &MappedRange| range.is_shared && self.watched.may_contain(range.file_id);
        let range = ranges.into_iter().find(may_be_synced)?;
        Some(ResolvedCall::new(CallKind::Msync, true, range.path))
    }

    /// Resolves a call on attributes. Its object may be anything that exists, also `.` and a watched
    /// directory itself.
    fn attribute_call(&self, call: AttributeCall) -> Result<ResolvedCall, FollowError> {
        let kind = call.kind;
        let (path, follow) = match call.object {
            AttributeObject::Fd(fd) => {
                let mut call = self.call_on_fd(kind, fd, None)?;
                // A pipe that is open has a mode too.
                call.watched = call
                    .file
                    .as_ref()
                    .is_some_and(|file| self.watched.contains(&file.stat) && file.stat.has_recorded_type());
                return Ok(call);
            }
            AttributeObject::Path { dir_fd, text_address, follow } => {
                (PathArgument { dir_fd, text_address }, follow)
            }
        };
        let last = if follow { LastName::Followed } else { LastName::NotFollowed };
        let file = self.thread.open_object(path, last)?;
        let watched = self.watched.contains(&file.stat) && file.stat.has_recorded_type();
        let path = fd_path(file.fd.as_fd());
        Ok(ResolvedCall { file: Some(file), ..ResolvedCall::new(kind, watched, path) })
    }

    fn call_on_fd(
        &self,
        kind: CallKind,
        fd: i32,
        requested_bytes: Option<u64>,
    ) -> Result<ResolvedCall, FollowError> {
        let file = OpenFile::new(self.thread.duplicate_fd(fd)?)?;
        let watched = self.watched.contains(&file.stat)
            && matches!(file.stat.file_type(), libc::S_IFREG | libc::S_IFDIR);
        let needs_path = watched && self.needs_fd_paths;
        let path = if needs_path { fd_path(file.fd.as_fd()) } else { PathBuf::new() };
        Ok(ResolvedCall { requested_bytes, file: Some(file), ..ResolvedCall::new(kind, watched, path) })
    }
}
