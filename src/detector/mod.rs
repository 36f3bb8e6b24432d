//! The detector of a bundle: prepared frames in, maps and scores out. The only place where tensors meet frames.
//!
//! `trainer test` and the daemon both use it, so a good test result says something about the daemon.

mod answer;
#[cfg(test)]
mod on_cuda;
mod pace;
mod picture;
pub(crate) mod recording;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use self::answer::{Answer, flat};
use self::pace::Pace;
pub use self::picture::{golden, prepare_picture};
use self::recording::Recordings;
use crate::bundle::error::BundleError;
use crate::bundle::manifest::{MapSpec, NumberFormat};
use crate::bundle::{Bundle, WEIGHTS, weights};
use crate::config::device::DeviceChoice;
use crate::device::{Compute, attended};
use crate::inspection::anomaly::AnomalyMap;
use crate::inspection::detect::{ClassId, Detection, Detector, DetectorError, Gate, Plan, StepPlan, Steps};
use crate::inspection::frame::Prepared;
use crate::inspection::tiles::{Blend, crop};
use crate::inspection::time::{Clock, Timestamp};
use crate::model::network::{Components, Network, Reconstructed};
use crate::model::profile::ModelConfig;
use crate::preprocess::spec::Normalisation;
use crate::preprocess::to_rgb;

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
    /// A golden picture cannot be judged.
    #[error("{bundle}: golden picture '{picture}': {reason}; make the bundle again with `trainer fit`")]
    Golden {
        /// The bundle's directory.
        bundle: String,
        /// The golden picture.
        picture: String,
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

/// Classes and step counts whose networks are kept at a time: they hold a few rows each.
const MOST: usize = 64;

/// A network on a device, ready to judge.
pub struct DiffusionDetector {
    /// Shared with what was recorded.
    network: Arc<Network>,
    /// The same for the classes and step counts that were asked for.
    made: Mutex<HashMap<(usize, Steps), Arc<Network>>>,
    spec: DetectorSpec,
    device: Device,
    dtype: FloatDType,
    clock: Arc<dyn Clock>,
    from_noise: bool,
    /// Where the device replays what it has done before.
    recordings: Option<Recordings<Key, Tensor<4>>>,
    pace: Pace,
}

/// What a frame's computation follows from, besides its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    /// Frames, rows, columns.
    shape: [usize; 3],
    canny: bool,
    steps: Steps,
    class: usize,
    answer: Answer,
}

/// Rows without gaps: burn pads those of what it uploads, and a kernel would have them copied for every frame.
struct Dense;

impl ModuleMapper for Dense {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| {
            let dims = tensor.dims();
            tensor.reshape([dims.iter().product::<usize>()]).reshape(dims)
        })
    }
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
        let network = config.init(&compute.device);
        // Before anything of it is in memory: what judges goes on with as much as it had.
        weights::check_fit(&bundle.dir.join(WEIGHTS), &network)?;
        let network = bundle.tensors(WEIGHTS)?.load_into(network, format)?;
        let spec = DetectorSpec {
            classes: manifest.classes.clone(),
            map: manifest.map,
            seed: manifest.seed,
            latent_channels: config.autoencoder.latent_channels,
            normalisation: manifest.preprocess.normalisation,
        };
        let detector = Self::new(network, spec, &compute.device, format, clock);
        Ok(match compute.choice {
            DeviceChoice::Cpu => detector,
            DeviceChoice::Cuda(_) => detector.recorded(),
        })
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
        let network = Arc::new(network.map(&mut Dense).joined());
        Self {
            network,
            made: Mutex::default(),
            spec,
            device: device.clone(),
            dtype,
            clock,
            from_noise: false,
            recordings: None,
            pace: Pace::default(),
        }
    }

    /// The same detector, but what it computes for a frame is recorded once per number of frames, step count and class, and
    /// replayed as one launch. The first frame of each kind takes as long as five.
    pub fn recorded(self) -> Self {
        Self { recordings: Some(Recordings::default()), ..self }
    }

    /// The same detector, but every reconstruction starts from the picture's latent under noise, even where the sampler needs
    /// none: the control that deviation correction is compared with. Thresholds do not hold for it.
    pub fn from_noise(self) -> Self {
        let recordings = self.recordings.map(|_| Recordings::default());
        Self { from_noise: true, recordings, ..self }
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
        for listed in &bundle.manifest.golden {
            let fail = |reason: String| LoadError::SelfTest {
                bundle: bundle.dir.display().to_string(),
                picture: listed.picture.clone(),
                device,
                reason,
            };
            let (prepared, plan, expected) = golden(bundle, listed)?;
            if self.recordings.is_some() {
                // So that the golden picture is judged by a replay, with new pixels in old buffers.
                let mut blank = prepared.clone();
                Arc::make_mut(&mut blank.image).fill(0.0);
                self.detect(&[blank], &plan).map_err(|e| fail(e.to_string()))?;
            }
            let detections = self.detect(std::slice::from_ref(&prepared), &plan).map_err(|e| fail(e.to_string()))?;
            if let Some(reason) = expected.difference(&detections[0]) {
                return Err(fail(reason));
            }
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

    /// The network for a class and a step count.
    fn network_for(&self, key: Key) -> Arc<Network> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() == MOST {
            made.clear();
        }
        let make = || {
            let network = self.network.at(key.class, key.steps.0);
            // What is recorded must find it made: a device that has work left says so when a frame asks for its result.
            let _ = self.device.sync();
            Arc::new(network)
        };
        Arc::clone(made.entry((key.class, key.steps)).or_insert_with(make))
    }

    /// One noise per frame from the bundle's seed alone, so that a frame judged twice, or in another batch, gets the same.
    fn noise(&self, [batch, height, width]: [usize; 3]) -> Option<Tensor<4>> {
        if !(self.from_noise || self.network.sampler().needs_noise()) {
            return None;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.spec.seed);
        let shape = [1, self.spec.latent_channels, height / 8, width / 8];
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| StandardNormal.sample(&mut rng)).collect();
        let noise = Tensor::<4>::from_data(TensorData::new(values, shape), (&self.device, DType::F32));
        Some(noise.cast(self.dtype).repeat_dim(0, batch))
    }

    /// The networks' part of a batch: pictures, and edges where the model needs them, to what `of` makes of them, a row per
    /// picture.
    fn work(
        &self,
        key: Key,
        of: impl Fn(Reconstructed, Components) -> Vec<Tensor<2>> + Send + 'static,
    ) -> impl FnMut(&[Tensor<4>]) -> Tensor<4> + Send + 'static {
        let (network, noise, dtype) = (self.network_for(key), self.noise(key.shape), self.dtype);
        let classes = vec![key.class; key.shape[0]];
        move |inputs| {
            let mut inputs = inputs.iter().map(|input| input.clone().cast(dtype));
            let (image, canny) = (inputs.next().expect("a batch has pictures"), inputs.next());
            let (reconstructed, components) = network.inspect(image, canny, &classes, key.steps.0, noise.clone());
            let rows = Tensor::cat(of(reconstructed, components), 1).cast(FloatDType::F32);
            rows.unsqueeze_dims(&[1, 1])
        }
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
            let expected = self.pace.expected(gate.steps, frames.len());
            let over = |until: Timestamp| until.millis_since(self.clock.now()) <= expected;
            if frames.is_empty() {
                break;
            }
            // What is there is judged: a verdict in time is worth more than one that is a little surer.
            if found.iter().all(Option::is_some) && plan.until.is_some_and(over) {
                self.pace.skipped(gate.steps);
                break;
            }
            for (index, detection) in open.into_iter().zip(self.run(&frames, gate.steps, class, started)?) {
                found[index] = Some(detection);
            }
        }
        let found: Option<Vec<Detection>> = found.into_iter().collect();
        found.ok_or_else(|| DetectorError("auto steps: no step count is calibrated for this class".into()))
    }

    fn graph_recorded(&self) -> Option<bool> {
        self.recordings.as_ref().and_then(Recordings::in_hardware)
    }

    fn batches(&self) -> &[(usize, f64)] {
        self.pace.batches()
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

/// Tiles of a frame that go through the networks together: bounds the memory of a frame, however many tiles it has.
const TILES: usize = 8;

/// The pictures that go through the networks together, and edges where the model needs them.
type Inputs = Vec<TensorData>;

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
        let answer = |key: Key, inputs: Inputs| {
            let (network, weights) = (Arc::clone(&self.network), self.spec.map.weights);
            let behind = move |reconstructed: Reconstructed, components: Components| {
                let autoencoded = network.decode(reconstructed.seen_latent);
                vec![flat(autoencoded), flat(reconstructed.image), flat(components.combine(&weights))]
            };
            self.work(key, behind)(&self.upload(inputs))
        };
        let planes = self.planes(&[prepared], (steps, class, Answer::Raw), answer)?.pop().unwrap_or_default();
        let (width, height) = (prepared.width, prepared.height);
        let (autoencoded, rest) = planes.split_at(3 * width * height);
        let (reconstruction, differences) = rest.split_at(3 * width * height);
        Ok(Explanation {
            autoencoded: to_rgb(autoencoded, self.spec.normalisation),
            reconstruction: to_rgb(reconstruction, self.spec.normalisation),
            differences: AnomalyMap { width, height, values: differences.to_vec() },
        })
    }

    /// One detection per frame at one step count.
    fn run(
        &mut self,
        batch: &[&Prepared],
        steps: Steps,
        class: usize,
        started: Timestamp,
    ) -> Result<Vec<Detection>, DetectorError> {
        let began = self.clock.now();
        let answer = match batch.first() {
            Some(first) if self.recordings.is_some() => Answer::of_a_gpu(first, &self.spec),
            _ => Answer::Raw,
        };
        let mut recordings = self.recordings.take();
        let all = self.planes(batch, (steps, class, answer), |key, inputs| match &mut recordings {
            Some(recordings) => {
                let inputs = self.upload(inputs);
                recordings.run(key, inputs, &self.device, || self.work(key, answer.rows(&self.spec, &self.device)))
            }
            None => {
                let mut work = self.work(key, answer.rows(&self.spec, &self.device));
                let inputs = self.upload(inputs);
                attended(&self.device, || work(&inputs))
            }
        });
        self.recordings = recordings;
        let all = all?;
        let now = self.clock.now();
        self.pace.note(steps, batch.len(), now.millis_since(began));
        let infer_ms = now.millis_since(started);
        let found = |(frame, row): (&&Prepared, Vec<f32>)| answer.detection(frame, &row, &self.spec, steps, infer_ms);
        Ok(batch.iter().zip(all).map(found).collect())
    }

    fn upload(&self, inputs: Inputs) -> Vec<Tensor<4>> {
        inputs.into_iter().map(|input| Tensor::from_data(input, (&self.device, DType::F32))).collect()
    }

    /// What `answer` gives of every frame, in a row: of the frame as a whole, or blended from its tiles.
    fn planes(
        &self,
        frames: &[&Prepared],
        (steps, class, form): (Steps, usize, Answer),
        mut answer: impl FnMut(Key, Inputs) -> Tensor<4>,
    ) -> Result<Vec<Vec<f32>>, DetectorError> {
        let timesteps = self.network.sampler().schedule().timesteps();
        if steps.0 == 0 || steps.0 as usize > timesteps {
            return Err(DetectorError(format!("{} steps: the sampler has 1 to {timesteps}", steps.0)));
        }
        let Some(first) = frames.first() else { return Ok(Vec::new()) };
        let (width, height) = (first.width, first.height);
        if let Some(other) = frames.iter().find(|p| (p.width, p.height, p.tiles) != (width, height, first.tiles)) {
            return Err(DetectorError(format!(
                "frames of {width}x{height} and {}x{} cannot share a batch",
                other.width, other.height
            )));
        }
        // One read-back for all planes: the device is waited for once.
        let mut read = |image: Vec<&[f32]>, canny: Option<Vec<&[f32]>>, (width, height): (usize, usize)| {
            let (count, with_edges) = (image.len(), canny.is_some());
            let data = |planes: Vec<&[f32]>| {
                let values = planes.concat();
                let channels = values.len() / (count * width * height);
                TensorData::new(values, [count, channels, height, width])
            };
            let inputs = [Some(image), canny].into_iter().flatten().map(data).collect();
            let key = Key { shape: [count, height, width], canny: with_edges, steps, class, answer: form };
            (answer(key, inputs).try_into_vec_as::<f32>())
                .map_err(|error| DetectorError(format!("the device gave no answer: {error}")))
        };
        let Some((grid, tile)) = first.tiles else {
            let image = frames.iter().map(|frame| &frame.image[..]).collect();
            let canny = frames.iter().map(|frame| frame.sketch.as_deref()).collect();
            let values = read(image, canny, (width, height))?;
            return Ok(match frames {
                [_] => vec![values],
                _ => values.chunks_exact(values.len() / frames.len()).map(<[f32]>::to_vec).collect(),
            });
        };
        let mut all = Vec::with_capacity(frames.len());
        for frame in frames {
            let mut blend: Option<Blend> = None;
            for places in grid.places(tile.0, tile.1).chunks(TILES) {
                let cut = |planes: &[f32]| -> Vec<Vec<f32>> {
                    places.iter().map(|place| crop(planes, (width, height), *place, tile)).collect()
                };
                let (image, canny) = (cut(&frame.image), frame.sketch.as_deref().map(cut));
                let image = image.iter().map(Vec::as_slice).collect();
                let canny = canny.as_ref().map(|canny| canny.iter().map(Vec::as_slice).collect());
                let values = read(image, canny, tile)?;
                // What a tile has one of counts in all of its cells.
                let (each, area) = (values.len() / places.len(), tile.0 * tile.1);
                let (planes, ones) = (each / area, each % area);
                let blend = blend.get_or_insert_with(|| Blend::new(grid, tile, planes + ones));
                for (values, place) in values.chunks_exact(each).zip(places) {
                    let (whole, ones) = values.split_at(planes * area);
                    let ones = ones.iter().flat_map(|value| std::iter::repeat_n(*value, area));
                    blend.add(*place, &whole.iter().copied().chain(ones).collect::<Vec<f32>>());
                }
            }
            all.push(blend.map(Blend::finish).unwrap_or_default());
        }
        Ok(all)
    }
}
