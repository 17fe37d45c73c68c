//! The log filter as a text: a level, or levels by target.

use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// Longest accepted filter, in bytes.
const MAX_BYTES: usize = 4096;

/// Why a text is not a filter. The message follows the text in a sentence.
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

/// Parses a filter. `EnvFilter` takes a lone word as a target, so a typing error would silence all other targets. Here a lone word that is
/// not a level is an error.
///
/// # Errors
/// Why the text is not a filter.
pub fn log_filter(text: &str) -> Result<EnvFilter, FilterError> {
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
    // lapin logs each lost connection as an error. The worker's own lines explain what the loss means. A filter that names lapin wins.
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
            assert!(log_filter(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_would_silence_everything_by_mistake_is_refused_with_its_reason() {
        assert_eq!(log_filter("").unwrap_err(), FilterError::Empty);
        assert_eq!(log_filter(" \n").unwrap_err(), FilterError::Empty);
        assert_eq!(log_filter("inof").unwrap_err(), FilterError::NoLevel("inof".into()));
        assert_eq!(log_filter(" , ").unwrap_err(), FilterError::Empty);
        assert_eq!(
            log_filter("info,kz_record_call").unwrap_err(),
            FilterError::NoLevel("kz_record_call".into())
        );
        assert!(matches!(
            log_filter("kz_record_call=loud"),
            Err(FilterError::Unreadable(_))
        ));
        assert_eq!(log_filter(&"a=info,".repeat(1000)).unwrap_err(), FilterError::TooLong);
    }
}
