//! `cargo x install` and `cargo x deb` as their users meet them: programs are built against what was
//! installed, outside of the tree, and run against a cluster; packages are looked at and unpacked.

use selvage_tests::cluster::{Cluster, Options};
use selvage_tests::product::{Product, find_program, workspace_root};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A program of C or C++ that says which library it runs with, and that attaching to nothing fails well.
const PROGRAM: &str = r#"
#include <selvage.h>
#include <stdio.h>
int main(void) {
    selvage_node *node;
    char why[512];
    selvage_status status = selvage_node_attach("/nonexistent/selvage.toml", "n1", 0, &node);
    selvage_last_error(why, sizeof(why));
    printf("%s: %s (%s)\n", selvage_version(), selvage_status_text(status), why);
    return status == SELVAGE_STATUS_OS ? 0 : 1;
}
"#;

/// The same in C++.
const CPP_PROGRAM: &str = r#"
#include <selvage.hpp>
#include <iostream>
int main() {
    const auto node = selvage::node::attach("/nonexistent/selvage.toml", "n1");
    std::cout << selvage::version() << ": " << node.error().text() << "\n";
    return node.is(selvage::code::os) ? 0 : 1;
}
"#;

const CMAKE: &str = r#"
cmake_minimum_required(VERSION 3.16)
project(outside C CXX)
find_package(Selvage @WANTED@ REQUIRED)
add_executable(shared program.c)
target_link_libraries(shared PRIVATE selvage::selvage)
add_executable(static program.c)
target_link_libraries(static PRIVATE selvage::selvage_static)
add_executable(shared_cpp program.cc)
target_link_libraries(shared_cpp PRIVATE selvage::selvage)
target_compile_features(shared_cpp PRIVATE cxx_std_17)
"#;

fn product() -> Product {
    Product::ready().unwrap()
}

fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("selvage-install-").tempdir().unwrap()
}

fn xtask(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs a program that must succeed; what it says.
fn good(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}\n{errors}", output.status);
    said
}

/// Runs a program that must fail; what it says on its standard error.
fn bad(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn tool(name: &str) -> Command {
    Command::new(find_program(name).unwrap_or_else(|| panic!("`{name}` is missing: cargo x setup")))
}

/// An installation below a folder of its own, as for a package.
struct Installed {
    destdir: tempfile::TempDir,
    said: String,
}

impl Installed {
    fn new() -> Self {
        let mut installed = Self { destdir: scratch(), said: String::new() };
        installed.said = installed.again();
        installed
    }

    fn again(&self) -> String {
        let mut install = xtask(&["install", "--prefix", "/opt/selvage", "--destdir"]);
        good(install.arg(self.destdir.path()).arg("--product").arg(product().dir))
    }

    fn at(&self, path: &str) -> PathBuf {
        self.destdir.path().join("opt/selvage").join(path)
    }

    fn pkg_config(&self, arguments: &[&str]) -> Vec<String> {
        let mut command = tool("pkg-config");
        command.env("PKG_CONFIG_LIBDIR", self.at("lib/pkgconfig"));
        command.env("PKG_CONFIG_SYSROOT_DIR", self.destdir.path());
        good(command.args(arguments)).split_whitespace().map(str::to_owned).collect()
    }

    /// Runs a program that finds the shared library only here.
    fn run(&self, program: &Path, arguments: &[&str]) -> String {
        good(Command::new(program).args(arguments).env("LD_LIBRARY_PATH", self.at("lib")))
    }
}

fn says_what_it_is(said: &str) {
    assert!(said.starts_with(VERSION) && said.contains("/nonexistent/selvage.toml"), "{said}");
}

fn compile(compiler: &str, source: &Path, flags: &[String]) -> PathBuf {
    let program = source.with_extension(format!("{}-program", flags.len()));
    good(tool(compiler).args(["-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(source).args(flags));
    program
}

fn sources() -> tempfile::TempDir {
    let folder = scratch();
    fs::write(folder.path().join("program.c"), PROGRAM).unwrap();
    fs::write(folder.path().join("program.cc"), CPP_PROGRAM).unwrap();
    folder
}

#[test]
fn programs_outside_the_tree_are_built_against_what_is_installed() {
    let installed = Installed::new();
    with_pkg_config(&installed);
    with_cmake(&installed);
}

/// Shared and static, and run against a cluster.
fn with_pkg_config(installed: &Installed) {
    let outside = sources();
    assert_eq!(installed.pkg_config(&["--modversion", "selvage"]), [VERSION]);
    let shared = installed.pkg_config(&["--cflags", "--libs", "selvage"]);
    let statically = installed.pkg_config(&["--cflags", "--libs", "selvage-static"]);
    for (compiler, source) in [("gcc", "program.c"), ("g++", "program.cc")] {
        let source = outside.path().join(source);
        let program = compile(compiler, &source, &shared);
        says_what_it_is(&installed.run(&program, &[]));
        let needed = good(tool("readelf").arg("-d").arg(&program));
        assert!(needed.contains("[libselvage.so.0]"), "{needed}");
        let program = compile(compiler, &source, &statically);
        says_what_it_is(&good(&mut Command::new(&program)));
        let needed = good(tool("readelf").arg("-d").arg(&program));
        assert!(!needed.contains("libselvage"), "{needed}");
    }

    // The examples, as they were installed, as the process of a web node.
    let options =
        Options { nodes: 1, later: vec!["n1".into()], nodes_are_launchers: true, ..Options::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let cluster = runtime.block_on(Cluster::start(product(), options)).unwrap();
    let config = cluster.folder().unwrap().config().display().to_string();
    for (compiler, name) in [("gcc", "session.c"), ("g++", "async.cc")] {
        let source = outside.path().join(name);
        fs::copy(installed.at("share/doc/libselvage-dev/examples").join(name), &source).unwrap();
        let said = installed.run(&compile(compiler, &source, &shared), &[&config, "n1"]);
        assert!(said.contains("copies"), "{said}");
    }
    cluster.stop().unwrap();
}

fn with_cmake(installed: &Installed) {
    let outside = sources();
    let configure = |wanted: &str| {
        fs::write(outside.path().join("CMakeLists.txt"), CMAKE.replace("@WANTED@", wanted)).unwrap();
        let mut command = tool("cmake");
        command.arg("-S").arg(outside.path()).arg("-B").arg(outside.path().join(format!("build-{wanted}")));
        command.arg(format!("-DCMAKE_PREFIX_PATH={}", installed.at("").display()));
        command
    };
    good(&mut configure("0.1"));
    let build = outside.path().join("build-0.1");
    good(tool("cmake").arg("--build").arg(&build));
    for program in ["shared", "static", "shared_cpp"] {
        // CMake's rpath leads shared ones to the library.
        says_what_it_is(&good(&mut Command::new(build.join(program))));
    }
    // A newer one, or one with another soname, is not what is installed.
    for wanted in ["0.999", "1.0"] {
        let why = bad(&mut configure(wanted));
        assert!(why.contains("compatible with requested version"), "{why}");
    }
}

#[test]
fn everything_is_in_its_place_and_can_be_removed() {
    let installed = Installed::new();
    for file in [
        "bin/selvage",
        "bin/selvage-director",
        "bin/selvage-server",
        "include/selvage.h",
        "include/selvage.hpp",
        "lib/libselvage.a",
        "lib/nginx/modules/ngx_http_selvage_module.so",
        "lib/systemd/system/selvage-server@.service",
        "lib/sysusers.d/selvage.conf",
        "lib/tmpfiles.d/selvage.conf",
        "share/man/man1/selvage.1",
        "share/man/man1/selvage-drain.1",
        "share/man/man8/selvage-director.8",
        "share/man/man8/selvage-server.8",
        "share/man/man5/selvage.toml.5",
        "share/man/man3/libselvage.3",
        "share/bash-completion/completions/selvage",
        "share/zsh/vendor-completions/_selvage",
        "share/fish/vendor_completions.d/selvage.fish",
        "share/doc/selvage/LICENSE-MIT",
        "share/doc/selvage/examples/selvage.toml",
    ] {
        let path = installed.at(file);
        assert!(path.is_file() && fs::metadata(&path).unwrap().len() > 50, "{file}");
        assert!(installed.said.contains(&path.display().to_string()), "{file} is not told");
    }
    // What a user could not read or run would be noticed by root only elsewhere.
    assert_eq!(fs::metadata(installed.at("bin/selvage")).unwrap().permissions().mode() & 0o7777, 0o755);

    let library = installed.at(&format!("lib/libselvage.so.{VERSION}"));
    assert_eq!(
        fs::canonicalize(installed.at("lib/libselvage.so")).unwrap(),
        fs::canonicalize(&library).unwrap()
    );
    let dynamic = good(tool("readelf").arg("-d").arg(&library));
    assert!(dynamic.contains("Library soname: [libselvage.so.0]"), "{dynamic}");
    let symbols = good(tool("nm").args(["-D", "--defined-only", "-P"]).arg(&library));
    let symbols: BTreeSet<&str> = symbols.lines().filter_map(|line| line.split(' ').next()).collect();
    let committed = fs::read_to_string(workspace_root().join("webnode-ffi/symbols.txt")).unwrap();
    assert_eq!(symbols, committed.lines().collect());

    the_module_loads(&installed);
    the_units_are_good(&installed);
    the_manual_is_good(&installed);
    the_example_is_good(&installed);

    // What the administrator has changed is neither overwritten nor removed.
    let mine = installed.destdir.path().join("etc/default/selvage");
    fs::write(&mine, "SELVAGE_LOG=debug\n").unwrap();
    let said = installed.again();
    assert!(said.contains(&format!("{} (stays as it is)", mine.display())), "{said}");

    let destdir = installed.destdir.path().display().to_string();
    let uninstall = ["uninstall", "--prefix", "/opt/selvage", "--destdir", &destdir];
    good(&mut xtask(&uninstall));
    let left: Vec<_> = fs::read_dir(&destdir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["etc"], "what is left");
    assert_eq!(fs::read_to_string(&mine).unwrap(), "SELVAGE_LOG=debug\n");
    let why = bad(&mut xtask(&uninstall));
    assert!(why.starts_with("error: nothing is installed there") && why.lines().count() == 1, "{why}");
}

/// What the list names below the prefix goes, and nothing else, whatever the list says.
#[test]
fn uninstall_removes_what_the_list_names_below_the_prefix_and_nothing_else() {
    let destdir = scratch();
    let at = |path: &str| destdir.path().join(path);
    let list = |lines: &[&str]| {
        fs::create_dir_all(at("opt/selvage/share/selvage")).unwrap();
        fs::create_dir_all(at("opt/selvage/bin")).unwrap();
        fs::create_dir_all(at("opt/selvage/include")).unwrap();
        fs::write(at("opt/selvage/bin/selvage"), "").unwrap();
        let own = "/opt/selvage/share/selvage/installed.txt";
        fs::write(at(&own[1..]), [&["/opt/selvage/bin/selvage"], lines, &[own]].concat().join("\n")).unwrap();
    };
    let mut uninstall = xtask(&["uninstall", "--prefix", "/opt/selvage", "--destdir"]);
    uninstall.arg(destdir.path());
    fs::create_dir_all(at("etc")).unwrap();
    fs::write(at("etc/passwd"), "somebody's").unwrap();
    for stranger in
        ["/opt/selvage/../../etc/passwd", "/etc/passwd", "etc/passwd", "/opt/selvage-2/x", "/etc/", "/", ""]
    {
        list(&[stranger]);
        let why = bad(&mut uninstall);
        assert!(why.contains(&format!("names {stranger}, which is no path of this")), "{why}");
        assert!(at("etc/passwd").exists() && at("opt/selvage/bin/selvage").exists(), "{stranger}");
    }
    // Folders that it has not made stay, and those that are not empty.
    fs::create_dir_all(at("opt/selvage/lib")).unwrap();
    fs::write(at("opt/selvage/lib/other"), "").unwrap();
    let folders = ["bin", "lib", "share", "share/selvage"].map(|name| format!("/opt/selvage/{name}/"));
    list(&folders.each_ref().map(String::as_str));
    good(&mut uninstall);
    let mut left: Vec<_> =
        fs::read_dir(at("opt/selvage")).unwrap().map(|one| one.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["include", "lib"]);
}

/// The installed nginx takes the module by the installed snippet, and the module finds only the installed
/// library.
fn the_module_loads(installed: &Installed) {
    let module = installed.at("lib/nginx/modules/ngx_http_selvage_module.so");
    let dynamic = good(tool("readelf").arg("-d").arg(&module));
    assert!(dynamic.contains("runpath: [/opt/selvage/lib]"), "{dynamic}");
    let snippet =
        fs::read_to_string(installed.at("share/nginx/modules-available/mod-http-selvage.conf")).unwrap();
    let snippet = snippet.replace("/opt/selvage", &installed.at("").display().to_string());
    let folder = scratch();
    let conf = folder.path().join("nginx.conf");
    let text = format!(
        "{snippet} pid {}/pid; error_log stderr; events {{ }} \
         http {{ access_log off; selvage /nonexistent.toml; }}",
        folder.path().display()
    );
    fs::write(&conf, text).unwrap();
    let mut check = tool("nginx");
    check.arg("-t").arg("-c").arg(&conf).env("LD_LIBRARY_PATH", installed.at("lib"));
    let why = bad(&mut check);
    assert!(why.contains("cannot read the configuration /nonexistent.toml"), "{why}");
}

/// systemd finds nothing wrong with the units, and little that they could still be denied.
fn the_units_are_good(installed: &Installed) {
    let folder = scratch();
    let units = ["selvage-director.service", "selvage-director.socket", "selvage-server@.service"];
    let mut files = Vec::new();
    for unit in units {
        // Where the programs are now, so that systemd finds them.
        let text = fs::read_to_string(installed.at("lib/systemd/system").join(unit)).unwrap();
        let text = text.replace("/opt/selvage", installed.at("").to_str().unwrap().trim_end_matches('/'));
        let file = folder.path().join(unit.replace('@', "@s1"));
        fs::write(folder.path().join(unit), &text).unwrap();
        fs::write(&file, text).unwrap();
        files.push(file);
    }
    let mut verify = tool("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no"]).args(&files);
    let output = verify.env("SYSTEMD_UNIT_PATH", format!("{}:", folder.path().display())).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains(folder.path().to_str().unwrap()), "{said}");
    for unit in [&files[0], &files[2]] {
        // They come back however often they end, but not with a configuration that is wrong.
        let text = fs::read_to_string(unit).unwrap();
        for line in ["StartLimitIntervalSec=0", "Restart=always", "RestartPreventExitStatus=2"] {
            assert!(text.lines().any(|found| found == line), "{line} in {}", unit.display());
        }
        // 0 is safe and 100 is exposed; a unit that says nothing has 96.
        let mut security = tool("systemd-analyze");
        good(security.args(["security", "--offline=true", "--threshold=40"]).arg(unit));
    }
}

/// man shows every page without a warning.
fn the_manual_is_good(installed: &Installed) {
    let mut seen = 0;
    for section in ["man1", "man3", "man5", "man8"] {
        for page in fs::read_dir(installed.at("share/man").join(section)).unwrap() {
            let page = page.unwrap().path();
            let mut man = tool("man");
            man.args(["--warnings=w", "-E", "UTF-8", "-l"])
                .arg(&page)
                .env("MANWIDTH", "100")
                .env("MANPAGER", "cat");
            let output = man.stdin(Stdio::null()).output().unwrap();
            let warnings = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && warnings.is_empty(), "{}: {warnings}", page.display());
            assert!(output.stdout.len() > 300, "{} is empty", page.display());
            seen += 1;
        }
    }
    assert!(seen >= 8, "only {seen} pages");
}

/// The example of a configuration lacks nothing but a key of one's own.
fn the_example_is_good(installed: &Installed) {
    let text = fs::read_to_string(installed.at("share/doc/selvage/examples/selvage.toml")).unwrap();
    let folder = scratch();
    let file = folder.path().join("selvage.toml");
    let check = || {
        let mut command = Command::new(installed.at("bin/selvage"));
        command.arg("check-config").arg(&file);
        command
    };
    fs::write(&file, &text).unwrap();
    let why = bad(&mut check());
    assert!(why.contains("cookie_keys") || why.contains("hexadecimal"), "{why}");
    let (before, rest) = text.split_once("PUT-THE").unwrap();
    let (_, after) = rest.split_once("HERE").unwrap();
    fs::write(&file, format!("{before}{}{after}", "5a".repeat(32))).unwrap();
    good(&mut check());
}

#[test]
fn bad_places_are_refused_in_one_line() {
    let (product, never) = (product().dir.display().to_string(), scratch());
    for (arguments, word) in [
        (&["--prefix", "relative"][..], "--prefix relative"),
        (&["--prefix", "/usr/../etc"], "--prefix /usr/../etc"),
        (&["--libdir", "/elsewhere/lib"], "--libdir /elsewhere/lib"),
        (&["--product", "/nonexistent"], "/nonexistent"),
        (&["--destdir", "/proc/nothing"], "/proc/nothing"),
    ] {
        let mut install = xtask(&["install"]);
        if arguments[0] != "--destdir" {
            install.arg("--destdir").arg(never.path());
        }
        if arguments[0] != "--product" {
            install.args(["--product", &product]);
        }
        let why = bad(install.args(arguments));
        assert!(why.starts_with("error: ") && why.contains(word) && why.lines().count() == 1, "{why}");
    }
    assert_eq!(fs::read_dir(never.path()).unwrap().count(), 0, "nothing was installed");
}

/// The packages, without compression, for the test's time's sake, made by somebody with this umask.
fn debs(folder: &Path, umask: &str) -> Vec<PathBuf> {
    let mut command = tool("sh");
    command.args(["-c", "umask $0; exec \"$@\"", umask, env!("CARGO_BIN_EXE_xtask")]).stdin(Stdio::null());
    command
        .args(["deb", "--compression", "0", "--out"])
        .arg(folder)
        .arg("--product")
        .arg(product().dir)
        .env("SOURCE_DATE_EPOCH", "1767225600");
    good(&mut command).lines().map(PathBuf::from).collect()
}

#[test]
fn packages_are_whole_reproducible_and_can_be_unpacked() {
    let (first, second) = (scratch(), scratch());
    let packages = debs(first.path(), "022");
    let names: Vec<String> =
        packages.iter().map(|deb| deb.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(packages.len(), 4, "{names:?}");
    for (one, two) in packages.iter().zip(debs(second.path(), "077")) {
        assert!(fs::read(one).unwrap() == fs::read(&two).unwrap(), "{} differs", one.display());
    }
    let deb = |name: &str| {
        let at = names.iter().position(|deb| deb.starts_with(&format!("{name}_{VERSION}-1_")));
        &packages[at.unwrap_or_else(|| panic!("no {name} in {names:?}"))]
    };
    let field = |name: &str, field: &str| good(tool("dpkg-deb").arg("--field").arg(deb(name)).arg(field));
    assert!(field("libselvage0", "Depends").contains("libc6"));
    assert_eq!(field("libselvage-dev", "Depends").trim(), format!("libselvage0 (= {VERSION}-1), libc6-dev"));
    let module = field("libnginx-mod-http-selvage", "Depends");
    assert!(module.contains("nginx") && module.contains("libselvage0 (>= 0.1.0)"), "{module}");
    let conffiles = good(tool("dpkg-deb").arg("--info").arg(deb("selvage")).arg("conffiles"));
    assert_eq!(conffiles, "/etc/default/selvage\n/etc/logrotate.d/selvage\n");
    for name in ["selvage", "libnginx-mod-http-selvage"] {
        let script = good(tool("dpkg-deb").arg("--info").arg(deb(name)).arg("postinst"));
        assert!(script.contains("systemd-sysusers"), "{script}");
        let file = first.path().join("script");
        fs::write(&file, &script).unwrap();
        good(tool("sh").arg("-n").arg(&file));
        for word in ["systemctl start", "systemctl enable", "systemctl restart", "invoke-rc.d"] {
            assert!(!script.contains(word), "{script}");
        }
    }
    let listed = good(tool("dpkg-deb").arg("--contents").arg(deb("selvage")));
    for line in listed.lines() {
        assert!(line.contains(" root/root "), "{line}");
    }

    // Into a root of its own. Maintainer scripts need a whole system, so nothing is configured.
    let root = scratch();
    for folder in ["info", "updates", "triggers"] {
        fs::create_dir_all(root.path().join("var/lib/dpkg").join(folder)).unwrap();
    }
    for file in ["status", "available"] {
        fs::write(root.path().join("var/lib/dpkg").join(file), "").unwrap();
    }
    let mut unpack = tool("dpkg");
    unpack.arg(format!("--root={}", root.path().display()));
    unpack.args(["--force-not-root", "--force-depends", "--force-bad-path", "--log=/dev/null", "--unpack"]);
    good(unpack.args(&packages));
    let multiarch = good(tool("dpkg-architecture").arg("-qDEB_HOST_MULTIARCH"));
    let library = format!("usr/lib/{}/libselvage.so.0", multiarch.trim());
    for file in [
        "usr/bin/selvage-director",
        "usr/share/man/man5/selvage.toml.5.gz",
        "usr/include/selvage.hpp",
        &library,
    ] {
        assert!(root.path().join(file).is_file(), "{file}");
    }
    says_version(&root.path().join("usr/bin/selvage"));
    let mut query = tool("dpkg-query");
    query.arg(format!("--admindir={}/var/lib/dpkg", root.path().display()));
    let states = good(query.args(["-W", "-f=${Package} ${db:Status-Status}\n"]));
    assert_eq!(states.lines().filter(|line| line.ends_with(" unpacked")).count(), 4, "{states}");
}

fn says_version(program: &Path) {
    let said = good(Command::new(program).arg("--version"));
    assert!(said.contains(VERSION), "{said}");
}
