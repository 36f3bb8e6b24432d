//! From a trained model to the same kind of bundle as `fit` makes.

use std::path::Path;

use anyhow::ensure;
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
    pub grid: Option<(usize, usize)>,
    /// The command line, for the record.
    pub command: String,
}

/// The grid of a model: that of its run, or the one that is asked for. A model that no run here has trained needs none.
///
/// # Errors
/// Another grid asked for than that of the run.
pub fn grid(state: Option<&State>, asked: Option<(usize, usize)>) -> anyhow::Result<(usize, usize)> {
    let trained = state.and_then(State::grid);
    ensure!(
        trained.is_none() || asked.is_none() || trained == asked,
        "--width, --height {asked:?}: the model was trained on a grid of {trained:?}"
    );
    Ok(trained.or(asked).unwrap_or(PAPER_GRID))
}

/// The paper's grid.
const PAPER_GRID: (usize, usize) = (256, 256);

/// Exports a model: lightened, stored in half precision, with thresholds from good pictures that training has not seen.
///
/// # Errors
/// A model or data that do not belong together, or what the device or the disk says.
pub fn export(request: &ExportRequest<'_>, compute: &Compute) -> anyhow::Result<(Bundle, Calibrated)> {
    let device = &compute.device;
    ensure!(!request.out.exists(), "{}: exists already; choose another --out, or remove it", request.out.display());
    let from = best(request.from)?;
    let state = State::read(&from)?;
    let (width, height) = grid(state.as_ref(), request.grid)?;
    let asked = state.as_ref().map(|state| &state.request);
    let number = |key: &str| asked.and_then(|request| request.get(key));
    let hold_out = number("hold_out").and_then(Value::as_f64).unwrap_or(0.5);
    let seed = number("seed").and_then(Value::as_u64).unwrap_or(0);
    let (sizes, network) = model::read(&from, device)?;
    let (network, light) = lighten(network, &sizes);
    let spec = model::preprocess(&light, width, height);
    let mut material = Material::read(request.data, &spec, hold_out)?;
    let found = material.fingerprint();
    match number("pictures").and_then(Value::as_str) {
        Some(trained) => ensure!(
            *trained == found,
            "{}: these are not the pictures of the run ({} instead of {}); which ones it has not seen cannot be told",
            request.data.display(),
            &found[..12],
            &trained[..12.min(trained.len())]
        ),
        None => {
            log::warn!(
                "{}: no run of `trainer train`; all good pictures set the thresholds, so give pictures that it was not trained \
                 on",
                from.display()
            );
            material.calibrate.append(&mut material.train);
            material.calibrate.append(&mut material.select);
        }
    }

    // From here on with the weights as they will be stored: what is measured is what ships.
    let weights = encode_module(&network, NumberFormat::F16, Path::new("weights"))?;
    drop(network);
    let file = TensorFile::from_bytes(weights.clone(), Path::new("weights"))?;
    let stored = file.load_into(light.init(device), NumberFormat::F32)?;
    let mut detector = detector(stored, &light, &spec, seed, device);
    let pictures = std::slice::from_ref(&material.calibrate);
    let calibrated = calibrate_bundle(&mut detector, pictures, &[], request.listed, &spec, None)?;
    per_set(&material, &calibrated);
    let licences = licences();
    let bundle = export::export(Export {
        out: request.out,
        profile: "sd15".into(),
        listed: request.listed,
        seed,
        command: request.command.clone(),
        base: None,
        notice: notice(&licences),
        licences,
        model: &light,
        spec: &spec,
        map: model::map(),
        calibrated: &calibrated,
        classes: &[],
        weights,
        golden: &material.calibrate,
        fingerprint: found,
        detector: &mut detector,
        steps: default_steps(request.listed),
    })?;
    Ok((bundle, calibrated))
}

/// Says where one threshold for all products is unfair to one of them: the paper's model knows no classes.
fn per_set(material: &Material, calibrated: &Calibrated) {
    for (entry, scores) in calibrated.calibration.entries.iter().zip(&calibrated.scores) {
        for (index, set) in material.sets.iter().enumerate() {
            let own = scores.iter().zip(&material.calibrate).filter(|(_, picture)| picture.set == index);
            let (count, over) = own.fold((0, 0), |(count, over), (score, _)| {
                (count + 1, over + usize::from(*score > 0.9 * entry.image_threshold))
            });
            if material.sets.len() > 1 && over * 10 > count {
                log::warn!(
                    "{set}, {} steps: {over} of {count} good pictures come within a tenth of the threshold, which all products \
                     share; a bundle of its own would suit it better",
                    entry.steps
                );
            }
        }
    }
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
