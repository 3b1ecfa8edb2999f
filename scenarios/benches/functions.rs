//! Times parsing of scenario and target files. Run: `cargo bench -p scenarios`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use scenarios::{Scenario, TargetFile};

const SCENARIO: &str = include_str!("../library/filesystem/fs-06-disk-full.yaml");
const TARGET: &str = include_str!("../targets/reference.yaml");
const MANY_ERRORS: &str = include_str!("../tests/many-errors.yaml");

fn parsing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    group.throughput(Throughput::Bytes(SCENARIO.len() as u64));
    group.bench_function("a scenario", |bencher| bencher.iter(|| Scenario::parse(SCENARIO, "bench")));
    group.throughput(Throughput::Bytes(MANY_ERRORS.len() as u64));
    group.bench_function("a scenario full of errors", |bencher| {
        bencher.iter(|| Scenario::parse(MANY_ERRORS, "bench"));
    });
    group.throughput(Throughput::Bytes(TARGET.len() as u64));
    group.bench_function("a target file", |bencher| bencher.iter(|| TargetFile::parse(TARGET, "bench")));
    group.finish();
}

criterion_group!(benches, parsing);
criterion_main!(benches);
