//! Reads `schemas/`. Schemas may point to each other by relative paths, as any validator that reads files resolves them.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use jsonschema::{Retrieve, Uri, Validator};
use serde_json::Value;

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

struct Files;

impl Retrieve for Files {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn Error + Send + Sync>> {
        let relative = uri.path().as_str().trim_start_matches('/');
        Ok(serde_json::from_slice(&std::fs::read(root().join(relative))?)?)
    }
}

/// Every schema file, as its path below `schemas/`.
pub fn files() -> Vec<PathBuf> {
    fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "json") {
                into.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    let mut all = Vec::new();
    walk(&root(), &mut all);
    all.sort();
    all
}

pub fn read(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(root().join(file)).unwrap()).unwrap()
}

/// The validators of all of them, by name without folder and extension.
pub fn all() -> BTreeMap<String, Validator> {
    let built = files().into_iter().map(|file| {
        let options = jsonschema::options()
            .with_base_uri(format!("file:///{}", file.display()))
            .with_retriever(Files);
        let validator = options
            .build(&read(&file))
            .unwrap_or_else(|fault| panic!("{}: {fault}", file.display()));
        (file.file_stem().unwrap().to_str().unwrap().to_owned(), validator)
    });
    built.collect()
}
