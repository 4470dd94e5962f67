//! The push engine does not grow.

use std::process::Command;

#[test]
#[cfg_attr(debug_assertions, ignore = "counts a release build: cargo test --release -p selvage-bench")]
fn the_push_engine_has_not_grown() {
    let output = Command::new(env!("CARGO_BIN_EXE_selvage-bench")).arg("engine").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{told}");
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("instructions per push"), "{told}");
}
