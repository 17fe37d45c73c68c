//! Masks secrets in a text that a server answered: it may repeat what was sent. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use url::Url;

/// Characters of a path segment that can be a key.
const LEAST_OF_A_KEY: usize = 12;

/// Shorter texts are no secrets, and hiding them hides the reason.
const LEAST: usize = 4;

/// Words of an `Authorization` that name its scheme.
const SCHEMES: [&str; 4] = ["basic", "bearer", "digest", "token"];

/// `said` without the secrets of the request: credentials, signature and long path segments of its URL, and the values of these headers.
pub fn masked<'a>(mut said: String, url: &Url, headers: impl IntoIterator<Item = &'a str>) -> String {
    let mut secrets: Vec<String> = Vec::new();
    let mut add = |text: &str| {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        for form in [text.to_owned(), decoded(text), decoded(&text.replace('+', " "))] {
            if form.len() >= LEAST {
                secrets.push(form);
            }
        }
    };
    for segment in url.path_segments().into_iter().flatten() {
        // A webhook's key, as a rule. Short words of a path are no secret.
        if segment.len() >= LEAST_OF_A_KEY {
            add(segment);
        }
    }
    let (user, password) = (url.username(), url.password().unwrap_or_default());
    add(user);
    add(password);
    let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    if !user.is_empty() || !password.is_empty() {
        add(&STANDARD.encode(format!("{}:{}", plain(user), plain(password))));
    }
    for parameter in url.query().unwrap_or_default().split('&') {
        add(parameter.split_once('=').map_or(parameter, |(_, value)| value));
    }
    for value in headers {
        add(value);
        for word in value.split_whitespace() {
            if SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme)) {
                continue;
            }
            add(word);
            let basic = STANDARD
                .decode(word)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok());
            if let Some((user, password)) = basic.as_deref().and_then(|basic| basic.split_once(':')) {
                add(user);
                add(password);
            }
        }
    }
    // The longest first, because one secret may be part of another.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    for secret in secrets {
        said = said.replace(&secret, "***");
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_secret_of_a_request_is_masked_in_each_of_its_forms() {
        let url = "https://us%40er:hunt%2Fer2@h/in/T0K3N-0f-a-h00k?X-Amz-Signature=00ff00ff&a=b&s3cr3tkey&c=two+words";
        let url = Url::parse(url).unwrap();
        let headers = ["Bearer abcdef", "Basic bWFyeTpsaXR0bGVsYW1i", "key-of-one-word"];
        for (said, told) in [
            ("404 Cannot PUT /in/T0K3N-0f-a-h00k/x", "404 Cannot PUT /in/***/x"),
            ("bad us@er hunt/er2 hunt%2Fer2 00ff00ff", "bad *** *** *** ***"),
            ("no s3cr3tkey, two words", "no ***, ***"),
            ("no Bearer abcdef", "no ***"),
            ("Bearer of abcdef", "Bearer of ***"),
            ("bWFyeTpsaXR0bGVsYW1i is mary with littlelamb", "*** is *** with ***"),
            ("Authorization: Basic dXNAZXI6aHVudC9lcjI=", "Authorization: Basic ***"),
            ("key-of-one-word", "***"),
            ("no more room", "no more room"),
        ] {
            assert_eq!(masked(said.to_owned(), &url, headers), told, "{said}");
        }
    }
}
