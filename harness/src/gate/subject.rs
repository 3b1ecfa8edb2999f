//! Finds out what a stopped call is about: which file or name, and whether it is watched. Changes nothing.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::libc;

use super::Kind;
use super::calls::{Asked, PathAt, opens_for_writing};
use super::perform::Hands;
use super::place::{Spot, path_of};
use super::sys::{self, Facts};

/// What a call is about, found out before anything happens.
pub(super) struct Subject {
    pub(super) kind: Kind,
    pub(super) watched: bool,
    pub(super) path: PathBuf,
    pub(super) bytes: Option<u64>,
    pub(super) spot: Option<Spot>,
    pub(super) to: Option<Spot>,
    pub(super) file: Option<(OwnedFd, Facts)>,
}

impl Hands<'_> {
    /// None: it is about nothing that could be watched.
    pub(super) fn subject(&self, asked: &Asked) -> Result<Option<Subject>, Errno> {
        Ok(Some(match asked {
            Asked::Open { path, flags, .. } => {
                let never_through = libc::O_NOFOLLOW | libc::O_EXCL;
                let kind = if opens_for_writing(*flags) { Kind::Open } else { Kind::OpenRead };
                self.on_spot(kind, self.thread.spot(*path, flags & never_through == 0)?)
            }
            Asked::TruncatePath { path, .. } => self.on_spot(Kind::Truncate, self.thread.spot(*path, true)?),
            Asked::OnPath { kind, path } => {
                let follow = *kind != Kind::Stat;
                self.on_spot(*kind, self.thread.spot(*path, follow)?)
            }
            Asked::Unlink { path, folder } => {
                let kind = if *folder { Kind::Rmdir } else { Kind::Unlink };
                self.on_spot(kind, self.thread.spot(*path, false)?)
            }
            Asked::Mkdir { path, .. } => self.on_spot(Kind::Mkdir, self.thread.spot(*path, false)?),
            Asked::Symlink { path, .. } => self.on_spot(Kind::Symlink, self.thread.spot(*path, false)?),
            Asked::Rename { from, to, .. } => self.between(Kind::Rename, *from, *to)?,
            Asked::Link { from, to, .. } => self.link(*from, *to)?,
            Asked::Write { fd, bytes, .. } => self.on_file(Kind::Write, *fd, Some(self.length(*bytes)?))?,
            Asked::Read { fd, bytes, .. } => self.on_file(Kind::Read, *fd, Some(self.length(*bytes)?))?,
            Asked::Transfer { out, args, .. } => self.on_file(Kind::Write, *out, Some(args[3]))?,
            Asked::Truncate { fd, .. } => self.on_file(Kind::Truncate, *fd, None)?,
            Asked::Allocate { fd, .. } => self.on_file(Kind::Allocate, *fd, None)?,
            Asked::OnFile { kind, fd } => self.on_file(*kind, *fd, None)?,
            Asked::Map { fd } => self.on_file(Kind::Map, *fd, None)?,
            Asked::Sync { fd, data_only } => {
                self.on_file(if *data_only { Kind::Fdatasync } else { Kind::Fsync }, *fd, None)?
            }
            Asked::Msync { at, .. } => match self.thread.mapped_facts(*at) {
                Some(facts) => Subject {
                    kind: Kind::Msync,
                    watched: self.watched.has(&facts),
                    path: self.thread.mapped_at(*at).unwrap_or_default(),
                    bytes: None,
                    spot: None,
                    to: None,
                    file: None,
                },
                None => return Ok(None),
            },
            Asked::SyncAll => Subject {
                kind: Kind::Syncfs,
                watched: true,
                path: "/".into(),
                bytes: None,
                spot: None,
                to: None,
                file: None,
            },
            Asked::OpenHow { .. } | Asked::Refused { .. } => return Ok(None),
        }))
    }

    fn on_spot(&self, kind: Kind, spot: Spot) -> Subject {
        let plain = |facts: &Facts| {
            matches!(facts.mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK)
        };
        let watched = self.watched.has(&spot.dir_facts) && spot.found.as_ref().is_none_or(plain);
        let path = spot.path();
        Subject { kind, watched, path, bytes: None, spot: Some(spot), to: None, file: None }
    }

    fn between(&self, kind: Kind, from: PathAt, to: PathAt) -> Result<Subject, Errno> {
        let to = self.thread.spot(to, false)?;
        let mut subject = self.on_spot(kind, self.thread.spot(from, false)?);
        subject.watched |= self.watched.has(&to.dir_facts);
        subject.to = Some(to);
        Ok(subject)
    }

    /// The source may be a file without a name, given as a descriptor.
    fn link(&self, from: PathAt, to: PathAt) -> Result<Subject, Errno> {
        let text = self.thread.text(from.text)?;
        let nameless = if text.is_empty() {
            Some(self.thread.duplicate(from.dir)?)
        } else {
            self.thread.named_descriptor(&text)
        };
        let Some(file) = nameless else { return self.between(Kind::Link, from, to) };
        let to = self.thread.spot(to, false)?;
        let facts = sys::facts(file.as_fd(), c"")?;
        let watched = self.watched.has(&to.dir_facts);
        let (path, file) = (path_of(file.as_fd()), Some((file, facts)));
        Ok(Subject { kind: Kind::Link, watched, path, bytes: None, spot: None, to: Some(to), file })
    }

    fn on_file(&self, kind: Kind, fd: i32, bytes: Option<u64>) -> Result<Subject, Errno> {
        let file = self.thread.duplicate(fd)?;
        let facts = sys::facts(file.as_fd(), c"")?;
        let watched =
            self.watched.has(&facts) && matches!(facts.mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR);
        let wanted = watched && self.overseer.wants_paths();
        let path = if wanted { path_of(file.as_fd()) } else { PathBuf::new() };
        Ok(Subject { kind, watched, path, bytes, spot: None, to: None, file: Some((file, facts)) })
    }
}
