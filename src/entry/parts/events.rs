//! The events of a recording's parts: which start and which end belong to one part.

use crate::entry::fact::What;
use crate::kazoo::time::Moment;
use crate::recording::ending::Told;

/// One stretch, from a start to its end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part<'a> {
    /// The last report of its start.
    pub started: Option<&'a Told>,
    pub ended: Option<&'a Told>,
    /// The first report of its start.
    pub(super) begun: Option<Event<'a>>,
    pub(super) end_heard: Option<Seen<'a>>,
}

/// When a worker saw something, by its own clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Seen<'a> {
    pub(super) at: Moment,
    pub(super) by: &'a str,
}

impl Seen<'_> {
    /// Whether this was not later than the other; `None` if two workers saw them, because their clocks may differ.
    pub(super) fn is_by(self, other: Self) -> Option<bool> {
        (self.by == other.by).then_some(self.at <= other.at)
    }
}

impl Part<'_> {
    /// The position of its start among the events of its recording.
    pub(in crate::entry) fn begun_at(&self) -> Option<i64> {
        self.begun.map(|begun| begun.told.order())
    }

    /// Whether several starts are known of it: then the ends between them were lost, and its length is that of its last stretch alone.
    pub(super) fn has_lost_ends(&self) -> bool {
        self.begun_at() != self.started.map(Told::order)
    }

    /// Whether `start` is one of its starts.
    pub(super) fn began_at(&self, start: i64) -> bool {
        let last = self.started.map(Told::order);
        self.begun_at()
            .zip(last)
            .is_some_and(|(first, last)| (first..=last).contains(&start))
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Event<'a> {
    pub(super) heard: Moment,
    pub(super) by: &'a str,
    pub(super) told: &'a Told,
}

impl<'a> Event<'a> {
    pub(super) fn seen(&self) -> Seen<'a> {
        let (at, by) = (self.heard, self.by);
        Seen { at, by }
    }
    /// The switch's stamps decide, if both events have one. Without stamps, neither the seconds nor the order of arrival alone is trusted.
    pub(super) fn is_after(&self, other: &Event<'_>) -> bool {
        match self.told.stamp.zip(other.told.stamp) {
            Some((mine, theirs)) => mine > theirs,
            None => self.heard > other.heard && self.told.order() > other.told.order(),
        }
    }

    /// Whether this start comes after that end, for which another start is known. The switch's stamps tick, so a stop and the next start
    /// can have the same stamp. A part that lasted for longer than a tick did not begin and end within one.
    pub(super) fn begins_after(&self, end: &Event<'_>) -> bool {
        let is_same_tick = self.told.stamp.is_some() && self.told.stamp == end.told.stamp;
        if is_same_tick {
            end.told.length_ms.is_some_and(|length| length > TICK_MS)
        } else {
            self.is_after(end)
        }
    }

    /// Whether both are copies of one event, as two ecallmgrs publish it. The stamp alone does not show that, because other events within
    /// the tick have it too.
    pub(super) fn is_copy_of(&self, other: &Self) -> bool {
        let (mine, theirs) = (self.told, other.told);
        mine.stamp.is_some()
            && mine.stamp == theirs.stamp
            && mine.length_ms == theirs.length_ms
            && mine.call_id == theirs.call_id
            && mine.path == theirs.path
    }
}

/// The stamps of a switch's events count in steps of 20 ms. This includes a tolerance.
const TICK_MS: u64 = 40;

pub(super) fn start_of(what: &What) -> Option<&Told> {
    match what {
        What::Started(told) => Some(told),
        _ => None,
    }
}

pub(super) fn end_of(what: &What) -> Option<&Told> {
    match what {
        What::Ended(told) => Some(told),
        _ => None,
    }
}

/// Assigns an end to its part: the last part that began before it.
pub(super) fn place<'a>(parts: &mut Vec<Part<'a>>, end: Event<'a>) {
    let began_before = |part: &Part<'_>| part.begun.is_some_and(|begun| !begun.begins_after(&end));
    let mut at = parts.iter().rposition(began_before).unwrap_or(0);
    // If that part has its end already, the end belongs to a start with the same stamp that has no end.
    let is_own = |part: &Part<'_>| {
        let begun = part.begun.and_then(|begun| begun.told.stamp);
        part.ended.is_none() && begun.is_some() && begun == end.told.stamp
    };
    if parts[at].ended.is_some()
        && let Some(own) = parts.iter().rposition(is_own)
    {
        at = own;
    }
    // After the ends that were assigned before, because ends come in order here.
    while parts[at].ended.is_some() && parts.get(at + 1).is_some_and(|next| next.begun.is_none()) {
        at += 1;
    }
    let part = &mut parts[at];
    let Some((known, heard)) = part.ended.zip(part.end_heard) else {
        let (at, by) = (end.heard, end.by);
        (part.ended, part.end_heard) = (Some(end.told), Some(Seen { at, by }));
        return;
    };
    let (heard, by) = (heard.at, heard.by);
    let known = Event { heard, by, told: known };
    // A repeat with a new stamp reports the same length. Another length belongs to another part, whose start was lost.
    let is_other = end.is_after(&known) || known.told.stamp.is_some() && known.told.stamp == end.told.stamp;
    // Of two stretches of the same length the causes may differ.
    let differs =
        end.told.length_ms != known.told.length_ms || end.told.completion_cause != known.told.completion_cause;
    if is_other && end.told.length_ms.is_some() && differs {
        let unheard = Part {
            started: None,
            ended: Some(end.told),
            begun: None,
            end_heard: Some(Seen {
                at: end.heard,
                by: end.by,
            }),
        };
        parts.insert(at + 1, unheard);
    }
}
