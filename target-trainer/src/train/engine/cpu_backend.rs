//! Parameters, moments and their updates on the CPU: samples are done in parallel, their gradients summed in their order.

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::gpu_backend::StepOutcome;
use super::report::StepOptions;
use crate::model::{AdapterLayout, BaseModel, WeightedSample, sample_loss_and_gradient};
use crate::optim::{Moments, ParamsAndMoments, adamw, gradient_norm};
use crate::train::Recipe;

/// A model in training on the CPU.
pub(super) struct CpuBackend {
    current: ParamsAndMoments,
    next: Option<ParamsAndMoments>,
}

impl CpuBackend {
    pub(super) fn new(params: Vec<f32>) -> CpuBackend {
        let moments = Moments::zero(params.len());
        CpuBackend { current: ParamsAndMoments { params, moments }, next: None }
    }

    pub(super) fn params(&self) -> &[f32] {
        &self.current.params
    }

    /// Parameters, first and second moments.
    pub(super) fn state_vectors(&self) -> [Vec<f32>; 3] {
        let ParamsAndMoments { params, moments: Moments { first, second } } = &self.current;
        [params.clone(), first.clone(), second.clone()]
    }

    pub(super) fn load_state(&mut self, [params, first, second]: [Vec<f32>; 3]) {
        self.current = ParamsAndMoments { params, moments: Moments { first, second } };
        self.next = None;
    }

    /// One pass over the batch and the update that follows from it, which [`Host::apply`] takes up.
    pub(super) fn step(
        &mut self,
        net: (&BaseModel, &AdapterLayout),
        batch: &[WeightedSample<'_>],
        how: StepOptions,
        scale: f32,
        recipe: &Recipe,
        (rate, updates): (f32, u64),
    ) -> StepOutcome {
        let (loss, gradient) = self.forward_backward(net, batch, how, scale);
        let disagreed =
            how.recheck && !is_bit_equal(&(loss, &gradient), &self.forward_backward(net, batch, how, scale));
        let (loss, norm) = (loss * scale, gradient_norm(&gradient));
        let ParamsAndMoments { params, moments } = &self.current;
        let next = adamw(params, moments, &gradient, norm, recipe, rate, updates);
        let weights_are_finite = next.params.iter().all(|param| param.is_finite());
        self.next = Some(next);
        StepOutcome {
            loss,
            norm,
            gradient_is_finite: norm.is_finite(),
            weights_are_finite,
            results_differ: disagreed,
        }
    }

    /// Takes the last step's update up.
    pub(super) fn apply(&mut self) {
        if let Some(next) = self.next.take() {
            self.current = next;
        }
    }

    /// Sum of the losses, and `scale` times its gradient.
    fn forward_backward(
        &self,
        (base, adapter): (&BaseModel, &AdapterLayout),
        batch: &[WeightedSample<'_>],
        how: StepOptions,
        scale: f32,
    ) -> (f32, Vec<f32>) {
        let (mut sum, mut gradient) = (0.0, vec![0.0; adapter.param_count()]);
        let one = |(tokens, weight): &WeightedSample<'_>| {
            let (loss, gradient) =
                sample_loss_and_gradient(base, adapter, self.params(), tokens, scale * weight);
            (loss * weight, gradient)
        };
        for some in batch.chunks(how.micro_batch.get()) {
            let passes: Vec<(f32, Vec<f32>)> = some.par_iter().map(one).collect();
            for (loss, part) in passes {
                sum += loss;
                gradient.iter_mut().zip(&part).for_each(|(sum, one)| *sum += one);
            }
        }
        (sum, gradient)
    }
}

/// To the bit.
fn is_bit_equal((loss, gradient): &(f32, &Vec<f32>), other: &(f32, Vec<f32>)) -> bool {
    let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|value| value.to_bits()).collect() };
    loss.to_bits() == other.0.to_bits() && bits(gradient) == bits(&other.1)
}
