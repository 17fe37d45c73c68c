//! The results of the checks, for people and for machines.

use std::io::Write;

use serde_json::{Value, json};

use super::super::plugin::{Answer, Status};
use super::super::terminal::{columns, wrapped};

/// The largest width of the column of names.
const MOST_FOR_NAMES: usize = 28;

/// The result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Good,
    /// Worth knowing, or not decidable from this host.
    Note,
    Warning,
    Failure,
}

impl Level {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Note => "--",
            Self::Warning => "warn",
            Self::Failure => "FAIL",
        }
    }

    const fn colour(self) -> &'static str {
        match self {
            Self::Good => "\x1b[32m",
            Self::Note => "\x1b[2m",
            Self::Warning => "\x1b[33m",
            Self::Failure => "\x1b[1;31m",
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub group: &'static str,
    pub name: String,
    pub level: Level,
    /// What was found. Never has a secret in it.
    pub found: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// Rows of one group, as they are found.
#[derive(Debug)]
pub struct Rows {
    group: &'static str,
    pub rows: Vec<Row>,
}

impl Rows {
    pub fn of(group: &'static str) -> Self {
        Self {
            group,
            rows: Vec::new(),
        }
    }

    fn add(&mut self, level: Level, name: impl Into<String>, found: impl Into<String>, advice: Option<String>) {
        self.rows.push(Row {
            group: self.group,
            name: name.into(),
            level,
            found: found.into(),
            advice,
        });
    }

    pub fn good(&mut self, name: impl Into<String>, found: impl Into<String>) {
        self.add(Level::Good, name, found, None);
    }

    pub fn note(&mut self, name: impl Into<String>, found: impl Into<String>) {
        self.add(Level::Note, name, found, None);
    }

    pub fn warn(&mut self, name: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) {
        self.add(Level::Warning, name, found, Some(advice.into()));
    }

    pub fn fail(&mut self, name: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) {
        self.add(Level::Failure, name, found, Some(advice.into()));
    }
}

/// The results of all checks.
#[derive(Debug, Default)]
pub struct Report {
    pub rows: Vec<Row>,
}

impl Report {
    pub fn add(&mut self, rows: Rows) {
        self.rows.extend(rows.rows);
    }

    pub fn is_good(&self) -> bool {
        self.count(Level::Failure) == 0
    }

    fn count(&self, level: Level) -> usize {
        self.rows.iter().filter(|row| row.level == level).count()
    }

    /// The summary line at the end.
    pub fn verdict(&self) -> String {
        let (failures, warnings) = (self.count(Level::Failure), self.count(Level::Warning));
        let some = |count, one: &str| match count {
            0 => format!("no {one}s"),
            1 => format!("1 {one}"),
            more => format!("{more} {one}s"),
        };
        let counts = format!("{}, {}", some(failures, "failure"), some(warnings, "warning"));
        match (failures, warnings) {
            (0, 0) => format!("{counts}: all checks from this host passed."),
            (0, _) => format!("{counts}: recordings work. Read the warnings above."),
            _ => format!("{counts}: recordings would be delayed or lost. Correct the failures above."),
        }
    }

    /// A table, one group after the other. Lines are wrapped at `width` columns, if it is given.
    pub fn write(&self, out: &mut impl Write, colours: bool, width: Option<usize>) -> std::io::Result<()> {
        let paint = |level: Level, text: &str| match colours {
            true => format!("{}{text}\x1b[0m", level.colour()),
            false => text.to_owned(),
        };
        let names = self.rows.iter().map(|row| columns(&row.name));
        let column = names.max().unwrap_or(0).min(MOST_FOR_NAMES);
        let mut group = "";
        for row in &self.rows {
            if row.group != group {
                group = row.group;
                writeln!(out, "\n{group}")?;
            }
            let (level, name) = (format!("{:<4}", row.level.name()), &row.name);
            // A long name moves its text to the right.
            let first = " ".repeat(10 + column.max(self::columns(name)));
            let rest = " ".repeat(10 + column);
            let found = wrapped(&row.found, width, &first, &rest);
            // The place of the first line's indentation is taken by level and name.
            let found = found.strip_prefix(&first).unwrap_or(&found);
            writeln!(out, "  {}  {name:<column$}  {found}", paint(row.level, &level))?;
            if let Some(advice) = &row.advice {
                let advice = wrapped(advice, width, &format!("{rest}-> "), &format!("{rest}   "));
                writeln!(out, "{advice}")?;
            }
        }
        let worst = self.rows.iter().map(|row| row.level).max().unwrap_or(Level::Good);
        let worst = if worst == Level::Note { Level::Good } else { worst };
        writeln!(out, "\n{}", paint(worst, &self.verdict()))
    }

    /// The answer of a monitoring plug-in: what is wrong, the failures first.
    pub fn answer(&self) -> Answer {
        let (failures, warnings) = (self.count(Level::Failure), self.count(Level::Warning));
        let status = match (failures, warnings) {
            (0, 0) => Status::Ok,
            (0, _) => Status::Warning,
            _ => Status::Critical,
        };
        let of = |level: Level| self.rows.iter().filter(move |row| row.level == level);
        let rows = of(Level::Failure).chain(of(Level::Warning));
        let wrong: Vec<String> = rows.map(|row| format!("{}: {}", row.name, row.found)).collect();
        let text = if wrong.is_empty() {
            self.verdict()
        } else {
            wrong.join("; ")
        };
        Answer {
            numbers: vec![("failures", failures), ("warnings", warnings)],
            ..Answer::new(status, text)
        }
    }

    pub fn as_json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "group": row.group,
                    "name": row.name,
                    "level": match row.level {
                        Level::Good => "good",
                        Level::Note => "note",
                        Level::Warning => "warning",
                        Level::Failure => "failure",
                    },
                    "found": row.found,
                    "advice": row.advice,
                })
            })
            .collect();
        json!({
            "good": self.is_good(),
            "failures": self.count(Level::Failure),
            "warnings": self.count(Level::Warning),
            "verdict": self.verdict(),
            "rows": rows,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::default();
        let mut rows = Rows::of("broker");
        rows.good("h:5672", "connected");
        rows.fail("exchange kapps", "is durable", "delete it");
        report.add(rows);
        let mut rows = Rows::of("host");
        rows.warn("clock", "3 s ahead", "set it");
        rows.note("hold", "none");
        report.add(rows);
        report
    }

    #[test]
    fn the_table_is_aligned_and_reads_without_colour() {
        let mut out = Vec::new();
        report().write(&mut out, false, None).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\nbroker\n  ok    h:5672          connected\n  FAIL  exchange kapps  is durable\n                        -> delete it\n\nhost\n  \
             warn  clock           3 s ahead\n                        -> set it\n  --    hold            none\n\n1 failure, 1 warning: recordings \
             would be delayed or lost. Correct the failures above.\n"
        );
        let mut out = Vec::new();
        report().write(&mut out, true, None).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("\x1b[1;31mFAIL\x1b[0m"));
    }

    #[test]
    fn only_failures_are_bad() {
        let mut all = report();
        assert!(!all.is_good());
        all.rows.retain(|row| row.level != Level::Failure);
        assert!(all.is_good() && all.verdict().starts_with("no failures, 1 warning"));
        assert!(Report::default().verdict().contains("passed"));
        assert_eq!(report().as_json()["rows"][1]["level"], "failure");
    }

    #[test]
    fn a_plug_in_says_the_worst_first() {
        let mut all = report();
        let answer = all.answer();
        assert_eq!(answer.status, Status::Critical);
        assert_eq!(answer.text, "exchange kapps: is durable; clock: 3 s ahead");
        assert_eq!(answer.numbers, [("failures", 1), ("warnings", 1)]);
        all.rows.retain(|row| row.level != Level::Failure);
        assert_eq!(all.answer().status, Status::Warning);
        all.rows.retain(|row| row.level != Level::Warning);
        assert_eq!(all.answer().status, Status::Ok, "a note is nothing to act on");
    }
}
