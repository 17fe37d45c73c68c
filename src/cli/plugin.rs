//! Answers as monitoring systems expect them of their plug-ins (Nagios, Icinga, Checkmk, Zabbix): one line on standard output, and an exit status
//! from 0 to 3.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

/// The first word of the line.
const SERVICE: &str = "KZ_RECORD_CALL";

/// Monitoring systems cut longer lines.
const MOST: usize = 1000;

/// What the monitoring system shows. The numbers are the exit statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok = 0,
    Warning = 1,
    Critical = 2,
    /// The plug-in could not find out.
    Unknown = 3,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: Status,
    pub text: String,
    /// Names and values for the system's graphs.
    pub numbers: Vec<(&'static str, usize)>,
}

impl Answer {
    pub fn new(status: Status, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
            numbers: Vec::new(),
        }
    }

    /// Prints the line, and returns the exit status.
    pub fn give(&self) -> ExitCode {
        // The reader may have closed standard output. The exit status is what counts.
        let _ = writeln!(std::io::stdout().lock(), "{}", self.line());
        ExitCode::from(self.status as u8)
    }

    fn line(&self) -> String {
        let status = match self.status {
            Status::Ok => "OK",
            Status::Warning => "WARNING",
            Status::Critical => "CRITICAL",
            Status::Unknown => "UNKNOWN",
        };
        // A | begins the numbers, and a second line would be cut.
        let text: String = self
            .text
            .trim()
            .chars()
            .map(|c| match c {
                '|' => '/',
                c if c.is_control() => ' ',
                c => c,
            })
            .take(MOST)
            .collect();
        let mut line = format!("{SERVICE} {status}: {text}");
        for (index, (name, value)) in self.numbers.iter().enumerate() {
            let _ = write!(line, "{}{name}={value}", if index == 0 { " | " } else { " " });
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_line_whatever_was_found() {
        let mut answer = Answer::new(Status::Warning, "disk: 1 | 2\nleft\n");
        answer.numbers = vec![("failures", 0), ("warnings", 1)];
        assert_eq!(
            answer.line(),
            "KZ_RECORD_CALL WARNING: disk: 1 / 2 left | failures=0 warnings=1"
        );
        assert_eq!(Answer::new(Status::Ok, "ready").line(), "KZ_RECORD_CALL OK: ready");
        assert!(Answer::new(Status::Critical, "x".repeat(5000)).line().len() < 1100);
    }

    #[test]
    fn the_exit_statuses_are_those_of_plug_ins() {
        let all = [Status::Ok, Status::Warning, Status::Critical, Status::Unknown];
        assert_eq!(all.map(|status| status as u8), [0, 1, 2, 3]);
    }
}
