//! What is logged: a filter, which can be changed while the process runs.

use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tracing::info;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Longest filter that is taken, in bytes.
const MAX_BYTES: usize = 4096;

/// Why a text is no filter. Follows the text in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FilterError {
    #[error("is empty")]
    Empty,
    #[error("is longer than {MAX_BYTES} bytes")]
    TooLong,
    #[error(
        "has {0:?} in it, which is neither a level (error, warn, info, debug, trace, off) nor a target with one, such as kz_record_call::amqp=debug"
    )]
    NoLevel(String),
    #[error("is not a filter: {0}")]
    Unreadable(String),
    #[error("cannot be set: the process has no logger any more")]
    Gone,
}

/// The process' filter. Cheap to clone.
#[derive(Clone)]
pub struct LogLevel {
    handle: reload::Handle<EnvFilter, Registry>,
    text: Arc<Mutex<String>>,
}

impl LogLevel {
    pub(super) fn new(handle: reload::Handle<EnvFilter, Registry>, text: &str) -> Self {
        Self {
            handle,
            text: Arc::new(Mutex::new(text.to_owned())),
        }
    }

    /// The filter that is in force, as it was given.
    pub fn get(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another filter in force, until the process ends.
    ///
    /// # Errors
    /// Why `text` is no filter; the one before stays then.
    pub fn set(&self, text: &str) -> Result<(), FilterError> {
        let text = text.trim();
        let new = filter(text)?;
        let mut present = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *present, text.to_owned());
        // Under the old filter and under the new one: one of them lets it through, unless both are silent.
        info!(before, now = text, "the log level changes");
        self.handle.reload(new).map_err(|_| FilterError::Gone)?;
        info!(before, now = text, "the log level has changed");
        Ok(())
    }
}

/// Reads a filter. A lone word counts as a target for `EnvFilter`, so that a typing error would silence everything else; here it is one.
pub(super) fn filter(text: &str) -> Result<EnvFilter, FilterError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(FilterError::Empty);
    }
    if text.len() > MAX_BYTES {
        return Err(FilterError::TooLong);
    }
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let lone = |part: &&&str| !part.contains('=') && part.parse::<LevelFilter>().is_err();
    if let Some(word) = parts.iter().find(lone) {
        return Err(FilterError::NoLevel((*word).to_owned()));
    }
    if parts.is_empty() {
        return Err(FilterError::Empty);
    }
    let text = parts.join(",");
    // lapin calls every lost connection an error; ours say what it means. A filter that names lapin wins.
    EnvFilter::try_new(format!("lapin=off,{text}")).map_err(|error| FilterError::Unreadable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_targets_are_filters() {
        for text in [
            "info",
            "WARN",
            " debug ",
            "off",
            "info,",
            "info,kz_record_call::amqp=debug",
            "info, kz_record_call=trace,lapin=warn",
            "kz_record_call[action{trace_id=\"a\"}]=debug,info",
        ] {
            assert!(filter(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_would_silence_everything_by_mistake_is_refused_with_its_reason() {
        assert_eq!(filter("").unwrap_err(), FilterError::Empty);
        assert_eq!(filter(" \n").unwrap_err(), FilterError::Empty);
        assert_eq!(filter("inof").unwrap_err(), FilterError::NoLevel("inof".into()));
        assert_eq!(filter(" , ").unwrap_err(), FilterError::Empty);
        assert_eq!(
            filter("info,kz_record_call").unwrap_err(),
            FilterError::NoLevel("kz_record_call".into())
        );
        assert!(matches!(filter("kz_record_call=loud"), Err(FilterError::Unreadable(_))));
        assert_eq!(filter(&"a=info,".repeat(1000)).unwrap_err(), FilterError::TooLong);
    }
}
