//! Prints the cost of a call: in the simulation, through a shim that forwards, and with a rule on another
//! function. Also prints the cost of launches in the simulation. Run with: `cargo run --release -p simgpu
//! --example cost`.
#![expect(clippy::print_stdout, reason = "it reports measurements")]
#![expect(clippy::unwrap_used, reason = "a failed step ends the measurement")]

#[expect(dead_code, reason = "it uses a part of the tests' support")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::ffi::{CStr, c_void};
use std::time::Instant;

use cudarc::driver::{LaunchConfig, PushKernelArg};
use simgpu_plan::{Backend, CallFilter, FaultRule, Persistence, RuleEffect, ShimPlan};
use support::{ShimSetup, TestGpu, plain_product, plan};

const CALLS: u32 = 5_000_000;

/// Returns the nanoseconds per call of a function.
///
/// # Safety
/// `library` is a handle of the loader, and the function takes a pointer to an `i32` and returns a code.
unsafe fn per_call(library: *mut c_void, name: &CStr) -> f64 {
    // SAFETY: the function has this type, as `per_call` requires. Its argument lives on this stack.
    unsafe {
        let get = libc::dlsym(library, name.as_ptr());
        assert!(!get.is_null());
        let get: unsafe extern "C" fn(*mut i32) -> u32 = std::mem::transmute(get);
        let mut version = 0;
        get(&mut version);
        let start = Instant::now();
        for _ in 0..CALLS {
            get(&mut version);
        }
        start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
    }
}

fn calls(label: &str) {
    // SAFETY: the library is loaded, and `cuDriverGetVersion` has this type.
    let call = unsafe {
        let name = std::env::var("SIMGPU_LIBRARY").unwrap();
        let library = libc::dlopen(std::ffi::CString::new(name).unwrap().as_ptr(), libc::RTLD_NOW);
        per_call(library, c"cuDriverGetVersion")
    };
    println!("{label}: {call:.1} ns per call");
}

fn launches() {
    let gpu = TestGpu::new();
    let time = |kernel: &str, blocks: u32, count: u32| {
        let width = 256_i32;
        let input = gpu.stream.clone_htod(&vec![1.0_f32; 64 * 256]).unwrap();
        let mut out = gpu.stream.alloc_zeros::<f32>(64 * 256).unwrap();
        let function = gpu.kernel(kernel);
        gpu.stream.synchronize().unwrap();
        let start = Instant::now();
        for _ in 0..count {
            let mut launch = gpu.stream.launch_builder(&function);
            launch.arg(&mut out).arg(&input).arg(&width);
            let shape =
                LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: 512 };
            // SAFETY: the arguments have the types of the parameters. Kernels with fewer parameters use only
            // the first ones.
            unsafe { launch.launch(shape) }.unwrap();
        }
        gpu.stream.synchronize().unwrap();
        println!(
            "{kernel}, {blocks} blocks of 128: {:.1} us per launch",
            start.elapsed().as_secs_f64() * 1e6 / f64::from(count)
        );
    };
    time("planted_nothing", 1, 20_000);
    time("planted_norm", 64, 500);
    multiply(&gpu);
}

fn multiply(gpu: &TestGpu) {
    use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig};
    let size = 256_usize;
    let a = gpu.stream.alloc_zeros::<f32>(size * size).unwrap();
    let b = gpu.stream.alloc_zeros::<f32>(size * size).unwrap();
    let mut c = gpu.stream.alloc_zeros::<f32>(size * size).unwrap();
    let lt = CudaBlasLT::new(gpu.stream.clone()).unwrap();
    gpu.stream.synchronize().unwrap();
    let start = Instant::now();
    for _ in 0..50 {
        let config = MatmulConfig { transa: true, ..plain_product(size, size, size) };
        // SAFETY: the layouts fit the buffers.
        unsafe { lt.matmul(config, &a, &b, &mut c, None, None) }.unwrap();
    }
    gpu.stream.synchronize().unwrap();
    let seconds_each = start.elapsed().as_secs_f64() / 50.0;
    println!(
        "matmul, {size} cubed: {:.2} ms, {:.1} GFLOP/s",
        seconds_each * 1e3,
        2.0 * (size as f64).powi(3) / seconds_each / 1e9
    );
}

fn main() {
    if let Ok(part) = std::env::var("SIMGPU_TEST_BODY") {
        return if part == "launches" { launches() } else { calls(&part) };
    }
    let run = |setup: &ShimSetup, part: &str, library: &str| {
        let output = setup.command(part).env("SIMGPU_LIBRARY", library).output().unwrap();
        print!("{}", support::successful_output(&output));
    };
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("libreal.so");
    std::fs::copy(support::shim_library(), &real).unwrap();
    let simulated = ShimSetup::new(&plan(Vec::new()));
    run(&simulated, "launches", "");
    run(&simulated, "the simulation", "libcuda.so.1");
    let forwarded = |rules| {
        ShimSetup::new(&ShimPlan {
            backend: Backend::Forwarded { libcuda: Some(real.clone()), libnvidia_ml: None },
            ..plan(rules)
        })
    };
    let name = real.to_string_lossy().into_owned();
    run(&simulated, "a copy of the simulation", &name);
    run(&forwarded(Vec::new()), "that copy, through a shim that forwards", "libcuda.so.1");
    let other = CallFilter { function: Some("cuMemAlloc*".into()), ..CallFilter::default() };
    let rule = FaultRule {
        armed: true,
        calls: other,
        nth: 1,
        persistence: Persistence::Transient,
        effect: RuleEffect::Hang,
    };
    run(&forwarded(vec![rule]), "with a rule on another function", "libcuda.so.1");
}
