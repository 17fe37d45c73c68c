//! Collects a query's results over all months. A month that cannot be read must not hide the results of the other months.

use crate::couch::CouchError;
use crate::kazoo::time::Month;
use crate::telemetry::events::MonthUnreadable;

use super::database;

/// The results of several months.
pub(super) struct Readable<T> {
    found: Vec<T>,
    read: usize,
    error: Option<CouchError>,
}

impl<T> Default for Readable<T> {
    fn default() -> Self {
        Self {
            found: Vec::new(),
            read: 0,
            error: None,
        }
    }
}

impl<T> Readable<T> {
    pub fn take(&mut self, month: Month, answer: Result<Vec<T>, CouchError>) {
        match answer {
            Ok(found) => {
                self.read += 1;
                self.found.extend(found);
            }
            Err(error) => {
                MonthUnreadable {
                    database: &database(month),
                    why: &error.to_string(),
                    first: self.error.is_none(),
                }
                .emit();
                self.error = Some(error);
            }
        }
    }

    /// All results.
    ///
    /// # Errors
    /// When no month could be read, and at least one was queried.
    pub fn all(self) -> Result<Vec<T>, CouchError> {
        match self.error {
            Some(error) if self.read == 0 => Err(error),
            _ => Ok(self.found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_that_cannot_be_read_keeps_no_other_from_being_looked_after() {
        let month = Month::of_id("202611-x").unwrap();
        let error = || Err(CouchError::NoAnswer("no".into()));
        let mut months = Readable::default();
        months.take(month, error());
        months.take(month.next(), Ok(vec![1, 2]));
        months.take(month, error());
        assert_eq!(months.all().unwrap(), [1, 2]);
        let mut months = Readable::<u8>::default();
        months.take(month, error());
        assert!(months.all().is_err());
        assert!(Readable::<u8>::default().all().unwrap().is_empty());
    }
}
