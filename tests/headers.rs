//! What anybody who can publish may put into a message's properties and headers is read without harm, by the parser that lapin uses.
#![allow(clippy::unwrap_used)]

use lapin::types::parsing::{parse_field_table, parse_short_string};
use lapin::types::{AMQPValue, ShortString};

/// A table with one header, `x`: arrays in arrays.
fn nested(levels: usize) -> Vec<u8> {
    let mut value = vec![b'V'];
    // Built from the inside; the lengths are those of all that is inside.
    let mut arrays = Vec::new();
    for _ in 0..levels {
        let length = u32::try_from(value.len() + arrays.len() * 5).unwrap();
        arrays.push(length.to_be_bytes());
    }
    let mut bytes = vec![1, b'x'];
    for length in arrays.iter().rev() {
        bytes.push(b'A');
        bytes.extend(length);
    }
    bytes.append(&mut value);
    let mut table = u32::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    table.append(&mut bytes);
    table
}

#[test]
fn arrays_in_arrays_without_end_are_cut() {
    // As many as one frame of the broker's can hold.
    let table = nested(26_000);
    let (rest, table) = parse_field_table(&table[..]).unwrap();
    assert!(rest.is_empty());
    let mut depth = 0;
    let mut value = table.inner()["x"].clone();
    while let AMQPValue::FieldArray(array) = value {
        depth += 1;
        value = array.as_slice()[0].clone();
    }
    assert_eq!((depth, value), (32, AMQPValue::Void));
}

#[test]
fn arrays_in_arrays_as_people_use_them_are_read_whole() {
    let table = nested(5);
    let (_, table) = parse_field_table(&table[..]).unwrap();
    let mut value = table.inner()["x"].clone();
    for _ in 0..5 {
        let AMQPValue::FieldArray(array) = value else {
            panic!("{value:?}")
        };
        value = array.as_slice()[0].clone();
    }
    assert_eq!(value, AMQPValue::Void);
}

#[test]
fn text_that_is_no_utf8_keeps_its_length() {
    let mut bytes = vec![255];
    bytes.extend([0xe9; 255]);
    let (_, text) = parse_short_string(&bytes[..]).unwrap();
    assert_eq!(text, ShortString::from("?".repeat(255)));
    let (_, text) = parse_short_string(&b"\x04caf\xe9"[..]).unwrap();
    assert_eq!(text.as_str(), "caf?");
    let (_, text) = parse_short_string("\u{5}café".as_bytes()).unwrap();
    assert_eq!(text.as_str(), "café");
}
