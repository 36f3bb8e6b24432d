//! Weights: headers, values, and the way into a module.

use std::fs;
use std::path::Path;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::Device;
use dsad::bundle::manifest::NumberFormat;
use dsad::bundle::signature::KeyList;
use dsad::bundle::weights::{TensorFile, check_fit, encode_module, encode_tensor};
use dsad::bundle::{Bundle, WEIGHTS};

use super::{MAP, Tiny, assert_refused, edit_manifest, files, made, refusal, tiny};

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
    assert_refused(&TensorFile::open(&path).unwrap_err(), "tensor_header", &["2147483648", "1048576"]);
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
fn single_precision_survives_bit_for_bit() {
    let module = tiny(5);
    let bytes = encode_module(&module, NumberFormat::F32, Path::new("w")).unwrap();
    let loaded = TensorFile::from_bytes(bytes, Path::new("w")).unwrap().load_into(tiny(5), NumberFormat::F32).unwrap();
    loaded.second.weight.val().into_data().assert_eq(&module.second.weight.val().into_data(), true);
}

#[test]
fn the_same_weights_have_the_same_bytes() {
    let module = tiny(4);
    assert_eq!(files(&module), files(&module.clone()));
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
fn a_bundle_whose_weights_are_not_finite_is_refused_on_opening() {
    let (_home, dir) = made();
    let bundle = Bundle::open(&dir, &KeyList::empty()).unwrap();
    // More than is looked at together, and the last but one is infinite.
    let mut data = vec![0; 200_004];
    data[200_000..].copy_from_slice(&[0, 0x7c, 0, 0]);
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[99998],"data_offsets":[8,200004]}}"#;
    let bytes = raw(header, &data);
    fs::write(dir.join(WEIGHTS), &bytes).unwrap();
    edit_manifest(&dir, &bundle.manifest.files[WEIGHTS], blake3::hash(&bytes).to_hex().as_str());
    assert_refused(&refusal(&dir, &KeyList::empty()), "tensor_not_finite", &[WEIGHTS, "'b'", "element 99996", "inf"]);
}

#[test]
fn missing_unused_and_misshaped_tensors_are_named() {
    let device = Device::flex();
    let file = |bytes| TensorFile::from_bytes(bytes, Path::new(WEIGHTS)).unwrap();
    let bytes = encode_module(&tiny(4), NumberFormat::F16, Path::new(WEIGHTS)).unwrap();

    // From the header alone the answers are the same.
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(WEIGHTS);
    fs::write(&path, &bytes).unwrap();
    check_fit(&path, &tiny(4)).unwrap();

    let half = Half { first: LinearConfig::new(3, 4).init(&device) };
    assert_refused(&check_fit(&path, &half).unwrap_err(), "tensors_unused", &["'second.weight'", "'second.bias'"]);
    let error = file(bytes.clone()).load_into(half, NumberFormat::F32).unwrap_err();
    assert_refused(&error, "tensors_unused", &[WEIGHTS, "'second.weight'", "'second.bias'", "'model'"]);

    let Tiny { first, second } = tiny(4);
    let more = More { first, second, third: LinearConfig::new(1, 1).init(&device) };
    assert_refused(&check_fit(&path, &more).unwrap_err(), "tensors_missing", &["'third.weight'", "'third.bias'"]);
    let error = file(bytes.clone()).load_into(more, NumberFormat::F32).unwrap_err();
    assert_refused(&error, "tensors_missing", &[WEIGHTS, "'third.weight'", "'third.bias'"]);

    let error = check_fit(&path, &tiny(5)).unwrap_err();
    assert_refused(&error, "tensor_mismatch", &[WEIGHTS, "'first.bias'", "[4]", "[5]"]);
    let error = file(bytes).load_into(tiny(5), NumberFormat::F32).unwrap_err();
    assert_refused(&error, "tensor_mismatch", &[WEIGHTS, "'first.weight'", "[3, 4]", "[3, 5]"]);
}
