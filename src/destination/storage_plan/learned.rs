//! What a worker has learned of object stores: a bucket's region, a server's clock, and whether ETags there are MD5s.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::destination::url::http::exchange::Reply;
use crate::kazoo::time::Moment;

/// Places that are remembered. Accounts may name any number of them. Beyond that all are forgotten.
const MOST: usize = 1024;

/// What is known of one bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Learned {
    pub region: Option<String>,
    /// How many seconds the server's clock is ahead.
    pub skew_s: i64,
    /// An ETag there was the MD5 of its object.
    pub has_md5_etags: bool,
    /// The server refused a PUT because of its condition, and took the same PUT without one.
    pub takes_no_conditions: bool,
}

impl Learned {
    /// Our time, as the server's clock has it.
    pub fn corrected(&self, now: Moment) -> Moment {
        let skew = Duration::from_secs(self.skew_s.unsigned_abs());
        if self.skew_s < 0 {
            now.minus(skew)
        } else {
            now.plus(skew)
        }
    }
}

/// Remembers what was learned, by the place. Cheap to clone.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<HashMap<String, Learned>>>);

impl Memory {
    pub fn of(&self, place: &str) -> Learned {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(place).cloned().unwrap_or_default()
    }

    pub fn learn(&self, place: &str, lesson: impl FnOnce(&mut Learned)) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST && !known.contains_key(place) {
            known.clear();
        }
        lesson(known.entry(place.to_owned()).or_default());
    }
}

/// By how many seconds the server's clock is ahead of ours.
pub fn skew_s(reply: &Reply, now: Moment) -> Option<i64> {
    let theirs = httpdate::parse_http_date(reply.header("date")?).ok()?;
    let theirs = theirs.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(i64::try_from(theirs.as_secs()).ok()? - now.unix_seconds())
}

/// The corrections of one request: each may be made once.
#[derive(Debug, Default)]
pub struct Lessons {
    region: bool,
    clock: bool,
}

impl Lessons {
    /// Whether the region may be corrected now.
    pub fn region(&mut self) -> bool {
        !std::mem::replace(&mut self.region, true)
    }

    /// Whether the clock may be corrected now.
    pub fn clock(&mut self) -> bool {
        !std::mem::replace(&mut self.clock, true)
    }
}
