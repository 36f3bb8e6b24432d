//! What a bundle is refused for, and by which message.

/// Keys and signatures.
mod signature;
/// Headers, values, and the way into a module.
mod tensors;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, TensorData};
use dsad::bundle::error::BundleError;
use dsad::bundle::manifest::{ComputeDtype, Golden, Manifest, MapSpec, NumberFormat, Provenance};
use dsad::bundle::signature::KeyList;
use dsad::bundle::weights::{encode_module, encode_tensor};
use dsad::bundle::{Bundle, MANIFEST, SIGNATURE, WEIGHTS};
use dsad::inspection::anomaly::Pooling;
use dsad::inspection::detect::{ClassId, Steps};
use dsad::model::network::MapWeights;
use dsad::model::profile::{ModelConfig, Profile};
use dsad::preprocess::spec::{Geometry, Normalisation, PreprocessSpec, SketchPlane};
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

fn manifest() -> Manifest {
    Manifest {
        format: 1,
        id: "washer-1".into(),
        profile: "edge-small".into(),
        classes: vec![ClassId("washer".into())],
        steps: vec![Steps(1), Steps(2)],
        model: ModelConfig::of(Profile::EdgeSmall, 1),
        preprocess: PreprocessSpec {
            width: 64,
            height: 64,
            geometry: Geometry::Stretch,
            normalisation: Normalisation::SymmetricOne,
            sketch: SketchPlane::None,
            tiles: None,
        },
        map: MapSpec {
            weights: MapWeights {
                features: 1.0,
                features_floor: 0.0,
                latent: 0.0,
                refine: 1.0,
                refine_power: 1.0,
                prototypes: 0.0,
                prototypes_floor: 0.0,
            },
            sigma: 2.5,
            pooling: Pooling::BoxMax,
        },
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
            base: None,
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
    let (key, keys) = signature::key_pair(home.path(), "station");
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
    assert_refused(&refusal(&dir, &KeyList::empty()), "too_large", &[MANIFEST, "16777216"]);
}
