//! A storage plan whose audio the worker itself puts into an object store.
//!
//! A fact notes the object before the document says where it is. If the worker is killed in between, the next attempt writes the document
//! and sends nothing. The audio counts as safe only when the document is complete: until then an account may change its plan, and the audio
//! must be put into the new place.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::config;
use crate::couch::Couch;
use crate::entry::fact::{Destination as Kind, StoredObject, What};
use crate::kazoo::time::Clock;
use crate::recording::digest::hex;
use crate::recording::names;
use crate::system_config::Handler;
use crate::telemetry::events::{StoragePlanByProxy, StoragePlanRefused, StoragePut};

use super::super::pending_document::{Placed, attach};
use super::super::url::guard::Guard;
use super::super::url::guard::resolve::{Lookup, System};
use super::super::url::http::{Http, NoClient};
use super::super::{Attempt, DeliveryError, Fault};
use super::learned::Memory;
use super::name::{Subject, is_own, name};
use super::not_ours::NotOurs;
use super::refusal::PlanRefusal;
use super::store::{Client, Driver, Object};
use super::stub;

/// Causes and reasons that are remembered as told. Beyond that all are forgotten, and told once more.
const MOST: usize = 1024;

/// Clients for object stores.
#[derive(Clone)]
pub struct Stores {
    /// For the servers that accounts name, through the SSRF filter.
    pub accounts: Http,
    /// For the servers that the system's own document names.
    pub systems: Http,
    pub settings: config::Storage,
}

impl Stores {
    /// # Errors
    /// For example without any root certificate.
    pub fn new(config: &config::Config, clock: &Clock) -> Result<Self, NoClient> {
        let guard = Guard::for_stores(&config.destination, &config.storage);
        Self::with(config, guard, Arc::new(System), clock)
    }

    /// As `new`, with this filter and resolver.
    ///
    /// # Errors
    /// As `new`.
    pub fn with(
        config: &config::Config,
        guard: Guard,
        lookup: Arc<dyn Lookup>,
        clock: &Clock,
    ) -> Result<Self, NoClient> {
        let ca = config.storage.ca.as_ref();
        let client = |guard| {
            let trust = (Arc::clone(&lookup), ca);
            Http::for_stores(&config.destination, guard, trust, clock.clone())
        };
        Ok(Self {
            accounts: client(Some(guard))?,
            systems: client(None)?,
            settings: config.storage.clone(),
        })
    }
}

/// Serves plans with object stores. May touch: the store that the plan names, the recording's document, and the documents of errors beside
/// it.
pub struct Native {
    stores: Stores,
    memory: Memory,
    /// Makes names of handlers' breakers. Its key is this process's own.
    hasher: RandomState,
    told: Arc<Mutex<HashSet<String>>>,
}

/// A plan's handler, and the driver for it.
pub struct Store {
    handler: Handler,
    driver: Driver,
    /// The circuit breaker of the handler. Another name if the settings change.
    pub breaker: String,
}

/// The name of a recording's object.
pub struct Named {
    pub key: String,
    /// Whether no other recording can have it.
    pub is_own: bool,
}

impl Store {
    /// Host and port, without credentials.
    pub fn host(&self) -> String {
        self.driver.host()
    }
}

impl Native {
    pub fn new(stores: Stores) -> Self {
        Self {
            stores,
            memory: Memory::default(),
            hasher: RandomState::new(),
            told: Arc::default(),
        }
    }

    /// The store of a handler. `None`: Kazoo's store proxy serves the handler, which is logged once for each reason.
    pub fn of(&self, handler: &Handler) -> Option<Store> {
        match Driver::of(handler, &self.stores.settings) {
            Ok(driver) => Some(Store {
                breaker: self.breaker(handler),
                handler: handler.clone(),
                driver,
            }),
            Err(why) => {
                self.tell_not_ours(handler, &why);
                None
            }
        }
    }

    /// What the object of a recording would be called. `None`: only Kazoo can tell.
    pub fn named(&self, store: &Store, placed: &Placed, attachment: &str) -> Option<Named> {
        let account_id = placed.document.get("pvt_account_id").and_then(Value::as_str);
        let subject = Subject {
            account_id: account_id.unwrap_or("unknown_account"),
            database: &placed.database,
            id: placed.id.as_str(),
            attachment,
            document: &placed.document,
        };
        let settings = store.handler.settings.as_ref()?;
        let usual = store.driver.usual();
        let named = name(settings, usual, &subject);
        let named = named.and_then(|key| store.driver.can_name(&key).then_some(key).ok_or(NotOurs::Name));
        let key = named.map_err(|why| self.tell_not_ours(&store.handler, &why)).ok()?;
        Some(Named {
            is_own: is_own(&key, settings, usual, &subject, &placed.key.to_string()),
            key,
        })
    }

    /// Stores the audio under the key, and completes the document. The fact `ObjectStored` comes first, unless this attempt has it.
    ///
    /// # Errors
    /// What the store, the plan, the document or our own copy lacks.
    pub async fn store(
        &self,
        (couch, store): (&Couch, &Store),
        (placed, named): (&Placed, &Named),
        attempt: &Attempt<'_>,
    ) -> Result<What, DeliveryError> {
        let (parcel, key) = (&attempt.parcel, named.key.as_str());
        let sha256 = &parcel.audio.digests.sha256;
        let place = hex(digest(&SHA256, format!("{}\n{key}", store.driver.place()).as_bytes()).as_ref());
        let known = parcel.entry.object_at(&place, sha256).cloned();
        let object = match known {
            Some(object) => object,
            None => {
                let object = self.put(couch, store, (placed, named), attempt, place).await?;
                if parcel.entry.next_number("object_stored") <= attempt.number {
                    return Ok(What::ObjectStored(Box::new(object)));
                }
                object
            }
        };
        let settings = store.handler.settings.clone().unwrap_or_default();
        let entry = stub::entry(
            store.driver.form(),
            &stub::Stored {
                settings: &settings,
                key,
                metadata: &object.metadata,
                content_type: parcel.order.format.content_type(),
                length: parcel.audio.size,
            },
        );
        let entry = entry.map_err(|error| DeliveryError::Recording(error.to_string()))?;
        let name = parcel.order.media_name.as_str();
        let subject = parcel.subject(&placed.id);
        let noted = attach(couch, placed, &subject, (name, &entry), &attempt.progress()).await;
        let noted = noted.map_err(DeliveryError::of_cluster)?;
        Ok(What::delivered(noted.delivery(Kind::StoragePlan)))
    }

    async fn put(
        &self,
        couch: &Couch,
        store: &Store,
        (placed, named): (&Placed, &Named),
        attempt: &Attempt<'_>,
        place: String,
    ) -> Result<StoredObject, DeliveryError> {
        let (parcel, key) = (&attempt.parcel, named.key.as_str());
        if !named.is_own {
            // Not every store knows a conditional PUT.
            attempt.places.claim(parcel.entry, &place).await?;
        }
        let http = if store.handler.is_systems {
            &self.stores.systems
        } else {
            &self.stores.accounts
        };
        let client = Client {
            http,
            memory: &self.memory,
            until: http.until(),
        };
        let object = Object {
            key,
            is_own: named.is_own,
            audio: &parcel.audio,
            source: &attempt.source,
            content_type: parcel.order.format.content_type(),
        };
        let begun = Instant::now();
        let delivered = store.driver.deliver(&client, &object).await;
        let result = match &delivered {
            Ok(receipt) if receipt.was_there => "found",
            Ok(_) => "stored",
            Err(error) if error.fault() == Fault::Plan => "plan_refused",
            Err(_) => "failed",
        };
        StoragePut {
            handler: store.driver.kind(),
            result,
            bytes: parcel.audio.size,
            took: begun.elapsed(),
        }
        .emit();
        match delivered {
            Ok(receipt) => Ok(StoredObject {
                attempt: attempt.number,
                handler: store.handler.id.clone(),
                place,
                sha256: parcel.audio.digests.sha256.clone(),
                proof: receipt.proof.name().to_owned(),
                metadata: receipt.metadata,
            }),
            Err(error) => {
                if let DeliveryError::Plan(refusal) = &error {
                    self.tell_refusal(couch, store, (placed, key), attempt, refusal).await;
                }
                Err(error)
            }
        }
    }

    fn breaker(&self, handler: &Handler) -> String {
        let settings = handler
            .settings
            .as_ref()
            .map(|settings| json!(settings.expose()).to_string());
        format!(
            "storage handler {} {:08x}",
            handler.id,
            self.hasher.hash_one(settings) & 0xffff_ffff
        )
    }

    fn tell_not_ours(&self, handler: &Handler, why: &NotOurs) {
        let why = why.to_string();
        if self.is_new(format!("{}\n{why}", handler.id)) {
            StoragePlanByProxy {
                handler_id: &handler.id,
                kind: &handler.kind,
                why: &why,
            }
            .emit();
        }
    }

    /// Logs what the store refuses, and writes the document that Kazoo's API shows under `att_handlers_errors`: once for each cause. Kazoo
    /// writes the handler's settings into that document, secrets included. The worker does not.
    async fn tell_refusal(
        &self,
        couch: &Couch,
        store: &Store,
        (placed, key): (&Placed, &str),
        attempt: &Attempt<'_>,
        refusal: &PlanRefusal,
    ) {
        let parcel = &attempt.parcel;
        StoragePlanRefused {
            account_id: parcel.account_id,
            handler_id: &store.handler.id,
            host: &refusal.host,
            code: &refusal.code,
            status: refusal.status,
            request_id: refusal.request_id.as_deref(),
        }
        .emit();
        let cause = format!(
            "{}\n{}\n{}\n{}",
            placed.database,
            store.handler.id,
            store.driver.place(),
            refusal.code
        );
        let month = placed.database.rsplit('-').next().unwrap_or_default();
        let digits = hex(digest(&SHA256, cause.as_bytes()).as_ref());
        let id = format!("{month}-{}", digits.get(..32).unwrap_or(&digits));
        if !self.is_new(cause) {
            return;
        }
        let now = parcel.subject(&placed.id).now.gregorian_seconds();
        let document = json!({
            "_id": id,
            "reason": refusal.to_string(),
            "handler_id": store.handler.id,
            "attachment_name": parcel.order.media_name,
            "document_id": placed.id.as_str(),
            "db_name": names::encoded(&placed.database),
            "resp_code": refusal.status.unwrap_or(500),
            "resp_body": refusal.code,
            "resp_headers": {},
            "req_url": key,
            "pvt_type": "attachment_handler_error",
            "pvt_account_id": parcel.account_id,
            "pvt_account_db": names::encoded(&placed.database),
            "pvt_created": now,
            "pvt_modified": now,
        });
        // A conflict: another worker, or this one before its restart, has written it.
        if let Err(error) = couch.put_document(&placed.database, &id, &document).await {
            tracing::debug!(event = "handler_error_not_written", %error, "attachment_handler_error not written");
        }
    }

    fn is_new(&self, told: String) -> bool {
        let mut all = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(told)
    }
}
