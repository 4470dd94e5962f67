//! The list of everything that is installed, and to which package each file belongs.

use super::{Layout, layout, made, manual};
use anyhow::Result;
use selvage_tests::product::{Product, workspace_root};
use std::fs;
use std::path::{Path, PathBuf};

/// Which package a file is in, where packages are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The daemons and the operator's command.
    Tools,
    /// The shared library.
    Library,
    /// What programs are built with.
    Development,
    /// The nginx module.
    Nginx,
}

/// One file.
#[derive(Debug)]
pub struct Item {
    /// Its package.
    pub part: Part,
    /// Where it is on the installed system.
    pub path: PathBuf,
    /// Its permissions.
    pub mode: u32,
    /// What is in it.
    pub source: Source,
}

/// What is in a file.
#[derive(Debug)]
pub enum Source {
    /// The same as in this one.
    File(PathBuf),
    /// This text.
    Text(String),
    /// These bytes.
    Bytes(Vec<u8>),
    /// It is a symbolic link to this.
    Link(String),
}

/// Collects items of a layout.
struct List<'a> {
    layout: &'a Layout,
    packaging: PathBuf,
    items: Vec<Item>,
}

impl List<'_> {
    fn add(&mut self, part: Part, path: PathBuf, mode: u32, source: Source) {
        self.items.push(Item { part, path, mode, source });
    }

    fn program(&mut self, part: Part, path: PathBuf, file: PathBuf) {
        self.add(part, path, 0o755, Source::File(file));
    }

    fn data(&mut self, part: Part, path: PathBuf, file: PathBuf) {
        self.add(part, path, 0o644, Source::File(file));
    }

    fn text(&mut self, part: Part, path: PathBuf, text: String) {
        self.add(part, path, 0o644, Source::Text(text));
    }

    /// A file of `packaging/`, with the places of this installation.
    fn template(&mut self, part: Part, path: PathBuf, name: &str) -> Result<()> {
        let text = self.layout.fill(&fs::read_to_string(self.packaging.join(name))?);
        self.text(part, path, text);
        Ok(())
    }
}

/// Every file of an installation of `product`. What has to be made is made in `work`.
///
/// # Errors
/// Something cannot be made.
pub fn items(product: &Product, layout: &Layout, work: &Path) -> Result<Vec<Item>> {
    let packaging = workspace_root().join("packaging");
    let mut list = List { layout, packaging, items: Vec::new() };
    tools(&mut list, product, work)?;
    services(&mut list)?;
    library(&mut list, product, work)?;
    development(&mut list, product, work)?;
    nginx(&mut list, product, work)?;
    Ok(list.items)
}

fn tools(list: &mut List, product: &Product, work: &Path) -> Result<()> {
    for program in [product.operator_tool(), product.director(), product.server()] {
        let name = program.file_name().unwrap_or_default();
        list.program(Part::Tools, list.layout.bin().join(name), made::stripped(&program, work)?);
    }
    let share = list.layout.share();
    for page in made::manual(product, work)? {
        let name = page.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let section = name.rsplit('.').next().unwrap_or("1").to_owned();
        list.data(Part::Tools, share.join(format!("man/man{section}")).join(name), page);
    }
    let configuration = manual::configuration(&fs::read_to_string(workspace_root().join("docs/using.md"))?)?;
    list.text(Part::Tools, share.join("man/man5/selvage.toml.5"), configuration);
    for (shell, path) in [
        ("bash", "bash-completion/completions/selvage"),
        ("zsh", "zsh/vendor-completions/_selvage"),
        ("fish", "fish/vendor_completions.d/selvage.fish"),
    ] {
        list.text(Part::Tools, share.join(path), made::completions(product, shell)?);
    }
    let doc = share.join("doc/selvage");
    let root = workspace_root();
    for file in ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"] {
        list.data(Part::Tools, doc.join(file), root.join(file));
    }
    let mut pages: Vec<PathBuf> =
        fs::read_dir(root.join("docs"))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    pages.sort_unstable();
    for page in pages.into_iter().filter(|page| page.is_file()) {
        list.data(Part::Tools, doc.join("docs").join(page.file_name().unwrap_or_default()), page);
    }
    list.template(Part::Tools, doc.join("examples/selvage.toml"), "examples/selvage.toml")
}

fn services(list: &mut List) -> Result<()> {
    let systemd = list.layout.lib().join("systemd/system");
    for unit in ["selvage-director.service", "selvage-director.socket", "selvage-server@.service"] {
        list.template(Part::Tools, systemd.join(unit), &format!("systemd/{unit}"))?;
    }
    let lib = list.layout.lib();
    list.template(Part::Tools, lib.join("sysusers.d/selvage.conf"), "systemd/sysusers.conf")?;
    list.template(Part::Tools, lib.join("tmpfiles.d/selvage.conf"), "systemd/tmpfiles.conf")?;
    let etc = list.layout.sysconfdir().to_owned();
    list.template(Part::Tools, etc.join("logrotate.d/selvage"), "logrotate")?;
    list.template(Part::Tools, etc.join("default/selvage"), "selvage.default")
}

fn library(list: &mut List, product: &Product, work: &Path) -> Result<()> {
    let folder = list.layout.libraries().to_owned();
    let name = format!("libselvage.so.{}", layout::VERSION);
    let soname = format!("libselvage.so.{}", layout::SOVERSION);
    let library = made::stripped(&product.library(), work)?;
    // Not executable: that is how Debian has its libraries.
    list.data(Part::Library, folder.join(&name), library);
    list.add(Part::Library, folder.join(soname), 0o777, Source::Link(name));
    Ok(())
}

fn development(list: &mut List, product: &Product, work: &Path) -> Result<()> {
    let part = Part::Development;
    let root = workspace_root();
    let headers = list.layout.include();
    for header in ["selvage.h", "selvage.hpp", "selvage/values.hpp"] {
        list.data(part, headers.join(header), root.join("include").join(header));
    }
    let folder = list.layout.libraries().to_owned();
    let soname = format!("libselvage.so.{}", layout::SOVERSION);
    list.add(part, folder.join("libselvage.so"), 0o777, Source::Link(soname));
    let archive = product.dir.join("libselvage.a");
    list.data(part, folder.join("libselvage.a"), made::stripped(&archive, work)?);
    for name in ["selvage.pc", "selvage-static.pc"] {
        list.template(part, folder.join("pkgconfig").join(name), &format!("pkgconfig/{name}"))?;
    }
    for name in ["SelvageConfig.cmake", "SelvageConfigVersion.cmake"] {
        list.template(part, folder.join("cmake/Selvage").join(name), &format!("cmake/{name}"))?;
    }
    let functions = manual::library(&fs::read_to_string(root.join("include/selvage.h"))?)?;
    list.text(part, list.layout.share().join("man/man3/libselvage.3"), functions);
    let examples = list.layout.share().join("doc/libselvage-dev/examples");
    list.template(part, examples.join("CMakeLists.txt"), "examples/CMakeLists.txt")?;
    for name in ["session.c", "async.cc"] {
        list.data(part, examples.join(name), root.join("webnode-ffi/examples").join(name));
    }
    let server = root.join("webnode-ffi/examples/httplib");
    for name in ["api.cc", "api.hpp", "main.cc", "server.cc", "server.hpp"] {
        list.data(part, examples.join("httplib").join(name), server.join(name));
    }
    Ok(())
}

fn nginx(list: &mut List, product: &Product, work: &Path) -> Result<()> {
    let part = Part::Nginx;
    let modules = list.layout.lib().join("nginx/modules");
    let module = made::nginx_module(product, list.layout, work)?;
    let path = modules.join("ngx_http_selvage_module.so");
    let load = format!("load_module {};\n", path.display());
    list.data(part, path, module);
    let share = list.layout.share();
    list.text(part, share.join("nginx/modules-available/mod-http-selvage.conf"), load);
    let lib = list.layout.lib();
    list.template(part, lib.join("sysusers.d/selvage-nginx.conf"), "systemd/sysusers-nginx.conf")?;
    let examples = share.join("doc/libnginx-mod-http-selvage/examples");
    list.template(part, examples.join("nginx-site.conf"), "examples/nginx-site.conf")?;
    list.template(part, examples.join("nginx.service.d/selvage.conf"), "systemd/nginx-dropin.conf")
}
