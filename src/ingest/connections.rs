//! The connections of the upload port. Their number is limited. An idle connection is closed when a new connection needs its place.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// All open connections, the oldest first.
#[derive(Debug)]
pub(super) struct Connections {
    most: usize,
    open: Mutex<VecDeque<Arc<Connection>>>,
}

#[derive(Debug, Default)]
struct Connection {
    /// Requests in flight.
    busy: AtomicUsize,
    leave: CancellationToken,
}

/// A connection's place, held for as long as this value lives.
#[derive(Debug)]
pub(super) struct Place {
    all: Arc<Connections>,
    connection: Arc<Connection>,
}

/// A request in flight, counted for as long as this value lives.
#[derive(Debug)]
pub(super) struct Busy(Arc<Connection>);

impl Connections {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            open: Mutex::default(),
        })
    }

    /// Takes a place for one more connection. At the limit, the oldest idle connection is closed. `None`: all connections have requests in
    /// flight.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= self.most {
            let idle = open.iter().position(|other| other.busy.load(Ordering::Acquire) == 0)?;
            if let Some(idle) = open.remove(idle) {
                idle.leave.cancel();
            }
        }
        let connection = Arc::new(Connection::default());
        open.push_back(Arc::clone(&connection));
        Some(Place {
            all: Arc::clone(self),
            connection,
        })
    }
}

impl Place {
    /// Cancelled when another connection needs the place.
    pub(super) fn leave(&self) -> CancellationToken {
        self.connection.leave.clone()
    }

    pub(super) fn begin(&self) -> Busy {
        self.connection.busy.fetch_add(1, Ordering::AcqRel);
        Busy(Arc::clone(&self.connection))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.all.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|other| !Arc::ptr_eq(other, &self.connection));
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_nothing_makes_room_and_who_uploads_stays() {
        let all = Connections::new(2);
        let (uploads, idle) = (all.enter().unwrap(), all.enter().unwrap());
        let busy = uploads.begin();
        let next = all.enter().unwrap();
        assert!(idle.leave().is_cancelled() && !uploads.leave().is_cancelled());
        let more = next.begin();
        assert!(all.enter().is_none(), "all upload");
        drop((busy, idle));
        assert!(all.enter().is_some() && uploads.leave().is_cancelled());
        drop((more, next, uploads));
        assert!(all.open.lock().unwrap().is_empty());
    }
}
