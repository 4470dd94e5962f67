//! A guest's root file system: files of this host and generated ones, written as an initramfs.
//!
//! The archive goes into memory that only a descriptor names, so that nothing is left when this process is
//! killed.

use super::closure;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

/// Programs larger than this lose their debug information: a guest keeps its files in memory.
const STRIP_BYTES_MIN: u64 = 4 << 20;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

#[derive(Debug, PartialEq, Eq)]
enum Node {
    Directory(u32),
    /// A file of this host, and whether it has debug information to lose.
    Host(PathBuf, u32),
    Bytes(Vec<u8>, u32),
    Link(String),
}

/// The files of a guest by their absolute paths.
#[derive(Debug, Default)]
pub struct Image {
    nodes: BTreeMap<PathBuf, Node>,
}

impl Image {
    /// An image with the folders that every system has, laid out as on this host: where `/lib` is a link to
    /// `usr/lib` here, it is one there, so that paths of this host mean the same in the guest.
    pub fn new() -> Self {
        let mut image = Self::default();
        for name in ["bin", "sbin", "lib", "lib64"] {
            let merged = fs::read_link(Path::new("/").join(name)).is_ok();
            if merged {
                image.directory(&format!("/usr/{name}"), 0o755);
                image.link(&format!("/{name}"), &format!("usr/{name}"));
            }
        }
        for name in ["/dev", "/etc", "/proc", "/sys", "/run", "/root", "/var/log", "/var/lib", "/usr/local"] {
            image.directory(name, 0o755);
        }
        image.directory("/tmp", 0o1777);
        image.link("/var/run", "../run");
        image
    }

    /// A folder and those above it.
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.parents(Path::new(path));
        self.nodes.insert(path.into(), Node::Directory(mode));
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.parents(Path::new(path));
        self.nodes.insert(path.into(), Node::Link(target.to_owned()));
    }

    /// A file with these bytes.
    pub fn bytes(&mut self, path: &str, bytes: impl Into<Vec<u8>>, mode: u32) {
        self.parents(Path::new(path));
        self.nodes.insert(path.into(), Node::Bytes(bytes.into(), mode));
    }

    /// A file of this host under its own path, and, if it is a program or a library, everything that it is
    /// linked to. A folder is taken with all that is in it.
    ///
    /// # Errors
    /// The file or something that it needs is not there.
    pub fn add(&mut self, path: &Path) -> Result<()> {
        let meta = fs::metadata(path).with_context(|| format!("a guest needs {}", path.display()))?;
        if meta.is_dir() {
            for entry in fs::read_dir(path)? {
                self.add(&entry?.path())?;
            }
            return Ok(());
        }
        let place = place(path)?;
        if self.nodes.contains_key(&place) {
            return Ok(());
        }
        self.put(path, place, meta.permissions().mode() & 0o7777);
        if closure::is_elf(path)? {
            for library in closure::libraries(path)? {
                let place = self::place(&library)?;
                if !self.nodes.contains_key(&place) {
                    self.put(&library, place, 0o755);
                }
            }
        }
        Ok(())
    }

    /// A file of this host under another path.
    pub fn add_as(&mut self, host: &Path, path: &str, mode: u32) {
        self.put(host, path.into(), mode);
    }

    fn put(&mut self, host: &Path, place: PathBuf, mode: u32) {
        self.parents(&place);
        self.nodes.insert(place, Node::Host(host.to_owned(), mode));
    }

    fn parents(&mut self, path: &Path) {
        for parent in path.ancestors().skip(1) {
            if !self.nodes.contains_key(parent) {
                self.nodes.insert(parent.to_owned(), Node::Directory(0o755));
            }
        }
    }

    /// The initramfs, in memory.
    ///
    /// # Errors
    /// A file could not be read, or there is no memory.
    pub fn write(&self) -> Result<File> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("selvage-initramfs", flags)?);
        let mut archive = Archive { out: BufWriter::with_capacity(1 << 20, &file), inode: 0 };
        for (path, node) in &self.nodes {
            let name = path.to_string_lossy();
            let name = name.trim_start_matches('/');
            if name.is_empty() {
                continue;
            }
            match node {
                Node::Directory(mode) => archive.entry(name, DIRECTORY | mode, b"")?,
                Node::Link(target) => archive.entry(name, LINK | 0o777, target.as_bytes())?,
                Node::Bytes(bytes, mode) => archive.entry(name, REGULAR | mode, bytes)?,
                Node::Host(host, mode) => archive.entry(name, REGULAR | mode, &contents(host)?)?,
            }
        }
        archive.finish()?;
        drop(archive);
        Ok(file)
    }
}

/// Where a file of this host lies once the links in its folder's path are followed; the links of the root
/// folder are in the image, all others are not.
fn place(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    let parent = absolute.parent().context("the root folder cannot be taken into a guest")?;
    let name = absolute.file_name().context("a path without a name")?;
    let parent = parent.canonicalize().with_context(|| format!("{}", parent.display()))?;
    ensure!(
        parent.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_))),
        "{} is no plain path",
        parent.display()
    );
    Ok(parent.join(name))
}

fn contents(path: &Path) -> Result<Vec<u8>> {
    let read = || fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    if fs::metadata(path)?.len() < STRIP_BYTES_MIN || !closure::is_elf(path)? {
        return read();
    }
    // strip wants a real file to write to; memory that a descriptor names is one.
    let stripped = rustix::fs::memfd_create("selvage-stripped", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(stripped);
    let name = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&file));
    let mut strip = Command::new("strip");
    strip.args(["--strip-debug", "-o", &name]).arg(path).stdin(Stdio::null()).stderr(Stdio::null());
    let mut bytes = Vec::new();
    if strip.status().is_ok_and(|status| status.success()) {
        file.read_to_end(&mut bytes)?;
    }
    if bytes.is_empty() { read() } else { Ok(bytes) }
}

/// A cpio archive of the kind "newc", which the kernel unpacks.
struct Archive<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<()> {
        self.inode += 1;
        let name_bytes = name.len() + 1;
        let data_bytes = u32::try_from(data.len()).with_context(|| format!("{name} is too large"))?;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // Inode, mode, owner, group, links, time, size, four device numbers, size of the name, check sum.
        let fields = [self.inode, mode, 0, 0, links, 0, data_bytes, 0, 0, 0, 0, name_bytes as u32, 0];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0; 4][..1 + padding(110 + name_bytes)])?;
        self.out.write_all(data)?;
        self.out.write_all(&[0; 3][..padding(data.len())])?;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, b"")?;
        Ok(self.out.flush()?)
    }
}

/// Bytes from `length` up to the next multiple of four.
fn padding(length: usize) -> usize {
    length.wrapping_neg() & 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_form_that_the_kernel_reads() {
        let mut archive = Archive { out: Vec::new(), inode: 0 };
        archive.entry("etc", DIRECTORY | 0o755, b"").unwrap();
        archive.entry("etc/a", REGULAR | 0o644, b"hello").unwrap();
        archive.finish().unwrap();
        let bytes = archive.out;
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        // 110 bytes of header, "etc" and its zero, two to fill.
        assert_eq!(&text[..14], "07070100000001");
        assert_eq!(&text[14..22], format!("{:08x}", DIRECTORY | 0o755));
        let second = 110 + 4 + 2;
        assert_eq!(&text[second..second + 14], "07070100000002");
        assert_eq!(&text[second + 54..second + 62], "00000005");
        // The name "etc/a" with its zero ends on a multiple of four.
        assert_eq!(&text[second + 110..second + 121], "etc/a\0hello");
        assert!(text.ends_with("TRAILER!!!\0\0\0\0"), "{text:?}");
    }

    #[test]
    fn a_program_comes_with_its_libraries_and_folders() {
        let mut image = Image::new();
        image.add(Path::new("/bin/sh")).unwrap();
        let shell = Path::new("/bin").canonicalize().unwrap().join("sh");
        assert!(image.nodes.contains_key(&shell));
        let libc = image.nodes.keys().find(|path| path.ends_with("libc.so.6")).unwrap();
        for parent in libc.ancestors().skip(1) {
            assert!(matches!(image.nodes[parent], Node::Directory(_)), "{}", parent.display());
        }
        let mut bytes = Vec::new();
        let mut file = image.write().unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert!(bytes.len() > 1 << 20 && bytes.len() % 4 == 0);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Image::new().add(Path::new("/no/such/program")).unwrap_err();
        assert!(error.to_string().contains("/no/such/program"));
    }
}
