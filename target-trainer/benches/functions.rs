//! Times single functions of the trainer: reading JSON lines, and the checksum of data and checkpoints
//! (BLAKE3). Run: `cargo bench -p target-trainer --bench functions`.

use std::convert::Infallible;
use std::fmt::Write;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use target_trainer::intake::{ContentId, read_samples};
use target_trainer::settings::{Guards, Limits};

/// About 1 MiB of samples, one JSON object a line.
fn json_lines() -> String {
    (0..10_000).fold(String::new(), |mut text, number| {
        let _ = writeln!(
            text,
            r#"{{"prompt": "What is {number} plus {}?", "completion": "It is {}, as everybody can tell."}}"#,
            number % 10,
            number + number % 10
        );
        text
    })
}

fn intake(criterion: &mut Criterion) {
    let text = json_lines();
    let (limits, guards) = (Limits::default(), Guards::default());
    let mut group = criterion.benchmark_group("intake");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("10,000 JSON lines", |bencher| {
        bencher.iter(|| read_samples::<Infallible>(text.as_bytes(), &limits, &guards, |_| Ok(())));
    });
    group.finish();
}

fn checksum(criterion: &mut Criterion) {
    let bytes = vec![0x5a_u8; 16 << 20];
    let mut group = criterion.benchmark_group("checksum");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("BLAKE3 of 16 MiB", |bencher| {
        bencher.iter(|| {
            let mut id = ContentId::default();
            id.update(&bytes);
            id.finish()
        });
    });
    // The limit: no checksum can be faster than reading the bytes once.
    group.bench_function("summing the same 16 MiB (the limit)", |bencher| {
        let word = |chunk: &[u8]| chunk.try_into().map_or(0, u64::from_le_bytes);
        bencher.iter(|| {
            std::hint::black_box(&bytes)
                .chunks_exact(8)
                .fold(0_u64, |sum, chunk| sum.wrapping_add(word(chunk)))
        });
    });
    group.finish();
}

criterion_group!(benches, intake, checksum);
criterion_main!(benches);
