//! What an ordinary CUDA program sees of a plan's rules: at the selected call, over all processes, transient
//! or persistent.

#[expect(dead_code, reason = "each test file uses a part of it")]
mod support;

use std::time::Duration;

use cudarc::driver::{DriverError, LaunchConfig, PushKernelArg};
use simgpu_plan::{
    CallFilter, DriverCallKind, ErrorTiming, FaultRule, OverwriteValue, Persistence, RuleEffect,
};
use support::{ShimSetup, TestGpu, is_body, is_running_after, plan, rule};

fn fails(code: u32, reported: ErrorTiming, sticky: bool) -> RuleEffect {
    RuleEffect::Fail { code, reported, sticky }
}

fn fill(gpu: &TestGpu, value: f32) -> Result<Vec<f32>, DriverError> {
    let mut out = gpu.stream.alloc_zeros::<f32>(64)?;
    let function = gpu.kernel("planted_fill");
    let mut launch = gpu.stream.launch_builder(&function);
    launch.arg(&mut out).arg(&value).arg(&64_i32);
    // SAFETY: the arguments have the types of the kernel's parameters.
    unsafe { launch.launch(LaunchConfig::for_num_elems(64)) }?;
    gpu.stream.clone_dtoh(&out)
}

fn code(result: Result<Vec<f32>, DriverError>) -> u32 {
    result.map_or_else(|error| error.0 as u32, |_| 0)
}

/// Runs the body in its own process under one rule. Returns the number of counted calls and the evidence.
fn check(test: &str, rule: FaultRule, body: impl FnOnce(&TestGpu)) -> Option<(u64, Vec<String>)> {
    if is_body(test) {
        body(&TestGpu::new());
        return None;
    }
    let setup = ShimSetup::new(&plan(vec![rule]));
    setup.run(test);
    let evidence = setup.evidence().into_iter().map(|evidence| evidence.description).collect();
    Some((setup.plan_dir.control().calls_seen(0), evidence))
}

#[test]
fn the_third_launch_fails_immediately_and_the_fourth_does_not() {
    let test = "the_third_launch_fails_immediately_and_the_fourth_does_not";
    let rule =
        rule(DriverCallKind::Launch, 3, Persistence::Transient, fails(701, ErrorTiming::Immediately, false));
    let result = check(test, rule, |gpu| {
        let codes: Vec<u32> = (0..5).map(|_| code(fill(gpu, 1.0))).collect();
        assert_eq!(codes, [0, 0, 701, 0, 0]);
    });
    if let Some((seen, evidence)) = result {
        assert_eq!(seen, 5);
        assert_eq!(
            evidence,
            ["cuLaunchKernel of `planted_fill`, call 3: fails with 701 \
                 (CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES) immediately"]
        );
    }
}

#[test]
fn a_sticky_kernel_error_is_reported_at_the_next_synchronisation() {
    let test = "a_sticky_kernel_error_is_reported_at_the_next_synchronisation";
    let rule =
        rule(DriverCallKind::Launch, 2, Persistence::Transient, fails(700, ErrorTiming::AtNextSync, true));
    let result = check(test, rule, |gpu| {
        assert_eq!(fill(gpu, 1.0).unwrap(), [1.0; 64]);
        let mut out = gpu.stream.alloc_zeros::<f32>(64).unwrap();
        let function = gpu.kernel("planted_fill");
        let mut launch = gpu.stream.launch_builder(&function);
        launch.arg(&mut out).arg(&1.0_f32).arg(&64_i32);
        // SAFETY: the arguments have the types of the kernel's parameters.
        assert!(unsafe { launch.launch(LaunchConfig::for_num_elems(64)) }.is_ok());
        assert!(gpu.context.mem_get_info().is_ok(), "no call has waited yet");
        assert_eq!(gpu.stream.synchronize().unwrap_err().0 as u32, 700);
        assert_eq!(gpu.context.mem_get_info().unwrap_err().0 as u32, 700);
        assert_eq!(gpu.stream.synchronize().unwrap_err().0 as u32, 700);
    });
    if let Some((_, evidence)) = result {
        assert_eq!(evidence.len(), 1, "{evidence:?}");
    }
}

#[test]
fn an_error_that_is_not_sticky_is_reported_once() {
    let test = "an_error_that_is_not_sticky_is_reported_once";
    let rule =
        rule(DriverCallKind::Launch, 1, Persistence::Transient, fails(719, ErrorTiming::AtNextSync, false));
    check(test, rule, |gpu| {
        assert_eq!(code(fill(gpu, 1.0)), 719);
        assert_eq!(fill(gpu, 2.0).unwrap(), [2.0; 64]);
    });
}

#[test]
fn a_persistent_rule_fails_every_later_call_and_writes_evidence_once() {
    let test = "a_persistent_rule_fails_every_later_call_and_writes_evidence_once";
    let calls =
        CallFilter { kinds: vec![DriverCallKind::Allocate], min_bytes: 1000, ..CallFilter::default() };
    let effect = fails(2, ErrorTiming::Immediately, false);
    let rule = FaultRule { armed: true, calls, nth: 2, persistence: Persistence::Persistent, effect };
    let result = check(test, rule, |gpu| {
        let mut allocate = |bytes| {
            // SAFETY: the memory is never read.
            unsafe { gpu.stream.alloc::<u8>(bytes) }.map(|_| ()).map_err(|error| error.0 as u32)
        };
        assert_eq!([1000, 1000, 10, 2000].map(&mut allocate), [Ok(()), Err(2), Ok(()), Err(2)]);
    });
    if let Some((seen, evidence)) = result {
        assert_eq!((seen, evidence.len()), (3, 1));
    }
}

#[test]
fn a_transient_rule_injects_once_over_two_processes() {
    let test = "a_transient_rule_injects_once_over_two_processes";
    if is_body(test) {
        let failed = (0..4).filter(|_| code(fill(&TestGpu::new(), 1.0)) != 0).count();
        println!("failed {failed} times");
        return;
    }
    let setup = ShimSetup::new(&plan(vec![rule(
        DriverCallKind::Launch,
        3,
        Persistence::Transient,
        fails(701, ErrorTiming::Immediately, false),
    )]));
    let outputs = [setup.run(test), setup.run(test)];
    assert!(outputs[0].contains("failed 1 times") && outputs[1].contains("failed 0 times"), "{outputs:?}");
    assert_eq!(setup.plan_dir.control().calls_seen(0), 8);
    assert_eq!(setup.evidence().len(), 1);
}

#[test]
fn a_replaced_plan_is_active_at_the_next_call() {
    let test = "a_replaced_plan_is_active_at_the_next_call";
    let mut armed = plan(vec![rule(
        DriverCallKind::Launch,
        1,
        Persistence::Transient,
        fails(701, ErrorTiming::Immediately, false),
    )]);
    if is_body(test) {
        let gpu = TestGpu::new();
        assert_eq!(code(fill(&gpu, 1.0)), 0, "the rule is not armed yet");
        let path = std::env::var(simgpu_plan::DIRECTORY_VARIABLE).unwrap();
        let directory = simgpu_plan::PlanDirectory::open(path.as_ref()).unwrap();
        directory.replace_plan(&armed).unwrap();
        assert_eq!(code(fill(&gpu, 1.0)), 701);
        return;
    }
    armed.rules[0].armed = false;
    let setup = ShimSetup::new(&armed);
    setup.run(test);
    assert_eq!(setup.plan_dir.control().calls_seen(0), 1, "calls before the rule was armed are not counted");
}

#[test]
fn a_kernel_that_never_ends_blocks_only_calls_that_wait_for_it() {
    let test = "a_kernel_that_never_ends_blocks_only_calls_that_wait_for_it";
    if is_body(test) {
        let gpu = TestGpu::new();
        let other = gpu.context.new_stream().unwrap();
        let mut out = gpu.stream.alloc_zeros::<f32>(64).unwrap();
        let free = other.clone_htod(&[3.0_f32]).unwrap();
        let function = gpu.kernel("planted_fill");
        let mut launch = gpu.stream.launch_builder(&function);
        launch.arg(&mut out).arg(&1.0_f32).arg(&64_i32);
        // SAFETY: the arguments have the types of the kernel's parameters.
        unsafe { launch.launch(LaunchConfig::for_num_elems(64)) }.unwrap();
        let event = gpu.stream.record_event(None).unwrap();
        std::thread::spawn({
            let stream = gpu.stream.clone();
            move || {
                stream.synchronize().unwrap();
                std::process::exit(1);
            }
        });
        std::thread::sleep(Duration::from_millis(200));
        gpu.context.bind_to_thread().unwrap();
        assert!(gpu.context.mem_get_info().is_ok());
        assert!(!event.is_complete());
        assert_eq!(other.clone_dtoh(&free).unwrap(), [3.0]);
        std::fs::write(std::env::var("SIMGPU_DONE").unwrap(), "other streams continued").unwrap();
        gpu.context.synchronize().unwrap();
        std::process::exit(1);
    }
    let setup = ShimSetup::new(&plan(vec![rule(
        DriverCallKind::Launch,
        1,
        Persistence::Transient,
        RuleEffect::Hang,
    )]));
    let done = setup.path().join("done");
    let child = setup.command(test).env("SIMGPU_DONE", &done).spawn().unwrap();
    assert!(is_running_after(child, Duration::from_millis(1500)), "nothing hung");
    assert_eq!(std::fs::read_to_string(done).unwrap(), "other streams continued");
    assert_eq!(setup.evidence()[0].description, "cuLaunchKernel of `planted_fill`, call 1: never ends");
}

#[test]
fn one_value_of_a_launch_is_overwritten_with_nan() {
    let test = "one_value_of_a_launch_is_overwritten_with_nan";
    let rule = rule(
        DriverCallKind::Launch,
        2,
        Persistence::Transient,
        RuleEffect::Overwrite { with: OverwriteValue::Nan, seed: 5 },
    );
    let result = check(test, rule, |gpu| {
        assert_eq!(fill(gpu, 1.0).unwrap(), [1.0; 64]);
        let out = fill(gpu, 2.0).unwrap();
        assert_eq!(out.iter().filter(|value| value.is_nan()).count(), 1);
        assert_eq!(out.iter().filter(|value| **value == 2.0).count(), 63);
    });
    if let Some((_, evidence)) = result {
        assert!(evidence[1].contains("one of 64 that changed, was 2e0 and is now NaN"), "{evidence:?}");
    }
}

#[test]
fn a_seed_always_overwrites_the_same_value() {
    let test = "a_seed_always_overwrites_the_same_value";
    let calls = CallFilter { kernel: Some("planted_f*".into()), ..CallFilter::default() };
    let effect = RuleEffect::Overwrite { with: OverwriteValue::Wrong, seed: 6 };
    let rule = FaultRule { armed: true, calls, nth: 1, persistence: Persistence::Persistent, effect };
    check(test, rule, |gpu| {
        let (first, second) = (fill(gpu, 2.0).unwrap(), fill(gpu, 2.0).unwrap());
        assert_eq!(first, second);
        assert_eq!(first.iter().filter(|value| **value == 2.0).count(), 63);
        assert!(first.contains(&-128.0), "{first:?}");
    });
}

#[test]
fn one_bit_of_the_largest_allocation_is_flipped() {
    let test = "one_bit_of_the_largest_allocation_is_flipped";
    let rule = rule(DriverCallKind::Launch, 2, Persistence::Transient, RuleEffect::FlipBit { seed: 1 });
    let result = check(test, rule, |gpu| {
        let large = gpu.stream.clone_htod(&vec![0_u64; 1000]).unwrap();
        fill(gpu, 1.0).unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&large).unwrap(), [0; 1000]);
        assert_eq!(fill(gpu, 1.0).unwrap(), [1.0; 64]);
        let bits: u32 = gpu.stream.clone_dtoh(&large).unwrap().iter().map(|word| word.count_ones()).sum();
        assert_eq!(bits, 1);
    });
    if let Some((_, evidence)) = result {
        assert!(evidence[1].contains("of the largest allocation, 8000 bytes, was flipped"), "{evidence:?}");
    }
}

#[test]
fn fragmented_memory_is_free_but_large_allocations_fail() {
    let test = "fragmented_memory_is_free_but_large_allocations_fail";
    let rule =
        rule(DriverCallKind::Launch, 1, Persistence::Transient, RuleEffect::Fragment { hole_bytes: 1 << 20 });
    check(test, rule, |gpu| {
        fill(gpu, 1.0).unwrap();
        assert!(gpu.context.mem_get_info().unwrap().0 > 1_000_000_000);
        // SAFETY: the memory is never read.
        assert_eq!(unsafe { gpu.stream.alloc::<u8>(2 << 20) }.unwrap_err().0 as u32, 2);
        // SAFETY: the memory is never read.
        assert!(unsafe { gpu.stream.alloc::<u8>(1 << 20) }.is_ok());
    });
}

#[test]
fn a_matrix_product_is_a_launch_of_the_kernel_matmul() {
    use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig};
    let test = "a_matrix_product_is_a_launch_of_the_kernel_matmul";
    let calls = CallFilter { kernel: Some("matmul".into()), ..CallFilter::default() };
    let rule = FaultRule {
        armed: true,
        calls,
        nth: 2,
        persistence: Persistence::Transient,
        effect: fails(719, ErrorTiming::Immediately, false),
    };
    let result = check(test, rule, |gpu| {
        fill(gpu, 1.0).unwrap();
        let (a, b) =
            (gpu.stream.clone_htod(&[1.0_f32; 4]).unwrap(), gpu.stream.clone_htod(&[1.0_f32; 4]).unwrap());
        let mut c = gpu.stream.alloc_zeros::<f32>(4).unwrap();
        let lt = CudaBlasLT::new(gpu.stream.clone()).unwrap();
        let mut multiply = || {
            let config = MatmulConfig {
                transa: false,
                transb: false,
                transc: false,
                m: 2,
                n: 2,
                k: 2,
                alpha: 1.0,
                lda: 2,
                ldb: 2,
                beta: 0.0,
                ldc: 2,
                stride_a: None,
                stride_b: None,
                stride_c: None,
                stride_bias: None,
                batch_size: None,
            };
            // SAFETY: the layouts fit the buffers.
            unsafe { lt.matmul(config, &a, &b, &mut c, None, None) }.map_err(|error| error.0 as u32)
        };
        assert_eq!([multiply(), multiply(), multiply()], [Ok(()), Err(13), Ok(())]);
        assert_eq!(gpu.stream.clone_dtoh(&c).unwrap(), [2.0; 4]);
    });
    if let Some((seen, _)) = result {
        assert_eq!(seen, 3);
    }
}
