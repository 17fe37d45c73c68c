//! Kazoo's small wire habits, written here a second time on purpose: the worker's own code is what this simulator tests.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value, json};

/// Seconds between year 0 and 1970: what Kazoo adds to Unix time.
pub const GREGORIAN_OFFSET: u64 = 62_167_219_200;

/// A JSON object as it travels.
pub type Object = Map<String, Value>;

/// `kz_amqp_util:encode`: bytes, upper-case hex, space as `+`; a lone `*` or `#` and the empty string pass through.
pub fn encode(text: &str) -> String {
    if matches!(text, "" | "*" | "#") {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'~' | b'_' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            other => {
                let _ = write!(out, "%{other:02X}");
            }
        }
    }
    out
}

/// `pid://<0.1.2>/queue` as `(Some("<0.1.2>"), "queue")`, split at the last slash; a plain queue name has no pid.
pub fn split_address(address: &str) -> (Option<&str>, &str) {
    match address.strip_prefix("pid://").and_then(|rest| rest.rsplit_once('/')) {
        Some((pid, queue)) => (Some(pid), queue),
        None => (None, address),
    }
}

/// The address of a process behind a shared queue.
pub fn address(pid: &str, queue: &str) -> String {
    format!("pid://{pid}/{queue}")
}

/// Whether Kazoo's `list_to_pid` would take it; anything else crashes the listener that receives it.
pub fn is_pid(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('<').and_then(|t| t.strip_suffix('>')) else {
        return false;
    };
    let parts: Vec<&str> = inner.split('.').collect();
    parts.len() == 3
        && parts
            .iter()
            .all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

/// `n` random lower-case hex digits.
pub fn hex(n: usize) -> String {
    (0..n)
        .map(|_| char::from(b"0123456789abcdef"[fastrand::usize(..16)]))
        .collect()
}

/// A UUID as FreeSWITCH names a channel.
pub fn uuid() -> String {
    let h = hex(32);
    format!("{}-{}-4{}-8{}-{}", &h[..8], &h[8..12], &h[13..16], &h[17..20], &h[20..])
}

pub fn is_hex32(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// An Erlang pid that nobody has.
pub fn pid() -> String {
    format!("<0.{}.{}>", fastrand::u32(1_000..32_768), fastrand::u32(0..8_192))
}

/// The simulated cluster's clock: real time shifted by a settable number of seconds, so that a test can stand on a
/// month's border.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    pub offset_secs: i64,
}

impl Clock {
    fn since_epoch(self) -> Duration {
        let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let shift = Duration::from_secs(self.offset_secs.unsigned_abs());
        if self.offset_secs < 0 {
            real.saturating_sub(shift)
        } else {
            real + shift
        }
    }

    pub fn unix_micros(self) -> u64 {
        u64::try_from(self.since_epoch().as_micros()).unwrap_or(u64::MAX)
    }

    /// Kazoo puts Gregorian microseconds into the AMQP timestamp, which by the standard holds Unix seconds.
    pub fn gregorian_micros(self) -> u64 {
        self.unix_micros() + GREGORIAN_OFFSET * 1_000_000
    }

    /// The switch's clock ticks every 20 ms: what happens within one tick has the same stamp.
    pub fn tick_micros(self) -> u64 {
        const TICK: u64 = 20_000;
        self.unix_micros() / TICK * TICK + 16_741
    }

    /// Event timestamps are rounded up to the next second.
    pub fn gregorian_secs(self) -> u64 {
        gregorian(self.unix_micros())
    }

    /// The UTC month as `YYYYMM`.
    pub fn month(self) -> String {
        let secs = i64::try_from(self.since_epoch().as_secs()).unwrap_or(0);
        let date = time::OffsetDateTime::from_unix_timestamp(secs).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
        format!("{:04}{:02}", date.year(), u8::from(date.month()))
    }
}

/// Gregorian seconds, rounded up.
pub fn gregorian(unix_micros: u64) -> u64 {
    unix_micros.div_ceil(1_000_000) + GREGORIAN_OFFSET
}

/// The five headers every message has, and `Node`.
pub fn defaults(category: &str, name: &str, app: &str, version: &str, node: &str) -> Object {
    let value = json!({
        "Event-Category": category,
        "Event-Name": name,
        "App-Name": app,
        "App-Version": version,
        "Node": node,
        "Msg-ID": hex(32),
    });
    match value {
        Value::Object(map) => map,
        _ => Object::new(),
    }
}

/// Adds every key of `more` that is not null: Kazoo drops undefined values before it sends.
pub fn merge(into: &mut Object, more: Value) {
    if let Value::Object(map) = more {
        into.extend(map.into_iter().filter(|(_, v)| !v.is_null()));
    }
}

/// Headers that `kz_api:remove_defaults` takes away, as when a command comes back inside an error.
pub fn without_defaults(body: &Object) -> Object {
    const DEFAULTS: [&str; 21] = [
        "App-Name",
        "App-Version",
        "Event-Category",
        "Event-Name",
        "Msg-ID",
        "Access-Group",
        "Defer-Response",
        "Destination-Server",
        "Geo-Location",
        "System-Log-ID",
        "Account-ID",
        "Call-ID",
        "Node",
        "Server-Queue-ID",
        "Raw-Headers",
        "Server-ID",
        "Request-From-PID",
        "Reply-To-PID",
        "AMQP-Broker",
        "AMQP-Broker-Zone",
        "Deliver-To-PID",
    ];
    let mut rest = body.clone();
    rest.retain(|key, _| !DEFAULTS.contains(&key.as_str()));
    rest
}

/// A header that is a non-empty string.
pub fn text<'a>(body: &'a Object, key: &str) -> Option<&'a str> {
    body.get(key).and_then(Value::as_str).filter(|s| !s.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_as_kazoo_does() {
        assert_eq!(
            encode("a84b4c76e66710@pc33.example.com"),
            "a84b4c76e66710%40pc33%2Eexample%2Ecom"
        );
        assert_eq!(encode("call 1+2/3!~_-"), "call+1%2B2%2F3%21~_-");
        assert_eq!(encode("é"), "%C3%A9");
        assert_eq!(
            (encode("*"), encode("#"), encode("**")),
            ("*".into(), "#".into(), "%2A%2A".into())
        );
    }

    #[test]
    fn splits_an_address_at_the_last_slash() {
        let a = "pid://<0.9182.3>/ecallmgr@kz1.example.com-<0.1834.0>-a41c77de";
        assert_eq!(
            split_address(a),
            (Some("<0.9182.3>"), "ecallmgr@kz1.example.com-<0.1834.0>-a41c77de")
        );
        assert_eq!(split_address("pid://<0.1.2>/a/b"), (Some("<0.1.2>/a"), "b"));
        assert_eq!(split_address("plain"), (None, "plain"));
    }

    #[test]
    fn knows_a_pid() {
        assert!(is_pid("<0.9182.3>") && is_pid(&pid()));
        for bad in ["0.1.2", "<0.1>", "<0..1>", "<a.1.2>", "<0.1.2.3>", "", "<0.1.2> "] {
            assert!(!is_pid(bad), "{bad}");
        }
    }

    #[test]
    fn the_month_follows_the_shifted_clock() {
        let now = Clock::default();
        let later = Clock {
            offset_secs: 32 * 86_400,
        };
        assert_ne!(now.month(), later.month());
        assert!(now.gregorian_micros() > 63_900_000_000_000_000);
    }
}
