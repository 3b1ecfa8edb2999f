//! Resolves what an intercepted call acts on: which file or directory entry, and whether it is watched.
//! Changes nothing.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::libc;

use super::CallKind;
use super::attribute_calls::{AttributeCall, AttributeObject};
use super::calls::{CallRequest, PathArgument, opens_for_writing};
use super::stat::{FileStat, WatchedMounts};
use super::target_thread::{ResolvedPath, TargetThread, fd_path};

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
    /// For a call on a descriptor, a duplicate of it.
    pub(super) file: Option<OpenFile>,
}

/// A duplicate of a descriptor of the target, with the metadata of its file.
pub(super) struct OpenFile {
    pub(super) fd: OwnedFd,
    pub(super) stat: FileStat,
}

impl OpenFile {
    pub(super) fn new(fd: OwnedFd) -> Result<OpenFile, Errno> {
        let stat = FileStat::of_file(fd.as_fd())?;
        Ok(OpenFile { fd, stat })
    }
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
    pub(super) fn resolve(&self, request: &CallRequest) -> Result<Option<ResolvedCall>, Errno> {
        Ok(Some(match request {
            CallRequest::Open { path, flags, .. } => {
                let nofollow_flags = libc::O_NOFOLLOW | libc::O_EXCL;
                let kind = if opens_for_writing(*flags) { CallKind::Open } else { CallKind::OpenToRead };
                self.call_on_path(kind, self.thread.resolve(*path, flags & nofollow_flags == 0)?)
            }
            CallRequest::TruncatePath { path, .. } => {
                self.call_on_path(CallKind::Truncate, self.thread.resolve(*path, true)?)
            }
            CallRequest::SetAttributes(call) => self.attribute_call(*call)?,
            CallRequest::ByPath { kind, path } => {
                let follow = *kind != CallKind::Stat;
                self.call_on_path(*kind, self.thread.resolve(*path, follow)?)
            }
            CallRequest::Unlink { path, is_dir } => {
                let kind = if *is_dir { CallKind::Rmdir } else { CallKind::Unlink };
                self.call_on_path(kind, self.thread.resolve(*path, false)?)
            }
            CallRequest::Mkdir { path, .. } => {
                self.call_on_path(CallKind::Mkdir, self.thread.resolve(*path, false)?)
            }
            CallRequest::Symlink { path, .. } => {
                self.call_on_path(CallKind::Symlink, self.thread.resolve(*path, false)?)
            }
            CallRequest::Rename { from, to, .. } => self.call_between_paths(CallKind::Rename, *from, *to)?,
            CallRequest::Link { from, to, .. } => self.link_call(*from, *to)?,
            CallRequest::Write { fd, buffer, .. } => {
                self.call_on_fd(CallKind::Write, *fd, Some(self.thread.buffer_len(*buffer)?))?
            }
            CallRequest::Read { fd, buffer, .. } => {
                self.call_on_fd(CallKind::Read, *fd, Some(self.thread.buffer_len(*buffer)?))?
            }
            CallRequest::Transfer { out_fd, len_bytes, .. } => {
                self.call_on_fd(CallKind::Write, *out_fd, Some(*len_bytes))?
            }
            CallRequest::Truncate { fd, .. } => self.call_on_fd(CallKind::Truncate, *fd, None)?,
            CallRequest::Allocate { fd, .. } => self.call_on_fd(CallKind::Allocate, *fd, None)?,
            CallRequest::ByFd { kind, fd } => self.call_on_fd(*kind, *fd, None)?,
            CallRequest::Map { fd } => self.call_on_fd(CallKind::Map, *fd, None)?,
            CallRequest::Sync { fd, data_only } => {
                self.call_on_fd(if *data_only { CallKind::Fdatasync } else { CallKind::Fsync }, *fd, None)?
            }
            CallRequest::Msync { address, .. } => match self.thread.mapped_stat(*address) {
                Some(stat) => ResolvedCall::new(
                    CallKind::Msync,
                    self.watched.contains(&stat),
                    self.thread.mapped_path(*address).unwrap_or_default(),
                ),
                None => return Ok(None),
            },
            CallRequest::SyncAll => ResolvedCall::new(CallKind::Syncfs, true, "/".into()),
            CallRequest::Openat2 { .. } | CallRequest::Refused { .. } => return Ok(None),
        }))
    }

    fn call_on_path(&self, kind: CallKind, resolved: ResolvedPath) -> ResolvedCall {
        // Opening a pipe could wait for its other end.
        let opens = matches!(kind, CallKind::Open | CallKind::OpenToRead);
        let has_supported_type =
            |stat: &FileStat| has_recorded_type(stat) && !(opens && stat.file_type() == libc::S_IFIFO);
        let watched = self.watched.contains(&resolved.dir_stat)
            && resolved.stat.as_ref().is_none_or(has_supported_type);
        let path = resolved.path();
        ResolvedCall { resolved_path: Some(resolved), ..ResolvedCall::new(kind, watched, path) }
    }

    fn call_between_paths(
        &self,
        kind: CallKind,
        from: PathArgument,
        to: PathArgument,
    ) -> Result<ResolvedCall, Errno> {
        let to = self.thread.resolve(to, false)?;
        let mut call = self.call_on_path(kind, self.thread.resolve(from, false)?);
        call.watched |= self.watched.contains(&to.dir_stat);
        call.resolved_to = Some(to);
        Ok(call)
    }

    /// Resolves a link call. Its source may be a descriptor of an unnamed file, passed with an empty path or
    /// as `/proc/self/fd/N`.
    fn link_call(&self, from: PathArgument, to: PathArgument) -> Result<ResolvedCall, Errno> {
        let text = self.thread.read_string(from.text_address)?;
        let descriptor = if text.is_empty() {
            Some(self.thread.duplicate_fd(from.dir_fd)?)
        } else {
            self.thread.proc_self_fd(&text)
        };
        let Some(file) = descriptor else { return self.call_between_paths(CallKind::Link, from, to) };
        let to = self.thread.resolve(to, false)?;
        let file = OpenFile::new(file)?;
        let watched = self.watched.contains(&to.dir_stat);
        let path = fd_path(file.fd.as_fd());
        Ok(ResolvedCall {
            resolved_to: Some(to),
            file: Some(file),
            ..ResolvedCall::new(CallKind::Link, watched, path)
        })
    }

    /// Resolves a call on attributes. Its object may be anything that exists, also `.` and a watched
    /// directory itself.
    fn attribute_call(&self, call: AttributeCall) -> Result<ResolvedCall, Errno> {
        let kind = call.kind;
        let (path, follow) = match call.object {
            AttributeObject::Fd(fd) => return self.call_on_fd(kind, fd, None),
            AttributeObject::Path { dir_fd, text_address, follow } => {
                (PathArgument { dir_fd, text_address }, follow)
            }
        };
        let file = self.thread.open_object(path, follow).and_then(OpenFile::new);
        // A path whose last component is a name is resolved as other calls resolve it.
        let named = (path.text_address != 0).then(|| self.thread.resolve(path, follow));
        let mut call = match named {
            Some(Ok(resolved)) => self.call_on_path(kind, resolved),
            _ => {
                let path = file.as_ref().map(|file| fd_path(file.fd.as_fd()));
                ResolvedCall::new(kind, false, path.map_err(|errno| *errno)?)
            }
        };
        if let Ok(file) = file {
            call.watched |= self.watched.contains(&file.stat) && has_recorded_type(&file.stat);
            call.file = Some(file);
        }
        Ok(call)
    }

    fn call_on_fd(
        &self,
        kind: CallKind,
        fd: i32,
        requested_bytes: Option<u64>,
    ) -> Result<ResolvedCall, Errno> {
        let file = OpenFile::new(self.thread.duplicate_fd(fd)?)?;
        let watched = self.watched.contains(&file.stat)
            && matches!(file.stat.file_type(), libc::S_IFREG | libc::S_IFDIR);
        let needs_path = watched && self.needs_fd_paths;
        let path = if needs_path { fd_path(file.fd.as_fd()) } else { PathBuf::new() };
        Ok(ResolvedCall { requested_bytes, file: Some(file), ..ResolvedCall::new(kind, watched, path) })
    }
}

/// Whether a recording has files of this type.
fn has_recorded_type(stat: &FileStat) -> bool {
    matches!(stat.file_type(), libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK | libc::S_IFIFO)
}
