//! What a program of this host is linked to.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Whether the file is a program or a library.
///
/// # Errors
/// It cannot be read.
pub fn is_elf(path: &Path) -> Result<bool> {
    let mut magic = Vec::new();
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    file.take(4).read_to_end(&mut magic)?;
    Ok(magic == *b"\x7fELF")
}

/// All libraries that the program or library needs at start, its loader included.
///
/// # Errors
/// One of them is not on this host.
pub fn libraries(path: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(path).env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.context("cannot start ldd")?;
    // ldd fails for what is statically linked, and says so; the words tell.
    parse(&String::from_utf8_lossy(&output.stdout)).with_context(|| format!("{}", path.display()))
}

fn parse(text: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in text.lines().map(str::trim) {
        let target = match line.split_once(" => ") {
            Some((name, target)) if target.starts_with("not found") => {
                bail!("needs {name}, which is missing")
            }
            Some((_, target)) => target,
            // The loader and the kernel's own page have no arrow; only the first is a file.
            None => line,
        };
        let file = target.split_once(" (0x").map_or(target, |(file, _)| file);
        if file.starts_with('/') && !file.ends_with(':') {
            libraries.push(PathBuf::from(file));
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_the_loader_says() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc8a5f2000)\n\
            \tlibtinfo.so.6 => /lib/x86_64-linux-gnu/libtinfo.so.6 (0x00007f4a3c6d4000)\n\
            \tlibselvage.so.0 => /a place/libselvage.so.0 (0x00007f4a3c4f3000)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f4a3c87f000)\n";
        let found = parse(text).unwrap();
        let expected = [
            "/lib/x86_64-linux-gnu/libtinfo.so.6",
            "/a place/libselvage.so.0",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(found, expected.map(PathBuf::from));
        assert!(parse("\tstatically linked\n").unwrap().is_empty());
        let error = parse("\tlibmissing.so.1 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libmissing.so.1"));
    }

    #[test]
    fn a_real_program_has_a_c_library_and_a_loader() {
        let found = libraries(Path::new("/bin/sh")).unwrap();
        assert!(found.iter().any(|path| path.ends_with("libc.so.6")), "{found:?}");
        assert!(found.iter().any(|path| path.to_string_lossy().contains("ld-linux")), "{found:?}");
        assert!(is_elf(Path::new("/bin/sh")).unwrap());
        assert!(!is_elf(Path::new("/etc/passwd")).unwrap());
    }
}
