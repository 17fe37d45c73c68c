//! Users' URLs.

pub mod guard;
pub mod http;
mod target;

pub use target::{Target, Unusable};
