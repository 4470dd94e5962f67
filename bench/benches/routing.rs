//! What every request asks: whose cookie this is, and which servers hold the session.

use criterion::{Criterion, criterion_group, criterion_main};
use selvage_fabric::ident::{Cookie, CookieKey, Incarnation, SessionId};
use selvage_fabric::placement::servers_for;
use selvage_fabric::view::ServerEntry;
use std::hint::black_box;
use std::time::Duration;

fn placement(c: &mut Criterion) {
    let mut group = c.benchmark_group("placement");
    for count in [2_u64, 8, 64] {
        let servers: Vec<ServerEntry> = (0..count)
            .map(|number| ServerEntry {
                name: format!("s{number:02}"),
                incarnation: Incarnation(number + 1),
                weight: 1 + number as u32 % 3,
                socket: format!("/run/selvage/server-s{number:02}.sock"),
                control: None,
            })
            .collect();
        let mut id = SessionId([3; 16]);
        group.bench_function(format!("two of {count}"), |b| {
            b.iter(|| {
                id.0[0] = id.0[0].wrapping_add(1);
                servers_for(black_box(id), &servers, 2)
            });
        });
    }
    group.finish();
}

fn cookie(c: &mut Criterion) {
    let keys = [CookieKey(vec![1; 32]), CookieKey(vec![2; 32])];
    let cookie = Cookie { id: SessionId([9; 16]), host: Incarnation(1 << 40) };
    let (new, old) = (cookie.encode(&keys), cookie.encode(&keys[1..]));
    let mut group = c.benchmark_group("cookie");
    group.bench_function("decode", |b| b.iter(|| Cookie::decode(black_box(&new), &keys)));
    group.bench_function("decode, signed with the old key", |b| {
        b.iter(|| Cookie::decode(black_box(&old), &keys))
    });
    let forged = new.replace(&new[new.len() - 3..], "aaa");
    group.bench_function("refuse a forged one", |b| b.iter(|| Cookie::decode(black_box(&forged), &keys)));
    group.bench_function("encode", |b| b.iter(|| black_box(&cookie).encode(&keys)));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = placement, cookie
}
criterion_main!(benches);
