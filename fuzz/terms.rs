//! Erlang terms, addresses, routing keys and trace headers from the network.
use kz_record_call::kazoo::address::Address;
use kz_record_call::kazoo::routing_key;
use kz_record_call::kazoo::term::{MAX_BYTES, MAX_DEPTH, MAX_ELEMENTS, Term, TermError};
use kz_record_call::recording::adopt::Data;
use kz_record_call::telemetry::trace::Trace;

/// One input.
pub fn terms(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 4 {
        0 => term(rest),
        1 => {
            let mut bytes = vec![131];
            bytes.extend(rest);
            term(&bytes);
        }
        2 => {
            let text = String::from_utf8_lossy(rest);
            if let Ok(term) = Term::from_base64(&text) {
                survives(&term);
            }
            // The settings of Kazoo's own recorder.
            if let Ok(data) = Data::read(&text) {
                assert!(Term::from_base64(&text).is_ok());
                assert!(data.endpoint_id.is_none_or(|id| id.len() <= 64));
            }
        }
        _ => words(&String::from_utf8_lossy(rest)),
    }
}

fn term(bytes: &[u8]) {
    match Term::from_bytes(bytes) {
        Ok(term) => {
            assert!(bytes.len() <= MAX_BYTES);
            survives(&term);
        }
        Err(
            TermError::BadAtom | TermError::NotATerm | TermError::TooDeep | TermError::TooLarge | TermError::Trailing,
        ) => {}
        Err(TermError::Truncated | TermError::Unsupported(_)) => {}
    }
}

/// What is read is within the bounds, and is what comes back when it is written.
fn survives(term: &Term) {
    let (elements, depth) = size(term, 0);
    assert!(elements <= MAX_ELEMENTS, "{elements} elements");
    assert!(depth <= MAX_DEPTH, "{depth} deep");
    match term.to_bytes() {
        // Strings are written as lists: longer than they came.
        Ok(bytes) => match Term::from_bytes(&bytes) {
            Ok(again) => assert_eq!(&again, term),
            Err(error) => assert!(error == TermError::TooLarge && bytes.len() > MAX_BYTES, "{error}"),
        },
        // Latin-1 of up to 1,020 bytes is read, and more than 255 bytes of UTF-8 cannot be written.
        Err(error) => assert_eq!(error, TermError::BadAtom),
    }
}

fn size(term: &Term, depth: usize) -> (usize, usize) {
    let parts: Vec<&Term> = match term {
        Term::Tuple(items) | Term::List(items) => items.iter().collect(),
        Term::Map(pairs) => pairs.iter().flat_map(|(key, value)| [key, value]).collect(),
        _ => Vec::new(),
    };
    let mut whole = (parts.len(), depth);
    for part in parts {
        let (elements, depth) = size(part, depth + 1);
        whole = (whole.0 + elements, whole.1.max(depth));
    }
    whole
}

fn words(text: &str) {
    if let Ok(address) = Address::parse(text) {
        assert_eq!(address.to_string(), text);
        assert!((1..=255).contains(&address.queue().len()));
        assert!(
            address
                .pid()
                .is_none_or(|pid| pid.starts_with('<') && pid.ends_with('>') && pid.matches('.').count() == 2)
        );
    }
    let encoded = routing_key::encode(text);
    assert_eq!(routing_key::decode(&encoded).as_deref(), Some(text));
    let safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'~' | b'_' | b'+' | b'%');
    assert!(matches!(text, "*" | "#") || encoded.bytes().all(safe), "{encoded}");
    let _ = routing_key::decode(text);
    if let Some(trace) = Trace::read(text, Some(text)) {
        assert!(trace.id().len() == 32 && trace.parent().len() <= 512);
    }
}
