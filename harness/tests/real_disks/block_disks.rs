//! Disks in memory, as files of a FUSE file system of this process. Each write of a block and each flush of a
//! disk is logged, so that the disk can be built again as a power loss leaves it. Knows no file system on them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, Session, WriteFlags,
};

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::support::seeded_random::SeededRandom;

/// The unit in which a disk writes without being torn, in bytes.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// The contents of a disk. Copies share their blocks.
#[derive(Clone, Default)]
pub(crate) struct DiskContent {
    size_bytes: u64,
    blocks: HashMap<u64, Arc<[u8]>>,
}

/// What a disk was asked to do.
pub(crate) enum BlockRequest {
    Write { offset: u64, bytes: Vec<u8> },
    Flush,
}

/// What a power loss leaves of the writes since the last flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnflushedWrites {
    All,
    None,
    /// Each request is written or lost.
    SomeRequests,
    /// Each block is written or lost.
    SomeBlocks,
}

/// A disk while it is in use.
struct Disk {
    content: DiskContent,
    log: Vec<BlockRequest>,
}

type Disks = Arc<Mutex<BTreeMap<u64, Disk>>>;

/// The mounted FUSE file system with all disks. Dropping it unmounts it.
pub(crate) struct BlockDisks {
    disks: Disks,
    mount_point: PathBuf,
    next_number: Mutex<u64>,
}

/// One disk, as a file. Dropping it removes the disk.
pub(crate) struct BlockDisk {
    disks: Disks,
    number: u64,
    pub(crate) path: PathBuf,
}

impl DiskContent {
    /// An empty disk.
    pub(crate) fn empty(size_bytes: u64) -> DiskContent {
        DiskContent { size_bytes, blocks: HashMap::new() }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut written = 0;
        while written < bytes.len() {
            let position = offset + written as u64;
            let (block, within) = (position / BLOCK_BYTES as u64, (position % BLOCK_BYTES as u64) as usize);
            let count = (BLOCK_BYTES - within).min(bytes.len() - written);
            let piece = &bytes[written..written + count];
            if count == BLOCK_BYTES {
                self.blocks.insert(block, piece.into());
            } else {
                let mut content =
                    self.blocks.get(&block).map_or(vec![0; BLOCK_BYTES], |known| known.to_vec());
                content[within..within + count].copy_from_slice(piece);
                self.blocks.insert(block, content.into());
            }
            written += count;
        }
    }

    fn read(&self, offset: u64, len_bytes: usize) -> Vec<u8> {
        let end = (offset + len_bytes as u64).min(self.size_bytes);
        let mut bytes = Vec::with_capacity(len_bytes);
        let mut position = offset;
        while position < end {
            let within = (position % BLOCK_BYTES as u64) as usize;
            let count = (BLOCK_BYTES - within).min((end - position) as usize);
            match self.blocks.get(&(position / BLOCK_BYTES as u64)) {
                Some(block) => bytes.extend_from_slice(&block[within..within + count]),
                None => bytes.resize(bytes.len() + count, 0),
            }
            position += count as u64;
        }
        bytes
    }

    /// The disk after a power loss: the requests before the last flush are written, and those after it as
    /// `unflushed` says.
    pub(crate) fn after_power_loss(
        &self,
        log: &[BlockRequest],
        unflushed: UnflushedWrites,
        random: &mut SeededRandom,
    ) -> DiskContent {
        let mut content = self.clone();
        let flushed = log.iter().rposition(|request| matches!(request, BlockRequest::Flush)).unwrap_or(0);
        for (index, request) in log.iter().enumerate() {
            let BlockRequest::Write { offset, bytes } = request else { continue };
            match unflushed {
                _ if index < flushed => content.write(*offset, bytes),
                UnflushedWrites::All => content.write(*offset, bytes),
                UnflushedWrites::None => {}
                UnflushedWrites::SomeRequests if random.below(2) == 0 => {}
                UnflushedWrites::SomeRequests => content.write(*offset, bytes),
                UnflushedWrites::SomeBlocks => {
                    for (number, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
                        if random.below(2) == 0 {
                            content.write(offset + (number * BLOCK_BYTES) as u64, block);
                        }
                    }
                }
            }
        }
        content
    }
}

impl BlockDisks {
    /// Mounts the file system. `outer`: the mount namespace from which this process came. Returns the reason if
    /// this machine cannot do it.
    pub(crate) fn mount(mount_point: &Path, outer: &File) -> Result<BlockDisks, String> {
        std::fs::create_dir_all(mount_point).unwrap();
        let disks = Disks::default();
        let (files, path) = (DiskFiles { disks: Arc::clone(&disks) }, mount_point.to_owned());
        let (sender, receiver) = mpsc::channel();
        let outer = outer.try_clone().unwrap();
        std::thread::spawn(move || serve(files, &path, &outer, &sender));
        receiver.recv().unwrap()?;
        Ok(BlockDisks { disks, mount_point: mount_point.to_owned(), next_number: Mutex::new(2) })
    }

    /// Adds a disk.
    pub(crate) fn add(&self, content: DiskContent) -> BlockDisk {
        let mut next_number = self.next_number.lock().unwrap();
        let number = *next_number;
        *next_number += 1;
        self.disks.lock().unwrap().insert(number, Disk { content, log: Vec::new() });
        let path = self.mount_point.join(number.to_string());
        BlockDisk { disks: Arc::clone(&self.disks), number, path }
    }
}

impl Drop for BlockDisks {
    fn drop(&mut self) {
        let _ = umount2(&self.mount_point, MntFlags::MNT_DETACH);
    }
}

/// Mounts the file system, sends whether that worked, and answers the kernel until it is unmounted.
///
/// If the process is killed, the connection must end before anybody unmounts what lies on the disks, because
/// unmounting waits for them. So only this thread has the connection open, and it leaves the mount namespace: the
/// last thread in that one unmounts everything.
fn serve(files: DiskFiles, mount_point: &Path, outer: &File, sender: &mpsc::Sender<Result<(), String>>) {
    unshare(CloneFlags::CLONE_FILES | CloneFlags::CLONE_FS).unwrap();
    match Session::new(files, mount_point, &Config::default()) {
        Ok(session) => {
            setns(outer, CloneFlags::CLONE_NEWNS).unwrap();
            sender.send(Ok(())).unwrap();
            // It ends with an error if the file system is unmounted from outside.
            let _ = session.run();
        }
        Err(error) => sender.send(Err(format!("could not mount a FUSE file system: {error}"))).unwrap(),
    }
}

impl BlockDisk {
    fn with<R>(&self, apply: impl FnOnce(&mut Disk) -> R) -> R {
        apply(self.disks.lock().unwrap().get_mut(&self.number).unwrap())
    }

    /// How many requests there were.
    pub(crate) fn request_count(&self) -> usize {
        self.with(|disk| disk.log.len())
    }

    /// Removes and returns the requests so far.
    pub(crate) fn take_log(&self) -> Vec<BlockRequest> {
        self.with(|disk| std::mem::take(&mut disk.log))
    }

    /// What is on the disk.
    pub(crate) fn content(&self) -> DiskContent {
        self.with(|disk| disk.content.clone())
    }
}

impl Drop for BlockDisk {
    fn drop(&mut self) {
        if let Ok(mut disks) = self.disks.lock() {
            disks.remove(&self.number);
        }
    }
}

/// Answers the kernel. The number of a disk is the number of its inode and its name.
struct DiskFiles {
    disks: Disks,
}

/// How long the kernel may keep what it was told: a disk never changes its size, and numbers are not used again.
const KEEP: Duration = Duration::from_secs(3600);

impl DiskFiles {
    fn disks(&self) -> MutexGuard<'_, BTreeMap<u64, Disk>> {
        self.disks.lock().unwrap()
    }

    fn attributes(&self, number: u64) -> Option<FileAttr> {
        let size = if number == 1 { 0 } else { self.disks().get(&number)?.content.size_bytes };
        let (kind, perm) =
            if number == 1 { (FileType::Directory, 0o755) } else { (FileType::RegularFile, 0o600) };
        Some(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK_BYTES as u32,
            flags: 0,
        })
    }
}

impl Filesystem for DiskFiles {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = name.to_str().and_then(|name| name.parse().ok()).filter(|number| *number > 1);
        match number.and_then(|number| self.attributes(number)) {
            Some(attributes) => reply.entry(&KEEP, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode.0) {
            Some(attributes) => reply.attr(&KEEP, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.disks().get(&inode.0) {
            Some(disk) => reply.data(&disk.content.read(offset, size as usize)),
            None => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.disks().get_mut(&inode.0) {
            Some(disk) => {
                disk.content.write(offset, bytes);
                disk.log.push(BlockRequest::Write { offset, bytes: bytes.to_vec() });
                reply.written(bytes.len() as u32);
            }
            None => reply.error(Errno::EIO),
        }
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.disks().get_mut(&inode.0) {
            Some(disk) => {
                disk.log.push(BlockRequest::Flush);
                reply.ok();
            }
            None => reply.error(Errno::EIO),
        }
    }
}
