//! Shares of new sessions: what the configuration says of each node, unless the operator said otherwise while
//! the director ran. His word is kept in the run folder, for the next director, too.

use crate::place;
use crate::proxy::routes::Routes;
use selvage_fabric::config::Config;
use selvage_fabric::error::Result;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// The weights of all nodes.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    routes: Arc<Routes>,
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    configured: BTreeMap<String, u32>,
    told: BTreeMap<String, u32>,
}

impl Tables {
    fn weight(&self, name: &str) -> u32 {
        self.told.get(name).or_else(|| self.configured.get(name)).copied().unwrap_or_default()
    }
}

impl Weights {
    /// As configured, and as the operator told an earlier director here.
    pub fn load(config: &Config, routes: Arc<Routes>) -> Self {
        let path = config.cluster.run_dir.join("director.weights");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let line = |line: &str| {
            line.split_once(' ')
                .and_then(|(name, weight)| Some((name.to_owned(), weight.trim().parse().ok()?)))
        };
        let told = text.lines().filter_map(line).collect();
        let weights = Self { path, routes, tables: Mutex::new(Tables { told, ..Tables::default() }) };
        weights.configure(config);
        weights
    }

    /// Takes a configuration.
    pub fn configure(&self, config: &Config) {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.configured = config.nodes.iter().map(|node| (node.name.clone(), node.weight)).collect();
        for name in tables.configured.keys() {
            self.routes.weigh(name, tables.weight(name));
        }
    }

    /// The operator's word on a node; `None`: as configured.
    ///
    /// # Errors
    /// `Os` if it cannot be kept; then nothing is changed.
    pub fn set(&self, name: &str, weight: Option<u32>) -> Result<()> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = tables.told.clone();
        match weight {
            Some(weight) => told.insert(name.to_owned(), weight),
            None => told.remove(name),
        };
        let lines: String = told.iter().map(|(name, weight)| format!("{name} {weight}\n")).collect();
        place::replace(&self.path, &lines)?;
        tables.told = told;
        self.routes.weigh(name, tables.weight(name));
        Ok(())
    }

    /// A node's weight.
    pub fn of(&self, name: &str) -> u32 {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).weight(name)
    }
}
