//! The model of ext4 against ext4: a real one, on a loop device, is shut down at random moments of a recorded run, and
//! what is found after its journal was replayed must be among the states that the model allows.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is not as it should be, and says what it skips"
)]

mod sys;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use trainwreck::explore::{
    Candidate, Leaf, Model, Reader, Recorder, Recording, Scope, Start, Tree, enumerate,
};
use trainwreck::gate::{Call, Decision, Done, Interest, Key, Overseer, Watched, attend, filter, mount_id};
use trainwreck::sandbox::{Bind, Launch, Room, RoomSpec};

use sys::{Going, shut_down};

/// Files and folders below the watched one, with their bytes.
type Files = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Records; after so many operations the file system goes away. Syncs are real ones here.
struct Saboteur {
    recorder: Recorder,
    after: u64,
    count: u64,
    disk: File,
    going: Going,
}

impl Overseer for Saboteur {
    fn decide(&mut self, call: &Call) -> Decision {
        self.recorder.decide(call)
    }

    fn payload(&mut self, bytes: &[u8]) {
        self.recorder.payload(bytes);
    }

    fn done(&mut self, done: Done) {
        if self.count > self.after {
            return;
        }
        self.recorder.done(done);
        self.count += 1;
        if self.count > self.after {
            shut_down(&self.disk, self.going).unwrap();
        }
    }

    fn hears(&self, _: Key) -> bool {
        false
    }
}

/// A loop device with an ext4 on it, mounted; gone when dropped.
struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// `Err`: why this machine can't.
    fn new(dir: &Path) -> Result<Disk, String> {
        let disk = Disk { image: dir.join("image"), at: dir.join("disk") };
        std::fs::create_dir_all(&disk.at).unwrap();
        File::create(&disk.image).unwrap().set_len(48 << 20).unwrap();
        let options = "lazy_itable_init=0,lazy_journal_init=0";
        done(Command::new("mkfs.ext4").args(["-q", "-F", "-E", options]).arg(&disk.image))?;
        disk.mount()?;
        std::fs::create_dir(disk.at.join("work")).unwrap();
        nix::unistd::syncfs(File::open(&disk.at).unwrap()).unwrap();
        Ok(disk)
    }

    fn mount(&self) -> Result<(), String> {
        done(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&self.image).arg(&self.at))
    }

    fn again(&self) {
        umount2(&self.at, MntFlags::empty()).unwrap();
        self.mount().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

fn done(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// Runs the program until the disk goes away after so many operations (or to its end); what was recorded and what is left.
fn crash(disk: &Disk, dir: &Path, words: &[&str], after: u64, going: Going) -> (Recording, Files) {
    let (real, watched) = (disk.at.join("work"), dir.join("watched"));
    let room_dir = dir.join("room");
    [&watched, &room_dir].into_iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
    let binds = vec![Bind { from: real.clone(), at: watched.clone() }];
    let room =
        Room::build(RoomSpec { dir: room_dir, mounts: Vec::new(), binds, memory_cgroup: false }).unwrap();
    let tape = dir.join("tape");
    let start =
        Start { roots: &[(watched.clone(), real)], tape: &tape, pipes: Vec::new(), saved: None, inner: None };
    let recorder = Recorder::new(start, std::slice::from_ref(&watched)).unwrap();
    let saboteur = Saboteur { recorder, after, count: 0, disk: File::open(&disk.at).unwrap(), going };
    let saboteur = Arc::new(Mutex::new(saboteur));
    let null = || File::create("/dev/null").unwrap().into();
    let of = Watched::new([mount_id(&room.through(&watched)).unwrap()]);
    let argv = words.iter().map(|word| word.replace("WATCH", watched.to_str().unwrap()).into()).collect();
    let launch = Launch { argv, env: Vec::new(), cwd: Some(watched) };
    let mut attendance = None;
    let program = filter(&Interest { also: Vec::new(), words: false });
    let running = room
        .spawn_filtered(&launch, program, [null(), null()], |listener| {
            attendance = Some(attend(listener, of, Arc::clone(&saboteur)));
        })
        .unwrap();
    running.wait_timeout(Duration::from_secs(60)).expect("it ends");
    room.strike().unwrap();
    attendance.unwrap().join();
    room.close().unwrap();
    let mut saboteur = saboteur.lock().unwrap();
    if saboteur.count <= saboteur.after {
        shut_down(&saboteur.disk, going).unwrap();
    }
    // What mappings have changed can't be read any more.
    let recording = saboteur.recorder.finish().unwrap();
    // It holds the file system.
    saboteur.disk = File::open("/dev/null").unwrap();
    disk.again();
    let mut files = Files::new();
    walk(&disk.at.join("work"), Path::new(""), &mut files);
    (recording, files)
}

fn walk(top: &Path, below: &Path, files: &mut Files) {
    for entry in std::fs::read_dir(top.join(below)).unwrap().map(Result::unwrap) {
        let path = below.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            files.insert(path.clone(), None);
            walk(top, &path, files);
        } else {
            files.insert(path, Some(std::fs::read(entry.path()).unwrap()));
        }
    }
}

fn files_of(tree: &Tree, reader: &mut Reader<'_>) -> Files {
    let bytes = |leaf: &Leaf, reader: &mut Reader<'_>| match leaf {
        Leaf::File { content, .. } => Some(content.head(reader, u64::MAX).unwrap()),
        _ => None,
    };
    tree.leaves.iter().map(|((_, path), leaf)| (path.clone(), bytes(leaf, reader))).collect()
}

/// None: the model allows what is there. Names must be those of one of its states, and each file's bytes what it has in one of
/// the states with these names: whether one file's data reached the disk says nothing of another's.
fn outside(recording: &Recording, there: &Files, states: &[Candidate]) -> Option<String> {
    let mut reader = Reader::new(recording).unwrap();
    let mut possible: BTreeMap<&Path, Vec<Option<Vec<u8>>>> = BTreeMap::new();
    let mut named = false;
    for candidate in states {
        let files = files_of(&candidate.tree(recording), &mut reader);
        if files.keys().eq(there.keys()) {
            named = true;
            for ((path, _), bytes) in there.iter().zip(files.into_values()) {
                possible.entry(path).or_default().push(bytes);
            }
        }
    }
    if !named {
        return Some(format!("no state has these names: {:?}", there.keys().collect::<Vec<_>>()));
    }
    there.iter().find(|(path, bytes)| !possible[path.as_path()].contains(bytes)).map(|(path, bytes)| {
        let had: Vec<_> = possible[path.as_path()].iter().flatten().map(Vec::len).collect();
        let there = bytes.as_ref().map(Vec::len);
        let zeroes = bytes.iter().flatten().filter(|byte| **byte == 0).count();
        let first = bytes.iter().flatten().position(|byte| *byte == 0);
        format!(
            "`{}` has {there:?} bytes ({zeroes} zeroes, from {first:?} on) that no state gives it: {had:?}",
            path.display()
        )
    })
}

fn allowed(recording: &Recording, model: Model) -> Vec<Candidate> {
    let moments = Some([recording.ops.len()].into());
    let scope = Scope { process: false, models: vec![model], max_states: usize::MAX, moments };
    enumerate(recording, &scope).states.into_iter().map(|state| state.candidate().clone()).collect()
}

/// Numbers that look random, from a seed that a failure names.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn seed() -> u64 {
    let given = std::env::var("SEED").ok().and_then(|text| text.parse().ok());
    let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    given.unwrap_or_else(|| clock() as u64)
}

/// Crashes of each kind in each style, some milliseconds each.
const ROLLS: usize = 5;
const STYLES: [&str; 8] = [
    "correct",
    "in-place",
    "no-fsync",
    "no-folder-fsync",
    "delete-first",
    "marker-first",
    "manifest-first",
    "two-files",
];

fn main() -> ExitCode {
    trainwreck::sandbox::become_warden_if_asked();
    let missing = own_mounts().and_then(|()| Disk::new(tempfile::tempdir().unwrap().path()).map(drop)).err();
    missing.iter().for_each(|why| eprintln!("skipped: {why}"));
    let name = "what_a_real_ext4_leaves_is_among_the_states_of_the_model";
    let trial = Trial::test(name, compared).with_ignored_flag(missing.is_some());
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

/// Mounts that are made from now on are seen by nobody else, and end with this process.
fn own_mounts() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| format!("a mount namespace of its own: {error}"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(|error| error.to_string())?;
    let gate =
        trainwreck::sandbox::doctor().into_iter().find(|one| one.name == "syscall-gate" && !one.granted);
    gate.map_or(Ok(()), |gate| Err(gate.detail))
}

fn compared() -> Result<(), Failed> {
    let seed = seed();
    let mut dice = Dice(seed);
    let saver = Path::new(env!("CARGO_BIN_EXE_trainwreck")).parent().unwrap().join("examples/saver");
    let (mut rounds, mut more_than_a_kill) = (0, 0);
    for style in STYLES {
        for going in [Going::LogFlush, Going::NoLogFlush, Going::NoLogFlush].repeat(ROLLS) {
            let dir = tempfile::tempdir().unwrap();
            let disk = Disk::new(dir.path())?;
            let after = dice.roll(60);
            let words = [saver.to_str().unwrap(), style, "WATCH", "8", "20"];
            let (recording, there) = crash(&disk, dir.path(), &words, after, going);
            let named = format!("SEED={seed}, {style} shut down after {after} operations, {going:?}");
            let found = outside(&recording, &there, &allowed(&recording, Model::Ext4));
            let last = || recording.ops.iter().map(|op| op.text.as_str()).collect::<Vec<_>>().join("\n");
            assert_eq!(found, None, "{named}\n{}", last());
            // The broken twin: a model that knows kills only is not enough.
            let killed = [Candidate::whole(recording.ops.len())];
            more_than_a_kill += u32::from(outside(&recording, &there, &killed).is_some());
            rounds += 1;
        }
    }
    eprintln!("{rounds} crashes of a real ext4; {more_than_a_kill} of them left what no kill leaves");
    assert!(more_than_a_kill > 0);
    Ok(())
}
