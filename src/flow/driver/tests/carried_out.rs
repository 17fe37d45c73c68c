//! Commands that another worker perhaps carried out.

use crate::kazoo::dialplan::Control;

use super::*;

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

/// Two workers have an action, whose start another one is about to send: the ledger does not have the command yet.
#[tokio::test(start_paused = true)]
async fn a_start_is_sent_by_one_worker_at_a_time() {
    let entry = Entry::of_order(order(), "w");
    let mut commanded = entry.clone();
    commanded.add(fact(4, "v", What::Commanded));
    // Until the other worker's command is known, or that worker is gone.
    for (then, sends) in [
        (Taken::Others(commanded), false),
        (Taken::Mine(entry.clone(), lease("w")), true),
    ] {
        let (asked, first) = (Mutex::new(vec![then, Taken::Others(entry.clone())]), First::default());
        let ledger = Leased {
            asked,
            ..Leased::default()
        };
        let mailbox = InFlight::default().take(entry.key).unwrap();
        let (policy, clock) = (policy(), Clock::fixed(second(60)));
        let host = Host {
            policy: &policy,
            clock: &clock,
            stop: &CancellationToken::new(),
            lease: Duration::from_secs(300),
            linger: Duration::from_millis(50),
        };
        let seen = Input::Fact(What::ChannelSeen { n: 1, alive: true });
        survive((&first, &ledger, host), entry.clone(), seen, mailbox).await;
        let wanted = first.wanted.lock().unwrap().take();
        assert_eq!(wanted == Some(Effect::Command), sends, "{wanted:?}");
        let noted = ledger.noted.lock().unwrap().clone();
        let before = noted
            .iter()
            .take_while(|(_, commanded)| !commanded)
            .map(|(lease, _)| lease);
        let mut leased = before.take(2).flatten();
        assert!(
            leased.all(|lease| lease.by.is_empty()),
            "the lease stays that of the other worker: {noted:?}"
        );
    }
}

/// A ledger in which another worker has the lease of a recording at first.
#[derive(Default)]
struct Leased {
    /// The answers, the last one first.
    asked: Mutex<Vec<Taken>>,
    /// The leases that were noted, and whether the command was.
    noted: Mutex<Vec<(Option<Lease>, bool)>>,
}

fn lease(by: &str) -> Lease {
    let (until, stamped) = (order().asked_at.plus(Duration::from_secs(300)), order().asked_at);
    Lease {
        by: by.into(),
        until,
        stamped,
    }
}

impl EntryStore for Leased {
    async fn known(&self, _: &Address) -> Option<Option<Entry>> {
        Some(None)
    }

    async fn take(&self, _: &Address, _: Duration, _: &(dyn Fn(&str) -> bool + Sync)) -> Option<Taken> {
        self.asked.lock().unwrap().pop()
    }

    async fn note(&self, entry: &Entry, lease: Option<Lease>, _: Duration) -> Receipt {
        self.noted.lock().unwrap().push((lease, entry.is_commanded()));
        let (promise, receipt): (Promise, Receipt) = Receipt::promised();
        promise.keep();
        receipt
    }

    fn lease(&self, _: Duration) -> Lease {
        lease("w")
    }

    fn no_lease(&self) -> Lease {
        lease("")
    }
}
