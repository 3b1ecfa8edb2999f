//! Layout of the frozen weights and of the adapter's copies in device memory. All are in one buffer, so that
//! one checksum covers them. Knows no computation except the checksum.
//!
//! Projections with the same input form one matrix `[W | B]`: their weights are stacked vertically, and to
//! the right is a block of columns for each projection with LoRA. With the input `[X | scale X A^T]`, a
//! single product computes the projections and their LoRA parts.

use crate::device::DeviceError;
use crate::device::cuda::{CudaDevice, DeviceBuffer, ElementType, MatrixView};
use crate::model::base::BaseModel;
use crate::model::config::ModelConfig;
use crate::model::lora::{AdapterLayout, LoraSlot};
use crate::state::Projection;

/// Sections begin at multiples of this number of elements.
const SECTION_ALIGNMENT: usize = 128;
/// The number of LoRA columns is rounded up to a multiple of this, so that rows begin at multiples of 16
/// bytes.
const LORA_COLUMN_ALIGNMENT: usize = 8;

/// Groups of projections that share their input.
pub(super) const PROJECTION_GROUPS: [&[Projection]; 4] = [
    &[Projection::QProj, Projection::KProj, Projection::VProj],
    &[Projection::OProj],
    &[Projection::GateProj, Projection::UpProj],
    &[Projection::DownProj],
];

/// A projection of a group that has LoRA matrices.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoraProjection {
    pub(super) slot: LoraSlot,
    /// The projection's first row among the group's outputs.
    pub(super) first_row: usize,
    /// The projection's first column among the group's LoRA columns.
    pub(super) first_column: usize,
}

/// Layout of a group of projections.
#[derive(Debug, Clone)]
pub(super) struct ProjectionGroup {
    projections: &'static [Projection],
    /// Start of `[W | B]`.
    offset: usize,
    /// Start of the stacked copies of A, `[lora_columns, inputs]`.
    a_offset: usize,
    /// Elements of an input row.
    pub(super) inputs: usize,
    /// Elements of an output row, of all projections together.
    pub(super) outputs: usize,
    /// Number of LoRA columns; 0 if no projection of the group has LoRA matrices.
    pub(super) lora_columns: usize,
    /// The projections with LoRA matrices.
    pub(super) lora_projections: Vec<LoraProjection>,
}

/// Layout of one layer, in elements from the buffer's start.
#[derive(Debug, Clone)]
pub(super) struct LayerLayout {
    pub(super) input_norm: usize,
    pub(super) post_norm: usize,
    /// In the order of [`PROJECTION_GROUPS`].
    pub(super) groups: [ProjectionGroup; 4],
}

/// Layout of the whole model, in elements from the buffer's start.
#[derive(Debug, Clone)]
pub(super) struct FrozenLayout {
    pub(super) embedding: usize,
    pub(super) layers: Vec<LayerLayout>,
    pub(super) norm: usize,
    pub(super) head: usize,
    len: usize,
}

/// Allocates aligned sections one after another.
struct SectionAllocator {
    next: usize,
}

impl SectionAllocator {
    /// Returns the start of a new section of `len` elements.
    fn allocate(&mut self, len: usize) -> usize {
        let start = self.next;
        self.next = (start + len).next_multiple_of(SECTION_ALIGNMENT);
        start
    }
}

impl ProjectionGroup {
    fn new(
        sections: &mut SectionAllocator,
        config: &ModelConfig,
        adapter: &AdapterLayout,
        layer: usize,
        projections: &'static [Projection],
    ) -> ProjectionGroup {
        let (mut outputs, mut first_column, mut inputs) = (0, 0, 0);
        let mut lora_projections = Vec::new();
        for projection in projections {
            let (rows, cols) = config.projection_shape(*projection);
            if let Some(slot) = adapter.slot(layer, *projection) {
                lora_projections.push(LoraProjection { slot, first_row: outputs, first_column });
                first_column += adapter.rank;
            }
            (outputs, inputs) = (outputs + rows, cols);
        }
        let lora_columns = first_column.next_multiple_of(LORA_COLUMN_ALIGNMENT);
        let offset = sections.allocate(outputs * (inputs + lora_columns));
        let a_offset = sections.allocate(lora_columns * inputs);
        ProjectionGroup { projections, offset, a_offset, inputs, outputs, lora_columns, lora_projections }
    }

    /// Number of columns of `[W | B]`.
    pub(super) fn width(&self) -> usize {
        self.inputs + self.lora_columns
    }

    /// The matrix `[W | B]`.
    pub(super) fn weight<'a>(&self, frozen: &'a DeviceBuffer) -> MatrixView<'a> {
        let (rows, cols) = (self.outputs, self.width());
        MatrixView::dense(frozen.view_range(self.offset, rows * cols), rows, cols)
    }

    /// The stacked copies of A, `[lora_columns, inputs]`.
    pub(super) fn lora_a<'a>(&self, frozen: &'a DeviceBuffer) -> MatrixView<'a> {
        MatrixView::dense(
            frozen.view_range(self.a_offset, self.lora_columns * self.inputs),
            self.lora_columns,
            self.inputs,
        )
    }
}

impl FrozenLayout {
    /// Allocates all sections.
    pub(super) fn new(config: &ModelConfig, adapter: &AdapterLayout) -> FrozenLayout {
        let mut sections = SectionAllocator { next: 0 };
        let embedding = sections.allocate(config.vocabulary * config.hidden);
        let layers = (0..config.layers)
            .map(|layer| LayerLayout {
                input_norm: sections.allocate(config.hidden),
                post_norm: sections.allocate(config.hidden),
                groups: PROJECTION_GROUPS
                    .map(|group| ProjectionGroup::new(&mut sections, config, adapter, layer, group)),
            })
            .collect();
        let norm = sections.allocate(config.hidden);
        let head = if config.tied_embeddings {
            embedding
        } else {
            sections.allocate(config.vocabulary * config.hidden)
        };
        FrozenLayout { embedding, layers, norm, head, len: sections.next }
    }

    /// Number of elements of the buffer.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Entries of `struct Block` in `kernels/memory.cu`: source and destination of each adapter matrix.
    pub(super) fn copy_table(&self, adapter: &AdapterLayout, frozen: &DeviceBuffer) -> Vec<u8> {
        let mut table = Vec::new();
        let mut push_entry = |from: usize, to: MatrixView<'_>| {
            table.extend((from as u64).to_ne_bytes());
            table.extend(to.view.address().to_ne_bytes());
            for size in [to.rows, to.cols, to.ld, 0] {
                table.extend((size as u32).to_ne_bytes());
            }
        };
        for group in self.layers.iter().flat_map(|layer| &layer.groups) {
            for LoraProjection { slot, first_row, first_column } in &group.lora_projections {
                push_entry(slot.offset, group.lora_a(frozen).row_range(*first_column, adapter.rank));
                let b_rows = group.weight(frozen).row_range(*first_row, slot.outputs);
                push_entry(
                    slot.offset + adapter.rank * slot.inputs,
                    b_rows.column_range(group.inputs + first_column, adapter.rank),
                );
            }
        }
        table
    }

    /// Uploads the base model, with zeros for the adapter's copies. Returns the checksum of the uploaded
    /// content.
    pub(super) fn upload(
        &self,
        device: &CudaDevice,
        frozen: &DeviceBuffer,
        base: &BaseModel,
    ) -> Result<u64, DeviceError> {
        let mut total = 0_u64;
        device.fill(frozen, 0)?;
        let mut upload_section = |offset: usize, values: &[f32]| {
            let bytes = to_device_bytes(values, frozen.element());
            total = total.wrapping_add(checksum(&bytes, offset * frozen.element().size_bytes() / 4));
            device.upload(frozen, offset, &bytes)
        };
        upload_section(self.embedding, &base.embedding)?;
        for (layout, layer) in self.layers.iter().zip(&base.layers) {
            upload_section(layout.input_norm, &layer.input_norm)?;
            upload_section(layout.post_norm, &layer.post_norm)?;
            for group in &layout.groups {
                let weights = group.projections.iter().map(|projection| layer.weight(*projection));
                upload_section(group.offset, &with_lora_columns(weights, group.inputs, group.lora_columns))?;
            }
        }
        upload_section(self.norm, &base.norm)?;
        if !base.config.tied_embeddings {
            upload_section(self.head, base.head())?;
        }
        Ok(total)
    }
}

/// Stacks matrices vertically and appends `lora_columns` columns of zeros.
fn with_lora_columns<'a>(
    weights: impl Iterator<Item = &'a [f32]>,
    inputs: usize,
    lora_columns: usize,
) -> Vec<f32> {
    let mut extended = Vec::new();
    for row in weights.flat_map(|weight| weight.chunks_exact(inputs)) {
        extended.extend_from_slice(row);
        extended.resize(extended.len() + lora_columns, 0.0);
    }
    extended
}

/// Converts values to the device's storage type.
pub(super) fn to_device_bytes(values: &[f32], element: ElementType) -> Vec<u8> {
    match element {
        ElementType::Bf16 => values.iter().flat_map(|value| to_bf16_bits(*value).to_ne_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_ne_bytes()).collect(),
    }
}

/// Rounds an f32 to bf16, to nearest even. NaN stays NaN.
fn to_bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return 0x7fff;
    }
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The checksum of `kernels/memory.cu`. `salt` is the number of words before these bytes.
fn checksum(bytes: &[u8], salt: usize) -> u64 {
    let word = |chunk: &[u8]| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from(u32::from_ne_bytes(word))
    };
    let factor = |index: usize| 2 * (index + salt) as u64 + 1;
    bytes
        .chunks(4)
        .enumerate()
        .fold(0, |sum, (index, chunk)| sum.wrapping_add(word(chunk).wrapping_mul(factor(index))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bit_that_flips_changes_the_checksum() {
        let bytes: Vec<u8> = (0..64).collect();
        for bit in 0..512 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(checksum(&changed, 7), checksum(&bytes, 7), "bit {bit}");
        }
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        for (value, bits) in [(1.0, 0x3f80), (1.003_906_3, 0x3f80), (1.011_718_8, 0x3f82), (-2.0, 0xc000)] {
            assert_eq!(to_bf16_bits(value), bits, "{value}");
        }
        assert!(f32::from_bits(u32::from(to_bf16_bits(f32::NAN)) << 16).is_nan());
    }
}
