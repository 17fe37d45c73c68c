//! The names of databases and files.

use crate::kazoo::time::Month;

use super::format::Format;
use super::identity::Key;

/// Longest name of a document or an attachment, in bytes, with the extension.
pub const MAX_MEDIA_NAME: usize = 128;

/// The account's database of a month (MODB), in CouchDB's form: `account/ab/cd/<28 hex>-YYYYMM`. `account_id` is 32 hex digits.
pub fn modb(account_id: &str, month: Month) -> String {
    format!("{}-{month}", account_db(account_id))
}

/// The account's database, in CouchDB's form.
pub fn account_db(account_id: &str) -> String {
    let part = |range: std::ops::Range<usize>| account_id.get(range).unwrap_or_default();
    format!(
        "account/{}/{}/{}",
        part(0..2),
        part(2..4),
        account_id.get(4..).unwrap_or_default()
    )
}

/// A database's name in the form that Kazoo writes into documents, messages and URLs: slashes as `%2F`.
pub fn encoded(database: &str) -> String {
    database.replace('/', "%2F")
}

/// The file on the switch. Its name is always unique, independent of the user's `media_name`, because the switch appends to an existing
/// file.
pub fn file_name(key: Key, format: Format) -> String {
    format!("{key}.{format}")
}

/// The user's `media_name`, flattened to `[A-Za-z0-9._-]`, without a leading `_`, `.` or `-`, and with the format's extension. `None` when
/// no character is left.
///
/// CouchDB refuses attachment names with a leading `_`. The name also becomes a file name in downloads (`cb_recordings`).
pub fn media_name(given: &str, format: Format) -> Option<String> {
    let given = given.trim().trim_start_matches("local_stream://");
    let mut flat = String::with_capacity(given.len());
    for c in given.chars() {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') {
            flat.push(c);
        } else if !flat.ends_with('_') {
            flat.push('_');
        }
    }
    let stem = match flat.rsplit_once('.') {
        Some((stem, extension)) if is_audio(extension) => stem,
        _ => &flat,
    };
    let stem = stem.trim_start_matches(['_', '.', '-']).trim_end_matches(['_', '.']);
    let room = MAX_MEDIA_NAME - 1 - format.extension().len();
    let stem = stem.get(..stem.len().min(room))?;
    (!stem.is_empty()).then(|| format!("{stem}.{format}"))
}

/// Longest file name on a switch, in bytes.
const MAX_FILE_NAME: usize = 255;

/// Whether a name from outside is a file's name, and is safe on the switch's command line.
pub fn is_plain(name: &str) -> bool {
    (1..=MAX_FILE_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// The key of the recording whose file has that name, if it is a name of this daemon's. Kazoo gives names of the same form.
pub fn key_of(name: &str) -> Option<Key> {
    name.rsplit_once('.').and_then(|(stem, _)| stem.parse().ok())
}

/// Whether a path from an event can be the one of the recording's file on its switch. The switch's account may read what is not ours, and
/// deletes what it has brought: nothing is believed but a file that has our recording's name, wherever that switch records.
pub fn is_path_of(path: &str, file_name: &str) -> bool {
    key_of(file_name).is_some() && is_path_to(path, file_name)
}

/// Whether a path is absolute, leads nowhere else, and ends with that name.
pub fn is_path_to(path: &str, file_name: &str) -> bool {
    let Some((folder, name)) = path.rsplit_once('/') else {
        return false;
    };
    let is_absolute = path.starts_with('/');
    is_absolute && name == file_name && folder.split('/').all(|part| part != "..")
}

fn is_audio(extension: &str) -> bool {
    ["mp3", "mp4", "wav"]
        .iter()
        .any(|known| extension.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn databases_are_named_as_kazoo_names_them() {
        let account = "0123456789abcdef0123456789abcdef";
        let month = Month::of_id("202506-x").unwrap();
        assert_eq!(
            modb(account, month),
            "account/01/23/456789abcdef0123456789abcdef-202506"
        );
        assert_eq!(
            encoded(&modb(account, month)),
            "account%2F01%2F23%2F456789abcdef0123456789abcdef-202506"
        );
    }

    #[test]
    fn a_media_name_is_flattened_and_gets_the_right_extension() {
        for (given, format, name) in [
            ("front-desk-0001.wav", Format::Wav, Some("front-desk-0001.wav")),
            ("front-desk-0001.wav", Format::Mp3, Some("front-desk-0001.mp3")),
            ("call 1@home", Format::Mp3, Some("call_1_home.mp3")),
            ("/etc/passwd", Format::Mp3, Some("etc_passwd.mp3")),
            ("../../x.MP3", Format::Mp3, Some("x.mp3")),
            ("_private.mp3", Format::Mp3, Some("private.mp3")),
            ("обзор вызова №7.mp3", Format::Mp3, Some("7.mp3")),
            ("${system id}.mp3", Format::Mp3, Some("system_id.mp3")),
            ("v1.2", Format::Wav, Some("v1.2.wav")),
            ("電話", Format::Mp3, None),
            (".mp3", Format::Mp3, None),
            ("", Format::Mp3, None),
        ] {
            assert_eq!(media_name(given, format).as_deref(), name, "{given}");
        }
    }

    #[test]
    fn a_name_of_somebody_elses_is_plain_or_nothing_is_sent() {
        for plain in ["somebody-elses.mp3", "a", "_x", &"x".repeat(255)] {
            assert!(is_plain(plain), "{plain}");
        }
        for other in [
            "",
            "a b",
            "${system id}.mp3",
            "../x",
            "a#b",
            "a~b",
            "é",
            "a\n",
            &"x".repeat(256),
        ] {
            assert!(!is_plain(other), "{other}");
        }
    }

    #[test]
    fn only_a_file_with_the_recordings_own_name_is_believed_to_be_its_file() {
        let name = file_name(Key::of("call", "action"), Format::Mp3);
        for good in ["/tmp", "", "/var/spool/recordings/a..b", "/tmp/"] {
            assert!(is_path_of(&format!("{good}/{name}"), &name), "{good}");
        }
        for bad in [
            "/etc/passwd",
            "/tmp/../etc/shadow",
            &format!("/tmp/../etc/{name}"),
            &format!("/../{name}"),
            &format!("tmp/{name}"),
            &format!("/tmp/{name}/"),
            &format!("/tmp/{name}/.."),
            &format!("/tmp/x{name}"),
            &format!("/tmp/{name}x"),
            &name,
            "",
            "/",
        ] {
            assert!(!is_path_of(bad, &name), "{bad}");
        }
        // No file of ours has such a name, even if an order contains it.
        assert!(!is_path_of("/etc/passwd", "passwd") && !is_path_of("/tmp/a.mp3", "a.mp3") && !is_path_of("/", ""));
    }

    proptest! {
        #[test]
        fn any_name_becomes_a_safe_one(given in any::<String>()) {
            if let Some(name) = media_name(&given, Format::Mp3) {
                prop_assert!(name.len() <= MAX_MEDIA_NAME && !name.starts_with(['_', '.', '-']) && name.ends_with(".mp3"));
                prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')));
            }
        }
    }
}
