//! A client of the web server: bytes on a connection, cut into pieces as the input says. Virtual time, so that time-outs come at once.

use crate::input::Input;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut pieces: Vec<&[u8]> = Vec::new();
    if input.u8() & 1 == 0 {
        pieces.push(input.rest());
    }
    while !input.is_empty() {
        let len = usize::from(input.u8());
        pieces.push(input.take(len));
    }
    donjon_web::fuzzing::serve(&pieces);
}

pub fn seeds() -> Vec<Vec<u8>> {
    let request = |text: &str| [&[0], text.replace('\n', "\r\n").as_bytes()].concat();
    vec![
        request(
            "GET / HTTP/1.1\nHost: a\n\nGET /a.txt HTTP/1.1\nHost: a\nAccept-Encoding: gzip;q=0.5, br, *;q=0\nRange: bytes=0-1,3-\n\n",
        ),
        request(
            "HEAD /dir HTTP/1.1\nHost: a\nIf-None-Match: W/\"x\", \"plain\"\nIf-Modified-Since: Fri, 14 Jul 2017 02:40:00 GMT\n\n",
        ),
        request("GET /%2e%2e/./dir//x?y HTTP/1.0\nIf-Range: \"plain\"\nRange: bytes=-5\nConnection: keep-alive\n\n"),
        request("POST /a.txt HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nExpect: 100-continue\n\n5\nhello\n0\n\n"),
        request("OPTIONS * HTTP/1.1\nHost: a\nConnection: Upgrade\nUpgrade: h2c\n\n"),
        [
            &[0][..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            b"\0\0\x0a\x01\x05\0\0\0\x01\x82\x84\x86\x41\x01a\x04\x02/a\x00",
        ]
        .concat(),
    ]
}
