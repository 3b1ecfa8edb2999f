//! Does a call on behalf of the target: on duplicates of its descriptors, which share offset and flags, and below its own folders.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{
    AtFlags, FallocateFlags, FcntlArg, OFlag, RenameFlags, fallocate, fcntl, openat, renameat2,
};
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;

use super::calls::{Asked, Bytes, Transfer};
use super::place::{Spot, Thread, Watched};
use super::subject::Subject;
use super::sys::{self, Answer, Facts};
use super::{Done, Key, Overseer, Swap};

/// Bytes that go from target to file at a time: small enough to stay in a core's cache.
const CHUNK: usize = 256 * 1024;
/// `iovec`s that the kernel takes in one call.
const IOVECS: u64 = 1024;

/// How a call is answered.
pub(super) enum Outcome {
    Answer(Answer),
    /// It has been, or nobody waits.
    Answered,
    Later(Duration),
}

/// Everything that is needed to deal with one stopped call.
pub(super) struct Hands<'a> {
    pub(super) listener: BorrowedFd<'a>,
    pub(super) id: u64,
    pub(super) tid: i32,
    pub(super) thread: &'a Thread,
    pub(super) watched: &'a Watched,
    pub(super) overseer: &'a mut dyn Overseer,
}

type Performed = Result<i64, Errno>;

impl Hands<'_> {
    /// The `open_how` of the target's, where there is one.
    pub(super) fn read_how(&self, asked: Asked) -> Asked {
        let Asked::OpenHow { path, how } = asked else { return asked };
        let mut bytes = [0; 24];
        match self.thread.memory(how, &mut bytes) {
            Ok(24) => {
                let word = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
                Asked::Open { path, flags: word(0) as i32, mode: word(8) as u32 }
            }
            _ => asked,
        }
    }

    /// What is not watched is let through; words in pipes that are listened to are told.
    pub(super) fn overhear(&mut self, asked: &Asked, subject: &Subject) -> Outcome {
        if let (Asked::Write { bytes, .. }, Some((_, facts))) = (asked, &subject.file)
            && facts.mode & libc::S_IFMT == libc::S_IFIFO
            && self.overseer.hears(facts.key)
            && let Ok(parts) = self.parts(*bytes)
        {
            for (at, length) in parts {
                let mut text = vec![0; usize::try_from(length).unwrap_or(CHUNK).min(CHUNK)];
                if let Ok(read) = self.thread.memory(at, &mut text) {
                    self.overseer.payload(&text[..read]);
                }
            }
            self.overseer.done(Done::Said { pipe: facts.key });
        }
        Outcome::Answer(Answer::Continue)
    }

    /// Does it and answers with its result.
    pub(super) fn perform(&mut self, asked: Asked, subject: Subject, most: u64) -> Outcome {
        if let Asked::Open { flags, mode, .. } = asked {
            let opened = self.open(flags, mode, subject);
            return match opened {
                Ok(file) => {
                    let close_on_exec = flags & libc::O_CLOEXEC != 0;
                    // ENOENT: killed meanwhile.
                    let _ = sys::answer_with_file(self.listener, self.id, file.as_fd(), close_on_exec);
                    Outcome::Answered
                }
                Err(errno) => Outcome::Answer(Answer::Fail(errno)),
            };
        }
        Outcome::Answer(match self.act(asked, subject, most) {
            None => Answer::Continue,
            Some(Ok(value)) => Answer::Value(value),
            Some(Err(errno)) => Answer::Fail(errno),
        })
    }

    /// Does it; what comes of it is for the caller to answer.
    pub(super) fn perform_quietly(&mut self, asked: Asked, subject: Subject, most: u64) {
        if let Asked::Open { flags, mode, .. } = asked {
            drop(self.open(flags, mode, subject));
        } else {
            self.act(asked, subject, most);
        }
    }

    /// None: the kernel has to do it.
    fn act(&mut self, asked: Asked, subject: Subject, most: u64) -> Option<Performed> {
        let Subject { spot, to, file, .. } = subject;
        match (asked, spot, to, file) {
            (Asked::Write { bytes, offset, append, sync, .. }, _, _, Some((file, facts))) => {
                Some(self.write(&file, facts, bytes, Target { offset, append, sync }, most))
            }
            (Asked::Read { bytes, offset, .. }, _, _, Some((file, _))) => {
                Some(self.read(&file, bytes, offset, most))
            }
            (Asked::Transfer { call, from, args, .. }, _, _, Some((file, facts))) => {
                Some(self.transfer(call, from, args, &file, facts))
            }
            (Asked::Truncate { size, .. }, _, _, Some((file, facts))) => {
                Some(self.truncate(&file, facts.key, size))
            }
            (Asked::TruncatePath { size, .. }, Some(spot), ..) => Some(self.truncate_path(&spot, size)),
            (Asked::Allocate { mode, offset, length, .. }, _, _, Some((file, facts))) => {
                Some(self.allocate(&file, facts.key, mode, offset, length))
            }
            (Asked::Rename { flags, .. }, Some(from), Some(to), _) => Some(self.rename(&from, &to, flags)),
            (Asked::Link { flags, .. }, Some(from), Some(to), _) => Some(self.hard_link(&from, &to, flags)),
            (Asked::Link { .. }, None, Some(to), Some((file, facts))) => {
                Some(self.name_file(&file, facts.key, &to))
            }
            (Asked::Symlink { text, .. }, Some(spot), ..) => Some(self.symlink(text, &spot)),
            (Asked::Unlink { folder, .. }, Some(spot), ..) => Some(self.unlink(&spot, folder)),
            (Asked::Mkdir { mode, .. }, Some(spot), ..) => Some(self.mkdir(&spot, mode)),
            (Asked::Sync { data_only, .. }, _, _, Some((file, facts))) => {
                Some(self.sync(&file, facts.key, data_only))
            }
            (Asked::SyncAll, ..) => {
                self.overseer.done(Done::SyncedAll);
                None
            }
            (Asked::Msync { at, wait: true }, ..) => {
                if let Some(facts) = self.thread.mapped_facts(at) {
                    self.overseer.done(Done::Synced { node: facts.key, data_only: true });
                }
                None
            }
            (Asked::Map { .. }, _, _, Some((file, facts))) => {
                self.overseer.done(Done::Mapped { node: facts.key, file });
                None
            }
            _ => None,
        }
    }

    fn open(&mut self, flags: i32, mode: u32, subject: Subject) -> Result<OwnedFd, Errno> {
        let spot = subject.spot.ok_or(Errno::ENOENT)?;
        let flag_bits = OFlag::from_bits_retain(flags | libc::O_CLOEXEC);
        let mode = Mode::from_bits_truncate(self.thread.masked(mode));
        let file = openat(&spot.dir, spot.name.as_c_str(), flag_bits, mode)?;
        let facts = sys::facts(file.as_fd(), c"")?;
        if flags & libc::O_TMPFILE == libc::O_TMPFILE {
            self.overseer.done(Done::MadeNameless { node: facts.key });
            return Ok(file);
        }
        let created = spot.found.is_none();
        let truncated =
            !created && flags & libc::O_TRUNC != 0 && spot.found.is_some_and(|found| found.size > 0);
        self.overseer.done(Done::Opened { place: spot.place(), node: facts.key, created, truncated });
        Ok(file)
    }

    pub(super) fn length(&self, bytes: Bytes) -> Result<u64, Errno> {
        match bytes {
            Bytes::One { length, .. } => Ok(length),
            many => Ok(self.parts(many)?.iter().map(|(_, length)| length).sum()),
        }
    }

    /// Addresses and lengths.
    fn parts(&self, bytes: Bytes) -> Result<Vec<(u64, u64)>, Errno> {
        match bytes {
            Bytes::One { at, length } => Ok(vec![(at, length)]),
            Bytes::Many { at, count } => {
                let mut words = vec![0; usize::try_from(count.min(IOVECS)).unwrap_or(0) * 16];
                if self.thread.memory(at, &mut words)? < words.len() {
                    return Err(Errno::EFAULT);
                }
                let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
                Ok(words.chunks_exact(16).map(|iovec| (word(&iovec[..8]), word(&iovec[8..]))).collect())
            }
        }
    }

    fn write(&mut self, file: &OwnedFd, facts: Facts, bytes: Bytes, target: Target, most: u64) -> Performed {
        let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
        let appends = target.append || flags.contains(OFlag::O_APPEND);
        let start = match (appends, target.offset) {
            (true, _) => facts.size,
            (false, Some(offset)) => offset,
            (false, None) => position(file)?,
        };
        let synced = target.sync || flags.intersects(OFlag::O_SYNC | OFlag::O_DSYNC);
        let mut written = 0;
        let result = self.write_parts(file, bytes, (target.offset, start), most, &mut written);
        if written > 0 {
            self.overseer.done(Done::Wrote { node: facts.key, offset: start, bytes: written, synced });
            return Ok(written as i64);
        }
        result.map(|()| 0)
    }

    fn write_parts(
        &mut self,
        file: &OwnedFd,
        bytes: Bytes,
        (given, start): (Option<u64>, u64),
        most: u64,
        written: &mut u64,
    ) -> Result<(), Errno> {
        let mut buffer = vec![0; CHUNK];
        for (at, length) in self.parts(bytes)? {
            let mut done = 0;
            while done < length && *written < most {
                let wanted = (length - done).min(CHUNK as u64).min(most - *written);
                let part = &mut buffer[..usize::try_from(wanted).unwrap_or(CHUNK)];
                let read = self.thread.memory(at + done, part)?;
                let put = match given {
                    None => nix::unistd::write(file, &part[..read])?,
                    Some(_) => {
                        let offset = i64::try_from(start + *written).map_err(|_| Errno::EFBIG)?;
                        nix::sys::uio::pwrite(file, &part[..read], offset)?
                    }
                };
                self.overseer.payload(&part[..put]);
                done += put as u64;
                *written += put as u64;
                if put < read || (read as u64) < wanted {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn read(&mut self, file: &OwnedFd, bytes: Bytes, offset: Option<u64>, most: u64) -> Performed {
        let mut buffer = vec![0; CHUNK];
        let mut total = 0;
        for (at, length) in self.parts(bytes)? {
            let mut done = 0;
            while done < length && total < most {
                let wanted = (length - done).min(CHUNK as u64).min(most - total);
                let part = &mut buffer[..usize::try_from(wanted).unwrap_or(CHUNK)];
                let got = match offset {
                    None => nix::unistd::read(file, part)?,
                    Some(offset) => {
                        let from = i64::try_from(offset + total).map_err(|_| Errno::EINVAL)?;
                        nix::sys::uio::pread(file, part, from)?
                    }
                };
                sys::write_memory(self.tid, at + done, &part[..got])?;
                done += got as u64;
                total += got as u64;
                if (got as u64) < wanted {
                    return Ok(total as i64);
                }
            }
        }
        Ok(total as i64)
    }

    /// Another thing, or nothing, at the place that the call is about. Only where something is there.
    pub(super) fn swap(&mut self, subject: &Subject, with: Swap) -> Result<(), Errno> {
        let spot = subject.spot.as_ref().filter(|spot| spot.found.is_some()).ok_or(Errno::ENOENT)?;
        nix::unistd::unlinkat(&spot.dir, spot.name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
        match with {
            Swap::Nothing => {}
            Swap::EmptyFile => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                drop(openat(&spot.dir, spot.name.as_c_str(), flags, Mode::from_bits_truncate(0o644))?);
            }
            Swap::DanglingLink => {
                nix::unistd::symlinkat(c"swapped-away", &spot.dir, spot.name.as_c_str())?;
            }
        }
        self.overseer.done(Done::Swapped { path: subject.path.clone() });
        Ok(())
    }

    fn transfer(
        &mut self,
        call: Transfer,
        from: i32,
        args: [u64; 6],
        out: &OwnedFd,
        facts: Facts,
    ) -> Performed {
        if call == Transfer::Splice {
            // What comes out of a pipe can't be seen on its way; programs fall back to reading and writing.
            self.overseer.done(Done::Refused { what: "splice into a watched file" });
            return Err(Errno::EINVAL);
        }
        let source = self.thread.duplicate(from)?;
        let (from_at, out_at, count) = match call {
            Transfer::CopyFileRange => (args[1], args[3], args[4]),
            _ => (args[2], 0, args[3]),
        };
        let mut from_offset = self.offset_at(from_at)?;
        let mut out_offset = self.offset_at(out_at)?;
        let start =
            out_offset.map_or_else(|| position(out), |at| u64::try_from(at).map_err(|_| Errno::EINVAL))?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let moved = match call {
            Transfer::CopyFileRange => {
                nix::fcntl::copy_file_range(&source, from_offset.as_mut(), out, out_offset.as_mut(), count)?
            }
            _ => nix::sys::sendfile::sendfile64(out, &source, from_offset.as_mut(), count)?,
        };
        for (at, offset) in [(from_at, from_offset), (out_at, out_offset)] {
            if let Some(offset) = offset {
                sys::write_memory(self.tid, at, &offset.to_ne_bytes())?;
            }
        }
        self.read_back(out, start, moved as u64)?;
        self.overseer.done(Done::Wrote {
            node: facts.key,
            offset: start,
            bytes: moved as u64,
            synced: false,
        });
        Ok(moved as i64)
    }

    fn offset_at(&self, at: u64) -> Result<Option<i64>, Errno> {
        let mut bytes = [0; 8];
        match at {
            0 => Ok(None),
            at if self.thread.memory(at, &mut bytes)? == 8 => Ok(Some(i64::from_ne_bytes(bytes))),
            _ => Err(Errno::EFAULT),
        }
    }

    fn read_back(&mut self, file: &OwnedFd, mut at: u64, mut left: u64) -> Result<(), Errno> {
        let again =
            nix::fcntl::open(own_name(file).as_c_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut buffer = vec![0; CHUNK];
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let read = nix::sys::uio::pread(&again, &mut buffer[..part], at as i64)?;
            if read == 0 {
                return Err(Errno::EIO);
            }
            self.overseer.payload(&buffer[..read]);
            (at, left) = (at + read as u64, left - read as u64);
        }
        Ok(())
    }

    fn truncate(&mut self, file: &OwnedFd, node: Key, size: u64) -> Performed {
        nix::unistd::ftruncate(file, i64::try_from(size).map_err(|_| Errno::EINVAL)?)?;
        self.overseer.done(Done::Truncated { node, size });
        Ok(0)
    }

    fn truncate_path(&mut self, spot: &Spot, size: u64) -> Performed {
        let file =
            openat(&spot.dir, spot.name.as_c_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        self.truncate(&file, spot.key().ok_or(Errno::ENOENT)?, size)
    }

    fn allocate(&mut self, file: &OwnedFd, node: Key, mode: i32, offset: u64, length: u64) -> Performed {
        let signed = |value: u64| i64::try_from(value).map_err(|_| Errno::EFBIG);
        fallocate(file, FallocateFlags::from_bits_retain(mode), signed(offset)?, signed(length)?)?;
        let size = sys::facts(file.as_fd(), c"")?.size;
        let clears = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        let zeroed = (mode & clears != 0).then_some((offset, length));
        self.overseer.done(Done::Allocated { node, size, zeroed });
        Ok(0)
    }

    fn rename(&mut self, from: &Spot, to: &Spot, flags: u32) -> Performed {
        let how = RenameFlags::from_bits_retain(flags);
        renameat2(&from.dir, from.name.as_c_str(), &to.dir, to.name.as_c_str(), how)?;
        let exchanged = how.contains(RenameFlags::RENAME_EXCHANGE);
        self.overseer.done(Done::Renamed { from: from.place(), to: to.place(), exchanged });
        Ok(0)
    }

    fn hard_link(&mut self, from: &Spot, to: &Spot, flags: i32) -> Performed {
        let how = AtFlags::from_bits_retain(flags & libc::AT_SYMLINK_FOLLOW);
        nix::unistd::linkat(&from.dir, from.name.as_c_str(), &to.dir, to.name.as_c_str(), how)?;
        let node = from.key().ok_or(Errno::ENOENT)?;
        self.overseer.done(Done::Linked { node, place: to.place() });
        Ok(0)
    }

    fn name_file(&mut self, file: &OwnedFd, node: Key, to: &Spot) -> Performed {
        let flags = AtFlags::AT_SYMLINK_FOLLOW;
        let here = nix::fcntl::AT_FDCWD;
        nix::unistd::linkat(here, own_name(file).as_c_str(), &to.dir, to.name.as_c_str(), flags)?;
        self.overseer.done(Done::Linked { node, place: to.place() });
        Ok(0)
    }

    fn symlink(&mut self, text: u64, spot: &Spot) -> Performed {
        let text = self.thread.text(text)?;
        nix::unistd::symlinkat(text.as_c_str(), &spot.dir, spot.name.as_c_str())?;
        let node = sys::facts(spot.dir.as_fd(), &spot.name)?.key;
        let text = PathBuf::from(OsStr::from_bytes(text.as_bytes()));
        self.overseer.done(Done::Symlinked { node, place: spot.place(), text });
        Ok(0)
    }

    fn unlink(&mut self, spot: &Spot, folder: bool) -> Performed {
        let how = if folder { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        nix::unistd::unlinkat(&spot.dir, spot.name.as_c_str(), how)?;
        let place = spot.place();
        self.overseer.done(if folder { Done::RemovedDir { place } } else { Done::Unlinked { place } });
        Ok(0)
    }

    fn mkdir(&mut self, spot: &Spot, mode: u32) -> Performed {
        let mode = Mode::from_bits_truncate(self.thread.masked(mode));
        nix::sys::stat::mkdirat(&spot.dir, spot.name.as_c_str(), mode)?;
        let node = sys::facts(spot.dir.as_fd(), &spot.name)?.key;
        self.overseer.done(Done::MadeDir { node, place: spot.place() });
        Ok(0)
    }

    fn sync(&mut self, file: &OwnedFd, node: Key, data_only: bool) -> Performed {
        if self.overseer.syncs_for_real() {
            let synced = if data_only { nix::unistd::fdatasync(file) } else { nix::unistd::fsync(file) };
            synced?;
        }
        self.overseer.done(Done::Synced { node, data_only });
        Ok(0)
    }
}

/// Where a write goes, beside what its descriptor says.
#[derive(Clone, Copy)]
struct Target {
    offset: Option<u64>,
    append: bool,
    sync: bool,
}

fn position(file: &OwnedFd) -> Result<u64, Errno> {
    let at = nix::unistd::lseek(file, 0, nix::unistd::Whence::SeekCur)?;
    u64::try_from(at).map_err(|_| Errno::EINVAL)
}

/// A descriptor of ours as a path.
fn own_name(file: &OwnedFd) -> CString {
    CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default()
}
