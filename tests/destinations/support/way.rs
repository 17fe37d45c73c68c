//! The ways to store a recording in a database: each road, to the account's own server and to the third party's.

use kz_record_call::couch::{Couch, Server};
use kz_record_call::destination::DeliveryError;
use kz_record_call::destination::couchdb_write::{self, Job, Road, Stored};
use kz_record_call::recording::progress::{Progress, State};

use super::{Couchdb, Front, Recording, World};

/// All of them.
pub const WAYS: [Way; 4] = [
    Way {
        road: Road::First,
        third_party: false,
    },
    Way {
        road: Road::First,
        third_party: true,
    },
    Way {
        road: Road::Second,
        third_party: false,
    },
    Way {
        road: Road::Second,
        third_party: true,
    },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    pub road: Road,
    pub third_party: bool,
}

/// A way with a server and databases to go it to.
pub struct Case {
    pub way: Way,
    pub world: World,
    pub front: Front,
    pub couch: Couch,
}

impl Case {
    /// With the recording's database there already.
    pub async fn new(couchdb: &Couchdb, way: Way, recording: &Recording) -> anyhow::Result<Self> {
        Self::of(World::with_database_of(couchdb, recording).await?, way).await
    }

    pub async fn of(world: World, way: Way) -> anyhow::Result<Self> {
        // The worker learns the road from the server's version.
        let version = match way.road {
            Road::First => "3.3.3",
            Road::Second => "1.1.1",
        };
        let front = Front::of(&world.url, Some(version)).await;
        let couch = if way.third_party {
            let elsewhere = Server::parse(&front.url, 5984)?;
            Couch::elsewhere(&elsewhere, &world.config("http://127.0.0.1:1"))?
        } else {
            Couch::new(&world.config(&front.url))?
        };
        Ok(Self {
            way,
            world,
            front,
            couch,
        })
    }

    pub fn destination(&self) -> &'static str {
        if self.way.third_party { "third_party" } else { "account" }
    }

    /// One attempt to store, the first.
    pub async fn put(&self, recording: &Recording) -> Result<Stored, DeliveryError> {
        self.put_after(recording, 0).await
    }

    /// One attempt, after some that failed.
    pub async fn put_after(&self, recording: &Recording, failures: u32) -> Result<Stored, DeliveryError> {
        let job = Job {
            audio: &recording.audio,
            source: &recording.source,
            ids: &recording.ids,
            subject: |id| recording.subject(id, self.destination()),
            progress: Some(Progress {
                state: State::Complete,
                attempts: failures + 1,
                cause: Some("complete"),
            }),
            failures,
            untouched: false,
            create_database: self.way.third_party,
        };
        couchdb_write::put(&self.couch, &job).await
    }

    pub async fn finish(self) -> anyhow::Result<()> {
        self.world.finish().await
    }
}
