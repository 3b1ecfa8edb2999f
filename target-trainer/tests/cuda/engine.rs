//! Tests the engine on a CUDA device: it matches the CPU within a tolerance, gives the same bits on every
//! run, and reports failures before it applies anything.

use std::num::NonZeroUsize;
use std::sync::Arc;

use target_trainer::device::cuda::ElementType;
use target_trainer::device::{DeviceError, DeviceId, Precision, WaitTracker};
use target_trainer::intake::{Sample, parse_line};
use target_trainer::make_data::arithmetic;
use target_trainer::model::{BaseModel, Preset};
use target_trainer::state::Recipe;
use target_trainer::train::{
    Engine, EngineConfig, NonFinite, RestoreError, StepError, StepOptions, StepReport,
};

use crate::test_device::device;
use libtest_mimic::Trial;

/// The trials of this file. `missing` is why this machine cannot run them.
pub(crate) fn trials(missing: Option<String>) -> Vec<Trial> {
    trials![
        missing;
        two_hundred_steps_match_the_losses_of_the_cpu,
        two_runs_end_with_the_same_bits,
        a_run_that_is_stopped_and_resumed_after_every_step_ends_with_the_same_bits,
        a_snapshot_is_not_changed_by_later_steps,
        a_loss_that_overflows_is_detected_before_anything_is_applied,
        a_weight_that_overflows_is_detected_before_it_is_applied,
        a_batch_without_targets_causes_no_division_by_zero,
        computing_twice_gives_the_same_result_and_changes_no_bit,
        a_state_moves_between_cpu_and_gpu,
        a_state_of_another_shape_is_rejected_and_nothing_changes,
        a_micro_batch_that_does_not_fit_fails_and_a_smaller_one_works,
        equal_steps_allocate_no_memory,
        a_gpu_agrees_with_the_cpu,
        a_missing_device_is_unavailable,
    ]
}

fn engine_config(precision: Precision) -> EngineConfig {
    EngineConfig { device: DeviceId::Cuda(0), precision, wait_tracker: Arc::new(WaitTracker::default()) }
}

fn base() -> BaseModel {
    BaseModel::random(Preset::Tiny.config(), 1)
}

fn samples(lines: impl IntoIterator<Item = String>) -> Vec<Sample> {
    lines.into_iter().map(|line| parse_line(line.as_bytes()).unwrap()).collect()
}

fn recipe(steps: u64) -> Recipe {
    Recipe { steps, batch: 4, ..Recipe::default() }
}

fn engine_of(recipe: Recipe, lines: impl IntoIterator<Item = String>, precision: Precision) -> Engine {
    Engine::new_on_device(base(), recipe, &samples(lines), &engine_config(precision)).unwrap()
}

fn engine(steps: u64, precision: Precision) -> Engine {
    engine_of(recipe(steps), arithmetic(1, 30, 0), precision)
}

fn options(micro_batch: usize) -> StepOptions {
    let micro_batch = NonZeroUsize::new(micro_batch).unwrap();
    StepOptions { micro_batch, check_finite: true, recheck: false, in_order: true, empty_batches: true }
}

fn step(engine: &mut Engine) -> StepReport {
    engine.step(options(4)).unwrap()
}

fn steps(engine: &mut Engine, count: usize) {
    for _ in 0..count {
        step(engine);
    }
}

/// Compares every step's loss, with a tolerance of 1e-3 for f32 and 2e-2 for bf16. The learning rate is lower
/// than the default recipe's. With the default, training is chaotic: rounding errors grow a thousandfold in
/// about 30 steps on any two machines.
fn two_hundred_steps_match_the_losses_of_the_cpu() {
    const STEPS: u64 = 200;
    let recipe = Recipe { learning_rate: 3e-3, batch: 2, ..recipe(STEPS) };
    let run = |mut engine: Engine| -> Vec<f32> {
        let losses = (0..STEPS).map(|_| step(&mut engine).loss).collect();
        assert!(engine.finished());
        losses
    };
    let lines = || arithmetic(1, 300, 0);
    let on_cpu = run(Engine::new_on_cpu(base(), recipe.clone(), &samples(lines())));
    for (precision, tolerance) in [(Precision::F32, 1e-3), (Precision::Bf16, 2e-2)] {
        let on_gpu = run(engine_of(recipe.clone(), lines(), precision));
        // Unlike `f32::max`, the total order does not pass over NaN.
        let differences = on_cpu.iter().zip(&on_gpu).map(|(a, b)| (a - b).abs() / a);
        let difference = differences.max_by(f32::total_cmp).unwrap();
        let [first, last, last_on_cpu] = [on_gpu[0], on_gpu[199], on_cpu[199]];
        eprintln!(
            "{precision:?}: losses {first:.4} .. {last:.4} (CPU {last_on_cpu:.4}), \
             largest difference {difference:e}"
        );
        assert!(difference < tolerance, "{precision:?}: {difference:e}");
    }
}

fn two_runs_end_with_the_same_bits() {
    for precision in [Precision::F32, Precision::Bf16] {
        let run = || {
            let mut engine = engine(10, precision);
            let reports: Vec<StepReport> = (0..10).map(|_| step(&mut engine)).collect();
            (reports, engine.state().unwrap())
        };
        assert!(run() == run());
    }
}

fn a_run_that_is_stopped_and_resumed_after_every_step_ends_with_the_same_bits() {
    for precision in [Precision::F32, Precision::Bf16] {
        let mut uninterrupted = engine(8, precision);
        let mut state = uninterrupted.state().unwrap();
        for _ in 0..8 {
            step(&mut uninterrupted);
            // A new engine for each step, as after a restart of the process.
            let mut engine = engine(8, precision);
            engine.restore(state).unwrap();
            step(&mut engine);
            state = engine.state().unwrap();
        }
        assert!(state == uninterrupted.state().unwrap());
    }
}

fn a_snapshot_is_not_changed_by_later_steps() {
    let mut reference = engine(8, Precision::F32);
    let states: Vec<_> = (0..8)
        .map(|_| {
            step(&mut reference);
            reference.state().unwrap()
        })
        .collect();
    let mut engine = engine(8, Precision::F32);
    let mut snapshots = Vec::new();
    for _ in 0..8 {
        step(&mut engine);
        snapshots.push(engine.snapshot().unwrap());
    }
    // On another thread, as in the background saver.
    let found: Vec<_> =
        std::thread::spawn(|| snapshots.into_iter().map(|snapshot| snapshot.finish().unwrap()).collect())
            .join()
            .unwrap();
    assert!(states == found);
}

fn a_loss_that_overflows_is_detected_before_anything_is_applied() {
    let line = r#"{"prompt":"1+1=","completion":"2","weight":3.0e38}"#;
    let mut engine = engine_of(Recipe::default(), [line.to_owned()], Precision::F32);
    let before = engine.state().unwrap();
    assert_eq!(step(&mut engine).non_finite, Some(NonFinite::Loss));
    assert!(engine.state().unwrap() == before);
    engine.step(StepOptions { check_finite: false, ..options(1) }).unwrap();
    assert!(engine.state().unwrap() != before, "without the check the step is applied");
}

fn a_weight_that_overflows_is_detected_before_it_is_applied() {
    let recipe = Recipe { learning_rate: f32::MAX, weight_decay: 1e10, warmup_steps: 0, ..recipe(4) };
    let mut engine = engine_of(recipe, arithmetic(1, 30, 0), Precision::F32);
    let before = engine.state().unwrap();
    assert_eq!(step(&mut engine).non_finite, Some(NonFinite::Weights));
    assert!(engine.state().unwrap() == before);
}

fn a_batch_without_targets_causes_no_division_by_zero() {
    let line = r#"{"messages":[{"role":"user","content":"hello"}]}"#;
    let mut engine = engine_of(Recipe::default(), [line.to_owned()], Precision::F32);
    let report = step(&mut engine);
    assert_eq!((report.loss, report.gradient_norm, report.non_finite), (0.0, 0.0, None));
}

fn computing_twice_gives_the_same_result_and_changes_no_bit() {
    let (mut once, mut twice) = (engine(4, Precision::F32), engine(4, Precision::F32));
    for _ in 0..4 {
        let report = twice.step(StepOptions { recheck: true, ..options(4) }).unwrap();
        assert!(!report.results_differ);
        assert_eq!(step(&mut once), report);
    }
    assert!(once.state().unwrap() == twice.state().unwrap());
}

fn a_state_moves_between_cpu_and_gpu() {
    let mut gpu = engine(8, Precision::F32);
    steps(&mut gpu, 4);
    let state = gpu.state().unwrap();
    let mut cpu = Engine::new_on_cpu(base(), recipe(8), &samples(arithmetic(1, 30, 0)));
    cpu.restore(state.clone()).unwrap();
    assert!(cpu.state().unwrap() == state);
    let (on_cpu, on_gpu) = (step(&mut cpu), step(&mut gpu));
    assert!((on_cpu.loss - on_gpu.loss).abs() < 1e-3 * on_cpu.loss, "{on_cpu:?} {on_gpu:?}");
    gpu.restore(cpu.state().unwrap()).unwrap();
    assert!(gpu.state().unwrap() == cpu.state().unwrap());
}

fn a_state_of_another_shape_is_rejected_and_nothing_changes() {
    let mut engine = engine(8, Precision::F32);
    let before = engine.state().unwrap();
    let mut other = before.clone();
    other.optimizer[3].shape = vec![1];
    let Err(RestoreError::ShapeMismatch(reason)) = engine.restore(other) else {
        panic!("the state was not rejected");
    };
    assert!(reason.to_string().contains("has shape [1], expected"), "{reason}");
    assert!(engine.state().unwrap() == before);
}

/// Allocates all device memory except a few MiB, so that the micro-batch does not fit.
fn a_micro_batch_that_does_not_fit_fails_and_a_smaller_one_works() {
    const SAMPLES: usize = 40;
    const FREE_BYTES: usize = 8 << 20;
    let text = "x".repeat(110);
    let lines = (0..SAMPLES).map(|_| format!(r#"{{"prompt":"{text}","completion":"y"}}"#));
    let mut engine = engine_of(Recipe { batch: SAMPLES, ..recipe(4) }, lines, Precision::F32);
    let before = engine.state().unwrap();
    let device = device();
    device.release_caches();
    let mut occupied = Vec::new();
    // Sizes are halved, because free memory need not be contiguous.
    for size in (20..40).rev().map(|bits| 1_usize << bits) {
        while device.memory_info().unwrap().free_bytes >= FREE_BYTES + size {
            match device.buffer(ElementType::Bits32, size / 4) {
                Ok(buffer) => occupied.push(buffer),
                Err(_) => break,
            }
        }
    }
    let error = match engine.step(options(SAMPLES)).unwrap_err() {
        StepError::Device(error) => error,
        StepError::Samples(error) => unreachable!("they are in memory: {error}"),
    };
    assert!(matches!(error, DeviceError::OutOfMemory { .. }), "{error}");
    assert_eq!(error.cuda_code(), Some(2));
    assert!(engine.state().unwrap() == before);
    engine.release_caches();
    let report = engine.step(options(2)).unwrap();
    assert_eq!((report.step, report.non_finite), (1, None));
    drop(occupied);
    device.release_caches();
}

fn equal_steps_allocate_no_memory() {
    let line = r#"{"prompt":"12+34=","completion":"46"}"#;
    let mut engine = engine_of(recipe(20), [line.to_owned()], Precision::F32);
    steps(&mut engine, 3);
    let free = device().memory_info().unwrap().free_bytes;
    steps(&mut engine, 10);
    assert!(device().memory_info().unwrap().free_bytes >= free, "equal steps have allocated memory");
}

fn a_gpu_agrees_with_the_cpu() {
    for precision in [Precision::F32, Precision::Bf16] {
        let mut engine = engine(4, precision);
        steps(&mut engine, 2);
        let before = engine.state().unwrap();
        assert_eq!(engine.compare_with_cpu().unwrap(), None);
        assert!(engine.weights_intact().unwrap());
        engine.reload_weights().unwrap();
        assert!(engine.weights_intact().unwrap());
        assert!(engine.state().unwrap() == before);
        let mut other = engine_of(recipe(4), arithmetic(1, 30, 0), precision);
        other.restore(before).unwrap();
        assert_eq!(step(&mut engine), step(&mut other), "the checks change nothing");
        assert!(engine.device_name().starts_with("cuda:0 ("), "{}", engine.device_name());
    }
}

fn a_missing_device_is_unavailable() {
    let engine_config = EngineConfig { device: DeviceId::Cuda(77), ..engine_config(Precision::F32) };
    let error = Engine::new_on_device(base(), recipe(1), &samples(arithmetic(1, 3, 0)), &engine_config)
        .err()
        .unwrap();
    assert!(matches!(error, DeviceError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("cuda:77 can't be used: "), "{error}");
}
