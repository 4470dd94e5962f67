//! The C program of the README compiles without a warning, and does what the README says.

use selvage_fabric::config::Config;
use selvage_tests::cluster::Options;
use selvage_tests::product::{Product, workspace_root};
use selvage_tests::stage::{Stage, options};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn the_program_of_the_readme_works() {
    let product = Product::ready().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), &product);
    // The program is a web node of its own: n2 is configured, and no nginx is started for it.
    let later = vec!["n2".into()];
    let stage = Stage::with(Options { nodes: 2, servers: 2, later, ..options() }).await;
    let mut command = match stage.web_user() {
        Some(user) => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &user.uid.to_string(), "--regid", &user.gid.to_string()]);
            command.arg("--clear-groups").arg(&program);
            command
        }
        None => Command::new(&program),
    };
    command.env("SELVAGE_CONFIG", stage.folder().unwrap().config()).env("SELVAGE_NODE", "n2");
    command.env("LD_LIBRARY_PATH", folder.path());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.trim(), "visit 1, 2 copies");
    stage.end();
}

/// Compiles the README's one block of C.
fn compile(folder: &Path, product: &Product) -> PathBuf {
    let readme = fs::read_to_string(workspace_root().join("README.md")).unwrap();
    let code =
        readme.split("```c\n").nth(1).expect("a block of C in the README").split("```").next().unwrap();
    let source = folder.join("readme.c");
    fs::write(&source, code).unwrap();
    // The other user of the test may not be able to enter the folder of the build.
    for name in ["libselvage.so", "libselvage.so.0"] {
        fs::copy(product.library(), folder.join(name)).unwrap();
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.join("readme");
    let mut command = Command::new("cc");
    command.args(["-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", "-I"]);
    command.arg(workspace_root().join("include")).arg(&source);
    command.arg("-L").arg(folder).args(["-lselvage", "-o"]).arg(&program);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

/// Every key of the configuration stands in `docs/using.md`, with the default that it has.
#[test]
fn the_documented_defaults_are_the_defaults() {
    let text = fs::read_to_string(workspace_root().join("docs/using.md")).unwrap();
    let mut documented = String::new();
    let mut required = String::new();
    let mut keys = 0;
    let chapter = text.split("\n## ").find(|chapter| chapter.starts_with("Configuration")).unwrap();
    for line in chapter.lines() {
        if let Some(table) = line.strip_prefix("### `[").and_then(|rest| rest.strip_suffix('`')) {
            for text in [&mut documented, &mut required] {
                text.push_str(&format!("[{table}\n"));
            }
        }
        let cells: Vec<&str> = line.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
        let [key, default, _] = cells[..] else { continue };
        let Some(key) = key.strip_prefix('`').and_then(|key| key.strip_suffix('`')) else { continue };
        let (value, is_required) = match (key, default) {
            ("name", "required") => ("\"x1\"", true),
            ("run_dir", "required") => ("\"/run/x\"", true),
            ("cookie_keys", "required") => {
                ("[\"00000000000000000000000000000000000000000000000000000000000000ff\"]", true)
            }
            ("address", "required") => ("\"127.0.0.1:9001\"", true),
            ("certificates", "required") => {
                ("[{ certificate = \"/etc/x.pem\", key = \"/etc/x.key\" }]", true)
            }
            ("listen", "required") => ("\"127.0.0.1:8443\"", true),
            ("dir", "required") => ("\"/etc/x\"", true),
            (_, "none") => {
                keys += 1;
                continue;
            }
            (_, default) => match default.strip_prefix('`').and_then(|it| it.strip_suffix('`')) {
                Some(value) => (value, false),
                None => continue,
            },
        };
        keys += 1;
        documented.push_str(&format!("{key} = {value}\n"));
        if is_required {
            required.push_str(&format!("{key} = {value}\n"));
        }
    }
    let parse = |text: &str| Config::parse(Path::new("docs"), text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(format!("{:?}", parse(&documented)), format!("{:?}", parse(&required)));
    // Unknown keys are errors, so the table has no key too many; this is against keys that it has not.
    // The tables of a table are tables of their own in the document; what a certificate is stands in its row.
    let elsewhere = ["pub tls: Option<FrontTls>", "pub health: Health", "pub certificate:", "pub key:"];
    let mut fields = 0;
    for file in ["mod.rs", "director.rs", "front.rs"] {
        let source = fs::read_to_string(workspace_root().join("fabric/src/config").join(file)).unwrap();
        let settings = source.split("#[serde(deny_unknown_fields").skip(1);
        let settings = settings.map(|text| text.split("\n}").next().unwrap()).collect::<String>();
        let settings = settings.lines().filter(|line| line.starts_with("    pub "));
        fields += settings.filter(|line| elsewhere.iter().all(|other| !line.contains(other))).count();
    }
    assert_eq!(keys, fields, "keys in the document, fields in fabric/src/config");
}

/// The configuration of the chapter on several hosts is a good one.
#[test]
fn the_documented_cluster_of_several_hosts_is_good() {
    let text = fs::read_to_string(workspace_root().join("docs/using.md")).unwrap();
    let chapter = text.split("\n## ").find(|chapter| chapter.starts_with("Several hosts and RDMA")).unwrap();
    let example = chapter.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let example = example.replace("64 hexadecimal digits, from: openssl rand -hex 32", &"0f".repeat(32));
    let config = Config::parse(Path::new("docs"), &example).unwrap();
    assert_eq!((config.servers.len(), config.nodes.len()), (2, 2));
    assert!(config.tls.is_some() && config.director.control.is_some());
    assert!(config.servers.iter().all(|server| server.control.is_some()));
}
