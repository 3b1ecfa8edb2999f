//! In front of a real driver, which is here a copy of the library in a file of its own: calls go on, and rules strike.
#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

#[expect(dead_code, reason = "each file of tests uses its part")]
mod support;

use std::ffi::{CString, c_char, c_void};
use std::time::Duration;

use cudarc::driver::{DriverError, LaunchConfig, PushKernelArg};
use simgpu_plan::{
    Backend, CallFilter, DriverCallKind, ErrorTiming, FaultRule, GpuHealth, Persistence, PlanDirectory,
    RuleEffect, ShimPlan, SimulatedMachine,
};
use support::{ShimSetup, TestGpu, is_body, is_running_after, plan, rule, shim_library};

/// A stand-in in front, and one behind it with a plan of its own.
struct ChainedShims {
    front: ShimSetup,
    behind: tempfile::TempDir,
}

impl ChainedShims {
    fn new(rules: Vec<FaultRule>) -> ChainedShims {
        let behind = tempfile::tempdir().unwrap();
        let real = behind.path().join("libreal.so");
        std::fs::copy(shim_library(), &real).unwrap();
        // Known by its size: the card behind is not the default one.
        let machine =
            Backend::Simulated(SimulatedMachine { memory_bytes: 3 << 20, ..SimulatedMachine::default() });
        PlanDirectory::create(
            behind.path(),
            &ShimPlan { backend: machine, health: GpuHealth::default(), rules: Vec::new() },
        )
        .unwrap();
        let machine = Backend::Forwarded { libcuda: Some(real.clone()), libnvidia_ml: Some(real) };
        let front = ShimSetup::new(&ShimPlan { backend: machine, ..plan(rules) });
        std::fs::remove_file(front.path().join("lib/libcublasLt.so")).unwrap();
        ChainedShims { front, behind }
    }

    fn command(&self, test: &str) -> std::process::Command {
        let mut command = self.front.command(test);
        command.env("TRAINWRECK_GPU_BEHIND", self.behind.path());
        command
    }

    fn run(&self, test: &str) {
        support::successful_output(&self.command(test).output().unwrap());
    }
}

fn fill(gpu: &TestGpu) -> Result<Vec<f32>, DriverError> {
    let mut out = gpu.stream.alloc_zeros::<f32>(8)?;
    let function = gpu.kernel("planted_fill");
    let mut launch = gpu.stream.launch_builder(&function);
    launch.arg(&mut out).arg(&1.0_f32).arg(&8_i32);
    // SAFETY: the arguments are those of the kernel.
    unsafe { launch.launch(LaunchConfig::for_num_elems(8)) }?;
    gpu.stream.clone_dtoh(&out)
}

fn launches(kernel: &str, nth: u64, effect: RuleEffect) -> FaultRule {
    let calls = CallFilter { kernel: Some(kernel.into()), ..CallFilter::default() };
    FaultRule { armed: true, calls, nth, persistence: Persistence::Transient, effect }
}

#[test]
fn calls_go_on_to_the_driver_behind() {
    let test = "calls_go_on_to_the_driver_behind";
    if is_body(test) {
        let gpu = TestGpu::new();
        assert_eq!(gpu.context.total_mem().unwrap(), 3 << 20);
        assert_eq!(fill(&gpu).unwrap(), [1.0; 8]);
        return;
    }
    let pair = ChainedShims::new(Vec::new());
    pair.run(test);
    assert!(pair.front.evidence().is_empty());
}

#[test]
fn a_launch_is_known_by_its_kernel_and_fails_in_front() {
    let test = "a_launch_is_known_by_its_kernel_and_fails_in_front";
    if is_body(test) {
        let gpu = TestGpu::new();
        let codes: Vec<u32> = (0..3).map(|_| fill(&gpu).map_or_else(|error| error.0 as u32, |_| 0)).collect();
        assert_eq!(codes, [0, 700, 700]);
        return;
    }
    let fails = RuleEffect::Fail { code: 700, reported: ErrorTiming::AtNextSync, sticky: true };
    let pair = ChainedShims::new(vec![
        launches("planted_f*", 2, fails),
        launches("planted_add", 1, RuleEffect::Hang),
    ]);
    pair.run(test);
    let told = pair.front.evidence();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].description.starts_with("cuLaunchKernel of `planted_fill`, call 2: fails with 700"),
        "{told:?}"
    );
}

#[test]
fn a_call_that_hangs_never_returns() {
    let test = "a_call_that_hangs_never_returns";
    if is_body(test) {
        let gpu = TestGpu::new();
        fill(&gpu).unwrap();
        std::process::exit(0);
    }
    let pair = ChainedShims::new(vec![launches("*", 1, RuleEffect::Hang)]);
    assert!(is_running_after(pair.command(test).spawn().unwrap(), Duration::from_secs(1)), "nothing hung");
}

type GetProcAddress = unsafe extern "C" fn(*const c_char, *mut *mut c_void, i32, u64, *mut u32) -> u32;

#[test]
fn functions_that_are_got_by_pointer_are_seen_too() {
    let test = "functions_that_are_got_by_pointer_are_seen_too";
    if is_body(test) {
        let gpu = TestGpu::new();
        // SAFETY: the library is loaded, and its functions have the types of CUDA.
        unsafe {
            let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
            let ask = libc::dlsym(library, c"cuGetProcAddress_v2".as_ptr());
            let ask: GetProcAddress = std::mem::transmute(ask);
            let mut function = std::ptr::null_mut();
            let mut status = 9;
            let name = CString::new("cuMemGetInfo").unwrap();
            assert_eq!(ask(name.as_ptr(), &mut function, 12_080, 0, &mut status), 0);
            assert_eq!(
                function,
                libc::dlsym(library, c"cuMemGetInfo_v2".as_ptr()),
                "the exported one, and not the real one"
            );
            let info: unsafe extern "C" fn(*mut usize, *mut usize) -> u32 = std::mem::transmute(function);
            gpu.context.bind_to_thread().unwrap();
            let (mut free, mut total) = (0, 0);
            assert_eq!(info(&mut free, &mut total), 0);
            assert_eq!(total, 3 << 20);
            assert_eq!(info(&mut free, &mut total), 999);
            // One that the list of symbols does not know.
            let name = CString::new("simgpu_unlisted").unwrap();
            assert_eq!(ask(name.as_ptr(), &mut function, 12_080, 0, &mut status), 0);
            let unlisted: unsafe extern "C" fn(u32, u32, u32, u32, u32, u32, u32, u32) -> u32 =
                std::mem::transmute(function);
            assert_eq!(
                unlisted(1, 2, 3, 4, 5, 6, 7, 8),
                12_345_678,
                "arguments go on, those on the stack too"
            );
            assert_eq!(unlisted(1, 2, 3, 4, 5, 6, 7, 8), 801);
        }
        return;
    }
    let of = |name: &str, code| {
        let calls = CallFilter { function: Some(name.into()), ..CallFilter::default() };
        let effect = RuleEffect::Fail { code, reported: ErrorTiming::Immediately, sticky: false };
        FaultRule { armed: true, calls, nth: 2, persistence: Persistence::Transient, effect }
    };
    let pair = ChainedShims::new(vec![of("cuMemGetInfo*", 999), of("simgpu_unlisted", 801)]);
    pair.run(test);
    assert_eq!(pair.front.evidence().len(), 2);
}

#[test]
fn a_lost_gpu_is_lost_in_front_of_a_good_one() {
    let test = "a_lost_gpu_is_lost_in_front_of_a_good_one";
    if is_body(test) {
        use nvml_wrapper::{Nvml, error::NvmlError};
        let nvml = Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init().unwrap();
        assert_eq!(nvml.device_by_index(0).unwrap().memory_info().unwrap().total, 3 << 20);
        let gpu = TestGpu::new();
        assert_eq!(gpu.stream.synchronize().unwrap_err().0 as u32, 100);
        assert!(matches!(nvml.device_by_index(0), Err(NvmlError::GpuLost)));
        return;
    }
    let effect = RuleEffect::Fail { code: 100, reported: ErrorTiming::Immediately, sticky: true };
    let pair = ChainedShims::new(vec![rule(DriverCallKind::Synchronise, 2, Persistence::Transient, effect)]);
    pair.run(test);
    assert_eq!(pair.front.plan_dir.control().xids(), [79]);
}
