//! Each kernel with what it takes, as `kernels/README.md` has it: grid, block, shared memory. Knows no model.
//!
//! Sizes are checked here where a wrong one would reach beyond a buffer; kernels check their own against the grid.

use super::context::Device;
use super::error::DeviceError;
use super::memory::{Element, View};
use super::sys::Launch;

/// Threads of a block for a row, and for sums over all of a buffer.
const ROW: u32 = 128;
const WIDE: u32 = 256;
/// Blocks of a pass over all of a buffer, at most; partial sums of a norm are as many.
pub const BLOCKS: u32 = 256;
/// What a thread is worth its barriers for: 16 bytes of a bf16 row, or a few elements of a whole buffer.
const EACH: usize = 8;
/// Rows of a tile of attention.
const TILE: usize = 64;

/// A matrix as it lies: `ld` elements from row to row.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    pub view: View<'a>,
    pub rows: usize,
    pub cols: usize,
    pub ld: usize,
}

impl<'a> Rows<'a> {
    /// Rows side by side.
    pub fn dense(view: View<'a>, rows: usize, cols: usize) -> Rows<'a> {
        Rows::with_ld(view, rows, cols, cols)
    }

    pub fn with_ld(view: View<'a>, rows: usize, cols: usize, ld: usize) -> Rows<'a> {
        let reach = if rows * cols == 0 { 0 } else { (rows - 1) * ld + cols };
        assert!(cols <= ld && reach <= view.len, "{rows} x {cols} (ld {ld}) in {} elements", view.len);
        Rows { view, rows, cols, ld }
    }

    /// Some of the columns.
    pub fn columns(self, from: usize, cols: usize) -> Rows<'a> {
        assert!(from + cols <= self.cols, "columns {from}.. of {}, {cols} of them", self.cols);
        Rows { view: self.view.after(from.min(self.view.len)), cols, ..self }
    }

    /// Some of the rows.
    pub fn rows(self, from: usize, rows: usize) -> Rows<'a> {
        assert!(from + rows <= self.rows, "rows {from}.. of {}, {rows} of them", self.rows);
        Rows { view: self.view.after(from * self.ld), rows, ..self }
    }
}

/// A parameter of a kernel, as its bits.
pub(super) struct Params(Vec<u64>);

impl Params {
    pub(super) fn new() -> Params {
        Params(Vec::with_capacity(20))
    }

    pub(super) fn values(&self) -> &[u64] {
        &self.0
    }

    pub(super) fn at(mut self, view: View<'_>) -> Params {
        self.0.push(view.at);
        self
    }

    fn null(mut self) -> Params {
        self.0.push(0);
        self
    }

    fn int(mut self, value: usize) -> Params {
        self.0.push(u64::from(
            u32::try_from(value)
                .ok()
                .filter(|v| *v <= i32::MAX as u32)
                .unwrap_or_else(|| panic!("{value} is too large for a kernel's int")),
        ));
        self
    }

    fn float(mut self, value: f32) -> Params {
        self.0.push(u64::from(value.to_bits()));
        self
    }

    fn long(mut self, value: u64) -> Params {
        self.0.push(value);
        self
    }

    /// Address and row stride.
    fn rows(self, rows: Rows<'_>) -> Params {
        self.at(rows.view).int(rows.ld)
    }
}

fn blocks(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn launch(grid: [usize; 3], block: u32, shared_bytes: usize) -> Launch {
    Launch { grid: grid.map(blocks), block, shared_bytes: blocks(shared_bytes) }
}

fn by_row(rows: usize, block: u32, shared_bytes: usize) -> Launch {
    launch([rows, 1, 1], block, shared_bytes)
}

/// A sum over each row, 4 bytes of shared memory for each thread: a power of two, and no more than find work in a row.
fn sum_by_row(rows: usize, cols: usize, most: u32) -> Launch {
    let threads = blocks(cols.div_ceil(EACH).next_power_of_two()).clamp(32, most);
    by_row(rows, threads, threads as usize * 4)
}

fn over_all(count: usize, shared_bytes: usize) -> Launch {
    launch([blocks_over(count), 1, 1], WIDE, shared_bytes)
}

/// No more than find work.
fn blocks_over(count: usize) -> usize {
    count.div_ceil(WIDE as usize * EACH).clamp(1, BLOCKS as usize)
}

/// Packed sequences and the heads of their attention.
#[derive(Debug, Clone, Copy)]
pub struct Packed<'a> {
    /// Ints: where each sequence begins, and where the last one ends.
    pub starts: View<'a>,
    pub sequences: usize,
    pub rows: usize,
    /// Tokens of the longest one.
    pub longest: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Use tensor cores where there is a kernel for this size of heads.
    pub tensor_cores: bool,
}

impl Packed<'_> {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// The kernel's name, and whether it is one for tensor cores.
    fn kernel(&self, name: &str, element: Element) -> (String, bool) {
        let fits =
            self.tensor_cores && element == Element::Bf16 && [16, 32, 64, 128].contains(&self.head_dim);
        match (fits, element) {
            (true, _) => (format!("{name}_bf16_d{}", self.head_dim), true),
            (false, Element::Bf16) => (format!("{name}_bf16"), false),
            (false, _) => (format!("{name}_f32"), false),
        }
    }

    fn grid(&self, heads: usize) -> [usize; 3] {
        [self.longest.div_ceil(TILE), heads, self.sequences]
    }

    fn sizes(&self, params: Params) -> Params {
        params
            .at(self.starts)
            .int(self.rows)
            .int(self.heads)
            .int(self.kv_heads)
            .int(self.head_dim)
            .float(self.scale())
    }

    /// Bytes of shared memory, by `kernels/README.md`.
    fn shared(&self, tensor: bool, plain: usize, extra: usize) -> usize {
        match tensor {
            true => 256 * (self.head_dim + 8) + extra,
            false => plain,
        }
    }
}

/// AdamW's numbers for one update.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    pub rate: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    pub decay: f32,
    pub clip_norm: f32,
    pub correction1: f32,
    pub correction2: f32,
}

fn typed(name: &'static str, element: Element) -> String {
    match element {
        Element::Bf16 => format!("{name}_bf16"),
        _ => format!("{name}_f32"),
    }
}

type Done = Result<(), DeviceError>;

impl Device {
    /// `x[row] = table[tokens[row]]`.
    pub fn embed(&self, x: Rows<'_>, table: View<'_>, tokens: View<'_>) -> Done {
        let params = Params::new().rows(x).at(table).at(tokens).int(x.rows).int(x.cols);
        self.launch(&typed("embed", x.view.element), by_row(x.rows, ROW, 0), params)
    }

    /// `y = x * inverse * weight`, and each row's inverse.
    pub fn rms_norm(&self, y: Rows<'_>, inverse: View<'_>, x: View<'_>, weight: View<'_>, eps: f32) -> Done {
        let params = Params::new().rows(y).at(inverse).at(x).at(weight).int(y.rows).int(y.cols).float(eps);
        self.launch(&typed("rms_norm", y.view.element), sum_by_row(y.rows, y.cols, ROW), params)
    }

    /// `dx = residual + ` the gradient through the norm; the residual may be `dx`.
    pub fn rms_norm_backward(
        &self,
        dx: View<'_>,
        residual: Option<View<'_>>,
        dy: Rows<'_>,
        x: View<'_>,
        weight: View<'_>,
        inverse: View<'_>,
    ) -> Done {
        let params = Params::new().at(dx);
        let params = match residual {
            Some(residual) => params.at(residual),
            None => params.null(),
        };
        let params = params.rows(dy).at(x).at(weight).at(inverse).int(dy.rows).int(dy.cols);
        let launch = sum_by_row(dy.rows, dy.cols, ROW);
        self.launch(&typed("rms_norm_backward", dx.element), launch, params)
    }

    /// In place on the first `heads` heads of each row. `table`: cosines, then sines, `[most, head_dim / 2]` each.
    pub fn rope(
        &self,
        x: Rows<'_>,
        table: View<'_>,
        positions: View<'_>,
        (heads, head_dim): (usize, usize),
        most: usize,
        back: bool,
    ) -> Done {
        let params = Params::new().rows(x).at(table).at(positions).int(x.rows).int(heads).int(head_dim);
        let params = params.int(most).float(if back { -1.0 } else { 1.0 });
        self.launch(&typed("rope", x.view.element), by_row(x.rows, ROW, 0), params)
    }

    /// Causal attention; `lse[heads, rows]`.
    pub fn attention(&self, out: Rows<'_>, lse: View<'_>, qkv: Rows<'_>, packed: &Packed<'_>) -> Done {
        let (name, tensor) = packed.kernel("attention", out.view.element);
        let shared = packed.shared(tensor, 16 * (packed.head_dim + 32), 0);
        let params = packed.sizes(Params::new().rows(out).at(lse).rows(qkv));
        self.launch(&name, launch(packed.grid(packed.heads), ROW, shared), params)
    }

    /// `delta[heads, rows]`: what the softmax's backward pass takes off.
    pub fn attention_delta(
        &self,
        delta: View<'_>,
        out: Rows<'_>,
        dout: Rows<'_>,
        packed: &Packed<'_>,
    ) -> Done {
        let params = Params::new().at(delta).rows(out).rows(dout);
        let params = params.int(packed.rows).int(packed.heads).int(packed.head_dim);
        let launch = launch([packed.rows, packed.heads, 1], 32, 0);
        self.launch(&typed("attention_delta", out.view.element), launch, params)
    }

    /// All of `dqkv`.
    pub fn attention_backward(
        &self,
        dqkv: Rows<'_>,
        qkv: Rows<'_>,
        dout: Rows<'_>,
        (lse, delta): (View<'_>, View<'_>),
        packed: &Packed<'_>,
    ) -> Done {
        let params = || packed.sizes(Params::new().rows(dqkv).rows(qkv).rows(dout).at(lse).at(delta));
        let d = packed.head_dim;
        let (name, tensor) = packed.kernel("attention_backward_q", qkv.view.element);
        let shared = packed.shared(tensor, 16 * (2 * d + 32), 0);
        self.launch(&name, launch(packed.grid(packed.heads), ROW, shared), params())?;
        let (name, tensor) = packed.kernel("attention_backward_kv", qkv.view.element);
        let shared = packed.shared(tensor, 16 * (2 * d + 64), 512);
        self.launch(&name, launch(packed.grid(packed.kv_heads), ROW, shared), params())
    }

    /// `gate_up[rows, 2 * width]`, gate first.
    pub fn swiglu(&self, out: Rows<'_>, gate_up: Rows<'_>) -> Done {
        let params = Params::new().rows(out).rows(gate_up).int(out.rows).int(out.cols);
        self.launch(&typed("swiglu", out.view.element), by_row(out.rows, ROW, 0), params)
    }

    pub fn swiglu_backward(&self, dgate_up: Rows<'_>, dout: Rows<'_>, gate_up: Rows<'_>) -> Done {
        let params = Params::new().rows(dgate_up).rows(dout).rows(gate_up).int(dout.rows).int(dout.cols);
        self.launch(&typed("swiglu_backward", dout.view.element), by_row(dout.rows, ROW, 0), params)
    }

    /// `out[i] = x[which[i]]`.
    pub fn gather_rows(&self, out: Rows<'_>, x: Rows<'_>, which: View<'_>) -> Done {
        let params = Params::new().rows(out).rows(x).at(which).int(out.rows).int(out.cols);
        self.launch(&typed("gather_rows", out.view.element), by_row(out.rows, ROW, 0), params)
    }

    /// `x[which[i]] = from[i]`; no row twice.
    pub fn scatter_rows(&self, x: Rows<'_>, from: Rows<'_>, which: View<'_>) -> Done {
        let params = Params::new().rows(x).rows(from).at(which).int(from.rows).int(from.cols);
        self.launch(&typed("scatter_rows", x.view.element), by_row(from.rows, ROW, 0), params)
    }

    /// Logits become their gradient, `(softmax - onehot) * scales[row]`; each row's loss.
    pub fn cross_entropy(
        &self,
        logits: Rows<'_>,
        losses: View<'_>,
        targets: View<'_>,
        scales: View<'_>,
    ) -> Done {
        let params = Params::new().rows(logits).at(losses).at(targets).at(scales);
        let params = params.int(logits.rows).int(logits.cols);
        let launch = sum_by_row(logits.rows, logits.cols, WIDE);
        self.launch(&typed("cross_entropy", logits.view.element), launch, params)
    }

    /// `out[0] += sum(values * weights)`.
    pub fn weighted_sum(&self, out: View<'_>, values: View<'_>, weights: View<'_>, count: usize) -> Done {
        let params = Params::new().at(out).at(values).at(weights).int(count);
        self.launch("weighted_sum", launch([1, 1, 1], WIDE, WIDE as usize * 8), params)
    }

    /// `norm[0]`, and `flags[0] |= 1` where an element is not finite. `partial`: a double for each of [`BLOCKS`].
    pub fn norm(&self, norm: View<'_>, flags: View<'_>, partial: View<'_>, gradient: View<'_>) -> Done {
        assert!(
            partial.element == Element::Long && partial.len >= BLOCKS as usize,
            "a partial sum for each block"
        );
        let params = Params::new().at(partial).at(flags).at(gradient).long(gradient.len as u64);
        self.launch("square_sum", over_all(gradient.len, WIDE as usize * 8), params)?;
        let params = Params::new().at(norm).at(partial).int(blocks_over(gradient.len));
        self.launch("finish_norm", launch([1, 1, 1], WIDE, WIDE as usize * 8), params)
    }

    /// Parameters, first and second moments `from` into `to`; `flags[0] |= 2` where an updated parameter is not finite.
    pub fn adamw(
        &self,
        to: [View<'_>; 3],
        from: [View<'_>; 3],
        gradient: View<'_>,
        (flags, norm): (View<'_>, View<'_>),
        update: &Update,
    ) -> Done {
        let [p_out, m_out, v_out] = to;
        let [p, m, v] = from;
        assert!(
            [p_out, m_out, v_out, p, m, v].iter().all(|view| view.len >= gradient.len),
            "a list is too short"
        );
        let params =
            Params::new().at(p_out).at(m_out).at(v_out).at(flags).at(p).at(m).at(v).at(gradient).at(norm);
        let params = params.float(update.rate).float(update.beta1).float(update.beta2).float(update.epsilon);
        let params = params.float(update.decay).float(update.clip_norm);
        let params = params.float(update.correction1).float(update.correction2).long(gradient.len as u64);
        self.launch("adamw", over_all(gradient.len, 0), params)
    }

    /// Copies matrices out of `params` as a table of `count` of them says; `element` is theirs.
    pub fn spread(&self, element: Element, table: View<'_>, params: View<'_>, count: usize) -> Done {
        let launch = launch([count, 32, 1], ROW, 0);
        self.launch(&typed("spread", element), launch, Params::new().at(table).at(params))
    }

    /// `sum[0] += ` the checksum of so many words; `salt` is how many words came before.
    pub fn checksum(&self, sum: View<'_>, words: View<'_>, count: u64, salt: u64) -> Done {
        assert!(count * 4 <= (words.len * words.element.bytes()) as u64, "more words than there are");
        let params = Params::new().at(sum).at(words).long(count).long(salt);
        self.launch("checksum", over_all(count as usize, WIDE as usize * 8), params)
    }

    /// Rounds to nearest even.
    pub fn cast_bf16(&self, out: View<'_>, from: View<'_>) -> Done {
        assert!(out.len >= from.len, "the output is too short");
        let params = Params::new().at(out).at(from).long(from.len as u64);
        self.launch("cast_bf16", over_all(from.len, 0), params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "too large for a kernel's int")]
    fn a_size_beyond_an_int_is_not_cut_off() {
        let _ = Params::new().int(1 << 31);
    }
}
