//! Revision trees, as one copy of a database has them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use serde_json::{Value, json};

/// A revision: its generation, and a digest of its parent and its content. Equal edits of equal revisions have equal names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rev(u32, u64);

impl Rev {
    pub fn read(text: &str) -> Option<Self> {
        let (generation, digest) = text.split_once('-')?;
        Some(Self(generation.parse().ok()?, u64::from_str_radix(digest, 16).ok()?))
    }
}

impl fmt::Display for Rev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.0, self.1)
    }
}

/// What a client wants to write.
#[derive(Debug, Clone)]
pub struct Edit {
    pub rev: Option<Rev>,
    pub deleted: bool,
    pub body: Arc<Value>,
    digest: u64,
}

impl Edit {
    pub fn of(document: &Value) -> Self {
        let mut body = document.clone();
        let rev = body
            .as_object_mut()
            .and_then(|map| map.remove("_rev"))
            .and_then(|rev| rev.as_str().and_then(Rev::read));
        Self::new(rev, false, body)
    }

    pub fn deletion(rev: Rev) -> Self {
        Self::new(Some(rev), true, Value::Null)
    }

    fn new(rev: Option<Rev>, deleted: bool, body: Value) -> Self {
        let mut hasher = DefaultHasher::new();
        (deleted, body.to_string()).hash(&mut hasher);
        Self {
            rev,
            deleted,
            digest: hasher.finish(),
            body: Arc::new(body),
        }
    }
}

#[derive(Debug, Clone)]
struct Leaf {
    deleted: bool,
    body: Arc<Value>,
}

/// A document with all its branches.
#[derive(Debug, Clone, Default)]
pub struct Document {
    leaves: BTreeMap<Rev, Leaf>,
    /// Revisions that have a successor.
    inner: BTreeSet<Rev>,
}

impl Document {
    /// The revision that readers get: a living one before a deleted one, then the longest history, then the greatest digest.
    pub fn winner(&self) -> Option<(Rev, &Arc<Value>)> {
        let living = self.leaves.iter().filter(|(_, leaf)| !leaf.deleted);
        living
            .max_by_key(|(rev, _)| **rev)
            .map(|(rev, leaf)| (*rev, &leaf.body))
    }

    /// Whether another copy has the same revisions. A revision is named after its content.
    pub fn is_same(&self, other: &Self) -> bool {
        self.inner.len() == other.inner.len() && self.leaves.keys().eq(other.leaves.keys()) && self.inner == other.inner
    }

    pub fn is_branched(&self) -> bool {
        self.leaves.len() > 1
    }

    pub fn revision(&self, rev: Rev) -> Option<Value> {
        let leaf = self.leaves.get(&rev).filter(|leaf| !leaf.deleted)?;
        Some(shown(rev, &leaf.body))
    }

    /// The winner as a reader gets it, with the names of the other living leaves.
    pub fn read(&self) -> Option<Value> {
        let (rev, body) = self.winner()?;
        let mut document = shown(rev, body);
        let others = self
            .leaves
            .iter()
            .filter(|(other, leaf)| !leaf.deleted && **other != rev);
        let others: Vec<String> = others.map(|(rev, _)| rev.to_string()).collect();
        if !others.is_empty() {
            document["_conflicts"] = json!(others);
        }
        Some(document)
    }

    /// An edit by a client: it must name a leaf, or the document must not exist. `None`: a conflict.
    pub fn edit(&mut self, edit: &Edit) -> Option<Rev> {
        let parent = match edit.rev {
            Some(rev) if self.leaves.contains_key(&rev) => Some(rev),
            Some(_) => return None,
            None if self.winner().is_some() => return None,
            None => self.leaves.keys().next_back().copied(),
        };
        let mut hasher = DefaultHasher::new();
        (parent.map(|rev| (rev.0, rev.1)), edit.digest).hash(&mut hasher);
        let rev = Rev(parent.map_or(0, |rev| rev.0) + 1, hasher.finish());
        if let Some(parent) = parent {
            self.leaves.remove(&parent);
            self.inner.insert(parent);
        }
        let leaf = Leaf {
            deleted: edit.deleted,
            body: Arc::clone(&edit.body),
        };
        self.leaves.insert(rev, leaf);
        Some(rev)
    }

    /// Takes over what another copy has. Returns whether anything changed.
    pub fn replicate(&mut self, other: &Self) -> bool {
        let before = (self.leaves.len(), self.inner.len());
        self.inner.extend(other.inner.iter().copied());
        for (rev, leaf) in &other.leaves {
            self.leaves.entry(*rev).or_insert_with(|| leaf.clone());
        }
        let inner = &self.inner;
        self.leaves.retain(|rev, _| !inner.contains(rev));
        before != (self.leaves.len(), self.inner.len())
    }
}

fn shown(rev: Rev, body: &Value) -> Value {
    let mut document = body.clone();
    document["_rev"] = json!(rev.to_string());
    document
}
