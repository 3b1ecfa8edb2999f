//! Each kernel but attention's against the CPU's function of the same name.

use target_trainer::device::cuda::{AdamWUpdate, DeviceBuffer, ElementType, MAX_BLOCKS};
use target_trainer::device::{
    Accumulate, Direction, Rope, TargetToken, cross_entropy, embed, matmul_nn, matmul_nt, matmul_tn,
    rms_norm, rms_norm_backward, swiglu, swiglu_backward,
};
use target_trainer::optim::{Moments, adamw, gradient_norm};
use target_trainer::train::Recipe;

use crate::TestCase;
use crate::test_device::{PaddedMatrix, TestDevice, TestRandom, for_both_types};

pub(crate) const TESTS: &[TestCase] = &[
    ("embedding_is_the_cpus", embedding),
    ("rows_are_gathered_and_scattered", gather_and_scatter),
    ("rms_norm_is_the_cpus_forward_and_backward", norms),
    ("rope_is_the_cpus_both_ways", ropes),
    ("swiglu_is_the_cpus_forward_and_backward", swiglus),
    ("cross_entropy_is_the_cpus", losses),
    ("a_weighted_sum_is_added_to_what_was_there", weighted_sum),
    ("norm_and_update_are_those_of_adamw_on_the_cpu", updates),
    ("what_is_not_finite_is_flagged", flags),
    ("matrix_products_are_the_cpus_whichever_way_factors_are_read", products),
    ("matrices_of_the_adapter_are_spread", spread),
    ("a_cast_rounds_to_nearest_even", cast),
];

/// Rows and columns, ragged ones among them.
const SIZES: [(usize, usize); 5] = [(1, 1), (3, 7), (5, 64), (9, 130), (17, 72)];
/// Elements between rows, so that they begin at multiples of 16 bytes, or do not.
const ROOMS: [usize; 2] = [0, 3];

fn sizes(test: impl Fn(&TestDevice, usize, usize, usize)) {
    for_both_types(|rig| {
        SIZES.iter().for_each(|(rows, cols)| ROOMS.iter().for_each(|room| test(rig, *rows, *cols, *room)));
    });
}

fn embedding() {
    sizes(|rig, rows, cols, room| {
        let mut numbers = TestRandom::new(1);
        let table = rig.quantized(numbers.floats(11 * cols));
        let tokens: Vec<u32> = (0..rows).map(|_| numbers.below(11) as u32).collect();
        let mut expected = vec![0.0; rows * cols];
        embed(&mut expected, &table, &tokens, cols);
        let x = PaddedMatrix::output(rig, rows, cols, room);
        rig.device.embed(x.rows(), rig.upload(&table).view(), rig.upload_u32(&tokens).view()).unwrap();
        assert_eq!(x.download(rig), expected);
    });
}

fn gather_and_scatter() {
    sizes(|rig, rows, cols, room| {
        let mut numbers = TestRandom::new(2);
        let values = rig.quantized(numbers.floats(2 * rows * cols));
        // Every other row, from the last to the first: distinct and out of order.
        let which: Vec<u32> = (0..rows).rev().map(|row| 2 * row as u32).collect();
        let expected: Vec<f32> =
            which.iter().flat_map(|row| &values[*row as usize * cols..][..cols]).copied().collect();
        let (x, indices) = (PaddedMatrix::upload(rig, &values, 2 * rows, room), rig.upload_u32(&which));
        let out = PaddedMatrix::output(rig, rows, cols, 5);
        rig.device.gather_rows(out.rows(), x.rows(), indices.view()).unwrap();
        assert_eq!(out.download(rig), expected);
        let back = PaddedMatrix::output(rig, 2 * rows, cols, room);
        rig.device.scatter_rows(back.rows(), out.rows(), indices.view()).unwrap();
        for (row, found) in back.download(rig).chunks_exact(cols).enumerate() {
            match row % 2 {
                0 => assert_eq!(found, &values[row * cols..][..cols]),
                _ => assert!(found.iter().all(|value| value.is_nan())),
            }
        }
    });
}

fn norms() {
    sizes(|rig, rows, cols, room| {
        let mut numbers = TestRandom::new(3);
        let [x, dy, before] = [0; 3].map(|_| rig.quantized(numbers.floats(rows * cols)));
        let w = rig.quantized(numbers.floats(cols));
        let mut expected = vec![0.0; rows * cols];
        let inverse = rms_norm(&mut expected, &x, &w, 1e-5);
        let (y, found) =
            (PaddedMatrix::output(rig, rows, cols, room), rig.poisoned_buffer(ElementType::F32, rows));
        let (x_on, w_on) = (rig.upload(&x), rig.upload(&w));
        rig.device.rms_norm(y.rows(), found.view(), x_on.view(), w_on.view(), 1e-5).unwrap();
        rig.assert_near("rms_norm", &y.download(rig), &expected);
        rig.assert_near("inverse", &rig.download(&found), &inverse);
        for residual in [false, true] {
            let mut expected = if residual { before.clone() } else { vec![0.0; rows * cols] };
            rms_norm_backward(&mut expected, &dy, &x, &w, &inverse);
            let dx = if residual { rig.upload(&before) } else { rig.output_buffer(rows * cols) };
            let dy_on = PaddedMatrix::upload(rig, &dy, rows, room);
            let residual = residual.then(|| dx.view());
            rig.device
                .rms_norm_backward(dx.view(), residual, dy_on.rows(), x_on.view(), w_on.view(), found.view())
                .unwrap();
            rig.assert_near("rms_norm_backward", &rig.download(&dx), &expected);
        }
    });
}

fn ropes() {
    for_both_types(|rig| {
        for (tokens, heads, d) in [(1, 1, 2), (5, 3, 6), (70, 2, 16), (9, 2, 64)] {
            let x = rig.quantized(TestRandom::new(4).floats(tokens * heads * d));
            // A last head that is left as it is.
            let wide: Vec<f32> = x
                .chunks_exact(heads * d)
                .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0.25, d)))
                .collect();
            let positions = rig.upload_u32(&(0..tokens as u32).collect::<Vec<_>>());
            let angle =
                |at: usize| (at / (d / 2)) as f32 * 100f32.powf(-2.0 * (at % (d / 2)) as f32 / d as f32);
            let all = 0..tokens * d / 2;
            let table: Vec<f32> =
                all.clone().map(|at| angle(at).cos()).chain(all.map(|at| angle(at).sin())).collect();
            for (back, turn) in [(false, Direction::Forward), (true, Direction::Backward)] {
                let mut expected = x.clone();
                Rope::new(d, 100.0).rotate(&mut expected, heads, turn);
                let on = PaddedMatrix::upload(rig, &wide, tokens, 3);
                rig.device
                    .rope(
                        on.rows(),
                        rig.upload_f32(&table).view(),
                        positions.view(),
                        (heads, d),
                        tokens,
                        back,
                    )
                    .unwrap();
                let (mut turned, mut left) = (Vec::new(), Vec::new());
                for row in on.download(rig).chunks_exact((heads + 1) * d) {
                    turned.extend_from_slice(&row[..heads * d]);
                    left.extend_from_slice(&row[heads * d..]);
                }
                rig.assert_near("rope", &turned, &expected);
                assert!(left.iter().all(|value| *value == 0.25));
            }
        }
    });
}

fn swiglus() {
    sizes(|rig, rows, cols, room| {
        let mut numbers = TestRandom::new(5);
        let [gate, up, dout] = [0; 3].map(|_| rig.quantized(numbers.floats(rows * cols)));
        let beside = |a: &[f32], b: &[f32]| -> Vec<f32> {
            a.chunks_exact(cols).zip(b.chunks_exact(cols)).flat_map(|(a, b)| [a, b].concat()).collect()
        };
        let mut expected = vec![0.0; rows * cols];
        swiglu(&mut expected, &gate, &up);
        let gate_up = PaddedMatrix::upload(rig, &beside(&gate, &up), rows, room);
        let out = PaddedMatrix::output(rig, rows, cols, 1);
        rig.device.swiglu(out.rows(), gate_up.rows()).unwrap();
        rig.assert_near("swiglu", &out.download(rig), &expected);
        let (mut dgate, mut dup) = (vec![0.0; rows * cols], vec![0.0; rows * cols]);
        swiglu_backward(&mut dgate, &mut dup, &dout, &gate, &up);
        let dgate_up = PaddedMatrix::output(rig, rows, 2 * cols, room);
        let dout = PaddedMatrix::upload(rig, &dout, rows, room);
        rig.device.swiglu_backward(dgate_up.rows(), dout.rows(), gate_up.rows()).unwrap();
        rig.assert_near("swiglu_backward", &dgate_up.download(rig), &beside(&dgate, &dup));
    });
}

/// The CPU's function takes the head in; with the identity as head, its input is the logits.
fn losses() {
    for_both_types(|rig| {
        for (rows, vocabulary) in [(1, 2), (3, 7), (4, 264), (2, 300)] {
            let mut numbers = TestRandom::new(6);
            let logits: Vec<f32> =
                rig.quantized(numbers.floats(rows * vocabulary).iter().map(|x| 8.0 * x).collect());
            let tokens: Vec<u32> = (0..rows).map(|_| numbers.below(vocabulary) as u32).collect();
            let scales = numbers.floats(rows);
            let identity: Vec<f32> = (0..vocabulary * vocabulary)
                .map(|at| if at / vocabulary == at % vocabulary { 1.0 } else { 0.0 })
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
            let on = PaddedMatrix::upload(rig, &logits, rows, 2);
            let found = rig.poisoned_buffer(ElementType::F32, rows);
            rig.device
                .cross_entropy(
                    on.rows(),
                    found.view(),
                    rig.upload_u32(&tokens).view(),
                    rig.upload_f32(&scales).view(),
                )
                .unwrap();
            // Both are differences of nearly equal numbers where a token is likely; they are compared before they are taken.
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
            rig.assert_near("losses", &sums(&rig.download(&found)), &sums(&losses));
            rig.assert_near("gradient of the logits", &softmax(on.download(rig)), &softmax(gradient));
        }
    });
}

fn weighted_sum() {
    for_both_types(|rig| {
        for count in [1, 255, 1000] {
            let mut numbers = TestRandom::new(7);
            let (values, weights) = (numbers.floats(count), numbers.floats(count));
            let expected: f64 =
                1.0 + values.iter().zip(&weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let sum = rig.upload_f32(&[1.0]);
            let (values, weights) = (rig.upload_f32(&values), rig.upload_f32(&weights));
            rig.device.weighted_sum(sum.view(), values.view(), weights.view(), count).unwrap();
            assert!((f64::from(rig.download(&sum)[0]) - expected).abs() < 1e-5 * expected.abs().max(1.0));
        }
    });
}

fn updates() {
    let rig = TestDevice { device: crate::test_device::device(), element: ElementType::F32 };
    for count in [1, 1000, 70_001] {
        let mut numbers = TestRandom::new(8);
        let [params, first, gradient] = [0; 3].map(|_| numbers.floats(count));
        let second: Vec<f32> = numbers.floats(count).iter().map(|x| x * x).collect();
        let recipe = Recipe { clip_norm: 0.5, weight_decay: 0.1, ..Recipe::default() };
        let length = gradient_norm(&gradient);
        let moments = Moments { first: first.clone(), second: second.clone() };
        let expected = adamw(&params, &moments, &gradient, length, &recipe, 0.01, 3);
        let on = rig.upload_f32(&gradient);
        let (found, flags) = (rig.poisoned_buffer(ElementType::F32, 1), rig.upload_u32(&[0]));
        let partial = rig.poisoned_buffer(ElementType::Bits64, MAX_BLOCKS as usize);
        rig.device.gradient_norm(found.view(), flags.view(), partial.view(), on.view()).unwrap();
        rig.assert_near("norm", &rig.download(&found), &[length]);
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
        let from = [&params, &first, &second].map(|values| rig.upload_f32(values));
        let to = [0; 3].map(|_| rig.poisoned_buffer(ElementType::F32, count));
        rig.device
            .adamw(
                to.each_ref().map(DeviceBuffer::view),
                from.each_ref().map(DeviceBuffer::view),
                on.view(),
                (flags.view(), found.view()),
                &update,
            )
            .unwrap();
        let expected = [expected.params, expected.moments.first, expected.moments.second];
        to.iter()
            .zip(&expected)
            .for_each(|(found, expected)| rig.assert_near("adamw", &rig.download(found), expected));
        assert_eq!(rig.device.download(&flags).unwrap(), [0; 4]);
    }
}

fn flags() {
    let rig = TestDevice { device: crate::test_device::device(), element: ElementType::F32 };
    for (bad, at) in [(f32::NAN, 0), (f32::INFINITY, 4999), (f32::NEG_INFINITY, 2500)] {
        let mut gradient = vec![0.5; 5000];
        gradient[at] = bad;
        let on = rig.upload_f32(&gradient);
        let (norm, flags) = (rig.poisoned_buffer(ElementType::F32, 1), rig.upload_u32(&[0]));
        let partial = rig.poisoned_buffer(ElementType::Bits64, MAX_BLOCKS as usize);
        rig.device.gradient_norm(norm.view(), flags.view(), partial.view(), on.view()).unwrap();
        assert_eq!(rig.device.download(&flags).unwrap()[0], 1, "{bad} at {at}");
        assert!(!rig.download(&norm)[0].is_finite());
    }
}

fn products() {
    for_both_types(|rig| {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (17, 40, 33), (64, 24, 16)] {
            let mut numbers = TestRandom::new(9);
            let (a_values, b_values) =
                (&rig.quantized(numbers.floats(m * k)), &rig.quantized(numbers.floats(k * n)));
            let c = rig.quantized(numbers.floats(m * n));
            for which in 0..3 {
                let mut expected: Vec<f32> = c.iter().map(|c| 0.5 * c).collect();
                let multiply = [matmul_nn, matmul_nt, matmul_tn][which];
                multiply(&mut expected, a_values, b_values, (m, n, k), 2.0, Accumulate::Add);
                let (a_rows, b_rows) = (if which == 2 { k } else { m }, if which == 1 { n } else { k });
                let (a, b) = (
                    PaddedMatrix::upload(rig, a_values, a_rows, 3),
                    PaddedMatrix::upload(rig, b_values, b_rows, 8),
                );
                let a = if which == 2 { a.rows().transposed() } else { a.rows().as_stored() };
                let b = if which == 1 { b.rows().transposed() } else { b.rows().as_stored() };
                let c = PaddedMatrix::upload(rig, &c, m, 1);
                let d = PaddedMatrix::output(rig, m, n, 8);
                rig.device.gemm(d.rows(), a, b, Some(c.rows()), (2.0, 0.5)).unwrap();
                rig.assert_near("out of place", &d.download(rig), &expected);
                rig.device.gemm(c.rows(), a, b, None, (2.0, 0.5)).unwrap();
                rig.assert_near("in place", &c.download(rig), &expected);
                // What was there does not matter when nothing of it is asked for: it was not even a number.
                multiply(&mut expected, a_values, b_values, (m, n, k), 2.0, Accumulate::Replace);
                let fresh = PaddedMatrix::output(rig, m, n, 0);
                rig.device.gemm(fresh.rows(), a, b, None, (2.0, 0.0)).unwrap();
                rig.assert_near("afresh", &fresh.download(rig), &expected);
            }
        }
    });
}

fn spread() {
    for_both_types(|rig| {
        let params = TestRandom::new(10).floats(100);
        let on = rig.upload_f32(&params);
        let to = rig.output_buffer(200);
        let at = |element: usize| to.view_from(element).address();
        // Two matrices: [4, 5] from 10 on with rows of 9 elements, [3, 8] from 40 on, dense.
        let mut table = Vec::new();
        for (from, to, rows, cols, ld) in [(10_u64, at(3), 4_u32, 5_u32, 9_u32), (40, at(100), 3, 8, 8)] {
            table.extend([from as u32, (from >> 32) as u32, to as u32, (to >> 32) as u32, rows, cols, ld, 0]);
        }
        rig.device.copy_adapter_blocks(rig.element, rig.upload_u32(&table).view(), on.view(), 2).unwrap();
        let (found, held) = (rig.download(&to), rig.quantized(params));
        for row in 0..4 {
            assert_eq!(found[3 + row * 9..][..5], held[10 + row * 5..][..5]);
        }
        assert_eq!(found[100..124], held[40..64]);
        assert_eq!(found.iter().filter(|value| !value.is_nan()).count(), 44, "nothing else is written");
    });
}

fn cast() {
    let rig = TestDevice { device: crate::test_device::device(), element: ElementType::Bf16 };
    let values = TestRandom::new(11).floats(1001);
    let out = rig.output_buffer(1001);
    rig.device.cast_bf16(out.view(), rig.upload_f32(&values).view()).unwrap();
    assert_eq!(rig.download(&out), rig.quantized(values));
}
