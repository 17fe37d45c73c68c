//! When other workers see what becomes of a start.

use super::*;

/// A ledger that notes how soon it is to write, and for how long the recording is leased.
#[derive(Default)]
struct Soon(Mutex<Vec<(Duration, bool)>>);

impl EntryStore for Soon {
    async fn known(&self, _: &Address) -> Option<Option<Entry>> {
        Some(None)
    }

    async fn note(&self, _: &Entry, lease: Option<Lease>, linger: Duration) -> Receipt {
        let is_leased = lease.is_some_and(|lease| !lease.by.is_empty());
        self.0.lock().unwrap().push((linger, is_leased));
        let (promise, receipt): (Promise, Receipt) = Receipt::promised();
        promise.keep();
        receipt
    }

    fn lease(&self, duration: Duration) -> Lease {
        let (by, until, stamped) = ("w".into(), order().asked_at.plus(duration), order().asked_at);
        Lease { by, until, stamped }
    }

    fn no_lease(&self) -> Lease {
        let by = String::new();
        Lease {
            by,
            ..self.lease(Duration::ZERO)
        }
    }
}

/// Finds the call alive, and sends the command.
struct Sends;

impl Effects for Sends {
    type Upload = ();

    async fn perform(&self, _: &Case, effect: Effect, _: &mut Option<()>) -> Result<Input, Interrupted> {
        match effect {
            Effect::LookForChannel { n } => Ok(Input::Fact(What::ChannelSeen { n, alive: true })),
            Effect::Command => Ok(Input::Fact(What::Commanded)),
            _ => Err(Interrupted::ShuttingDown),
        }
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

#[tokio::test(start_paused = true)]
async fn other_workers_see_at_once_that_a_start_is_being_sent_and_that_it_was() {
    let (entry, ledger) = (Entry::of_order(order(), "w"), Soon::default());
    let mailbox = InFlight::default().take(entry.key).unwrap();
    let (policy, clock) = (policy(), Clock::fixed(second(20)));
    let host = Host {
        policy: &policy,
        clock: &clock,
        stop: &CancellationToken::new(),
        lease: Duration::from_secs(300),
        linger: Duration::from_secs(1),
    };
    survive((&Sends, &ledger, host), entry, Input::Due, mailbox).await;
    let noted = ledger.0.lock().unwrap();
    // What it begins with, what it asks the ledger, that the call is alive, that the command was sent. Then it lets the recording go.
    assert!(noted.len() >= 4, "{noted:?}");
    let (last, before) = noted.split_last().unwrap();
    assert!(before.iter().all(|note| *note == (Duration::ZERO, true)), "{noted:?}");
    assert!(!last.1, "{noted:?}");
}
