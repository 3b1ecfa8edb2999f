//! Runs the body of a test in a process of its own, under a plan: the library is found by the names of the real ones.
//! Knows no test.
#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream};
use cudarc::nvrtc::Ptx;
use simgpu_plan::{
    Backend, CallFilter, DriverCallKind, Evidence, FaultRule, GpuHealth, Persistence, PlanDirectory,
    RuleEffect, ShimPlan, SimulatedMachine,
};

const BODY_VARIABLE: &str = "SIMGPU_TEST_BODY";

/// A folder of a plan, and links by which the library is found.
pub(crate) struct ShimSetup {
    dir: tempfile::TempDir,
    pub(crate) plan_dir: PlanDirectory,
}

pub(crate) fn plan(rules: Vec<FaultRule>) -> ShimPlan {
    ShimPlan { backend: Backend::Simulated(SimulatedMachine::default()), health: GpuHealth::default(), rules }
}

pub(crate) fn rule(kind: DriverCallKind, nth: u64, strike: Persistence, effect: RuleEffect) -> FaultRule {
    FaultRule {
        armed: true,
        calls: CallFilter { kinds: vec![kind], ..CallFilter::default() },
        nth,
        persistence: strike,
        effect,
    }
}

/// The library that cargo built last: beside the tests, or a folder above them.
pub(crate) fn shim_library() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let places = own
        .ancestors()
        .skip(1)
        .take(3)
        .flat_map(|dir| [dir.join("libsimgpu.so"), dir.join("deps/libsimgpu.so")]);
    let built = |path: &PathBuf| std::fs::metadata(path).and_then(|file| file.modified()).ok();
    places.filter(|path| path.exists()).max_by_key(built).expect("cargo builds the library before its tests")
}

impl ShimSetup {
    pub(crate) fn new(plan: &ShimPlan) -> ShimSetup {
        let dir = tempfile::tempdir().unwrap();
        let plan_dir = PlanDirectory::create(dir.path(), plan).unwrap();
        let links = dir.path().join("lib");
        std::fs::create_dir(&links).unwrap();
        for name in [
            "libcuda.so",
            "libcuda.so.1",
            "libcublasLt.so",
            "libcublasLt.so.12",
            "libnvidia-ml.so",
            "libnvidia-ml.so.1",
        ] {
            std::os::unix::fs::symlink(shim_library(), links.join(name)).unwrap();
        }
        ShimSetup { dir, plan_dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn evidence(&self) -> Vec<Evidence> {
        self.plan_dir.read_evidence().unwrap()
    }

    pub(crate) fn command(&self, test: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(BODY_VARIABLE, test);
        command
            .env("LD_LIBRARY_PATH", self.path().join("lib"))
            .env(simgpu_plan::DIRECTORY_VARIABLE, self.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the body of a test to its end, which must be good.
    pub(crate) fn run(&self, test: &str) -> String {
        let output = self.command(test).output().unwrap();
        successful_output(&output)
    }
}

pub(crate) fn successful_output(output: &Output) -> String {
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the process ended with {}:\n{said}", output.status);
    said
}

/// Whether this process is the one that runs the body of this test.
pub(crate) fn is_body(test: &str) -> bool {
    std::env::var(BODY_VARIABLE).is_ok_and(|body| body == test)
}

/// Whether the child is still there after some time; it is ended.
pub(crate) fn is_running_after(mut child: Child, time: Duration) -> bool {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

/// What a body starts with: a stream that does not wait for others, and the planted kernels.
pub(crate) struct TestGpu {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) module: Arc<CudaModule>,
}

impl TestGpu {
    pub(crate) fn new() -> TestGpu {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let module = context.load_module(Ptx::from_src(ptx("8.7"))).unwrap();
        TestGpu { context, stream, module }
    }

    pub(crate) fn kernel(&self, name: &str) -> CudaFunction {
        self.module.load_function(name).unwrap()
    }
}

/// Text that passes for the PTX of the planted kernels.
pub(crate) fn ptx(version: &str) -> String {
    let names = [
        "planted_sum",
        "planted_sum_without_barrier",
        "planted_shift_without_barrier",
        "planted_divergent",
        "planted_mixed",
        "planted_fill",
        "planted_add",
        "planted_fill_too_far",
        "planted_read_at",
        "planted_shared_too_far",
        "planted_divide",
        "planted_recurse",
        "planted_nothing",
        "planted_times_bf16",
        "planted_norm",
        "planted_mma",
    ];
    let entries: String = names.iter().map(|name| format!(".visible .entry {name}()\n{{}}\n")).collect();
    format!(".version {version}\n.target sm_80\n.address_size 64\n{entries}")
}
