//! Compares the attention kernels for packed sequences with the CPU, sequence by sequence: the plain kernels
//! and the tensor-core kernels.

use target_trainer::device::cuda::{AttentionSums, ElementType, PackedSequences};
use target_trainer::device::{
    AttentionGradients, AttentionInputs, AttentionShape, attention, attention_backward,
};

use crate::test_device::{PaddedMatrix, TestDevice, TestRandom, for_both_types};
use libtest_mimic::Trial;

/// The trials of this file. `missing` is why this machine cannot run them.
pub(crate) fn trials(missing: Option<String>) -> Vec<Trial> {
    trials![
        missing;
        attention_matches_the_cpu_forward_and_backward,
        attention_on_tensor_cores_matches_the_cpu_forward_and_backward,
    ]
}

/// Sequences shorter than, longer than and equal to a tile of 64 rows.
const LENGTHS: [&[usize]; 3] = [&[1], &[5, 1, 70], &[64, 129, 3]];

fn attention_matches_the_cpu_forward_and_backward() {
    for_both_types(|gpu| {
        for d in [2, 16, 24, 40] {
            LENGTHS.iter().for_each(|lengths| check(gpu, lengths, (4, 2, d), false));
        }
        check(gpu, &[7, 20], (3, 3, 256), false);
    });
}

fn attention_on_tensor_cores_matches_the_cpu_forward_and_backward() {
    let gpu = TestDevice { device: crate::test_device::device(), element: ElementType::Bf16 };
    for d in [16, 32, 64, 128] {
        LENGTHS.iter().for_each(|lengths| check(&gpu, lengths, (4, 2, d), true));
        check(&gpu, &[30, 66], (2, 2, d), true);
        check(&gpu, &[33], (3, 1, d), true);
    }
}

/// The columns `from` to `from + cols` of each row of `qkv`.
fn columns(qkv: &[f32], width: usize, from: usize, cols: usize) -> Vec<f32> {
    qkv.chunks_exact(width).flat_map(|row| &row[from..from + cols]).copied().collect()
}

/// Results of the CPU.
struct ExpectedAttention {
    out: Vec<f32>,
    dqkv: Vec<f32>,
}

/// Computes each sequence on the CPU.
fn expected_attention(
    qkv: &[f32],
    dout: &[f32],
    lengths: &[usize],
    (heads, kv_heads, d): (usize, usize, usize),
) -> ExpectedAttention {
    let (q_cols, kv_cols) = (heads * d, kv_heads * d);
    let width = q_cols + 2 * kv_cols;
    let mut expected = ExpectedAttention { out: Vec::new(), dqkv: Vec::new() };
    let mut start = 0;
    for length in lengths {
        let rows = &qkv[start * width..][..length * width];
        let (q, k) = (columns(rows, width, 0, q_cols), columns(rows, width, q_cols, kv_cols));
        let v = columns(rows, width, q_cols + kv_cols, kv_cols);
        let shape = AttentionShape { tokens: *length, heads, kv_heads, head_dim: d };
        let mut out = vec![0.0; q.len()];
        let inputs = AttentionInputs { q: &q, k: &k, v: &v };
        let p = attention(&mut out, inputs, shape);
        let dout = &dout[start * q_cols..][..length * q_cols];
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let gradients = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        attention_backward(gradients, dout, inputs, &p, shape);
        expected.out.extend(out);
        for row in 0..*length {
            expected.dqkv.extend(&dq[row * q_cols..][..q_cols]);
            expected.dqkv.extend(&dk[row * kv_cols..][..kv_cols]);
            expected.dqkv.extend(&dv[row * kv_cols..][..kv_cols]);
        }
        start += length;
    }
    expected
}

/// Compares forward and backward pass with the CPU, with and without padding between rows.
fn check(
    gpu: &TestDevice,
    lengths: &[usize],
    (heads, kv_heads, d): (usize, usize, usize),
    tensor_cores: bool,
) {
    let rows: usize = lengths.iter().sum();
    let (q_cols, width) = (heads * d, (heads + 2 * kv_heads) * d);
    let mut random = TestRandom::new(20);
    let qkv = gpu.quantized(random.floats(rows * width));
    let dout = gpu.quantized(random.floats(rows * q_cols));
    let expected = expected_attention(&qkv, &dout, lengths, (heads, kv_heads, d));
    let ends = lengths.iter().scan(0, |end, length| {
        *end += *length as u32;
        Some(*end)
    });
    let starts = gpu.upload_u32(&std::iter::once(0).chain(ends).collect::<Vec<_>>());
    let longest = lengths.iter().copied().max().unwrap();
    let sequences = lengths.len();
    let packed = PackedSequences {
        starts: starts.view(),
        sequences,
        rows,
        longest,
        heads,
        kv_heads,
        head_dim: d,
        tensor_cores,
    };
    for padding in [0, 8, 3] {
        let qkv = PaddedMatrix::upload(gpu, &qkv, rows, padding);
        let out = PaddedMatrix::output(gpu, rows, q_cols, padding);
        let lse = gpu.poisoned_buffer(ElementType::F32, heads * rows);
        let delta = gpu.poisoned_buffer(ElementType::F32, heads * rows);
        gpu.device.attention(out.matrix(), lse.view(), qkv.matrix(), &packed).unwrap();
        let case = format!("{lengths:?}, heads of {d}, padding {padding}");
        gpu.assert_near(&format!("attention, {case}"), &out.download(gpu), &expected.out);
        let dout = PaddedMatrix::upload(gpu, &dout, rows, padding);
        gpu.device.attention_delta(delta.view(), out.matrix(), dout.matrix(), &packed).unwrap();
        let dqkv = PaddedMatrix::output(gpu, rows, width, padding);
        let sums = AttentionSums { lse: lse.view(), delta: delta.view() };
        gpu.device.attention_backward(dqkv.matrix(), qkv.matrix(), dout.matrix(), sums, &packed).unwrap();
        gpu.assert_near(&format!("gradients of attention, {case}"), &dqkv.download(gpu), &expected.dqkv);
    }
}
