//! The warm start: networks that know pictures in general, for `fit` to start from. `trainer pretrain` makes the file.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use burn::module::Module;
use serde::{Deserialize, Serialize};

use super::backbone;
use crate::bundle::manifest::NumberFormat;
use crate::bundle::weights::{TensorFile, encode_parts};
use crate::model::network::Network;
use crate::model::profile::Profile;

/// What may be in the file, and the fields of the network that belong to it: what one stage trains stays together.
const PARTS: [(&str, &[&str]); 3] =
    [("autoencoder", &["autoencoder"]), ("denoiser", &["denoiser", "guidance"]), ("refine", &["repair", "refine"])];

/// Names of the parts.
pub const PART_NAMES: [&str; 3] = [PARTS[0].0, PARTS[1].0, PARTS[2].0];

/// How a base was made; it is written beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseRecord {
    /// The size.
    pub profile: Profile,
    /// The parts.
    pub parts: Vec<String>,
    /// Version of dsad.
    pub dsad: String,
    /// Seed of everything.
    pub seed: u64,
    /// The command line.
    pub command: String,
    /// Steps per stage.
    pub steps: Vec<usize>,
}

/// A base file.
#[derive(Debug)]
pub struct Base {
    file: TensorFile,
    path: PathBuf,
    /// blake3 of the file, in hex.
    pub hash: String,
    /// How it was made.
    pub record: BaseRecord,
}

impl Base {
    /// Reads a base for `profile`.
    ///
    /// # Errors
    /// A file that cannot be read, that is no base, or that is another profile's.
    pub fn open(path: &Path, profile: Profile) -> anyhow::Result<Self> {
        let remedy = || format!("--base {}: cannot be used; `--base none` starts from fresh weights", path.display());
        let bytes = std::fs::read(path).with_context(remedy)?;
        let hash = blake3::hash(&bytes).to_hex().to_string();
        let file = TensorFile::from_bytes(bytes, path).with_context(remedy)?;
        let note = file.note().context("it has no record of `trainer pretrain`").with_context(remedy)?;
        let record: BaseRecord = serde_json::from_str(&note).context("its record").with_context(remedy)?;
        ensure!(
            record.profile == profile,
            "--base {}: is for the profile {}, not {profile}; name that profile's base, or start from fresh weights with \
             `--base none`",
            path.display(),
            record.profile
        );
        Ok(Self { file, path: path.into(), hash, record })
    }

    /// Puts the base's parts over those of a network. Its classes all start as the base's null class. Repair or a refine
    /// head that the network lacks is left away; denoiser and guidance were trained together and are taken together, or not at all.
    ///
    /// # Errors
    /// A tensor that the network does not know, or of another shape.
    pub fn apply(&self, mut network: Network, classes: usize) -> anyhow::Result<Network> {
        let with = |network: &mut Network, classes| {
            network.guidance = network.guidance.take().map(|guidance| guidance.with_classes(classes));
        };
        with(&mut network, 0);
        let mut file = self.file.clone();
        for (field, missing) in [("repair", network.repair.is_none()), ("refine", network.refine.is_none())] {
            if missing {
                file = file.without(field)?;
            }
        }
        let mut network = file.load_over(network, NumberFormat::F32).with_context(|| {
            format!(
                "--base {}: was made by dsad {} for other networks, or for parts that the configuration switches off; make it \
                 again with `trainer pretrain` and the same --config, or start from fresh weights with `--base none`",
                self.path.display(),
                self.record.dsad
            )
        })?;
        with(&mut network, classes);
        Ok(network.valid())
    }
}

/// The base file's bytes: the parts that its record names, in half precision.
///
/// # Errors
/// A value that half precision cannot hold.
pub fn encode(network: &Network, record: &BaseRecord, path: &Path) -> anyhow::Result<Vec<u8>> {
    let named = PARTS.iter().filter(|(name, _)| record.parts.iter().any(|part| part == name));
    let fields: Vec<&str> = named.flat_map(|(_, fields)| *fields).copied().collect();
    Ok(encode_parts(network, &fields, &serde_json::to_string(record)?, NumberFormat::F16, path)?)
}

/// The base that ships for a profile, if one does.
pub fn default_path(profile: Profile) -> Option<PathBuf> {
    backbone::shipped(&place(profile))
}

/// Where the base of a profile ships.
pub fn place(profile: Profile) -> String {
    format!("configs/base/{profile}.safetensors")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use burn::tensor::Device;

    use super::*;
    use crate::bundle::weights::{TensorEntry, encode_module};
    use crate::model::profile::ModelConfig;
    use crate::trainer::config::TrainConfig;

    fn record(profile: Profile, parts: &[&str]) -> BaseRecord {
        BaseRecord {
            profile,
            parts: parts.iter().map(|part| (*part).to_owned()).collect(),
            dsad: "0".into(),
            seed: 0,
            command: String::new(),
            steps: vec![1, 2, 3],
        }
    }

    fn tensors(network: &Network) -> BTreeMap<String, TensorEntry> {
        let bytes = encode_module(network, NumberFormat::F16, Path::new("network")).expect("encodes");
        TensorFile::from_bytes(bytes, Path::new("network")).expect("is whole").entries().expect("parses")
    }

    #[test]
    fn a_network_starts_as_its_base_and_keeps_what_the_base_lacks() {
        let device = Device::flex();
        let made = ModelConfig::of(Profile::EdgeSmall, 0).init(&device);
        let home = tempfile::tempdir().expect("directory");
        let path = home.path().join("base.safetensors");
        for parts in [&PART_NAMES[..], &["autoencoder", "refine"]] {
            let known = record(Profile::EdgeSmall, parts);
            std::fs::write(&path, encode(&made, &known, &path).expect("encodes")).expect("writes");
            let base = Base::open(&path, Profile::EdgeSmall).expect("opens");
            assert_eq!(base.record, known);
            let fresh = ModelConfig::of(Profile::EdgeSmall, 2).init(&device);
            let started = tensors(&base.apply(fresh.clone(), 2).expect("fits"));
            let (made, fresh) = (tensors(&made), tensors(&fresh));
            let mut taken = 0;
            for (name, entry) in &started {
                let field = name.split('.').next().expect("a field");
                let held = match field {
                    "guidance" => parts.contains(&"denoiser"),
                    "repair" => parts.contains(&"refine"),
                    field => parts.contains(&field),
                };
                taken += usize::from(held);
                let from = if held && name != "guidance.classes.weight" { &made[name] } else { &fresh[name] };
                assert_eq!(entry, from, "{name}");
            }
            assert_eq!(taken, base.file.entries().expect("parses").len());
        }
    }

    #[test]
    fn parts_that_are_switched_off_leave_the_base_or_are_refused() {
        let device = Device::flex();
        let home = tempfile::tempdir().expect("directory");
        let path = home.path().join("base.safetensors");
        let made = ModelConfig::of(Profile::EdgeSmall, 0).init(&device);
        let known = record(Profile::EdgeSmall, &PART_NAMES);
        std::fs::write(&path, encode(&made, &known, &path).expect("encodes")).expect("writes");
        let base = Base::open(&path, Profile::EdgeSmall).expect("opens");
        let without = |key: &str| {
            let off = toml::Table::from_iter([(key.to_owned(), false.into())]);
            let config = TrainConfig::with(Profile::EdgeSmall, &off).expect("fits");
            base.apply(config.model(Profile::EdgeSmall, 0).init(&device), 0)
        };
        for key in ["repair", "refine", "prototypes"] {
            let started = tensors(&without(key).expect("fits all the same"));
            for part in ["repair", "refine"] {
                assert!(started.keys().any(|name| name.starts_with(part)) == (key != part), "{key}");
            }
            let (name, entry) = started.iter().find(|(name, _)| name.starts_with("denoiser.")).expect("a denoiser");
            assert_eq!(*entry, tensors(&made)[name], "{key}");
        }
        for key in ["semantic", "sketch", "multi_scale"] {
            let error = format!("{:#}", without(key).expect_err("is refused"));
            assert!(error.contains("switches off") && error.contains("--base none"), "{key}: {error}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named_with_a_remedy() {
        let device = Device::flex();
        let home = tempfile::tempdir().expect("directory");
        let path = home.path().join("base.safetensors");
        let refused = |path: &Path| format!("{:#}", Base::open(path, Profile::Edge).expect_err("is refused"));
        assert!(refused(&path).contains("--base none"), "{}", refused(&path));
        let small = ModelConfig::of(Profile::EdgeSmall, 0).init(&device);
        std::fs::write(&path, encode_module(&small.refine, NumberFormat::F16, &path).expect("encodes"))
            .expect("writes");
        assert!(refused(&path).contains("no record of `trainer pretrain`"), "{}", refused(&path));
        let write = |profile| {
            let known = record(profile, &["refine"]);
            std::fs::write(&path, encode(&small, &known, &path).expect("encodes")).expect("writes");
        };
        write(Profile::EdgeSmall);
        assert!(refused(&path).contains("is for the profile edge-small, not edge"), "{}", refused(&path));
        write(Profile::Edge);
        let base = Base::open(&path, Profile::Edge).expect("says that it is for edge");
        let error = base.apply(ModelConfig::of(Profile::Edge, 0).init(&device), 0).expect_err("has other sizes");
        let error = format!("{error:#}");
        assert!(error.contains("repair.") && error.contains("--base none") && error.contains("shape"), "{error}");
    }
}
