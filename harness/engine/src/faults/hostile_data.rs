//! Valid and hostile data, written as streams where it is large, so that the harness needs little memory whatever
//! the size. Knows no fault.

use std::fs::File;
use std::io::{BufWriter, Error, Seek, SeekFrom, Write};
use std::path::Path;

use scenarios::{DataKind, FileEncoding};

/// Writes one file of the given kind. `salt` makes it differ from other files of the same kind.
pub(super) fn write(path: &Path, kind: &DataKind, salt: u64) -> Result<(), Error> {
    let mut out = BufWriter::new(File::create_new(path)?);
    match kind {
        DataKind::LongLine(size) => long_line(&mut out, size.0)?,
        kind => write_content(&mut out, kind, salt)?,
    }
    out.flush()
}

/// The content of a file of the given kind, encoded. A `long-line` is not written out: it has none.
pub(super) fn encoded(kind: &DataKind, encoding: Option<FileEncoding>, salt: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    write_content(&mut bytes, kind, salt)?;
    let Some(encoding) = encoding else { return Ok(bytes) };
    let text = || String::from_utf8_lossy(&bytes);
    Ok(match encoding {
        FileEncoding::Utf8Bom => [b"\xef\xbb\xbf", bytes.as_slice()].concat(),
        FileEncoding::Utf16Le => {
            [0xfeff].into_iter().chain(text().encode_utf16()).flat_map(u16::to_le_bytes).collect()
        }
        FileEncoding::Utf16Be => {
            [0xfeff].into_iter().chain(text().encode_utf16()).flat_map(u16::to_be_bytes).collect()
        }
        FileEncoding::Crlf => text().replace('\n', "\r\n").into_bytes(),
        FileEncoding::NoFinalNewline => bytes.strip_suffix(b"\n").unwrap_or(&bytes).to_vec(),
        FileEncoding::Cut => {
            let whole = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            let last = whole.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            whole[..last + (whole.len() - last) / 2].to_vec()
        }
    })
}

fn write_content(out: &mut impl Write, kind: &DataKind, salt: u64) -> Result<(), Error> {
    match kind {
        DataKind::Sound(samples) => valid_samples(out, *samples, salt),
        DataKind::NestedJson(depth) => nested(out, *depth, salt),
        DataKind::ExponentialJson(levels) => exponential(out, *levels),
        DataKind::LongNumber(digits) => long_number(out, *digits),
        DataKind::DuplicateKeys(keys) => duplicate_keys(out, *keys),
        DataKind::LongLine(_) => Ok(()),
        DataKind::Text(text) => out.write_all(text.as_bytes()),
        DataKind::Hex(bytes) => out.write_all(&bytes.0),
    }
}

fn valid_samples(out: &mut impl Write, samples: u32, salt: u64) -> Result<(), Error> {
    (0..samples).try_for_each(|n| writeln!(out, r#"{{"prompt":"{salt}.{n}=","completion":"{n}"}}"#))
}

fn nested(out: &mut impl Write, depth: u32, salt: u64) -> Result<(), Error> {
    write!(out, r#"{{"text":"{salt}","more":"#)?;
    (0..depth).try_for_each(|_| out.write_all(b"["))?;
    (0..depth).try_for_each(|_| out.write_all(b"]"))?;
    out.write_all(b"}\n")
}

/// Every level holds the level below twice, so that the output is exponential in the number of levels.
fn exponential(out: &mut impl Write, levels: u32) -> Result<(), Error> {
    out.write_all(br#"{"text":"#)?;
    nested_level(out, levels)?;
    out.write_all(b"}\n")
}

fn nested_level(out: &mut impl Write, levels: u32) -> Result<(), Error> {
    if levels == 0 {
        return out.write_all(b"0");
    }
    out.write_all(br#"{"a":"#)?;
    nested_level(out, levels - 1)?;
    out.write_all(br#","b":"#)?;
    nested_level(out, levels - 1)?;
    out.write_all(b"}")
}

fn long_number(out: &mut impl Write, digits: u32) -> Result<(), Error> {
    out.write_all(br#"{"text":"x","weight":"#)?;
    (0..digits).try_for_each(|_| out.write_all(b"9"))?;
    out.write_all(b"}\n")
}

fn duplicate_keys(out: &mut impl Write, keys: u32) -> Result<(), Error> {
    out.write_all(br#"{"text":"0""#)?;
    (1..keys).try_for_each(|n| write!(out, r#","text":"{n}""#))?;
    out.write_all(b"}\n")
}

/// One long string. Nearly all of it is a hole of a sparse file: many bytes to read, few to store.
fn long_line(out: &mut BufWriter<File>, size: u64) -> Result<(), Error> {
    out.write_all(br#"{"text":""#)?;
    out.seek(SeekFrom::Start(size.saturating_sub(3)))?;
    out.write_all(b"\"}\n")
}

#[cfg(test)]
mod tests {
    use scenarios::{DataKind, FileEncoding};

    use super::encoded;

    #[test]
    fn each_encoding_has_its_bytes() {
        let bytes = |encoding| encoded(&DataKind::Text("a\nbcde\n".into()), encoding, 0).unwrap_or_default();
        assert_eq!(bytes(None), b"a\nbcde\n");
        assert_eq!(bytes(Some(FileEncoding::Utf8Bom)), b"\xef\xbb\xbfa\nbcde\n");
        assert_eq!(bytes(Some(FileEncoding::Utf16Le))[..6], *b"\xff\xfea\0\n\0");
        assert_eq!(bytes(Some(FileEncoding::Utf16Be))[..6], *b"\xfe\xff\0a\0\n");
        assert_eq!(bytes(Some(FileEncoding::Crlf)), b"a\r\nbcde\r\n");
        assert_eq!(bytes(Some(FileEncoding::NoFinalNewline)), b"a\nbcde");
        assert_eq!(bytes(Some(FileEncoding::Cut)), b"a\nbc");
        assert_eq!(
            encoded(&DataKind::Text(String::new()), Some(FileEncoding::Cut), 0).unwrap_or_default(),
            b""
        );
    }
}
