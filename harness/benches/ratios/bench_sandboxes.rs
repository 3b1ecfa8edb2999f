//! Sandboxes for benchmarks, and the rate at which several threads do something. Knows no measurement.

use std::path::Path;
use std::sync::Barrier;
use std::time::Instant;

use engine::sandbox::{HostAccess, Sandbox, SandboxSpec, current_dir};

/// Builds one sandbox for each job, in directories of these numbers, as an exploration does.
pub(crate) fn build_sandboxes(dir: &Path, jobs: usize) -> Vec<Sandbox> {
    let build = |job: usize| {
        let dir = dir.join(job.to_string());
        std::fs::create_dir(&dir).unwrap();
        let spec = SandboxSpec {
            dir,
            mounts: Vec::new(),
            binds: Vec::new(),
            cgroups: Vec::new(),
            visible_root: None,
            distinct_pids: false,
            host_access: HostAccess::default(),
            cwd: current_dir().unwrap(),
        };
        Sandbox::build(spec).unwrap()
    };
    (0..jobs).map(build).collect()
}

/// Ends the sandboxes and removes what is left of them.
pub(crate) fn close_sandboxes(sandboxes: Vec<Sandbox>) {
    sandboxes.into_iter().for_each(|sandbox| sandbox.close().unwrap());
}

/// How many commands all jobs together end in a second, each job starting `calls` of them one after the other.
pub(crate) fn commands_per_second(jobs: usize, calls: usize, run: &(dyn Fn(usize) + Sync)) -> f64 {
    let all_ready = Barrier::new(jobs);
    let seconds = std::thread::scope(|scope| {
        let work = |job: usize| {
            all_ready.wait();
            let start = Instant::now();
            (0..calls).for_each(|_| run(job));
            start.elapsed().as_secs_f64()
        };
        let threads: Vec<_> = (0..jobs).map(|job| scope.spawn(move || work(job))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(0.0, f64::max)
    });
    (calls * jobs) as f64 / seconds
}
