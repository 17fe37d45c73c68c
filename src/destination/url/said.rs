//! A server's reason for a refusal, as the operator sees it: short, and without secrets.

use hyper::header::HeaderMap;
use url::Url;

use crate::telemetry::masked;

/// Bytes of the reason that are kept.
const LONGEST: usize = 200;

/// Headers in which object stores, proxies and APIs give the reason, when the body does not.
const HEADERS: [&str; 7] = [
    "x-ms-error-code",
    "x-amz-error-code",
    "x-amz-error-message",
    "x-error-message",
    "x-error",
    "error",
    "www-authenticate",
];

/// The reason as readable text. `sent`: the values of further headers. `None` when the server gives none.
pub(super) fn reason<'a>(
    headers: &HeaderMap,
    body: &[u8],
    url: &Url,
    sent: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let text = plain(&String::from_utf8_lossy(body));
    let of_headers = || {
        HEADERS.iter().find_map(|name| {
            let value = String::from_utf8_lossy(headers.get(*name)?.as_bytes()).into_owned();
            Some(plain(&value)).filter(|value| !value.is_empty())
        })
    };
    let said = Some(text).filter(|text| !text.is_empty()).or_else(of_headers)?;
    Some(shown(said, url, sent))
}

/// What a file server says, as readable text.
pub(super) fn words(text: &str, url: &Url) -> String {
    shown(plain(text), url, std::iter::empty())
}

fn shown<'a>(said: String, url: &Url, sent: impl IntoIterator<Item = &'a str>) -> String {
    let said = masked(said, url, sent);
    crate::kazoo::call::clip(&said, LONGEST).to_owned()
}

/// Printable text on one line, without XML and HTML tags.
fn plain(text: &str) -> String {
    let is_markup = text.trim_start().trim_start_matches('\u{feff}').starts_with('<');
    let mut inside = 0u32;
    let kept = text.chars().map(|c| match c {
        '<' if is_markup => {
            inside += 1;
            ' '
        }
        '>' if is_markup => {
            inside = inside.saturating_sub(1);
            ' '
        }
        _ if inside > 0 || c.is_control() || c == '\u{feff}' => ' ',
        c => c,
    });
    let kept: String = kept.collect();
    kept.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn said(body: &str) -> Option<String> {
        let url = Url::parse("https://us%40er:hunt%2Fer2@h/in/T0K3N-0f-a-h00k?X-Amz-Signature=00ff00ff&a=b").unwrap();
        reason(&HeaderMap::new(), body.as_bytes(), &url, [])
    }

    #[test]
    fn a_refusals_reason_is_told_in_one_line_without_secrets() {
        for (body, told) in [
            ("", None),
            (" \r\n", None),
            ("no more room", Some("no more room")),
            (
                "{\"error\": \"quota\",\n \"limit\": 5}",
                Some("{\"error\": \"quota\", \"limit\": 5}"),
            ),
            (
                "<?xml version=\"1.0\"?>\n<Error><Code>SignatureDoesNotMatch</Code><Message>The signature</Message></Error>",
                Some("SignatureDoesNotMatch The signature"),
            ),
            ("<html><h1>413 Too Large</h1><hr>nginx", Some("413 Too Large nginx")),
            ("a\u{1b}[31m\u{0}b", Some("a [31m b")),
            ("404 Cannot PUT /in/T0K3N-0f-a-h00k/x", Some("404 Cannot PUT /in/***/x")),
            ("bad us@er hunt/er2 hunt%2Fer2 00ff00ff", Some("bad *** *** *** ***")),
        ] {
            assert_eq!(said(body).as_deref(), told, "{body}");
        }
        assert_eq!(said(&"x".repeat(1000)).unwrap().len(), LONGEST);
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-error-code", HeaderValue::from_static("AuthenticationFailed"));
        let url = Url::parse("https://h/").unwrap();
        assert_eq!(reason(&headers, b"", &url, []).as_deref(), Some("AuthenticationFailed"));
    }
}
