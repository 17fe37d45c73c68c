//! Encodes and decodes routing keys as `kz_amqp_util:encode` does.

/// The longest routing key, queue name or header key in AMQP 0-9-1, in bytes.
pub const MAX_BYTES: usize = 255;

/// Encodes one word of a routing key, byte by byte. `A-Za-z0-9-~_` stay, a space becomes `+`, and any other byte becomes `%` and two
/// upper-case hex digits. A word that is exactly `*` or `#` stays unchanged (a binding's wildcard), and so does the empty word.
pub fn encode(word: &str) -> String {
    if matches!(word, "*" | "#") {
        return word.to_owned();
    }
    let mut out = String::with_capacity(word.len() + 8);
    for byte in word.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'~' | b'_' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            other => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                out.push('%');
                out.push(char::from(HEX[usize::from(other >> 4)]));
                out.push(char::from(HEX[usize::from(other & 15)]));
            }
        }
    }
    out
}

/// Reverses `encode`. `None` when `encode` cannot have written the text.
pub fn decode(word: &str) -> Option<String> {
    let mut out = Vec::with_capacity(word.len());
    let mut bytes = word.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_encoded_as_kazoo_does() {
        for (word, encoded) in [
            (
                "a84b4c76e66710@pc33.example.com",
                "a84b4c76e66710%40pc33%2Eexample%2Ecom",
            ),
            ("a b~_-", "a+b~_-"),
            ("ä", "%C3%A4"),
            ("*", "*"),
            ("#", "#"),
            ("", ""),
            ("**", "%2A%2A"),
            ("/+%!:", "%2F%2B%25%21%3A"),
        ] {
            assert_eq!(encode(word), encoded);
        }
    }

    proptest! {
        #[test]
        fn any_word_survives_the_way_there_and_back(word in any::<String>()) {
            prop_assert_eq!(decode(&encode(&word)), Some(word));
        }

        #[test]
        fn decoding_never_panics(word in any::<String>()) {
            let _ = decode(&word);
        }
    }
}
