//! What `run`, `ablate` and `explore` share: a directory for the sandboxes, the removal of leftovers beside it, the
//! number of jobs. Knows nothing of what runs in it.

use std::path::{Path, PathBuf};

use engine::sandbox::{RunDir, SweptLeftovers};
use nix::sys::resource::{Resource, getrlimit};

use crate::error::CliError;
use crate::print;
use crate::sweep::{Sweep, SweepWait};

/// How many files a run may have open at the same time, apart from its jobs.
const RUN_OPEN_FILES: u64 = 64;
/// How many files a job may have open at the same time: twice what was measured.
const JOB_OPEN_FILES: u64 = 16;

/// A run in progress. Its directory is removed by [`Session::close`], or by the drop if the run fails.
pub(crate) struct Session {
    /// `None` once it has been removed.
    run_dir: Option<RunDir>,
    path: PathBuf,
    jobs: usize,
    /// Removes what earlier runs have left behind.
    sweep: Option<Sweep>,
}

impl Session {
    /// Creates a directory for the sandboxes, and begins to remove what earlier runs left behind. What cannot be
    /// removed is reported at the end, and does not matter to this run.
    ///
    /// # Errors
    /// If the directory cannot be created, or if too few files may be open at the same time.
    pub(crate) fn open(jobs: Option<u16>, default_jobs: usize) -> Result<Session, CliError> {
        let jobs = jobs_within_limit(jobs, default_jobs, open_file_limit())?;
        let run_dir = RunDir::create().map_err(CliError::RunDir)?;
        let path = run_dir.path().to_path_buf();
        Ok(Session { run_dir: Some(run_dir), path, jobs, sweep: Some(Sweep::start()) })
    }

    /// The directory for the sandboxes.
    pub(crate) fn dir(&self) -> &Path {
        &self.path
    }

    /// How many trials or recoveries run at the same time.
    pub(crate) fn jobs(&self) -> usize {
        self.jobs
    }

    /// Removes the directory.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub(crate) fn close(mut self) -> Result<(), CliError> {
        self.finish_sweep();
        self.run_dir.take().map_or(Ok(()), RunDir::close).map_err(CliError::CleanUp)
    }

    fn finish_sweep(&mut self) {
        match self.sweep.take().map(|sweep| sweep.finish(SweepWait::Bounded)) {
            Some(Ok(Some(swept))) => report(&swept),
            Some(Err(error)) => print::notice(&print::error_chain(&error)),
            _ => {}
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // First the sweep, so that it does not need the last descriptors.
        self.finish_sweep();
        // The run has failed already, and that error is printed. The next start removes what is left.
        let _ = self.run_dir.take().map(RunDir::close);
    }
}

fn report(swept: &SweptLeftovers) {
    swept.removed.iter().for_each(|leftover| print::notice(&format!("removed {leftover}")));
    swept.kept.iter().for_each(|leftover| print::notice(&print::error_chain(leftover)));
    if swept.is_unfinished {
        print::notice("not all of what killed runs have left behind is removed: run `trainwreck recover`");
    }
}

/// How many files this process may have open at the same time.
fn open_file_limit() -> u64 {
    // Without an answer, the run itself finds out.
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

/// `asked` jobs, or the default as far as it is within the limit on open files.
fn jobs_within_limit(asked: Option<u16>, default: usize, limit: u64) -> Result<usize, CliError> {
    let most = limit.saturating_sub(RUN_OPEN_FILES) / JOB_OPEN_FILES;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let jobs = asked.map_or_else(|| default.min(most).max(1), usize::from);
    if jobs <= most {
        return Ok(jobs);
    }
    let needed = RUN_OPEN_FILES + JOB_OPEN_FILES * jobs as u64;
    Err(CliError::OpenFileLimit { limit, jobs, needed })
}

/// The number of cores that this process may use, at least 1.
pub(crate) fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_within_the_limit_on_open_files() {
        assert_eq!(jobs_within_limit(Some(60), 2, 1024).ok(), Some(60));
        assert!(jobs_within_limit(Some(61), 2, 1024).is_err());
        assert_eq!(jobs_within_limit(None, 2, 80).ok(), Some(1));
        assert!(jobs_within_limit(None, 2, 79).is_err());
        assert_eq!(jobs_within_limit(None, 2, u64::MAX).ok(), Some(2));
    }
}
