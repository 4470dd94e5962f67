//! What another version of the configuration file changes, and what of it can be done while running.
//!
//! Three kinds of keys: those that count for the next request, those for which the control side begins again
//! (a planned restart inside the process, while the proxy goes on by the last view), and those for which the
//! director must be restarted, because another part has them, too, or because they are its place on the host.
//! What needs a restart keeps its old value. Keys are compared as they stand in the file. Pure but for
//! reading it. Callers: [`crate::daemon`], and `selvage check-config --against-running` by the admin API.

use selvage_fabric::config::Config;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// A configuration and the file's text.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Checked.
    pub config: Config,
    text: Table,
}

/// What a reload changes, by key.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Changes {
    /// Counts at once.
    pub at_once: Vec<String>,
    /// The control side begins again for it.
    pub control: Vec<String>,
    /// Counts only after a restart.
    pub needs_restart: Vec<String>,
}

/// What a reload would change, or has changed, as the admin API says it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pending {
    /// The file that is read.
    pub file: PathBuf,
    /// By kind.
    #[serde(flatten)]
    pub changes: Changes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    AtOnce,
    Control,
    Restart,
}

impl Loaded {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::os(Origin::Config, format!("cannot read the configuration {}", path.display()), error)
        })?;
        let config = Config::parse(path, &text)?;
        let text = text.parse().map_err(|error| {
            Error::new(ErrorKind::Invalid, Origin::Config, "the configuration is no table").with_source(error)
        })?;
        Ok(Self { config, text })
    }

    /// What changes with `next`, and the configuration that counts then.
    pub fn changes(&self, mut next: Self) -> (Changes, Self) {
        let mut changes = Changes::default();
        let mut keys = BTreeSet::new();
        compare(&Value::Table(self.text.clone()), &Value::Table(next.text.clone()), "", &mut keys);
        for key in keys {
            match kind(&key) {
                Kind::AtOnce => changes.at_once.push(key),
                Kind::Control => changes.control.push(key),
                Kind::Restart => changes.needs_restart.push(key),
            }
        }
        let (old, new) = (&self.config, &mut next.config);
        let cluster = (new.cluster.cookie_keys.clone(), new.cluster.copies);
        new.cluster = old.cluster.clone();
        (new.cluster.cookie_keys, new.cluster.copies) = cluster;
        new.director.listen = old.director.listen;
        new.director.admin_listen = old.director.admin_listen;
        new.director.control = old.director.control;
        match (&old.director.tls, &mut new.director.tls) {
            (Some(old), Some(new)) => new.listen = old.listen,
            (old, new) => *new = old.clone(),
        }
        new.session = old.session.clone();
        new.timing = old.timing.clone();
        new.memory = old.memory.clone();
        new.tls = old.tls.clone();
        new.rdma = old.rdma.clone();
        // What needs a restart is compared with what runs, the next time, too.
        let text = restore(&self.text, next.text, &changes.needs_restart);
        (changes, Self { config: next.config, text })
    }
}

impl Changes {
    /// In words, for the log.
    pub fn said(&self) -> String {
        let list = |what: &str, keys: &[String]| match keys {
            [] => None,
            keys => Some(format!("{what}: {}", keys.join(", "))),
        };
        let parts = [
            list("counts from now on", &self.at_once),
            list("the control side begins again for", &self.control),
            list("needs a restart", &self.needs_restart),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() { "nothing has changed".to_owned() } else { parts.join("; ") }
    }
}

/// How a key's change is taken. Unknown ones are refused before.
fn kind(key: &str) -> Kind {
    let parts: Vec<&str> = key.split('.').collect();
    match parts.as_slice() {
        ["cluster", "cookie_keys"] => Kind::AtOnce,
        ["cluster", "copies"] => Kind::Control,
        ["director", "listen" | "admin_listen" | "control"] => Kind::Restart,
        ["director", "tls"] | ["director", "tls", "listen"] => Kind::Restart,
        ["director", ..] => Kind::AtOnce,
        ["node", _, "weight" | "maxconn"] => Kind::AtOnce,
        ["node" | "server", ..] => Kind::Control,
        _ => Kind::Restart,
    }
}

/// Notes the keys whose values differ. Tables are looked into, also arrays of tables with names.
fn compare(old: &Value, new: &Value, at: &str, keys: &mut BTreeSet<String>) {
    let (Some(old_table), Some(new_table)) = (named(old), named(new)) else {
        if old != new {
            keys.insert(at.to_owned());
        }
        return;
    };
    for key in old_table.keys().chain(new_table.keys()) {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        match (old_table.get(key), new_table.get(key)) {
            (Some(old), Some(new)) => compare(old, new, &path, keys),
            // A table that one of them has not is one key, unless its parts are of several kinds.
            (one, other) => {
                let whole = one.or(other).and_then(Value::as_table);
                match whole.filter(|_| path == "director" || path == "cluster" || path == "director.health") {
                    Some(table) => keys.extend(table.keys().map(|key| format!("{path}.{key}"))),
                    None => {
                        keys.insert(path);
                    }
                }
            }
        }
    }
}

/// A table, or an array of tables by their names.
fn named(value: &Value) -> Option<Table> {
    match value {
        Value::Table(table) => Some(table.clone()),
        Value::Array(entries) if !entries.is_empty() => entries
            .iter()
            .map(|entry| {
                let name = entry.as_table()?.get("name")?.as_str()?;
                Some((name.to_owned(), entry.clone()))
            })
            .collect(),
        _ => None,
    }
}

/// The new text with the old values of these keys, none of which is in an array.
fn restore(old: &Table, mut new: Table, keys: &[String]) -> Table {
    for key in keys {
        let parts: Vec<&str> = key.split('.').collect();
        let Some((last, tables)) = parts.split_last() else { continue };
        let value = tables
            .iter()
            .try_fold(old, |table, part| table.get(*part)?.as_table())
            .and_then(|table| table.get(*last));
        let mut at = Some(&mut new);
        for part in tables {
            at = at.and_then(|table| {
                let inner = table.entry(*part).or_insert_with(|| Value::Table(Table::new()));
                inner.as_table_mut()
            });
        }
        if let Some(table) = at {
            match value {
                Some(value) => table.insert((*last).to_owned(), value.clone()),
                None => table.remove(*last),
            };
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "[cluster]\nname = \"t\"\nrun_dir = \"/run/t\"\ncookie_keys = [\"KEY\"]\n\
        [director]\nhold_ms = 500\nlisten = \"127.0.0.1:80\"\n[director.health]\nfall = 2\n\
        [session]\nidle_s = 60\n\
        [[server]]\nname = \"s1\"\n[[node]]\nname = \"n1\"\naddress = \"127.0.0.1:1\"\n\
        [[node]]\nname = \"n2\"\naddress = \"127.0.0.1:2\"\nweight = 5\n";

    fn loaded(text: &str) -> Loaded {
        let text = text.replace("KEY", &"11".repeat(32)).replace("NEW", &"22".repeat(32));
        let config = Config::parse(Path::new("t.toml"), &text).unwrap();
        Loaded { config, text: text.parse().unwrap() }
    }

    fn changes(edits: &[(&str, &str)]) -> (Changes, Loaded) {
        let text = edits.iter().fold(OLD.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        });
        loaded(OLD).changes(loaded(&text))
    }

    #[test]
    fn each_key_is_taken_as_it_can_be() {
        let nothing = Changes::default();
        assert_eq!(changes(&[]).0, nothing);
        assert_eq!(nothing.said(), "nothing has changed");
        let (found, after) = changes(&[
            ("[\"KEY\"]", "[\"NEW\", \"KEY\"]"),
            ("hold_ms = 500", "hold_ms = 700\naccess_log = \"-\""),
            ("fall = 2", "fall = 4\npath = \"/up\""),
            (":80\"", ":81\""),
            ("idle_s = 60", "idle_s = 61"),
            ("weight = 5", "weight = 6"),
            ("[[server]]", "[[server]]\nname = \"s0\"\n[[server]]"),
        ]);
        let expected = Changes {
            at_once: vec![
                "cluster.cookie_keys".into(),
                "director.access_log".into(),
                "director.health.fall".into(),
                "director.health.path".into(),
                "director.hold_ms".into(),
                "node.n2.weight".into(),
            ],
            control: vec!["server.s0".into()],
            needs_restart: vec!["director.listen".into(), "session.idle_s".into()],
        };
        assert_eq!(found, expected);
        assert_eq!((after.config.director.hold_ms, after.config.director.listen.port()), (700, 80));
        assert_eq!((after.config.session.idle_s, after.config.servers.len()), (60, 2));
        assert_eq!((after.config.cluster.cookie_keys.len(), after.config.nodes[1].weight), (2, 6));
        // What is put off stays so; what was done is done.
        let again = changes(&[(":80\"", ":81\""), ("hold_ms = 500", "hold_ms = 700")]).1;
        let text = OLD.replace(":80\"", ":81\"").replace("hold_ms = 500", "hold_ms = 700");
        let (found, _) = again.changes(loaded(&text));
        assert_eq!((found.at_once, found.needs_restart), (vec![], vec!["director.listen".to_owned()]));
    }

    #[test]
    fn members_that_come_and_go_concern_the_control_side() {
        let (found, after) = changes(&[
            ("[[node]]\nname = \"n1\"\naddress = \"127.0.0.1:1\"\n", ""),
            ("weight = 5", "weight = 5\n[[node]]\nname = \"n3\"\naddress = \"127.0.0.1:3\""),
        ]);
        assert_eq!(found.control, ["node.n1", "node.n3"]);
        assert!(found.needs_restart.is_empty() && after.config.node("n1").is_none());
    }

    #[test]
    fn tls_comes_and_goes_with_a_restart_and_its_certificates_without() {
        let tls = "[director.tls]\nlisten = \"127.0.0.1:443\"\n\
                   certificates = [{ certificate = \"/a\", key = \"/b\" }]\n[session]";
        let (found, after) = changes(&[("[session]", tls)]);
        assert_eq!(found.needs_restart, ["director.tls"]);
        assert!(after.config.director.tls.is_none());
        let with = OLD.replace("[session]", tls);
        let other = with.replace("/a", "/c").replace(":443", ":444");
        let (found, after) = loaded(&with).changes(loaded(&other));
        assert_eq!(found.at_once, ["director.tls.certificates"]);
        assert_eq!(found.needs_restart, ["director.tls.listen"]);
        assert_eq!(after.config.director.tls.unwrap().listen.port(), 443);
    }
}
