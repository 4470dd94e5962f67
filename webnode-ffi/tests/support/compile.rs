//! C and C++ programs of this package, compiled against the header and this build's library.

use std::path::{Path, PathBuf};

use super::{Tool, library_dir, repo};

/// Compiles a program of this package against the header and the shared library.
pub fn compile(dir: &Path, source: &str, options: &[&str]) -> PathBuf {
    // The loader looks for the soname; cargo's file has none of it in its name.
    let link = dir.join("libselvage.so.0");
    if !link.exists() {
        std::os::unix::fs::symlink(library_dir().join("libselvage.so"), &link).expect("a link");
    }
    let link = link.display().to_string();
    compile_with(dir, source, options, &[&link, &format!("-Wl,-rpath,{}", dir.display())])
}

/// Compiles a program of this package with these libraries.
pub fn compile_with(dir: &Path, source: &str, options: &[&str], libraries: &[&str]) -> PathBuf {
    let (compiler, standard) =
        if source.ends_with(".cc") { ("g++", "-std=c++17") } else { ("gcc", "-std=c11") };
    let program = dir.join("program");
    Tool::find(compiler, "apt-get install gcc g++")
        .args([standard, "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-pedantic", "-Werror", "-g"])
        .args(options)
        .arg("-I")
        .arg(repo().join("include"))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(source))
        .args(libraries)
        .args(["-pthread", "-o"])
        .arg(&program)
        .succeed();
    program
}
