//! Which crate may depend on which, and which module of fabric may use which.

use super::File;

/// Crates of the workspace and the ones that each may depend on.
const CRATES: [(&str, &str, &[&str]); 7] = [
    ("fabric", "selvage-fabric", &[]),
    ("session-server", "selvage-session-server", &["selvage-fabric"]),
    ("director", "selvage-director", &["selvage-fabric"]),
    ("webnode-ffi", "selvage-webnode-ffi", &["selvage-fabric"]),
    ("tests", "selvage-tests", &["selvage-fabric", "selvage-session-server", "selvage-director"]),
    (
        "bench",
        "selvage-bench",
        &[
            "selvage-fabric",
            "selvage-session-server",
            "selvage-director",
            "selvage-webnode-ffi",
            "selvage-tests",
        ],
    ),
    ("xtask", "xtask", &["selvage-fabric", "selvage-tests"]),
];

/// Fabric's modules that do I/O or hold state, from the top; each may use those after it, and all may use
/// [`BASE`].
const LAYERS: [&str; 6] = ["node", "cache", "transport", "control", "lease", "archive"];

/// Modules that every layer may use, and what each of them may use itself.
const BASE: [(&str, &[&str]); 11] = [
    ("kill", &[]),
    ("limits", &[]),
    ("error", &[]),
    ("log", &["error"]),
    ("numbers", &["error"]),
    ("rules", &[]),
    ("ident", &["error", "limits"]),
    ("sync", &["error", "limits", "rules"]),
    ("view", &["ident", "error", "limits"]),
    ("placement", &["view", "ident", "error", "limits"]),
    ("config", &["ident", "error", "limits"]),
];

/// Complaints about dependencies in the manifests.
pub fn between_crates(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    let names: Vec<&str> = CRATES.iter().map(|(_, name, _)| *name).collect();
    for (folder, crate_name, allowed) in CRATES {
        let path = format!("{folder}/Cargo.toml");
        let Some(file) = files.iter().find(|file| file.path == path) else {
            complaints.push(format!("{path} is missing, but named in tidy's table of crates"));
            continue;
        };
        let manifest: toml::Table = match file.text.parse() {
            Ok(manifest) => manifest,
            Err(error) => {
                complaints.push(format!("{path}: {error}"));
                continue;
            }
        };
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let used =
                manifest.get(table).and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::keys);
            for name in used.filter(|name| names.contains(&name.as_str())) {
                if !allowed.contains(&name.as_str()) && name != crate_name {
                    complaints.push(format!("{path}: {folder} may not depend on {name} in [{table}]"));
                }
            }
        }
    }
    complaints
}

/// Complaints about uses between fabric's modules.
pub fn inside_fabric(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let Some(inside) = file.path.strip_prefix("fabric/src/") else { continue };
        let module = inside.split(['/', '.']).next().unwrap_or_default();
        if module == "lib" {
            continue;
        }
        if !LAYERS.contains(&module) && !BASE.iter().any(|(base, _)| *base == module) {
            complaints.push(format!("{}: module {module} has no place in tidy's table of layers", file.path));
            continue;
        }
        for (line, used) in uses(file.without_tests()) {
            if used != module && !may_use(module, used) {
                complaints.push(format!("{}:{line}: {module} may not use {used}", file.path));
            }
        }
    }
    complaints
}

fn may_use(module: &str, used: &str) -> bool {
    let base = |name: &str| BASE.iter().find(|(base, _)| *base == name);
    if let Some((_, allowed)) = base(module) {
        return allowed.contains(&used);
    }
    let layer = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    match (layer(module), layer(used)) {
        (Some(from), Some(to)) => from < to,
        _ => base(used).is_some(),
    }
}

/// The modules named after `crate::` in code, with their lines; `crate::{a, b::c}` counts for each.
fn uses(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (at, pattern) in text.match_indices("crate::") {
        let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        if text[start..at].contains("//") || text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let line = text[..at].matches('\n').count() + 1;
        let rest = &text[at + pattern.len()..];
        match rest.strip_prefix('{') {
            Some(list) => found.extend(heads(list).into_iter().map(|head| (line, head))),
            None => found.push((line, word(rest))),
        }
    }
    found.retain(|(_, name)| name.starts_with(|c: char| c.is_ascii_lowercase()));
    found
}

/// The first words of the parts of a use list, up to its closing brace.
fn heads(list: &str) -> Vec<&str> {
    let mut heads = vec![word(list.trim_start())];
    let mut depth = 0_usize;
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(word(list[at + 1..].trim_start())),
            _ => {}
        }
    }
    heads
}

fn word(text: &str) -> &str {
    &text[..text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())]
}

#[cfg(test)]
mod tests {
    use super::super::tests::file;
    use super::*;

    #[test]
    fn a_wrong_arrow_between_crates_is_found() {
        let text = "[dependencies]\nselvage-director.workspace = true\n";
        let complaints = between_crates(&[file("session-server/Cargo.toml", text)]);
        assert!(
            complaints.iter().any(|it| it.contains("may not depend on selvage-director")),
            "{complaints:?}"
        );
    }

    #[test]
    fn a_wrong_arrow_inside_fabric_is_found() {
        let complaints = |path: &str, text: &str| inside_fabric(&[file(path, text)]).len();
        assert_eq!(complaints("fabric/src/lease/scan.rs", "use crate::cache::Cache;"), 1);
        assert_eq!(complaints("fabric/src/cache/mod.rs", "use crate::lease::Cell;"), 0);
        assert_eq!(complaints("fabric/src/cache/mod.rs", "use crate::{lease::{a, b}, node::x, limits};"), 1);
        assert_eq!(complaints("fabric/src/placement.rs", "fn a() { crate::config::load() }"), 1);
        assert_eq!(complaints("fabric/src/placement.rs", "// crate::config is not used"), 0);
        assert_eq!(
            complaints("fabric/src/lease/mod.rs", "#[cfg(test)]\nmod tests {\n    use crate::cache;\n}"),
            0
        );
        assert_eq!(complaints("fabric/src/novel.rs", ""), 1);
    }
}
