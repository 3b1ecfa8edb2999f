//! Reads any bytes as a data file. They must give samples, or an error with its line and column; never a
//! panic.
#![no_main]

use std::convert::Infallible;

use libfuzzer_sys::fuzz_target;
use target_trainer::intake::{ReadError, read_samples};
use target_trainer::settings::{Guards, Limits};

fuzz_target!(|data: &[u8]| {
    let limits = Limits { line_bytes: 4096, nesting: 16, ..Limits::default() };
    let mut copied = Vec::new();
    let read = read_samples::<Infallible>(data, &limits, &Guards::default(), |line| {
        copied.extend_from_slice(line);
        Ok(())
    });
    match read {
        // What was accepted is what was read, to the byte.
        Ok(samples) => assert!(!samples.is_empty() && copied == data),
        Err(ReadError::Data(error)) => assert!(error.line >= 1 && error.column >= 1),
        Err(ReadError::Input(error)) => unreachable!("bytes in memory can be read: {error}"),
        Err(ReadError::Sink(never)) => match never {},
    }
});
