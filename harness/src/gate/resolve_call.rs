//! Finds out what a stopped call is about: which file or name, and whether it is watched. Changes nothing.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::libc;

use super::CallKind;
use super::calls::{CallRequest, PathArgument, opens_for_writing};
use super::perform::CallContext;
use super::sys::{self, FileStat};
use super::target_thread::{ResolvedPath, fd_path};

/// What a call is about, found out before anything happens.
pub(super) struct ResolvedCall {
    pub(super) kind: CallKind,
    pub(super) watched: bool,
    pub(super) path: PathBuf,
    pub(super) requested_bytes: Option<u64>,
    pub(super) resolved_path: Option<ResolvedPath>,
    pub(super) resolved_to: Option<ResolvedPath>,
    pub(super) file: Option<(OwnedFd, FileStat)>,
}

impl CallContext<'_> {
    /// None: it is about nothing that could be watched.
    pub(super) fn resolve_call(&self, asked: &CallRequest) -> Result<Option<ResolvedCall>, Errno> {
        Ok(Some(match asked {
            CallRequest::Open { path, flags, .. } => {
                let never_through = libc::O_NOFOLLOW | libc::O_EXCL;
                let kind = if opens_for_writing(*flags) { CallKind::Open } else { CallKind::OpenRead };
                self.call_on_path(kind, self.thread.resolve(*path, flags & never_through == 0)?)
            }
            CallRequest::TruncatePath { path, .. } => {
                self.call_on_path(CallKind::Truncate, self.thread.resolve(*path, true)?)
            }
            CallRequest::ByPath { kind, path } => {
                let follow = *kind != CallKind::Stat;
                self.call_on_path(*kind, self.thread.resolve(*path, follow)?)
            }
            CallRequest::Unlink { path, is_dir: folder } => {
                let kind = if *folder { CallKind::Rmdir } else { CallKind::Unlink };
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
            CallRequest::Write { fd, buffer: bytes, .. } => {
                self.call_on_fd(CallKind::Write, *fd, Some(self.buffer_len(*bytes)?))?
            }
            CallRequest::Read { fd, buffer: bytes, .. } => {
                self.call_on_fd(CallKind::Read, *fd, Some(self.buffer_len(*bytes)?))?
            }
            CallRequest::Transfer { out_fd: out, args, .. } => {
                self.call_on_fd(CallKind::Write, *out, Some(args[3]))?
            }
            CallRequest::Truncate { fd, .. } => self.call_on_fd(CallKind::Truncate, *fd, None)?,
            CallRequest::Allocate { fd, .. } => self.call_on_fd(CallKind::Allocate, *fd, None)?,
            CallRequest::ByFd { kind, fd } => self.call_on_fd(*kind, *fd, None)?,
            CallRequest::Map { fd } => self.call_on_fd(CallKind::Map, *fd, None)?,
            CallRequest::Sync { fd, data_only } => {
                self.call_on_fd(if *data_only { CallKind::Fdatasync } else { CallKind::Fsync }, *fd, None)?
            }
            CallRequest::Msync { address: at, .. } => match self.thread.mapped_stat(*at) {
                Some(facts) => ResolvedCall {
                    kind: CallKind::Msync,
                    watched: self.watched.contains(&facts),
                    path: self.thread.mapped_path(*at).unwrap_or_default(),
                    requested_bytes: None,
                    resolved_path: None,
                    resolved_to: None,
                    file: None,
                },
                None => return Ok(None),
            },
            CallRequest::SyncAll => ResolvedCall {
                kind: CallKind::Syncfs,
                watched: true,
                path: "/".into(),
                requested_bytes: None,
                resolved_path: None,
                resolved_to: None,
                file: None,
            },
            CallRequest::Openat2 { .. } | CallRequest::Refused { .. } => return Ok(None),
        }))
    }

    fn call_on_path(&self, kind: CallKind, spot: ResolvedPath) -> ResolvedCall {
        let plain = |facts: &FileStat| {
            matches!(facts.mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK)
        };
        let watched = self.watched.contains(&spot.dir_stat) && spot.stat.as_ref().is_none_or(plain);
        let path = spot.path();
        ResolvedCall {
            kind,
            watched,
            path,
            requested_bytes: None,
            resolved_path: Some(spot),
            resolved_to: None,
            file: None,
        }
    }

    fn call_between_paths(
        &self,
        kind: CallKind,
        from: PathArgument,
        to: PathArgument,
    ) -> Result<ResolvedCall, Errno> {
        let to = self.thread.resolve(to, false)?;
        let mut subject = self.call_on_path(kind, self.thread.resolve(from, false)?);
        subject.watched |= self.watched.contains(&to.dir_stat);
        subject.resolved_to = Some(to);
        Ok(subject)
    }

    /// The source may be a file without a name, given as a descriptor.
    fn link_call(&self, from: PathArgument, to: PathArgument) -> Result<ResolvedCall, Errno> {
        let text = self.thread.read_string(from.text_address)?;
        let nameless = if text.is_empty() {
            Some(self.thread.duplicate_fd(from.dir_fd)?)
        } else {
            self.thread.proc_self_fd(&text)
        };
        let Some(file) = nameless else { return self.call_between_paths(CallKind::Link, from, to) };
        let to = self.thread.resolve(to, false)?;
        let facts = sys::statx(file.as_fd(), c"")?;
        let watched = self.watched.contains(&to.dir_stat);
        let (path, file) = (fd_path(file.as_fd()), Some((file, facts)));
        Ok(ResolvedCall {
            kind: CallKind::Link,
            watched,
            path,
            requested_bytes: None,
            resolved_path: None,
            resolved_to: Some(to),
            file,
        })
    }

    fn call_on_fd(&self, kind: CallKind, fd: i32, bytes: Option<u64>) -> Result<ResolvedCall, Errno> {
        let file = self.thread.duplicate_fd(fd)?;
        let facts = sys::statx(file.as_fd(), c"")?;
        let watched = self.watched.contains(&facts)
            && matches!(facts.mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR);
        let wanted = watched && self.handler.needs_paths();
        let path = if wanted { fd_path(file.as_fd()) } else { PathBuf::new() };
        Ok(ResolvedCall {
            kind,
            watched,
            path,
            requested_bytes: bytes,
            resolved_path: None,
            resolved_to: None,
            file: Some((file, facts)),
        })
    }
}
