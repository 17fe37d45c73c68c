//! The little of Erlang's external term format that a flow decision needs. Only `action.result` carries it.

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// What a callflow does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Continue,
    ContinueKey(String),
    Stop,
    StopCause(String),
    Transfer,
    Usurp,
    HardStop,
    /// Decodes, but means nothing to callflow, which warns and continues.
    Unknown(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Atom(String),
    Binary(Vec<u8>),
    Integer(i64),
    Tuple(Vec<Term>),
    List(Vec<Term>),
}

/// Decodes a `Result`. An error here crashes the call's process in Kazoo.
pub fn decision(result: &str) -> Result<Decision, String> {
    let bytes = STANDARD
        .decode(result)
        .map_err(|e| format!("not padded standard base64: {e}"))?;
    let Some((&131, rest)) = bytes.split_first() else {
        return Err("no version byte 131".into());
    };
    let mut rest = rest;
    let term = take(&mut rest, 0)?;
    if !rest.is_empty() {
        return Err(format!("{} bytes after the term", rest.len()));
    }
    Ok(interpret(term))
}

fn interpret(term: Term) -> Decision {
    match &term {
        Term::Atom(a) => match a.as_str() {
            "continue" => return Decision::Continue,
            "stop" => return Decision::Stop,
            "transfer" => return Decision::Transfer,
            "usurp" => return Decision::Usurp,
            "hard_stop" => return Decision::HardStop,
            _ => {}
        },
        Term::Tuple(parts) => {
            if let [Term::Atom(a), Term::Binary(b)] = parts.as_slice() {
                let text = String::from_utf8_lossy(b).into_owned();
                match a.as_str() {
                    "continue" => return Decision::ContinueKey(text),
                    "stop" => return Decision::StopCause(text),
                    _ => {}
                }
            }
        }
        _ => {}
    }
    Decision::Unknown(format!("{term:?}"))
}

fn take(rest: &mut &[u8], depth: usize) -> Result<Term, String> {
    if depth > 16 {
        return Err("nested too deep".into());
    }
    let tag = number(rest, 1)?;
    match tag {
        100 | 118 => atom(rest, 2),
        115 | 119 => atom(rest, 1),
        97 => Ok(Term::Integer(i64::try_from(number(rest, 1)?).unwrap_or(0))),
        98 => {
            let raw = bytes(rest, 4)?;
            Ok(Term::Integer(i64::from(i32::from_be_bytes([
                raw[0], raw[1], raw[2], raw[3],
            ]))))
        }
        104 => {
            let arity = number(rest, 1)?;
            (0..arity)
                .map(|_| take(rest, depth + 1))
                .collect::<Result<_, _>>()
                .map(Term::Tuple)
        }
        106 => Ok(Term::List(Vec::new())),
        107 => {
            let len = number(rest, 2)?;
            let raw = bytes(rest, len)?;
            Ok(Term::List(raw.iter().map(|b| Term::Integer(i64::from(*b))).collect()))
        }
        108 => {
            let len = number(rest, 4)?;
            let mut items = Vec::new();
            for _ in 0..len {
                items.push(take(rest, depth + 1)?);
            }
            take(rest, depth + 1)?;
            Ok(Term::List(items))
        }
        109 => {
            let len = number(rest, 4)?;
            Ok(Term::Binary(bytes(rest, len)?.to_vec()))
        }
        other => Err(format!("unexpected tag {other}")),
    }
}

fn atom(rest: &mut &[u8], length_bytes: usize) -> Result<Term, String> {
    let len = number(rest, length_bytes)?;
    let raw = bytes(rest, len)?;
    Ok(Term::Atom(String::from_utf8_lossy(raw).into_owned()))
}

fn number(rest: &mut &[u8], width: usize) -> Result<usize, String> {
    Ok(bytes(rest, width)?.iter().fold(0, |n, b| (n << 8) | usize::from(*b)))
}

fn bytes<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], String> {
    if rest.len() < len {
        return Err("the term ends too early".into());
    }
    let (head, tail) = rest.split_at(len);
    *rest = tail;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms_of_every_decision() {
        for text in ["g2QACGNvbnRpbnVl", "g3cIY29udGludWU="] {
            assert_eq!(decision(text), Ok(Decision::Continue));
        }
        for text in ["g2gCZAAIY29udGludWVtAAAAA2tleQ==", "g2gCdwhjb250aW51ZW0AAAADa2V5"] {
            assert_eq!(decision(text), Ok(Decision::ContinueKey("key".into())));
        }
        assert_eq!(decision("g3cEc3RvcA=="), Ok(Decision::Stop));
        assert_eq!(decision("g2QABXVzdXJw"), Ok(Decision::Usurp));
        assert_eq!(
            decision("g2gCZAAEc3RvcG0AAAANQ0FMTF9SRUpFQ1RFRA=="),
            Ok(Decision::StopCause("CALL_REJECTED".into()))
        );
    }

    #[test]
    fn refuses_what_kazoo_would_crash_on() {
        for bad in [
            "g3cIY29udGludWU",
            "Y29udGludWU=",
            "",
            "g2QACGNvbnRpbn",
            "g20AAAAD",
            "not base64!",
        ] {
            assert!(decision(bad).is_err(), "{bad}");
        }
        assert!(matches!(decision("g20AAAAIY29udGludWU="), Ok(Decision::Unknown(_))));
    }

    #[test]
    fn never_panics_nor_allocates_by_a_forged_length() {
        for seed in 0..20_000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut raw = vec![131];
            raw.extend((0..rng.usize(..24)).map(|_| [100, 104, 108, 109, 0, 255, rng.u8(..)][rng.usize(..7)]));
            let _ = decision(&STANDARD.encode(raw));
        }
    }
}
