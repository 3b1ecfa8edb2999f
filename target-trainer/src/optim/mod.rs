//! AdamW (Loshchilov and Hutter 2019) and clipping by the global norm (Pascanu et al. 2013). Pure functions
//! on flat lists. Knows no model.

use crate::state::Recipe;

/// First and second moments for a flat list of parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Decaying means of the gradients.
    pub first: Vec<f32>,
    /// Decaying means of the squared gradients.
    pub second: Vec<f32>,
}

/// Parameters and their moments.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamsAndMoments {
    /// The parameters.
    pub params: Vec<f32>,
    /// Their moments.
    pub moments: Moments,
}

impl Moments {
    /// Moments before the first update.
    pub fn zero(count: usize) -> Moments {
        Moments { first: vec![0.0; count], second: vec![0.0; count] }
    }
}

/// Returns the Euclidean norm, summed in double precision. It is not finite if an element is not.
pub fn gradient_norm(gradient: &[f32]) -> f32 {
    gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt() as f32
}

/// Returns the bias correction of a moment with decay `beta` after `t` updates: the moment is divided by it,
/// because it started at zero.
pub fn bias_correction(beta: f32, t: u64) -> f32 {
    1.0 - f64::from(beta).powf(t as f64) as f32
}

/// One update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateStep {
    /// Norm of the gradient.
    pub norm: f32,
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// Number of the update, counted from 1.
    pub t: u64,
}

/// Returns parameters and moments after an update. The inputs stay unchanged.
pub fn adamw(
    params: &[f32],
    moments: &Moments,
    gradient: &[f32],
    recipe: &Recipe,
    update: UpdateStep,
) -> ParamsAndMoments {
    let UpdateStep { norm, learning_rate, t } = update;
    let clip = if norm > recipe.clip_norm { recipe.clip_norm / norm } else { 1.0 };
    let (c1, c2) = (bias_correction(recipe.beta1, t), bias_correction(recipe.beta2, t));
    let mut updated = ParamsAndMoments { params: params.to_vec(), moments: moments.clone() };
    let ParamsAndMoments { params, moments: Moments { first, second } } = &mut updated;
    for (((p, m), v), g) in params.iter_mut().zip(first).zip(second).zip(gradient) {
        let g = g * clip;
        *m = recipe.beta1 * *m + (1.0 - recipe.beta1) * g;
        *v = recipe.beta2 * *v + (1.0 - recipe.beta2) * g * g;
        let step = (*m / c1) / ((*v / c2).sqrt() + recipe.epsilon);
        *p -= learning_rate * (step + recipe.weight_decay * *p);
    }
    updated
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_update(norm: f32) -> UpdateStep {
        UpdateStep { norm, learning_rate: 0.1, t: 1 }
    }

    #[test]
    fn the_first_step_moves_each_parameter_by_the_learning_rate() {
        let recipe = Recipe { clip_norm: 1e9, ..Recipe::default() };
        let updated = adamw(&[1.0, 1.0], &Moments::zero(2), &[3.0, -0.5], &recipe, first_update(3.1));
        assert!(
            (updated.params[0] - 0.9).abs() < 1e-5 && (updated.params[1] - 1.1).abs() < 1e-5,
            "{updated:?}"
        );
    }

    #[test]
    fn a_gradient_above_the_clip_norm_is_scaled_down_before_the_moments() {
        let recipe = Recipe { clip_norm: 1.0, ..Recipe::default() };
        let updated =
            adamw(&[0.0], &Moments::zero(1), &[10.0], &recipe, first_update(gradient_norm(&[10.0])));
        assert!((updated.moments.first[0] - 0.1).abs() < 1e-6);
    }
}
