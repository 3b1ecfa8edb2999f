//! Attention of packed sequences against the CPU's, sequence by sequence: the plain kernels and those for tensor cores.

use target_trainer::device::cuda::{ElementType, PackedSequences};
use target_trainer::device::{AttentionGradients, AttentionShape, attention, attention_backward};

use crate::TestCase;
use crate::test_device::{PaddedMatrix, TestDevice, TestRandom, for_both_types};

pub(crate) const TESTS: &[TestCase] = &[
    ("attention_is_the_cpus_forward_and_backward", plain_kernels),
    ("attention_on_tensor_cores_is_the_cpus_forward_and_backward", tensor_cores),
];

/// Sequences shorter and longer than a tile of 64, and just as long.
const LENGTHS: [&[usize]; 3] = [&[1], &[5, 1, 70], &[64, 129, 3]];

fn plain_kernels() {
    for_both_types(|rig| {
        for d in [2, 16, 24, 40] {
            LENGTHS.iter().for_each(|lengths| check(rig, lengths, (4, 2, d), false));
        }
        check(rig, &[7, 20], (3, 3, 256), false);
    });
}

fn tensor_cores() {
    let rig = TestDevice { device: crate::test_device::device(), element: ElementType::Bf16 };
    for d in [16, 32, 64, 128] {
        LENGTHS.iter().for_each(|lengths| check(&rig, lengths, (4, 2, d), true));
        check(&rig, &[30, 66], (2, 2, d), true);
        check(&rig, &[33], (3, 1, d), true);
    }
}

/// Columns of rows of `qkv`.
fn columns(qkv: &[f32], width: usize, from: usize, cols: usize) -> Vec<f32> {
    qkv.chunks_exact(width).flat_map(|row| &row[from..from + cols]).copied().collect()
}

struct ExpectedAttention {
    out: Vec<f32>,
    dqkv: Vec<f32>,
}

fn expected_attention(
    qkv: &[f32],
    dout: &[f32],
    lengths: &[usize],
    (heads, kv_heads, d): (usize, usize, usize),
) -> ExpectedAttention {
    let (q_cols, kv_cols) = (heads * d, kv_heads * d);
    let width = q_cols + 2 * kv_cols;
    let mut all = ExpectedAttention { out: Vec::new(), dqkv: Vec::new() };
    let mut start = 0;
    for length in lengths {
        let rows = &qkv[start * width..][..length * width];
        let (q, k) = (columns(rows, width, 0, q_cols), columns(rows, width, q_cols, kv_cols));
        let v = columns(rows, width, q_cols + kv_cols, kv_cols);
        let shape = AttentionShape { tokens: *length, heads, kv_heads, head_dim: d };
        let mut out = vec![0.0; q.len()];
        let p = attention(&mut out, &q, &k, &v, shape);
        let dout = &dout[start * q_cols..][..length * q_cols];
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let gradients = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        attention_backward(gradients, dout, (&q, &k, &v), &p, shape);
        all.out.extend(out);
        for row in 0..*length {
            all.dqkv.extend(&dq[row * q_cols..][..q_cols]);
            all.dqkv.extend(&dk[row * kv_cols..][..kv_cols]);
            all.dqkv.extend(&dv[row * kv_cols..][..kv_cols]);
        }
        start += length;
    }
    all
}

fn check(
    rig: &TestDevice,
    lengths: &[usize],
    (heads, kv_heads, d): (usize, usize, usize),
    tensor_cores: bool,
) {
    let rows: usize = lengths.iter().sum();
    let (q_cols, width) = (heads * d, (heads + 2 * kv_heads) * d);
    let mut numbers = TestRandom::new(20);
    let qkv = rig.quantized(numbers.floats(rows * width));
    let dout = rig.quantized(numbers.floats(rows * q_cols));
    let expected = expected_attention(&qkv, &dout, lengths, (heads, kv_heads, d));
    let ends = lengths.iter().scan(0, |end, length| {
        *end += *length as u32;
        Some(*end)
    });
    let starts = rig.upload_u32(&std::iter::once(0).chain(ends).collect::<Vec<_>>());
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
    for room in [0, 8, 3] {
        let qkv = PaddedMatrix::upload(rig, &qkv, rows, room);
        let out = PaddedMatrix::output(rig, rows, q_cols, room);
        let lse = rig.poisoned_buffer(ElementType::F32, heads * rows);
        let delta = rig.poisoned_buffer(ElementType::F32, heads * rows);
        rig.device.attention(out.rows(), lse.view(), qkv.rows(), &packed).unwrap();
        let what = format!("{lengths:?}, heads of {d}, room {room}");
        rig.assert_near(&format!("attention, {what}"), &out.download(rig), &expected.out);
        let dout = PaddedMatrix::upload(rig, &dout, rows, room);
        rig.device.attention_delta(delta.view(), out.rows(), dout.rows(), &packed).unwrap();
        let dqkv = PaddedMatrix::output(rig, rows, width, room);
        let sums = (lse.view(), delta.view());
        rig.device.attention_backward(dqkv.rows(), qkv.rows(), dout.rows(), sums, &packed).unwrap();
        rig.assert_near(&format!("gradients of attention, {what}"), &dqkv.download(rig), &expected.dqkv);
    }
}
