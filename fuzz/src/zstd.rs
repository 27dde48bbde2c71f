//! The program in a compressed image. Whoever made the image chose the frame; where Zstandard's own library unpacks it, ours does, and to the same bytes.

use donjon_abi::zstd::unpack;

/// Most that is unpacked here, bytes: more than two blocks.
const ROOM: usize = 300_000;

pub fn run(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    if how & 1 != 0 {
        // What is packed comes back.
        let frame = zstd::bulk::compress(rest, i32::from(how >> 1) % 23).expect("memory");
        let mut out = vec![0; rest.len()];
        assert_eq!(unpack(&frame, &mut out), Some(rest.len()));
        assert!(out == rest);
        return;
    }
    let mut out = vec![0xaa; ROOM];
    let ours = unpack(rest, &mut out).inspect(|len| assert!(*len <= ROOM));
    // Several frames and dictionaries are the library's alone.
    let single = zstd::zstd_safe::find_frame_compressed_size(rest) == Ok(rest.len());
    let theirs = zstd::bulk::decompress(rest, ROOM).ok().filter(|_| single && rest[4] & 3 == 0 && rest[0] == 0x28);
    if let Some(theirs) = theirs {
        // Of what was there before nothing is left.
        assert!(ours == Some(theirs.len()) && out[..theirs.len()] == theirs, "{ours:?}, not {}", theirs.len());
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
