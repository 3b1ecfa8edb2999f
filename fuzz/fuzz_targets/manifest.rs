//! Parses any bytes as the manifest and as the tensors of a checkpoint. They must never cause a panic, and
//! each decoded tensor must have as much data as its shape.
#![no_main]

use libfuzzer_sys::fuzz_target;
use target_trainer::store::{Manifest, decode};

fuzz_target!(|data: &[u8]| {
    let _ = Manifest::parse(data);
    if let Ok(tensors) = decode(data) {
        assert!(tensors.iter().all(|tensor| tensor.data.len() == tensor.shape.iter().product::<usize>()));
    }
});
