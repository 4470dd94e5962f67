//! What an installation has and the repository has not: programs without debug information, the nginx module
//! linked for its place, manual pages, and completions, made by the programs themselves.

use super::Layout;
use anyhow::{Context, Result, ensure};
use selvage_tests::product::Product;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs a program and wants it to succeed; what it says on its standard output.
///
/// # Errors
/// It cannot be started or fails.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?} ended with {}: {}", command, output.status, said.trim());
    String::from_utf8(output.stdout).context("what it says is no text")
}

/// A copy without debug information: a program, a shared library or a static one.
///
/// # Errors
/// `strip` fails.
pub fn stripped(file: &Path, work: &Path) -> Result<PathBuf> {
    let name = file.file_name().context("it has no name")?;
    let copy = work.join(name);
    let how = if file.extension().is_some_and(|it| it == "a") { "--strip-debug" } else { "--strip-unneeded" };
    let mut strip = Command::new("strip");
    strip.args([how, "--remove-section=.comment", "--enable-deterministic-archives", "-o"]);
    run(strip.arg(&copy).arg(file))?;
    Ok(copy)
}

/// The nginx module, linked anew from the product's objects: the product's own looks for the library where
/// that was built.
///
/// # Errors
/// The objects are not there, or the linker fails.
pub fn nginx_module(product: &Product, layout: &Layout, work: &Path) -> Result<PathBuf> {
    let built = product.nginx_module();
    let folder = built.parent().context("it has no folder")?.join("build");
    let mut objects = vec![folder.join("ngx_http_selvage_module_modules.o")];
    let addon = folder.join("addon/nginx");
    let entries = fs::read_dir(&addon).with_context(|| {
        format!("no objects of the nginx module in {}: build it with nginx/build.sh", addon.display())
    })?;
    for entry in entries {
        objects.push(entry?.path());
    }
    objects.retain(|object| object.extension().is_some_and(|it| it == "o"));
    objects.sort_unstable();
    ensure!(objects.len() > 2, "only {} objects of the nginx module in {}", objects.len(), addon.display());
    let linked = work.join("linked").join(built.file_name().context("it has no name")?);
    fs::create_dir_all(work.join("linked"))?;
    let mut link = Command::new("cc");
    link.args(["-shared", "-Wl,-z,relro", "-Wl,-z,now", "-o"]).arg(&linked).args(objects);
    link.arg("-L").arg(&product.dir).arg("-lselvage");
    if layout.needs_rpath() {
        link.arg(format!("-Wl,-rpath,{}", layout.libraries().display()));
    }
    run(&mut link)?;
    stripped(&linked, work)
}

/// The manual pages of the programs, written into a folder; their paths.
///
/// # Errors
/// A program fails to write its own.
pub fn manual(product: &Product, work: &Path) -> Result<Vec<PathBuf>> {
    let folder = work.join("man");
    fs::create_dir_all(&folder)?;
    for program in [product.operator_tool(), product.director(), product.server()] {
        run(Command::new(program).arg("--manual").arg(&folder))?;
    }
    let mut pages: Vec<PathBuf> =
        fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    pages.sort_unstable();
    ensure!(pages.len() >= 3, "the programs wrote {} manual pages", pages.len());
    Ok(pages)
}

/// The completions of `selvage` for a shell.
///
/// # Errors
/// It makes none.
pub fn completions(product: &Product, shell: &str) -> Result<String> {
    run(Command::new(product.operator_tool()).args(["completions", shell]))
}
