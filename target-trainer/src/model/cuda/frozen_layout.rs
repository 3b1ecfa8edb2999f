//! Where the frozen weights and the copies of the adapter lie in device memory: all in one buffer, so that one checksum
//! covers them. Knows no arithmetic but the checksum's.
//!
//! Projections with the same input are one matrix, `[W | B]`: their weights one below the other, and right of them a block of
//! columns for each projection that carries LoRA. With inputs that are `[X | scale X A^T]`, one product does all of it.

use crate::device::DeviceError;
use crate::device::cuda::{CudaDevice, DeviceBuffer, ElementType, MatrixView};
use crate::model::base::BaseModel;
use crate::model::config::ModelConfig;
use crate::model::lora::{AdapterLayout, LoraSlot};
use crate::train::Projection;

/// Sections begin at multiples of so many elements.
const SECTION_ALIGNMENT: usize = 128;
/// Columns of LoRA are rounded up to this, so that rows begin at multiples of 16 bytes.
const LORA_COLUMN_ALIGNMENT: usize = 8;

/// Projections that share their input.
pub(super) const PROJECTION_GROUPS: [&[Projection]; 4] = [
    &[Projection::QProj, Projection::KProj, Projection::VProj],
    &[Projection::OProj],
    &[Projection::GateProj, Projection::UpProj],
    &[Projection::DownProj],
];

/// One of a group's projections that carries LoRA.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoraProjection {
    pub(super) slot: LoraSlot,
    /// Its first row among the group's outputs.
    pub(super) first_row: usize,
    /// Its first column among the group's columns of LoRA.
    pub(super) first_column: usize,
}

/// A group of projections.
#[derive(Debug, Clone)]
pub(super) struct ProjectionGroup {
    projections: &'static [Projection],
    offset: usize,
    /// Copies of A, one below the other, `[extra, inputs]`.
    a_offset: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Columns of LoRA; 0 where no projection carries it.
    pub(super) lora_columns: usize,
    pub(super) lora_projections: Vec<LoraProjection>,
}

/// A layer's sections.
#[derive(Debug, Clone)]
pub(super) struct LayerLayout {
    pub(super) input_norm: usize,
    pub(super) post_norm: usize,
    /// As of [`GROUPS`].
    pub(super) groups: [ProjectionGroup; 4],
}

/// All sections, in elements from the buffer's start.
#[derive(Debug, Clone)]
pub(super) struct FrozenLayout {
    pub(super) embedding: usize,
    pub(super) layers: Vec<LayerLayout>,
    pub(super) norm: usize,
    pub(super) head: usize,
    len: usize,
}

/// Hands out sections one after another.
struct SectionAllocator {
    next: usize,
}

impl SectionAllocator {
    fn allocate(&mut self, len: usize) -> usize {
        let at = self.next;
        self.next = (at + len).next_multiple_of(SECTION_ALIGNMENT);
        at
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
        let (mut outputs, mut column, mut inputs) = (0, 0, 0);
        let mut lora_projections = Vec::new();
        for projection in projections {
            let (rows, cols) = config.projection_shape(*projection);
            if let Some(slot) = adapter.slot(layer, *projection) {
                lora_projections.push(LoraProjection { slot, first_row: outputs, first_column: column });
                column += adapter.rank;
            }
            (outputs, inputs) = (outputs + rows, cols);
        }
        let lora_columns = column.next_multiple_of(LORA_COLUMN_ALIGNMENT);
        let offset = sections.allocate(outputs * (inputs + lora_columns));
        let a_offset = sections.allocate(lora_columns * inputs);
        ProjectionGroup { projections, offset, a_offset, inputs, outputs, lora_columns, lora_projections }
    }

    /// Columns of `[W | B]`.
    pub(super) fn width(&self) -> usize {
        self.inputs + self.lora_columns
    }

    /// `[W | B]`.
    pub(super) fn weight<'a>(&self, frozen: &'a DeviceBuffer) -> MatrixView<'a> {
        let (rows, cols) = (self.outputs, self.width());
        MatrixView::dense(frozen.view_range(self.offset, rows * cols), rows, cols)
    }

    /// `[extra, inputs]`.
    pub(super) fn lora_a<'a>(&self, frozen: &'a DeviceBuffer) -> MatrixView<'a> {
        MatrixView::dense(
            frozen.view_range(self.a_offset, self.lora_columns * self.inputs),
            self.lora_columns,
            self.inputs,
        )
    }
}

impl FrozenLayout {
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
        let head = match config.tied_embeddings {
            true => embedding,
            false => sections.allocate(config.vocabulary * config.hidden),
        };
        FrozenLayout { embedding, layers, norm, head, len: sections.next }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Rows of `kernels/memory.cu`'s table of blocks: where each matrix of the adapter is copied to.
    pub(super) fn copy_table(&self, adapter: &AdapterLayout, frozen: &DeviceBuffer) -> Vec<u8> {
        let mut table = Vec::new();
        let mut row = |from: usize, to: MatrixView<'_>| {
            table.extend((from as u64).to_ne_bytes());
            table.extend(to.view.address().to_ne_bytes());
            for number in [to.rows, to.cols, to.ld, 0] {
                table.extend((number as u32).to_ne_bytes());
            }
        };
        for group in self.layers.iter().flat_map(|layer| &layer.groups) {
            for LoraProjection { slot, first_row: from, first_column: column } in &group.lora_projections {
                row(slot.offset, group.lora_a(frozen).rows(*column, adapter.rank));
                let b = group.weight(frozen).rows(*from, slot.outputs);
                row(
                    slot.offset + adapter.rank * slot.inputs,
                    b.column_range(group.inputs + column, adapter.rank),
                );
            }
        }
        table
    }

    /// Uploads the base, with zeroes for the adapter; the checksum of what must be there then.
    pub(super) fn upload(
        &self,
        device: &CudaDevice,
        frozen: &DeviceBuffer,
        base: &BaseModel,
    ) -> Result<u64, DeviceError> {
        let mut sum = 0_u64;
        device.fill(frozen, 0)?;
        let mut put = |at: usize, values: &[f32]| {
            let bytes = to_device_bytes(values, frozen.element());
            sum = sum.wrapping_add(checksum(&bytes, at * frozen.element().size_bytes() / 4));
            device.upload(frozen, at, &bytes)
        };
        put(self.embedding, &base.embedding)?;
        for (place, layer) in self.layers.iter().zip(&base.layers) {
            put(place.input_norm, &layer.input_norm)?;
            put(place.post_norm, &layer.post_norm)?;
            for group in &place.groups {
                let weights = group.projections.iter().map(|projection| layer.weight(*projection));
                put(group.offset, &with_lora_columns(weights, group.inputs, group.lora_columns))?;
            }
        }
        put(self.norm, &base.norm)?;
        if !base.config.tied_embeddings {
            put(self.head, base.head())?;
        }
        Ok(sum)
    }
}

/// The matrices one below the other, with zeroes right of them.
fn with_lora_columns<'a>(weights: impl Iterator<Item = &'a [f32]>, inputs: usize, extra: usize) -> Vec<f32> {
    let mut wide = Vec::new();
    for row in weights.flat_map(|weight| weight.chunks_exact(inputs)) {
        wide.extend_from_slice(row);
        wide.resize(wide.len() + extra, 0.0);
    }
    wide
}

/// As the device stores it.
pub(super) fn to_device_bytes(values: &[f32], element: ElementType) -> Vec<u8> {
    match element {
        ElementType::Bf16 => values.iter().flat_map(|value| to_bf16_bits(*value).to_ne_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_ne_bytes()).collect(),
    }
}

/// bf16 of an f32, to nearest even; what is not a number stays so.
fn to_bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    match value.is_nan() {
        true => 0x7fff,
        false => (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16,
    }
}

/// As `kernels/memory.cu` sums it; `salt` words came before.
fn checksum(bytes: &[u8], salt: usize) -> u64 {
    let word = |chunk: &[u8]| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from(u32::from_ne_bytes(word))
    };
    let place = |index: usize| 2 * (index + salt) as u64 + 1;
    bytes
        .chunks(4)
        .enumerate()
        .fold(0, |sum, (index, chunk)| sum.wrapping_add(word(chunk).wrapping_mul(place(index))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bit_that_flips_changes_the_checksum() {
        let bytes: Vec<u8> = (0..64).collect();
        for bit in 0..512 {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(checksum(&other, 7), checksum(&bytes, 7), "bit {bit}");
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
