//! Gives the shared library its soname, so that programs link against the ABI and not against a file's path.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libselvage.so.0");
}
