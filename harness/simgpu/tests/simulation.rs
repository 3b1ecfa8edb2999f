//! An ordinary CUDA program on the simulated GPU: correct kernels give correct results, and planted bugs are
//! detected.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[expect(dead_code, reason = "each test file uses a part of it")]
mod support;

use cudarc::driver::{LaunchConfig, PushKernelArg};
use support::{ShimSetup, TestGpu, is_body, plain_product, plan};

fn shape(blocks: u32, threads: u32, shared_bytes: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: shared_bytes }
}

/// Runs the body in its own process. Returns the evidence.
fn check(test: &str, body: impl FnOnce(&TestGpu)) -> Option<Vec<String>> {
    if is_body(test) {
        body(&TestGpu::new());
        return None;
    }
    let setup = ShimSetup::new(&plan(Vec::new()));
    setup.run(test);
    Some(setup.evidence().into_iter().map(|evidence| evidence.description).collect())
}

/// Like [`check`]. The simulation must detect no defect.
fn check_without_defect(test: &str, body: impl FnOnce(&TestGpu)) {
    if let Some(evidence) = check(test, body) {
        assert!(evidence.is_empty(), "{evidence:?}");
    }
}

/// Like [`check`]. The simulation must detect exactly one defect, with this text.
fn check_defect(test: &str, body: impl FnOnce(&TestGpu), text: &str) {
    if let Some(evidence) = check(test, body) {
        assert_eq!(evidence.len(), 1, "{evidence:?}");
        assert!(evidence[0].contains(text), "{evidence:?}");
    }
}

fn sums(gpu: &TestGpu, kernel: &str) -> Vec<f32> {
    let input: Vec<f32> = (0..256).map(|i| (i % 17) as f32).collect();
    let input = gpu.stream.clone_htod(&input).unwrap();
    let mut out = gpu.stream.alloc_zeros::<f32>(2).unwrap();
    let function = gpu.kernel(kernel);
    let mut launch = gpu.stream.launch_builder(&function);
    launch.arg(&mut out).arg(&input).arg(&128_i32);
    // SAFETY: the arguments have the types of the kernel's parameters.
    unsafe { launch.launch(shape(2, 128, 512)) }.unwrap();
    gpu.stream.clone_dtoh(&out).unwrap()
}

#[test]
fn a_block_sum_is_right_only_with_barriers() {
    check_without_defect("a_block_sum_is_right_only_with_barriers", |gpu| {
        let right: Vec<f32> =
            (0..2).map(|block| (0..128).map(|i| ((block * 128 + i) % 17) as f32).sum()).collect();
        assert_eq!(sums(gpu, "planted_sum"), right);
        assert_ne!(sums(gpu, "planted_sum_without_barrier"), right);
    });
}

#[test]
fn a_missing_barrier_shows_for_either_neighbour() {
    check_without_defect("a_missing_barrier_shows_for_either_neighbour", |gpu| {
        let input = gpu.stream.clone_htod(&[1.0_f32; 64]).unwrap();
        let mut out = gpu.stream.alloc_zeros::<f32>(128).unwrap();
        let function = gpu.kernel("planted_shift_without_barrier");
        let mut launch = gpu.stream.launch_builder(&function);
        launch.arg(&mut out).arg(&input).arg(&64_i32);
        // SAFETY: the arguments have the types of the kernel's parameters.
        unsafe { launch.launch(shape(2, 64, 256)) }.unwrap();
        let out = gpu.stream.clone_dtoh(&out).unwrap();
        // One of the two blocks runs its threads from the last to the first.
        assert!(out.iter().any(|value| value.is_nan()), "{out:?}");
    });
}

fn broken_launch(gpu: &TestGpu, kernel: &str, threads: u32, shared_bytes: u32) -> i32 {
    let mut out = gpu.stream.alloc_zeros::<f32>(threads as usize).unwrap();
    let function = gpu.kernel(kernel);
    let mut launch = gpu.stream.launch_builder(&function);
    let count = (shared_bytes / 4) as i32;
    launch.arg(&mut out).arg(&count);
    // SAFETY: the arguments have the types of the parameters. Kernels with fewer parameters use only the
    // first ones.
    unsafe { launch.launch(shape(1, threads, shared_bytes)) }.unwrap();
    let code = gpu.stream.synchronize().unwrap_err().0 as i32;
    // The error is sticky.
    assert_eq!(gpu.context.new_stream().unwrap_err().0 as i32, code);
    code
}

#[test]
fn a_barrier_that_some_threads_skip_is_a_launch_timeout() {
    let test = "a_barrier_that_some_threads_skip_is_a_launch_timeout";
    let body = |gpu: &TestGpu| assert_eq!(broken_launch(gpu, "planted_divergent", 64, 0), 702);
    check_defect(test, body, "32 threads wait for the block, 0 for their warp, 32 have finished");
}

#[test]
fn lanes_in_different_collectives_are_detected() {
    let test = "lanes_in_different_collectives_are_detected";
    let body = |gpu: &TestGpu| assert_eq!(broken_launch(gpu, "planted_mixed", 32, 0), 702);
    check_defect(test, body, "`planted_mixed` has a divergent barrier");
}

#[test]
fn a_write_past_shared_memory_is_detected_in_the_padding() {
    let test = "a_write_past_shared_memory_is_detected_in_the_padding";
    // After 12 bytes there are 4 bytes of padding, which are writable.
    let body = |gpu: &TestGpu| assert_eq!(broken_launch(gpu, "planted_shared_too_far", 1, 12), 700);
    check_defect(test, body, "writes past its 12 bytes of shared memory");
}

#[test]
fn a_write_past_shared_memory_is_detected_at_the_next_page() {
    let test = "a_write_past_shared_memory_is_detected_at_the_next_page";
    let body = |gpu: &TestGpu| assert_eq!(broken_launch(gpu, "planted_shared_too_far", 1, 16), 700);
    check_defect(test, body, "`planted_shared_too_far` writes to address");
}

#[test]
fn a_division_by_zero_fails_only_the_launch() {
    let test = "a_division_by_zero_fails_only_the_launch";
    let body = |gpu: &TestGpu| assert_eq!(broken_launch(gpu, "planted_divide", 32, 0), 719);
    check_defect(test, body, "`planted_divide` divides by zero");
}

#[test]
fn a_stack_overflow_is_detected() {
    let test = "a_stack_overflow_is_detected";
    let body = |gpu: &TestGpu| {
        let mut out = gpu.stream.alloc_zeros::<f32>(1).unwrap();
        let function = gpu.kernel("planted_recurse");
        let mut launch = gpu.stream.launch_builder(&function);
        launch.arg(&mut out).arg(&1_000_000_i32);
        // SAFETY: the arguments have the types of the kernel's parameters.
        unsafe { launch.launch(shape(1, 1, 0)) }.unwrap();
        assert_eq!(gpu.stream.synchronize().unwrap_err().0 as i32, 700);
    };
    check_defect(test, body, "`planted_recurse` writes to address");
}

fn fill(gpu: &TestGpu, kernel: &str, count: usize) -> i32 {
    let mut out = gpu.stream.alloc_zeros::<f32>(count).unwrap();
    let function = gpu.kernel(kernel);
    let mut launch = gpu.stream.launch_builder(&function);
    let count = count as i32;
    launch.arg(&mut out).arg(&1.0_f32).arg(&count);
    // SAFETY: the arguments have the types of the kernel's parameters.
    unsafe { launch.launch(shape(2, 64, 0)) }.unwrap();
    gpu.stream.synchronize().unwrap_err().0 as i32
}

#[test]
fn a_write_past_the_end_is_an_illegal_address() {
    let test = "a_write_past_the_end_is_an_illegal_address";
    let body = |gpu: &TestGpu| assert_eq!(fill(gpu, "planted_fill_too_far", 100), 700);
    check_defect(
        test,
        body,
        "`planted_fill_too_far` writes to byte 400 of an allocation of 400 bytes: block [1, 0, 0], thread 36",
    );
}

#[test]
fn a_write_into_the_padding_is_detected_after_the_launch() {
    let test = "a_write_into_the_padding_is_detected_after_the_launch";
    let body = |gpu: &TestGpu| assert_eq!(fill(gpu, "planted_fill_too_far", 99), 700);
    check_defect(test, body, "`planted_fill_too_far` writes to byte 396 of an allocation of 396 bytes");
}

/// Reads one element of a buffer of 4 elements, which may be freed first.
fn read_at(gpu: &TestGpu, index: i64, is_freed: bool) -> Result<Vec<f32>, i32> {
    let mut out = gpu.stream.alloc_zeros::<f32>(1).unwrap();
    let input = gpu.stream.clone_htod(&[1.0_f32, 2.0, 3.0, 4.0]).unwrap();
    let address = input.leak();
    if is_freed {
        // SAFETY: the buffer was leaked above, so it is freed only once. The test uses it after the free on
        // purpose.
        unsafe { cudarc::driver::result::free_async(address, gpu.stream.cu_stream()) }.unwrap();
    }
    let function = gpu.kernel("planted_read_at");
    let mut launch = gpu.stream.launch_builder(&function);
    launch.arg(&mut out).arg(&address).arg(&index);
    // SAFETY: the arguments have the types of the parameters. The simulation catches the bad access.
    unsafe { launch.launch(shape(1, 32, 0)) }.unwrap();
    gpu.stream.clone_dtoh(&out).map_err(|error| error.0 as i32)
}

#[test]
fn a_read_past_the_end_is_an_illegal_address() {
    let test = "a_read_past_the_end_is_an_illegal_address";
    let body = |gpu: &TestGpu| {
        assert_eq!(read_at(gpu, 3, false), Ok(vec![4.0]));
        assert_eq!(read_at(gpu, 4, false), Err(700));
    };
    check_defect(
        test,
        body,
        "`planted_read_at` reads byte 16 of an allocation of 16 bytes: block [0, 0, 0], thread 0",
    );
}

#[test]
fn a_read_before_the_start_returns_nan() {
    check_without_defect("a_read_before_the_start_returns_nan", |gpu| {
        assert!(read_at(gpu, -1, false).unwrap()[0].is_nan());
    });
}

#[test]
fn a_use_after_free_is_an_illegal_address() {
    let test = "a_use_after_free_is_an_illegal_address";
    let body = |gpu: &TestGpu| assert_eq!(read_at(gpu, 0, true), Err(700));
    check_defect(test, body, "`planted_read_at` reads byte 0 of a freed allocation of 16 bytes");
}

#[test]
fn a_missing_wait_between_streams_reads_poison_and_an_event_fixes_it() {
    check_without_defect("a_missing_wait_between_streams_reads_poison_and_an_event_fixes_it", |gpu| {
        // SAFETY: the test synchronises the streams itself. The simulation handles a missing wait.
        unsafe { gpu.context.disable_event_tracking() };
        for (waits, right) in [(false, false), (true, true)] {
            let other = gpu.context.new_stream().unwrap();
            // SAFETY: the kernel below writes the memory before it is used.
            let mut made = unsafe { gpu.stream.alloc::<f32>(8) }.unwrap();
            let mut out = other.alloc_zeros::<f32>(8).unwrap();
            gpu.stream.synchronize().unwrap();
            let (producer, consumer) = (gpu.kernel("planted_fill"), gpu.kernel("planted_add"));
            let mut launch = gpu.stream.launch_builder(&producer);
            launch.arg(&mut made).arg(&1.0_f32).arg(&8_i32);
            // SAFETY: the arguments have the types of the kernel's parameters.
            unsafe { launch.launch(shape(1, 32, 0)) }.unwrap();
            if waits {
                other.join(&gpu.stream).unwrap();
            }
            let mut launch = other.launch_builder(&consumer);
            launch.arg(&mut out).arg(&made).arg(&1.0_f32).arg(&8_i32);
            // SAFETY: the arguments have the types of the kernel's parameters.
            unsafe { launch.launch(shape(1, 32, 0)) }.unwrap();
            let out = other.clone_dtoh(&out).unwrap();
            assert_eq!(out == vec![2.0; 8], right, "{out:?}");
            gpu.context.synchronize().unwrap();
        }
    });
}

#[test]
fn page_locked_memory_is_read_when_the_copy_runs_and_pageable_memory_at_the_call() {
    check_without_defect(
        "page_locked_memory_is_read_when_the_copy_runs_and_pageable_memory_at_the_call",
        |gpu| {
            // SAFETY: the memory is written below before it is read.
            let mut pinned = unsafe { gpu.context.alloc_pinned::<f32>(4) }.unwrap();
            let address = pinned.as_mut_ptr().unwrap();
            // SAFETY: the allocation has 4 elements.
            unsafe { address.write(1.0) };
            let mut device = gpu.stream.alloc_zeros::<f32>(4).unwrap();
            let (to, stream) = (raw(&mut device, gpu), gpu.stream.cu_stream());
            // SAFETY: both ends are 16 bytes long. The source changes before the copy runs, on purpose.
            unsafe {
                let source = std::slice::from_raw_parts(address.cast_const(), 4);
                cudarc::driver::result::memcpy_htod_async(to, source, stream).unwrap();
                address.write(2.0);
            }
            assert_eq!(gpu.stream.clone_dtoh(&device).unwrap()[0], 2.0);
            let mut pageable = vec![3.0_f32; 4];
            // SAFETY: both ends are 16 bytes long, and pageable memory is read during the call.
            unsafe { cudarc::driver::result::memcpy_htod_async(to, &pageable, stream) }.unwrap();
            pageable[0] = 4.0;
            assert_eq!(gpu.stream.clone_dtoh(&device).unwrap()[0], 3.0);
        },
    );
}

fn raw(slice: &mut cudarc::driver::CudaSlice<f32>, gpu: &TestGpu) -> u64 {
    use cudarc::driver::DevicePtrMut;
    slice.device_ptr_mut(&gpu.stream).0
}

#[test]
fn memory_is_counted_exhausted_and_returned() {
    check_without_defect("memory_is_counted_exhausted_and_returned", |gpu| {
        let (free, total) = gpu.context.mem_get_info().unwrap();
        assert_eq!((free, total), (1 << 30, 1 << 30));
        // SAFETY: the memory is never read.
        let allocation = unsafe { gpu.stream.alloc::<u8>(1000) }.unwrap();
        assert_eq!(gpu.context.mem_get_info().unwrap().0, free - 1024);
        // SAFETY: the memory is never read.
        let error = unsafe { gpu.stream.alloc::<u8>(1 << 30) }.unwrap_err();
        assert_eq!(error.0 as i32, 2);
        drop(allocation);
        gpu.stream.synchronize().unwrap();
        assert_eq!(gpu.context.mem_get_info().unwrap().0, free);
    });
}

#[test]
fn ptx_that_is_too_new_is_rejected_and_unknown_names_are_not_found() {
    check_without_defect("ptx_that_is_too_new_is_rejected_and_unknown_names_are_not_found", |gpu| {
        let newer = cudarc::nvrtc::Ptx::from_src(support::ptx("8.8"));
        assert_eq!(gpu.context.load_module(newer).unwrap_err().0 as i32, 222);
        assert_eq!(gpu.module.load_function("planted_nowhere").unwrap_err().0 as i32, 500);
        // `planted_add` is in the table, but not in this PTX.
        let small = cudarc::nvrtc::Ptx::from_src(".version 8.0\n.visible .entry planted_fill() {}");
        let module = gpu.context.load_module(small).unwrap();
        assert!(module.load_function("planted_fill").is_ok());
        assert_eq!(module.load_function("planted_add").unwrap_err().0 as i32, 500);
    });
}

#[test]
fn a_launch_with_too_much_shared_memory_is_rejected() {
    check_without_defect("a_launch_with_too_much_shared_memory_is_rejected", |gpu| {
        let function = gpu.kernel("planted_nothing");
        let mut out = gpu.stream.alloc_zeros::<f32>(1).unwrap();
        let mut try_with = |bytes: u32| {
            let mut launch = gpu.stream.launch_builder(&function);
            launch.arg(&mut out);
            // SAFETY: the arguments have the types of the kernel's parameters.
            unsafe { launch.launch(shape(1, 32, bytes)) }.map(|_| ()).map_err(|error| error.0 as i32)
        };
        assert_eq!(try_with(49_152), Ok(()));
        assert_eq!(try_with(49_153), Err(1));
        let attribute =
            cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, 232_448).unwrap();
        assert_eq!(try_with(232_448), Ok(()));
        assert!(function.set_attribute(attribute, 232_449).is_err());
    });
}

#[test]
fn tensor_cores_use_the_fragment_layout_of_the_ptx_isa() {
    check_without_defect("tensor_cores_use_the_fragment_layout_of_the_ptx_isa", |gpu| {
        let bf16 = |value: f32| (value.to_bits() >> 16) as u16;
        let a: Vec<f32> = (0..256).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
        let b: Vec<f32> = (0..128).map(|i| (i * 5 % 11) as f32 - 5.0).collect();
        let on_device = |values: &[f32]| {
            gpu.stream.clone_htod(&values.iter().map(|value| bf16(*value)).collect::<Vec<_>>()).unwrap()
        };
        let (da, db) = (on_device(&a), on_device(&b));
        let mut out = gpu.stream.alloc_zeros::<f32>(128).unwrap();
        let function = gpu.kernel("planted_mma");
        let mut launch = gpu.stream.launch_builder(&function);
        launch.arg(&mut out).arg(&da).arg(&db);
        // SAFETY: the arguments have the types of the kernel's parameters.
        unsafe { launch.launch(shape(1, 32, 0)) }.unwrap();
        let out = gpu.stream.clone_dtoh(&out).unwrap();
        for row in 0..16 {
            for column in 0..8 {
                let sum: f32 = (0..16).map(|k| a[row * 16 + k] * b[k * 8 + column]).sum();
                assert_eq!(out[row * 8 + column], sum, "row {row}, column {column}");
            }
        }
    });
}

#[test]
fn an_event_completes_when_its_stream_reaches_it() {
    check_without_defect("an_event_completes_when_its_stream_reaches_it", |gpu| {
        let mut out = gpu.stream.alloc_zeros::<f32>(8).unwrap();
        let function = gpu.kernel("planted_fill");
        for _ in 0..3 {
            let mut launch = gpu.stream.launch_builder(&function);
            launch.arg(&mut out).arg(&1.0_f32).arg(&8_i32);
            // SAFETY: the arguments have the types of the kernel's parameters.
            unsafe { launch.launch(shape(1, 32, 0)) }.unwrap();
        }
        let event = gpu.stream.record_event(None).unwrap();
        let mut query_count = 0;
        while !event.is_complete() {
            query_count += 1;
        }
        // Each query runs one operation.
        assert!((2..100).contains(&query_count), "{query_count}");
        event.synchronize().unwrap();
        // SAFETY: the stream lives as long as `gpu`.
        let query = unsafe { cudarc::driver::sys::cuStreamQuery(gpu.stream.cu_stream()) };
        assert_eq!(query as u32, 0);
    });
}

#[test]
fn threads_with_their_own_streams_do_not_interfere() {
    check_without_defect("threads_with_their_own_streams_do_not_interfere", |gpu| {
        std::thread::scope(|scope| {
            for number in 0..4 {
                scope.spawn(move || {
                    let stream = gpu.context.new_stream().unwrap();
                    let function = gpu.kernel("planted_sum");
                    for round in 0..50 {
                        let value = (number * 50 + round) as f32;
                        let input = stream.clone_htod(&[value; 128]).unwrap();
                        let mut out = stream.alloc_zeros::<f32>(1).unwrap();
                        let mut launch = stream.launch_builder(&function);
                        launch.arg(&mut out).arg(&input).arg(&128_i32);
                        // SAFETY: the arguments have the types of the kernel's parameters.
                        unsafe { launch.launch(shape(1, 128, 512)) }.unwrap();
                        assert_eq!(stream.clone_dtoh(&out).unwrap(), [128.0 * value]);
                    }
                });
            }
        });
    });
}

#[test]
fn a_matrix_product_of_cublaslt_equals_the_plain_sum() {
    use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig};
    check_without_defect("a_matrix_product_of_cublaslt_equals_the_plain_sum", |gpu| {
        let (m, n, k) = (5_usize, 7, 9);
        let a: Vec<f32> = (0..m * k).map(|i| (i % 5) as f32 - 2.0).collect();
        let b: Vec<f32> = (0..k * n).map(|i| (i % 7) as f32 - 3.0).collect();
        let (da, db) = (gpu.stream.clone_htod(&a).unwrap(), gpu.stream.clone_htod(&b).unwrap());
        let mut dc = gpu.stream.alloc_zeros::<f32>(m * n).unwrap();
        let lt = CudaBlasLT::new(gpu.stream.clone()).unwrap();
        // Column-major: A is m x k, B is stored as n x k.
        let config = MatmulConfig { transb: true, ldb: n as i64, ..plain_product(m, n, k) };
        // SAFETY: the layouts fit the buffers.
        unsafe { lt.matmul(config, &da, &db, &mut dc, None, None) }.unwrap();
        let c = gpu.stream.clone_dtoh(&dc).unwrap();
        for row in 0..m {
            for column in 0..n {
                let sum: f32 = (0..k).map(|i| a[i * m + row] * b[i * n + column]).sum();
                assert_eq!(c[column * m + row], sum);
            }
        }
    });
}

#[test]
fn a_matrix_product_past_an_operand_is_an_illegal_address() {
    use cudarc::cublaslt::{CudaBlasLT, Matmul};
    let body = |gpu: &TestGpu| {
        let a = gpu.stream.alloc_zeros::<f32>(15).unwrap();
        let b = gpu.stream.alloc_zeros::<f32>(16).unwrap();
        let mut c = gpu.stream.alloc_zeros::<f32>(16).unwrap();
        let lt = std::mem::ManuallyDrop::new(CudaBlasLT::new(gpu.stream.clone()).unwrap());
        let config = plain_product(4, 4, 4);
        // SAFETY: the first operand is too short on purpose. The simulation checks it before it reads.
        unsafe { lt.matmul(config, &a, &b, &mut c, None, None) }.unwrap();
        assert_eq!(gpu.stream.synchronize().unwrap_err().0 as i32, 700);
    };
    let test = "a_matrix_product_past_an_operand_is_an_illegal_address";
    check_defect(test, body, "`matmul`: A has 64 bytes at byte 0 of an allocation of 60 bytes");
}
