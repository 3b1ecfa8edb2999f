//! Places in a checkpoint's bytes at which its format changes its meaning: cut there, a reader may take it for whole. Pure.
//!
//! Sources: the safetensors format (`u64` length of a JSON header, then data); PKWARE's APPNOTE.TXT 4.3.12, the central
//! directory of a zip file, which is what `torch.save` writes.

/// No header of a safetensors file is longer.
const MAX_HEADER_BYTES: u64 = 100 << 20;
/// How an entry of a zip file's central directory begins.
const CENTRAL_ENTRY_MAGIC: &[u8] = b"PK\x01\x02";

/// Of a write at `offset` that begins with `head`, in bytes from its beginning.
pub(super) fn format_boundaries(offset: u64, head: &[u8]) -> Vec<u64> {
    let header = match head {
        [a, b, c, d, e, f, g, h, b'{', ..] if offset == 0 => {
            Some(u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]))
                .filter(|bytes| *bytes <= MAX_HEADER_BYTES)
        }
        _ => None,
    };
    let central = head.windows(CENTRAL_ENTRY_MAGIC.len()).position(|at| at == CENTRAL_ENTRY_MAGIC);
    let found = header.map(|bytes| 8 + bytes).into_iter().chain(central.map(|at| at as u64));
    found.filter(|at| *at > 0).collect()
}

/// The multiples of `unit`, in the file, next to each landmark: as bytes of a write of so many at `offset`.
pub(super) fn aligned_neighbors(landmarks: &[u64], unit: u64, offset: u64, bytes: u64) -> Vec<u64> {
    let around = landmarks.iter().flat_map(|at| {
        let at = offset + at;
        [at / unit * unit, at.next_multiple_of(unit)]
    });
    around.filter_map(|at| at.checked_sub(offset)).filter(|at| *at > 0 && *at < bytes).collect()
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
    fn cuts_lie_on_both_sides_and_within() {
        assert_eq!(aligned_neighbors(&[708], 512, 0, 5000), [512, 1024]);
        assert_eq!(aligned_neighbors(&[708], 4096, 0, 5000), [4096]);
        assert_eq!(aligned_neighbors(&[6], 512, 9000, 300), [216]);
    }
}
