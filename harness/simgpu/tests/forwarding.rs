//! Forwarding to a real driver: calls are forwarded and rules inject faults. A copy of the shim takes the
//! driver's place.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[expect(dead_code, reason = "each test file uses a part of it")]
mod support;

use std::ffi::{CString, c_char, c_void};
use std::time::Duration;

use cudarc::driver::{DriverError, LaunchConfig, PushKernelArg};
use simgpu_plan::{
    Backend, CallFilter, DriverCallKind, ErrorTiming, FaultRule, GpuHealth, Persistence, PlanDirectory,
    RuleEffect, ShimPlan, SimulatedMachine,
};
use support::{ShimSetup, TestGpu, is_body, is_running_after, plan, rule, shim_library};

/// A shim that forwards to a copy of itself, which has its own plan directory.
struct ChainedShims {
    front: ShimSetup,
    real_plan_dir: tempfile::TempDir,
}

impl ChainedShims {
    fn new(rules: Vec<FaultRule>) -> ChainedShims {
        let real_plan_dir = tempfile::tempdir().unwrap();
        let real = real_plan_dir.path().join("libreal.so");
        std::fs::copy(shim_library(), &real).unwrap();
        // The tests recognise this GPU by its memory size.
        let backend =
            Backend::Simulated(SimulatedMachine { memory_bytes: 3 << 20, ..SimulatedMachine::default() });
        PlanDirectory::create(
            real_plan_dir.path(),
            &ShimPlan { backend, health: GpuHealth::default(), rules: Vec::new() },
        )
        .unwrap();
        let backend = Backend::Forwarded { libcuda: Some(real.clone()), libnvidia_ml: Some(real) };
        let front = ShimSetup::new(&ShimPlan { backend, ..plan(rules) });
        std::fs::remove_file(front.path().join("lib/libcublasLt.so")).unwrap();
        ChainedShims { front, real_plan_dir }
    }

    fn command(&self, test: &str) -> std::process::Command {
        let mut command = self.front.command(test);
        command.env("TRAINWRECK_GPU_BEHIND", self.real_plan_dir.path());
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
    // SAFETY: the arguments have the types of the kernel's parameters.
    unsafe { launch.launch(LaunchConfig::for_num_elems(8)) }?;
    gpu.stream.clone_dtoh(&out)
}

/// Returns a transient rule for the n-th launch of a kernel.
fn launches(kernel: &str, nth: u64, effect: RuleEffect) -> FaultRule {
    let calls = CallFilter { kernel: Some(kernel.into()), ..CallFilter::default() };
    FaultRule { armed: true, calls, nth, persistence: Persistence::Transient, effect }
}

#[test]
fn calls_reach_the_real_driver() {
    let test = "calls_reach_the_real_driver";
    if is_body(test) {
        let gpu = TestGpu::new();
        assert_eq!(gpu.context.total_mem().unwrap(), 3 << 20);
        assert_eq!(fill(&gpu).unwrap(), [1.0; 8]);
        return;
    }
    let shims = ChainedShims::new(Vec::new());
    shims.run(test);
    assert!(shims.front.evidence().is_empty());
}

#[test]
fn a_forwarded_launch_fails_by_the_name_of_its_kernel() {
    let test = "a_forwarded_launch_fails_by_the_name_of_its_kernel";
    if is_body(test) {
        let gpu = TestGpu::new();
        let codes: Vec<u32> = (0..3).map(|_| fill(&gpu).map_or_else(|error| error.0 as u32, |_| 0)).collect();
        assert_eq!(codes, [0, 700, 700]);
        return;
    }
    let fails = RuleEffect::Fail { code: 700, reported: ErrorTiming::AtNextSync, sticky: true };
    let shims = ChainedShims::new(vec![
        launches("planted_f*", 2, fails),
        launches("planted_add", 1, RuleEffect::Hang),
    ]);
    shims.run(test);
    let evidence = shims.front.evidence();
    assert_eq!(evidence.len(), 1, "{evidence:?}");
    assert!(
        evidence[0].description.starts_with("cuLaunchKernel of `planted_fill`, call 2: fails with 700"),
        "{evidence:?}"
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
    let shims = ChainedShims::new(vec![launches("*", 1, RuleEffect::Hang)]);
    let child = shims.command(test).spawn().unwrap();
    assert!(is_running_after(child, Duration::from_secs(1)), "nothing hung");
}

type GetProcAddress = unsafe extern "C" fn(*const c_char, *mut *mut c_void, i32, u64, *mut u32) -> u32;

#[test]
fn functions_from_get_proc_address_are_hooked() {
    let test = "functions_from_get_proc_address_are_hooked";
    if is_body(test) {
        let gpu = TestGpu::new();
        // SAFETY: the library is loaded. CUDA defines these types for its functions, and all arguments are
        // valid.
        unsafe {
            let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
            let address = libc::dlsym(library, c"cuGetProcAddress_v2".as_ptr());
            let get: GetProcAddress = std::mem::transmute(address);
            let mut function = std::ptr::null_mut();
            let mut status = 9;
            let name = CString::new("cuMemGetInfo").unwrap();
            assert_eq!(get(name.as_ptr(), &mut function, 12_080, 0, &mut status), 0);
            assert_eq!(
                function,
                libc::dlsym(library, c"cuMemGetInfo_v2".as_ptr()),
                "the shim's function, not the real one"
            );
            let info: unsafe extern "C" fn(*mut usize, *mut usize) -> u32 = std::mem::transmute(function);
            gpu.context.bind_to_thread().unwrap();
            let (mut free, mut total) = (0, 0);
            assert_eq!(info(&mut free, &mut total), 0);
            assert_eq!(total, 3 << 20);
            assert_eq!(info(&mut free, &mut total), 999);
            // A function that the list of symbols does not contain.
            let name = CString::new("simgpu_unlisted").unwrap();
            assert_eq!(get(name.as_ptr(), &mut function, 12_080, 0, &mut status), 0);
            let unlisted: unsafe extern "C" fn(u32, u32, u32, u32, u32, u32, u32, u32) -> u32 =
                std::mem::transmute(function);
            assert_eq!(
                unlisted(1, 2, 3, 4, 5, 6, 7, 8),
                12_345_678,
                "all arguments arrive, including those on the stack"
            );
            assert_eq!(unlisted(1, 2, 3, 4, 5, 6, 7, 8), 801);
        }
        return;
    }
    let fails = |name: &str, code| {
        let calls = CallFilter { function: Some(name.into()), ..CallFilter::default() };
        let effect = RuleEffect::Fail { code, reported: ErrorTiming::Immediately, sticky: false };
        FaultRule { armed: true, calls, nth: 2, persistence: Persistence::Transient, effect }
    };
    let shims = ChainedShims::new(vec![fails("cuMemGetInfo*", 999), fails("simgpu_unlisted", 801)]);
    shims.run(test);
    assert_eq!(shims.front.evidence().len(), 2);
}

#[test]
fn a_gpu_lost_by_a_rule_is_lost_even_if_the_real_one_is_not() {
    let test = "a_gpu_lost_by_a_rule_is_lost_even_if_the_real_one_is_not";
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
    let shims = ChainedShims::new(vec![rule(DriverCallKind::Synchronise, 2, Persistence::Transient, effect)]);
    shims.run(test);
    assert_eq!(shims.front.plan_dir.control().xids(), [79]);
}

/// The names of all functions of the APIs that libcuda and libnvidia-ml of driver 580.159.04 export, one on each
/// line. Those for a debugger (`cudbg..`) are left out.
const DRIVER_NAMES: &str = include_str!("driver_names.txt");

#[test]
fn each_function_of_a_driver_is_exported_and_reaches_the_real_driver() {
    let test = "each_function_of_a_driver_is_exported_and_reaches_the_real_driver";
    if is_body(test) {
        // SAFETY: the libraries are loaded and stay loaded. The functions that are called take one number, and
        // the copy in the place of the driver has none of them.
        unsafe {
            let [cuda, nvml] = [c"libcuda.so.1", c"libnvidia-ml.so.1"]
                .map(|library| libc::dlopen(library.as_ptr(), libc::RTLD_NOW));
            let address = |name: &str| {
                let library = if name.starts_with("nvml") { nvml } else { cuda };
                libc::dlsym(library, CString::new(name).unwrap().as_ptr())
            };
            let missing: Vec<&str> = DRIVER_NAMES.lines().filter(|name| address(name).is_null()).collect();
            assert_eq!(missing, [""; 0]);
            let call = |name: &str| {
                std::mem::transmute::<*mut c_void, unsafe extern "C" fn(usize) -> u32>(address(name))(0)
            };
            // The codes for "not supported" of the simulation behind the shim.
            assert_eq!(call("cuDevicePrimaryCtxRelease"), 801);
            assert_eq!(call("nvmlDeviceGetBoardId"), 3);
        }
        return;
    }
    ChainedShims::new(Vec::new()).run(test);
}
