//! Fits output to the terminal.

use std::io::IsTerminal as _;

/// Columns of the terminal; `None` when standard output is no terminal. Then lines stay whole, for programs that read them.
pub fn width() -> Option<usize> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(stdout).ok()?;
    // A narrower one wraps by itself.
    (size.ws_col >= 40).then_some(usize::from(size.ws_col))
}

/// How many columns a text takes.
pub fn columns(text: &str) -> usize {
    text.chars().count()
}

/// Cuts a line at `width` columns, as `ps` does.
pub fn cut(line: String, width: Option<usize>) -> String {
    match width {
        Some(width) if columns(&line) > width => {
            let kept: String = line.chars().take(width.saturating_sub(1)).collect();
            kept + "…"
        }
        _ => line,
    }
}

/// Wraps a text between words at `width` columns. The first line begins with `first`, each other line with `rest`.
pub fn wrapped(text: &str, width: Option<usize>, first: &str, rest: &str) -> String {
    let Some(width) = width else {
        return format!("{first}{text}");
    };
    let options = textwrap::Options::new(width)
        .initial_indent(first)
        .subsequent_indent(rest)
        // A URL or a command that was broken cannot be copied.
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    textwrap::fill(text, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_at_the_edge_of_the_terminal_and_nowhere_else() {
        let line = "202611-1  parked  unreachable".to_owned();
        assert_eq!(cut(line.clone(), None), line);
        assert_eq!(cut(line.clone(), Some(29)), line);
        assert_eq!(cut(line, Some(20)), "202611-1  parked  u…");
    }

    #[test]
    fn text_is_wrapped_between_words_and_a_long_word_stays_whole() {
        let text = "run `rabbitmqctl list_policies` at https://a-very-long-name.example.com/x";
        assert_eq!(wrapped(text, None, "-> ", "   "), format!("-> {text}"));
        assert_eq!(
            wrapped(text, Some(40), "-> ", "   "),
            "-> run `rabbitmqctl list_policies` at\n   https://a-very-long-name.example.com/x"
        );
        assert_eq!(
            wrapped("https://a-very-long-name.example.com/x", Some(20), "", ""),
            "https://a-very-long-name.example.com/x"
        );
    }
}
