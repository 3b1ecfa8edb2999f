//! What the daemon tells of the machine's health: a line when a state begins, and one when it ends.

use super::cgroup;
use super::daemon_config::DaemonConfig;
use super::status::StatusWriter;
use crate::file_error::chain;
use crate::health::{HostEvent, HostWatch, WatchedHost};

/// The machine's health, as far as it is known.
pub(super) struct HostHealth {
    /// `None` if there is no thread for it.
    watch: Option<HostWatch>,
}

impl HostHealth {
    /// Begins to look at the machine. Training does not depend on it.
    pub(super) fn start(config: &DaemonConfig<'_>) -> HostHealth {
        let root = config.layout.root().to_path_buf();
        let watched = WatchedHost {
            settings: config.settings.health.clone(),
            tells: config.settings.guards.host_warnings,
            dirs: std::iter::once(root).chain(config.layout.written_dirs()).collect(),
            process_files: cgroup::process_files(),
        };
        let watch = HostWatch::start(watched)
            .inspect_err(|error| tracing::info!("the machine's health is not looked at: {}", chain(error)));
        HostHealth { watch: watch.ok() }
    }

    /// Prints what is new. `worker_pid`: of the worker that runs.
    pub(super) fn report(
        &self,
        config: &DaemonConfig<'_>,
        status: &mut StatusWriter,
        worker_pid: Option<u32>,
    ) {
        let Some(watch) = &self.watch else { return };
        watch.set_worker(worker_pid.unwrap_or(0));
        while let Some(event) = watch.next_event() {
            match event {
                HostEvent::Begun(message) => {
                    tracing::warn!("{message}");
                    (config.print_line)(&format!("host warning: {message}"));
                    status.record_trouble(&message);
                }
                HostEvent::Ended(message) => {
                    tracing::info!("{message}");
                    (config.print_line)(&format!("host warning ended: {message}"));
                }
            }
        }
    }
}
