//! Resumes a target once from the files that a run left at its end, and from those right after a save that came after
//! a fault: what it promised must still be there. Trials with the same files share the result. Knows no fault, and
//! gives no verdict.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, FileType};
use std::io::Error;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use scenarios::{AnnouncedSave, BaselineProgress, EndResume, Ending, Event, OutputStream, RecordEntry};

use crate::announcements::{Announced, Announcement, AnnouncementPatterns, error_line};
use crate::file_error::{chain, file_error};
use crate::judge::{FollowedRun, JobLedger, is_sound_control};
use crate::locks::LockExt;
use crate::run::error::RunError;
use crate::run::output_lines::{NextLine, OutputLines};
use crate::run::save_snapshots::{SaveSnapshot, announced_save};
use crate::run::trial_env::{TrialConfig, TrialEnv};
use crate::sandbox::ProcessExit;

/// Longest time between two looks at the target.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Lines of each output that are kept to explain a failure.
const MAX_LAST_LINES: usize = 40;
/// How long to read output after the main process has exited.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(100);

/// The resumes of one scenario's trials, by a hash of the files and of what was promised.
#[derive(Default)]
pub(super) struct ResumeCache {
    results: Mutex<HashMap<blake3::Hash, EndResume>>,
}

/// A trial that has ended, and what it is compared with.
#[derive(Clone, Copy)]
pub(super) struct EndedTrial<'a> {
    pub(super) env: &'a TrialEnv<'a>,
    pub(super) config: TrialConfig<'a>,
    pub(super) baseline: &'a BaselineProgress,
    /// The entries of its last attempt.
    pub(super) entries: &'a [RecordEntry],
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

impl EndedTrial<'_> {
    /// What it announced, in these of its entries.
    fn ledger(&self, entries: &[RecordEntry]) -> JobLedger<'_> {
        FollowedRun::of(self.env.target(), self.baseline, entries).ledger
    }

    /// The entries up to the line of a save. `None`: the line did not arrive.
    fn entries_up_to(&self, save: &AnnouncedSave) -> Option<&[RecordEntry]> {
        let is_effect = |entry: &RecordEntry| matches!(entry.event, Event::FaultEffective { .. });
        let is_save = |entry: &RecordEntry| announced_save(&entry.event).as_ref() == Some(save);
        let effect = self.entries.iter().position(is_effect)?;
        let end = self.entries[effect..].iter().position(is_save)?;
        Some(&self.entries[..=effect + end])
    }
}

impl ResumeCache {
    /// Resumes from the files of a trial, if the target has outlived a fault since its last start and has promised
    /// something. A trial in which it was started again afterwards has shown it already.
    ///
    /// # Errors
    /// If the sandbox fails, or its files cannot be read.
    pub(super) fn resume_from_end(&self, trial: EndedTrial<'_>) -> Result<Option<EndResume>, RunError> {
        if trial.baseline.control.is_none() || !has_outlived_fault(trial.entries) {
            return Ok(None);
        }
        let ledger = trial.ledger(trial.entries);
        if !ledger.has_promises() {
            return Ok(None);
        }
        let root = trial.env.sandbox.host_path_in_root(Path::new(""));
        let start = starts(trial.entries) + 1;
        let resumed = self.resume_once(&root, &ledger, || resume(trial.env, &ledger, start));
        unless_unreadable(resumed).map(Some)
    }

    /// Resumes from each of the files that were copied right after a save.
    ///
    /// # Errors
    /// If a sandbox fails, or files cannot be copied.
    pub(super) fn resume_from_saves(
        &self,
        trial: EndedTrial<'_>,
        snapshots: &[SaveSnapshot],
        dir: &Path,
    ) -> Result<Vec<EndResume>, RunError> {
        let mut resumed = Vec::new();
        for (SaveSnapshot { save, files, failure, .. }, number) in snapshots.iter().zip(1..) {
            let Some(entries) = trial.entries_up_to(save) else { continue };
            if failure.is_some() {
                let not_tried = failure.clone();
                let after_save = Some(save.clone());
                resumed.push(EndResume { after_save, not_tried, ..EndResume::default() });
                continue;
            }
            let (ledger, start) = (trial.ledger(entries), starts(entries) + 1);
            let found = self.resume_once(files, &ledger, || {
                let dir = dir.join(format!("resume-{number}"));
                let env = TrialEnv::of_files(dir, trial.config, files, trial.env)?;
                let resumed = resume(&env, &ledger, start)?;
                env.sandbox.close()?;
                Ok(resumed)
            });
            let found = unless_unreadable(found)?;
            resumed.push(EndResume { after_save: Some(save.clone()), ..found });
        }
        Ok(resumed)
    }

    /// Resumes, unless the same files were resumed from after the same announcements.
    fn resume_once(
        &self,
        files: &Path,
        ledger: &JobLedger<'_>,
        resume: impl FnOnce() -> Result<EndResume, RunError>,
    ) -> Result<EndResume, RunError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{:?}", ledger.clone().into_progress()).as_bytes());
        hash_files(files, &mut hasher).map_err(file_error::<RunError>("read the files in", files))?;
        let hash = hasher.finalize();
        if let Some(known) = self.results.locked().get(&hash) {
            return Ok(EndResume { shared: true, ..known.clone() });
        }
        let resumed = resume()?;
        self.results.locked().insert(hash, resumed.clone());
        Ok(resumed)
    }
}

/// Files that the target has made unreadable, or that do not fit, are no failure of the harness: what they would have
/// shown is not known.
fn unless_unreadable(resumed: Result<EndResume, RunError>) -> Result<EndResume, RunError> {
    match resumed {
        Err(RunError::File(error)) => {
            Ok(EndResume { not_tried: Some(chain(&error)), ..EndResume::default() })
        }
        resumed => resumed,
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
    let mut lines = OutputLines::of(&mut process);
    let started_at = Instant::now();
    let (mut last_output_at, mut ending) = (started_at, None);
    let (mut values, mut last_lines) = (Vec::new(), LastLines::default());
    let mut follow = |line: &str, ledger: &mut JobLedger<'_>| {
        for found in patterns.parse(line) {
            ledger.on_announcement(&found);
            if let Announcement { what: Announced::Finished { value }, .. } = found {
                values.push(value);
            }
        }
    };
    let is_lost = |ledger: &JobLedger<'_>| {
        let resumed = ledger.resumed().iter();
        resumed.into_iter().any(|job| Some(job.from) < before.acknowledged(job.job.as_deref()))
    };
    while ending.is_none() && !is_lost(&ledger) {
        match lines.next_line(POLL_INTERVAL).map_err(RunError::Output)? {
            NextLine::Line(stream, line) => {
                last_output_at = Instant::now();
                follow(&line, &mut ledger);
                last_lines.push(stream, line);
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
    lines.begin_rest(DRAIN_TIMEOUT).map_err(RunError::Output)?;
    while let Some((stream, line)) = lines.next_of_rest().map_err(RunError::Output)? {
        follow(&line, &mut ledger);
        last_lines.push(stream, line);
    }
    let resumed = ledger.resumed().to_vec();
    let said = last_lines.error_line().filter(|_| ending != Some(Ending::Exited(0)));
    Ok(EndResume { ending, resumed, values, said, ..EndResume::default() })
}

/// The last lines of both outputs.
#[derive(Default)]
struct LastLines {
    stdout: VecDeque<String>,
    stderr: VecDeque<String>,
}

impl LastLines {
    fn push(&mut self, stream: OutputStream, line: String) {
        let lines = match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        lines.push_back(line);
        if lines.len() > MAX_LAST_LINES {
            lines.pop_front();
        }
    }

    /// The line that explains best why the target failed.
    fn error_line(&self) -> Option<String> {
        let text = |lines: &VecDeque<String>| lines.iter().cloned().collect::<Vec<_>>().join("\n");
        Some(error_line(&text(&self.stdout), &text(&self.stderr))).filter(|line| !line.is_empty())
    }
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
