//! On the CPU, threads, micro-batch and resumes do not change a bit of the weights. And the trainer learns to
//! add.

#![expect(clippy::unwrap_used, reason = "a test fails at the first unexpected value")]

use std::num::NonZeroUsize;

use proptest::prelude::*;
use target_trainer::intake::{Sample, parse_line};
use target_trainer::make_data::{arithmetic, held_out};
use target_trainer::model::{BaseCheck, BaseModel, ModelConfig, Preset, preset_files};
use target_trainer::state::{Recipe, TrainState};
use target_trainer::train::{Engine, NonFinite, StepOptions, StepReport};

fn base() -> BaseModel {
    let (config, weights) = preset_files(Preset::Tiny, 1).unwrap();
    BaseModel::from_bytes(ModelConfig::parse(&config, BaseCheck::Full).unwrap(), &weights, BaseCheck::Full)
        .unwrap()
}

fn samples(lines: impl IntoIterator<Item = String>) -> Vec<Sample> {
    lines.into_iter().map(|line| parse_line(line.as_bytes()).unwrap()).collect()
}

fn engine(steps: u64) -> Engine {
    Engine::new_on_cpu(base(), Recipe { steps, ..Recipe::default() }, &samples(arithmetic(1, 30, 0)))
}

fn nonzero(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

fn step(engine: &mut Engine, micro_batch: usize, check_finite: bool) -> StepReport {
    let micro_batch = nonzero(micro_batch);
    let options =
        StepOptions { micro_batch, check_finite, recheck: false, in_order: true, empty_batches: true };
    engine.step(options).unwrap()
}

fn trained(steps: u64, micro_batch: usize) -> TrainState {
    let mut engine = engine(steps);
    while !engine.finished() {
        step(&mut engine, micro_batch, true);
    }
    engine.state().unwrap()
}

#[test]
fn the_number_of_threads_does_not_change_the_weights() {
    let trained_with = |threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| trained(12, 8))
    };
    assert!(trained_with(1) == trained_with(4));
}

#[test]
fn the_micro_batch_does_not_change_the_weights() {
    let expected = trained(12, 8);
    assert!([1, 3, 5].into_iter().all(|micro_batch| trained(12, micro_batch) == expected));
}

#[test]
fn a_resume_after_every_step_does_not_change_the_weights() {
    let mut state = engine(12).state().unwrap();
    for _ in 0..12 {
        // A new engine each time, as in a new process.
        let mut engine = engine(12);
        engine.restore(state).unwrap();
        step(&mut engine, 8, true);
        state = engine.state().unwrap();
    }
    assert!(state == trained(12, 8));
}

#[test]
fn an_overflowing_loss_is_detected_before_anything_is_applied() {
    let line = r#"{"prompt":"1+1=","completion":"2","weight":3.0e38}"#;
    let mut engine = Engine::new_on_cpu(base(), Recipe::default(), &samples([line.to_owned()]));
    let before = engine.state().unwrap();
    assert_eq!(step(&mut engine, 1, true).non_finite, Some(NonFinite::Loss));
    assert!(engine.state().unwrap() == before);
    step(&mut engine, 1, false);
    assert!(engine.state().unwrap() != before, "with the guard off, the step is applied");
}

#[test]
fn a_sample_without_trained_tokens_does_not_divide_by_zero() {
    let mut engine = Engine::new_on_cpu(
        base(),
        Recipe::default(),
        &samples([r#"{"messages":[{"role":"user","content":"hello"}]}"#.to_owned()]),
    );
    let report = step(&mut engine, 1, true);
    assert_eq!((report.loss, report.non_finite), (0.0, None));
}

#[test]
fn a_state_of_another_shape_is_an_error_and_changes_nothing() {
    let mut engine = engine(12);
    let before = engine.state().unwrap();
    let mut other = before.clone();
    other.adapter[0].shape = vec![1];
    assert!(engine.restore(other).unwrap_err().to_string().contains("has shape [1], expected"));
    assert!(engine.state().unwrap() == before);
}

#[test]
fn training_learns_sums_that_are_not_in_the_data() {
    let recipe = Recipe {
        steps: 1600,
        batch: 32,
        learning_rate: 5e-3,
        warmup_steps: 50,
        min_ratio: 0.05,
        rank: 32,
        alpha: 16.0,
        beta2: 0.99,
        weight_decay: 0.05,
        ..Recipe::default()
    };
    let mut engine = Engine::new_on_cpu(base(), recipe, &samples(arithmetic(1, 4000, 0)));
    let held_out_samples = samples(held_out(100));
    let before = engine.evaluate(&held_out_samples).unwrap();
    while !engine.finished() {
        step(&mut engine, 32, true);
    }
    let after = engine.evaluate(&held_out_samples).unwrap();
    eprintln!(
        "held out: loss {:.3} -> {:.3}, accuracy {:.2} -> {:.2}",
        before.loss, after.loss, before.accuracy, after.accuracy
    );
    assert!(before.accuracy < 0.1 && after.accuracy > 0.8, "{before:?} {after:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_resume_at_any_step_continues_at_the_same_sample(steps in 1u64..11) {
        let mut uninterrupted = engine(12);
        let mut stopped = engine(12);
        for _ in 0..steps {
            step(&mut uninterrupted, 8, true);
            step(&mut stopped, 8, true);
        }
        let mut resumed = engine(12);
        resumed.restore(stopped.state().unwrap()).unwrap();
        prop_assert_eq!(step(&mut uninterrupted, 8, true), step(&mut resumed, 2, true));
    }
}
