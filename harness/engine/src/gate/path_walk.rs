//! Follows a path of the target, name by name, as the kernel would follow it for the calling thread: from the
//! target's root and working directory, with its own `/proc/self`. Changes nothing.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::libc;
use nix::sys::stat::Mode;

use super::follow_error::FollowError;
use super::handler::DirectoryEntry;
use super::open_file::{OpenFile, clone_fd, fd_path};
use super::stat::{FileId, FileStat};
use super::sys;
use super::thread_status::status_field;

/// Maximum number of symbolic links in one path, as in the kernel (`MAXSYMLINKS`).
const MAX_SYMLINKS: u32 = 40;
/// Opens a directory or a link itself, without access to its content.
const NODE_FLAGS: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

/// How a path is followed.
#[derive(Debug, Clone, Copy)]
pub(super) struct WalkOptions {
    pub(super) last: LastName,
    /// The `RESOLVE_*` bits of openat2.
    pub(super) resolve: u64,
}

/// What happens if the last name of a path is a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LastName {
    /// The link is followed.
    Followed,
    /// The call acts on the link, unless a slash follows its name.
    NotFollowed,
    /// The call creates, removes or renames the name itself, also if a slash follows it.
    Changed,
}

impl WalkOptions {
    pub(super) fn new(last: LastName) -> WalkOptions {
        WalkOptions { last, resolve: 0 }
    }

    fn has(self, flag: u64) -> bool {
        self.resolve & flag != 0
    }
}

/// What a path names.
pub(super) enum WalkedPath {
    /// A name in a directory. The file may not exist.
    Entry(ResolvedPath),
    /// A file that exists, reached without a last name: by `.`, `..`, `/`, or a link of `/proc` to an open file.
    Object(OpenFile),
}

/// A name in a directory, as a path of the target gives it.
pub(super) struct ResolvedPath {
    pub(super) dir: OwnedFd,
    pub(super) dir_stat: FileStat,
    /// The last name.
    pub(super) name: CString,
    /// The last name with a slash after it, if the path has one: the kernel then wants a directory.
    pub(super) text: CString,
    /// Metadata of the named file, or `None` if it does not exist. For a symbolic link, that of the link
    /// itself.
    pub(super) stat: Option<FileStat>,
}

impl ResolvedPath {
    /// The directory entry that the path names.
    pub(super) fn entry(&self) -> DirectoryEntry {
        let name = OsStr::from_bytes(self.name.as_bytes()).to_owned();
        DirectoryEntry { dir: self.dir_stat.file_id, path: self.path(), name }
    }

    /// The whole path, as the target sees it.
    pub(super) fn path(&self) -> PathBuf {
        fd_path(self.dir.as_fd()).join(OsStr::from_bytes(self.name.as_bytes()))
    }

    /// The identity of the named file, if it exists.
    pub(super) fn file_id(&self) -> Option<FileId> {
        self.stat.map(|stat| stat.file_id)
    }

    /// The named file itself, without access to its content.
    pub(super) fn open_node(&self) -> Result<OpenFile, Errno> {
        OpenFile::new(openat(&self.dir, self.text.as_c_str(), NODE_FLAGS, Mode::empty())?)
    }
}

impl WalkedPath {
    /// The file that the path names.
    ///
    /// # Errors
    /// It does not exist, or can't be opened.
    pub(super) fn open_node(&self) -> Result<OpenFile, Errno> {
        match self {
            WalkedPath::Entry(path) => path.open_node(),
            WalkedPath::Object(file) => Ok(file.clone_node()?),
        }
    }
}

/// Where a walk starts.
pub(super) struct WalkStart {
    /// The thread that follows the path.
    pub(super) tid: i32,
    /// Its root directory.
    pub(super) root: OwnedFd,
    /// The directory from which a relative path starts; for an absolute one, the root.
    pub(super) base: OwnedFd,
}

/// A walk in progress.
pub(super) struct PathWalk {
    tid: i32,
    options: WalkOptions,
    /// Where absolute links start, and where `..` stays.
    root: Node,
    current: Node,
    /// The bytes of the path that are still to be followed.
    rest: Vec<u8>,
    links_followed: u32,
}

/// A directory on the way.
struct Node {
    fd: OwnedFd,
    stat: FileStat,
}

impl Node {
    fn new(fd: OwnedFd) -> Result<Node, Errno> {
        let stat = FileStat::of_file(fd.as_fd())?;
        Ok(Node { fd, stat })
    }

    fn try_clone(&self) -> Result<Node, Errno> {
        Ok(Node { fd: clone_fd(self.fd.as_fd())?, stat: self.stat })
    }

    fn is(&self, other: &Node) -> bool {
        (self.stat.file_id, self.stat.mount_id) == (other.stat.file_id, other.stat.mount_id)
    }
}

/// The next name of a path.
struct NextName {
    name: Vec<u8>,
    /// No other name follows.
    is_last: bool,
    /// A slash follows.
    has_slash: bool,
}

impl PathWalk {
    /// Prepares to follow `text`.
    pub(super) fn new(start: WalkStart, text: &CStr, options: WalkOptions) -> Result<PathWalk, Errno> {
        let base = Node::new(start.base)?;
        let in_base = options.has(libc::RESOLVE_IN_ROOT) || options.has(libc::RESOLVE_BENEATH);
        let root = if in_base { base.try_clone()? } else { Node::new(start.root)? };
        let mut walk = PathWalk {
            tid: start.tid,
            options,
            root,
            current: base,
            rest: text.to_bytes().to_vec(),
            links_followed: 0,
        };
        walk.start_at_root_if_absolute()?;
        Ok(walk)
    }

    /// Follows the path to its end.
    ///
    /// # Errors
    /// The errno with which the kernel would fail, or with which a call of ours failed.
    pub(super) fn run(mut self) -> Result<WalkedPath, FollowError> {
        loop {
            let Some(next) = self.take_name() else {
                return Ok(WalkedPath::Object(OpenFile { fd: self.current.fd, stat: self.current.stat }));
            };
            match &next.name[..] {
                b"." if self.current.stat.file_type() != libc::S_IFDIR => return Err(Errno::ENOTDIR.into()),
                b"." => {}
                b".." => self.go_up()?,
                _ => {
                    let name = CString::new(&next.name[..]).map_err(|_| Errno::EINVAL)?;
                    if let Some(walked) = self.step(name, &next)? {
                        return Ok(walked);
                    }
                }
            }
        }
    }

    fn take_name(&mut self) -> Option<NextName> {
        let start = self.rest.iter().position(|byte| *byte != b'/')?;
        let after = &self.rest[start..];
        let len = after.iter().position(|byte| *byte == b'/').unwrap_or(after.len());
        let name = after[..len].to_vec();
        let has_slash = after.len() > len;
        let rest = after[len..].to_vec();
        let is_last = rest.iter().all(|byte| *byte == b'/');
        self.rest = rest;
        Some(NextName { name, is_last, has_slash })
    }

    fn start_at_root_if_absolute(&mut self) -> Result<(), Errno> {
        if !self.rest.starts_with(b"/") {
            return Ok(());
        }
        if self.options.has(libc::RESOLVE_BENEATH) {
            return Err(Errno::EXDEV);
        }
        let root = self.root.try_clone()?;
        self.enter(root)
    }

    fn enter(&mut self, dir: Node) -> Result<(), Errno> {
        if self.options.has(libc::RESOLVE_NO_XDEV) && dir.stat.mount_id != self.current.stat.mount_id {
            return Err(Errno::EXDEV);
        }
        self.current = dir;
        Ok(())
    }

    fn go_up(&mut self) -> Result<(), Errno> {
        if self.current.is(&self.root) {
            return if self.options.has(libc::RESOLVE_BENEATH) { Err(Errno::EXDEV) } else { Ok(()) };
        }
        let parent = openat(&self.current.fd, c"..", NODE_FLAGS, Mode::empty())?;
        self.enter(Node::new(parent)?)
    }

    /// Follows one name. Returns what the path names if it ends here.
    fn step(&mut self, name: CString, next: &NextName) -> Result<Option<WalkedPath>, FollowError> {
        if next.is_last {
            return self.end_at(name, next);
        }
        let node = Node::new(openat(&self.current.fd, name.as_c_str(), NODE_FLAGS, Mode::empty())?)?;
        match node.stat.file_type() {
            libc::S_IFDIR => Ok(self.enter(node).map(|()| None)?),
            libc::S_IFLNK => self.follow(&name, node),
            _ => Err(Errno::ENOTDIR.into()),
        }
    }

    fn end_at(&mut self, name: CString, next: &NextName) -> Result<Option<WalkedPath>, FollowError> {
        let stat = match FileStat::of_entry(self.current.fd.as_fd(), &name) {
            Ok(stat) => Some(stat),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(errno.into()),
        };
        let is_link = stat.is_some_and(|stat| stat.file_type() == libc::S_IFLNK);
        let follows = match self.options.last {
            LastName::Followed => true,
            LastName::NotFollowed => next.has_slash,
            LastName::Changed => false,
        };
        if is_link && follows {
            let link = Node::new(openat(&self.current.fd, name.as_c_str(), NODE_FLAGS, Mode::empty())?)?;
            return self.follow(&name, link);
        }
        let crosses = stat.is_some_and(|stat| stat.mount_id != self.current.stat.mount_id);
        if crosses && self.options.has(libc::RESOLVE_NO_XDEV) {
            return Err(Errno::EXDEV.into());
        }
        let text = if next.has_slash { with_slash(&name)? } else { name.clone() };
        let dir = self.current.try_clone()?;
        Ok(Some(WalkedPath::Entry(ResolvedPath { dir: dir.fd, dir_stat: dir.stat, name, text, stat })))
    }

    /// Follows a symbolic link in the current directory. Returns what it leads to, if that has no name.
    fn follow(&mut self, name: &CStr, link: Node) -> Result<Option<WalkedPath>, FollowError> {
        self.links_followed += 1;
        if self.links_followed > MAX_SYMLINKS || self.options.has(libc::RESOLVE_NO_SYMLINKS) {
            return Err(Errno::ELOOP.into());
        }
        let target = match sys::is_on_procfs(self.current.fd.as_fd())? {
            true => match proc_link(self.tid, name)? {
                Some(own) => own,
                None if is_magic(&fd_path(link.fd.as_fd())) => return self.follow_magic(name),
                None => read_link(&link)?,
            },
            false => read_link(&link)?,
        };
        if target.is_empty() {
            return Err(Errno::ENOENT.into());
        }
        // What follows the link keeps its slashes: after a last name, they ask for a directory.
        self.rest.splice(..0, target);
        Ok(self.start_at_root_if_absolute().map(|()| None)?)
    }

    /// Follows a link of `/proc` that leads to an open file, whatever its text says.
    fn follow_magic(&mut self, name: &CStr) -> Result<Option<WalkedPath>, FollowError> {
        if self.options.has(libc::RESOLVE_NO_MAGICLINKS) {
            return Err(Errno::ELOOP.into());
        }
        if self.options.has(libc::RESOLVE_BENEATH) || self.options.has(libc::RESOLVE_IN_ROOT) {
            return Err(Errno::EXDEV.into());
        }
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let node = Node::new(openat(&self.current.fd, name, flags, Mode::empty())?)?;
        if self.rest.is_empty() {
            return Ok(Some(WalkedPath::Object(OpenFile { fd: node.fd, stat: node.stat })));
        }
        if node.stat.file_type() != libc::S_IFDIR {
            return Err(Errno::ENOTDIR.into());
        }
        Ok(self.enter(node).map(|()| None)?)
    }
}

/// Whether a link in /proc at this path leads to an open file, a root, a working directory or a program.
fn is_magic(path: &std::path::Path) -> bool {
    let name = |path: &std::path::Path| path.file_name().map(OsStr::to_owned).unwrap_or_default();
    let parent = path.parent().map(name).unwrap_or_default();
    let own = name(path);
    ["cwd", "root", "exe"].iter().any(|magic| own == *magic)
        || ["fd", "ns", "map_files"].iter().any(|magic| parent == *magic)
}

fn read_link(link: &Node) -> Result<Vec<u8>, Errno> {
    Ok(nix::fcntl::readlinkat(&link.fd, c"")?.into_vec())
}

fn with_slash(name: &CStr) -> Result<CString, Errno> {
    CString::new([name.to_bytes(), b"/"].concat()).map_err(|_| Errno::EINVAL)
}

/// What the target's `/proc/self` or `/proc/thread-self` contains. `None` for another name.
fn proc_link(tid: i32, name: &CStr) -> Result<Option<Vec<u8>>, FollowError> {
    let is_thread = match name.to_bytes() {
        b"self" => false,
        b"thread-self" => true,
        _ => return Ok(None),
    };
    let own_id = |field: &str| {
        let ids = status_field(tid, field)?;
        ids.split_whitespace().last().map(str::to_owned).ok_or(FollowError::Target(Errno::ESRCH))
    };
    let process_id = own_id("NStgid:")?;
    if !is_thread {
        return Ok(Some(process_id.into_bytes()));
    }
    let thread_id = own_id("NSpid:")?;
    Ok(Some(format!("{process_id}/task/{thread_id}").into_bytes()))
}
