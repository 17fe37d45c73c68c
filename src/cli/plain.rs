//! Makes text from outside safe for a terminal.

use std::fmt::{self, Display, Formatter, Write as _};

/// The longest text that is shown. More of one text helps no reader.
const MOST: usize = 500;

/// Shows its content in one line. Characters that move the cursor, hide text or change its direction are escaped. Text that is too long
/// is cut.
pub struct Plain<T>(pub T);

impl<T: Display> Display for Plain<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        for c in text.chars().take(MOST) {
            if c.is_control() || turns_or_hides(c) {
                write!(f, "{}", c.escape_unicode())?;
            } else {
                f.write_char(c)?;
            }
        }
        match text.chars().count().saturating_sub(MOST) {
            0 => Ok(()),
            more => write!(f, "… ({more} more)"),
        }
    }
}

/// Direction marks, separators, and marks that are invisible.
fn turns_or_hides(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moves_the_cursor_or_fakes_a_line() {
        let shown = Plain("a\u{1b}[2J\r\nstored\u{202e}é").to_string();
        assert_eq!(shown, r"a\u{1b}[2J\u{d}\u{a}stored\u{202e}é");
        let long = Plain("x".repeat(MOST + 7)).to_string();
        assert!(long.ends_with("x… (7 more)"), "{long}");
        assert_eq!(Plain("call-1@10.0.0.1").to_string(), "call-1@10.0.0.1");
    }
}
