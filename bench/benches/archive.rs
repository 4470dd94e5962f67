//! Archives: building one over another with a change, as a commit does; validating one from elsewhere;
//! reading one.

use criterion::{Criterion, criterion_group, criterion_main};
use selvage_bench::sample;
use selvage_fabric::archive::{ArchiveLimits, Builder, Changes, OwnedArchive, Value, validate};
use std::hint::black_box;
use std::time::Duration;

const SIZES: [usize; 2] = [1024, 16 << 10];

fn archive(c: &mut Criterion) {
    let limits = ArchiveLimits::default();
    let head = sample::head();
    let mut group = c.benchmark_group("archive");
    for bytes in SIZES {
        let archive = sample::archive(&sample::attributes(bytes).unwrap()).unwrap();
        let owned = OwnedArchive::copy_of(&archive, &limits).unwrap();
        let mut changes = Changes::default();
        changes.set(sample::CHANGED, Value::I64(1 << 41));
        let mut builder = Builder::new();
        group.bench_function(format!("build/{bytes}"), |b| {
            b.iter(|| builder.build(&head, changes.over(Some(owned.session())), &limits).unwrap().len());
        });
        group.bench_function(format!("build over, sizes unchanged/{bytes}"), |b| {
            b.iter(|| {
                builder.build_over(&head, owned.bytes(), owned.session(), &changes, &limits).unwrap().len()
            });
        });
        group.bench_function(format!("validate/{bytes}"), |b| {
            b.iter(|| validate(black_box(owned.bytes()), &limits).unwrap().attribute_count());
        });
        group.bench_function(format!("read/{bytes}"), |b| {
            b.iter(|| black_box(owned.session().get(black_box(sample::READ[0]))));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = archive
}
criterion_main!(benches);
