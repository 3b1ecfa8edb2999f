//! What `run`, `ablate` and `explore` share: the removal of leftovers, a directory for the sandboxes, the
//! number of jobs. Knows nothing of what runs in it.

use std::path::{Path, PathBuf};

use engine::sandbox::{self, RunDir};

use crate::error::CliError;
use crate::print;

/// A run in progress. Its directory is removed by [`Session::close`], or by the drop if the run fails.
pub(crate) struct Session {
    /// `None` once it has been removed.
    run_dir: Option<RunDir>,
    path: PathBuf,
    jobs: usize,
}

impl Session {
    /// Creates a directory for the sandboxes, and removes what earlier runs left behind. What cannot be
    /// removed is reported, and does not matter to this run.
    ///
    /// # Errors
    /// If the directory cannot be created.
    pub(crate) fn open(jobs: Option<u16>) -> Result<Session, CliError> {
        let run_dir = RunDir::create().map_err(CliError::RunDir)?;
        let path = run_dir.path().to_path_buf();
        let session =
            Session { run_dir: Some(run_dir), path, jobs: jobs.map_or_else(core_count, usize::from) };
        let swept = sandbox::remove_leftovers().map_err(CliError::Leftovers)?;
        swept.removed.iter().for_each(|leftover| print::notice(&format!("removed {leftover}")));
        swept.kept.iter().for_each(|leftover| print::notice(&print::error_chain(leftover)));
        Ok(session)
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
        self.run_dir.take().map_or(Ok(()), RunDir::close).map_err(CliError::CleanUp)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The run has failed already, and that error is printed. The next start removes what is left.
        let _ = self.run_dir.take().map(RunDir::close);
    }
}

/// The number of cores that this process may use, at least 1.
pub(crate) fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}
