//! The syntax of Kazoo's `config.ini`: sections, keys, comments. `kazoo_ini` interprets them.
//!
//! Kazoo reads the file with `zucchini`, which rejects the whole file for one faulty line. Here a faulty line causes only a note, and the
//! rest is read for any bytes. The syntax is zucchini's. Sections and keys may be repeated and keep their order. `;` begins a comment. A
//! value in double quotes keeps blanks and `;`.

/// A file with more faulty lines than this is not a `config.ini`. Further notes are only counted.
const MAX_NOTES: usize = 20;

/// A parsed file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ini {
    pub sections: Vec<Section>,
    /// Lines that could not be read, or not as their author may have meant them.
    pub notes: Vec<Note>,
}

/// A section, which begins with `[name]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    pub name: String,
    /// Counted from 1.
    pub line: usize,
    pub properties: Vec<Property>,
}

/// `key = value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    pub key: String,
    /// Without quotes and comment. The value may be a secret.
    pub value: String,
    /// Counted from 1.
    pub line: usize,
}

/// A remark on a line. The text follows "line n". It never contains a value, because values may be secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Counted from 1.
    pub line: usize,
    pub text: String,
}

impl Note {
    pub fn new(line: usize, text: impl Into<String>) -> Self {
        Self {
            line,
            text: text.into(),
        }
    }
}

impl Section {
    /// The values of a key, in their order.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Property> {
        self.properties.iter().filter(move |property| property.key == key)
    }

    /// The value where only one can count: the last, as in Kazoo (`kz_dataconfig` makes a map of the section).
    pub fn last(&self, key: &str) -> Option<&Property> {
        self.properties.iter().rev().find(|property| property.key == key)
    }
}

impl Ini {
    /// Parses a file's bytes.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut reading = Reading::default();
        if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
            reading.note(1, "is UTF-16; nothing is read of such a file. Save it as UTF-8");
            return reading.finish();
        }
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        for (index, line) in lines(bytes).enumerate() {
            let number = index + 1;
            match std::str::from_utf8(line) {
                Ok(text) => reading.line(number, text),
                Err(_) => {
                    let text = String::from_utf8_lossy(line);
                    // A comment in an old encoding is harmless.
                    if !text.trim_start().starts_with(';') {
                        reading.note(number, "is not UTF-8; what cannot be read of it is replaced");
                    }
                    reading.line(number, &text);
                }
            }
        }
        reading.finish()
    }
}

/// Lines with any ending: LF, CR LF, CR.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
            rest = None;
            return Some(text);
        };
        let ending = if text[end..].starts_with(b"\r\n") { 2 } else { 1 };
        rest = Some(&text[end + ending..]);
        Some(&text[..end])
    })
}

/// Zucchini skips all characters up to and including the blank.
fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c <= ' ' || c == '\u{feff}' || c == '\u{a0}')
}

#[derive(Default)]
struct Reading {
    ini: Ini,
    more: usize,
    last: usize,
    /// Whether the present line is inside a valid section.
    inside: bool,
}

impl Reading {
    fn note(&mut self, line: usize, text: impl Into<String>) {
        if self.ini.notes.len() < MAX_NOTES {
            self.ini.notes.push(Note::new(line, text));
        } else {
            self.more += 1;
        }
        self.last = line;
    }

    fn finish(mut self) -> Ini {
        if self.more > 0 {
            let text = format!("is the last of {} more lines that are odd", self.more);
            self.ini.notes.push(Note::new(self.last, text));
        }
        self.ini
    }

    fn line(&mut self, number: usize, line: &str) {
        let text = trimmed(line);
        if text.is_empty() || text.starts_with(';') {
            return;
        }
        if text.starts_with('#') {
            self.note(
                number,
                "begins with #, which is no comment for Kazoo: comments begin with ;",
            );
            return;
        }
        match text.strip_prefix('[') {
            Some(rest) => self.section(number, rest),
            None => self.property(number, text),
        }
    }

    fn section(&mut self, number: usize, rest: &str) {
        // Keys after an unreadable section must not be added to the section before it.
        self.inside = false;
        let Some((name, after)) = rest.split_once(']') else {
            self.note(number, "begins a section, and has no ]; what follows it is left out");
            return;
        };
        let name = trimmed(name);
        if name.is_empty() {
            self.note(number, "names no section; what follows it is left out");
            return;
        }
        let after = trimmed(after);
        if !after.is_empty() && !after.starts_with(';') {
            self.note(number, "has something after the section's ]");
        }
        self.inside = true;
        self.ini.sections.push(Section {
            name: name.to_owned(),
            line: number,
            properties: Vec::new(),
        });
    }

    fn property(&mut self, number: usize, text: &str) {
        let Some((key, value)) = text.split_once('=') else {
            self.note(number, "is neither [section] nor key = value");
            return;
        };
        let key = trimmed(key);
        if key.is_empty() {
            self.note(number, "has no key before its =");
            return;
        }
        let written = trimmed(value);
        let (value, odd) = value_of(written);
        if let Some(odd) = odd {
            self.note(number, format!("{odd} ({})", shown(key)));
        }
        if value.is_empty() {
            if odd.is_none() && !written.starts_with('"') {
                self.note(number, format!("has no value ({})", shown(key)));
            }
            return;
        }
        match self.ini.sections.last_mut().filter(|_| self.inside) {
            Some(section) => section.properties.push(Property {
                key: key.to_owned(),
                value: value.to_owned(),
                line: number,
            }),
            None => self.note(number, format!("is in no section ({})", shown(key))),
        }
    }
}

/// A key for a note. A text that does not look like a key is replaced, because it may be part of a secret.
fn shown(key: &str) -> &str {
    let plain = key.len() <= 40
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    if plain { key } else { "an odd key" }
}

/// The value without quotes and comment, and a remark on its form.
fn value_of(text: &str) -> (&str, Option<&'static str>) {
    if let Some(quoted) = text.strip_prefix('"') {
        // The closing quote is the first one that is followed by nothing or by a comment, because a password may contain quotes.
        let end = quoted.match_indices('"').map(|(at, _)| at).find(|at| {
            let after = trimmed(&quoted[at + 1..]);
            after.is_empty() || after.starts_with(';')
        });
        return match end {
            Some(end) => (&quoted[..end], None),
            None => (plain(quoted).0, Some("has a quote that does not end")),
        };
    }
    let (value, comment) = plain(text);
    // "a;b" without quotes: Kazoo cuts the value at `;`, and its author may have meant the whole text.
    let odd = comment.is_some_and(|at| at > 0 && !text[..at].ends_with(|c: char| c <= ' '));
    (
        value,
        odd.then_some("is cut at its ;, which begins a comment: quote the value if that belongs to it"),
    )
}

/// A value without quotes, up to its comment, and where the comment begins.
fn plain(text: &str) -> (&str, Option<usize>) {
    let comment = text.find(';');
    (trimmed(&text[..comment.unwrap_or(text.len())]), comment)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flat(text: &str) -> Vec<(String, String, String)> {
        let ini = Ini::parse(text.as_bytes());
        assert!(ini.notes.is_empty(), "{:?}", ini.notes);
        let property = |section: &Section, p: &Property| (section.name.clone(), p.key.clone(), p.value.clone());
        ini.sections
            .iter()
            .flat_map(|section| section.properties.iter().map(move |p| property(section, p)))
            .collect()
    }

    fn odd(text: &str) -> Vec<(usize, String)> {
        let notes = Ini::parse(text.as_bytes()).notes;
        notes.into_iter().map(|note| (note.line, note.text)).collect()
    }

    #[test]
    fn the_forms_of_kazoos_own_samples_are_read() {
        let text = "; a comment\n;; another\n\n[amqp]\nuri = \"amqp://a\"\n uri=amqp://b ; the second\n\n[bigcouch] ; haproxy\n\
                    ip = \"127.0.0.1\" ; generally HAProxy or similar\nport = 15984\n; username = \"kazoo\"\n\
                    password = \"a;b = [c]\"\ncompact_automatically = true";
        let read = [
            ("amqp", "uri", "amqp://a"),
            ("amqp", "uri", "amqp://b"),
            ("bigcouch", "ip", "127.0.0.1"),
            ("bigcouch", "port", "15984"),
            ("bigcouch", "password", "a;b = [c]"),
            ("bigcouch", "compact_automatically", "true"),
        ]
        .map(|(s, k, v)| (s.to_owned(), k.to_owned(), v.to_owned()));
        assert_eq!(flat(text), read);
        for other in [
            text.replace('\n', "\r\n"),
            text.replace('\n', "\r"),
            format!("\u{feff}{text}"),
        ] {
            assert_eq!(flat(&other), read);
        }
    }

    #[test]
    fn quotes_may_stand_in_a_quoted_value_and_in_its_comment() {
        for (text, value) in [
            ("\"p\"w\"", "p\"w"),
            ("\"x\" ; say \"y\"", "x"),
            ("\"a b\"", "a b"),
            ("\" \"", " "),
            ("amqp://h?heartbeat=5", "amqp://h?heartbeat=5"),
        ] {
            assert_eq!(
                flat(&format!("[s]\nk = {text}")),
                [("s".into(), "k".into(), value.into())],
                "{text}"
            );
        }
    }

    #[test]
    fn each_odd_line_is_told_and_none_stops_the_rest() {
        let text =
            "lost = 1\n[a\nx = 1\n[]\ny = 1\n[b] c\n# no comment\nnonsense\n= 3\nk =\nq = \"open\ncut = a;b\ngood = 1";
        let ini = Ini::parse(text.as_bytes());
        let lines: Vec<usize> = ini.notes.iter().map(|note| note.line).collect();
        // 3 and 5 belong to unreadable sections.
        assert_eq!(lines, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], "{:#?}", ini.notes);
        assert_eq!(ini.sections.len(), 1);
        let properties: Vec<(&str, &str)> = ini.sections[0]
            .properties
            .iter()
            .map(|p| (p.key.as_str(), p.value.as_str()))
            .collect();
        assert_eq!(properties, [("q", "open"), ("cut", "a"), ("good", "1")]);
    }

    #[test]
    fn bytes_that_are_no_text_cost_their_line_only() {
        let mut bytes = b"; caf\xe9\n[bigcouch]\nusername = \xff\xfe\x00kazoo\nip = h\n".to_vec();
        let ini = Ini::parse(&bytes);
        assert_eq!(ini.notes.len(), 1);
        assert_eq!(ini.notes[0].line, 3);
        assert_eq!(ini.sections[0].last("ip").unwrap().value, "h");
        bytes.splice(0..0, [0xff, 0xfe]);
        assert!(Ini::parse(&bytes).sections.is_empty());
        assert!(
            odd("\u{0}\u{0}").is_empty(),
            "control characters alone are nothing, as for Kazoo"
        );
    }

    #[test]
    fn complaints_are_bounded() {
        let notes = odd(&"nonsense\n".repeat(5000));
        assert_eq!(notes.len(), MAX_NOTES + 1);
        assert_eq!(notes[MAX_NOTES].0, 5000);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let ini = Ini::parse(&bytes);
            prop_assert!(ini.notes.len() <= MAX_NOTES + 1);
            for section in &ini.sections {
                prop_assert!(!section.name.is_empty());
                prop_assert!(section.properties.iter().all(|p| !p.key.is_empty() && !p.value.is_empty()));
            }
        }

        #[test]
        fn any_lines_are_read_and_no_value_is_in_a_note(lines in proptest::collection::vec("[ \\[\\];=\"#a\u{0}\u{e9}\t]{0,12}|[a-c]{1,3} ?= ?\"?hunter2\"?;?x?|\\[[a-c]{1,2}\\]", 0..30)) {
            let ini = Ini::parse(lines.join("\n").as_bytes());
            prop_assert!(ini.notes.iter().all(|note| !note.text.contains("hunter2")));
        }

        #[test]
        fn what_is_written_is_read(
            sections in proptest::collection::vec(
                ("[a-zA-Z][a-zA-Z0-9_@.-]{0,8}", proptest::collection::vec(("[a-z_]{1,8}", "[ !#-~]{1,12}"), 0..5)), 0..5),
            ending in prop_oneof![Just("\n"), Just("\r\n"), Just("\r")],
            comment in prop_oneof![Just(""), Just(" ; why"), Just(";")],
        ) {
            let mut text = String::new();
            for (name, properties) in &sections {
                text.push_str(&format!("[{name}]{comment}{ending}"));
                for (key, value) in properties {
                    text.push_str(&format!("  {key} = \"{value}\"{comment}{ending}"));
                }
            }
            let ini = Ini::parse(text.as_bytes());
            prop_assert_eq!(ini.sections.len(), sections.len());
            for (read, (name, properties)) in ini.sections.iter().zip(&sections) {
                prop_assert_eq!(&read.name, name);
                prop_assert_eq!(read.properties.len(), properties.len());
                for (read, (key, value)) in read.properties.iter().zip(properties) {
                    prop_assert_eq!(&read.key, key);
                    prop_assert_eq!(&read.value, value);
                }
            }
        }
    }
}
