//! Addresses of queues, and of the Erlang processes behind them (`kapi:encode_pid`, `kz_amqp_util:basic_publish`).
//!
//! `Server-ID` and `Control-Queue` are either a plain queue name or `pid://<0.9182.3>/queue`. A message to the second form is published to
//! the queue, with the pid in the header `Deliver-To-PID`. Without this header Kazoo 5 drops a command silently.

use std::fmt;

use thiserror::Error;

use super::routing_key::MAX_BYTES;

/// The address of a message's receiver.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    queue: String,
    pid: Option<String>,
}

/// Why a text is not a usable address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddressError {
    #[error("the address is empty")]
    Empty,
    #[error("the address is of a form that only exists inside of an Erlang node (consumer://)")]
    Consumer,
    #[error("the address has an unknown scheme")]
    UnknownScheme,
    #[error("the address names no Erlang pid of the form <N.N.N>")]
    BadPid,
    #[error("the address names no queue")]
    NoQueue,
    #[error("the queue's name has more than {MAX_BYTES} bytes")]
    TooLong,
    #[error("the queue's name has a control character")]
    ControlCharacter,
}

impl Address {
    /// Reads `pid://<A.B.C>/queue` (split at the last slash) or a plain queue name.
    ///
    /// # Errors
    /// An address that is not deliverable, or that would crash Kazoo's listener, such as a malformed pid.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let (queue, pid) = if let Some(rest) = text.strip_prefix("pid://") {
            let (pid, queue) = rest.rsplit_once('/').ok_or(AddressError::NoQueue)?;
            if !is_pid(pid) {
                return Err(AddressError::BadPid);
            }
            (queue, Some(pid.to_owned()))
        } else if text.starts_with("consumer://") {
            return Err(AddressError::Consumer);
        } else if text.contains("://") {
            return Err(AddressError::UnknownScheme);
        } else if text.is_empty() {
            return Err(AddressError::Empty);
        } else {
            (text, None)
        };
        if queue.is_empty() {
            return Err(AddressError::NoQueue);
        }
        if queue.len() > MAX_BYTES {
            return Err(AddressError::TooLong);
        }
        if queue.chars().any(char::is_control) {
            return Err(AddressError::ControlCharacter);
        }
        Ok(Self {
            queue: queue.to_owned(),
            pid,
        })
    }

    /// The routing key, unencoded: queue names are not encoded on `targeted` and `callctl`.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// The value of `Deliver-To-PID`, if the address has one.
    pub fn pid(&self) -> Option<&str> {
        self.pid.as_deref()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pid {
            Some(pid) => write!(f, "pid://{pid}/{}", self.queue),
            None => f.write_str(&self.queue),
        }
    }
}

/// `<N.N.N>`. Any other text in `Deliver-To-PID` crashes the listener (`list_to_pid`).
fn is_pid(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('<').and_then(|t| t.strip_suffix('>')) else {
        return false;
    };
    let mut parts = 0;
    for part in inner.split('.') {
        parts += 1;
        if part.is_empty() || part.len() > 10 || !part.bytes().all(|b| b.is_ascii_digit()) {
            return false;
        }
    }
    parts == 3
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn true_addresses_are_split_at_the_last_slash() {
        let address = Address::parse("pid://<0.9182.3>/ecallmgr@kz1.example.com-<0.1834.0>-a41c77de").unwrap();
        assert_eq!(address.queue(), "ecallmgr@kz1.example.com-<0.1834.0>-a41c77de");
        assert_eq!(address.pid(), Some("<0.9182.3>"));
        let plain = Address::parse("callflow_route_2").unwrap();
        assert_eq!((plain.queue(), plain.pid()), ("callflow_route_2", None));
    }

    #[test]
    fn what_would_crash_a_listener_is_refused() {
        for (text, error) in [
            ("", AddressError::Empty),
            ("consumer://<0.1.2>/q", AddressError::Consumer),
            ("http://h/q", AddressError::UnknownScheme),
            ("pid://<0.1>/q", AddressError::BadPid),
            ("pid://<0.1.x>/q", AddressError::BadPid),
            ("pid://0.1.2/q", AddressError::BadPid),
            ("pid://<0.1.2>/a/q", AddressError::BadPid),
            ("pid://<0.1.2>", AddressError::NoQueue),
            ("pid://<0.1.2>/", AddressError::NoQueue),
            ("a\nb", AddressError::ControlCharacter),
        ] {
            assert_eq!(Address::parse(text), Err(error), "{text}");
        }
        assert_eq!(Address::parse(&"q".repeat(256)), Err(AddressError::TooLong));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_read_is_written_back(text in any::<String>()) {
            if let Ok(address) = Address::parse(&text) {
                prop_assert_eq!(address.to_string(), text);
            }
        }

        #[test]
        fn any_pid_and_queue_survive_the_way_there_and_back(a in 0u32.., b in 0u32.., c in 0u32.., queue in "[a-z@.<>0-9-]{1,80}") {
            let text = format!("pid://<{a}.{b}.{c}>/{queue}");
            let address = Address::parse(&text).unwrap();
            prop_assert_eq!(address.queue(), queue.as_str());
            prop_assert_eq!(address.to_string(), text);
        }
    }
}
