//! Compares the models of ext4, xfs and btrfs with the real ones. Random programs run on file systems on loop
//! devices. The power is lost by the `ioctl` that shuts a file system down (ext4, xfs), or by cutting the log of
//! the block writes, with some of those that were not flushed (all three). The names and the bytes of the whole
//! tree that is then mounted must be admissible in the model.
//!
//! `cargo test -p trainwreck --test real_disks`, as root, with `mkfs.ext4`, `mkfs.xfs` and `mkfs.btrfs`. `IMAGES=N`
//! sets the number of crashes of each file system, `SEED=N` repeats a failure. Not covered: attributes, directories
//! that are renamed, and holes that are punched.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at the first failure, and prints how many crashes it compared"
)]

mod admission;
mod block_disks;
mod file_history;
mod file_systems;
mod random_program;
#[expect(dead_code, unused_macros, reason = "each test program uses a part of it")]
#[path = "../support/mod.rs"]
mod support;
mod sys;
mod wrong_rules;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use admission::{Admission, CrashMoment, DurableUnits, FoundFile, FoundTree, durable_units};
use block_disks::{BlockDisks, BlockRequest, DiskContent, UnflushedWrites};
use file_history::FileHistory;
use file_systems::{MountedDisk, RealFs};
use random_program::{ProgramKind, RecordedProgram, run_program};
use support::seeded_random::SeededRandom;
use support::trial::trial;
use sys::{ShutdownMode, shut_down};
use wrong_rules::durable_if_a_sync_commits_all;

/// Crashes of each file system, unless `IMAGES` says otherwise.
const IMAGES: usize = 60;
/// Crashes of one run of a program, by cutting the log of the block writes.
const CUTS_PER_PROGRAM: usize = 10;
/// How many crashes that the model does not allow a failure shows.
const SHOWN_REFUSALS: usize = 3;
/// Each n-th program sleeps until the journal is committed.
const PROGRAMS_PER_SLEEP: usize = 4;

fn main() -> ExitCode {
    let outer = Arc::new(File::open("/proc/self/ns/mnt").unwrap());
    let no_namespace = enter_private_mount_namespace();
    let trials = [RealFs::Ext4, RealFs::Xfs, RealFs::Btrfs].map(|kind| {
        let missing = no_namespace.clone().or_else(|| Comparison::new(kind, &outer).err());
        let outer = Arc::clone(&outer);
        let name = format!("the_model_allows_what_a_real_{}_leaves", kind.model().name());
        trial(name, missing.as_deref(), move || Comparison::new(kind, &outer).unwrap().run())
    });
    support::trial::run_sequentially(trials.into())
}

/// Later mounts are visible to this process only, and end with it. Returns the reason if that is impossible.
fn enter_private_mount_namespace() -> Option<String> {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
        return Some(format!("could not create a mount namespace: {error}"));
    }
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let made_private = mount(None::<&str>, "/", None::<&str>, private, None::<&str>);
    made_private.err().map(|error| format!("could not make the mounts private: {error}"))
}

fn number_from_environment(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// `SEED`, or in CI always the same one.
fn seed() -> u64 {
    let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    number_from_environment("SEED")
        .or_else(|| number_from_environment("PROPTEST_RNG_SEED"))
        .unwrap_or_else(|| clock() as u64)
}

/// How many crashes there were, and how many of them no model explains.
#[derive(Debug, Default)]
struct Counts {
    images: usize,
    by_shutdown: usize,
    /// Not the tree of a process crash at that moment.
    lost_something: usize,
    /// Outside of the model in which a sync commits everything.
    outside_wrong_model: usize,
    refused: Vec<String>,
}

/// A file system and the place where its disks are.
struct Comparison {
    kind: RealFs,
    disks: BlockDisks,
    /// A file system without files.
    empty: DiskContent,
    counts: Counts,
    seed: u64,
    /// Of the FUSE file system, which is unmounted before.
    _dir: tempfile::TempDir,
}

/// A crash of a program, and what was found afterwards.
struct Crash<'a> {
    program: &'a RecordedProgram,
    history: &'a FileHistory,
    moment: CrashMoment,
    found: FoundTree,
    text: String,
}

impl Comparison {
    fn new(kind: RealFs, outer: &File) -> Result<Comparison, String> {
        let dir = tempfile::tempdir().unwrap();
        let disks = BlockDisks::mount(&dir.path().join("disks"), outer)?;
        let empty = kind.new_disk(&disks)?;
        Ok(Comparison { kind, disks, empty, counts: Counts::default(), seed: seed(), _dir: dir })
    }

    fn run(mut self) {
        let images = number_from_environment("IMAGES").map_or(IMAGES, |images| images as usize);
        let mut random = SeededRandom::new(self.seed);
        self.crash_by_cutting(&mut random, ProgramKind::CreateBeforeSyncOfAnother);
        assert!(self.counts.outside_wrong_model > 0, "the wrong model is not caught");
        let mut programs = 1;
        while self.counts.images < images {
            programs += 1;
            let mut random =
                SeededRandom::new(self.seed.wrapping_mul(1_000_003).wrapping_add(programs as u64));
            let sleeps = programs % PROGRAMS_PER_SLEEP == 0;
            if self.kind != RealFs::Btrfs && programs % 2 == 0 {
                for _ in 0..CUTS_PER_PROGRAM / 2 {
                    self.crash_by_shutdown(&mut random);
                }
            } else {
                let op_count = 30 + random.below(30);
                self.crash_by_cutting(&mut random, ProgramKind::Random { op_count, sleeps });
            }
        }
        let Counts { images, by_shutdown, lost_something, outside_wrong_model, refused } = self.counts;
        eprintln!(
            "SEED={} {}: {images} crashes of {programs} programs, {by_shutdown} by shutdown; {lost_something} lost \
             something; {} outside of the model, {outside_wrong_model} outside of the wrong model",
            self.seed,
            self.kind.model().name(),
            refused.len()
        );
        let shown = refused.len().min(SHOWN_REFUSALS);
        assert!(refused.is_empty(), "{}", refused[..shown].join("\n\n"));
        assert!(lost_something > 0);
    }

    fn mount(&self, content: DiskContent) -> Result<MountedDisk, String> {
        MountedDisk::new(self.kind, self.disks.add(content))
    }

    /// Shuts the file system down at the end of a program.
    fn crash_by_shutdown(&mut self, random: &mut SeededRandom) {
        let mounted = self.mount(self.empty.clone()).unwrap();
        let op_count = 8 + random.below(40);
        let program = run_program(&mounted, random, ProgramKind::Random { op_count, sleeps: false });
        let mode = if random.below(3) == 0 { ShutdownMode::LogFlush } else { ShutdownMode::NoLogFlush };
        shut_down(&File::open(mounted.root()).unwrap(), mode).unwrap();
        let disk = mounted.unmount();
        let mounted = MountedDisk::new(self.kind, disk).unwrap();
        let found = read_tree(&mounted.work());
        drop(mounted.unmount());
        let op_count = program.recording.ops.len();
        let moment = CrashMoment { ended: op_count, begun: op_count };
        let history = FileHistory::of(&program);
        let text = format!("{mode:?}");
        self.counts.by_shutdown += 1;
        self.judge(&Crash { program: &program, history: &history, moment, found, text });
    }

    /// Cuts the log of the block writes of one program at several places.
    fn crash_by_cutting(&mut self, random: &mut SeededRandom, kind: ProgramKind) {
        let mounted = self.mount(self.empty.clone()).unwrap();
        nix::unistd::syncfs(File::open(mounted.root()).unwrap()).unwrap();
        drop(mounted.disk().take_log());
        let before = mounted.disk().content();
        let program = run_program(&mounted, random, kind);
        let log = mounted.disk().take_log();
        drop(mounted.unmount());
        let history = FileHistory::of(&program);
        for number in 0..CUTS_PER_PROGRAM {
            let ends: Vec<usize> = program.spans.iter().map(|span| span.end).collect();
            let cut = match random.below(2) {
                _ if number == 0 => log.len(),
                0 => ends[random.below(ends.len())],
                _ => random.below(log.len() + 1),
            };
            let unflushed = [
                UnflushedWrites::All,
                UnflushedWrites::None,
                UnflushedWrites::SomeRequests,
                UnflushedWrites::SomeBlocks,
            ][random.below(4)];
            let moment = moment_of_cut(&program, cut);
            let text = format!("cut after {cut} of {} requests, {unflushed:?}", log.len());
            let crash = self.cut(&before, &log[..cut], unflushed, random);
            match crash {
                Ok(found) => {
                    self.judge(&Crash { program: &program, history: &history, moment, found, text });
                }
                Err(error) => {
                    self.counts.images += 1;
                    self.counts.refused.push(format!("{text}: {error}"));
                }
            }
        }
    }

    fn cut(
        &self,
        before: &DiskContent,
        log: &[BlockRequest],
        unflushed: UnflushedWrites,
        random: &mut SeededRandom,
    ) -> Result<FoundTree, String> {
        let mounted = self.mount(before.after_power_loss(log, unflushed, random))?;
        let found = read_tree(&mounted.work());
        drop(mounted.unmount());
        Ok(found)
    }

    fn judge(&mut self, crash: &Crash<'_>) {
        let Crash { program, history, moment, found, text } = crash;
        let refusal = |durable: &DurableUnits| {
            let (model, moment) = (self.kind.model(), *moment);
            Admission { program, history, model, durable, moment, found }.refusal()
        };
        let recording = &program.recording;
        let right = refusal(&durable_units(recording, self.kind.model(), moment.ended));
        let wrong = refusal(&durable_if_a_sync_commits_all(recording, moment.ended));
        self.counts.images += 1;
        self.counts.outside_wrong_model += usize::from(wrong.is_some());
        self.counts.lost_something += usize::from(!is_whole(history, *moment, found));
        if let Some(refusal) = right {
            let ops: Vec<String> = (0..moment.begun)
                .map(|op| {
                    format!("{op} {}{}", recording.ops[op].text, if op < moment.ended { "" } else { " .." })
                })
                .collect();
            let (seed, ops, paths) = (self.seed, ops.join("\n"), found.keys());
            self.counts.refused.push(format!("SEED={seed} {text}\n{ops}\nfound: {paths:?}\n{refusal}"));
        }
    }
}

fn moment_of_cut(program: &RecordedProgram, cut: usize) -> CrashMoment {
    CrashMoment {
        ended: program.spans.iter().filter(|span| span.end <= cut).count(),
        begun: program.spans.iter().filter(|span| span.begin < cut || span.end <= cut).count(),
    }
}

/// Whether nothing was lost.
fn is_whole(history: &FileHistory, moment: CrashMoment, found: &FoundTree) -> bool {
    let paths = history.paths(moment.ended);
    paths.keys().eq(found.keys())
        && paths.values().zip(found.values()).all(|(node, found)| {
            found.bytes.as_ref().is_none_or(|bytes| bytes == history.content(*node, moment.ended))
        })
}

fn read_tree(top: &Path) -> FoundTree {
    let mut found = FoundTree::new();
    let mut to_visit = vec![top.to_owned()];
    while let Some(dir) = to_visit.pop() {
        for entry in std::fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let metadata = entry.metadata().unwrap();
            let bytes = metadata.is_file().then(|| std::fs::read(entry.path()).unwrap());
            if metadata.is_dir() {
                to_visit.push(entry.path());
            }
            let path = entry.path().strip_prefix(top).unwrap().to_owned();
            found.insert(path, FoundFile { bytes, inode: metadata.ino() });
        }
    }
    found
}
