//! What `run`, `ablate` and `explore` share: a directory for the sandboxes, the removal of leftovers beside it, the
//! number of jobs. Knows nothing of what runs in it.

use std::path::{Path, PathBuf};

use engine::sandbox::{RunDir, SweptLeftovers};

use crate::error::CliError;
use crate::print;
use crate::sweep::{Sweep, SweepWait};

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
    /// If the directory cannot be created.
    pub(crate) fn open(jobs: Option<u16>) -> Result<Session, CliError> {
        let run_dir = RunDir::create().map_err(CliError::RunDir)?;
        let path = run_dir.path().to_path_buf();
        let jobs = jobs.map_or_else(core_count, usize::from);
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
        // The run has failed already, and that error is printed. The next start removes what is left.
        let _ = self.run_dir.take().map(RunDir::close);
        self.finish_sweep();
    }
}

fn report(swept: &SweptLeftovers) {
    swept.removed.iter().for_each(|leftover| print::notice(&format!("removed {leftover}")));
    swept.kept.iter().for_each(|leftover| print::notice(&print::error_chain(leftover)));
    if swept.is_unfinished {
        print::notice("not all of what killed runs have left behind is removed: run `trainwreck recover`");
    }
}

/// The number of cores that this process may use, at least 1.
pub(crate) fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}
