//! The one form of time in the whole worker, and the only place that reads the clock.
//!
//! Kazoo counts Gregorian seconds (`calendar:datetime_to_gregorian_seconds`): Unix seconds plus 62,167,219,200. Months are UTC months, in
//! any time zone of the servers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime, UtcOffset};

/// Seconds between the year 0 and 1970 in the proleptic Gregorian calendar.
pub const GREGORIAN_OFFSET_S: i64 = 62_167_219_200;

const MICROS: i64 = 1_000_000;

/// A moment: microseconds since 1970-01-01T00:00:00Z. Serialised as that integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(i64);

impl Moment {
    pub const fn from_unix_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Saturates far outside the years that a `Month` can represent.
    pub const fn from_unix_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(MICROS))
    }

    pub const fn from_gregorian_seconds(seconds: i64) -> Self {
        Self::from_unix_seconds(seconds.saturating_sub(GREGORIAN_OFFSET_S))
    }

    pub const fn unix_micros(self) -> i64 {
        self.0
    }

    pub const fn unix_seconds(self) -> i64 {
        self.0.div_euclid(MICROS)
    }

    /// Gregorian seconds, the unit of `pvt_created`, `start` and an event's `Timestamp`.
    pub const fn gregorian_seconds(self) -> i64 {
        self.unix_seconds() + GREGORIAN_OFFSET_S
    }

    pub fn plus(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)),
        )
    }

    pub fn minus(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)),
        )
    }

    /// How long after `earlier` this is. Zero when this is before `earlier`.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The UTC month that this moment is in.
    pub fn month(self) -> Month {
        let date = self.date_time().date();
        Month {
            year: u16::try_from(date.year()).unwrap_or(0),
            month: u8::from(date.month()),
        }
    }

    /// The UTC day, `YYYYMMDD`.
    pub fn day(self) -> String {
        format!("{}{:02}", self.month(), self.date_time().day())
    }

    /// Reads a UTC time of a URL or a header: a date, with or without a time, in the long or the short form of ISO 8601
    /// (`2026-11-30T12:00:00Z`, `20261130T120000Z`, `2026-11-30`).
    pub fn of_utc(text: &str) -> Option<Self> {
        let text = text.strip_suffix('Z').unwrap_or(text);
        let is_mark = |c: char| matches!(c, '-' | ':' | 'T');
        let whole = text
            .split('.')
            .next()
            .filter(|whole| whole.chars().all(|c| c.is_ascii_digit() || is_mark(c)))?;
        let digits: String = whole.chars().filter(char::is_ascii_digit).collect();
        if !matches!(digits.len(), 8 | 12 | 14) {
            return None;
        }
        let number = |at: usize| digits.get(at..at + 2).map_or(Some(0), |two| two.parse::<u8>().ok());
        let month = time::Month::try_from(number(4)?).ok()?;
        let date = Date::from_calendar_date(digits.get(..4)?.parse().ok()?, month, number(6)?).ok()?;
        let at = date.with_hms(number(8)?, number(10)?, number(12)?).ok()?;
        Some(Self::from_unix_seconds(
            at.assume_offset(UtcOffset::UTC).unix_timestamp(),
        ))
    }

    /// RFC 3339 in UTC, for people and logs.
    pub fn rfc3339(self) -> String {
        self.date_time().format(&Rfc3339).unwrap_or_else(|_| self.0.to_string())
    }

    fn date_time(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1000)
            .ok()
            .filter(|at| (0..=9999).contains(&at.year()))
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// A UTC month, written `YYYYMM`: the prefix of a recording's id and the suffix of its database (MODB).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month {
    year: u16,
    month: u8,
}

impl Month {
    /// Reads the `YYYYMM` at the start of a recording's id. `None` for anything else, and for months 00 and 13 to 99.
    pub fn of_id(id: &str) -> Option<Self> {
        let digits = id.get(..6).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
        let (year, month) = (digits.get(..4)?.parse().ok()?, digits.get(4..)?.parse().ok()?);
        (1..=12).contains(&month).then_some(Self { year, month })
    }

    /// The first moment of the month.
    pub fn start(self) -> Moment {
        let month = self.in_calendar();
        Date::from_calendar_date(i32::from(self.year), month, 1)
            .map(|date| date.midnight().assume_offset(UtcOffset::UTC))
            .map_or(Moment(0), |at| Moment::from_unix_seconds(at.unix_timestamp()))
    }

    fn in_calendar(self) -> time::Month {
        time::Month::try_from(self.month).unwrap_or(time::Month::January)
    }

    /// The last second of the month.
    fn last_second(self) -> Moment {
        let days = self.in_calendar().length(i32::from(self.year));
        self.start().plus(Duration::from_secs(u64::from(days) * 86_400 - 1))
    }

    /// The month after this one. The last representable month returns itself.
    pub fn next(self) -> Self {
        if (self.year, self.month) == (9999, 12) {
            self
        } else if self.month == 12 {
            Self {
                year: self.year + 1,
                month: 1,
            }
        } else {
            Self {
                month: self.month + 1,
                ..self
            }
        }
    }

    /// The months from `span` before a moment to `span` after it, the moment's own first. `span` is shorter than a month.
    pub fn around(at: Moment, span: Duration) -> Vec<Self> {
        let mut months = vec![at.month()];
        for near in [at.minus(span).month(), at.plus(span).month()] {
            if !months.contains(&near) {
                months.push(near);
            }
        }
        months
    }

    /// Whether a recording that is requested in this month may be filed under `other`: a month of the ten years before, this month, or the
    /// next.
    pub fn may_file_under(self, other: Self) -> bool {
        let number = |month: Self| i64::from(month.year) * 12 + i64::from(month.month);
        (number(self) - 120..=number(self) + 1).contains(&number(other))
    }

    /// `moment`, moved to the nearest second of this month if it is outside.
    ///
    /// Crossbar lists a recording by `pvt_created` in the database of the id's month (`cb_recordings`). A recording may end after the turn
    /// of the month. Its creation time must still be inside the month of its id.
    pub fn clamp(self, moment: Moment) -> Moment {
        moment.max(self.start()).min(self.last_second())
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}{:02}", self.year, self.month)
    }
}

/// The moment in a message's AMQP `timestamp` property, if it is within a day of `now`.
///
/// Kazoo writes Gregorian microseconds there (`kz_amqp_util:basic_publish`). AMQP defines Unix seconds, which a broker writes that
/// overwrites the property. Other publishers write Unix milliseconds or microseconds. The interpretation that is near our clock applies,
/// and any other value is ignored.
pub fn message_time(timestamp: u64, now: Moment) -> Option<Moment> {
    const DAY: Duration = Duration::from_secs(86_400);
    let value = i64::try_from(timestamp).ok()?;
    let readings = [
        Moment::from_unix_micros(value.saturating_sub(GREGORIAN_OFFSET_S * MICROS)),
        Moment::from_unix_micros(value),
        Moment::from_unix_micros(value.saturating_mul(1000)),
        Moment::from_unix_seconds(value),
    ];
    readings
        .into_iter()
        .find(|at| at.since(now) <= DAY && now.since(*at) <= DAY)
}

/// The clock. Cheap to clone. Tests use one that they set themselves.
#[derive(Debug, Clone, Default)]
pub struct Clock(Hands);

#[derive(Debug, Clone)]
enum Hands {
    /// The system's clock, put forward by this many microseconds.
    System(i64),
    Fixed(Arc<AtomicI64>),
}

impl Default for Hands {
    fn default() -> Self {
        Self::System(0)
    }
}

impl Clock {
    pub fn system() -> Self {
        Self::default()
    }

    /// The system's clock, put forward by `by`.
    pub fn put_forward(by: Duration) -> Self {
        Self(Hands::System(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }

    /// A clock that stays at `start` until `set` moves it.
    pub fn fixed(start: Moment) -> Self {
        Self(Hands::Fixed(Arc::new(AtomicI64::new(start.0))))
    }

    pub fn now(&self) -> Moment {
        #[allow(clippy::disallowed_methods)] // the one place
        match &self.0 {
            Hands::Fixed(fixed) => Moment(fixed.load(Ordering::SeqCst)),
            Hands::System(forward) => {
                let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                let micros = since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
                Moment(micros.saturating_add(*forward))
            }
        }
    }

    /// Moves a fixed clock. The system's clock is unaffected.
    pub fn set(&self, to: Moment) {
        if let Hands::Fixed(fixed) = &self.0 {
            fixed.store(to.0, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_moment_is_moved_into_any_month_that_an_id_can_name(id in "[0-9]{4}(0[1-9]|1[0-2])", micros in any::<i64>(), s in any::<u64>()) {
            let month = Month::of_id(&id).unwrap();
            let clamped = month.clamp(Moment::from_unix_micros(micros));
            prop_assert_eq!(clamped.month(), month);
            prop_assert!(month.next() >= month);
            prop_assert!(month.next().start() >= month.start());
            let at = Moment::from_unix_micros(micros);
            let more = Duration::from_secs(s);
            let _ = (at.plus(more), at.minus(more), at.since(clamped), at.day(), at.rfc3339(), at.gregorian_seconds());
        }
    }

    #[test]
    fn the_months_around_a_moment_are_one_or_two() {
        let day = Duration::from_secs(86_400);
        // 2026-11-15, and one hour before and after the turn to December.
        assert_eq!(Month::around(Moment::from_unix_seconds(1_794_700_800), day).len(), 1);
        for near in [NOVEMBER_END - 3600, NOVEMBER_END + 3600] {
            let mut months: Vec<String> = Month::around(Moment::from_unix_seconds(near), day)
                .iter()
                .map(ToString::to_string)
                .collect();
            months.sort();
            assert_eq!(months, ["202611", "202612"]);
        }
    }

    #[test]
    fn the_last_month_has_an_end() {
        let last = Month::of_id("999912").unwrap();
        assert_eq!(last.next(), last);
        let far = Moment::from_unix_micros(i64::MAX);
        assert_eq!(last.clamp(far).rfc3339(), "9999-12-31T23:59:59Z");
        assert_eq!(last.clamp(Moment::from_unix_seconds(0)), last.start());
    }

    const NOVEMBER_END: i64 = 1_796_083_199; // 2026-11-30T23:59:59Z

    /// A broker may write its own time there (`message_interceptors`, rabbitmq-message-timestamp), in its own unit.
    #[test]
    fn a_time_that_a_broker_wrote_is_read_and_one_that_is_none_is_ignored() {
        let now = Moment::from_unix_seconds(1_795_386_262);
        for (timestamp, age) in [
            (1_795_386_202, Some(60)),
            (1_795_386_202_000, Some(60)),
            (1_795_386_202_000_000, Some(60)),
            ((1_795_386_202 + 62_167_219_200) * 1_000_000, Some(60)),
            (0, None),
            (1, None),
            (u64::MAX, None),
            (1_795_386_262 - 86_401, None),
        ] {
            let told = message_time(timestamp, now).map(|at| now.since(at).as_secs());
            assert_eq!(told, age, "{timestamp}");
        }
    }

    #[test]
    fn gregorian_seconds_are_kazoos() {
        // calendar:datetime_to_gregorian_seconds({{1970,1,1},{0,0,0}})
        assert_eq!(Moment::from_unix_seconds(0).gregorian_seconds(), 62_167_219_200);
        let at = Moment::from_gregorian_seconds(63_962_610_391);
        assert_eq!(at.gregorian_seconds(), 63_962_610_391);
        assert_eq!(at.unix_seconds(), 1_795_391_191);
    }

    #[test]
    fn the_month_turns_at_midnight_utc() {
        assert_eq!(Moment::from_unix_seconds(NOVEMBER_END).month().to_string(), "202611");
        assert_eq!(
            Moment::from_unix_seconds(NOVEMBER_END + 1).month().to_string(),
            "202612"
        );
        let december = Moment::from_unix_seconds(NOVEMBER_END + 1).month();
        assert_eq!(december.start(), Moment::from_unix_seconds(NOVEMBER_END + 1));
        assert_eq!(december.next().to_string(), "202701");
    }

    #[test]
    fn a_late_end_is_created_inside_of_the_ids_month() {
        let november = Month::of_id("202611-abc").unwrap();
        let late = Moment::from_unix_seconds(NOVEMBER_END + 3600);
        assert_eq!(november.clamp(late), Moment::from_unix_seconds(NOVEMBER_END));
        let inside = Moment::from_unix_seconds(NOVEMBER_END - 5);
        assert_eq!(november.clamp(inside), inside);
        assert_eq!(november.clamp(Moment::from_unix_seconds(0)), november.start());
    }

    #[test]
    fn only_real_months_are_read_from_an_id() {
        for bad in ["", "2026", "202600-x", "202613-x", "2026aa-x", "２０２６１１-x"] {
            assert_eq!(Month::of_id(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_messages_time_is_read_in_each_unit_that_is_used() {
        let now = Moment::from_unix_seconds(1_795_386_262);
        let kazoo = 63_962_605_462_493_562;
        assert_eq!(
            message_time(kazoo, now),
            Some(Moment::from_unix_micros(1_795_386_262_493_562))
        );
        assert_eq!(
            message_time(1_795_386_262_000_001, now),
            Some(Moment::from_unix_micros(1_795_386_262_000_001))
        );
        assert_eq!(
            message_time(1_795_386_000, now),
            Some(Moment::from_unix_seconds(1_795_386_000))
        );
        assert_eq!(message_time(1_795_386_262 - 90_000, now), None);
        assert_eq!(message_time(u64::MAX, now), None);
        assert_eq!(message_time(0, now), None);
    }
}
