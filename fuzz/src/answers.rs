//! Answers of a resolver: they were asked for, but nobody vouches for what they say.

use crate::input::Input;
use donjon_os::dns::message::{Answer, Kind, is_name, parse, query};

const NAME: &str = "www.example.org";

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.u8();
    let kind = if flags & 1 == 0 { Kind::A } else { Kind::Aaaa };
    let message = if flags & 2 == 0 {
        input.rest().to_vec()
    } else {
        // The question is right, as an attacker who sees it can make it.
        let mut message = query(7, NAME, kind);
        message[2..4].copy_from_slice(&[0x81, 0x80]);
        message[6..8].copy_from_slice(&input.u16().to_be_bytes());
        message.extend_from_slice(input.rest());
        message
    };
    if let Some(Answer::Addresses(list)) = parse(&message, 7, NAME, kind) {
        assert!(list.len() <= message.len(), "{} addresses out of {} bytes", list.len(), message.len());
        assert!(list.iter().all(|ip| ip.is_ipv4() == (kind == Kind::A)));
    }
    if let Ok(text) = std::str::from_utf8(data)
        && is_name(text)
    {
        let question = query(1, text, kind);
        assert_eq!(question.len(), 12 + text.len() + 2 + 4);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let record = |name: &[u8], kind: u16, data: &[u8]| {
        let mut out = name.to_vec();
        out.extend(kind.to_be_bytes());
        out.extend([0, 1, 0, 0, 0, 60]);
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(data);
        out
    };
    let same = &[0xc0, 12][..];
    let mut whole = query(7, NAME, Kind::A);
    whole[2..4].copy_from_slice(&[0x81, 0x80]);
    vec![
        [&[2, 1, 0][..], &record(same, 1, &[1, 2, 3, 4])].concat(),
        [&[3, 1, 0][..], &record(same, 28, &[1; 16])].concat(),
        [&[2, 2, 0][..], &record(same, 5, b"\x01w\x03net\x00"), &record(b"\x01W\x03NET\x00", 1, &[5, 6, 7, 8])]
            .concat(),
        [&[0][..], &whole].concat(),
    ]
}
