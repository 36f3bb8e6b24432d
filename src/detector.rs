//! The detector of a bundle: prepared frames in, maps and scores out. The only place where tensors meet frames.
//!
//! `trainer test` and the daemon both use it, so a good test result says something about the daemon.

use std::sync::Arc;

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::bundle::error::BundleError;
use crate::bundle::manifest::{Golden, MapSpec, NumberFormat};
use crate::bundle::{Bundle, WEIGHTS};
use crate::config::device::DeviceChoice;
use crate::device::Compute;
use crate::inspection::anomaly::{AnomalyMap, gaussian_blur};
use crate::inspection::detect::{
    ClassId, Detection, Detector, DetectorError, Gate, Plan, Reconstruction, StepPlan, Steps,
};
use crate::inspection::frame::{FrameMeta, Prepared};
use crate::inspection::roi::Roi;
use crate::inspection::time::{Clock, Timestamp};
use crate::model::network::{Components, Network, Reconstructed};
use crate::model::profile::ModelConfig;
use crate::preprocess::spec::{Normalisation, PreprocessSpec};
use crate::preprocess::{decode, prepare, to_rgb};

/// Why a detector could not be made from a bundle.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file of the bundle is not what it should be.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The network's sizes contradict each other.
    #[error("{bundle}: manifest.json: model: {reason}; make the bundle again with `trainer fit`")]
    Model {
        /// The bundle's directory.
        bundle: String,
        /// What is wrong.
        reason: String,
    },
    /// The golden picture did not give its map.
    #[error(
        "{bundle}: self-test with '{picture}' failed on {device}: {reason}; do not use this device with this bundle"
    )]
    SelfTest {
        /// The bundle's directory.
        bundle: String,
        /// The golden picture.
        picture: String,
        /// Where it ran.
        device: DeviceChoice,
        /// Which value differed by how much.
        reason: String,
    },
}

/// What the detector takes from a manifest.
#[derive(Debug, Clone)]
pub struct DetectorSpec {
    /// Classes in the order of their embeddings.
    pub classes: Vec<ClassId>,
    /// Weights, smoothing and pooling of the map.
    pub map: MapSpec,
    /// Seed of the noise.
    pub seed: u64,
    /// Latent channels, for the noise.
    pub latent_channels: usize,
    /// Range of the pictures.
    pub normalisation: Normalisation,
}

/// A network on a device, ready to judge.
pub struct DiffusionDetector {
    network: Network,
    spec: DetectorSpec,
    device: Device,
    dtype: FloatDType,
    clock: Arc<dyn Clock>,
}

impl DiffusionDetector {
    /// Loads a bundle's weights onto a device.
    ///
    /// # Errors
    /// Missing, unused, mis-shaped or non-finite tensors, or sizes that contradict each other.
    pub fn load(bundle: &Bundle, compute: &Compute, clock: Arc<dyn Clock>) -> Result<Self, LoadError> {
        let manifest = &bundle.manifest;
        let config: &ModelConfig = &manifest.model;
        if let Some(reason) = config.problem() {
            return Err(LoadError::Model { bundle: bundle.dir.display().to_string(), reason });
        }
        let format = match compute.choice {
            DeviceChoice::Cpu => manifest.compute_dtype.cpu,
            DeviceChoice::Cuda(_) => manifest.compute_dtype.cuda,
        };
        let network = bundle.tensors(WEIGHTS)?.load_into(config.init(&compute.device), format)?;
        let spec = DetectorSpec {
            classes: manifest.classes.clone(),
            map: manifest.map,
            seed: manifest.seed,
            latent_channels: config.autoencoder.latent_channels,
            normalisation: manifest.preprocess.normalisation,
        };
        Ok(Self::new(network, spec, &compute.device, format, clock))
    }

    /// A detector around a network that is already on its device, in the number format `format`.
    pub fn new(
        network: Network,
        spec: DetectorSpec,
        device: &Device,
        format: NumberFormat,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let dtype = match format {
            NumberFormat::F16 => FloatDType::F16,
            NumberFormat::F32 => FloatDType::F32,
        };
        Self { network, spec, device: device.clone(), dtype, clock }
    }

    /// The number format it computes in, as events name it.
    pub fn dtype(&self) -> &'static str {
        if self.dtype == FloatDType::F16 { "f16" } else { "f32" }
    }

    /// Judges the bundle's golden pictures and compares with the maps in the bundle.
    ///
    /// # Errors
    /// A map or a score that differs by more than the stated tolerance.
    pub fn self_test(&mut self, bundle: &Bundle, device: DeviceChoice) -> Result<(), LoadError> {
        for golden in &bundle.manifest.golden {
            let fail = |reason: String| LoadError::SelfTest {
                bundle: bundle.dir.display().to_string(),
                picture: golden.picture.clone(),
                device,
                reason,
            };
            let expected = bundle.tensors(&golden.map)?.entries()?;
            let expected = expected.get("map").ok_or_else(|| fail("the expected map has no tensor 'map'".into()))?;
            let picture = bundle.read(&golden.picture)?;
            let prepared = prepare_picture(&picture, &bundle.manifest.preprocess).map_err(&fail)?;
            let plan = Plan { steps: StepPlan::Fixed(golden.steps), class: golden.class.clone() };
            let detections = self.detect(std::slice::from_ref(&prepared), &plan).map_err(|e| fail(e.to_string()))?;
            compare(&detections[0], &expected.values, golden).map_err(fail)?;
        }
        Ok(())
    }

    fn class_index(&self, class: Option<&ClassId>) -> Result<usize, DetectorError> {
        let Some(class) = class else { return Ok(0) };
        let index = self.spec.classes.iter().position(|known| known == class);
        index.map(|index| index + 1).ok_or_else(|| {
            let known: Vec<&str> = self.spec.classes.iter().map(|class| class.0.as_str()).collect();
            DetectorError(format!("class '{}' is not known to the bundle (it knows: {})", class.0, known.join(", ")))
        })
    }

    /// One noise per frame from the bundle's seed alone, so that a frame judged twice, or in another batch, gets the same.
    fn noise(&self, batch: usize, height: usize, width: usize) -> Option<Tensor<4>> {
        if !self.network.sampler().needs_noise() {
            return None;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.spec.seed);
        let shape = [1, self.spec.latent_channels, height / 8, width / 8];
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| StandardNormal.sample(&mut rng)).collect();
        Some(self.upload(values, shape).repeat_dim(0, batch))
    }

    fn upload(&self, values: Vec<f32>, shape: [usize; 4]) -> Tensor<4> {
        Tensor::<4>::from_data(TensorData::new(values, shape), (&self.device, DType::F32)).cast(self.dtype)
    }
}

impl Detector for DiffusionDetector {
    fn detect(&mut self, batch: &[Prepared], plan: &Plan) -> Result<Vec<Detection>, DetectorError> {
        let started = self.clock.now();
        let class = self.class_index(plan.class.as_ref())?;
        let all: Vec<&Prepared> = batch.iter().collect();
        let gates = match &plan.steps {
            StepPlan::Fixed(steps) => return self.run(&all, *steps, class, started),
            StepPlan::Auto(gates) => gates,
        };
        let mut found: Vec<Option<Detection>> = vec![None; batch.len()];
        for gate in gates {
            let open: Vec<usize> =
                (0..batch.len()).filter(|&i| found[i].as_ref().is_none_or(|seen| !is_clear(seen, gates))).collect();
            let frames: Vec<&Prepared> = open.iter().map(|&i| &batch[i]).collect();
            for (index, detection) in open.into_iter().zip(self.run(&frames, gate.steps, class, started)?) {
                found[index] = Some(detection);
            }
        }
        let found: Option<Vec<Detection>> = found.into_iter().collect();
        found.ok_or_else(|| DetectorError("auto steps: no step count is calibrated for this class".into()))
    }
}

/// Whether the thresholds of the steps that ran leave no doubt.
fn is_clear(detection: &Detection, gates: &[Gate]) -> bool {
    gates.iter().any(|gate| gate.steps == detection.steps && gate.is_clear(detection))
}

/// What lies behind an anomaly map.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The picture through the autoencoder alone, `height * width * 3` bytes RGB.
    pub autoencoded: Vec<u8>,
    /// The guided reconstruction, likewise.
    pub reconstruction: Vec<u8>,
    /// The map before smoothing.
    pub differences: AnomalyMap,
}

impl DiffusionDetector {
    /// What lies behind the map of one frame: runs the network once more.
    ///
    /// # Errors
    /// As [`Detector::detect`].
    pub fn explain(&self, prepared: &Prepared, plan: &Plan) -> Result<Explanation, DetectorError> {
        let class = self.class_index(plan.class.as_ref())?;
        let steps = match &plan.steps {
            StepPlan::Fixed(steps) => *steps,
            StepPlan::Auto(gates) => gates.last().map_or(Steps(1), |gate| gate.steps),
        };
        let (reconstructed, components) = self.redraw(&[prepared], steps, class)?;
        let map = components.combine(&self.spec.map.weights);
        let autoencoded = self.network.decode(reconstructed.seen_latent);
        let read = |tensor: Tensor<4>| {
            let values = tensor.cast(FloatDType::F32).try_into_vec_as::<f32>();
            values.map_err(|error| DetectorError(format!("the device gave no answer: {error}")))
        };
        let (width, height) = (prepared.width, prepared.height);
        Ok(Explanation {
            autoencoded: to_rgb(&read(autoencoded)?, self.spec.normalisation),
            reconstruction: to_rgb(&read(reconstructed.image)?, self.spec.normalisation),
            differences: AnomalyMap { width, height, values: read(map)? },
        })
    }

    /// One detection per frame at one step count.
    fn run(
        &self,
        batch: &[&Prepared],
        steps: Steps,
        class: usize,
        started: Timestamp,
    ) -> Result<Vec<Detection>, DetectorError> {
        let Some(first) = batch.first() else { return Ok(Vec::new()) };
        let (height, width, count) = (first.height, first.width, batch.len());
        let (reconstructed, components) = self.redraw(batch, steps, class)?;
        let planes = Tensor::cat(vec![components.combine(&self.spec.map.weights), reconstructed.image], 1);
        // One read-back for all: the device is waited for once.
        let answer = Tensor::cat(vec![planes.reshape([count as i32, -1]), components.novelty()], 1);
        let values = answer
            .cast(FloatDType::F32)
            .try_into_vec_as::<f32>()
            .map_err(|error| DetectorError(format!("the device gave no answer: {error}")))?;
        let infer_ms = self.clock.now().millis_since(started);
        let rows = values.chunks_exact(values.len() / count);
        Ok(rows.map(|row| self.detection(row, height, width, steps, infer_ms)).collect())
    }

    /// The guided reconstruction of frames of one size, and the components of their maps.
    fn redraw(
        &self,
        batch: &[&Prepared],
        steps: Steps,
        class: usize,
    ) -> Result<(Reconstructed, Components), DetectorError> {
        let (height, width) = batch.first().map_or((0, 0), |first| (first.height, first.width));
        if let Some(other) = batch.iter().find(|p| (p.height, p.width) != (height, width)) {
            return Err(DetectorError(format!(
                "frames of {width}x{height} and {}x{} cannot share a batch",
                other.width, other.height
            )));
        }
        let timesteps = self.network.sampler().schedule().timesteps();
        if steps.0 == 0 || steps.0 as usize > timesteps {
            return Err(DetectorError(format!("{} steps: the sampler has 1 to {timesteps}", steps.0)));
        }
        let classes = vec![class; batch.len()];
        let count = batch.len();
        let pixels: Vec<f32> = batch.iter().flat_map(|p| p.image.iter().copied()).collect();
        let image = self.upload(pixels, [count, 3, height, width]);
        let canny: Option<Vec<f32>> =
            batch.iter().map(|p| p.sketch.as_deref()).collect::<Option<Vec<_>>>().map(|s| s.concat());
        let canny = canny.map(|planes| self.upload(planes, [count, 1, height, width]));
        let noise = self.noise(count, height, width);
        let reconstructed = self.network.reconstruct(image.clone(), canny, &classes, steps.0, noise);
        let components = self.network.components(image, &classes, &reconstructed);
        Ok((reconstructed, components))
    }

    /// Smooths and pools one frame's map on the host, in f32, and turns its reconstruction into bytes. `row` holds the map, the
    /// three planes of the reconstruction, and the novelty.
    fn detection(&self, row: &[f32], height: usize, width: usize, steps: Steps, infer_ms: f64) -> Detection {
        let plane = height * width;
        let mut values = gaussian_blur(&row[..plane], width, height, self.spec.map.sigma);
        // Cosine distances are never negative, but for rounding.
        values.iter_mut().for_each(|value| *value = if *value < 0.0 { 0.0 } else { *value });
        let map = AnomalyMap { width, height, values };
        let score = self.spec.map.pooling.pool(&map);
        let rgb = to_rgb(&row[plane..4 * plane], self.spec.normalisation);
        let reconstruction = Reconstruction { width, height, rgb };
        Detection { map, score, novelty: row[4 * plane], reconstruction, steps, infer_ms }
    }
}

/// A picture file as model input, whole frame.
///
/// # Errors
/// Bytes that are not a picture.
pub fn prepare_picture(bytes: &[u8], spec: &PreprocessSpec) -> Result<Prepared, String> {
    let picture = decode::decode(bytes).map_err(|error| error.to_string())?;
    let meta = FrameMeta::of_picture("picture", picture.width, picture.height);
    prepare(&picture.into_frame(meta), &Roi::FULL, spec).map_err(|error| error.to_string())
}

fn compare(detection: &Detection, expected: &[f32], golden: &Golden) -> Result<(), String> {
    if expected.len() != detection.map.values.len() {
        return Err(format!("the expected map has {} cells, the map {}", expected.len(), detection.map.values.len()));
    }
    let off = |a: f32, b: f32| if a.is_finite() { (a - b).abs() } else { f32::INFINITY };
    let worst = detection.map.values.iter().zip(expected).map(|(a, b)| off(*a, *b)).fold(0.0, f32::max);
    let score = off(detection.score.0, golden.score);
    if worst > golden.tolerance || score > golden.tolerance {
        return Err(format!("the map differs by {worst}, the score by {score}, allowed is {}", golden.tolerance));
    }
    Ok(())
}
