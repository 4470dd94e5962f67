//! Commits and opens of a real node, with 0, 1 and 2 real session servers behind it.

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use selvage_bench::cluster::{BenchCluster, Shape, open, product};
use selvage_bench::sample;
use selvage_fabric::archive::Value;
use selvage_fabric::node::{Ack, OpenMode};
use std::hint::black_box;
use std::time::Duration;

/// The attribute whose size is varied, the only one beside a counter.
const PAYLOAD: &str = "payload";

fn commits(c: &mut Criterion) {
    for copies in 0..=2 {
        let shape = Shape {
            copies: copies.max(1),
            servers: copies.max(1),
            absent: if copies == 0 { vec!["s1".into()] } else { Vec::new() },
            ..Shape::default()
        };
        let cluster = BenchCluster::start(product().unwrap(), &shape).unwrap();
        let mut group = c.benchmark_group(format!("commit with {copies} copies"));
        for bytes in [64, 1024, 16 << 10] {
            commit(&mut group, &cluster, copies, bytes);
        }
        group.finish();
        if copies == 2 {
            opens(c, &cluster);
        }
        cluster.stop().unwrap();
    }
}

fn commit(group: &mut BenchmarkGroup<'_, WallTime>, cluster: &BenchCluster, copies: u32, bytes: usize) {
    let attributes = [(PAYLOAD, Value::Bytes(vec![7; bytes]))];
    let cookie = cluster.session(&attributes, copies).unwrap();
    let mut session = open(cluster.node().unwrap(), &cookie, OpenMode::Exclusive).unwrap();
    let mut visits = 0;
    group.throughput(Throughput::Elements(1));
    group.bench_function(format!("{bytes}"), |b| {
        b.iter(|| {
            visits += 1;
            session.set(sample::CHANGED, Value::I64(visits)).unwrap();
            assert_eq!(session.commit(Ack::All).unwrap().copies, copies);
        });
    });
}

fn opens(c: &mut Criterion, cluster: &BenchCluster) {
    let cookie = cluster.session(&sample::attributes(sample::ARCHIVE_BYTES).unwrap(), 2).unwrap();
    let node = cluster.node().unwrap();
    let mut group = c.benchmark_group("open and close");
    for (name, mode) in [("exclusive", OpenMode::Exclusive), ("read-only", OpenMode::ReadOnly)] {
        group.bench_function(name, |b| b.iter(|| drop(open(node, black_box(&cookie), mode).unwrap())));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = commits
}
criterion_main!(benches);
