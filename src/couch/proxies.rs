//! The proxies of the environment, which the worker does not use. Credentials, audio and the ledger go directly to CouchDB, or not at all.

/// The variables that other programs read a proxy from.
const VARIABLES: [&str; 6] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// The variables that name a proxy. Their values are left out, because they may hold credentials.
pub fn ignored() -> Vec<&'static str> {
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    VARIABLES.into_iter().filter(is_set).collect()
}
