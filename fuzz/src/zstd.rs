//! The program in a compressed image. Whoever made the image chose the frame. What Zstandard's own library packs comes back; where both unpack a frame, it is to the same bytes.

use donjon_abi::zstd::{Tables, unpack};

/// Most that is unpacked here, bytes: more than two blocks.
const ROOM: usize = 300_000;

pub fn run(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    let mut tables = Tables::new();
    if how & 1 != 0 {
        // What is packed comes back.
        let frame = zstd::bulk::compress(rest, i32::from(how >> 1) % 23).expect("memory");
        let mut out = vec![0; rest.len()];
        assert_eq!(unpack(&frame, &mut out, &mut tables), Some(rest.len()));
        assert!(out == rest);
        return;
    }
    let mut out = vec![0xaa; ROOM];
    let ours = unpack(rest, &mut out, &mut tables).inspect(|len| assert!(*len <= ROOM));
    // The library takes more (several frames, dictionaries, streams that are read beyond their end), and looks at lengths and checksums that we do not look at.
    if let Some(len) = ours
        && let Ok(theirs) = zstd::bulk::decompress(rest, ROOM)
    {
        assert!(out[..len] == theirs, "{len} bytes, not {}", theirs.len());
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let text = include_bytes!("zstd.rs");
    let mixed: Vec<u8> =
        (0..20_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8 & [15, 255][(i >> 10) as usize & 1]).collect();
    let contents: [&[u8]; 6] = [b"", b"a", &[7; 900], text, &mixed, &text.repeat(90)];
    let frames = contents.iter().flat_map(|c| [1, 9, 19, 22].map(|level| (c, level)));
    let frames = frames.map(|(c, level)| [&[0][..], &zstd::bulk::compress(c, level).expect("memory")].concat());
    frames.chain([[&[39][..], &text[..]].concat()]).collect()
}
