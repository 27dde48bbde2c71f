//! Uses crates that bring C and assembly, and checks their results against published vectors.

use ring::rand::SecureRandom;
use ring::{aead, agreement, digest, hmac, rand, signature};
use signature::KeyPair;

unsafe extern "C" {
    fn smash(len: usize);
    fn fortified_2(what: *const std::ffi::c_char, len: usize) -> std::ffi::c_int;
    fn fortified_3(what: *const std::ffi::c_char, len: usize) -> std::ffi::c_int;
}

/// Writes `len` bytes to a target of 16, with a function that knows its size.
fn fortified(level: &str, what: &str, len: &str) {
    let what = std::ffi::CString::new(what).expect("a name");
    let call = if level == "2" { fortified_2 } else { fortified_3 };
    let first = unsafe { call(what.as_ptr(), len.parse().expect("a number")) };
    println!("returned {first}");
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [level, what, len] = &args[..] {
        return fortified(level, what, len);
    }
    // A function of C that writes past its buffer does not return.
    if let [len] = &args[..] {
        unsafe { smash(len.parse().expect("a number")) };
        println!("FAILURE: returned from a smashed stack");
        return;
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    // FIPS 180-4, the example "abc".
    assert_eq!(
        hex(digest::digest(&digest::SHA256, b"abc").as_ref()),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    // RFC 4231, test case 2.
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"Jefe");
    assert_eq!(
        hex(hmac::sign(&key, b"what do ya want for nothing?").as_ref()),
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    );
    let random = rand::SystemRandom::new();
    let (mut a, mut b) = ([0; 64], [0; 64]);
    random.fill(&mut a).expect("random");
    random.fill(&mut b).expect("random");
    assert!(a != b && a.iter().any(|x| *x != 0));

    let key = aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_256_GCM, &a[..32]).expect("key"));
    let nonce = || aead::Nonce::assume_unique_for_key([1; 12]);
    let mut text = b"a secret".to_vec();
    key.seal_in_place_append_tag(nonce(), aead::Aad::empty(), &mut text).expect("seal");
    assert_eq!(key.open_in_place(nonce(), aead::Aad::empty(), &mut text).expect("open"), b"a secret");

    let mine = agreement::EphemeralPrivateKey::generate(&agreement::X25519, &random).expect("x25519");
    let other = agreement::EphemeralPrivateKey::generate(&agreement::X25519, &random).expect("x25519");
    let public = agreement::UnparsedPublicKey::new(&agreement::X25519, other.compute_public_key().expect("public"));
    agreement::agree_ephemeral(mine, &public, |_| ()).expect("agree");
    let document = signature::Ed25519KeyPair::generate_pkcs8(&random).expect("key pair");
    let pair = signature::Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("key pair");
    let signed = pair.sign(b"text");
    signature::UnparsedPublicKey::new(&signature::ED25519, pair.public_key().as_ref())
        .verify(b"text", signed.as_ref())
        .expect("verify");

    let input: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    for level in [1, 3, 9] {
        let packed = zstd::encode_all(&input[..], level).expect("compress");
        assert!(packed.len() < input.len());
        assert!(zstd::decode_all(&packed[..]).expect("decompress") == input, "level {level}");
    }
    println!("PASS native-code");
}
