//! Hostile data files, written as streams, so that the harness needs little memory whatever the size. Knows
//! no fault.

use std::fs::File;
use std::io::{BufWriter, Error, Seek, SeekFrom, Write};
use std::path::Path;

use scenarios::DataKind;

/// Writes one file of the given kind. `salt` makes it differ from other files of the same kind.
pub(super) fn write(path: &Path, kind: &DataKind, salt: u64) -> Result<(), Error> {
    let mut out = BufWriter::new(File::create_new(path)?);
    match kind {
        DataKind::Sound(samples) => valid_samples(&mut out, *samples, salt)?,
        DataKind::NestedJson(depth) => nested(&mut out, *depth, salt)?,
        DataKind::ExponentialJson(levels) => exponential(&mut out, *levels)?,
        DataKind::LongNumber(digits) => long_number(&mut out, *digits)?,
        DataKind::DuplicateKeys(keys) => duplicate_keys(&mut out, *keys)?,
        DataKind::LongLine(size) => long_line(&mut out, size.0)?,
    }
    out.flush()
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
