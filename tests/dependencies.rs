//! What deny.toml says of the dependencies holds, and the heavy ones are in the program once. Asks cargo alone, so it needs no tool that a fresh
//! machine does not have; known vulnerabilities and withdrawn releases are not looked up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::process::Command;

/// Each of these is in the program in one version: one HTTP client, one TLS library.
const ONCE: &[&str] = &[
    "reqwest",
    "rustls",
    "hyper",
    "aws-lc-rs",
    "lapin",
    "tokio",
    "couch_rs",
    "serde_json",
    "uuid",
    "tracing",
];

struct Package {
    name: String,
    version: String,
    /// A folder or a repository; empty for what comes from the registry.
    source: String,
    licence: String,
}

/// Every package that is compiled into the program, with all its features, for a platform. Those of the tests are left out.
fn packages(platform: &str) -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        // Optional crates that no build has fetched yet are fetched: --offline would fail on a fresh machine. The lock file is never changed.
        .args(["tree", "--locked", "--all-features", "--edges", "normal,build"])
        .args([
            "--no-dedupe",
            "--prefix",
            "none",
            "--format",
            "{p}|{l}",
            "--target",
            platform,
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let lines: BTreeSet<&str> = tree.lines().collect();
    let packages = lines.into_iter().map(|line| {
        let (package, licence) = line.split_once('|').unwrap();
        // Macros are marked as such.
        let package = package.replace(" (proc-macro)", "");
        let mut words = package.splitn(3, ' ');
        Package {
            name: words.next().unwrap().to_owned(),
            version: words.next().unwrap().trim_start_matches('v').to_owned(),
            source: words.next().unwrap_or_default().trim_matches(['(', ')']).to_owned(),
            licence: licence.to_owned(),
        }
    });
    packages.collect()
}

fn deny() -> toml::Table {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml");
    std::fs::read_to_string(path).unwrap().parse().unwrap()
}

/// The packages for every platform that deny.toml names.
fn everywhere() -> Vec<Package> {
    let deny = deny();
    let platforms = deny["graph"]["targets"].as_array().unwrap();
    let all = platforms.iter().flat_map(|p| packages(p["triple"].as_str().unwrap()));
    let all: Vec<Package> = all.collect();
    assert!(all.len() > 300, "{}", all.len());
    all
}

fn versions<'a>(all: &'a [Package], name: &str) -> BTreeSet<&'a str> {
    all.iter()
        .filter(|package| package.name == name)
        .map(|package| package.version.as_str())
        .collect()
}

#[test]
fn the_heavy_dependencies_are_there_once() {
    let all = everywhere();
    for once in ONCE {
        assert_eq!(versions(&all, once).len(), 1, "{once}");
    }
}

/// `name`, or `name:<major.minor`.
#[test]
fn no_banned_crate_is_in_the_program() {
    let (all, deny) = (everywhere(), deny());
    let numbers = |version: &str| -> Vec<u64> { version.split('.').filter_map(|part| part.parse().ok()).collect() };
    let banned = deny["bans"]["deny"].as_array().unwrap();
    assert!(!banned.is_empty());
    for ban in banned {
        let (written, reason) = (ban["crate"].as_str().unwrap(), &ban["reason"]);
        let (name, below) = match written.split_once(":<") {
            Some((name, version)) => (name, Some(numbers(version))),
            None => (written, None),
        };
        assert!(!name.contains(':'), "{written} cannot be read here");
        for version in versions(&all, name) {
            let allowed = below.as_ref().is_some_and(|below| numbers(version) >= *below);
            assert!(allowed, "{name} {version} is banned: {reason:?}");
        }
    }
}

#[test]
fn every_crate_comes_from_the_registry_or_from_here() {
    let all = everywhere();
    let other: Vec<&Package> = all.iter().filter(|package| !package.source.is_empty()).collect();
    // The program itself, and what is mended in third_party.
    assert!(!other.is_empty());
    for Package { name, source, .. } in other {
        assert!(source.starts_with(env!("CARGO_MANIFEST_DIR")), "{name}: {source}");
    }
}

/// A licence expression, read from left to right: AND binds closer than OR, as SPDX has it; `/` is an old OR.
struct Expression<'a> {
    words: std::iter::Peekable<std::vec::IntoIter<&'a str>>,
    allowed: &'a dyn Fn(&str) -> bool,
}

impl Expression<'_> {
    fn any(&mut self) -> bool {
        let mut good = self.all();
        while self.words.next_if(|word| *word == "OR" || *word == "/").is_some() {
            good |= self.all();
        }
        good
    }

    fn all(&mut self) -> bool {
        let mut good = self.one();
        while self.words.next_if_eq(&"AND").is_some() {
            good &= self.one();
        }
        good
    }

    fn one(&mut self) -> bool {
        let word = self.words.next().expect("a licence");
        if word == "(" {
            let good = self.any();
            assert_eq!(self.words.next(), Some(")"));
            return good;
        }
        match self.words.next_if_eq(&"WITH") {
            Some(_) => (self.allowed)(&format!("{word} WITH {}", self.words.next().expect("an exception"))),
            None => (self.allowed)(word),
        }
    }
}

fn may_be_used(licence: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = licence.replace('(', " ( ").replace(')', " ) ").replace('/', " / ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut expression = Expression {
        words: words.into_iter().peekable(),
        allowed,
    };
    let good = expression.any();
    assert_eq!(expression.words.next(), None, "{licence} cannot be read here");
    good
}

#[test]
fn a_licence_expression_is_read_as_spdx_means_it() {
    let allowed = |name: &str| ["MIT", "ISC", "A WITH x"].contains(&name);
    for (licence, good) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("GPL-3.0 AND MIT OR ISC", true),
        ("ISC AND (GPL-3.0 OR MIT)", true),
        ("MIT AND (GPL-3.0 OR A)", false),
        ("A WITH x", true),
        ("A WITH y OR B", false),
    ] {
        assert_eq!(may_be_used(licence, &allowed), good, "{licence}");
    }
}

#[test]
fn every_licence_in_the_program_is_one_that_deny_toml_allows() {
    let deny = deny();
    let list = deny["licenses"]["allow"].as_array().unwrap();
    let allowed = |name: &str| list.iter().any(|licence| licence.as_str() == Some(name));
    for package in everywhere() {
        let Package {
            name, version, licence, ..
        } = package;
        assert!(
            !licence.is_empty() && may_be_used(&licence, &allowed),
            "{name} {version}: {licence:?}"
        );
    }
}
