//! Where the frozen weights and the copies of the adapter lie in device memory: all in one buffer, so that one checksum
//! covers them. Knows no arithmetic but the checksum's.
//!
//! Projections with the same input are one matrix, `[W | B]`: their weights one below the other, and right of them a block of
//! columns for each projection that carries LoRA. With inputs that are `[X | scale X A^T]`, one product does all of it.

use crate::device::DeviceError;
use crate::device::cuda::{Buffer, Device, Element, Rows};
use crate::model::base::Base;
use crate::model::config::Config;
use crate::model::lora::{Adapter, Slot};
use crate::train::Projection;

/// Sections begin at multiples of so many elements.
const ALIGNMENT: usize = 128;
/// Columns of LoRA are rounded up to this, so that rows begin at multiples of 16 bytes.
const COLUMNS: usize = 8;

/// Projections that share their input.
pub(super) const GROUPS: [&[Projection]; 4] = [
    &[Projection::QProj, Projection::KProj, Projection::VProj],
    &[Projection::OProj],
    &[Projection::GateProj, Projection::UpProj],
    &[Projection::DownProj],
];

/// One of a group's projections that carries LoRA.
#[derive(Debug, Clone, Copy)]
pub(super) struct Carrier {
    pub(super) slot: Slot,
    /// Its first row among the group's outputs.
    pub(super) from: usize,
    /// Its first column among the group's columns of LoRA.
    pub(super) column: usize,
}

/// A group of projections.
#[derive(Debug, Clone)]
pub(super) struct Group {
    projections: &'static [Projection],
    at: usize,
    /// Copies of A, one below the other, `[extra, inputs]`.
    a_at: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Columns of LoRA; 0 where no projection carries it.
    pub(super) extra: usize,
    pub(super) carriers: Vec<Carrier>,
}

/// A layer's sections.
#[derive(Debug, Clone)]
pub(super) struct LayerPlace {
    pub(super) input_norm: usize,
    pub(super) post_norm: usize,
    /// As of [`GROUPS`].
    pub(super) groups: [Group; 4],
}

/// All sections, in elements from the buffer's start.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub(super) embedding: usize,
    pub(super) layers: Vec<LayerPlace>,
    pub(super) norm: usize,
    pub(super) head: usize,
    len: usize,
}

/// Hands out sections one after another.
struct Sections {
    next: usize,
}

impl Sections {
    fn take(&mut self, len: usize) -> usize {
        let at = self.next;
        self.next = (at + len).next_multiple_of(ALIGNMENT);
        at
    }
}

impl Group {
    fn new(
        sections: &mut Sections,
        config: &Config,
        adapter: &Adapter,
        layer: usize,
        projections: &'static [Projection],
    ) -> Group {
        let (mut outputs, mut column, mut inputs) = (0, 0, 0);
        let mut carriers = Vec::new();
        for projection in projections {
            let (rows, cols) = config.shape(*projection);
            if let Some(slot) = adapter.slot(layer, *projection) {
                carriers.push(Carrier { slot, from: outputs, column });
                column += adapter.rank;
            }
            (outputs, inputs) = (outputs + rows, cols);
        }
        let extra = column.next_multiple_of(COLUMNS);
        let at = sections.take(outputs * (inputs + extra));
        let a_at = sections.take(extra * inputs);
        Group { projections, at, a_at, inputs, outputs, extra, carriers }
    }

    /// Columns of `[W | B]`.
    pub(super) fn width(&self) -> usize {
        self.inputs + self.extra
    }

    /// `[W | B]`.
    pub(super) fn weight<'a>(&self, frozen: &'a Buffer) -> Rows<'a> {
        let (rows, cols) = (self.outputs, self.width());
        Rows::dense(frozen.part(self.at, rows * cols), rows, cols)
    }

    /// `[extra, inputs]`.
    pub(super) fn a<'a>(&self, frozen: &'a Buffer) -> Rows<'a> {
        Rows::dense(frozen.part(self.a_at, self.extra * self.inputs), self.extra, self.inputs)
    }
}

impl Places {
    pub(super) fn new(config: &Config, adapter: &Adapter) -> Places {
        let mut sections = Sections { next: 0 };
        let embedding = sections.take(config.vocabulary * config.hidden);
        let layers = (0..config.layers)
            .map(|layer| LayerPlace {
                input_norm: sections.take(config.hidden),
                post_norm: sections.take(config.hidden),
                groups: GROUPS.map(|group| Group::new(&mut sections, config, adapter, layer, group)),
            })
            .collect();
        let norm = sections.take(config.hidden);
        let head = match config.tied {
            true => embedding,
            false => sections.take(config.vocabulary * config.hidden),
        };
        Places { embedding, layers, norm, head, len: sections.next }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Rows of `kernels/memory.cu`'s table of blocks: where each matrix of the adapter is copied to.
    pub(super) fn table(&self, adapter: &Adapter, frozen: &Buffer) -> Vec<u8> {
        let mut table = Vec::new();
        let mut row = |from: usize, to: Rows<'_>| {
            table.extend((from as u64).to_ne_bytes());
            table.extend(to.view.address().to_ne_bytes());
            for number in [to.rows, to.cols, to.ld, 0] {
                table.extend((number as u32).to_ne_bytes());
            }
        };
        for group in self.layers.iter().flat_map(|layer| &layer.groups) {
            for Carrier { slot, from, column } in &group.carriers {
                row(slot.at, group.a(frozen).rows(*column, adapter.rank));
                let b = group.weight(frozen).rows(*from, slot.outputs);
                row(slot.at + adapter.rank * slot.inputs, b.columns(group.inputs + column, adapter.rank));
            }
        }
        table
    }

    /// Uploads the base, with zeroes for the adapter; the checksum of what must be there then.
    pub(super) fn upload(&self, device: &Device, frozen: &Buffer, base: &Base) -> Result<u64, DeviceError> {
        let mut sum = 0_u64;
        device.fill(frozen, 0)?;
        let mut put = |at: usize, values: &[f32]| {
            let bytes = stored(values, frozen.element());
            sum = sum.wrapping_add(checksum(&bytes, at * frozen.element().bytes() / 4));
            device.upload(frozen, at, &bytes)
        };
        put(self.embedding, &base.embedding)?;
        for (place, layer) in self.layers.iter().zip(&base.layers) {
            put(place.input_norm, &layer.input_norm)?;
            put(place.post_norm, &layer.post_norm)?;
            for group in &place.groups {
                let weights = group.projections.iter().map(|projection| layer.weight(*projection));
                put(group.at, &widened(weights, group.inputs, group.extra))?;
            }
        }
        put(self.norm, &base.norm)?;
        if !base.config.tied {
            put(self.head, base.head())?;
        }
        Ok(sum)
    }
}

/// The matrices one below the other, with zeroes right of them.
fn widened<'a>(weights: impl Iterator<Item = &'a [f32]>, inputs: usize, extra: usize) -> Vec<f32> {
    let mut wide = Vec::new();
    for row in weights.flat_map(|weight| weight.chunks_exact(inputs)) {
        wide.extend_from_slice(row);
        wide.resize(wide.len() + extra, 0.0);
    }
    wide
}

/// As the device stores it.
pub(super) fn stored(values: &[f32], element: Element) -> Vec<u8> {
    match element {
        Element::Bf16 => values.iter().flat_map(|value| rounded(*value).to_ne_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_ne_bytes()).collect(),
    }
}

/// bf16 of an f32, to nearest even; what is not a number stays so.
fn rounded(value: f32) -> u16 {
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
            assert_eq!(rounded(value), bits, "{value}");
        }
        assert!(f32::from_bits(u32::from(rounded(f32::NAN)) << 16).is_nan());
    }
}
