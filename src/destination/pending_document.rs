//! Documents of recordings whose audio is elsewhere, at a URL or where a storage plan puts it. As in Kazoo, the document is created before
//! the first attempt. The worker completes it after the successful attempt.

use serde_json::{Map, Value};

use crate::couch::{Couch, CouchError, Present};
use crate::entry::fact::{Delivery, Destination as Kind, Document, What};
use crate::kazoo::time::Moment;
use crate::recording::audio::Audio;
use crate::recording::controls::Controls;
use crate::recording::document::Subject;
use crate::recording::identity::{Key, MediaId};
use crate::recording::names;
use crate::recording::progress::{Elsewhere, Progress, State, attached, completed, edited};

use super::couchdb_write::months::Months;
use super::couchdb_write::{is_of, rev, told_audio};
use super::{DeliveryError, Parcel, Search};

/// An existing document.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    pub id: MediaId,
    /// The name that CouchDB uses, without our prefix.
    pub database: String,
    pub rev: String,
    /// Its `pvt_created`.
    pub created: Moment,
    pub key: Key,
    pub document: Map<String, Value>,
}

impl Placed {
    /// Builds this from a document that was read. `None` when the document belongs to another recording.
    fn of(id: &MediaId, database: &str, key: Key, document: Value) -> Option<Self> {
        if !is_of(&document, key) {
            return None;
        }
        let created = document.get("pvt_created").and_then(Value::as_i64)?;
        let rev = rev(&document);
        let Value::Object(document) = document else { return None };
        Some(Self {
            id: id.clone(),
            database: database.to_owned(),
            rev,
            created: Moment::from_gregorian_seconds(created),
            key,
            document,
        })
    }

    /// The document, as a fact.
    pub fn document(self) -> Document {
        Document {
            id: self.id,
            database: self.database,
            rev: self.rev,
            created: self.created,
        }
    }

    /// The delivery that the document describes, as a fact.
    pub fn delivery(self, to: Kind) -> Delivery {
        Delivery {
            destination: to,
            sha256: self.sha256(),
            deleted: self.is_deleted(),
            controls: Some(self.controls()),
            document: self.document(),
            below_quorum: false,
            audio: None,
            edit_told: false,
            again: 0,
        }
    }

    /// Fingerprint of the stops and masks that the document lists.
    pub fn controls(&self) -> String {
        let private = self.document.get("pvt_recording").and_then(Value::as_object);
        Controls::fingerprint_of(private.unwrap_or(&Map::new()))
    }

    /// SHA-256 of the audio that the document describes.
    pub fn sha256(&self) -> Option<String> {
        let proof = self.document.get("pvt_recording")?.get("sha256")?;
        proof.as_str().map(str::to_owned)
    }

    /// The audio as the document describes it. `None` unless the document is complete and its attachment, in whichever place, matches in
    /// length. If the attachment has a digest, the digest must match as well.
    pub fn proven(&self, name: &str) -> Option<Audio> {
        let document = Value::Object(self.document.clone());
        let audio = told_audio(&document)?;
        let stub = ["pvt_attachments", "_attachments"]
            .iter()
            .find_map(|all| document.get(all).and_then(|all| all.get(name)))?;
        let length = stub.get("length").and_then(Value::as_u64) == Some(audio.size);
        let digest = stub.get("digest").and_then(Value::as_str);
        let same = digest.is_none_or(|digest| Some(digest) == audio.digests.couch().as_deref());
        (self.is_complete() && length && same).then_some(audio)
    }

    /// A key that is the same at each attempt and unique to this recording. An id that users choose may belong to recordings of many
    /// accounts.
    pub fn idempotency_key(&self) -> String {
        let key = self.key.to_string();
        if self.id.as_str().ends_with(&key) {
            // The id contains the recording's key, so no other recording has it.
            return self.id.to_string();
        }
        format!("{key}-{}", self.id)
    }

    /// Whether a user has deleted the document. It stays deleted.
    pub fn is_deleted(&self) -> bool {
        self.document.get("pvt_deleted").and_then(Value::as_bool) == Some(true)
    }

    /// Whether any worker has delivered the audio already.
    pub fn is_complete(&self) -> bool {
        is_complete(&self.document)
    }

    /// Whether the document describes other audio of the same recording. A worker may have delivered a part, and was killed before it
    /// recorded that.
    pub fn has_other(&self, audio: &Audio) -> bool {
        self.is_complete() && self.sha256().is_some_and(|sha256| sha256 != audio.digests.sha256)
    }
}

fn is_complete(document: &Map<String, Value>) -> bool {
    let state = document.get("pvt_recording").and_then(|private| private.get("state"));
    state.and_then(Value::as_str) == Some(State::Complete.name())
}

/// Finds the document, or creates it.
///
/// # Errors
/// As `create`.
pub async fn find_or_create(couch: &Couch, parcel: &Parcel<'_>, months: &Months) -> Result<Placed, DeliveryError> {
    if let Some(known) = parcel.entry.documented()
        && let Some(placed) = find(couch, &known.database, &known.id, parcel.order.key).await?
        && !placed.has_other(&parcel.audio)
    {
        return Ok(placed);
    }
    // The last id is used only when the other ids are taken: the database of a month may be created meanwhile.
    let all = parcel.ids();
    let (ids, other) = all.split_at(all.len().saturating_sub(1));
    let progress = Progress {
        state: State::Pending,
        attempts: 0,
        cause: None,
    };
    let subject = |id| parcel.subject(id);
    // On another server this worker does not know what creates the databases.
    let is_home = months.are_on(couch);
    let mut created = create(couch, ids, subject, &progress).await;
    if let (Err(DeliveryError::NoDatabase(database)), true) = (&created, is_home) {
        months.create(parcel.entry, database).await?;
        created = create(couch, ids, subject, &progress).await;
    }
    let placed = match created {
        Err(DeliveryError::Recording(_)) => create(couch, other, subject, &progress).await?,
        created => created?,
    };
    if is_home {
        months.complete_views(parcel.entry, &placed.database).await?;
    }
    Ok(placed)
}

/// Looks for the completed document of a recording, under its possible ids.
///
/// # Errors
/// When the database does not answer, a document does not prove its audio, or no database of any id exists.
pub async fn search(couch: &Couch, to: Kind, sought: &Search<'_>) -> Result<Option<What>, DeliveryError> {
    let (mut is_damaged, mut missing, mut answered) = (false, None, false);
    for id in sought.ids() {
        let database = names::modb(sought.account_id, id.month());
        let placed = match find(couch, &database, &id, sought.order.key).await {
            // The document is then under the next id, as the month of its first one has no database.
            Err(error @ DeliveryError::NoDatabase(_)) => {
                missing = Some(error);
                continue;
            }
            placed => placed?,
        };
        answered = true;
        let Some(placed) = placed.filter(Placed::is_complete) else {
            continue;
        };
        if let Some(audio) = placed.proven(&sought.order.media_name) {
            is_safe(couch, &placed).await?;
            let mut delivery = placed.delivery(to);
            delivery.audio = Some(audio);
            return Ok(Some(What::delivered(delivery)));
        }
        is_damaged = true;
    }
    if is_damaged {
        // A damaged copy counts as not stored.
        let why = "the document does not tell the same length of the audio twice";
        return Err(DeliveryError::Corrupt(why.into()));
    }
    missing.filter(|_| !answered).map_or(Ok(None), Err)
}

/// Attempts of an edit that conflicts with the edits of other workers.
const ROUNDS: usize = 5;

/// Creates the document, or finds it. `subject` builds it for an id. Another recording may own the first id.
///
/// # Errors
/// `NoDatabase` when the database of the last id is missing. Any other error is the present obstacle.
pub async fn create<'a>(
    couch: &Couch,
    ids: &'a [MediaId],
    subject: impl Fn(&'a MediaId) -> Subject<'a>,
    progress: &Progress<'_>,
) -> Result<Placed, DeliveryError> {
    let mut missing = None;
    for id in ids {
        let subject = subject(id);
        let (database, key) = (subject.database(), subject.order.key);
        let document = subject.document_at(progress);
        let put = couch
            .put_document(&database, id.as_str(), &Value::Object(document.clone()))
            .await;
        let failed = match put {
            Ok(saved) => {
                return Ok(Placed {
                    id: id.clone(),
                    rev: saved.rev,
                    created: subject.created(),
                    database,
                    key,
                    document,
                });
            }
            Err(CouchError::DatabaseMissing(database)) => {
                // The action chose an id of a month without a database. The next id uses the recording's own month.
                missing = Some(DeliveryError::NoDatabase(database));
                continue;
            }
            // The server may have stored it all the same. Only the existing-document check can show that.
            Err(error @ (CouchError::Conflict | CouchError::NoAnswer(_) | CouchError::Failed { .. })) => error,
            Err(error) => return Err(error.into()),
        };
        let Some(document) = couch.get(&database, id.as_str()).await? else {
            return Err(failed.into());
        };
        let placed = Placed::of(id, &database, key, document);
        let has_other = |placed: &Placed| subject.audio.is_some_and(|audio| placed.has_other(audio));
        if let Some(placed) = placed.filter(|placed| !has_other(placed)) {
            return Ok(placed);
        }
    }
    Err(missing
        .unwrap_or_else(|| DeliveryError::Recording("every id that it could have belongs to another recording".into())))
}

/// The document, if it exists and belongs to this recording.
///
/// # Errors
/// When the database does not answer.
pub async fn find(couch: &Couch, database: &str, id: &MediaId, key: Key) -> Result<Option<Placed>, DeliveryError> {
    let document = couch.get(database, id.as_str()).await?;
    Ok(document.and_then(|document| Placed::of(id, database, key, document)))
}

/// Writes into the document that the audio has arrived at a URL, and at which URL. Also writes what is known of the recording by now.
///
/// # Errors
/// When the document is not written, or may not be.
pub async fn complete(
    couch: &Couch,
    placed: &Placed,
    subject: &Subject<'_>,
    at: &Elsewhere<'_>,
    progress: &Progress<'_>,
) -> Result<Placed, DeliveryError> {
    edit(couch, placed, |document| {
        Some(completed(document, subject.document(), at, progress, subject.now))
    })
    .await
}

/// Writes into the document where a storage plan put the audio.
///
/// # Errors
/// As `complete`.
pub async fn note(
    couch: &Couch,
    placed: &Placed,
    subject: &Subject<'_>,
    progress: &Progress<'_>,
) -> Result<Placed, DeliveryError> {
    edit(couch, placed, |document| {
        Some(edited(document, subject.document(), progress, subject.now))
    })
    .await
}

/// Writes into the document which object of a store has the audio. `entry`: of `pvt_attachments`, under this name.
///
/// # Errors
/// As `complete`.
pub async fn attach(
    couch: &Couch,
    placed: &Placed,
    subject: &Subject<'_>,
    (name, entry): (&str, &Value),
    progress: &Progress<'_>,
) -> Result<Placed, DeliveryError> {
    edit(couch, placed, |document| {
        let edited = edited(document, subject.document(), progress, subject.now);
        Some(attached(edited, name, entry.clone()))
    })
    .await
}

/// Writes into the document that the recording is parked. Writes nothing if the document says that the audio arrived: another worker
/// delivered it, and this worker has not learned of it.
///
/// # Errors
/// As `complete`.
pub async fn park(
    couch: &Couch,
    placed: &Placed,
    subject: &Subject<'_>,
    progress: &Progress<'_>,
) -> Result<Placed, DeliveryError> {
    edit(couch, placed, |document| {
        (!is_complete(&document)).then(|| edited(document, subject.document(), progress, subject.now))
    })
    .await
}

/// Writes into the document that the recording ended without a delivery. Nothing else of the document changes, and nothing at all if the
/// document says that the audio arrived.
///
/// # Errors
/// As `complete`.
pub async fn conclude(
    couch: &Couch,
    placed: &Placed,
    progress: &Progress<'_>,
    now: Moment,
) -> Result<(), DeliveryError> {
    let concluded = edit(couch, placed, |document| {
        (!is_complete(&document)).then(|| edited(document, Map::new(), progress, now))
    });
    concluded.await.map(drop)
}

/// Writes the known stops and masks into the document. `None` when it has them already.
///
/// # Errors
/// As `complete`.
pub async fn amend(
    couch: &Couch,
    placed: &Placed,
    controls: &Controls,
    now: Moment,
) -> Result<Option<Placed>, DeliveryError> {
    if placed.controls() == controls.fingerprint() {
        return Ok(None);
    }
    let amended = edit(couch, placed, |mut document| {
        if let Some(private) = document.get_mut("pvt_recording").and_then(Value::as_object_mut) {
            controls.write(private);
        }
        let created = document.get("pvt_created").and_then(Value::as_i64).unwrap_or(0);
        document.insert("pvt_modified".into(), now.gregorian_seconds().max(created).into());
        Some(document)
    });
    Ok(Some(amended.await?))
}

/// Changes the present document, unless `change` returns `None`. `change` may be called several times.
async fn edit(
    couch: &Couch,
    placed: &Placed,
    change: impl Fn(Map<String, Value>) -> Option<Map<String, Value>>,
) -> Result<Placed, DeliveryError> {
    let mut failed = CouchError::Conflict;
    for _ in 0..ROUNDS {
        let present = look(couch, placed).await?;
        let Some(changed) = change(present.clone()) else {
            return Ok(Placed {
                rev: rev(&Value::Object(present.clone())),
                document: present,
                ..placed.clone()
            });
        };
        let changed = Value::Object(changed);
        match couch.put_document(&placed.database, placed.id.as_str(), &changed).await {
            Ok(saved) => {
                if saved.below_quorum {
                    is_safe(couch, placed).await?;
                }
                let Value::Object(document) = changed else { break };
                return Ok(Placed {
                    rev: saved.rev,
                    document,
                    ..placed.clone()
                });
            }
            // This worker or another one may have made the change already. Making it once more is harmless.
            Err(error @ (CouchError::Conflict | CouchError::NoAnswer(_) | CouchError::Failed { .. })) => failed = error,
            Err(error) => return Err(error.into()),
        }
    }
    Err(failed.into())
}

/// Makes sure that enough nodes are there to keep the document: a server answers 202 when fewer took it. Where the server does not list its
/// nodes, the document is saved once more, unchanged.
///
/// # Errors
/// When they are not. Only the document has to be written again.
pub async fn is_safe(couch: &Couch, placed: &Placed) -> Result<(), DeliveryError> {
    if placed.is_deleted() || couch.keeps(&placed.database, placed.id.as_str()).await? {
        return Ok(());
    }
    let why = "fewer of the document's nodes than the quorum are there";
    Err(DeliveryError::Target(why.into()))
}

/// The document as it is now.
///
/// # Errors
/// When the document is missing, or belongs to another recording.
pub(super) async fn look(couch: &Couch, placed: &Placed) -> Result<Map<String, Value>, DeliveryError> {
    match couch.present(&placed.database, placed.id.as_str()).await? {
        Present::Document(document) if !is_of(&document, placed.key) => {
            Err(DeliveryError::Corrupt("its document is another recording's now".into()))
        }
        Present::Document(Value::Object(document)) => Ok(document),
        _ => Err(DeliveryError::Corrupt("its document is gone".into())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::couch::testing;
    use crate::entry::Entry;

    use super::*;

    /// Otherwise the document that says where the audio is could be on one node alone.
    #[tokio::test]
    async fn a_document_on_a_server_that_hides_its_nodes_is_safe_only_after_a_201() {
        let order = crate::lifecycle::tests::order();
        let document =
            json!({"_id": "x", "_rev": "2-b", "pvt_created": 63_962_610_332_i64, "pvt_recording": {"key": order.key}});
        for (again, is_it) in [(202, false), (201, true)] {
            let there = document.clone();
            let (couch, _) = testing::couch(move |asked| match asked.method.as_str() {
                _ if asked.path.contains("_membership") => (404, json!({"error": "not_found", "reason": "missing"})),
                "PUT" => (again, json!({"ok": true, "id": "x", "rev": "3-c"})),
                _ => (200, there.clone()),
            })
            .await;
            let placed = find(&couch, "db", &order.media_id, order.key).await.unwrap().unwrap();
            assert_eq!(is_safe(&couch, &placed).await.is_ok(), is_it, "{again}");
        }
    }

    /// The action chose an id of a month without a database, so the document has the recording's own id.
    #[tokio::test]
    async fn a_document_is_found_under_its_second_id_if_the_first_ones_month_has_no_database() {
        let mut order = crate::lifecycle::tests::order();
        let derived = MediaId::derived(order.key, order.asked_at);
        order.media_id = "202001-chosen".to_owned().try_into().unwrap();
        let entry = Entry::of_order(order.clone(), "w");
        let stub = json!({(order.media_name.as_str()): {"length": 5}});
        let document = json!({
            "_id": derived.as_str(), "_rev": "2-b", "pvt_created": 63_962_610_332_i64, "pvt_attachments": stub,
            "pvt_recording": {"key": order.key, "state": "complete", "size": 5, "md5": "m", "sha256": "s"},
        });
        let sought = Search {
            entry: &entry,
            order: &order,
            account_id: "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4",
            now: order.asked_at,
        };
        for is_there in [true, false] {
            let present = document.clone();
            let (couch, _) = testing::couch(move |asked| match asked.path.as_str() {
                path if path.contains("_membership") => (200, json!({"all_nodes": ["a"], "cluster_nodes": ["a"]})),
                path if path.contains("_shards") => (200, json!({"range": "0-f", "nodes": ["a"]})),
                path if path.contains("-202001/") || !is_there => testing::no_database(),
                _ => (200, present.clone()),
            })
            .await;
            match (is_there, search(&couch, Kind::Url, &sought).await) {
                (true, Ok(Some(What::Delivered(delivery)))) => assert_eq!(delivery.document.id, derived),
                // This says nothing of the document.
                (false, Err(DeliveryError::NoDatabase(_))) => {}
                (_, found) => panic!("{is_there}: {found:?}"),
            }
        }
    }

    /// A server's 202: fewer nodes than the quorum took the document. The audio's only other copy may be given up after this.
    #[tokio::test]
    async fn a_document_that_too_few_nodes_took_is_not_yet_written() {
        let key = Key::of("call", "action");
        let id: MediaId = "202611-x".to_owned().try_into().unwrap();
        let document =
            json!({"_id": "202611-x", "_rev": "1-a", "pvt_created": 63_962_610_332_i64, "pvt_recording": {"key": key}});
        for (status, there, is_written) in [
            (201, json!(["a"]), true),
            (202, json!(["a"]), false),
            (202, json!(["a", "b"]), true),
        ] {
            let present = document.clone();
            let (couch, log) = testing::couch(move |asked| match (asked.method.as_str(), asked.path.as_str()) {
                (_, path) if path.contains("_membership") => {
                    (200, json!({"all_nodes": there, "cluster_nodes": ["a", "b", "c"]}))
                }
                (_, path) if path.contains("_shards") => (200, json!({"range": "0-f", "nodes": ["a", "b", "c"]})),
                ("PUT", _) => (status, json!({"ok": true, "id": "202611-x", "rev": "2-b"})),
                _ => (200, present.clone()),
            })
            .await;
            let placed = Placed::of(&id, "account/x-202611", key, document.clone()).unwrap();
            let edited = edit(&couch, &placed, Some).await;
            assert_eq!(edited.is_ok(), is_written, "{status}: {edited:?}");
            let written = log.lock().unwrap().iter().filter(|asked| asked.method == "PUT").count();
            assert_eq!(written, 1, "{status}");
        }
    }

    #[tokio::test]
    async fn a_document_tells_that_its_recording_was_discarded_unless_it_has_the_audio() {
        let key = Key::of("call", "action");
        let id: MediaId = "202611-x".to_owned().try_into().unwrap();
        for (state, written) in [("parked", 1), ("pending", 1), ("complete", 0)] {
            let document = json!({
                "_id": "202611-x", "_rev": "1-a", "pvt_created": 63_962_610_332_i64, "duration": 5,
                "pvt_recording": {"key": key, "state": state, "attempts": 2, "cause": "refused"},
            });
            let present = document.clone();
            let (couch, log) = testing::couch(move |asked| match asked.method.as_str() {
                "PUT" => (201, json!({"ok": true, "id": "202611-x", "rev": "2-b"})),
                _ => (200, present.clone()),
            })
            .await;
            let placed = Placed::of(&id, "account/x-202611", key, document).unwrap();
            let progress = Progress {
                state: State::Discarded,
                attempts: 2,
                cause: Some("retention_over"),
            };
            let now = Moment::from_gregorian_seconds(63_962_610_500);
            conclude(&couch, &placed, &progress, now).await.unwrap();
            let log = log.lock().unwrap();
            let puts: Vec<_> = log.iter().filter(|asked| asked.method == "PUT").collect();
            assert_eq!(puts.len(), written, "{state}");
            for put in puts {
                let body: Value = serde_json::from_str(&put.body).unwrap();
                let told = &body["pvt_recording"];
                assert_eq!(
                    (&told["state"], &told["cause"]),
                    (&json!("discarded"), &json!("retention_over"))
                );
                assert_eq!((&body["duration"], &told["key"]), (&json!(5), &json!(key)));
            }
        }
    }
}
