//! Three nodes, each with a copy of everything. A request goes to one of them, which asks the others that it reaches.

use std::collections::{BTreeMap, BTreeSet};

use super::tree::Document;

pub const NODES: usize = 3;
/// As many copies make a write or a read certain.
pub const QUORUM: usize = 2;

/// A copy of one database.
#[derive(Debug, Clone, Default)]
pub struct Database {
    /// Two databases of one name, made on both sides of a partition, have different births.
    pub birth: u64,
    pub documents: BTreeMap<String, Document>,
    /// In the order of their last change.
    pub changes: BTreeMap<u64, String>,
    pub sequence: u64,
}

impl Database {
    pub fn changed(&mut self, id: &str) {
        self.changes.retain(|_, of| of != id);
        self.sequence += 1;
        self.changes.insert(self.sequence, id.to_owned());
    }

    /// Whether another copy has the same documents.
    fn is_same(&self, other: &Self) -> bool {
        let equal = |((id, own), (theirs, other)): ((&String, &Document), (&String, &Document))| {
            id == theirs && own.is_same(other)
        };
        self.documents.len() == other.documents.len() && self.documents.iter().zip(&other.documents).all(equal)
    }

    fn replicate(&mut self, other: &Self) {
        for (id, theirs) in &other.documents {
            if self.documents.get(id).is_some_and(|own| own.is_same(theirs)) {
                continue;
            }
            if self.documents.entry(id.clone()).or_default().replicate(theirs) {
                self.changed(id);
            }
        }
    }
}

#[derive(Debug, Clone)]
pub struct Node {
    pub up: bool,
    /// It has the list of databases. Without it, it answers that no database exists.
    pub knows: bool,
    /// Nodes and hosts of one side reach each other.
    pub side: u8,
    pub databases: BTreeMap<String, Database>,
}

#[derive(Debug)]
pub struct Cluster {
    pub nodes: [Node; NODES],
    pub births: u64,
    /// Copies differ.
    pub dirty: bool,
}

impl Default for Cluster {
    fn default() -> Self {
        let node = || Node {
            up: true,
            knows: true,
            side: 0,
            databases: BTreeMap::new(),
        };
        Self {
            nodes: std::array::from_fn(|_| node()),
            births: 0,
            dirty: false,
        }
    }
}

impl Cluster {
    /// The nodes that a node asks, itself included.
    pub fn copies(&self, of: usize) -> Vec<usize> {
        let side = self.nodes[of].side;
        let is_there = |node: &Node| node.up && node.knows && node.side == side;
        (0..NODES).filter(|n| is_there(&self.nodes[*n])).collect()
    }

    /// Internal replication, between the nodes that reach each other.
    pub fn replicate(&mut self) {
        let names: BTreeSet<String> = self
            .nodes
            .iter()
            .flat_map(|node| node.databases.keys().cloned())
            .collect();
        let mut whole = true;
        for side in [0, 1] {
            let there: Vec<usize> = (0..NODES)
                .filter(|n| self.nodes[*n].up && self.nodes[*n].side == side)
                .collect();
            whole &= there.is_empty() || there.len() == NODES;
            for name in &names {
                // Of two databases of one name, one is dropped with all its documents.
                let births = there
                    .iter()
                    .filter_map(|n| self.nodes[*n].databases.get(name))
                    .map(|database| database.birth);
                let Some(birth) = births.max() else { continue };
                let copies = there.iter().filter_map(|n| self.nodes[*n].databases.get(name));
                let copies: Vec<&Database> = copies.filter(|database| database.birth == birth).collect();
                if copies.len() == there.len() && copies.iter().all(|copy| copy.is_same(copies[0])) {
                    continue;
                }
                let mut union = Database {
                    birth,
                    ..Database::default()
                };
                for copy in copies {
                    union.replicate(copy);
                }
                for n in &there {
                    let copy = self.nodes[*n].databases.entry(name.clone()).or_default();
                    if copy.birth != birth {
                        *copy = Database {
                            birth,
                            ..Database::default()
                        };
                    }
                    copy.replicate(&union);
                }
            }
        }
        self.dirty = !whole;
    }

    /// A document as all copies together have it.
    pub fn everything(&self) -> BTreeMap<String, Document> {
        let mut all: BTreeMap<String, Document> = BTreeMap::new();
        for database in self.nodes.iter().flat_map(|node| node.databases.values()) {
            for (id, document) in &database.documents {
                all.entry(id.clone()).or_default().replicate(document);
            }
        }
        all
    }
}
