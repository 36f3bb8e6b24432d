//! Keys and signatures.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dsad::bundle::signature::{KeyList, PrivateKey};
use dsad::bundle::{Bundle, MANIFEST, SIGNATURE};

use super::{PICTURE, assert_refused, change, made, refusal};

pub fn key_pair(home: &Path, name: &str) -> (PrivateKey, KeyList) {
    let (private, public) = PrivateKey::generate().unwrap().write(home, name).unwrap();
    (PrivateKey::read(&private).unwrap(), KeyList::read(&[public]).unwrap())
}

#[test]
fn unsigned_bundles_are_refused_once_keys_are_listed() {
    let (home, dir) = made();
    let (key, keys) = key_pair(home.path(), "station");
    assert_refused(&refusal(&dir, &keys), "unsigned", &[SIGNATURE, "trainer sign"]);
    Bundle::sign(&dir, &key).unwrap();
    assert_eq!(Bundle::open(&dir, &keys).unwrap().signed_by, Some(key.public_hex()));
    assert_eq!(Bundle::open(&dir, &KeyList::empty()).unwrap().signed_by, Some(key.public_hex()));
}

#[test]
fn wrong_signatures_are_refused_with_and_without_keys() {
    let (home, dir) = made();
    let (key, keys) = key_pair(home.path(), "station");
    let (stranger, _) = key_pair(home.path(), "stranger");
    Bundle::sign(&dir, &stranger).unwrap();
    assert_refused(&refusal(&dir, &keys), "signature_invalid", &[SIGNATURE, &stranger.public_hex(), "station's keys"]);

    // The right key over another manifest.
    let other = key.sign(b"another manifest").to_line();
    fs::write(dir.join(SIGNATURE), &other).unwrap();
    for keys in [&keys, &KeyList::empty()] {
        assert_refused(&refusal(&dir, keys), "signature_invalid", &[SIGNATURE, "does not belong"]);
    }
    // A listed key's name on a stranger's signature.
    let forged = stranger.sign(&fs::read(dir.join(MANIFEST)).unwrap()).to_line();
    fs::write(dir.join(SIGNATURE), forged.replace(&stranger.public_hex(), &key.public_hex())).unwrap();
    assert_refused(&refusal(&dir, &keys), "signature_invalid", &["does not belong"]);
    // No signature at all inside the file.
    for text in ["", "\n", "dsad-ed25519-signature\n", &other.to_uppercase(), other.trim_end()] {
        fs::write(dir.join(SIGNATURE), text).unwrap();
        assert_refused(&refusal(&dir, &KeyList::empty()), "signature_invalid", &[SIGNATURE]);
    }
    // Signing again is the remedy.
    Bundle::sign(&dir, &key).unwrap();
    Bundle::open(&dir, &keys).unwrap();
}

#[test]
fn a_changed_bundle_cannot_be_signed() {
    let (home, dir) = made();
    let (key, _) = key_pair(home.path(), "station");
    change(&dir.join(PICTURE), |bytes| bytes[0] ^= 1);
    assert_refused(&Bundle::sign(&dir, &key).unwrap_err(), "hash_mismatch", &[PICTURE]);
    assert!(!dir.join(SIGNATURE).exists());
}

#[test]
fn keys_are_private_never_overwritten_and_never_silently_absent() {
    let home = tempfile::tempdir().unwrap();
    let (private, public) = PrivateKey::generate().unwrap().write(home.path(), "a").unwrap();
    assert_eq!(fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o600);
    let again = PrivateKey::generate().unwrap().write(home.path(), "a").unwrap_err();
    assert_refused(&again, "exists", &["a.pub"]);
    fs::set_permissions(&private, fs::Permissions::from_mode(0o640)).unwrap();
    let open = PrivateKey::read(&private).err().expect("others can read it");
    assert_refused(&open, "key_invalid", &["a.key", "640", "chmod 600"]);

    assert!(!KeyList::read(&[home.path().into()]).unwrap().is_empty());
    let private_as_public = KeyList::read(std::slice::from_ref(&private)).unwrap_err();
    assert_refused(&private_as_public, "key_invalid", &["a.key", "dsad-ed25519"]);
    fs::remove_file(&public).unwrap();
    assert_refused(&KeyList::read(&[home.path().into()]).unwrap_err(), "key_invalid", &["no *.pub file"]);
    assert_refused(&KeyList::read(&[public]).unwrap_err(), "file_missing", &["a.pub"]);
    // The neutral point verifies signatures that nobody made.
    let weak = home.path().join("weak.pub");
    fs::write(&weak, format!("dsad-ed25519 01{} weak\n", "00".repeat(31))).unwrap();
    assert_refused(&KeyList::read(&[weak]).unwrap_err(), "key_invalid", &["weak.pub"]);
}

#[cfg(feature = "train")]
#[test]
fn the_verbs_make_a_pair_and_sign_with_it() {
    use dsad::trainer::commands::{keygen, sign};
    let (home, dir) = made();
    let pair = keygen::KeygenArgs { out: home.path().join("keys"), name: "plant-1".into() };
    keygen::run(&pair).unwrap();
    let key = home.path().join("keys/plant-1.key");
    sign::run(&sign::SignArgs { bundle: dir.clone(), key: key.clone() }).unwrap();
    let opened = Bundle::open(&dir, &KeyList::read(&[home.path().join("keys")]).unwrap()).unwrap();
    assert_eq!(opened.signed_by, Some(PrivateKey::read(&key).unwrap().public_hex()));

    assert!(keygen::run(&pair).unwrap_err().to_string().contains("exists"));
    let escaping = keygen::KeygenArgs { out: home.path().into(), name: "../plant".into() };
    assert!(keygen::run(&escaping).unwrap_err().to_string().contains("../plant"));
}
