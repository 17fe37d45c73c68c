//! Erlang's external term format, as far as Kazoo's messages use it.
//!
//! Written terms are the `Result` of an action (`cf_remote_action` decodes it with `binary_to_term`) and the store proxy's request. Terms
//! that are read come from the network, so depth, length and size are checked before any allocation. Atoms are written in the old form
//! (`ATOM_EXT`), which each Erlang that runs Kazoo 4 or 5 reads.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

const VERSION: u8 = 131;
const SMALL_INTEGER: u8 = 97;
const INTEGER: u8 = 98;
const ATOM: u8 = 100;
const SMALL_TUPLE: u8 = 104;
const LARGE_TUPLE: u8 = 105;
const NIL: u8 = 106;
const STRING: u8 = 107;
const LIST: u8 = 108;
const BINARY: u8 = 109;
const SMALL_BIG: u8 = 110;
const LARGE_BIG: u8 = 111;
const SMALL_ATOM: u8 = 115;
const MAP: u8 = 116;
const ATOM_UTF8: u8 = 118;
const SMALL_ATOM_UTF8: u8 = 119;
const NEW_FLOAT: u8 = 70;

/// Terms nested deeper than this are refused.
pub const MAX_DEPTH: usize = 64;
/// Terms with more elements than this, over all levels, are refused.
pub const MAX_ELEMENTS: usize = 65_536;
/// Encoded terms longer than this many bytes are refused.
pub const MAX_BYTES: usize = 1 << 20;

/// An Erlang term.
#[derive(Debug, Clone, PartialEq)]
pub enum Term {
    Integer(i64),
    Float(f64),
    Atom(String),
    Binary(Vec<u8>),
    Tuple(Vec<Term>),
    /// A proper list.
    List(Vec<Term>),
    Map(Vec<(Term, Term)>),
}

/// Why a term could not be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TermError {
    #[error("not base64 of Erlang's external term format")]
    NotATerm,
    #[error("the term ends too early")]
    Truncated,
    #[error("bytes follow the term")]
    Trailing,
    #[error("the term is nested deeper than {MAX_DEPTH}")]
    TooDeep,
    #[error("the term has more than {MAX_ELEMENTS} elements or {MAX_BYTES} bytes")]
    TooLarge,
    #[error("the term has a part of kind {0}, which does not cross this wire")]
    Unsupported(u8),
    #[error("an atom is not text, or longer than 255 bytes")]
    BadAtom,
}

impl Term {
    pub fn atom(name: &str) -> Self {
        Self::Atom(name.to_owned())
    }

    pub fn binary(text: &str) -> Self {
        Self::Binary(text.as_bytes().to_vec())
    }

    /// The external form, version byte included.
    ///
    /// # Errors
    /// `BadAtom` and `TooLarge` for terms that cannot be written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, TermError> {
        let mut out = vec![VERSION];
        write(self, &mut out)?;
        Ok(out)
    }

    /// Standard, padded base64 of the external form. URL-safe or unpadded base64 would crash the call's process.
    ///
    /// # Errors
    /// As `to_bytes`.
    pub fn to_base64(&self) -> Result<String, TermError> {
        Ok(STANDARD.encode(self.to_bytes()?))
    }

    /// Reads one whole term.
    ///
    /// # Errors
    /// A malformed term, or one that is deeper than `MAX_DEPTH` or larger than `MAX_ELEMENTS` and `MAX_BYTES`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TermError> {
        if bytes.len() > MAX_BYTES {
            return Err(TermError::TooLarge);
        }
        let mut reader = Reader {
            rest: bytes,
            elements: 0,
        };
        if reader.byte()? != VERSION {
            return Err(TermError::NotATerm);
        }
        let term = reader.term(0)?;
        if reader.rest.is_empty() {
            Ok(term)
        } else {
            Err(TermError::Trailing)
        }
    }

    /// As `from_bytes`, from standard base64.
    ///
    /// # Errors
    /// As `from_bytes`.
    pub fn from_base64(text: &str) -> Result<Self, TermError> {
        if text.len() > MAX_BYTES * 4 / 3 + 4 {
            return Err(TermError::TooLarge);
        }
        Self::from_bytes(&STANDARD.decode(text).map_err(|_| TermError::NotATerm)?)
    }
}

fn write(term: &Term, out: &mut Vec<u8>) -> Result<(), TermError> {
    match term {
        Term::Integer(value) => match u8::try_from(*value) {
            Ok(small) => out.extend([SMALL_INTEGER, small]),
            Err(_) => match i32::try_from(*value) {
                Ok(int) => {
                    out.push(INTEGER);
                    out.extend(int.to_be_bytes());
                }
                Err(_) => {
                    out.extend([SMALL_BIG, 8, u8::from(*value < 0)]);
                    out.extend(value.unsigned_abs().to_le_bytes());
                }
            },
        },
        Term::Float(value) => {
            out.push(NEW_FLOAT);
            out.extend(value.to_be_bytes());
        }
        Term::Atom(name) => {
            // ATOM_EXT is Latin-1; for ASCII it equals UTF-8.
            if name.is_ascii() && name.len() <= 255 {
                out.extend([ATOM, 0, name.len() as u8]);
            } else if let Ok(length) = u8::try_from(name.len()) {
                out.extend([SMALL_ATOM_UTF8, length]);
            } else {
                return Err(TermError::BadAtom);
            }
            out.extend(name.as_bytes());
        }
        Term::Binary(bytes) => {
            out.push(BINARY);
            out.extend(length(bytes.len())?);
            out.extend(bytes);
        }
        Term::Tuple(items) => {
            match u8::try_from(items.len()) {
                Ok(arity) => out.extend([SMALL_TUPLE, arity]),
                Err(_) => {
                    out.push(LARGE_TUPLE);
                    out.extend(length(items.len())?);
                }
            }
            items.iter().try_for_each(|item| write(item, out))?;
        }
        Term::List(items) if items.is_empty() => out.push(NIL),
        Term::List(items) => {
            out.push(LIST);
            out.extend(length(items.len())?);
            items.iter().try_for_each(|item| write(item, out))?;
            out.push(NIL);
        }
        Term::Map(pairs) => {
            out.push(MAP);
            out.extend(length(pairs.len())?);
            pairs
                .iter()
                .try_for_each(|(key, value)| write(key, out).and_then(|()| write(value, out)))?;
        }
    }
    Ok(())
}

fn length(length: usize) -> Result<[u8; 4], TermError> {
    u32::try_from(length)
        .map(u32::to_be_bytes)
        .map_err(|_| TermError::TooLarge)
}

struct Reader<'a> {
    rest: &'a [u8],
    elements: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], TermError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(TermError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TermError> {
        self.take(N)?.try_into().map_err(|_| TermError::Truncated)
    }

    fn byte(&mut self) -> Result<u8, TermError> {
        Ok(self.array::<1>()?[0])
    }

    fn long(&mut self) -> Result<usize, TermError> {
        Ok(u32::from_be_bytes(self.array()?) as usize)
    }

    fn atom(&mut self, length: usize, utf8: bool) -> Result<Term, TermError> {
        if length > 255 * 4 {
            return Err(TermError::BadAtom);
        }
        let bytes = self.take(length)?;
        if utf8 {
            std::str::from_utf8(bytes)
                .map(Term::atom)
                .map_err(|_| TermError::BadAtom)
        } else {
            Ok(Term::Atom(bytes.iter().map(|b| char::from(*b)).collect()))
        }
    }

    /// Each element takes at least one byte. A count beyond the remaining bytes is refused before memory is reserved.
    fn expect(&mut self, count: usize) -> Result<(), TermError> {
        if count > self.rest.len() {
            return Err(TermError::Truncated);
        }
        self.elements += count;
        if self.elements > MAX_ELEMENTS {
            return Err(TermError::TooLarge);
        }
        Ok(())
    }

    fn items(&mut self, count: usize, depth: usize) -> Result<Vec<Term>, TermError> {
        self.expect(count)?;
        (0..count).map(|_| self.term(depth + 1)).collect()
    }

    fn term(&mut self, depth: usize) -> Result<Term, TermError> {
        if depth > MAX_DEPTH {
            return Err(TermError::TooDeep);
        }
        match self.byte()? {
            SMALL_INTEGER => Ok(Term::Integer(i64::from(self.byte()?))),
            INTEGER => Ok(Term::Integer(i64::from(i32::from_be_bytes(self.array()?)))),
            NEW_FLOAT => {
                let value = f64::from_be_bytes(self.array()?);
                // Erlang has only finite floats.
                value
                    .is_finite()
                    .then_some(Term::Float(value))
                    .ok_or(TermError::NotATerm)
            }
            SMALL_BIG => {
                let count = usize::from(self.byte()?);
                self.big(count)
            }
            LARGE_BIG => {
                let count = self.long()?;
                self.big(count)
            }
            ATOM => {
                let length = u16::from_be_bytes(self.array()?);
                self.atom(usize::from(length), false)
            }
            ATOM_UTF8 => {
                let length = u16::from_be_bytes(self.array()?);
                self.atom(usize::from(length), true)
            }
            SMALL_ATOM => {
                let length = self.byte()?;
                self.atom(usize::from(length), false)
            }
            SMALL_ATOM_UTF8 => {
                let length = self.byte()?;
                self.atom(usize::from(length), true)
            }
            BINARY => {
                let length = self.long()?;
                Ok(Term::Binary(self.take(length)?.to_vec()))
            }
            SMALL_TUPLE => {
                let arity = self.byte()?;
                Ok(Term::Tuple(self.items(usize::from(arity), depth)?))
            }
            LARGE_TUPLE => {
                let arity = self.long()?;
                Ok(Term::Tuple(self.items(arity, depth)?))
            }
            NIL => Ok(Term::List(Vec::new())),
            STRING => {
                let length = usize::from(u16::from_be_bytes(self.array()?));
                self.expect(length)?;
                let bytes = self.take(length)?.iter();
                Ok(Term::List(bytes.map(|b| Term::Integer(i64::from(*b))).collect()))
            }
            LIST => {
                let length = self.long()?;
                let items = self.items(length, depth)?;
                match self.byte()? {
                    NIL => Ok(Term::List(items)),
                    other => Err(TermError::Unsupported(other)),
                }
            }
            MAP => {
                let count = self.long()?;
                let mut flat = self
                    .items(count.checked_mul(2).ok_or(TermError::TooLarge)?, depth)?
                    .into_iter();
                let mut pairs = Vec::with_capacity(count);
                while let (Some(key), Some(value)) = (flat.next(), flat.next()) {
                    pairs.push((key, value));
                }
                Ok(Term::Map(pairs))
            }
            other => Err(TermError::Unsupported(other)),
        }
    }

    /// An integer of so many bytes. One that is too large for an `i64` becomes the largest, or smallest, one: no integer that this program uses is
    /// that large, and the rest of the term must be read.
    fn big(&mut self, count: usize) -> Result<Term, TermError> {
        let is_negative = self.byte()? != 0;
        let given = self.take(count)?;
        let (low, high) = given.split_at(count.min(8));
        let mut bytes = [0u8; 8];
        bytes[..low.len()].copy_from_slice(low);
        let size = i128::from(u64::from_le_bytes(bytes));
        let value = if is_negative { -size } else { size };
        let most = if is_negative { i64::MIN } else { i64::MAX };
        let fits = high.iter().all(|byte| *byte == 0);
        let value = i64::try_from(value).ok().filter(|_| fits);
        Ok(Term::Integer(value.unwrap_or(most)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn both_forms_of_an_atom_are_read_and_the_old_one_is_written() {
        for form in ["83640008636f6e74696e7565", "837708636f6e74696e7565"] {
            assert_eq!(Term::from_bytes(&hex(form)), Ok(Term::atom("continue")));
        }
        assert_eq!(Term::atom("continue").to_base64().unwrap(), "g2QACGNvbnRpbnVl");
    }

    #[test]
    fn hostile_terms_are_refused_before_anything_is_allocated() {
        // A list of 2^32 - 1 elements in six bytes.
        assert_eq!(Term::from_bytes(&hex("836cffffffff")), Err(TermError::Truncated));
        assert_eq!(Term::from_bytes(&hex("8374ffffffff")), Err(TermError::Truncated));
        assert_eq!(Term::from_bytes(&hex("836dffffffff")), Err(TermError::Truncated));
        assert_eq!(Term::from_bytes(&hex("836eff00")), Err(TermError::Truncated));
        assert_eq!(Term::from_bytes(&hex("836fffffffff00")), Err(TermError::Truncated));
        let mut deep = vec![VERSION];
        for _ in 0..10_000 {
            deep.extend([SMALL_TUPLE, 1]);
        }
        deep.push(NIL);
        assert_eq!(Term::from_bytes(&deep), Err(TermError::TooDeep));
        let mut wide = vec![VERSION, SMALL_TUPLE, 40];
        for _ in 0..40 {
            wide.extend([LIST, 0, 0, 8, 0]);
            wide.extend(std::iter::repeat_n(NIL, 2048 + 1));
        }
        assert_eq!(Term::from_bytes(&wide), Err(TermError::TooLarge));
        // A byte of a string is an element too.
        let mut strings = vec![VERSION, SMALL_TUPLE, 2];
        for _ in 0..2 {
            strings.extend([STRING, 0xff, 0xff]);
            strings.extend(std::iter::repeat_n(b'x', 0xffff));
        }
        assert_eq!(Term::from_bytes(&strings), Err(TermError::TooLarge));
        for float in [f64::NAN, f64::INFINITY] {
            let bytes = [&[VERSION, NEW_FLOAT][..], &float.to_be_bytes()].concat();
            assert_eq!(Term::from_bytes(&bytes), Err(TermError::NotATerm));
        }
        assert_eq!(
            Term::from_bytes(&vec![VERSION; MAX_BYTES + 1]),
            Err(TermError::TooLarge)
        );
        assert_eq!(Term::from_bytes(&hex("836a00")), Err(TermError::Trailing));
        assert_eq!(Term::from_base64("g2QACGNvbnRpbnVl="), Err(TermError::NotATerm));
        assert_eq!(Term::from_bytes(&[]), Err(TermError::Truncated));
        assert_eq!(Term::from_bytes(&[130, NIL]), Err(TermError::NotATerm));
    }

    #[test]
    fn an_integer_of_any_size_is_read() {
        let read = |text: &str| Term::from_bytes(&hex(text));
        assert_eq!(read("836e0800ffffffffffffff7f"), Ok(Term::Integer(i64::MAX)));
        assert_eq!(read("836e08010000000000000080"), Ok(Term::Integer(i64::MIN)));
        // 2^63, -2^63 - 1, and 10^30.
        assert_eq!(read("836e08000000000000000080"), Ok(Term::Integer(i64::MAX)));
        assert_eq!(read("836e08010100000000000080"), Ok(Term::Integer(i64::MIN)));
        assert_eq!(read("836e0d00000000407429edc9d09f0c0000"), Ok(Term::Integer(i64::MAX)));
        assert_eq!(read("836e0901000000000000000001"), Ok(Term::Integer(i64::MIN)));
        assert_eq!(read("836f00000002000500"), Ok(Term::Integer(5)));
    }

    fn any_term() -> impl Strategy<Value = Term> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Term::Integer),
            Just(Term::Integer(i64::MIN)),
            (-1e12f64..1e12).prop_map(Term::Float),
            "[a-zé_]{0,40}".prop_map(Term::Atom),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(Term::Binary),
        ];
        leaf.prop_recursive(5, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Term::Tuple),
                prop::collection::vec(inner.clone(), 0..6).prop_map(Term::List),
                prop::collection::vec((inner.clone(), inner), 0..4).prop_map(Term::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_term_survives_the_way_there_and_back(term in any_term()) {
            let bytes = term.to_bytes().unwrap();
            prop_assert_eq!(Term::from_bytes(&bytes), Ok(term));
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Term::from_bytes(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let _ = Term::from_bytes(&bytes);
        }
    }
}
