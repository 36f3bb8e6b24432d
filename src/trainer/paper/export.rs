//! From a trained model to the same kind of bundle as `fit` makes.

use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::data::Material;
use super::model;
use super::run::{State, best};
use super::validate::detector;
use crate::bundle::Bundle;
use crate::bundle::manifest::{Licence, NumberFormat};
use crate::bundle::weights::{TensorFile, encode_module};
use crate::device::Compute;
use crate::inspection::detect::Steps;
use crate::model::lighten::lighten;
use crate::trainer::calibrate::{Calibrated, calibrate_bundle};
use crate::trainer::export::{self, Export};
use crate::trainer::fit::default_steps;

/// What an export is asked for.
#[derive(Debug, Clone)]
pub struct ExportRequest<'a> {
    /// A run, a checkpoint of one, or a model.
    pub from: &'a Path,
    /// The data set of the run.
    pub data: &'a Path,
    /// The bundle's directory.
    pub out: &'a Path,
    /// Step counts that the bundle lists and calibrates.
    pub listed: &'a [Steps],
    /// Columns and rows of the model grid, for a model that no run here has trained.
    pub grid: (usize, usize),
    /// The command line, for the record.
    pub command: String,
}

/// What decides the division of the pictures, as the state of a run records it.
struct Division {
    seed: u64,
    hold_out: f64,
    grid: (usize, usize),
    pictures: Option<String>,
}

impl Division {
    fn of(request: &Value) -> Option<Self> {
        let number = |key: &str| request.get(key)?.as_u64();
        Some(Self {
            seed: number("seed")?,
            hold_out: request.get("hold_out")?.as_f64()?,
            grid: (number("width")? as usize, number("height")? as usize),
            pictures: Some(request.get("pictures")?.as_str()?.to_owned()),
        })
    }
}

/// Exports a model: lightened, stored in half precision, with thresholds from good pictures that training has not seen.
///
/// # Errors
/// A model or data that do not belong together, or what the device or the disk says.
pub fn export(request: &ExportRequest<'_>, compute: &Compute) -> anyhow::Result<(Bundle, Calibrated)> {
    let device = &compute.device;
    let from = best(request.from)?;
    let state = State::read(&from)?;
    let division = match &state {
        Some(state) => {
            Division::of(&state.request).with_context(|| format!("{}: its state is of no training", from.display()))?
        }
        None => {
            log::warn!(
                "{}: no run of `trainer train`; every good picture sets the thresholds, so give pictures that it was not \
                 trained on",
                from.display()
            );
            Division { seed: 0, hold_out: 1.0, grid: request.grid, pictures: None }
        }
    };
    let (sizes, network) = model::read(&from, device)?;
    let (network, light) = lighten(network, &sizes);
    let spec = model::preprocess(&light, division.grid.0, division.grid.1);
    let mut material = Material::read(request.data, &spec, division.hold_out.min(0.999), division.seed)?;
    let found = material.fingerprint();
    if let Some(trained) = &division.pictures {
        ensure!(
            *trained == found,
            "{}: these are not the pictures of the run ({} instead of {}); which ones it has not seen cannot be told",
            request.data.display(),
            &found[..12],
            &trained[..12.min(trained.len())]
        );
    } else {
        material.held.append(&mut material.train);
    }

    // From here on with the weights as they will be stored: what is measured is what ships.
    let weights = encode_module(&network, NumberFormat::F16, Path::new("weights"))?;
    drop(network);
    let file = TensorFile::from_bytes(weights.clone(), Path::new("weights"))?;
    let stored = file.load_into(light.init(device), NumberFormat::F32)?;
    let mut detector = detector(stored, &light, &spec, division.seed, device);
    let held = std::slice::from_ref(&material.held);
    let calibrated = calibrate_bundle(&mut detector, held, &[], request.listed, &spec)?;
    let licences = licences();
    let bundle = export::export(Export {
        out: request.out,
        profile: "sd15".into(),
        listed: request.listed,
        seed: division.seed,
        command: request.command.clone(),
        notice: notice(&licences),
        licences,
        model: &light,
        spec: &spec,
        map: model::map(),
        calibrated: &calibrated,
        classes: &[],
        weights,
        golden: &material.held,
        fingerprint: found,
        detector: &mut detector,
        steps: default_steps(request.listed),
    })?;
    Ok((bundle, calibrated))
}

/// What the public checkpoints are licensed under. Which files were read is the user's choice, so no hash is stated.
fn licences() -> Vec<Licence> {
    let row = |name: &str, spdx: &str, origin: &str| Licence {
        name: name.into(),
        spdx: spdx.into(),
        origin: origin.into(),
        sha256: String::new(),
    };
    vec![
        row(
            "Stable Diffusion v1.5: denoiser, autoencoder and text context, as the starting point of training",
            "LicenseRef-CreativeML-OpenRAIL-M",
            "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
        ),
        row(
            "ResNet50 to stride 16, BatchNorm folded",
            "Apache-2.0",
            "timm resnet50.a1_in1k, or torchvision (BSD-3-Clause)",
        ),
    ]
}

fn notice(licences: &[Licence]) -> String {
    let rows = licences.iter().map(|row| format!("{}\nLicence: {}\nOrigin: {}\n", row.name, row.spdx, row.origin));
    rows.collect::<Vec<_>>().join("\n")
}
