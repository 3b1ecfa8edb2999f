//! A soak test, under a name with which it starts early. Lets random faults hit the daemon while it trains random jobs,
//! round after round: kills, signals, stopped workers, a full disk, a base model that is away, a damaged checkpoint.
//! Checks that no job is lost or trained twice, that the weights are those of an undisturbed run, and that neither
//! memory nor handles grow.
//!
//! `SOAK_SECONDS` is how long it runs (60 by default), `SOAK_SEED` chooses the faults. A failure prints the
//! seed of its round, which repeats the choices, but not the timing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::trainer_root::{TrainerRoot, all_output, daemon_command, run, sorted_names};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SETTINGS: [&str; 8] = [
    "recipe.steps=24",
    "recipe.batch=4",
    "train.save_every=3",
    "train.heartbeat_s=1",
    "train.backoff_ms=10",
    "train.max_crashes=1000",
    "train.threads=1",
    "limits.settle_s=0",
];
/// Different data files.
const DATA_FILES: u64 = 8;
/// Longest time of a round.
const ROUND_PATIENCE: Duration = Duration::from_secs(90);
/// Memory that a daemon has at least.
const MIN_DAEMON_KIB: u64 = 4 << 10;
/// Memory that the daemon may take.
const MAX_DAEMON_KIB: u64 = 96 << 10;
/// How long an ended worker may wait for the daemon.
const MAX_ZOMBIE_AGE: Duration = Duration::from_secs(5);
/// Open files that the daemon may have.
const MAX_DAEMON_HANDLES: usize = 40;

/// Numbers that depend on the seed only.
struct Choices(u64);

impl Choices {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn random_faults_lose_nothing() {
    let deadline = Instant::now() + Duration::from_secs(variable("SOAK_SECONDS", 60));
    let expected = undisturbed_results();
    let mut seed = variable("SOAK_SEED", 1);
    let mut totals = Totals::default();
    while Instant::now() < deadline {
        println!("round with SOAK_SEED={seed}: {totals:?}");
        Round::new(seed, &expected).run(&mut totals);
        seed += 1;
    }
    println!("{totals:?}");
    assert!(totals.jobs > 0 && totals.faults > 0);
}

/// What happened in all rounds.
#[derive(Debug, Default)]
struct Totals {
    rounds: u64,
    jobs: u64,
    faults: u64,
    restarts_of_daemon: u64,
    max_daemon_kib: u64,
    max_daemon_handles: usize,
}

/// The data file with this number: other samples, and another number of them.
fn data(number: u64) -> String {
    (0..8 + number).map(|line| format!("{{\"text\":\"data {number} line {line}\"}}\n")).collect()
}

/// The digest of each data file's adapter, by the file's number.
fn undisturbed_results() -> BTreeMap<u64, String> {
    let root = TrainerRoot::new(&SETTINGS);
    for number in 0..DATA_FILES {
        std::fs::write(root.path().join(format!("inbox/{number}.jsonl")), data(number)).unwrap();
    }
    let output = root.drain();
    let name_of = |job: &str| {
        let accepted = output.lines().find(|line| line.starts_with(&format!("accepted job {job}:"))).unwrap();
        accepted.rsplit(' ').next().unwrap().trim_end_matches(".jsonl").parse().unwrap()
    };
    let results: BTreeMap<u64, String> = output
        .lines()
        .filter_map(|line| line.strip_prefix("finished job "))
        .map(|line| (name_of(line.split(' ').next().unwrap()), line.rsplit(' ').next().unwrap().to_owned()))
        .collect();
    assert_eq!(results.len() as u64, DATA_FILES);
    results
}

struct Round<'a> {
    seed: u64,
    choices: Choices,
    expected: &'a BTreeMap<u64, String>,
    root: TrainerRoot,
    daemon: Child,
    submitted: BTreeSet<u64>,
    /// The inode of each result when it was first seen: a second training would write another file.
    results: BTreeMap<String, u64>,
    /// The checkpoint that was damaged last. Another one is damaged only after a newer one was saved.
    damaged: Option<PathBuf>,
    /// Ended workers that the daemon has not reaped, with the time when they were first seen.
    zombies: BTreeMap<String, Instant>,
    /// Whether the root is a small file system of its own, which can be filled.
    is_small_disk: bool,
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        if self.is_small_disk {
            // A worker that was just killed may still be there.
            let unmounted = || {
                let output = Command::new("umount").arg(self.root.path()).output();
                output.is_ok_and(|output| output.status.success())
            };
            (0..100).find(|_| unmounted() || (std::thread::sleep(Duration::from_millis(50)), false).1);
        }
    }
}

fn start_daemon(root: &TrainerRoot, args: &[&str]) -> Child {
    let open = |name| OpenOptions::new().create(true).append(true).open(root.dir.path().join(name)).unwrap();
    daemon_command()
        .arg(root.path_str())
        .args(args)
        .stdin(Stdio::null())
        .stdout(open("stdout"))
        .stderr(open("stderr"))
        .spawn()
        .unwrap()
}

impl<'a> Round<'a> {
    fn new(seed: u64, expected: &'a BTreeMap<u64, String>) -> Round<'a> {
        let root = TrainerRoot::new(&[]);
        std::fs::remove_dir_all(root.path()).unwrap();
        std::fs::create_dir(root.path()).unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "soak", root.path_str()]).output();
        let is_small_disk = mount.is_ok_and(|output| output.status.success());
        let mut init = vec!["init", root.path_str(), "--seed", "1", "--set", "device.use=cpu"];
        SETTINGS.iter().for_each(|setting| init.extend(["--set", setting]));
        assert!(run(&init).status.success());
        let daemon = start_daemon(&root, &[]);
        let mut choices = Choices(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        choices.below(2);
        let (submitted, results) = (BTreeSet::new(), BTreeMap::new());
        Round {
            seed,
            choices,
            expected,
            root,
            daemon,
            submitted,
            results,
            damaged: None,
            zombies: BTreeMap::new(),
            is_small_disk,
        }
    }

    fn run(mut self, totals: &mut Totals) {
        let jobs = 2 + self.choices.below(4);
        let deadline = Instant::now() + ROUND_PATIENCE;
        while (self.submitted.len() as u64) < jobs || self.results.len() < self.submitted.len() {
            assert!(Instant::now() < deadline, "{}", self.report("not all jobs were finished"));
            std::thread::sleep(Duration::from_millis(20 + self.choices.below(250)));
            if (self.submitted.len() as u64) < jobs && self.choices.below(2) == 0 {
                self.submit();
            }
            self.fault(totals);
            self.observe(totals);
        }
        self.check_end();
        totals.rounds += 1;
        totals.jobs += jobs;
    }

    /// Submits a file that is new, or was submitted before: then it must not be trained again.
    fn submit(&mut self) {
        let number = self.choices.below(DATA_FILES);
        let file = self.root.dir.path().join(format!("{number}.jsonl"));
        std::fs::write(&file, data(number)).unwrap();
        if run(&["submit", self.root.path_str(), file.to_str().unwrap()]).status.success() {
            self.submitted.insert(number);
        }
    }

    fn worker(&self) -> Option<Pid> {
        let children = format!("/proc/{0}/task/{0}/children", self.daemon.id());
        let children = std::fs::read_to_string(children).ok()?;
        let worker: i32 = children.split_whitespace().next()?.parse().ok()?;
        Some(Pid::from_raw(worker))
    }

    fn fault(&mut self, totals: &mut Totals) {
        totals.faults += 1;
        match self.choices.below(12) {
            0 => self.restart_daemon(Signal::SIGKILL, totals),
            1 => self.restart_daemon(Signal::SIGTERM, totals),
            2 => self.restart_daemon(Signal::SIGHUP, totals),
            3 | 4 => self.signal_worker(Signal::SIGKILL),
            5 => self.signal_worker(Signal::SIGTERM),
            6 => self.signal_worker(Signal::SIGSEGV),
            7 => self.signal_worker(Signal::SIGSTOP),
            8 => self.fill_disk(),
            9 => self.take_base_away(),
            10 => self.damage_newest_checkpoint(),
            _ => totals.faults -= 1,
        }
    }

    fn restart_daemon(&mut self, signal: Signal, totals: &mut Totals) {
        kill(Pid::from_raw(self.daemon.id() as i32), signal).unwrap();
        let status = self.daemon.wait().unwrap();
        let expected: &[Option<i32>] =
            if signal == Signal::SIGKILL { &[None] } else { &[Some(0), Some(15), None] };
        assert!(expected.contains(&status.code()), "{}", self.report(&format!("ended with {status}")));
        self.daemon = start_daemon(&self.root, &[]);
        totals.restarts_of_daemon += 1;
    }

    fn signal_worker(&self, signal: Signal) {
        if let Some(worker) = self.worker() {
            // It may have ended.
            let _ = kill(worker, signal);
        }
    }

    fn fill_disk(&mut self) {
        if !self.is_small_disk {
            return;
        }
        let filler = self.root.path().join("filler");
        // It ends when the disk is full.
        let _ = std::fs::write(&filler, vec![0; 32 << 20]);
        std::thread::sleep(Duration::from_millis(self.choices.below(400)));
        std::fs::remove_file(&filler).unwrap();
    }

    fn take_base_away(&mut self) {
        let (base, away) = (self.root.path().join("base"), self.root.dir.path().join("away"));
        let weights = base.join("model.safetensors");
        // Within the file system, so that the file stays the same.
        let hidden = base.join("hidden");
        std::fs::rename(&weights, &hidden).unwrap();
        std::thread::sleep(Duration::from_millis(self.choices.below(400)));
        std::fs::rename(&hidden, &weights).unwrap();
        assert!(!away.exists());
    }

    /// Cuts a file of the newest checkpoint, while no worker runs that has checked it already.
    fn damage_newest_checkpoint(&mut self) {
        let checkpoints = self.root.path().join("checkpoints");
        for job in sorted_names(&checkpoints) {
            let dir = checkpoints.join(job);
            let names: Vec<String> =
                sorted_names(&dir).into_iter().filter(|name| name.starts_with("step-")).collect();
            let Some(newest) = names.last().map(|name| dir.join(name)).filter(|_| names.len() > 1) else {
                continue;
            };
            if self.damaged.as_ref().is_some_and(|damaged| *damaged >= newest || damaged.exists()) {
                continue;
            }
            let file = OpenOptions::new().write(true).open(newest.join("optimizer.safetensors"));
            if file.is_ok_and(|file| file.set_len(100).is_ok()) {
                self.damaged = Some(newest);
                return;
            }
        }
    }

    /// Looks at the daemon's use of the machine, and for new results.
    fn observe(&mut self, totals: &mut Totals) {
        if let Some(status) = self.daemon.try_wait().unwrap() {
            // A disk that was full for too long, for example, may end it.
            assert!(
                [Some(11), Some(13), Some(21)].contains(&status.code()),
                "{}",
                self.report(&format!("the daemon ended with {status}"))
            );
            self.daemon = start_daemon(&self.root, &[]);
        }
        let proc = PathBuf::from(format!("/proc/{}", self.daemon.id()));
        let text = std::fs::read_to_string(proc.join("status")).unwrap_or_default();
        let memory = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: Option<u64> = memory.and_then(|text| text.split_whitespace().next()?.parse().ok());
        // One that has just been started has nearly no memory, and still the files of this process.
        if let Some(kib) = kib.filter(|kib| *kib > MIN_DAEMON_KIB) {
            let handles = std::fs::read_dir(proc.join("fd")).map_or(0, Iterator::count);
            totals.max_daemon_kib = totals.max_daemon_kib.max(kib);
            totals.max_daemon_handles = totals.max_daemon_handles.max(handles);
            assert!(kib <= MAX_DAEMON_KIB && handles <= MAX_DAEMON_HANDLES, "{kib} KiB, {handles} handles");
        }
        self.observe_zombies();
        let done = sorted_names(&self.root.path().join("done"));
        // An unfinished result has a name of its own.
        for job in done.into_iter().filter(|job| !job.starts_with(".tmp")) {
            let report = self.root.path().join("done").join(&job).join("report.json");
            if let Ok(metadata) = report.metadata() {
                let inode = *self.results.entry(job.clone()).or_insert(metadata.ino());
                assert_eq!(inode, metadata.ino(), "{}", self.report(&format!("{job} was trained twice")));
            }
        }
    }

    fn observe_zombies(&mut self) {
        let children = format!("/proc/{0}/task/{0}/children", self.daemon.id());
        let children = std::fs::read_to_string(children).unwrap_or_default();
        let stat = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let zombies: Vec<&str> =
            children.split_whitespace().filter(|pid| stat(pid).contains(") Z ")).collect();
        self.zombies.retain(|pid, _| zombies.contains(&pid.as_str()));
        for pid in zombies {
            let first_seen = self.zombies.entry(pid.to_owned()).or_insert_with(Instant::now);
            assert!(first_seen.elapsed() < MAX_ZOMBIE_AGE, "a zombie: {pid}");
        }
    }

    fn check_end(&mut self) {
        // Whatever is left of duplicates, and of jobs that have finished, goes; the daemon has no zombie.
        std::thread::sleep(Duration::from_millis(100));
        kill(Pid::from_raw(self.daemon.id() as i32), Signal::SIGTERM).unwrap();
        self.daemon.wait().unwrap();
        let output = self.root.spawn_daemon().wait_with_output().unwrap();
        assert!(output.status.success(), "{}", self.report(&all_output(&output)));
        let names = |name: &str| sorted_names(&self.root.path().join(name));
        assert!(names("failed").is_empty(), "{}", self.report("a job failed"));
        assert!(names("inbox").is_empty() && names("queue/processing").is_empty(), "{}", self.report("left"));
        let done: BTreeSet<String> = names("done").into_iter().collect();
        assert_eq!(done, self.results.keys().cloned().collect(), "{}", self.report("results"));
        let digest_of = |job: &String| {
            let report = std::fs::read(self.root.path().join("done").join(job).join("report.json")).unwrap();
            let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
            report["adapter"].as_str().unwrap().to_owned()
        };
        let found: BTreeSet<String> = done.iter().map(digest_of).collect();
        let expected: BTreeSet<String> =
            self.submitted.iter().map(|number| self.expected[number].clone()).collect();
        assert_eq!(found, expected, "{}", self.report("other weights"));
        for job in &done {
            let report = self.root.path().join("done").join(job).join("report.json");
            assert_eq!(self.results[job], report.metadata().unwrap().ino(), "{job} was trained twice");
        }
    }

    fn report(&self, what: &str) -> String {
        let read = |name| std::fs::read_to_string(self.root.dir.path().join(name)).unwrap_or_default();
        let (stdout, stderr) = (read("stdout"), read("stderr"));
        let end = |text: &str| text[text.len().saturating_sub(3000)..].to_owned();
        let inbox = sorted_names(&self.root.path().join("inbox"));
        format!("SOAK_SEED={}: {what}\ninbox {inbox:?}\n.. {}\n.. {}", self.seed, end(&stdout), end(&stderr))
    }
}
