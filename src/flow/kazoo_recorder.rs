//! Whether Kazoo's own recorder stores recordings now (`media_recording`, in media_mgr). The consumers of its queue show that: the queue
//! exists only while media_mgr consumes it. While Kazoo's own recorder runs, the worker leaves Kazoo's recordings to Kazoo.
//!
//! A worker that watches Kazoo's own recorder (`adopt.mode` `watch` and `rescue`) reports when no recorder runs: no recording of Kazoo is stored then.
//! A worker that stores in its place:
//!
//! ```text
//! consumers   0     0     1     1     0     0
//! looks         w     w     K     K     w          w: the worker stores   K: Kazoo's own recorder stores
//! events          a      b      c    d       e
//! ```
//!
//! `a` is adopted at once. `b` may be stored by both: the worker finds Kazoo's document, or Kazoo finds the worker's. `c` and `d` wait for a
//! look that began after they arrived. `c` is left to Kazoo. `d` is adopted, after the time that Kazoo's own recorder needs to store what it
//! took before it ended.
//!
//! `b` is adopted at once, so both may have it. A later version of Kazoo's own recorder deletes the document of a recording whose file is gone, and
//! that document is the worker's by then. So no file is released before a look that began after its end arrived has found no consumer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::amqp::{Publisher, Unseen};
use crate::config::AdoptMode;
use crate::entry::Entry;
use crate::entry::fact::What;
use crate::kazoo::names::{KAZOO_4_RECORDER_QUEUE, KAZOO_RECORDER_QUEUE};
use crate::kazoo::time::Moment;
use crate::telemetry::events::{Adopting, KazooRecorderAbsent, KazooRecorderSeen, KazooRecorderUnseen};

use super::common::Common;

/// How often the worker looks while Kazoo's own recorder stores, or while that is unknown.
const WHILE_REFUSED: Duration = Duration::from_secs(2);

/// How often the worker looks while it stores. RabbitMQ logs each look at a missing queue.
const WHILE_ADOPTING: Duration = Duration::from_secs(10);

/// The shortest time between two looks, however many events wait for one.
const GAP: Duration = Duration::from_millis(200);

/// Looks that get no answer for this time, over a connection that works, are reported.
const UNSEEN_FOR: Duration = Duration::from_secs(20);

/// Kazoo's own recorder stores a recording within half a second of its end.
const STORED_WITHIN: Duration = Duration::from_secs(5);

/// The worker logs this often that it leaves the recordings to Kazoo, or that looks get no answer.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// Time limit for a look that an event waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The same for a look that a switch waits for, which holds a thread of the switch. Without the look the file stays there, and is asked for later.
const RELEASE_PATIENCE: Duration = Duration::from_secs(3);

/// The shortest time between two looks for files that wait for their release.
const RELEASE_GAP: Duration = Duration::from_secs(1);

/// Kazoo's own recorder has given up by then: with its default settings its tries last three and a half hours.
const GIVEN_UP: Duration = Duration::from_secs(86_400);

/// The clocks of two workers differ by less than this.
const CLOCKS_DIFFER: Duration = Duration::from_secs(5);

/// Who stores Kazoo's own recordings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Storer {
    /// No look has succeeded yet.
    Unknown,
    Kazoo,
    Worker,
    /// RabbitMQ refuses to say how many consumers the queue has.
    Untold,
}

impl Storer {
    /// Who stores after a look that found nothing out. `None`: what was known before counts.
    fn after(self, unseen: Unseen) -> Option<Self> {
        match (self, unseen) {
            // A worker that stores continues: nothing says that Kazoo's own recorder runs, and a recording that both store is stored.
            (Self::Worker, _) => None,
            // A broker under load answers late. To leave an end to Kazoo without an answer can mean that no program stores the recording.
            (_, Unseen::Unanswered) => None,
            (_, Unseen::Refused) => Some(Self::Untold),
        }
    }
}

/// Looks in sequence that found nothing out.
#[derive(Debug, Clone, Copy, Default)]
struct Blind {
    since: Option<Instant>,
    told: Option<Instant>,
}

impl Blind {
    /// A look found nothing out. Whether this is to be reported now.
    fn failed(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let is_long = now.saturating_duration_since(since) >= UNSEEN_FOR;
        let is_due = |told: Instant| now.saturating_duration_since(told) >= TOLD_AGAIN;
        let tells = is_long && self.told.is_none_or(is_due);
        if tells {
            self.told = Some(now);
        }
        tells
    }

    /// Without a connection no look can succeed.
    fn unconnected(&mut self) {
        self.since = self.told.and(self.since);
    }

    /// A look got an answer. Whether it was reported that looks got none.
    fn ended(&mut self) -> bool {
        std::mem::take(self).told.is_some()
    }
}

/// The result of the last look.
#[derive(Debug, Clone, Copy)]
struct Look {
    storer: Storer,
    begun: Instant,
    /// Since when the storer is this one.
    since: Instant,
    /// When the worker last logged that it leaves the recordings to Kazoo, or adopts them.
    told: Instant,
    /// When the last look began that found no consumer.
    absent: Option<Instant>,
}

impl Look {
    /// Whether Kazoo's own recorder did not get an event that arrived then. `None`: it takes a later look to say so.
    fn missed(&self, arrived: Option<Instant>) -> Option<bool> {
        let is_later = |begun: Instant| arrived.is_none_or(|arrived| begun >= arrived);
        let missed = self.absent.is_some_and(is_later);
        (missed || is_later(self.begun)).then_some(missed)
    }
}

/// What to do with an event of Kazoo's own recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The worker stores the recording.
    Adopt,
    /// Kazoo's own recorder stores it.
    Leave,
    /// It is not known now who does.
    Unknown,
}

/// Watches the queue of Kazoo's own recorder.
pub struct KazooRecorder {
    common: Arc<Common>,
    publisher: Publisher,
    last: watch::Sender<Look>,
    /// An event waits for a look.
    wanted: Notify,
}

/// Whether the worker stores the recording in the place of Kazoo's own recorder, and Kazoo's own recorder would still ask for its file if it
/// had the end. It has the end of a recording that a worker watched: an operator's retry changes nothing about that.
pub fn may_be_asked_for(entry: &Entry, now: Moment) -> bool {
    if let Some((_, due)) = entry.watched() {
        return !entry.is_given_up_by_kazoo() && due.plus(CLOCKS_DIFFER) > now;
    }
    let is_end = |what: &What| matches!(what, What::Ended(_) | What::PresumedEnded(_));
    let heard = entry.facts().rev().find(|fact| is_end(&fact.what));
    entry.is_adopted() && heard.is_some_and(|heard| heard.at.plus(GIVEN_UP) > now)
}

impl KazooRecorder {
    pub fn new(common: &Arc<Common>, publisher: &Publisher) -> Self {
        let now = Instant::now();
        let first = Look {
            storer: Storer::Unknown,
            begun: now,
            since: now,
            told: now,
            absent: None,
        };
        Self {
            common: Arc::clone(common),
            publisher: publisher.clone(),
            last: watch::channel(first).0,
            wanted: Notify::new(),
        }
    }

    /// Looks until the worker goes down.
    pub async fn run(self: Arc<Self>) {
        let mut blind = Blind::default();
        if !self.watches() {
            Adopting { by_worker: None }.emit();
        }
        KazooRecorderUnseen::begin();
        while !self.common.stop().is_cancelled() {
            let begun = Instant::now();
            match self.look().await {
                Ok((storer, consumers)) => {
                    if blind.ended() {
                        KazooRecorderUnseen { why: None }.emit();
                    }
                    self.found(storer, begun, consumers);
                }
                // Without a connection no look says anything, and no event arrives either.
                Err(_) if !self.publisher.is_connected() || self.publisher.alarm().is_some() => blind.unconnected(),
                Err(unseen) => self.unseen(unseen, begun, &mut blind),
            }
            self.rest(begun).await;
        }
    }

    /// Whether the worker watches Kazoo's own recorder, and does not store in its place.
    pub fn watches(&self) -> bool {
        self.common.config.adopt.mode.watches()
    }

    /// Who stores now, and the number of consumers of Kazoo's queue.
    async fn look(&self) -> Result<(Storer, u32), Unseen> {
        let load = self.publisher.load(KAZOO_RECORDER_QUEUE).await?;
        KazooRecorderSeen {
            consumers: load.consumers,
            messages: load.messages,
        }
        .emit();
        let storer = match load.consumers > 0 || self.is_kazoo_4().await? {
            true => Storer::Kazoo,
            false => Storer::Worker,
        };
        Ok((storer, load.consumers))
    }

    /// Whether Kazoo 4's recorder runs, which a worker can watch and not replace.
    async fn is_kazoo_4(&self) -> Result<bool, Unseen> {
        if self.common.config.adopt.mode == AdoptMode::Store {
            return Ok(false);
        }
        match self.publisher.load(KAZOO_4_RECORDER_QUEUE).await {
            Ok(load) => Ok(load.consumers > 0),
            // A user with a permission on the queue of Kazoo 5 alone is of a Kazoo 5.
            Err(Unseen::Refused) => Ok(false),
            Err(Unseen::Unanswered) => Err(Unseen::Unanswered),
        }
    }

    /// A look found nothing out.
    fn unseen(&self, unseen: Unseen, begun: Instant, blind: &mut Blind) {
        let before = self.last.borrow().storer;
        let after = before.after(unseen);
        if let Some(storer) = after {
            self.found(storer, begun, 0);
        }
        // What such a worker does then has a log line of its own.
        let is_told = after.is_some() && !self.watches();
        if !is_told && blind.failed(Instant::now()) {
            let why = match unseen {
                Unseen::Refused => "refuses to report",
                Unseen::Unanswered => "does not report",
            };
            let why = format!("RabbitMQ {why} whether the queue {KAZOO_RECORDER_QUEUE} has consumers");
            KazooRecorderUnseen { why: Some(&why) }.emit();
        }
    }

    async fn rest(&self, begun: Instant) {
        let pause = match self.last.borrow().storer {
            _ if self.watches() => WHILE_ADOPTING,
            Storer::Worker => WHILE_ADOPTING,
            _ => WHILE_REFUSED,
        };
        let gap = match self.last.borrow().storer {
            Storer::Worker => RELEASE_GAP,
            _ => GAP,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.wanted.notified() => tokio::time::sleep_until(begun + gap).await,
            () = self.common.stop().cancelled() => {}
        }
    }

    fn found(&self, storer: Storer, begun: Instant, consumers: u32) {
        if self.watches() {
            return self.seen(storer, begun);
        }
        let before = *self.last.borrow();
        let is_news = before.storer != storer;
        let since = if is_news { Instant::now() } else { before.since };
        let refused = match storer {
            Storer::Kazoo => Some(format!(
                "the queue {KAZOO_RECORDER_QUEUE} has {consumers} consumers: Kazoo's own recorder runs"
            )),
            Storer::Untold => Some(format!(
                "RabbitMQ refuses to report whether the queue {KAZOO_RECORDER_QUEUE} has consumers"
            )),
            Storer::Worker | Storer::Unknown => None,
        };
        let is_old = refused.is_some() && begun.saturating_duration_since(before.told) >= TOLD_AGAIN;
        let told = if is_news || is_old { begun } else { before.told };
        self.last.send_replace(Look {
            storer,
            begun,
            since,
            told,
            absent: absent(before, storer, begun),
        });
        if is_news || is_old {
            Adopting {
                by_worker: Some(refused.as_deref().map_or(Ok(()), Err)),
            }
            .emit();
        }
    }

    /// The same, for a worker that watches.
    fn seen(&self, storer: Storer, begun: Instant) {
        let before = *self.last.borrow();
        let is_news = before.storer != storer;
        let is_absent = storer == Storer::Worker;
        let is_old = is_absent && begun.saturating_duration_since(before.told) >= TOLD_AGAIN;
        let tells = is_news || is_old;
        self.last.send_replace(Look {
            storer,
            begun,
            since: if is_news { begun } else { before.since },
            told: if tells { begun } else { before.told },
            absent: absent(before, storer, begun),
        });
        if tells && storer != Storer::Untold {
            let why = format!("the queue {KAZOO_RECORDER_QUEUE} has no consumers");
            KazooRecorderAbsent {
                why: is_absent.then_some(why.as_str()),
            }
            .emit();
        }
    }

    /// Who stores the recording of a `RECORD_STOP` that has just arrived.
    pub async fn of_stop(&self) -> Verdict {
        let arrived = Instant::now();
        let known = *self.last.borrow();
        if known.storer == Storer::Worker {
            // The look that the release of its file will need.
            self.wanted.notify_one();
            return self.settled(known).await;
        }
        match self.look_since(arrived).await {
            Some(look) => self.settled(look).await,
            None => Verdict::Unknown,
        }
    }

    /// Who will store the recording of a `RECORD_START`. Its end decides again.
    pub async fn of_start(&self) -> Verdict {
        let known = *self.last.borrow();
        match known.storer {
            Storer::Unknown => self
                .look_since(known.begun)
                .await
                .map_or(Verdict::Unknown, |look| verdict(look.storer)),
            storer => verdict(storer),
        }
    }

    /// Whether Kazoo's own recorder may ask the switch for the file of a recording that the worker stores in its place.
    pub async fn may_ask_for(&self, entry: &Entry) -> bool {
        if !may_be_asked_for(entry, self.common.now()) {
            return false;
        }
        if entry.watched().is_some() {
            return true;
        }
        let is_end = |what: &What| matches!(what, What::Ended(_) | What::PresumedEnded(_));
        let Some(heard) = entry.facts().rev().find(|fact| is_end(&fact.what)) else {
            return false;
        };
        let margin = match heard.by == self.common.policy.worker {
            true => Duration::ZERO,
            false => CLOCKS_DIFFER,
        };
        let now = self.common.now();
        // The host may have started after the end.
        let arrived = Instant::now()
            .checked_sub(now.since(heard.at))
            .map(|arrived| arrived + margin);
        !self.missed(arrived).await
    }

    /// Whether a look shows that Kazoo's own recorder did not get an event that arrived then.
    async fn missed(&self, arrived: Option<Instant>) -> bool {
        if let Some(missed) = self.last.borrow().missed(arrived) {
            return missed;
        }
        self.wanted.notify_one();
        missed_by(&self.last, arrived).await
    }

    /// The verdict of a look. If Kazoo's own recorder ran until a moment ago, it may have taken the event, and its document shows that.
    async fn settled(&self, look: Look) -> Verdict {
        if look.storer == Storer::Worker {
            let settles = tokio::time::sleep_until(look.since + STORED_WITHIN);
            if self.common.unless_stopped(settles).await.is_err() {
                return Verdict::Unknown;
            }
        }
        verdict(look.storer)
    }

    /// The first look with a result that began after `arrived`.
    async fn look_since(&self, arrived: Instant) -> Option<Look> {
        self.wanted.notify_one();
        let mut looks = self.last.subscribe();
        let is_later = |look: &Look| look.begun >= arrived && look.storer != Storer::Unknown;
        let found = tokio::time::timeout(PATIENCE, looks.wait_for(is_later));
        let found = self.common.unless_stopped(found).await.ok()?.ok()?.ok()?;
        Some(*found)
    }
}

/// When the last look began that found no consumer, after this look.
fn absent(before: Look, storer: Storer, begun: Instant) -> Option<Instant> {
    match storer {
        Storer::Worker => Some(begun),
        _ => before.absent,
    }
}

/// As `Look::missed`, by the looks that come.
async fn missed_by(looks: &watch::Sender<Look>, arrived: Option<Instant>) -> bool {
    let mut looks = looks.subscribe();
    let tells = |look: &Look| look.missed(arrived).is_some();
    match tokio::time::timeout(RELEASE_PATIENCE, looks.wait_for(tells)).await {
        Ok(Ok(look)) => look.missed(arrived) == Some(true),
        _ => false,
    }
}

fn verdict(storer: Storer) -> Verdict {
    match storer {
        Storer::Worker => Verdict::Adopt,
        Storer::Kazoo | Storer::Untold => Verdict::Leave,
        Storer::Unknown => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last look found no consumer. What the looks find that begin so many seconds after an end; whether its file may go.
    async fn is_released(found: &[(u64, Storer)]) -> bool {
        let arrived = Instant::now();
        let first = Look {
            storer: Storer::Worker,
            begun: arrived - Duration::from_secs(8),
            since: arrived - Duration::from_secs(60),
            told: arrived,
            absent: Some(arrived - Duration::from_secs(8)),
        };
        let looks = watch::channel(first).0;
        let looking = async {
            for (second, storer) in found {
                let begun = arrived + Duration::from_secs(*second);
                tokio::time::sleep_until(begun).await;
                let before = *looks.borrow();
                let absent = absent(before, *storer, begun);
                looks.send_replace(Look {
                    storer: *storer,
                    begun,
                    absent,
                    ..before
                });
            }
        };
        tokio::join!(missed_by(&looks, Some(arrived)), looking).0
    }

    /// media_mgr was restarted between the last look and the end of the recording. It gets the end too, and its later versions delete the
    /// document of a recording whose file is gone.
    #[tokio::test(start_paused = true)]
    async fn no_file_is_released_that_kazoos_own_recorder_may_ask_for() {
        assert!(!is_released(&[(1, Storer::Kazoo)]).await);
        assert!(!is_released(&[]).await, "RabbitMQ does not answer");
        assert!(is_released(&[(1, Storer::Worker)]).await);
        assert!(!is_released(&[(1, Storer::Untold)]).await);
    }

    /// A broker under load answers no look of a worker that has just started. An end that is left to Kazoo is acknowledged.
    #[test]
    fn a_broker_that_answers_late_leaves_no_end_to_kazoo() {
        for storer in [Storer::Unknown, Storer::Kazoo, Storer::Worker, Storer::Untold] {
            assert_eq!(storer.after(Unseen::Unanswered), None, "{storer:?}");
        }
        for storer in [Storer::Unknown, Storer::Kazoo, Storer::Untold] {
            assert_eq!(storer.after(Unseen::Refused), Some(Storer::Untold), "{storer:?}");
        }
        assert_eq!(Storer::Worker.after(Unseen::Refused), None);
        assert_eq!(verdict(Storer::Unknown), Verdict::Unknown);
    }

    #[test]
    fn looks_that_get_no_answer_are_reported_each_minute_until_one_does() {
        let (mut blind, begun) = (Blind::default(), Instant::now());
        let second = |n| begun + Duration::from_secs(n);
        let told: Vec<u64> = (0..200).filter(|n| blind.failed(second(*n))).collect();
        assert_eq!(told, [20, 80, 140]);
        blind.unconnected();
        assert!(blind.failed(second(200)), "a new connection changes nothing about that");
        assert!(blind.ended() && !blind.ended());
        assert!(!blind.failed(second(201)));
        blind.unconnected();
        assert!(!blind.failed(second(230)), "a connection of a moment ago");
        assert!(!blind.ended());
    }

    #[tokio::test(start_paused = true)]
    async fn a_recorder_that_comes_back_after_a_look_has_not_got_the_end() {
        let arrived = Instant::now();
        let second = |n| arrived + Duration::from_secs(n);
        let look = |storer, begun, absent| Look {
            storer,
            begun,
            since: begun,
            told: begun,
            absent,
        };
        let back = look(Storer::Kazoo, second(9), Some(second(1)));
        assert_eq!(back.missed(Some(arrived)), Some(true));
        assert_eq!(back.missed(Some(second(2))), Some(false));
        assert_eq!(back.missed(Some(second(10))), None);
    }

    /// media_mgr waits in memory for its next try. It would find no file, and later versions delete the document then.
    #[test]
    fn a_retry_of_a_watched_recording_leaves_the_file_to_kazoo() {
        use crate::entry::fact::{Fact, KazooCopy};
        let told = crate::lifecycle::tests::told(5000);
        let (at, due) = (told.at, told.at.plus(Duration::from_secs(3 * 3600)));
        let mut order = crate::lifecycle::tests::order();
        order.adopted = serde_json::from_value(serde_json::json!({})).ok();
        let mut entry = Entry::of_order(order, "w");
        let mut add = |what| {
            let by = "w".into();
            entry.add(Fact { at, by, what });
            entry.clone()
        };
        add(What::Ended(told));
        let retry = add(What::Watched { due }).retry();
        let retried = add(retry);
        for (now, is_asked_for) in [(at, true), (due, true), (due.plus(CLOCKS_DIFFER), false)] {
            assert_eq!(may_be_asked_for(&retried, now), is_asked_for);
        }
        let (found, last) = (KazooCopy::Missing, true);
        let given_up = add(What::Sought { n: 1, found, last });
        assert!(!may_be_asked_for(&given_up, due));
    }

    /// The worker stored it while the operator switched back. A presumed end counts as well: then Kazoo's own recorder alone got the event.
    #[test]
    fn the_file_of_an_adopted_recording_may_be_asked_for_for_a_day() {
        use crate::entry::fact::Fact;
        let told = crate::lifecycle::tests::told(5000);
        let at = told.at;
        for end in [What::Ended(told.clone()), What::PresumedEnded(told.clone())] {
            let mut order = crate::lifecycle::tests::order();
            order.adopted = None;
            let mut of_an_action = Entry::of_order(order.clone(), "w");
            order.adopted = serde_json::from_value(serde_json::json!({})).ok();
            let mut adopted = Entry::of_order(order, "w");
            assert!(!may_be_asked_for(&adopted, at), "it runs");
            for entry in [&mut of_an_action, &mut adopted] {
                let (by, what) = ("w".into(), end.clone());
                entry.add(Fact { at, by, what });
            }
            assert!(!may_be_asked_for(&of_an_action, at));
            assert!(may_be_asked_for(&adopted, at.plus(GIVEN_UP / 2)));
            assert!(!may_be_asked_for(&adopted, at.plus(GIVEN_UP)));
        }
    }
}
