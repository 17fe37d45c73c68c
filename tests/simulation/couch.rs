//! A CouchDB cluster of three nodes, in memory.

mod client;
mod cluster;
mod tree;
mod views;

pub use client::Client;
pub use cluster::{Cluster, NODES};
