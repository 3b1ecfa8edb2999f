//! Parameters, moments and updates on the CPU. Samples run in parallel; their gradients are summed in the
//! order of the samples, so that neither threads nor the micro-batch change a bit.

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::gpu_backend::StepOutcome;
use super::report::StepOptions;
use crate::model::{AdapterLayout, BaseModel, LossAndGradient, WeightedSample, sample_loss_and_gradient};
use crate::optim::{Moments, ParamsAndMoments, UpdateStep, adamw, gradient_norm};
use crate::state::Recipe;

/// A base model and the layout of its adapter.
#[derive(Clone, Copy)]
pub(super) struct AdaptedModel<'a> {
    pub(super) base: &'a BaseModel,
    pub(super) adapter: &'a AdapterLayout,
}

/// The number of an update, counted from 1, and its learning rate.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScheduledUpdate {
    pub(super) t: u64,
    pub(super) learning_rate: f32,
}

/// A model in training on the CPU.
pub(super) struct CpuBackend {
    current: ParamsAndMoments,
    /// Computed by the last step and not applied yet.
    next: Option<ParamsAndMoments>,
}

impl CpuBackend {
    pub(super) fn new(params: Vec<f32>) -> CpuBackend {
        let moments = Moments::zero(params.len());
        CpuBackend { current: ParamsAndMoments { params, moments }, next: None }
    }

    /// The current parameters.
    pub(super) fn params(&self) -> &[f32] {
        &self.current.params
    }

    /// Parameters, first and second moments.
    pub(super) fn state_vectors(&self) -> [Vec<f32>; 3] {
        let ParamsAndMoments { params, moments: Moments { first, second } } = &self.current;
        [params.clone(), first.clone(), second.clone()]
    }

    /// Replaces parameters, first and second moments.
    pub(super) fn load_state(&mut self, [params, first, second]: [Vec<f32>; 3]) {
        self.current = ParamsAndMoments { params, moments: Moments { first, second } };
        self.next = None;
    }

    /// Computes the gradient of a batch and the update. [`CpuBackend::apply`] makes the update current.
    pub(super) fn step(
        &mut self,
        model: AdaptedModel<'_>,
        batch: &[WeightedSample<'_>],
        options: StepOptions,
        scale: f32,
        recipe: &Recipe,
        schedule: ScheduledUpdate,
    ) -> StepOutcome {
        let pass = self.forward_backward(model, batch, options, scale);
        let results_differ =
            options.recheck && !pass.is_bit_equal(&self.forward_backward(model, batch, options, scale));
        let LossAndGradient { loss, gradient } = pass;
        let (loss, norm) = (loss * scale, gradient_norm(&gradient));
        let ParamsAndMoments { params, moments } = &self.current;
        let ScheduledUpdate { learning_rate, t } = schedule;
        let next = adamw(params, moments, &gradient, recipe, UpdateStep { norm, learning_rate, t });
        let weights_are_finite = next.params.iter().all(|param| param.is_finite());
        self.next = Some(next);
        StepOutcome { loss, norm, gradient_is_finite: norm.is_finite(), weights_are_finite, results_differ }
    }

    /// Makes the last step's update current.
    pub(super) fn apply(&mut self) {
        if let Some(next) = self.next.take() {
            self.current = next;
        }
    }

    /// Sum of the losses, and the gradient of `scale` times that sum.
    fn forward_backward(
        &self,
        model: AdaptedModel<'_>,
        batch: &[WeightedSample<'_>],
        options: StepOptions,
        scale: f32,
    ) -> LossAndGradient {
        let AdaptedModel { base, adapter } = model;
        let (mut sum, mut gradient) = (0.0, vec![0.0; adapter.param_count()]);
        let sample_pass = |weighted: &WeightedSample<'_>| {
            let WeightedSample { sample, weight } = *weighted;
            let LossAndGradient { loss, gradient } =
                sample_loss_and_gradient(base, adapter, self.params(), sample, scale * weight);
            LossAndGradient { loss: loss * weight, gradient }
        };
        if !options.in_order {
            let part = batch.len().div_ceil(rayon::current_num_threads()).max(1);
            let options = StepOptions { in_order: true, ..options };
            let parts: Vec<&[WeightedSample<'_>]> = batch.chunks(part).collect();
            let passes: Vec<LossAndGradient> =
                parts.par_iter().map(|part| self.forward_backward(model, part, options, scale)).collect();
            return passes.into_iter().fold(LossAndGradient { loss: sum, gradient }, LossAndGradient::plus);
        }
        for micro_batch in batch.chunks(options.micro_batch.get()) {
            let passes: Vec<LossAndGradient> = micro_batch.par_iter().map(sample_pass).collect();
            for pass in passes {
                sum += pass.loss;
                gradient.iter_mut().zip(&pass.gradient).for_each(|(sum, value)| *sum += value);
            }
        }
        LossAndGradient { loss: sum, gradient }
    }
}
