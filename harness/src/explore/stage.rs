//! Rooms for the explorer: one in which the run is recorded, and booths in which states are tried one after the other.

use std::io::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::OFlag;

use super::candidate::Candidate;
use super::layout::{Layout, Small};
use super::outcome::{Expected, Found};
use super::record::{Recorder, Start};
use super::recording::Recording;
use super::warm::PythonCommand;
use super::{ExploreError, Orders};
use crate::gate::{Interest, Watched, attend, filter, key_of, mount_id};
use crate::sandbox::{Bind, Called, Ended, Launch, Room, RoomSpec, TmpfsSpec};

/// Bytes of each output that are kept.
const KEEP: usize = 12 * 1024;
/// Layouts of up to this size in all are kept in memory.
const IN_MEMORY: u64 = 384 * 1024 * 1024;
/// Bytes of the recorded run's outputs that are kept.
const WORDS: usize = 1 << 20;

/// What the undisturbed run came to.
#[derive(Debug, Clone)]
pub struct Undisturbed {
    pub ended: Option<Ended>,
    /// Everything it said, up to a bound.
    pub words: String,
    pub expected: Expected,
}

/// Runs the command once in copies of the watched folders and writes down what it does to them.
pub(super) fn record(orders: &Orders) -> Result<(Recording, Undisturbed), ExploreError> {
    let dir = orders.dir.join("recorded");
    let mut binds = Vec::new();
    let originals = orders.after.as_ref().map_or(&orders.watch, |(folders, _)| folders);
    for (number, (root, original)) in orders.watch.iter().zip(originals).enumerate() {
        let copy = dir.join("root").join(number.to_string());
        copy_tree(original, &copy).map_err(ExploreError::file("copy", original))?;
        binds.push(Bind { from: copy, at: root.clone() });
    }
    let roots: Vec<(PathBuf, PathBuf)> =
        binds.iter().map(|bind| (bind.at.clone(), bind.from.clone())).collect();
    let room = Room::build(RoomSpec { dir, mounts: Vec::new(), binds, memory_cgroup: false })?;
    let tape = Tape {
        command: &orders.command,
        roots: &roots,
        originals,
        tape: &orders.dir.join("tape"),
        saved: orders.ear.saved.clone(),
        inner: None,
        cancelled: orders.cancelled,
    };
    let (mut recording, ended, words) = tape.record(&room)?;
    recording.promised_before = orders.after.as_ref().and_then(|(_, promised)| *promised);
    room.close()?;
    let consumed = orders.ear.consumed(&words).into_iter().collect();
    let expected = Expected { same: orders.ear.value(&words), consumed };
    Ok((recording, Undisturbed { ended, words, expected }))
}

/// What is to be recorded in a room.
pub struct Tape<'a> {
    pub command: &'a Launch,
    /// Each watched folder, a mount of its own in the room: as the target names it, where its files lie for the harness.
    pub roots: &'a [(PathBuf, PathBuf)],
    /// Where their contents as they are now stay readable.
    pub originals: &'a [PathBuf],
    /// The file to be made for all written bytes.
    pub tape: &'a Path,
    pub saved: Option<regex::Regex>,
    /// Lines that its processes say to one another and that are to be written down.
    pub inner: Option<regex::Regex>,
    /// Asked now and then whether to stop.
    pub cancelled: fn() -> bool,
}

impl Tape<'_> {
    /// Runs the command to its end: what it did, how it ended (none: it was stopped), what it said, up to a bound.
    pub fn record(self, room: &Room) -> Result<(Recording, Option<Ended>, String), ExploreError> {
        let pipe = || {
            nix::unistd::pipe2(OFlag::O_CLOEXEC)
                .map_err(|error| ExploreError::System("make a pipe", error.into()))
        };
        let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?);
        let pipes = [&stdout, &stderr].map(|pipe| key_of(pipe.as_fd()));
        let pipes = pipes
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(|error| ExploreError::System("look at a pipe", error))?;
        let start = Start { roots: self.roots, tape: self.tape, pipes, saved: self.saved, inner: self.inner };
        let recorder = Recorder::new(start, self.originals);
        let recorder = recorder.map_err(ExploreError::file("take stock for", self.tape))?;
        let recorder = Arc::new(Mutex::new(recorder));
        let mounts: Result<Vec<u64>, Error> =
            self.roots.iter().map(|(root, _)| mount_id(&room.through(root))).collect();
        let watched =
            Watched::new(mounts.map_err(|error| ExploreError::System("find the watched mounts", error))?);
        let program = filter(&Interest { also: Vec::new(), words: true });
        let words = [listen(stdout), listen(stderr)];
        let mut attendance = None;
        let overseer = Arc::clone(&recorder);
        let running =
            room.spawn_filtered(self.command, program, [their_stdout, their_stderr], |listener| {
                attendance = Some(attend(listener, watched, overseer));
            })?;
        let ended = loop {
            match running.wait_timeout(std::time::Duration::from_millis(200)) {
                Some(ended) => break Some(ended),
                None if (self.cancelled)() => break None,
                None => {}
            }
        };
        room.strike()?;
        if let Some(attendance) = attendance {
            attendance.join();
        }
        let words: Vec<String> = words.into_iter().map(|thread| thread.join().unwrap_or_default()).collect();
        let recording = recorder.lock().unwrap_or_else(PoisonError::into_inner).finish();
        let recording = recording.map_err(ExploreError::file("write", self.tape))?;
        Ok((recording, ended, words.join("\n")))
    }
}

fn listen(output: OwnedFd) -> std::thread::JoinHandle<String> {
    use std::io::Read;
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut output = std::fs::File::from(output);
        let mut part = [0; 8192];
        while let Ok(read) = output.read(&mut part) {
            if read == 0 {
                break;
            }
            bytes.extend_from_slice(&part[..read]);
            if bytes.len() > WORDS {
                bytes.drain(..WORDS / 2);
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Files, folders and links; sockets, pipes and devices have no content that a crash could tear.
pub fn copy_tree(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (kind, to) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(entry.path())?, &to)?;
        } else if kind.is_file() {
            std::fs::copy(entry.path(), &to)?;
            let modified = entry.metadata()?.modified()?;
            std::fs::File::options().append(true).open(&to)?.set_modified(modified)?;
        }
    }
    Ok(())
}

/// A room in which states are tried.
pub(super) struct Booth<'a> {
    orders: &'a Orders,
    recording: &'a Recording,
    layout: Layout<'a>,
    /// What the fork server is to run instead of the recovery's command.
    warm: Option<Launch>,
    room: Option<Room>,
}

impl<'a> Booth<'a> {
    pub(super) fn build(
        orders: &'a Orders,
        recording: &'a Recording,
        small: &'a Small,
        number: usize,
        largest: u64,
    ) -> Result<Booth<'a>, ExploreError> {
        let dir = orders.dir.join(format!("booth-{number}"));
        std::fs::create_dir_all(&dir).map_err(ExploreError::file("create", &dir))?;
        let in_memory = largest.saturating_mul(8).saturating_mul(orders.jobs as u64) < IN_MEMORY;
        let size_bytes = IN_MEMORY;
        let mounts = if in_memory {
            vec![TmpfsSpec { at: PathBuf::new(), size_bytes, inodes: None }]
        } else {
            Vec::new()
        };
        let shown = |number: usize| dir.join("root").join(number.to_string());
        let binds = orders.watch.iter().enumerate();
        let binds = binds.map(|(number, root)| Bind { from: shown(number), at: root.clone() }).collect();
        let room = Room::build(RoomSpec { dir: dir.clone(), mounts, binds, memory_cgroup: false })?;
        let base = if in_memory { room.outside(Path::new("")) } else { room.root().to_path_buf() };
        let pool_most =
            if in_memory { IN_MEMORY / 2 / orders.jobs as u64 } else { largest.saturating_mul(2) };
        let folders = (0..orders.watch.len()).map(|number| number.to_string()).collect();
        let layout = Layout::new(recording, small, &base, folders, pool_most, orders.began)
            .map_err(ExploreError::file("prepare", &base))?;
        let warm = match &orders.warm[..] {
            [] => None,
            modules => Some(warm_up(orders, &room, modules)?),
        };
        Ok(Booth { orders, recording, layout, warm, room: Some(room) })
    }

    /// Lays the state out, runs the recovery and the check on it.
    pub(super) fn attempt(&mut self, candidate: &Candidate) -> Result<Found, ExploreError> {
        let found = self.once(candidate, 1)?;
        // A busy machine is no finding: it gets three times the time before it is called hung.
        if found.ended.is_none() { self.once(candidate, 3) } else { Ok(found) }
    }

    fn once(&mut self, candidate: &Candidate, patience: u32) -> Result<Found, ExploreError> {
        let tree = candidate.tree(self.recording);
        let laid_out = self.layout.lay_out(&tree);
        laid_out.map_err(ExploreError::file("lay out a state in", &self.orders.dir))?;
        let called = match &self.warm {
            Some(words) => self.call(words, patience, true)?,
            None => self.call(&self.orders.resume, patience, false)?,
        };
        let check = match &self.orders.check {
            Some(check) if called.ended == Some(Ended::Exited(0)) => Some(self.call(check, patience, false)?),
            _ => None,
        };
        Ok(self.orders.ear.hear(&called, check.as_ref()))
    }

    fn call(&self, launch: &Launch, patience: u32, warm: bool) -> Result<Called, ExploreError> {
        let room = self.room.as_ref().ok_or(ExploreError::Closed)?;
        Ok(room.call(launch, self.orders.timeout * patience, KEEP, warm)?)
    }

    pub(super) fn close(mut self) -> Result<(), ExploreError> {
        self.room.take().map_or(Ok(()), |room| room.close().map_err(ExploreError::from))
    }
}

/// Starts a fork server that has imported; what it is to be told for each recovery.
fn warm_up(orders: &Orders, room: &Room, modules: &[String]) -> Result<Launch, ExploreError> {
    let path = orders.resume.env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
    let command = PythonCommand::parse(&orders.resume.argv, path).ok_or(ExploreError::NotPython)?;
    let server = Launch { argv: command.server(modules), ..orders.resume.clone() };
    room.warm_up(&server)?;
    Ok(Launch { argv: command.run, env: Vec::new(), cwd: None })
}
