//! The log filter, which can be changed while the process runs.

use std::sync::{Arc, Mutex, PoisonError};

use tracing::info;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::{FilterError, log_filter};

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

    /// The present filter, as it was given.
    pub fn get(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets another filter until the process ends.
    ///
    /// # Errors
    /// Why `text` is not a filter. The present filter stays in use then.
    pub fn set(&self, text: &str) -> Result<(), FilterError> {
        let text = text.trim();
        let new = log_filter(text)?;
        let mut present = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *present, text.to_owned());
        // Logged under the old filter and under the new one. At least one of them shows the line, unless both suppress it.
        info!(event = "log_level_changes", before, now = text, "log level changes");
        self.handle.reload(new).map_err(|_| FilterError::Gone)?;
        info!(event = "log_level_changed", before, now = text, "log level changed");
        Ok(())
    }
}
