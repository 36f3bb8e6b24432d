//! What `fit` will do, settled and shown before it trains: the pictures, how they come to the model, how they are varied,
//! what it costs.

use std::fmt;
use std::time::Instant;

use anyhow::ensure;
use burn::tensor::Device;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::{Value, json};

use super::appearance::{FLAT, Spread};
use super::augment::Augmentation;
use super::augment::choose::choose;
use super::batches::in_memory;
use super::calibrate::default_alpha;
use super::config::TrainConfig;
use super::dataset::survey::{ONE_SHAPE, Survey, survey_and_clean};
use super::dataset::{Discovered, Set, Skipped};
use super::fit::{FitRequest, default_steps};
use super::pictures::{Picture, Split, calibration_count, load, split, tiles};
use super::usage::MemoryEstimate;
use super::{backbone, outliers};
use crate::device::Compute;
use crate::inspection::detect::ClassId;
use crate::inspection::tiles::TileGrid;
use crate::model::features::FeatureExtractor;
use crate::model::profile::{ModelConfig, Profile};
use crate::preprocess::spec::{Geometry, Normalisation, PreprocessSpec, SketchPlane};
use crate::trainer::cost::{cost, frame_gflop};

/// Good pictures of all sets, divided.
#[derive(Debug)]
pub struct Data {
    /// For the networks.
    pub train: Vec<Picture>,
    /// For choices by pseudo-validation.
    pub select: Vec<Picture>,
    /// For the thresholds, per set.
    pub calibrate: Vec<Vec<Picture>>,
}

impl Data {
    /// blake3 over all pixels, in order.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for picture in self.train.iter().chain(&self.select).chain(self.calibrate.iter().flatten()) {
            hasher.update(&picture.rgb);
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Everything that is known before training starts.
pub struct Setup {
    /// What is in the data, per set.
    pub surveys: Vec<Survey>,
    /// What was left out of it.
    pub skipped: Vec<Skipped>,
    /// What should be known of it, each with a remedy.
    pub remarks: Vec<String>,
    /// The pictures.
    pub data: Data,
    /// How pictures come to the model.
    pub spec: PreprocessSpec,
    /// One product needs no class; several make a class-conditional bundle with a null class.
    pub classes: Vec<ClassId>,
    /// The networks' sizes.
    pub model: ModelConfig,
    /// The frozen backbone.
    pub features: FeatureExtractor,
    /// What was chosen.
    pub chosen: Chosen,
    /// Seconds that it took.
    pub seconds: f64,
}

/// What was chosen, as it is shown.
#[derive(Debug, Clone, Serialize)]
pub struct Chosen {
    /// The size.
    pub profile: Profile,
    /// All parameters.
    pub parameters: usize,
    /// Operations of a frame in 1e9, at [`Chosen::default_steps`].
    pub frame_gflop: f64,
    /// Columns and rows of the model grid.
    pub grid: [usize; 2],
    /// How pictures come onto it.
    pub geometry: Geometry,
    /// Step counts that the bundle will list.
    pub steps: Vec<u32>,
    /// The one that choices are made with.
    pub default_steps: u32,
    /// Where it runs.
    pub device: String,
    /// How long it trains.
    pub training: Training,
    /// What becomes of the pictures of each set.
    pub sets: Vec<ChosenSet>,
    /// Memory, MB.
    pub memory: MemoryEstimate,
}

/// How long each stage trains.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Training {
    /// So many minutes.
    Minutes {
        /// The autoencoder.
        autoencoder: f64,
        /// The guided denoiser.
        denoiser: f64,
        /// Repair and refine head.
        refine: f64,
    },
    /// So many steps each.
    StageSteps(usize),
}

/// What becomes of the pictures of one set.
#[derive(Debug, Clone, Serialize)]
pub struct ChosenSet {
    /// Its name.
    pub set: String,
    /// Good pictures to train on.
    pub train: usize,
    /// Good pictures to choose with.
    pub select: usize,
    /// Good pictures to set the thresholds with.
    pub calibrate: usize,
    /// The false-reject rate that these can show.
    pub false_rejects: f64,
    /// How the pictures are varied.
    pub augmentation: Augmentation,
}

/// Looks at the data and settles everything.
///
/// # Errors
/// Data that makes no sensible bundle, with the remedy; a backbone or a device that refuses.
pub fn prepare(found: Discovered, request: &FitRequest, compute: &Compute) -> anyhow::Result<Setup> {
    let started = Instant::now();
    let Discovered { mut sets, mut skipped } = found;
    let surveys: Vec<Survey> = sets.iter_mut().map(|set| survey_and_clean(set, &mut skipped)).collect();
    let mut remarks: Vec<String> = surveys.iter().flat_map(Survey::remarks).collect();
    for survey in &surveys {
        ensure!(
            survey.contrast.is_none_or(|contrast| contrast.median > f64::from(FLAT)),
            "{}: most pictures are of one flat colour; check exposure, lens cap and the files",
            survey.set
        );
    }
    let spec = spec(&surveys, &request.config, request.tiles);
    remarks.extend(about_grid(&surveys, &spec).into_iter().inspect(|remark| log::warn!("{remark}")));
    let device = &compute.device;
    let features = backbone::load(&request.backbone, device)?;
    let (data, parts) = read(&sets, &spec, request, &features, device, &mut skipped)?;
    for Skipped { path, reason } in &skipped {
        log::warn!("left out: {}: {reason}", path.display());
    }
    remarks.extend(parts.iter().filter_map(few).inspect(|remark| log::warn!("{remark}")));
    let classes: Vec<ClassId> =
        if sets.len() > 1 { sets.iter().map(|set| ClassId(set.name.clone())).collect() } else { Vec::new() };
    let model = request.config.model(request.profile, classes.len());
    let steps = default_steps(&request.config.steps);
    let grid = (spec.width, spec.height);
    let costs = cost(&model, steps.0, grid.0, grid.1);
    let pictures = data.train.len() + data.select.len() + data.calibrate.iter().flatten().count();
    let minutes = |share: f64| share * request.minutes;
    let [autoencoder, denoiser, refine] = request.config.shares().map(minutes);
    let chosen = Chosen {
        profile: request.profile,
        parameters: costs.iter().map(|part| part.parameters).sum(),
        frame_gflop: frame_gflop(&costs),
        grid: [spec.width, spec.height],
        geometry: spec.geometry,
        steps: request.config.steps.iter().map(|steps| steps.0).collect(),
        default_steps: steps.0,
        device: compute.choice.to_string(),
        training: request.stage_steps.map_or(Training::Minutes { autoencoder, denoiser, refine }, Training::StageSteps),
        sets: parts,
        memory: MemoryEstimate::of(pictures, grid, &costs, &request.config, in_memory()),
    };
    let seconds = started.elapsed().as_secs_f64();
    Ok(Setup { surveys, skipped, remarks, data, spec, classes, model, features, chosen, seconds })
}

/// How pictures come to the model: a grid of the median aspect of all good pictures, or of their tiles, and not of more
/// pixels than they have.
fn spec(surveys: &[Survey], config: &TrainConfig, tiles: Option<TileGrid>) -> PreprocessSpec {
    let median = |of: fn(f64, f64) -> f64| {
        let sizes = surveys.iter().flat_map(|survey| &survey.sizes);
        let values = sizes.flat_map(|((width, height), count)| {
            std::iter::repeat_n(of(f64::from(*width), f64::from(*height)) as f32, *count)
        });
        Spread::of(values).map(|spread| spread.median)
    };
    let aspect = median(|width, height| width / height).unwrap_or(1.0);
    let pixels = median(|width, height| width * height).unwrap_or(f64::INFINITY);
    let (columns, rows) = tiles.map_or((1.0, 1.0), |tiles| (f64::from(tiles.columns), f64::from(tiles.rows)));
    let (width, height) = config.grid.size(aspect * rows / columns, pixels / (rows * columns));
    let one_shape = surveys.iter().all(|survey| survey.aspect.is_none_or(|aspect| aspect.ratio() <= ONE_SHAPE));
    let (geometry, normalisation) = (config.geometry.resolve(one_shape), Normalisation::SymmetricOne);
    PreprocessSpec { width, height, geometry, normalisation, sketch: SketchPlane::None, tiles }
}

/// What should be known of the grid.
fn about_grid(surveys: &[Survey], spec: &PreprocessSpec) -> Vec<String> {
    let geometry = spec.geometry;
    let (width, height) = spec.canvas();
    let mut remarks = Vec::new();
    for Survey { set, sizes, aspect, .. } in surveys {
        let small = |size: &(u32, u32)| (size.0 as usize) < width && (size.1 as usize) < height;
        let enlarged: usize = sizes.iter().filter(|(size, _)| small(size)).map(|(_, count)| count).sum();
        if enlarged > 0 {
            remarks.push(format!(
                "{set}: {enlarged} pictures are smaller than the model grid of {width}x{height} and are enlarged, which shows \
                 no more and costs time: give larger pictures, or a smaller grid in a copy of configs/train (--config)"
            ));
        }
        // Stretched one by one, the same texture is coarse in one picture and fine in the next.
        if let Some(aspect) = aspect.filter(|aspect| geometry == Geometry::Stretch && aspect.ratio() > ONE_SHAPE) {
            remarks.push(format!(
                "{set}: the pictures have different shapes (columns over rows {:.2} to {:.2}) and are stretched onto one of \
                 {width}x{height}: cut them alike, or set geometry = \"auto\" (--config)",
                aspect.low, aspect.high
            ));
        }
    }
    remarks
}

/// What few pictures cost.
fn few(part: &ChosenSet) -> Option<String> {
    let total = part.train + part.select + part.calibrate;
    let enough = (total..).find(|total| default_alpha(calibration_count(*total)) <= default_alpha(usize::MAX))?;
    (enough > total).then(|| {
        format!(
            "{}: {total} good pictures, of which {} set the thresholds and can show a false-reject rate of {:.1} %, not 1 %; \
             {enough} are needed for that",
            part.set,
            part.calibrate,
            100.0 * part.false_rejects
        )
    })
}

/// Reads, cleans and divides the pictures, and settles how each set is varied.
fn read(
    sets: &[Set],
    spec: &PreprocessSpec,
    request: &FitRequest,
    features: &FeatureExtractor,
    device: &Device,
    skipped: &mut Vec<Skipped>,
) -> anyhow::Result<(Data, Vec<ChosenSet>)> {
    let mut data = Data { train: Vec::new(), select: Vec::new(), calibrate: Vec::new() };
    let mut parts = Vec::new();
    let size = (spec.width, spec.height);
    for (index, set) in sets.iter().enumerate() {
        // Parts that are cut into tiles are divided, and compared with each other, as whole ones.
        let mut pictures = load(&set.train, index, &spec.of_a_tile(), skipped);
        if !request.keep_outliers {
            let (kept, left) = outliers::remove(pictures, features, size, device)?;
            pictures = kept;
            skipped.extend(left);
        }
        let count = pictures.len();
        ensure!(
            count >= 2,
            "{}: {count} usable good pictures of {}; at least 2 are needed, one to train on and one to calibrate with",
            set.name,
            set.train.len()
        );
        let seed = request.seed ^ index as u64;
        let Split { train, select, calibrate } = split(pictures, seed);
        let augmentation = choose(&train, features, size, device)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (train, select) = (tiles(&train, spec, &mut rng)?, tiles(&select, spec, &mut rng)?);
        parts.push(ChosenSet {
            set: set.name.clone(),
            train: train.len(),
            select: select.len(),
            calibrate: calibrate.len(),
            false_rejects: default_alpha(calibrate.len()),
            augmentation,
        });
        data.train.extend(train);
        data.select.extend(select);
        data.calibrate.push(calibrate);
    }
    Ok((data, parts))
}

impl Setup {
    /// How the pictures of each set are varied.
    pub fn augmentations(&self) -> Vec<Augmentation> {
        self.chosen.sets.iter().map(|set| set.augmentation).collect()
    }

    /// Data and choices as one object.
    pub fn json(&self) -> Value {
        let left_out: Vec<Value> =
            self.skipped.iter().map(|skipped| json!({"path": skipped.path, "reason": skipped.reason})).collect();
        json!({
            "data": {"sets": self.surveys, "left_out": left_out, "remarks": self.remarks},
            "choice": self.chosen,
        })
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.sets.iter().map(|set| set.set.len()).max().unwrap_or(0).max("  varied by".len()) + 1;
        let mut row = |name: &str, text: String| writeln!(f, "  {name:<width$} {text}");
        let words = self.geometry.words();
        row(
            "model",
            format!("{}, {:.2} million parameters, on {}", self.profile, self.parameters as f64 / 1e6, self.device),
        )?;
        row("grid", format!("{}x{} pixels, {words}", self.grid[0], self.grid[1]))?;
        row("steps", format!("{:?}, {:.2} GFLOP a frame at {}", self.steps, self.frame_gflop, self.default_steps))?;
        row("training", self.training.to_string())?;
        for set in &self.sets {
            let ChosenSet { set, train, select, calibrate, false_rejects, augmentation } = set;
            row(
                set,
                format!(
                    "{train} pictures to train on, {select} to choose with, {calibrate} for the thresholds: false rejects \
                     of {:.1} % can be shown",
                    100.0 * false_rejects
                ),
            )?;
            row("  varied by", augmentation.to_string())?;
        }
        row("memory", self.memory.to_string())
    }
}

impl fmt::Display for Training {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Training::StageSteps(steps) => write!(f, "{steps} steps a stage"),
            Training::Minutes { autoencoder, denoiser, refine } => write!(
                f,
                "{:.1} minutes: autoencoder {autoencoder:.1}, denoiser {denoiser:.1}, repair and refine {refine:.1}",
                autoencoder + denoiser + refine
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::grid::Grid;
    use super::*;
    use crate::trainer::config::GeometryChoice;

    fn survey(set: &str, sizes: &[((u32, u32), usize)]) -> Survey {
        let aspects = sizes.iter().flat_map(|((w, h), count)| std::iter::repeat_n(*w as f32 / *h as f32, *count));
        Survey {
            set: set.into(),
            train: sizes.iter().map(|(_, count)| count).sum(),
            test_good: 0,
            test_defective: 0,
            sizes: sizes.to_vec(),
            aspect: Spread::of(aspects),
            light: None,
            contrast: None,
            sharpness: None,
            blurred: Vec::new(),
            without_mask: Vec::new(),
            unreadable: Vec::new(),
            duplicates: Vec::new(),
            repeated: Vec::new(),
            looks: Vec::new(),
        }
    }

    #[test]
    fn grid_and_geometry_follow_the_pictures() {
        let config = TrainConfig::of(Profile::EdgeSmall).expect("ships");
        let chosen = |surveys: &[Survey]| {
            let spec = spec(surveys, &config, None);
            (spec.width, spec.height, spec.geometry)
        };
        assert_eq!(chosen(&[survey("a", &[((512, 512), 20)])]), (256, 256, Geometry::Stretch));
        // A few rows more or less are no other shape, and neither is one odd picture among many.
        assert_eq!(chosen(&[survey("a", &[((640, 261), 40), ((640, 268), 40)])]), (384, 160, Geometry::Stretch));
        assert_eq!(chosen(&[survey("a", &[((640, 480), 99), ((480, 640), 1)])]), (288, 224, Geometry::Stretch));
        let mixed = [survey("a", &[((640, 480), 60), ((480, 640), 40)])];
        assert_eq!(chosen(&mixed), (288, 224, Geometry::Letterbox));
        assert_eq!(about_grid(&mixed, &spec(&mixed, &config, None)), Vec::<String>::new());
        let stretched = TrainConfig { geometry: GeometryChoice::Stretch, ..config.clone() };
        assert!(about_grid(&mixed, &spec(&mixed, &stretched, None))[0].contains("auto"));
        // Two products, each of its own shape.
        let both = [survey("a", &[((512, 512), 60)]), survey("b", &[((640, 320), 40)])];
        assert_eq!(chosen(&both), (256, 256, Geometry::Stretch));
        assert_eq!(about_grid(&both, &spec(&both, &config, None)), Vec::<String>::new());
        let fixed = TrainConfig { grid: Grid::Fixed([128, 64]), ..config.clone() };
        assert_eq!(spec(&both, &fixed, None).width, 128);
        let bars = TrainConfig { geometry: GeometryChoice::Letterbox, ..config };
        assert_eq!(spec(&both, &bars, None).geometry, Geometry::Letterbox);
    }

    #[test]
    fn pictures_that_are_enlarged_are_said() {
        let config = TrainConfig::of(Profile::EdgeSmall).expect("ships");
        let small = [survey("a", &[((100, 100), 7), ((300, 300), 9)])];
        let remarks = about_grid(&small, &spec(&small, &config, None));
        assert!(remarks.len() == 1 && remarks[0].contains("7 pictures are smaller"), "{remarks:?}");
    }

    #[test]
    fn few_pictures_are_told_how_many_are_needed() {
        let part = |train, select, calibrate| ChosenSet {
            set: "a".into(),
            train,
            select,
            calibrate,
            false_rejects: default_alpha(calibrate),
            augmentation: Augmentation::LEAST,
        };
        let remark = few(&part(18, 3, 10)).expect("is said");
        assert!(remark.contains("31 good pictures") && remark.contains("9.1 %") && remark.contains("297"), "{remark}");
        assert_eq!(few(&part(171, 30, 99)), None);
    }
}
