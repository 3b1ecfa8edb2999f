//! Offsets at which one part of a checkpoint format ends and the next begins. A reader may accept a file that
//! is cut there. Pure.
//!
//! Sources: the safetensors format (`u64` length of a JSON header, then data); PKWARE's APPNOTE.TXT 4.3.12,
//! the central directory of a zip file, which is what `torch.save` writes.

/// A safetensors header is never longer than this.
const MAX_HEADER_BYTES: u64 = 100 << 20;
/// The signature of an entry of a zip file's central directory.
const CENTRAL_ENTRY_MAGIC: &[u8] = b"PK\x01\x02";

/// The format boundaries in a write at `offset` that begins with `head`, as offsets in the write.
pub(super) fn format_boundaries(offset: u64, head: &[u8]) -> Vec<u64> {
    let header = match head {
        [a, b, c, d, e, f, g, h, b'{', ..] if offset == 0 => {
            Some(u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]))
                .filter(|bytes| *bytes <= MAX_HEADER_BYTES)
        }
        _ => None,
    };
    let central = head.windows(CENTRAL_ENTRY_MAGIC.len()).position(|window| window == CENTRAL_ENTRY_MAGIC);
    let boundaries = header.map(|bytes| 8 + bytes).into_iter().chain(central.map(|offset| offset as u64));
    boundaries.filter(|boundary| *boundary > 0).collect()
}

/// The multiples of `unit`, as offsets in the file, before and after each boundary. Takes and returns offsets
/// in a write of `len_bytes` bytes at `offset`.
pub(crate) fn aligned_neighbors(boundaries: &[u64], unit: u64, offset: u64, len_bytes: u64) -> Vec<u64> {
    let neighbors = boundaries.iter().flat_map(|boundary| {
        let boundary = offset + boundary;
        [boundary / unit * unit, boundary.next_multiple_of(unit)]
    });
    neighbors
        .filter_map(|neighbor| neighbor.checked_sub(offset))
        .filter(|cut| *cut > 0 && *cut < len_bytes)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_safetensors_header_and_a_zip_directory_are_found() {
        let mut tensors = 700u64.to_le_bytes().to_vec();
        tensors.extend_from_slice(b"{\"a\":");
        assert_eq!(format_boundaries(0, &tensors), [708]);
        assert_eq!(format_boundaries(4096, &tensors), [0; 0]);
        assert_eq!(format_boundaries(9000, b"data..PK\x01\x02.."), [6]);
        assert_eq!(format_boundaries(0, b"neither"), [0; 0]);
        assert_eq!(format_boundaries(0, &[&u64::MAX.to_le_bytes()[..], b"{"].concat()), [0; 0]);
    }

    #[test]
    fn neighbors_are_on_both_sides_and_inside_the_write() {
        assert_eq!(aligned_neighbors(&[708], 512, 0, 5000), [512, 1024]);
        assert_eq!(aligned_neighbors(&[708], 4096, 0, 5000), [4096]);
        assert_eq!(aligned_neighbors(&[6], 512, 9000, 300), [216]);
    }
}
