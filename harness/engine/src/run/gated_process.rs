//! Starts a target's process behind the gate. Knows no fault.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use crate::faults::FaultContext;
use crate::gate::{WatchedMounts, build_filter, file_id_of, serve_notifications};
use crate::run::call_injector::InjectorHandle;
use crate::sandbox::{LaunchSpec, SandboxError, SpawnedProcess};

/// Starts the target's process. Its file-system calls below the root and in its places go to the injector.
///
/// # Errors
/// If a pipe cannot be made or the sandbox cannot start the process.
pub(super) fn spawn_behind_gate(
    context: &FaultContext<'_>,
    injector: &InjectorHandle,
    launch: &LaunchSpec,
) -> Result<SpawnedProcess, SandboxError> {
    let sandbox = context.sandbox;
    let places = context.trainer.file.places().values().map(|place| sandbox.host_path_in_root(place));
    let roots = std::iter::once(sandbox.host_path_in_root(Path::new(""))).chain(places);
    // A place that does not exist yet will be created on the root's own mount.
    let watched = WatchedMounts::of(roots.filter(|root| root.exists()))
        .map_err(|source| SandboxError::System { doing: "find the watched mounts", source })?;
    let pipe = || {
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(|error| SandboxError::System { doing: "make a pipe", source: error.into() })
    };
    let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?);
    let outputs = [&stdout, &stderr].into_iter().filter_map(|pipe| file_id_of(pipe.as_fd()).ok());
    injector.set_main_outputs(&outputs.collect::<Vec<_>>());
    let process = sandbox.spawn_filtered(
        launch,
        build_filter(injector.filter_options()),
        [their_stdout, their_stderr],
        |listener, rules| {
            // The supervisor thread ends with the last process behind the filter.
            serve_notifications(listener, watched, Arc::clone(&injector.injector), rules);
        },
    )?;
    Ok(process.with_outputs(stdout, stderr))
}
