//! What a bundle is refused for, and by which message.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, TensorData};
use dsad::bundle::error::BundleError;
use dsad::bundle::manifest::{ComputeDtype, Golden, Manifest, NumberFormat, Provenance};
use dsad::bundle::signature::{KeyList, PrivateKey};
use dsad::bundle::weights::{TensorFile, encode_module, encode_tensor};
use dsad::bundle::{Bundle, MANIFEST, SIGNATURE, WEIGHTS};
use dsad::inspection::detect::{ClassId, Steps};
use dsad::model::profile::{ModelConfig, Profile};
use tempfile::TempDir;

const MAP: &str = "golden/part.map.safetensors";
const PICTURE: &str = "golden/part.png";

#[derive(Module, Debug)]
struct Tiny {
    first: Linear,
    second: Linear,
}

fn tiny(width: usize) -> Tiny {
    let device = Device::flex();
    Tiny { first: LinearConfig::new(3, width).init(&device), second: LinearConfig::new(width, 2).init(&device) }
}

#[derive(Module, Debug)]
struct Half {
    first: Linear,
}

#[derive(Module, Debug)]
struct More {
    first: Linear,
    second: Linear,
    third: Linear,
}

fn manifest() -> Manifest {
    Manifest {
        format: 1,
        id: "washer-1".into(),
        profile: "edge-small".into(),
        classes: vec![ClassId("washer".into())],
        steps: vec![Steps(1), Steps(2)],
        model: ModelConfig::of(Profile::EdgeSmall, 1),
        preprocess: Default::default(),
        map: Default::default(),
        calibration: None,
        storage_dtype: NumberFormat::F16,
        compute_dtype: ComputeDtype { cpu: NumberFormat::F32, cuda: NumberFormat::F16 },
        seed: 7,
        golden: vec![Golden {
            picture: PICTURE.into(),
            map: MAP.into(),
            class: Some(ClassId("washer".into())),
            steps: Steps(2),
            score: 0.5,
            tolerance: 1e-3,
        }],
        licences: vec![],
        provenance: Provenance {
            dsad: "0.1.0".into(),
            revision: "0123456".into(),
            dataset: "none".into(),
            seed: 1,
            command: "trainer fit".into(),
            created: "2026-01-01T00:00:00Z".into(),
        },
        files: BTreeMap::new(),
    }
}

fn files(module: &Tiny) -> BTreeMap<String, Vec<u8>> {
    let weights = encode_module(module, NumberFormat::F16, Path::new(WEIGHTS)).unwrap();
    let map = encode_tensor("map", &[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], Path::new(MAP)).unwrap();
    let picture = b"not decoded here".to_vec();
    BTreeMap::from([
        (WEIGHTS.to_string(), weights),
        (MAP.to_string(), map),
        (PICTURE.to_string(), picture),
        ("LICENSES/NOTICE".to_string(), b"none".to_vec()),
    ])
}

/// A bundle in a directory of its own.
fn made() -> (TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("bundle");
    Bundle::create(&dir, manifest(), &files(&tiny(4)), false).unwrap();
    (home, dir)
}

fn key_pair(home: &Path, name: &str) -> (PrivateKey, KeyList) {
    let (private, public) = PrivateKey::generate().unwrap().write(home, name).unwrap();
    (PrivateKey::read(&private).unwrap(), KeyList::read(&[public]).unwrap())
}

fn refusal(dir: &Path, keys: &KeyList) -> BundleError {
    Bundle::open(dir, keys).expect_err("the bundle must be refused")
}

/// The code is the expected one, and the message names everything in `named`.
fn assert_refused(error: &BundleError, code: &str, named: &[&str]) {
    let message = error.to_string();
    assert_eq!(error.code(), code, "{message}");
    for word in named {
        assert!(message.contains(word), "'{word}' is not in: {message}");
    }
}

fn change(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    edit(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Changes the text of the manifest without breaking the hashes of the files.
fn edit_manifest(dir: &Path, from: &str, to: &str) {
    let path = dir.join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "'{from}' is not in the manifest");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn a_bundle_comes_back_as_it_was_written() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("bundle");
    let module = tiny(4);
    let created = Bundle::create(&dir, manifest(), &files(&module), false).unwrap();
    let opened = Bundle::open(&dir, &KeyList::empty()).unwrap();
    assert_eq!(opened.manifest, created.manifest);
    assert_eq!(opened.model_hash, blake3::hash(&fs::read(dir.join(MANIFEST)).unwrap()).to_hex().as_str());
    assert_eq!((&opened.model_hash, &opened.signed_by), (&created.model_hash, &None));
    assert_eq!(opened.manifest.files.len(), 4);
    assert_eq!(opened.read("LICENSES/NOTICE").unwrap(), b"none");

    let map = &opened.tensors(MAP).unwrap().entries().unwrap()["map"];
    assert_eq!((&map.shape[..], &map.values[..]), (&[2, 3][..], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0][..]));

    let loaded = opened.tensors(WEIGHTS).unwrap().load_into(tiny(4), NumberFormat::F32).unwrap();
    let (was, is) = (module.first.weight.val().into_data(), loaded.first.weight.val().into_data());
    assert_eq!(is.dtype(), DType::F32);
    let rounded: Vec<f32> = was.iter::<f32>().map(|value| half::f16::from_f32(value).to_f32()).collect();
    is.assert_eq(&TensorData::new(rounded, [3, 4]), true);
    let halved = opened.tensors(WEIGHTS).unwrap().load_into(tiny(4), NumberFormat::F16).unwrap();
    assert_eq!(halved.second.weight.val().dtype(), DType::F16);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "nothing is left beside the bundle");
}

#[test]
fn the_same_weights_have_the_same_bytes() {
    let module = tiny(4);
    assert_eq!(files(&module), files(&module.clone()));
}

#[test]
fn single_precision_survives_bit_for_bit() {
    let module = tiny(5);
    let bytes = encode_module(&module, NumberFormat::F32, Path::new("w")).unwrap();
    let loaded = TensorFile::from_bytes(bytes, Path::new("w")).unwrap().load_into(tiny(5), NumberFormat::F32).unwrap();
    loaded.second.weight.val().into_data().assert_eq(&module.second.weight.val().into_data(), true);
}

#[test]
fn an_existing_bundle_is_replaced_only_when_asked() {
    let (home, dir) = made();
    let before = Bundle::open(&dir, &KeyList::empty()).unwrap().model_hash;
    let error = Bundle::create(&dir, manifest(), &files(&tiny(4)), false).unwrap_err();
    assert_refused(&error, "exists", &["bundle"]);
    assert_eq!(Bundle::open(&dir, &KeyList::empty()).unwrap().model_hash, before);
    let after = Bundle::create(&dir, manifest(), &files(&tiny(6)), true).unwrap().model_hash;
    assert_ne!(after, before);
    assert_eq!(Bundle::open(&dir, &KeyList::empty()).unwrap().model_hash, after);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "nothing is left beside the bundle");
}

#[test]
fn a_bundle_that_could_not_be_opened_is_never_published() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("bundle");
    let mut broken = files(&tiny(4));
    broken.insert("more.safetensors".into(), b"xx".to_vec());
    assert_refused(
        &Bundle::create(&dir, manifest(), &broken, false).unwrap_err(),
        "tensor_header",
        &["more.safetensors"],
    );
    let mut escaping = files(&tiny(4));
    escaping.insert("../elsewhere".into(), vec![]);
    assert_refused(&Bundle::create(&dir, manifest(), &escaping, false).unwrap_err(), "path_escape", &["../elsewhere"]);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "nothing is left");
}

#[test]
fn a_flipped_byte_is_refused_in_every_file() {
    let (home, dir) = made();
    let (key, keys) = key_pair(home.path(), "station");
    let bundle = Bundle::sign(&dir, &key).unwrap();
    Bundle::open(&dir, &keys).unwrap();
    let names = bundle.manifest.files.keys().map(String::as_str).chain([MANIFEST, SIGNATURE]);
    for name in names {
        let path = dir.join(name);
        let length = fs::metadata(&path).unwrap().len() as usize;
        for position in [0, 1, length / 3, length / 2, length - 2, length - 1] {
            for bit in [0x01, 0x80] {
                change(&path, |bytes| bytes[position] ^= bit);
                for keys in [&keys, &KeyList::empty()] {
                    let error = refusal(&dir, keys);
                    assert!(error.to_string().contains(name) || name == MANIFEST, "{name}: {error}");
                }
                change(&path, |bytes| bytes[position] ^= bit);
            }
        }
    }
    Bundle::open(&dir, &keys).unwrap();
}

#[test]
fn a_changed_file_is_named_with_both_hashes() {
    let (_home, dir) = made();
    let bundle = Bundle::open(&dir, &KeyList::empty()).unwrap();
    change(&dir.join(WEIGHTS), |bytes| *bytes.last_mut().unwrap() ^= 1);
    let listed = &bundle.manifest.files[WEIGHTS];
    assert_refused(&refusal(&dir, &KeyList::empty()), "hash_mismatch", &[WEIGHTS, listed, "copy the bundle again"]);
    // The bundle was opened before the change: reading notices.
    assert_refused(&bundle.tensors(WEIGHTS).unwrap_err(), "hash_mismatch", &[WEIGHTS]);
}

#[test]
fn truncation_is_refused_in_every_file() {
    let (_home, dir) = made();
    let bundle = Bundle::open(&dir, &KeyList::empty()).unwrap();
    for name in bundle.manifest.files.keys().map(String::as_str).chain([MANIFEST]) {
        let path = dir.join(name);
        let whole = fs::read(&path).unwrap();
        for length in [0, 1, 7, whole.len() / 2, whole.len() - 2] {
            if length >= whole.len() {
                continue;
            }
            fs::write(&path, &whole[..length]).unwrap();
            assert!(refusal(&dir, &KeyList::empty()).to_string().contains(name));
        }
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn a_missing_an_unlisted_and_a_linked_file_are_refused() {
    let (_home, dir) = made();
    fs::write(dir.join("golden/extra.png"), b"x").unwrap();
    assert_refused(&refusal(&dir, &KeyList::empty()), "file_unlisted", &["golden/extra.png", "delete"]);
    fs::remove_file(dir.join("golden/extra.png")).unwrap();

    symlink("/etc/hostname", dir.join("link")).unwrap();
    assert_refused(&refusal(&dir, &KeyList::empty()), "file_kind", &["link"]);
    fs::remove_file(dir.join("link")).unwrap();

    fs::rename(dir.join(PICTURE), dir.parent().unwrap().join("picture")).unwrap();
    assert_refused(&refusal(&dir, &KeyList::empty()), "file_missing", &[PICTURE]);
    symlink(dir.parent().unwrap().join("picture"), dir.join(PICTURE)).unwrap();
    assert_refused(&refusal(&dir, &KeyList::empty()), "file_kind", &[PICTURE]);

    assert_refused(&refusal(&dir.join("nowhere"), &KeyList::empty()), "file_missing", &[MANIFEST]);
}

#[test]
fn names_that_leave_the_directory_are_refused() {
    for name in ["../x", "/etc/passwd", "golden/../../x", "golden//x", "./x", "x/", "a\\\\b", "manifest.sig", ""] {
        let (_home, dir) = made();
        edit_manifest(&dir, "\"LICENSES/NOTICE\":", &format!("\"{name}\":"));
        assert_refused(&refusal(&dir, &KeyList::empty()), "path_escape", &[MANIFEST, "files"]);
    }
}

#[test]
fn an_unknown_format_is_refused_by_its_number_whatever_else_it_holds() {
    let (_home, dir) = made();
    edit_manifest(&dir, "\"format\": 1,", "\"format\": 2, \"new_key\": true,");
    assert_refused(&refusal(&dir, &KeyList::empty()), "format_version", &[MANIFEST, "format", "2", "reads 1"]);
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused_by_key_and_value() {
    let cases = [
        ("\"seed\": 7,", "\"seed\": 7, \"sede\": 7,", vec!["sede"]),
        ("\"seed\": 7,", "", vec!["seed"]),
        ("\"seed\": 7,", "\"seed\": -7,", vec!["-7"]),
        ("\"id\": \"washer-1\"", "\"id\": \"\"", vec!["id"]),
        ("\"steps\": [\n    1,\n    2\n  ]", "\"steps\": []", vec!["steps"]),
        ("\"steps\": 2,", "\"steps\": 3,", vec!["golden", "3", "steps"]),
        ("\"class\": \"washer\"", "\"class\": \"nut\"", vec!["golden", "nut", "classes"]),
        ("\"map\": \"golden/part.map", "\"map\": \"golden/other.map", vec!["golden/other.map", "files"]),
        ("\"classes\": [\n    \"washer\"", "\"classes\": [\n    \"washer\", \"nut\"", vec!["model: classes: 1", "2"]),
        ("\"latent_scale\": 1.0", "\"latent_scale\": 0.0", vec!["model", "latent_scale 0"]),
        ("\"storage_dtype\": \"f16\"", "\"storage_dtype\": \"f64\"", vec!["f64"]),
    ];
    for (from, to, named) in cases {
        let (_home, dir) = made();
        edit_manifest(&dir, from, to);
        let error = refusal(&dir, &KeyList::empty());
        assert_refused(&error, "manifest_invalid", &named);
        assert_refused(&error, "manifest_invalid", &[MANIFEST, "export the bundle again"]);
    }
}

#[test]
fn oversized_text_files_are_refused_before_they_are_read() {
    let (_home, dir) = made();
    fs::File::create(dir.join(SIGNATURE)).unwrap().set_len(1 << 40).unwrap();
    assert_refused(&refusal(&dir, &KeyList::empty()), "too_large", &[SIGNATURE]);
    fs::File::create(dir.join(MANIFEST)).unwrap().set_len(1 << 40).unwrap();
    assert_refused(&refusal(&dir, &KeyList::empty()), "too_large", &[MANIFEST, "1048576"]);
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

/// A safetensors file with any header.
fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn lying_headers_are_refused_before_anything_is_allocated() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(WEIGHTS);
    let huge = usize::MAX;
    let length = |given: u64| [given.to_le_bytes().to_vec(), b"{}".to_vec()].concat();
    let cases = [
        (vec![], "0 bytes"),
        (vec![1; 7], "7 bytes"),
        (length(u64::MAX), "18446744073709551615"),
        (length(u64::MAX - 7), "18446744073709551608"),
        (length(1 << 40), "1099511627776"),
        (length(3), "only 2 bytes follow"),
        (raw("{", &[]), "EOF"),
        (raw("{}", &[1]), "1 bytes"),
        (raw(&"[".repeat(100_000), &[]), "invalid type"),
        (raw(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &[0; 3]), "3 bytes"),
        (raw(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &[0; 5]), "5 bytes"),
        (raw(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, &[0; 4]), "invalid shape"),
        (raw(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, &[0; 8]), "`a`"),
        (raw(r#"{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}"#, &[0; 8]), "only F16 and F32"),
        (raw(r#"{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#, &[0; 8]), "'a'"),
        (
            raw(&format!(r#"{{"a":{{"dtype":"F32","shape":[{huge},{huge}],"data_offsets":[0,4]}}}}"#), &[0; 4]),
            "overflow",
        ),
        (raw(&format!(r#"{{"a":{{"dtype":"F32","shape":[1],"data_offsets":[0,{huge}]}}}}"#), &[0; 4]), "invalid"),
    ];
    for (bytes, word) in cases {
        fs::write(&path, &bytes).unwrap();
        let error = TensorFile::open(&path).unwrap_err();
        assert_refused(&error, "tensor_header", &[WEIGHTS, word]);
        assert_refused(&TensorFile::from_bytes(bytes, &path).unwrap_err(), "tensor_header", &[WEIGHTS, word]);
    }
    // A sparse file of 1 TiB whose header claims most of it.
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert_refused(&TensorFile::open(&path).unwrap_err(), "too_large", &[WEIGHTS]);
    let file = fs::File::create(&path).unwrap();
    std::io::Write::write_all(&mut &file, &(1u64 << 31).to_le_bytes()).unwrap();
    file.set_len(3 << 30).unwrap();
    assert_refused(&TensorFile::open(&path).unwrap_err(), "tensor_header", &["2147483648", "16777216"]);
}

#[test]
fn a_bundle_with_a_lying_header_and_the_right_hash_is_refused() {
    let (_home, dir) = made();
    let bundle = Bundle::open(&dir, &KeyList::empty()).unwrap();
    let lying = length_lie();
    fs::write(dir.join(WEIGHTS), &lying).unwrap();
    edit_manifest(&dir, &bundle.manifest.files[WEIGHTS], blake3::hash(&lying).to_hex().as_str());
    assert_refused(&refusal(&dir, &KeyList::empty()), "tensor_header", &[WEIGHTS]);
}

fn length_lie() -> Vec<u8> {
    [u64::MAX.to_le_bytes().to_vec(), b"{}".to_vec()].concat()
}

#[test]
fn weights_that_are_not_finite_are_refused_by_tensor_and_index() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = encode_tensor("map", &[3], &[0.0, 1.0, value], Path::new(MAP)).unwrap_err();
        assert_refused(&error, "tensor_not_finite", &[MAP, "'map'", "element 2", &value.to_string()]);
    }
    let header = r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#;
    let error = TensorFile::from_bytes(raw(header, &[0, 0, 0, 0x7e]), Path::new(WEIGHTS)).unwrap_err();
    assert_refused(&error, "tensor_not_finite", &[WEIGHTS, "'a'", "element 1", "NaN"]);
    // 1e6 is a fine f32 and an infinite f16.
    let mut module = tiny(4);
    module.first.weight = module.first.weight.map(|weight| weight.full_like(1e6));
    encode_module(&module, NumberFormat::F32, Path::new(WEIGHTS)).unwrap();
    let error = encode_module(&module, NumberFormat::F16, Path::new(WEIGHTS)).unwrap_err();
    assert_refused(&error, "tensor_not_finite", &["'first.weight'", "inf"]);
}

#[test]
fn missing_unused_and_misshaped_tensors_are_named() {
    let device = Device::flex();
    let file = |bytes| TensorFile::from_bytes(bytes, Path::new(WEIGHTS)).unwrap();
    let bytes = encode_module(&tiny(4), NumberFormat::F16, Path::new(WEIGHTS)).unwrap();

    let half = Half { first: LinearConfig::new(3, 4).init(&device) };
    let error = file(bytes.clone()).load_into(half, NumberFormat::F32).unwrap_err();
    assert_refused(&error, "tensors_unused", &[WEIGHTS, "'second.weight'", "'second.bias'", "'model'"]);

    let Tiny { first, second } = tiny(4);
    let more = More { first, second, third: LinearConfig::new(1, 1).init(&device) };
    let error = file(bytes.clone()).load_into(more, NumberFormat::F32).unwrap_err();
    assert_refused(&error, "tensors_missing", &[WEIGHTS, "'third.weight'", "'third.bias'"]);

    let error = file(bytes).load_into(tiny(5), NumberFormat::F32).unwrap_err();
    assert_refused(&error, "tensor_mismatch", &[WEIGHTS, "'first.weight'", "[3, 4]", "[3, 5]"]);
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
