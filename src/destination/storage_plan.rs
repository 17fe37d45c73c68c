//! Storage plans of accounts.

pub mod proxy;
