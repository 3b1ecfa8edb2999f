//! Resumes a target once from the files that a run left at its end: what it promised must still be there. Trials that
//! left the same files share the result. Knows no fault, and gives no verdict.

use std::collections::HashMap;
use std::fs::{File, FileType};
use std::io::Error;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use scenarios::{BaselineProgress, EndResume, Ending, Event, RecordEntry, last_attempt};

use crate::announcements::AnnouncementPatterns;
use crate::file_error::file_error;
use crate::judge::{FollowedRun, JobLedger, is_sound_control};
use crate::locks::LockExt;
use crate::run::error::RunError;
use crate::run::output_lines::{NextLine, OutputLines};
use crate::run::trial_env::TrialEnv;
use crate::sandbox::ProcessExit;

/// Longest time between two looks at the target.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// How long to read output after the main process has exited.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(100);

/// The resumes of one scenario's trials, by a hash of the files and of what was promised.
#[derive(Default)]
pub(super) struct EndResumeCache {
    results: Mutex<HashMap<blake3::Hash, EndResume>>,
}

/// Resumes from the files of an undisturbed run. Returns what that looks like, if it shows anything: a target that
/// promises nothing, that begins again from scratch after its end, or that fails then, cannot be asked.
///
/// # Errors
/// If the sandbox fails.
pub(super) fn control(env: &TrialEnv<'_>, entries: &[RecordEntry]) -> Result<Option<EndResume>, RunError> {
    let nothing_known = BaselineProgress::default();
    let FollowedRun { ledger, .. } = FollowedRun::of(env.target(), &nothing_known, entries);
    if !ledger.has_promises() {
        return Ok(None);
    }
    let control = resume(env, &ledger, starts(entries) + 1)?;
    Ok(Some(control).filter(|control| is_sound_control(control, &ledger)))
}

impl EndResumeCache {
    /// Resumes from the files of a trial, if the target has outlived a fault since its last start and has promised
    /// something. A trial in which it was started again afterwards has shown it already.
    ///
    /// # Errors
    /// If the sandbox fails, or its files cannot be read.
    pub(super) fn resume_if_needed(
        &self,
        env: &TrialEnv<'_>,
        baseline: &BaselineProgress,
        entries: &[RecordEntry],
    ) -> Result<Option<EndResume>, RunError> {
        let entries = last_attempt(entries);
        if baseline.control.is_none() || !has_outlived_fault(entries) {
            return Ok(None);
        }
        let FollowedRun { ledger, .. } = FollowedRun::of(env.target(), baseline, entries);
        if !ledger.has_promises() {
            return Ok(None);
        }
        let root = env.sandbox.host_path_in_root(Path::new(""));
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{:?}", ledger.clone().into_progress()).as_bytes());
        hash_files(&root, &mut hasher).map_err(file_error::<RunError>("read the files in", &root))?;
        let hash = hasher.finalize();
        if let Some(known) = self.results.locked().get(&hash) {
            return Ok(Some(EndResume { shared: true, ..known.clone() }));
        }
        let resumed = resume(env, &ledger, starts(entries) + 1)?;
        self.results.locked().insert(hash, resumed.clone());
        Ok(Some(resumed))
    }
}

/// The number of the target's last start.
fn starts(entries: &[RecordEntry]) -> u32 {
    let started = |entry: &RecordEntry| match &entry.event {
        Event::TargetStarted(started) => Some(started.attempt),
        _ => None,
    };
    entries.iter().rev().find_map(started).unwrap_or(0)
}

/// Whether the last start ended with exit code 0, and a fault had an effect in it. What a fault did before the first
/// start lasts.
fn has_outlived_fault(entries: &[RecordEntry]) -> bool {
    let is_effect = |entry: &RecordEntry| {
        matches!(entry.event, Event::FaultEffective { .. } | Event::FaultReverted { .. })
    };
    let is_start = |entry: &RecordEntry| matches!(entry.event, Event::TargetStarted(_));
    let ending = entries.iter().rev().find_map(|entry| match entry.event {
        Event::TargetEnded { ending, .. } => Some(ending),
        _ => None,
    });
    let last_start = entries.iter().rposition(is_start).filter(|_| starts(entries) > 1).unwrap_or(0);
    ending == Some(Ending::Exited(0)) && entries[last_start..].iter().any(is_effect)
}

/// Resumes the target, until it ends or has shown that a promise is broken.
fn resume(env: &TrialEnv<'_>, before: &JobLedger<'_>, start: u32) -> Result<EndResume, RunError> {
    let target = env.target();
    let patterns = AnnouncementPatterns::of_target(target);
    let mut ledger = before.clone();
    ledger.on_start(start);
    let mut process = env.sandbox.spawn(&env.trainer().resume())?;
    let mut lines = OutputLines::read_from(&mut process);
    let started_at = Instant::now();
    let (mut last_output_at, mut ending) = (started_at, None);
    let is_lost = |ledger: &JobLedger<'_>| {
        let resumed = ledger.resumed().iter();
        resumed.into_iter().any(|job| Some(job.from) < before.acknowledged(job.job.as_deref()))
    };
    while ending.is_none() && !is_lost(&ledger) {
        match lines.next_line(POLL_INTERVAL) {
            NextLine::Line(_, line) => {
                last_output_at = Instant::now();
                patterns.parse(&line).iter().for_each(|found| ledger.on_announcement(found));
                if started_at.elapsed() < target.finish() {
                    continue;
                }
            }
            NextLine::Timeout => {}
            NextLine::Closed => std::thread::sleep(POLL_INTERVAL),
        }
        let is_late = last_output_at.elapsed() > target.stall() || started_at.elapsed() > target.finish();
        ending = match process.wait_timeout(Duration::ZERO) {
            Some(ProcessExit::Exited(code)) => Some(Ending::Exited(code)),
            Some(ProcessExit::Signalled(signal)) => Some(Ending::Signalled(signal)),
            None => is_late.then_some(Ending::TimedOut),
        };
    }
    env.sandbox.kill_all()?;
    while let NextLine::Line(_, line) = lines.next_line(DRAIN_TIMEOUT) {
        patterns.parse(&line).iter().for_each(|found| ledger.on_announcement(found));
    }
    Ok(EndResume { ending, resumed: ledger.resumed().to_vec(), shared: false })
}

/// Hashes the names, kinds, modes and contents of all that is in a directory.
fn hash_files(dir: &Path, hasher: &mut blake3::Hasher) -> Result<(), Error> {
    let mut entries = std::fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (path, metadata) = (entry.path(), entry.metadata()?);
        let kind: FileType = metadata.file_type();
        let (name, len_bytes) = (entry.file_name(), metadata.len());
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        hasher.update(&metadata.permissions().mode().to_le_bytes());
        if kind.is_dir() {
            hash_files(&path, hasher)?;
            // Where the directory ends.
            hasher.update(&u64::MAX.to_le_bytes());
        } else if kind.is_symlink() {
            hasher.update(std::fs::read_link(&path)?.as_os_str().as_bytes());
        } else if kind.is_file() {
            hasher.update(&len_bytes.to_le_bytes()).update_reader(File::open(&path)?)?;
        }
    }
    Ok(())
}
