use super::*;

const MONO: Format = Format::Wav {
    rate: 8_000,
    channels: 1,
};
const MONO_MP3: Format = Format::Mp3 {
    rate: 8_000,
    channels: 1,
};
const FINE_MP3: Format = Format::Mp3 {
    rate: 44_100,
    channels: 2,
};
const FORMATS: [Format; 5] = [Format::WAV, MONO, Format::MP3, MONO_MP3, FINE_MP3];

#[test]
fn lengths_agree_with_the_bytes() {
    for format in FORMATS {
        for size in [
            Size::Millis(0),
            Size::Millis(1),
            Size::Millis(2_000),
            Size::Bytes(44),
            Size::Bytes(100_001),
        ] {
            let mut audio = Audio::new("202611-aa", format, size);
            for _ in 0..2 {
                assert_eq!(audio.bytes().len() as u64, audio.len(), "{format:?} {size:?}");
                for samples in [0, 1, 20_000] {
                    let open = audio.open_at(samples);
                    assert_eq!(open.bytes().len() as u64, open.len(), "{format:?} {size:?}");
                    assert_eq!(open.mended().bytes().len() as u64, open.len());
                }
                if let Size::Bytes(n @ 1_000..) = size
                    && audio.parts.len() == 1
                {
                    assert!(audio.len() <= n && audio.len() + 600 > n, "{format:?} {}", audio.len());
                }
                audio.append("202611-aa", size);
            }
        }
    }
    assert_eq!(
        Audio::new("x", Format::WAV, Size::Millis(2_000)).len(),
        44 + 128_000 + 64
    );
    assert_eq!(
        Audio::new("x", Format::WAV, Size::Millis(2_000)).told_len(),
        44 + 128_000
    );
    assert_eq!(Audio::new("x", Format::WAV, Size::Millis(2_000)).millis(), 2_000);
    assert_eq!(Audio::new("x", Format::WAV, Size::Bytes(20_000_000)).len(), 20_000_000);
}

#[test]
fn an_mp3_is_a_tag_and_frames() {
    for (format, head, plain, padding, most) in [
        (Format::MP3, [0xff, 0xf3, 0x88], 288, 0, 900),
        (MONO_MP3, [0xff, 0xe3, 0x28], 144, 0, 900),
        (FINE_MP3, [0xff, 0xfb, 0xa0], 522, 1, 900),
    ] {
        let audio = Audio::new("202611-ab", format, Size::Millis(3_000));
        let bytes = audio.bytes();
        assert_eq!(&bytes[..3], b"ID3");
        let (mut at, mut frames) = (228, 0);
        while at < bytes.len() {
            assert_eq!(
                [bytes[at], bytes[at + 1], bytes[at + 2] & 0xfd],
                head,
                "{format:?} {at}"
            );
            at += plain + padding * usize::from(bytes[at + 2] >> 1 & 1);
            frames += 1;
        }
        assert_eq!(at, bytes.len());
        assert_eq!(bytes[228..].iter().filter(|b| **b == 0xff).count(), frames as usize);
        let played = frames * format.mp3().samples * 1_000 / format.rate();
        assert!((50..most).contains(&(played - 3_000)), "{format:?}: {played} ms");
        assert!(bytes.windows(4).filter(|w| w == b"Info").count() == 1);
    }
}

#[test]
fn a_file_that_is_open_tells_no_length() {
    let long = |b: &[u8], at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let mut wav = Audio::new("a", Format::WAV, Size::Millis(2_440));
    let open = wav.open_at(16_000).bytes();
    assert_eq!((long(&open, 4), long(&open, 40), open.len()), (8, 0, 44 + 64_000));
    let closed = wav.bytes();
    assert_eq!(
        (long(&closed, 4), long(&closed, 40)),
        (closed.len() as u32 - 8, 156_160)
    );
    assert_eq!(&closed[closed.len() - 64..][..4], b"LIST");
    wav.append("a", Size::Millis(1_400));
    let open = wav.open_at(16_000).bytes();
    assert_eq!((long(&open, 40), open.len()), (156_160, 44 + 156_160 + 64_000));
    let mended = wav.open_at(16_000).mended().bytes();
    assert_eq!((long(&mended, 40), &mended[44..]), (156_160 + 64_000, &open[44..]));
    assert_eq!(long(&wav.bytes(), 40), 245_760);
    // Whole buffers, of which the first is full after two seconds.
    let mp3 = Audio::new("a", MONO_MP3, Size::Millis(6_000));
    for (ms, len) in [(1_000, 0), (1_700, 0), (2_100, 4_096), (4_200, 8_192)] {
        assert_eq!(mp3.open_at(ms * 8).len(), len, "after {ms} ms");
    }
}

#[test]
fn a_file_that_is_open_is_the_beginning_of_the_whole() {
    for format in FORMATS {
        let mut whole = Audio::new("a", format, Size::Millis(3_000));
        whole.append("a", Size::Millis(2_000));
        let bytes = whole.bytes();
        let mut before = 0;
        for samples in (0..2 * format.rate()).step_by(997) {
            let open = whole.open_at(samples);
            let now = open.bytes();
            assert!(now.len() as u64 >= before);
            assert_eq!(now[44..], bytes[44..now.len()], "{format:?} {samples}");
            let mut more = Vec::new();
            open.reader().from(before).read_to_end(&mut more).unwrap();
            assert_eq!(more, now[usize::try_from(before).unwrap()..]);
            before = now.len() as u64;
        }
    }
}

#[test]
fn what_is_masked_is_silent() {
    let plain = Audio::new("a", Format::WAV, Size::Millis(1_000)).bytes();
    let mut masked = Audio::new("a", Format::WAV, Size::Millis(1_000));
    masked.mute(true, 4_000);
    let for_good = masked.bytes();
    assert_eq!(for_good[..44 + 16_000], plain[..44 + 16_000]);
    assert!(for_good[44 + 16_000..44 + 64_000].iter().all(|b| *b == 0));
    masked.mute(false, 8_000);
    let again = masked.bytes();
    assert!(again[44 + 16_000..44 + 32_000].iter().all(|b| *b == 0));
    assert_eq!(again[44 + 32_000..], plain[44 + 32_000..]);
}

#[test]
fn a_full_disk_cuts_the_file() {
    for format in FORMATS {
        let mut audio = Audio::new("a", format, Size::Millis(3_000));
        let whole = audio.bytes();
        audio.fill(40_000_000);
        assert_eq!(audio.bytes(), whole);
        audio.fill(5_001);
        assert_eq!(audio.bytes().len(), 5_001);
        assert_eq!(audio.bytes()[44..], whole[44..5_001]);
    }
}

#[test]
fn a_recording_of_another_id_is_noticed() {
    for format in FORMATS {
        let bytes = expected("one", format, Size::Millis(500));
        assert_eq!(check("one", format, &bytes), Ok(()));
        assert!(check("two", format, &bytes).is_err());
        assert!(check("one", format, &bytes[..bytes.len() - 1]).is_err());
        let mut flipped = bytes.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(check("one", format, &flipped).is_err());
    }
}

#[test]
fn appending_goes_on_where_it_was() {
    let mut twice = Audio::new("a", Format::WAV, Size::Millis(300));
    twice.append("a", Size::Millis(200));
    assert_eq!(twice.bytes(), expected("a", Format::WAV, Size::Millis(500)));
    let next = twice.next("a", Size::Millis(700));
    let all = expected("a", Format::WAV, Size::Millis(1_200));
    assert_eq!(next.bytes()[44..44 + 700 * 64], all[44 + 500 * 64..44 + 1_200 * 64]);
    let mut mixed = Audio::new("a", Format::MP3, Size::Millis(300));
    mixed.append("b", Size::Millis(200));
    assert!(check("a", Format::MP3, &mixed.bytes()).is_err());
    assert_eq!(mixed.check(mixed.bytes().as_slice()), Ok(()));
    assert_eq!(mixed.bytes().len() as u64, mixed.len());
}

#[test]
#[ignore = "writes 345 MB"]
fn three_hours_are_written_and_compared_without_being_held() {
    let path = std::env::temp_dir().join("kazoo-sim-345.wav");
    let audio = Audio::new("202611-big", Format::WAV, Size::Bytes(345_000_000));
    audio.write(&path).unwrap();
    audio.check(File::open(&path).unwrap()).unwrap();
    std::fs::remove_file(path).unwrap();
}

#[test]
fn the_digest_is_couchdbs() {
    let audio = Audio::new("a", Format::MP3, Size::Millis(100));
    assert_eq!(audio.md5(), STANDARD.encode(Md5::digest(audio.bytes())));
}
