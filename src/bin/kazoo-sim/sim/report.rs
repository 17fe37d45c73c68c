//! The demonstration's words for people: one call after the other, and one verdict.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    time::Instant,
};

use serde_json::Value;

use super::{
    couch::Stored,
    record::{Direction, Entry, Violation},
    state::Recording,
};

/// The widest line.
const WIDTH: usize = 98;

/// Colours, or none: not on a file or pipe, and never with `NO_COLOR`.
#[derive(Clone, Copy)]
pub struct Paint {
    on: bool,
}

impl Paint {
    pub fn detect() -> Self {
        Self {
            on: io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        }
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.on {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    pub fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub fn bad(self, text: &str) -> String {
        self.wrap("31", text)
    }

    fn sent(self, text: &str) -> String {
        self.wrap("36", text)
    }

    fn received(self, text: &str) -> String {
        self.wrap("33", text)
    }
}

pub fn say(text: impl AsRef<str>) {
    // A closed pipe is no reason to panic.
    let _ = writeln!(io::stdout(), "{}", text.as_ref());
}

/// What the demonstration knows of one call in the end.
pub struct CallReport {
    pub title: String,
    pub began: Instant,
    pub call_id: String,
    pub recording: Option<Recording>,
    pub stored: Option<Stored>,
    pub database: String,
    pub outcome: Option<String>,
    pub notices: Vec<String>,
    /// Whether Kazoo's API lists it, where it should.
    pub listed: Option<bool>,
    /// What a user's server says of an upload, or what is wrong with it.
    pub arrived: Option<Result<String, String>>,
    /// What went wrong, in order.
    pub failures: Vec<String>,
}

impl CallReport {
    /// Prints the call's story.
    pub fn print(&self, paint: Paint, timeline: &[Entry]) {
        say("");
        say(paint.bold(&format!(
            "── {} {}",
            self.title,
            "─".repeat(WIDTH.saturating_sub(self.title.chars().count() + 4))
        )));
        say(paint.dim(&format!("   call {}", self.call_id)));
        say("");
        let width = timeline
            .iter()
            .filter(|e| self.concerns(e))
            .map(|e| e.name.chars().count())
            .max()
            .unwrap_or(0);
        for entry in timeline.iter().filter(|e| self.concerns(e)) {
            say(line(paint, self.began, entry, width));
        }
        if let Some(stored) = &self.stored {
            self.print_document(paint, stored);
        }
        self.print_checks(paint);
    }

    /// Whether an entry belongs to this call: by call id, or because it names its recording.
    fn concerns(&self, entry: &Entry) -> bool {
        if entry.at < self.began {
            return false;
        }
        if let Some(id) = &entry.call_id {
            return *id == self.call_id;
        }
        let Some(recording) = &self.recording else { return false };
        let mut text = entry.summary.clone();
        if let Some(body) = &entry.body {
            text.push_str(&serde_json::to_string(body.as_ref()).unwrap_or_default());
        }
        text.contains(&recording.id) || text.contains(&recording.name)
    }

    fn print_document(&self, paint: Paint, stored: &Stored) {
        say("");
        let id = stored.document["_id"].as_str().unwrap_or_default();
        say(format!(
            "   {}  {}",
            paint.bold("document"),
            paint.dim(&format!("{}/{id}", self.database))
        ));
        for (key, value) in stored
            .document
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(k, _)| *k != "_id")
        {
            let text = match value {
                Value::String(s) => s.clone(),
                other => other.to_string(),
            };
            say(format!(
                "     {} {}",
                paint.dim(&format!("{key:<22}")),
                shorten(&text, WIDTH - 28)
            ));
        }
    }

    fn print_checks(&self, paint: Paint) {
        say("");
        if let (Some(recording), Some(stored)) = (&self.recording, &self.stored) {
            let wrote = recording.audio.md5();
            self.check(
                paint,
                recording.bytes() == stored.length,
                "size",
                &format!("{} bytes", group(stored.length)),
            );
            self.check(
                paint,
                wrote == stored.digest,
                "digest",
                &format!("md5 {}", stored.digest),
            );
            let equal = stored.difference.is_none();
            let words = stored
                .difference
                .as_deref()
                .unwrap_or("byte for byte what the switch wrote");
            self.check(paint, equal, "audio", words);
            let words = if recording.deleted {
                "deleted by the switch"
            } else {
                "still there"
            };
            self.check(paint, recording.deleted, "file", words);
            self.print_listing(paint);
        }
        match &self.arrived {
            Some(Ok(words)) => self.check(paint, true, "upload", words),
            Some(Err(words)) => self.check(paint, false, "upload", words),
            None => {}
        }
        let told = self.outcome.as_deref().unwrap_or("never told");
        self.check(paint, self.outcome.is_some(), "event", told);
        for notice in &self.notices {
            self.check(paint, true, "notice", notice);
        }
        for failure in &self.failures {
            self.check(paint, false, "failure", failure);
        }
    }

    fn print_listing(&self, paint: Paint) {
        if let Some(listed) = self.listed {
            let words = if listed {
                "listed by Kazoo's API view"
            } else {
                "missing from Kazoo's API view"
            };
            self.check(paint, listed, "listing", words);
        }
    }

    fn check(&self, paint: Paint, right: bool, what: &str, words: &str) {
        let mark = if right { paint.good("ok ") } else { paint.bad("BAD") };
        say(format!("   {mark}  {what:<9}{words}"));
    }

    pub fn passed(&self) -> bool {
        let stored = self
            .stored
            .as_ref()
            .zip(self.recording.as_ref())
            .is_some_and(|(stored, recording)| {
                stored.difference.is_none() && stored.digest == recording.audio.md5() && recording.deleted
            });
        let arrived = self.arrived.as_ref().map_or(stored, Result::is_ok);
        arrived && self.listed != Some(false) && self.outcome.is_some() && self.failures.is_empty()
    }
}

/// One aligned line: when, who, which way, what.
pub fn line(paint: Paint, began: Instant, entry: &Entry, width: usize) -> String {
    let at = entry.at.saturating_duration_since(began).as_secs_f64();
    let (arrow, name) = match entry.direction {
        Direction::Sent => (paint.sent("──▶"), format!("{:<width$}", entry.name)),
        Direction::Received => (paint.received("◀──"), format!("{:<width$}", entry.name)),
        Direction::Note => (paint.dim(" · "), " ".repeat(width)),
    };
    let role = format!("{:<8}", entry.role);
    let summary = shorten(&entry.summary, WIDTH.saturating_sub(width + 32));
    let summary = if entry.direction == Direction::Note {
        paint.dim(&summary)
    } else {
        summary
    };
    let worker = if entry.direction == Direction::Note {
        "      "
    } else {
        "worker"
    };
    format!("   {at:>7.3} s  {role} {arrow} {worker}  {name}  {summary}")
}

fn shorten(text: &str, width: usize) -> String {
    let text = text.replace(['\n', '\r'], " ");
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// `1,234,567`.
fn group(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// The last line, and the violations before it. Returns whether all is well.
pub fn verdict(paint: Paint, calls: &[CallReport], violations: &[Violation]) -> bool {
    say("");
    for violation in violations {
        say(format!("{} {violation}", paint.bad("violation")));
    }
    let passed = calls.iter().filter(|c| c.passed()).count();
    let well = passed == calls.len() && !calls.is_empty() && violations.is_empty();
    let words = format!(
        "{passed} of {} recordings stored or delivered, announced and cleared from the switch; {} violation(s) of Kazoo's contract",
        calls.len(),
        violations.len()
    );
    let mark = if well { paint.good("PASS") } else { paint.bad("FAIL") };
    say(format!("{}  {}", paint.bold(&mark), words));
    well
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_lines_stay_readable() {
        assert_eq!((group(7), group(1_234_567)), ("7".into(), "1,234,567".into()));
        assert_eq!(shorten("abcdef", 4), "abc…");
        let paint = Paint { on: false };
        let mut entry = Entry::note(super::super::record::Role::Switch, None, "upload begins");
        entry.at = Instant::now();
        assert!(line(paint, entry.at, &entry, 10).starts_with("     0.000 s  switch    · "));
    }
}
