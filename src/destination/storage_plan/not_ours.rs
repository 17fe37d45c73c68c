//! Why a storage plan's handler is not served natively. Pure.

use thiserror::Error;

/// Kazoo's store proxy serves the handler. The texts contain no value of a setting.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Error)]
pub enum NotOurs {
    /// `storage.drivers` does not have it, or no driver exists.
    #[error("storage.drivers does not have its kind")]
    Kind,
    /// Kazoo makes the audio an attachment of the document as well.
    #[error("its plan has stub: true")]
    Stub,
    #[error("the plan does not describe its settings")]
    Undescribed,
    /// A setting whose meaning for Kazoo is not certain.
    #[error("its setting {0} is missing, or has a form that only Kazoo knows")]
    Setting(&'static str),
    /// A setting with a name that is not known.
    #[error("it has a setting that the worker does not know: {0}")]
    UnknownSetting(String),
    #[error("the object's name is empty, longer than 1024 bytes, or has a segment that HTTP clients change")]
    Name,
}
