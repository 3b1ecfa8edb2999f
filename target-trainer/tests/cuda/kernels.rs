//! Compares each kernel, except attention, with the CPU function of the same name.

use target_trainer::device::cuda::{
    AdamWUpdate, DeviceBuffer, ElementType, GemmScales, MAX_BLOCKS, RopeShape, StepChecks,
};
use target_trainer::device::{
    Accumulate, Direction, MatmulSize, Rope, TargetToken, cross_entropy, embed, matmul_nn, matmul_nt,
    matmul_tn, rms_norm, rms_norm_backward, swiglu, swiglu_backward,
};
use target_trainer::optim::{Moments, UpdateStep, adamw, gradient_norm};
use target_trainer::state::Recipe;

use crate::test_device::{PaddedMatrix, TestDevice, TestRandom, for_both_types};
use libtest_mimic::Trial;

/// The trials of this file. `missing` is why this machine cannot run them.
pub(crate) fn trials(missing: Option<String>) -> Vec<Trial> {
    trials![
        missing;
        embedding_matches_the_cpu,
        rows_are_gathered_and_scattered,
        rms_norm_matches_the_cpu_forward_and_backward,
        rope_matches_the_cpu_in_both_directions,
        swiglu_matches_the_cpu_forward_and_backward,
        cross_entropy_matches_the_cpu,
        weighted_sum_is_added_to_the_output,
        gradient_norm_and_adamw_match_the_cpu,
        values_that_are_not_finite_set_a_flag,
        matrix_products_match_the_cpu_for_all_orientations,
        adapter_matrices_are_copied_by_the_table,
        a_cast_rounds_to_nearest_even,
    ]
}

/// Rows and columns, including sizes that are not multiples of a vector.
const SIZES: [(usize, usize); 5] = [(1, 1), (3, 7), (5, 64), (9, 130), (17, 72)];
/// Elements of padding between rows: rows begin at multiples of 16 bytes, or do not.
const PADDINGS: [usize; 2] = [0, 3];

/// Runs the test for all sizes, paddings and element types.
fn sizes(test: impl Fn(&TestDevice, usize, usize, usize)) {
    for_both_types(|gpu| {
        SIZES
            .iter()
            .for_each(|(rows, cols)| PADDINGS.iter().for_each(|padding| test(gpu, *rows, *cols, *padding)));
    });
}

fn embedding_matches_the_cpu() {
    sizes(|gpu, rows, cols, padding| {
        let mut random = TestRandom::new(1);
        let table = gpu.quantized(random.floats(11 * cols));
        let tokens: Vec<u32> = (0..rows).map(|_| random.below(11) as u32).collect();
        let mut expected = vec![0.0; rows * cols];
        embed(&mut expected, &table, &tokens, cols);
        let x = PaddedMatrix::output(gpu, rows, cols, padding);
        gpu.device.embed(x.matrix(), gpu.upload(&table).view(), gpu.upload_u32(&tokens).view()).unwrap();
        assert_eq!(x.download(gpu), expected);
    });
}

fn rows_are_gathered_and_scattered() {
    sizes(|gpu, rows, cols, padding| {
        let mut random = TestRandom::new(2);
        let values = gpu.quantized(random.floats(2 * rows * cols));
        // Every second row, from the last to the first: distinct and out of order.
        let rows_to_gather: Vec<u32> = (0..rows).rev().map(|row| 2 * row as u32).collect();
        let expected: Vec<f32> =
            rows_to_gather.iter().flat_map(|row| &values[*row as usize * cols..][..cols]).copied().collect();
        let (x, indices) =
            (PaddedMatrix::upload(gpu, &values, 2 * rows, padding), gpu.upload_u32(&rows_to_gather));
        let out = PaddedMatrix::output(gpu, rows, cols, 5);
        gpu.device.gather_rows(out.matrix(), x.matrix(), indices.view()).unwrap();
        assert_eq!(out.download(gpu), expected);
        let scattered = PaddedMatrix::output(gpu, 2 * rows, cols, padding);
        gpu.device.scatter_rows(scattered.matrix(), out.matrix(), indices.view()).unwrap();
        for (row, found) in scattered.download(gpu).chunks_exact(cols).enumerate() {
            match row % 2 {
                0 => assert_eq!(found, &values[row * cols..][..cols]),
                _ => assert!(found.iter().all(|value| value.is_nan())),
            }
        }
    });
}

fn rms_norm_matches_the_cpu_forward_and_backward() {
    sizes(|gpu, rows, cols, padding| {
        let mut random = TestRandom::new(3);
        let [x, dy, initial_dx] = [0; 3].map(|_| gpu.quantized(random.floats(rows * cols)));
        let w = gpu.quantized(random.floats(cols));
        let mut expected = vec![0.0; rows * cols];
        let inverse = rms_norm(&mut expected, &x, &w, 1e-5);
        let (y, found_inverse) =
            (PaddedMatrix::output(gpu, rows, cols, padding), gpu.poisoned_buffer(ElementType::F32, rows));
        let (device_x, device_w) = (gpu.upload(&x), gpu.upload(&w));
        gpu.device
            .rms_norm(y.matrix(), found_inverse.view(), device_x.view(), device_w.view(), 1e-5)
            .unwrap();
        gpu.assert_near("rms_norm", &y.download(gpu), &expected);
        gpu.assert_near("inverse", &gpu.download(&found_inverse), &inverse);
        for residual in [false, true] {
            let mut expected = if residual { initial_dx.clone() } else { vec![0.0; rows * cols] };
            rms_norm_backward(&mut expected, &dy, &x, &w, &inverse);
            let dx = if residual { gpu.upload(&initial_dx) } else { gpu.output_buffer(rows * cols) };
            let device_dy = PaddedMatrix::upload(gpu, &dy, rows, padding);
            let residual = residual.then(|| dx.view());
            gpu.device
                .rms_norm_backward(
                    dx.view(),
                    residual,
                    device_dy.matrix(),
                    device_x.view(),
                    device_w.view(),
                    found_inverse.view(),
                )
                .unwrap();
            // Of one column, the two terms of the gradient differ by eps only.
            let scaled = |row: usize, col: usize| dy[row * cols + col] * w[col] * inverse[row];
            let terms: Vec<f32> = (0..rows * cols).map(|index| scaled(index / cols, index % cols)).collect();
            let found = gpu.download(&dx);
            gpu.assert_near_for_terms("rms_norm_backward", &found, &expected, &terms);
        }
    });
}

fn rope_matches_the_cpu_in_both_directions() {
    for_both_types(|gpu| {
        for (tokens, heads, d) in [(1, 1, 2), (5, 3, 6), (70, 2, 16), (9, 2, 64)] {
            let x = gpu.quantized(TestRandom::new(4).floats(tokens * heads * d));
            // The last head must stay unchanged.
            let with_extra_head: Vec<f32> = x
                .chunks_exact(heads * d)
                .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0.25, d)))
                .collect();
            let positions = gpu.upload_u32(&(0..tokens as u32).collect::<Vec<_>>());
            let angle = |index: usize| {
                (index / (d / 2)) as f32 * 100f32.powf(-2.0 * (index % (d / 2)) as f32 / d as f32)
            };
            let indices = 0..tokens * d / 2;
            let table: Vec<f32> = indices
                .clone()
                .map(|index| angle(index).cos())
                .chain(indices.map(|index| angle(index).sin()))
                .collect();
            for direction in [Direction::Forward, Direction::Backward] {
                let mut expected = x.clone();
                Rope::new(d, 100.0, tokens).rotate(&mut expected, heads, direction);
                let device_x = PaddedMatrix::upload(gpu, &with_extra_head, tokens, 3);
                gpu.device
                    .rope(
                        device_x.matrix(),
                        gpu.upload_f32(&table).view(),
                        positions.view(),
                        RopeShape { heads, head_dim: d, max_positions: tokens },
                        direction,
                    )
                    .unwrap();
                let (mut rotated, mut unchanged) = (Vec::new(), Vec::new());
                for row in device_x.download(gpu).chunks_exact((heads + 1) * d) {
                    rotated.extend_from_slice(&row[..heads * d]);
                    unchanged.extend_from_slice(&row[heads * d..]);
                }
                gpu.assert_near("rope", &rotated, &expected);
                assert!(unchanged.iter().all(|value| *value == 0.25));
            }
        }
    });
}

fn swiglu_matches_the_cpu_forward_and_backward() {
    sizes(|gpu, rows, cols, padding| {
        let mut random = TestRandom::new(5);
        let [gate, up, dout] = [0; 3].map(|_| gpu.quantized(random.floats(rows * cols)));
        let side_by_side = |a: &[f32], b: &[f32]| -> Vec<f32> {
            a.chunks_exact(cols).zip(b.chunks_exact(cols)).flat_map(|(a, b)| [a, b].concat()).collect()
        };
        let mut expected = vec![0.0; rows * cols];
        swiglu(&mut expected, &gate, &up);
        let gate_up = PaddedMatrix::upload(gpu, &side_by_side(&gate, &up), rows, padding);
        let out = PaddedMatrix::output(gpu, rows, cols, 1);
        gpu.device.swiglu(out.matrix(), gate_up.matrix()).unwrap();
        gpu.assert_near("swiglu", &out.download(gpu), &expected);
        let (mut dgate, mut dup) = (vec![0.0; rows * cols], vec![0.0; rows * cols]);
        swiglu_backward(&mut dgate, &mut dup, &dout, &gate, &up);
        let dgate_up = PaddedMatrix::output(gpu, rows, 2 * cols, padding);
        let dout = PaddedMatrix::upload(gpu, &dout, rows, padding);
        gpu.device.swiglu_backward(dgate_up.matrix(), dout.matrix(), gate_up.matrix()).unwrap();
        gpu.assert_near("swiglu_backward", &dgate_up.download(gpu), &side_by_side(&dgate, &dup));
    });
}

/// The CPU function includes the output head. With the identity as head, its input is the logits.
fn cross_entropy_matches_the_cpu() {
    for_both_types(|gpu| {
        for (rows, vocabulary) in [(1, 2), (3, 7), (4, 264), (2, 300)] {
            let mut random = TestRandom::new(6);
            let logits: Vec<f32> =
                gpu.quantized(random.floats(rows * vocabulary).iter().map(|x| 8.0 * x).collect());
            let tokens: Vec<u32> = (0..rows).map(|_| random.below(vocabulary) as u32).collect();
            let scales = random.floats(rows);
            let identity: Vec<f32> = (0..vocabulary * vocabulary)
                .map(|index| if index / vocabulary == index % vocabulary { 1.0 } else { 0.0 })
                .collect();
            let (mut losses, mut gradient) = (Vec::new(), vec![0.0; rows * vocabulary]);
            for (row, token) in tokens.iter().enumerate() {
                let targets = [TargetToken { row, token: *token }];
                losses.push(cross_entropy(
                    &mut gradient,
                    &logits,
                    &identity,
                    &targets,
                    vocabulary,
                    scales[row],
                ));
            }
            let device_logits = PaddedMatrix::upload(gpu, &logits, rows, 2);
            let found_losses = gpu.poisoned_buffer(ElementType::F32, rows);
            gpu.device
                .cross_entropy(
                    device_logits.matrix(),
                    found_losses.view(),
                    gpu.upload_u32(&tokens).view(),
                    gpu.upload_f32(&scales).view(),
                )
                .unwrap();
            // Loss and gradient are differences of nearly equal numbers if a token is likely. The terms
            // before the subtraction are compared instead.
            let sums = |losses: &[f32]| -> Vec<f32> {
                let logit = |row: usize| logits[row * vocabulary + tokens[row] as usize];
                losses.iter().enumerate().map(|(row, loss)| loss + logit(row)).collect()
            };
            let softmax = |mut gradient: Vec<f32>| {
                for (row, token) in tokens.iter().enumerate() {
                    gradient[row * vocabulary + *token as usize] += scales[row];
                }
                gradient
            };
            gpu.assert_near("losses", &sums(&gpu.download(&found_losses)), &sums(&losses));
            gpu.assert_near(
                "gradient of the logits",
                &softmax(device_logits.download(gpu)),
                &softmax(gradient),
            );
        }
    });
}

fn weighted_sum_is_added_to_the_output() {
    for_both_types(|gpu| {
        for count in [1, 255, 1000] {
            let mut random = TestRandom::new(7);
            let (values, weights) = (random.floats(count), random.floats(count));
            let expected: f64 =
                1.0 + values.iter().zip(&weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let sum = gpu.upload_f32(&[1.0]);
            let (values, weights) = (gpu.upload_f32(&values), gpu.upload_f32(&weights));
            gpu.device.weighted_sum(sum.view(), values.view(), weights.view(), count).unwrap();
            assert!((f64::from(gpu.download(&sum)[0]) - expected).abs() < 1e-5 * expected.abs().max(1.0));
        }
    });
}

fn gradient_norm_and_adamw_match_the_cpu() {
    let gpu = TestDevice { device: crate::test_device::device(), element: ElementType::F32 };
    for count in [1, 1000, 70_001] {
        let mut random = TestRandom::new(8);
        let [params, first, gradient] = [0; 3].map(|_| random.floats(count));
        let second: Vec<f32> = random.floats(count).iter().map(|x| x * x).collect();
        let recipe = Recipe { clip_norm: 0.5, weight_decay: 0.1, ..Recipe::default() };
        let norm = gradient_norm(&gradient);
        let moments = Moments { first: first.clone(), second: second.clone() };
        let expected =
            adamw(&params, &moments, &gradient, &recipe, UpdateStep { norm, learning_rate: 0.01, t: 3 });
        let device_gradient = gpu.upload_f32(&gradient);
        let (found_norm, flags) = (gpu.poisoned_buffer(ElementType::F32, 1), gpu.upload_u32(&[0]));
        let partial = gpu.poisoned_buffer(ElementType::Bits64, MAX_BLOCKS as usize);
        let checks = StepChecks { norm: found_norm.view(), flags: flags.view() };
        gpu.device.gradient_norm(checks, partial.view(), device_gradient.view()).unwrap();
        gpu.assert_near("norm", &gpu.download(&found_norm), &[norm]);
        let update = AdamWUpdate {
            learning_rate: 0.01,
            beta1: recipe.beta1,
            beta2: recipe.beta2,
            epsilon: recipe.epsilon,
            weight_decay: recipe.weight_decay,
            clip_norm: recipe.clip_norm,
            bias_correction1: target_trainer::optim::bias_correction(recipe.beta1, 3),
            bias_correction2: target_trainer::optim::bias_correction(recipe.beta2, 3),
        };
        let from = [&params, &first, &second].map(|values| gpu.upload_f32(values));
        let to = [0; 3].map(|_| gpu.poisoned_buffer(ElementType::F32, count));
        gpu.device
            .adamw(
                to.each_ref().map(DeviceBuffer::view),
                from.each_ref().map(DeviceBuffer::view),
                device_gradient.view(),
                checks,
                &update,
            )
            .unwrap();
        let expected = [expected.params, expected.moments.first, expected.moments.second];
        to.iter()
            .zip(&expected)
            .for_each(|(found, expected)| gpu.assert_near("adamw", &gpu.download(found), expected));
        assert_eq!(gpu.device.download(&flags).unwrap(), [0; 4]);
    }
}

fn values_that_are_not_finite_set_a_flag() {
    let gpu = TestDevice { device: crate::test_device::device(), element: ElementType::F32 };
    for (value, index) in [(f32::NAN, 0), (f32::INFINITY, 4999), (f32::NEG_INFINITY, 2500)] {
        let mut gradient = vec![0.5; 5000];
        gradient[index] = value;
        let device_gradient = gpu.upload_f32(&gradient);
        let (norm, flags) = (gpu.poisoned_buffer(ElementType::F32, 1), gpu.upload_u32(&[0]));
        let partial = gpu.poisoned_buffer(ElementType::Bits64, MAX_BLOCKS as usize);
        let checks = StepChecks { norm: norm.view(), flags: flags.view() };
        gpu.device.gradient_norm(checks, partial.view(), device_gradient.view()).unwrap();
        assert_eq!(gpu.device.download(&flags).unwrap()[0], 1, "{value} at {index}");
        assert!(!gpu.download(&norm)[0].is_finite());
    }
}

fn matrix_products_match_the_cpu_for_all_orientations() {
    for_both_types(|gpu| {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (17, 40, 33), (64, 24, 16)] {
            let mut random = TestRandom::new(9);
            let (a_values, b_values) =
                (&gpu.quantized(random.floats(m * k)), &gpu.quantized(random.floats(k * n)));
            let c = gpu.quantized(random.floats(m * n));
            for variant in 0..3 {
                let mut expected: Vec<f32> = c.iter().map(|c| 0.5 * c).collect();
                let multiply = [matmul_nn, matmul_nt, matmul_tn][variant];
                multiply(&mut expected, a_values, b_values, MatmulSize { m, n, k }, 2.0, Accumulate::Add);
                let (a_rows, b_rows) = (if variant == 2 { k } else { m }, if variant == 1 { n } else { k });
                let (a, b) = (
                    PaddedMatrix::upload(gpu, a_values, a_rows, 3),
                    PaddedMatrix::upload(gpu, b_values, b_rows, 8),
                );
                let a = if variant == 2 { a.matrix().transposed() } else { a.matrix().as_stored() };
                let b = if variant == 1 { b.matrix().transposed() } else { b.matrix().as_stored() };
                let c = PaddedMatrix::upload(gpu, &c, m, 1);
                let d = PaddedMatrix::output(gpu, m, n, 8);
                gpu.device
                    .gemm(d.matrix(), a, b, Some(c.matrix()), GemmScales { alpha: 2.0, beta: 0.5 })
                    .unwrap();
                gpu.assert_near("out of place", &d.download(gpu), &expected);
                gpu.device.gemm(c.matrix(), a, b, None, GemmScales { alpha: 2.0, beta: 0.5 }).unwrap();
                gpu.assert_near("in place", &c.download(gpu), &expected);
                // With beta = 0 the content of the output must not matter, even if it is NaN.
                multiply(&mut expected, a_values, b_values, MatmulSize { m, n, k }, 2.0, Accumulate::Replace);
                let output = PaddedMatrix::output(gpu, m, n, 0);
                gpu.device.gemm(output.matrix(), a, b, None, GemmScales { alpha: 2.0, beta: 0.0 }).unwrap();
                gpu.assert_near("beta = 0", &output.download(gpu), &expected);
            }
        }
    });
}

fn adapter_matrices_are_copied_by_the_table() {
    for_both_types(|gpu| {
        let params = TestRandom::new(10).floats(100);
        let device_params = gpu.upload_f32(&params);
        let output = gpu.output_buffer(200);
        let address = |index: usize| output.view_from(index).address();
        // Two matrices: [4, 5] from parameter 10 with 9 elements from row to row, [3, 8] from parameter 40,
        // dense.
        let mut table = Vec::new();
        for (from, to, rows, cols, ld) in
            [(10_u64, address(3), 4_u32, 5_u32, 9_u32), (40, address(100), 3, 8, 8)]
        {
            table.extend([from as u32, (from >> 32) as u32, to as u32, (to >> 32) as u32, rows, cols, ld, 0]);
        }
        gpu.device
            .copy_adapter_blocks(gpu.element, gpu.upload_u32(&table).view(), device_params.view(), 2)
            .unwrap();
        let (found, expected) = (gpu.download(&output), gpu.quantized(params));
        for row in 0..4 {
            assert_eq!(found[3 + row * 9..][..5], expected[10 + row * 5..][..5]);
        }
        assert_eq!(found[100..124], expected[40..64]);
        assert_eq!(found.iter().filter(|value| !value.is_nan()).count(), 44, "only the copies are written");
    });
}

fn a_cast_rounds_to_nearest_even() {
    let gpu = TestDevice { device: crate::test_device::device(), element: ElementType::Bf16 };
    let values = TestRandom::new(11).floats(1001);
    let out = gpu.output_buffer(1001);
    gpu.device.cast_bf16(out.view(), gpu.upload_f32(&values).view()).unwrap();
    assert_eq!(gpu.download(&out), gpu.quantized(values));
}
