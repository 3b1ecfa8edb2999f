//! Runs the body of a test in its own process under a plan. The process loads the shim under the names of the
//! real libraries. Must not know any test.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::cublaslt::MatmulConfig;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream};
use cudarc::nvrtc::Ptx;
use simgpu_plan::{
    Backend, CallFilter, DriverCallKind, Evidence, FaultRule, GpuHealth, Persistence, PlanDirectory,
    RuleEffect, ShimPlan, SimulatedMachine,
};

/// Environment variable with the name of the test whose body the process runs.
const BODY_VARIABLE: &str = "SIMGPU_TEST_BODY";

/// A plan directory, with a directory of links through which the loader finds the shim.
pub(crate) struct ShimSetup {
    dir: tempfile::TempDir,
    pub(crate) plan_dir: PlanDirectory,
}

/// Returns a plan for the default simulated machine.
pub(crate) fn plan(rules: Vec<FaultRule>) -> ShimPlan {
    ShimPlan { backend: Backend::Simulated(SimulatedMachine::default()), health: GpuHealth::default(), rules }
}

/// Returns an armed rule for the n-th call of a kind.
pub(crate) fn rule(
    kind: DriverCallKind,
    nth: u64,
    persistence: Persistence,
    effect: RuleEffect,
) -> FaultRule {
    FaultRule {
        armed: true,
        calls: CallFilter { kinds: vec![kind], ..CallFilter::default() },
        nth,
        persistence,
        effect,
    }
}

/// Returns the library that cargo built last: in the directory of the tests, or above it.
pub(crate) fn shim_library() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let candidates = executable
        .ancestors()
        .skip(1)
        .take(3)
        .flat_map(|dir| [dir.join("libsimgpu.so"), dir.join("deps/libsimgpu.so")]);
    let built_at = |path: &PathBuf| std::fs::metadata(path).and_then(|file| file.modified()).ok();
    candidates
        .filter(|path| path.exists())
        .max_by_key(built_at)
        .expect("cargo builds the library before its tests")
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

    /// Returns the plan directory's path.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn evidence(&self) -> Vec<Evidence> {
        self.plan_dir.read_evidence().unwrap()
    }

    /// Returns the command that runs the body of a test under this plan.
    pub(crate) fn command(&self, test: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(BODY_VARIABLE, test);
        command
            .env("LD_LIBRARY_PATH", self.path().join("lib"))
            .env(simgpu_plan::DIRECTORY_VARIABLE, self.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the body of a test, which must succeed. Returns its output.
    pub(crate) fn run(&self, test: &str) -> String {
        let output = self.command(test).output().unwrap();
        successful_output(&output)
    }
}

/// Returns the output of a process, which must have succeeded.
pub(crate) fn successful_output(output: &Output) -> String {
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the process ended with {}:\n{text}", output.status);
    text
}

/// Returns whether this process runs the body of this test.
pub(crate) fn is_body(test: &str) -> bool {
    std::env::var(BODY_VARIABLE).is_ok_and(|body| body == test)
}

/// Returns whether the child is still running after some time, and kills it.
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

/// A context with a non-blocking stream and the planted kernels.
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

/// Returns the product of two matrices without transposition: m x k times k x n, column-major.
pub(crate) fn plain_product(m: usize, n: usize, k: usize) -> MatmulConfig {
    MatmulConfig {
        transa: false,
        transb: false,
        transc: false,
        m: m as u64,
        n: n as u64,
        k: k as u64,
        alpha: 1.0,
        lda: m as i64,
        ldb: k as i64,
        beta: 0.0,
        ldc: m as i64,
        stride_a: None,
        stride_b: None,
        stride_c: None,
        stride_bias: None,
        batch_size: None,
    }
}

/// Returns PTX that declares the planted kernels.
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
