//! The environment's proxies, which are not used: credentials, audio and the ledger go to CouchDB directly, or not at all.

/// The variables that other programs take a proxy from.
const VARIABLES: [&str; 6] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// The variables that name a proxy. Never their values: these may have credentials.
pub fn ignored() -> Vec<&'static str> {
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    VARIABLES.into_iter().filter(is_set).collect()
}
