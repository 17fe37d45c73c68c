//! Object stores of storage plans: what arrives there, and what the worker makes of a store that misbehaves.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use kz_record_call::config::Config;
use kz_record_call::destination::storage_plan::learned::Memory;
use kz_record_call::destination::storage_plan::native::Stores;
use kz_record_call::destination::storage_plan::store::{Client, Driver, Object, Proof, Receipt};
use kz_record_call::destination::url::guard::Guard;
use kz_record_call::destination::{DeliveryError, Fault};
use kz_record_call::kazoo::time::Clock;
use kz_record_call::system_config::{Handler, Settings};
use serde_json::{Value, json};

use crate::promises;
use crate::support::object_store::{Does, ObjectStore, SECRET, Setup, Stored};
use crate::support::tls::{Authority, TlsFront};
use crate::support::{Couchdb, Names, Recording, TestResult, whole_settings};

promises![
    audio_arrives_whole_under_kazoos_name,
    what_is_there_already_is_not_sent_again,
    other_content_is_replaced_only_under_a_name_of_its_own,
    another_recordings_object_is_never_replaced_or_taken_for_ones_own,
    a_worker_that_was_frozen_replaces_nothing_that_came_meanwhile,
    a_store_that_wants_a_bare_etag_gets_longer_audio_and_loses_none,
    a_store_without_conditions_still_stores_under_a_shared_name,
    a_store_that_does_not_know_conditions_still_replaces_a_recordings_own_object,
    a_fault_of_a_store_does_not_end_conditions_for_its_bucket,
    what_is_no_object_store_is_never_believed,
    an_answer_that_is_lost_is_looked_up,
    a_connection_that_breaks_is_the_stores_fault,
    a_refusal_by_the_plan_is_no_fault_of_the_host,
    a_wrong_key_sends_no_audio,
    a_wrong_region_is_corrected_once_and_remembered,
    a_clock_that_is_off_is_corrected_once,
    a_redirect_leads_to_another_region_of_aws_only,
    what_may_pass_is_tried_again_as_the_store_asks,
    an_object_that_differs_is_never_taken_for_the_audio,
    an_etag_that_is_no_md5_is_made_up_for_by_a_checksum_or_the_length,
    credentials_that_may_not_look_still_store,
    a_locked_bucket_gets_its_headers,
    a_silent_store_is_given_up_and_a_slow_one_is_not,
    the_filter_applies_to_accounts_and_not_to_the_system,
    a_self_signed_store_is_reached_with_its_authority_and_not_without,
    no_error_tells_a_secret,
];

const KEY: &str = "account%2F4b%2Fa1%2Fx-202611/202611-7c9e_call%20recording.mp3";

/// The name that a plan gives to all recordings of a call.
const KEY_OF_THE_CALL: &str = "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4/a84b-pc33";

/// A handler at a store, and what an attempt needs.
pub struct Plan {
    driver: Driver,
    stores: Stores,
    memory: Memory,
    is_systems: bool,
}

/// Settings with short times, that let accounts reach this host.
pub fn config(changes: &[(&str, &str)]) -> Config {
    let mut all = vec![
        ("DESTINATION__ALLOW", "127.0.0.1"),
        ("DESTINATION__SILENCE_TIMEOUT_MS", "2000"),
    ];
    all.extend_from_slice(changes);
    let all: Vec<(String, String)> = all
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    whole_settings(&all)
}

impl Plan {
    pub fn of(kind: &str, settings: &Value, config: &Config, names: &[(&str, &[&str])]) -> anyhow::Result<Self> {
        let handler = Handler {
            id: "9b1c".into(),
            kind: kind.into(),
            settings: Some(Settings::of(settings.as_object().context("settings")?.clone())),
            stub: false,
            is_systems: false,
        };
        let guard = Guard::for_stores(&config.destination, &config.storage);
        Ok(Self {
            driver: Driver::of(&handler, &config.storage)?,
            stores: Stores::with(config, guard, Arc::new(Names::of(names)), &Clock::system())?,
            memory: Memory::default(),
            is_systems: false,
        })
    }

    fn s3(store: &ObjectStore) -> anyhow::Result<Self> {
        Self::with(store, &json!({}))
    }

    /// S3 with these settings too.
    fn with(store: &ObjectStore, more: &Value) -> anyhow::Result<Self> {
        let mut settings = store.s3();
        settings
            .as_object_mut()
            .context("settings")?
            .extend(more.as_object().context("settings")?.clone());
        Self::of("s3", &settings, &config(&[]), &[])
    }

    fn azure(store: &ObjectStore) -> anyhow::Result<Self> {
        let (settings, endpoint) = store.azure();
        Self::of(
            "azure",
            &settings,
            &config(&[("STORAGE__AZURE_ENDPOINT", &endpoint)]),
            &[],
        )
    }

    /// One for each kind.
    fn both(store: &ObjectStore) -> anyhow::Result<[Self; 2]> {
        Ok([Self::s3(store)?, Self::azure(store)?])
    }

    pub async fn deliver(&self, recording: &Recording) -> Result<Receipt, DeliveryError> {
        self.deliver_as(recording, KEY, true).await
    }

    pub async fn deliver_as(&self, recording: &Recording, key: &str, is_own: bool) -> Result<Receipt, DeliveryError> {
        let http = if self.is_systems {
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
            is_own,
            audio: &recording.audio,
            source: &recording.source,
            content_type: "audio/mpeg",
        };
        self.driver.deliver(&client, &object).await
    }
}

/// The one object, as it was stored, if it is the recording's audio.
fn the_audio(store: &ObjectStore, recording: &Recording) -> anyhow::Result<(String, Stored)> {
    let objects: Vec<_> = store.objects().into_iter().collect();
    let [(name, stored)] = &objects[..] else {
        anyhow::bail!("{objects:?}")
    };
    ensure!(stored.length == recording.audio.size && stored.digests == recording.audio.digests);
    Ok((name.clone(), stored.clone()))
}

async fn audio_arrives_whole_under_kazoos_name(_: Arc<Couchdb>) -> TestResult {
    for size in [0, 1, 300_000] {
        for (n, name) in [KEY, "account/4b/a1/x-202611/202611-7c9e_call recording.mp3"]
            .into_iter()
            .enumerate()
        {
            let store = ObjectStore::start(Setup::default()).await;
            let recording = Recording::of(size);
            let receipt = Plan::both(&store)?[n].deliver(&recording).await?;
            ensure!(receipt.proof == Proof::Digest && !receipt.was_there, "{receipt:?}");
            let (stored_as, stored) = the_audio(&store, &recording)?;
            // Azure decodes what stands in the URL, and the name of S3 was encoded once more.
            ensure!(stored_as == name, "{stored_as}");
            ensure!(stored.headers["content-type"] == "audio/mpeg");
            ensure!(store.wrong().is_empty(), "{:?}", store.wrong());
            ensure!(
                receipt.metadata["etag"].trim_matches('"') == recording.audio.digests.md5,
                "{receipt:?}"
            );
        }
    }
    // Slashes at the beginning, and two of them, are parts of a name.
    let store = ObjectStore::start(Setup::default()).await;
    Plan::s3(&store)?
        .deliver_as(&Recording::of(10), "/a//b é", true)
        .await?;
    ensure!(store.objects().contains_key("/a//b é"), "{:?}", store.objects().keys());
    Ok(())
}

async fn what_is_there_already_is_not_sent_again(_: Arc<Couchdb>) -> TestResult {
    for n in [0, 1] {
        let store = ObjectStore::start(Setup::default()).await;
        let (plan, recording) = (&Plan::both(&store)?[n], Recording::of(3000));
        plan.deliver(&recording).await?;
        let again = plan.deliver(&recording).await?;
        ensure!(again.was_there && again.proof == Proof::Digest, "{again:?}");
        ensure!(store.asked("PUT") == 1 && the_audio(&store, &recording)?.1.writes == 1);
        ensure!(again.metadata.contains_key("etag"), "{again:?}");
    }
    Ok(())
}

async fn other_content_is_replaced_only_under_a_name_of_its_own(_: Arc<Couchdb>) -> TestResult {
    let store = ObjectStore::start(Setup::default()).await;
    let (plan, recording) = (Plan::s3(&store)?, Recording::of(3000));
    store.put_other(KEY, b"another");
    let error = plan
        .deliver_as(&recording, KEY, false)
        .await
        .err()
        .context("replaced")?;
    ensure!(
        error.fault() == Fault::Recording && store.asked("PUT") == 0,
        "{error:?}"
    );
    plan.deliver(&recording).await?;
    the_audio(&store, &recording)?;
    Ok(())
}

async fn another_recordings_object_is_never_replaced_or_taken_for_ones_own(_: Arc<Couchdb>) -> TestResult {
    let recording = Recording::of(3000);
    let other = vec![7; 3000];
    for n in [0, 1] {
        // There already, of the same length, and without a digest that can be compared.
        let store = ObjectStore::start(Setup {
            odd_etags: true,
            ..Setup::default()
        })
        .await;
        store.put_other(KEY_OF_THE_CALL, &other);
        let before = store.objects();
        let error = Plan::both(&store)?[n]
            .deliver_as(&recording, KEY_OF_THE_CALL, false)
            .await
            .err()
            .context("taken")?;
        ensure!(
            error.fault() == Fault::Recording && store.objects() == before,
            "{error:?}"
        );
        // It comes between the look and the PUT.
        for odd_etags in [false, true] {
            let store = ObjectStore::start(Setup {
                odd_etags,
                ..Setup::default()
            })
            .await;
            let plan = &Plan::both(&store)?[n];
            store.next(&[Does::ComesSecond]);
            let error = plan
                .deliver_as(&recording, KEY_OF_THE_CALL, false)
                .await
                .err()
                .context("taken")?;
            ensure!(error.fault() == Fault::Recording, "{error:?}");
            ensure!(store.objects()[KEY_OF_THE_CALL].digests != recording.audio.digests);
        }
        // The same, and no answer tells.
        let store = ObjectStore::start(Setup {
            odd_etags: true,
            ..Setup::default()
        })
        .await;
        let plan = &Plan::both(&store)?[n];
        store.next(&[Does::ComesSecondUnheard]);
        let error = plan
            .deliver_as(&recording, KEY_OF_THE_CALL, false)
            .await
            .err()
            .context("taken")?;
        ensure!(error.fault() == Fault::Target, "{error:?}");
    }
    // Credentials that may not look cannot tell whose the object is.
    let store = ObjectStore::start(Setup {
        denies_looks: true,
        ..Setup::default()
    })
    .await;
    store.put_other(KEY_OF_THE_CALL, &other);
    let error = Plan::s3(&store)?
        .deliver_as(&recording, KEY_OF_THE_CALL, false)
        .await
        .err()
        .context("replaced")?;
    ensure!(error.fault() == Fault::Plan && store.asked("PUT") == 0, "{error:?}");
    Ok(())
}

/// Another worker stores longer audio of the same recording while this one is within its upload.
async fn a_worker_that_was_frozen_replaces_nothing_that_came_meanwhile(_: Arc<Couchdb>) -> TestResult {
    let (short, long) = (Recording::of(3000), Recording::of(9000));
    for n in [0, 1] {
        for before in [None, Some(b"older audio")] {
            let store = ObjectStore::start(Setup::default()).await;
            if let Some(before) = before {
                let name = if n == 0 {
                    KEY
                } else {
                    "account/4b/a1/x-202611/202611-7c9e_call recording.mp3"
                };
                store.put_other(name, before);
            }
            let (settings, endpoint) = store.azure();
            let patient = config(&[
                ("STORAGE__AZURE_ENDPOINT", &endpoint),
                ("DESTINATION__SILENCE_TIMEOUT_MS", "60000"),
            ]);
            let (kind, settings) = if n == 0 {
                ("s3", store.s3())
            } else {
                ("azure", settings)
            };
            let plan = Plan::of(kind, &settings, &patient, &[])?;
            store.next(&[Does::HoldsAt(1)]);
            let frozen = plan.deliver(&short);
            tokio::pin!(frozen);
            tokio::select! {
                ended = &mut frozen => anyhow::bail!("{kind}, {before:?}: {ended:?}"),
                () = store.held() => {}
            }
            let stored = plan.deliver(&long).await?;
            store.go_on();
            ensure!(!stored.was_there);
            let error = frozen.await.err().context("replaced")?;
            ensure!(error.fault() == Fault::Target, "{error:?}");
            the_audio(&store, &long)?;
        }
    }
    Ok(())
}

async fn a_store_that_does_not_know_conditions_still_replaces_a_recordings_own_object(_: Arc<Couchdb>) -> TestResult {
    let recording = Recording::of(3000);
    for (status, code) in [(501, "NotImplemented"), (400, "InvalidArgument")] {
        for n in [0, 1] {
            let store = ObjectStore::start(Setup::default()).await;
            let plan = &Plan::both(&store)?[n];
            plan.deliver(&Recording::of(10)).await?;
            store.next(&[Does::RefusesEarly(status, code)]);
            plan.deliver(&recording).await?;
            let (_, stored) = the_audio(&store, &recording)?;
            ensure!(!stored.headers.contains_key("if-match"), "{:?}", stored.headers);
            ensure!(store.asked("PUT") == 3);
            // That is remembered.
            plan.deliver_as(&recording, "another", true).await?;
            ensure!(store.asked("PUT") == 4);
            ensure!(!store.objects()["another"].headers.contains_key("if-none-match"));
        }
    }
    Ok(())
}

/// As Ceph's gateway, which compares the ETag with its quotes.
async fn a_store_that_wants_a_bare_etag_gets_longer_audio_and_loses_none(_: Arc<Couchdb>) -> TestResult {
    let recording = Recording::of(3000);
    let setup = Setup {
        matches_bare: true,
        ..Setup::default()
    };
    let store = ObjectStore::start(setup).await;
    let plan = Plan::s3(&store)?;
    plan.deliver(&Recording::of(10)).await?;
    plan.deliver(&recording).await?;
    the_audio(&store, &recording)?;
    ensure!(store.asked("PUT") == 3);
    // Another worker's object comes while this worker sends its ETag without quotes.
    store.next(&[Does::Stores, Does::ComesSecond]);
    let error = plan.deliver(&Recording::of(4000)).await.err().context("replaced")?;
    ensure!(error.to_string().contains("the object changed"), "{error}");
    ensure!(store.asked("PUT") == 5);
    Ok(())
}

async fn a_store_without_conditions_still_stores_under_a_shared_name(_: Arc<Couchdb>) -> TestResult {
    let store = ObjectStore::start(Setup {
        refuses_conditions: true,
        ..Setup::default()
    })
    .await;
    let (plan, recording) = (Plan::s3(&store)?, Recording::of(3000));
    plan.deliver_as(&recording, KEY_OF_THE_CALL, false).await?;
    the_audio(&store, &recording)?;
    ensure!(store.asked("PUT") == 2);
    // That is remembered.
    plan.deliver_as(&recording, "another", false).await?;
    ensure!(store.asked("PUT") == 3);
    Ok(())
}

/// Another reason for a 501 than the condition: the same answer comes without it.
async fn a_fault_of_a_store_does_not_end_conditions_for_its_bucket(_: Arc<Couchdb>) -> TestResult {
    let store = ObjectStore::start(Setup::default()).await;
    let (plan, recording) = (Plan::s3(&store)?, Recording::of(3000));
    store.next(&[
        Does::RefusesEarly(501, "NotImplemented"),
        Does::RefusesEarly(501, "NotImplemented"),
    ]);
    plan.deliver_as(&recording, KEY_OF_THE_CALL, false)
        .await
        .err()
        .context("stored")?;
    ensure!(store.asked("PUT") == 2);
    // Another recording's object comes between the look and the PUT.
    store.next(&[Does::ComesSecond]);
    let error = plan.deliver_as(&recording, KEY_OF_THE_CALL, false).await.err();
    let error = error.context("replaced")?;
    ensure!(error.fault() == Fault::Recording, "{error:?}");
    ensure!(store.objects()[KEY_OF_THE_CALL].digests != recording.audio.digests);
    Ok(())
}

async fn what_is_no_object_store_is_never_believed(_: Arc<Couchdb>) -> TestResult {
    let recording = Recording::of(3000);
    for n in [0, 1] {
        let store = ObjectStore::start(Setup {
            is_portal: true,
            ..Setup::default()
        })
        .await;
        let error = Plan::both(&store)?[n]
            .deliver(&recording)
            .await
            .err()
            .context("believed")?;
        ensure!(matches!(error, DeliveryError::Corrupt(_)), "{error:?}");
    }
    // A PUT is all that it allows, and its answer is no store's.
    let bare = Setup {
        denies_looks: true,
        answers_bare: true,
        ..Setup::default()
    };
    let store = ObjectStore::start(bare).await;
    let error = Plan::s3(&store)?.deliver(&recording).await.err().context("believed")?;
    ensure!(matches!(error, DeliveryError::Corrupt(_)), "{error:?}");
    // A store's answer, and nothing that can be compared.
    let store = ObjectStore::start(Setup {
        denies_looks: true,
        odd_etags: true,
        ..Setup::default()
    })
    .await;
    let receipt = Plan::s3(&store)?.deliver(&recording).await?;
    ensure!(receipt.proof.name() == "answer", "{receipt:?}");
    Ok(())
}

async fn an_answer_that_is_lost_is_looked_up(_: Arc<Couchdb>) -> TestResult {
    for n in [0, 1] {
        let store = ObjectStore::start(Setup::default()).await;
        let (plan, recording) = (&Plan::both(&store)?[n], Recording::of(300_000));
        store.next(&[Does::LosesAnswer]);
        let receipt = plan.deliver(&recording).await?;
        ensure!(receipt.proof == Proof::Digest && store.asked("PUT") == 1, "{receipt:?}");
        the_audio(&store, &recording)?;
    }
    Ok(())
}

async fn a_connection_that_breaks_is_the_stores_fault(_: Arc<Couchdb>) -> TestResult {
    for at in [0, 1, 200_000] {
        let store = ObjectStore::start(Setup::default()).await;
        let (plan, recording) = (Plan::s3(&store)?, Recording::of(3_000_000));
        store.next(&[Does::ClosesAt(at)]);
        let error = plan.deliver(&recording).await.err().context("stored")?;
        ensure!(
            error.fault() == Fault::Target && store.objects().is_empty(),
            "{error:?}"
        );
        plan.deliver(&recording).await?;
        the_audio(&store, &recording)?;
    }
    Ok(())
}

async fn a_refusal_by_the_plan_is_no_fault_of_the_host(_: Arc<Couchdb>) -> TestResult {
    let store = ObjectStore::start(Setup::default()).await;
    let recording = Recording::of(3_000_000);
    for does in [
        Does::Refuses(403, "AccessDenied"),
        Does::RefusesEarly(403, "AccessDenied"),
    ] {
        for plan in Plan::both(&store)? {
            store.next(&[does]);
            let error = plan.deliver(&recording).await.err().context("stored")?;
            ensure!(error.fault() == Fault::Plan, "{does:?}: {error:?}");
            ensure!(error.to_string().contains("403 AccessDenied"), "{error}");
        }
    }
    let plan = Plan::with(&store, &json!({"bucket": "another"}))?;
    let error = plan.deliver(&recording).await.err().context("stored")?;
    ensure!(
        error.fault() == Fault::Plan && error.to_string().contains("NoSuchBucket"),
        "{error}"
    );
    Ok(())
}

async fn a_wrong_key_sends_no_audio(_: Arc<Couchdb>) -> TestResult {
    let store = ObjectStore::start(Setup::default()).await;
    let recording = Recording::of(3000);
    for (wrong, code) in [
        (json!({"secret": "another"}), "SignatureDoesNotMatch"),
        (json!({"key": "AKIAOTHER"}), "InvalidAccessKeyId"),
    ] {
        let error = Plan::with(&store, &wrong)?
            .deliver(&recording)
            .await
            .err()
            .context("stored")?;
        ensure!(
            error.fault() == Fault::Plan && error.to_string().contains(code),
            "{error}"
        );
    }
    let (mut settings, endpoint) = store.azure();
    settings["key"] = json!("b3RoZXI=");
    let azure = Plan::of(
        "azure",
        &settings,
        &config(&[("STORAGE__AZURE_ENDPOINT", &endpoint)]),
        &[],
    )?;
    let error = azure.deliver(&recording).await.err().context("stored")?;
    ensure!(
        error.fault() == Fault::Plan && error.to_string().contains("AuthenticationFailed"),
        "{error}"
    );
    ensure!(store.asked("PUT") == 0);
    Ok(())
}

async fn a_wrong_region_is_corrected_once_and_remembered(_: Arc<Couchdb>) -> TestResult {
    let store = ObjectStore::start(Setup {
        region: "eu-west-3",
        ..Setup::default()
    })
    .await;
    let (plan, recording) = (Plan::s3(&store)?, Recording::of(3000));
    plan.deliver(&recording).await?;
    the_audio(&store, &recording)?;
    ensure!(store.wrong().len() == 1, "{:?}", store.wrong());
    plan.deliver_as(&recording, "another", true).await?;
    ensure!(store.wrong().len() == 1, "{:?}", store.wrong());
    // A plan that says the right region needs no correction.
    let right = Plan::with(
        &store,
        &json!({"region": store.region(), "bucket_access_method": "path"}),
    )?;
    right.deliver_as(&recording, "third", true).await?;
    ensure!(store.wrong().len() == 1, "{:?}", store.wrong());
    // A store that is never content.
    store.always(Some(Does::Refuses(400, "AuthorizationHeaderMalformed")));
    let error = right
        .deliver_as(&recording, "fourth", true)
        .await
        .err()
        .context("stored")?;
    ensure!(error.fault() == Fault::Plan, "{error:?}");
    Ok(())
}

async fn a_clock_that_is_off_is_corrected_once(_: Arc<Couchdb>) -> TestResult {
    for n in [0, 1] {
        let store = ObjectStore::start(Setup {
            ahead: Duration::from_secs(7200),
            ..Setup::default()
        })
        .await;
        let (plan, recording) = (&Plan::both(&store)?[n], Recording::of(3000));
        plan.deliver(&recording).await?;
        the_audio(&store, &recording)?;
        let wrong = store.wrong().len();
        plan.deliver_as(&recording, "another", true).await?;
        ensure!(store.wrong().len() == wrong, "{:?}", store.wrong());
    }
    Ok(())
}

async fn a_redirect_leads_to_another_region_of_aws_only(_: Arc<Couchdb>) -> TestResult {
    let store = ObjectStore::start(Setup::default()).await;
    let recording = Recording::of(3000);
    // The bucket's own region is us-east-1 here, and the plan names another one.
    let aws = json!({"host": "s3.eu-west-3.amazonaws.com"});
    let mut settings = store.s3();
    settings
        .as_object_mut()
        .context("settings")?
        .extend(aws.as_object().context("settings")?.clone());
    let names: &[(&str, &[&str])] = &[
        ("s3.eu-west-3.amazonaws.com", &["127.0.0.1"]),
        ("s3.us-east-1.amazonaws.com", &["127.0.0.1"]),
    ];
    let plan = Plan::of("s3", &settings, &config(&[]), names)?;
    plan.deliver(&recording).await?;
    let (_, stored) = the_audio(&store, &recording)?;
    ensure!(
        stored.headers["host"].starts_with("s3.us-east-1.amazonaws.com"),
        "{:?}",
        stored.headers
    );
    ensure!(
        stored.headers.contains_key("x-amz-checksum-sha256"),
        "{:?}",
        stored.headers
    );
    let plan = Plan::s3(&store)?;
    for location in ["http://127.0.0.1:1/elsewhere", "https://s3.eu-west-2.amazonaws.com/x"] {
        store.next(&[Does::Redirects(307, location)]);
        let error = plan
            .deliver_as(&recording, "another", true)
            .await
            .err()
            .context("stored")?;
        ensure!(error.fault() == Fault::Plan && store.objects().len() == 1, "{error:?}");
    }
    Ok(())
}

async fn what_may_pass_is_tried_again_as_the_store_asks(_: Arc<Couchdb>) -> TestResult {
    let store = ObjectStore::start(Setup::default()).await;
    let (plan, recording) = (Plan::s3(&store)?, Recording::of(3000));
    for (status, code) in [
        (400, "BadDigest"),
        (503, "ServiceUnavailable"),
        (500, "InternalError"),
        (400, "RequestTimeout"),
    ] {
        store.next(&[Does::Refuses(status, code)]);
        let error = plan.deliver(&recording).await.err().context("stored")?;
        ensure!(
            error.fault() == Fault::Target && error.retry_after().is_none(),
            "{error:?}"
        );
    }
    store.next(&[Does::Later(503, "SlowDown", 40)]);
    let error = plan.deliver(&recording).await.err().context("stored")?;
    ensure!(error.retry_after() == Some(Duration::from_secs(40)), "{error:?}");
    store.next(&[Does::Refuses(400, "EntityTooLarge")]);
    let error = plan.deliver(&recording).await.err().context("stored")?;
    ensure!(error.fault() == Fault::Recording, "{error:?}");
    plan.deliver(&recording).await?;
    the_audio(&store, &recording)?;
    Ok(())
}

async fn an_object_that_differs_is_never_taken_for_the_audio(_: Arc<Couchdb>) -> TestResult {
    for n in [0, 1] {
        for odd_etags in [false, true] {
            let store = ObjectStore::start(Setup {
                odd_etags,
                ..Setup::default()
            })
            .await;
            let (plan, recording) = (&Plan::both(&store)?[n], Recording::of(3000));
            store.next(&[Does::StoresLess]);
            let error = plan.deliver(&recording).await.err().context("taken")?;
            ensure!(matches!(error, DeliveryError::Corrupt(_)), "{error:?}");
            plan.deliver(&recording).await?;
            the_audio(&store, &recording)?;
        }
    }
    Ok(())
}

async fn an_etag_that_is_no_md5_is_made_up_for_by_a_checksum_or_the_length(_: Arc<Couchdb>) -> TestResult {
    for (shows_checksums, proof) in [(true, Proof::Digest), (false, Proof::Length)] {
        let store = ObjectStore::start(Setup {
            odd_etags: true,
            shows_checksums,
            ..Setup::default()
        })
        .await;
        let recording = Recording::of(3000);
        let config = config(&[("STORAGE__CHECKSUM", "always")]);
        let plan = Plan::of("s3", &store.s3(), &config, &[])?;
        let receipt = plan.deliver(&recording).await?;
        ensure!(receipt.proof == proof, "{receipt:?}");
        let (_, stored) = the_audio(&store, &recording)?;
        ensure!(stored.headers.contains_key("x-amz-checksum-sha256"));
    }
    // A store that gave MD5s before, and now gives another one.
    let store = ObjectStore::start(Setup {
        odd_etags: true,
        ..Setup::default()
    })
    .await;
    let plan = Plan::s3(&store)?;
    plan.memory
        .learn(&plan.driver.place(), |known| known.has_md5_etags = true);
    let error = plan.deliver(&Recording::of(3000)).await.err().context("taken")?;
    ensure!(matches!(error, DeliveryError::Corrupt(_)), "{error:?}");
    Ok(())
}

async fn credentials_that_may_not_look_still_store(_: Arc<Couchdb>) -> TestResult {
    let store = ObjectStore::start(Setup {
        denies_looks: true,
        ..Setup::default()
    })
    .await;
    let (plan, recording) = (Plan::s3(&store)?, Recording::of(3000));
    let receipt = plan.deliver(&recording).await?;
    ensure!(receipt.proof == Proof::Digest, "{receipt:?}");
    the_audio(&store, &recording)?;
    Ok(())
}

async fn a_locked_bucket_gets_its_headers(_: Arc<Couchdb>) -> TestResult {
    let store = ObjectStore::start(Setup {
        locked: true,
        ..Setup::default()
    })
    .await;
    let wishes = json!({
        "object_lock_mode": "GOVERNANCE", "object_lock_days": 30, "legal_hold": true, "storage_class": "STANDARD_IA",
        "server_side_encryption": "AES256", "tags": {"kind": "recording"},
    });
    let (plan, recording) = (Plan::with(&store, &wishes)?, Recording::of(3000));
    plan.deliver(&recording).await?;
    let (_, stored) = the_audio(&store, &recording)?;
    for (name, value) in [
        ("x-amz-object-lock-mode", "GOVERNANCE"),
        ("x-amz-object-lock-legal-hold", "ON"),
        ("x-amz-storage-class", "STANDARD_IA"),
        ("x-amz-server-side-encryption", "AES256"),
        ("x-amz-tagging", "kind=recording"),
    ] {
        ensure!(stored.headers[name] == value, "{name}: {:?}", stored.headers);
    }
    let until = &stored.headers["x-amz-object-lock-retain-until-date"];
    ensure!(until.ends_with('Z') && until.contains('T'), "{until}");
    Ok(())
}

async fn a_silent_store_is_given_up_and_a_slow_one_is_not(_: Arc<Couchdb>) -> TestResult {
    let store = ObjectStore::start(Setup::default()).await;
    let (plan, recording) = (Plan::s3(&store)?, Recording::of(50_000_000));
    store.next(&[Does::Silent]);
    let error = plan.deliver(&recording).await.err().context("stored")?;
    ensure!(
        error.fault() == Fault::Target && error.to_string().contains("nothing moved"),
        "{error}"
    );
    // Five seconds, and two of silence are allowed. What the sockets' buffers hold at the end is read within one.
    store.next(&[Does::Slow(10_000_000)]);
    plan.deliver(&recording).await?;
    the_audio(&store, &recording)?;
    Ok(())
}

async fn the_filter_applies_to_accounts_and_not_to_the_system(_: Arc<Couchdb>) -> TestResult {
    let store = ObjectStore::start(Setup::default()).await;
    let recording = Recording::of(3000);
    let strict = |changes: &[(&str, &str)]| {
        let all: Vec<(String, String)> = changes
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        whole_settings(&all)
    };
    let names: &[(&str, &[&str])] = &[("evil.test", &["127.0.0.1"]), ("inner.test", &["10.255.255.1"])];
    for (host, changes, code) in [
        ("127.0.0.1", &[][..], "AddressRefused:loopback"),
        ("evil.test", &[], "AddressRefused:loopback"),
        ("169.254.169.254", &[], "AddressRefused:metadata"),
        (
            "inner.test",
            &[("STORAGE__PRIVATE_ADDRESSES", "deny")],
            "AddressRefused:private",
        ),
    ] {
        let mut settings = store.s3();
        settings["host"] = json!(host);
        let plan = Plan::of("s3", &settings, &strict(changes), names)?;
        let error = plan.deliver(&recording).await.err().context("stored")?;
        ensure!(
            error.fault() == Fault::Plan && error.to_string().contains(code),
            "{host}: {error}"
        );
    }
    ensure!(store.asked("HEAD") == 0);
    let mut plan = Plan::of("s3", &store.s3(), &strict(&[]), names)?;
    plan.is_systems = true;
    plan.deliver(&recording).await?;
    the_audio(&store, &recording)?;
    Ok(())
}

async fn a_self_signed_store_is_reached_with_its_authority_and_not_without(_: Arc<Couchdb>) -> TestResult {
    let store = ObjectStore::start(Setup::default()).await;
    let authority = Authority::new("A store's own")?;
    let front = TlsFront::start(&store.address.to_string(), &authority.issue(&["127.0.0.1"])?, None).await?;
    let recording = Recording::of(300_000);
    let ca = authority.file(recording.dir(), "ca.pem")?;
    let mut s3 = store.s3();
    s3["scheme"] = json!("https");
    s3["port"] = json!(front.port);
    let endpoint = format!("https://127.0.0.1:{}", front.port);
    let azure = store.azure().0;
    for (kind, settings) in [("s3", &s3), ("azure", &azure)] {
        let plan = |ca: &str| {
            let changes = [("STORAGE__AZURE_ENDPOINT", endpoint.as_str()), ("STORAGE__CA_FILE", ca)];
            Plan::of(kind, settings, &config(&changes), &[])
        };
        let error = plan("")?.deliver(&recording).await.err().context("stored")?;
        ensure!(
            error.fault() == Fault::Plan && error.to_string().contains("CertificateNotTrusted"),
            "{error}"
        );
        let receipt = plan(&ca)?.deliver(&recording).await?;
        ensure!(receipt.proof == Proof::Digest && !receipt.was_there, "{receipt:?}");
    }
    ensure!(
        store
            .objects()
            .values()
            .all(|stored| stored.digests == recording.audio.digests)
    );
    ensure!(store.objects().len() == 2, "{:?}", store.objects().keys());
    Ok(())
}

async fn no_error_tells_a_secret(_: Arc<Couchdb>) -> TestResult {
    let store = ObjectStore::start(Setup::default()).await;
    let recording = Recording::of(3000);
    for does in [
        Does::Refuses(403, "AccessDenied"),
        Does::Refuses(500, "InternalError"),
        Does::Refuses(413, "EntityTooLarge"),
        Does::Refuses(400, SECRET),
        Does::ClosesAt(0),
    ] {
        for plan in Plan::both(&store)? {
            store.next(&[does]);
            let error = plan.deliver(&recording).await.err().context("stored")?;
            let told = format!("{error} {error:?}");
            for secret in [SECRET, "azurekey", "YXp1cmVrZXk", "Signature=", "SharedKey"] {
                ensure!(!told.contains(secret), "{does:?}: {told}");
            }
        }
    }
    Ok(())
}
