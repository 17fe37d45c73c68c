use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use crate::entry::cause::Outcome;
use crate::entry::fact::{BEFORE_ANY_START, Delivery, Destination, Document, Fact, Holding, What};
use crate::flow::in_flight::InFlight;
use crate::ledger::Promise;
use crate::lifecycle::tests::{audio, order, policy, told};

use super::*;

mod in_vain;
mod starts;

/// A ledger that notes what it gets, and makes nothing durable before it may.
struct SlowLedger {
    may: watch::Receiver<bool>,
}

impl EntryStore for SlowLedger {
    async fn known(&self, _: &Address) -> Option<Option<Entry>> {
        Some(None)
    }

    async fn note(&self, _: &Entry, _: Option<Lease>, _: Duration) -> Receipt {
        let (promise, receipt): (Promise, Receipt) = Receipt::promised();
        let mut may = self.may.clone();
        tokio::spawn(async move {
            if may.wait_for(|may| *may).await.is_ok() {
                promise.keep();
            }
        });
        receipt
    }

    fn lease(&self, duration: Duration) -> Lease {
        Lease {
            by: "w".into(),
            until: Moment::from_unix_seconds(i64::MAX / 2_000_000).minus(duration),
            stamped: Moment::from_unix_seconds(0),
        }
    }

    fn no_lease(&self) -> Lease {
        self.lease(Duration::ZERO)
    }
}

/// Takes the copy out of the hold.
#[derive(Default)]
struct Hold {
    emptied: AtomicBool,
}

impl Effects for Hold {
    type Upload = ();

    async fn perform(&self, case: &Case, effect: Effect, _: &mut Option<()>) -> Result<Input, Interrupted> {
        assert_eq!(effect, Effect::Unhold, "nothing else is owed");
        self.emptied.store(true, Ordering::SeqCst);
        let n = case.entry.next_hold();
        Ok(Input::Fact(What::Unheld { n }))
    }

    fn keep(&self, (): ()) {}

    fn panicked(&self, _: &Entry, why: &str) {
        panic!("{why}");
    }

    fn stepped(&self, _: &Entry, _: &Entry) {}

    fn receives_since(&self) -> Option<Moment> {
        None
    }
}

/// A recording that was delivered from the hold, and is still there.
fn delivered() -> Entry {
    let mut entry = Entry::of_order(order(), "w");
    let audio = audio(5000);
    let document = Document {
        id: order().media_id,
        database: "account".into(),
        rev: "1-a".into(),
        created: order().asked_at,
    };
    let held = Holding {
        place: "hold".into(),
        name: "copy".into(),
        size: audio.size,
        digests: audio.digests.clone(),
    };
    let delivery = Delivery {
        destination: Destination::Account,
        document,
        sha256: Some(audio.digests.sha256.clone()),
        below_quorum: false,
        audio: None,
        deleted: false,
        edit_told: false,
        controls: Some(entry.controls().fingerprint()),
        again: 0,
    };
    let (n, holding) = (1, held);
    for (second, what) in [
        What::Commanded,
        What::Started(told(0)),
        What::Ended(told(5000)),
        What::Collected(audio),
        What::Held { n, holding },
        What::Released { n },
        What::delivered(delivery),
        What::Announced(Announcement::DocumentCreated),
        What::Announced(Announcement::Outcome(Outcome::Stored)),
    ]
    .into_iter()
    .enumerate()
    {
        let at = order().asked_at.plus(Duration::from_secs(second as u64));
        let by = "w".to_owned();
        entry.add(Fact { at, by, what });
    }
    entry
}

/// A worker that dies between the two leaves the recording to one that finds the copy neither in the hold nor on its switch.
#[tokio::test(start_paused = true)]
async fn the_hold_is_emptied_only_when_the_ledger_has_the_delivery() {
    let (durable, may) = watch::channel(false);
    let (hold, ledger) = (Arc::new(Hold::default()), SlowLedger { may });
    let ours = Arc::clone(&hold);
    let driving = tokio::spawn(async move {
        let entry = delivered();
        let mailbox = InFlight::default().take(entry.key).unwrap();
        let (policy, clock) = (policy(), Clock::fixed(order().asked_at.plus(Duration::from_secs(60))));
        let host = Host {
            policy: &policy,
            clock: &clock,
            stop: &CancellationToken::new(),
            lease: Duration::from_secs(300),
            linger: Duration::from_millis(50),
        };
        survive((ours.as_ref(), &ledger, host), entry, Input::Due, mailbox).await;
    });
    // Of the paused clock: until everything that runs waits for the ledger.
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!hold.emptied.load(Ordering::SeqCst), "the ledger has nothing yet");
    durable.send(true).unwrap();
    driving.await.unwrap();
    assert!(hold.emptied.load(Ordering::SeqCst));
}

/// A ledger that remembers what it got last.
#[derive(Default)]
struct Notes(Mutex<Option<Entry>>);

impl EntryStore for Notes {
    async fn known(&self, _: &Address) -> Option<Option<Entry>> {
        Some(None)
    }

    async fn note(&self, entry: &Entry, _: Option<Lease>, _: Duration) -> Receipt {
        *self.0.lock().unwrap() = Some(entry.clone());
        let (promise, receipt): (Promise, Receipt) = Receipt::promised();
        promise.keep();
        receipt
    }

    fn lease(&self, duration: Duration) -> Lease {
        let (by, until, stamped) = ("w".into(), order().asked_at.plus(duration), order().asked_at);
        Lease { by, until, stamped }
    }

    fn no_lease(&self) -> Lease {
        self.lease(Duration::ZERO)
    }
}

/// Announces, and panics when the announcement of the outcome is to be noted.
struct PanicsAtTheOutcome;

impl Effects for PanicsAtTheOutcome {
    type Upload = ();

    async fn perform(&self, _: &Case, effect: Effect, _: &mut Option<()>) -> Result<Input, Interrupted> {
        match effect {
            Effect::Announce(announcement) => Ok(Input::Fact(What::Announced(announcement))),
            _ => Err(Interrupted::ShuttingDown),
        }
    }

    fn keep(&self, (): ()) {}

    fn panicked(&self, _: &Entry, _: &str) {}

    fn stepped(&self, _: &Entry, after: &Entry) {
        assert!(
            !after.facts().any(|fact| is_outcome(&fact.what)),
            "a fault of the program"
        );
    }

    fn receives_since(&self) -> Option<Moment> {
        None
    }
}

fn is_outcome(what: &What) -> bool {
    matches!(what, What::Announced(Announcement::Outcome(_)))
}

/// The step that notes an announcement also notes the webhooks that are owed for it.
#[tokio::test(start_paused = true)]
async fn an_announcement_whose_step_panicked_is_made_once_more() {
    let mut entry = Entry::of_order(order(), "w");
    for fact in delivered().facts().filter(|fact| !is_outcome(&fact.what)) {
        entry.add(Fact::clone(fact));
    }
    let (ledger, mailbox) = (Notes::default(), InFlight::default().take(entry.key).unwrap());
    let (policy, clock) = (policy(), Clock::fixed(order().asked_at.plus(Duration::from_secs(60))));
    let host = Host {
        policy: &policy,
        clock: &clock,
        stop: &CancellationToken::new(),
        lease: Duration::from_secs(300),
        linger: Duration::from_millis(50),
    };
    survive((&PanicsAtTheOutcome, &ledger, host), entry, Input::Due, mailbox).await;
    let noted = ledger.0.lock().unwrap().take().expect("noted");
    assert_eq!(noted.panics().count(), 1);
    assert!(!noted.facts().any(|fact| is_outcome(&fact.what)));
}

/// A ledger that was away, and then has what another worker wrote.
struct BackAgain {
    away: AtomicBool,
    known: Entry,
}

impl EntryStore for BackAgain {
    async fn known(&self, _: &Address) -> Option<Option<Entry>> {
        let away = self.away.swap(false, Ordering::SeqCst);
        (!away).then(|| Some(self.known.clone()))
    }

    async fn note(&self, _: &Entry, _: Option<Lease>, _: Duration) -> Receipt {
        let (promise, receipt): (Promise, Receipt) = Receipt::promised();
        promise.keep();
        receipt
    }

    fn lease(&self, duration: Duration) -> Lease {
        let until = order().asked_at.plus(duration);
        let (by, stamped) = ("w".into(), order().asked_at);
        Lease { by, until, stamped }
    }

    fn no_lease(&self) -> Lease {
        self.lease(Duration::ZERO)
    }
}

/// Notes the first effect that is wanted, and then the worker ends.
#[derive(Default)]
struct First {
    wanted: Mutex<Option<Effect>>,
    receives_since: Option<Moment>,
}

impl Effects for First {
    type Upload = ();

    async fn perform(&self, _: &Case, effect: Effect, _: &mut Option<()>) -> Result<Input, Interrupted> {
        *self.wanted.lock().unwrap() = Some(effect);
        Err(Interrupted::ShuttingDown)
    }

    fn keep(&self, (): ()) {}

    fn panicked(&self, _: &Entry, why: &str) {
        panic!("{why}");
    }

    fn stepped(&self, _: &Entry, _: &Entry) {}

    fn receives_since(&self) -> Option<Moment> {
        self.receives_since
    }
}

/// The command of this worker met no queue. Another worker's did later, and the ledger was away when this one saw that the call is over.
#[tokio::test(start_paused = true)]
async fn a_call_counts_as_gone_only_by_all_that_workers_know() {
    let fact = |second: u64, by: &str, what: What| Fact {
        at: order().asked_at.plus(Duration::from_secs(second)),
        by: by.to_owned(),
        what,
    };
    let mut entry = Entry::of_order(order(), "w");
    let why = "no queue takes the message".into();
    entry.add(fact(2, "w", What::CommandLost { why }));
    let mut known = entry.clone();
    known.add(fact(3, "v", What::ChannelSeen { n: 1, alive: true }));
    known.add(fact(3, "v", What::Commanded));
    let (away, first) = (AtomicBool::new(true), First::default());
    let ledger = BackAgain { away, known };
    let mailbox = InFlight::default().take(entry.key).unwrap();
    let (policy, clock) = (policy(), Clock::fixed(order().asked_at.plus(Duration::from_secs(60))));
    let host = Host {
        policy: &policy,
        clock: &clock,
        stop: &CancellationToken::new(),
        lease: Duration::from_secs(300),
        linger: Duration::from_millis(50),
    };
    let over = Input::Fact(What::ChannelSeen { n: 1, alive: false });
    survive((&first, &ledger, host), entry, over, mailbox).await;
    let wanted = first.wanted.lock().unwrap().take();
    assert!(matches!(wanted, Some(Effect::Probe { .. })), "{wanted:?}");
}

/// What this worker did while the ledger was away. `known` is what the ledger has. `since`: since which second this worker receives actions.
async fn with_the_ledger_away(entry: Entry, known: Entry, since: Option<i64>, now: i64) -> Option<Effect> {
    let ledger = BackAgain {
        away: AtomicBool::new(true),
        known,
    };
    let first = First {
        wanted: Mutex::default(),
        receives_since: since.map(second),
    };
    let mailbox = InFlight::default().take(entry.key).unwrap();
    let (policy, clock) = (policy(), Clock::fixed(second(now)));
    let host = Host {
        policy: &policy,
        clock: &clock,
        stop: &CancellationToken::new(),
        lease: Duration::from_secs(300),
        linger: Duration::from_millis(50),
    };
    survive((&first, &ledger, host), entry, Input::Due, mailbox).await;
    first.wanted.lock().unwrap().take()
}

fn second(n: i64) -> Moment {
    Moment::from_unix_micros(order().asked_at.unix_micros() + n * 1_000_000)
}

fn fact(n: i64, by: &str, what: What) -> Fact {
    Fact {
        at: second(n),
        by: by.to_owned(),
        what,
    }
}

/// A start that this worker is to send again, five seconds after its action. Another worker sent it meanwhile, as the ledger says when it is
/// back.
async fn start_with_the_ledger_away(by: &str, since: Option<i64>) -> Option<Effect> {
    let mut entry = Entry::of_order(order(), by);
    entry.add(fact(4, "w", What::ChannelSeen { n: 1, alive: true }));
    let mut known = entry.clone();
    known.add(fact(4, "v", What::Commanded));
    with_the_ledger_away(entry, known, since, 5).await
}

#[tokio::test(start_paused = true)]
async fn an_action_that_another_worker_noted_waits_for_the_ledger() {
    assert_eq!(start_with_the_ledger_away("w", Some(-10)).await, Some(Effect::Command));
    assert_eq!(start_with_the_ledger_away("v", Some(-10)).await, None);
}

/// RabbitMQ gives what a closed connection did not acknowledge to another worker at once. The time of a start is that of its callflow node, whose
/// clock may be ahead.
#[tokio::test(start_paused = true)]
async fn an_action_of_an_earlier_connection_waits_for_the_ledger() {
    for since in [Some(2), Some(-3), None] {
        assert_eq!(start_with_the_ledger_away("w", since).await, None, "{since:?}");
    }
}

/// A mask that was asked for while the call rang. The recording began at second 25, after another worker had unmasked.
async fn mask_with_the_ledger_away(heard_by: &str, since: i64) -> Option<Effect> {
    let mut entry = Entry::of_order(order(), "w");
    entry.add(fact(0, "w", What::Commanded));
    note_a_mask(&mut entry, (1, "w"), true);
    let mut known = entry.clone();
    let started = Told {
        at: second(25),
        ..*told(0)
    };
    entry.add(fact(25, heard_by, What::Started(Box::new(started))));
    note_a_mask(&mut known, (20, "v"), false);
    with_the_ledger_away(entry, known, Some(since), 26).await
}

fn note_a_mask(entry: &mut Entry, (n, by): (i64, &str), on: bool) {
    let (action, asked) = (format!("{on}"), Some(second(n)));
    let asked = What::MaskAsked {
        action: action.clone(),
        on,
        asked,
        route: None,
    };
    let sent = What::Masked {
        action,
        on,
        n: 0,
        start: Some(BEFORE_ANY_START),
        sender: Some(by.to_owned()),
    };
    entry.add(fact(n, by, asked));
    entry.add(fact(n, by, sent));
}

#[tokio::test(start_paused = true)]
async fn a_mask_is_sent_again_for_a_start_that_was_heard_while_the_ledger_is_away() {
    let again = Effect::Control {
        what: Control::Mask,
        n: 1,
    };
    assert_eq!(mask_with_the_ledger_away("w", -10).await, Some(again.clone()));
    // Another worker heard of it, or the connection was closed since the action.
    assert_ne!(mask_with_the_ledger_away("v", -10).await, Some(again.clone()));
    assert_ne!(mask_with_the_ledger_away("w", 20).await, Some(again.clone()));
}
