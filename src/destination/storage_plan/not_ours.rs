//! Why a storage plan's handler is not served natively. Pure.

use thiserror::Error;

/// Kazoo's store proxy serves the handler. The texts contain no value of a setting.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotOurs {
    /// A setting whose meaning for Kazoo is not certain.
    #[error("its setting {0} has a form that only Kazoo knows")]
    Setting(&'static str),
}
