//! What is in a data set, before hours are spent on it: counts, sizes, light, focus, missing masks, unreadable files, and
//! pictures that are there twice. In training and in the test they make every figure too good; within training they stand
//! on both sides of the division, and the thresholds believe that everything is familiar.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZero;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Set, Skipped};
use crate::inspection::frame::{FrameMeta, PixelFormat};
use crate::inspection::roi::Roi;
use crate::preprocess::decode::{self, Picture};
use crate::preprocess::prepare;
use crate::preprocess::spec::{Geometry, Normalisation, PreprocessSpec, SketchPlane};
use crate::trainer::appearance::{Appearance, Spread};
use crate::trainer::select::quantile;

/// What is in one set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Survey {
    /// Its name.
    pub set: String,
    /// Good pictures for training.
    pub train: usize,
    /// Good pictures for the test.
    pub test_good: usize,
    /// Defective pictures for the test.
    pub test_defective: usize,
    /// Columns and rows of the training pictures, and how many have them; the most frequent first.
    pub sizes: Vec<((u32, u32), usize)>,
    /// Columns over rows of the training pictures.
    pub aspect: Option<Spread>,
    /// Their mean brightness, 0 to 1.
    pub light: Option<Spread>,
    /// Their contrast, 0 to 0.5.
    pub contrast: Option<Spread>,
    /// Their sharpness ([`Appearance::sharpness`]).
    pub sharpness: Option<Spread>,
    /// Training pictures that are far less sharp than the others.
    pub blurred: Vec<PathBuf>,
    /// Defective pictures without a mask.
    pub without_mask: Vec<PathBuf>,
    /// Pictures and masks that cannot be read, and why.
    pub unreadable: Vec<(PathBuf, String)>,
    /// Test pictures with the very pixels of a training picture, and which.
    pub duplicates: Vec<(PathBuf, PathBuf)>,
    /// Training pictures with the very pixels of one before them, and which.
    pub repeated: Vec<(PathBuf, PathBuf)>,
    /// How every training picture looks.
    #[serde(skip)]
    pub looks: Vec<Appearance>,
}

/// What one file is.
struct Look {
    hash: blake3::Hash,
    size: (u32, u32),
    appearance: Appearance,
}

/// The highest light over the lowest from which light is said to spread widely.
const WIDE_LIGHT: f64 = 1.5;
/// The highest aspect over the lowest up to which all pictures count as of one shape.
pub const ONE_SHAPE: f64 = 1.2;
/// A picture is out of focus with less than this share of the usual sharpness, and this many times as far from it as half
/// of the others, in logarithms.
const OUT_OF_FOCUS: f32 = 0.4;
const DEVIATIONS: f32 = 6.0;
/// Pictures below which none can be called unusual.
const ENOUGH: usize = 10;

/// Looks at every file of a set once, on all cores.
pub fn survey(set: &Set) -> Survey {
    let tested = set.test.iter().flat_map(|sample| [Some(&sample.path), sample.mask.as_ref()]).flatten();
    let paths: Vec<&PathBuf> = set.train.iter().chain(tested).collect();
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    let looks: Vec<_> = std::thread::scope(|scope| {
        let started: Vec<_> = paths
            .chunks(paths.len().div_ceil(workers).max(1))
            .map(|paths| scope.spawn(|| paths.iter().map(|path| look(path)).collect::<Vec<_>>()))
            .collect();
        started.into_iter().flat_map(|worker| worker.join().expect("a look cannot panic")).collect()
    });
    let mut seen: HashMap<&PathBuf, Look> = HashMap::new();
    let mut unreadable = Vec::new();
    for (path, look) in paths.into_iter().zip(looks) {
        match look {
            Ok(look) => drop(seen.insert(path, look)),
            Err(reason) => unreadable.push((path.clone(), reason)),
        }
    }
    let mut trained: HashMap<blake3::Hash, &PathBuf> = HashMap::new();
    let mut repeated = Vec::new();
    let mut sizes: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    let readable: Vec<(&PathBuf, &Look)> = set.train.iter().filter_map(|path| Some((path, seen.get(path)?))).collect();
    for (path, look) in &readable {
        *sizes.entry(look.size).or_default() += 1;
        match trained.get(&look.hash) {
            Some(first) => repeated.push(((*path).clone(), (*first).clone())),
            None => drop(trained.insert(look.hash, path)),
        }
    }
    let mut sizes: Vec<_> = sizes.into_iter().collect();
    sizes.sort_by_key(|(size, count)| (std::cmp::Reverse(*count), *size));
    let twin = |path: &PathBuf| Some((path.clone(), (*trained.get(&seen.get(path)?.hash)?).clone()));
    let duplicates = set.test.iter().filter_map(|sample| twin(&sample.path)).collect();
    let defective = || set.test.iter().filter(|sample| sample.defect.is_some());
    let over = |of: fn(&Look) -> f32| Spread::of(readable.iter().map(move |(_, look)| of(look)));
    Survey {
        set: set.name.clone(),
        train: set.train.len(),
        test_good: set.test.len() - defective().count(),
        test_defective: defective().count(),
        sizes,
        aspect: over(|look| look.size.0 as f32 / look.size.1 as f32),
        light: over(|look| look.appearance.light),
        contrast: over(|look| look.appearance.contrast),
        sharpness: over(|look| look.appearance.sharpness),
        blurred: blurred(&readable),
        without_mask: defective().filter(|sample| sample.mask.is_none()).map(|sample| sample.path.clone()).collect(),
        unreadable,
        duplicates,
        repeated,
        looks: readable.iter().map(|(_, look)| look.appearance).collect(),
    }
}

/// Pictures with far less fine detail than the others; none where detail varies that much anyway.
fn blurred(readable: &[(&PathBuf, &Look)]) -> Vec<PathBuf> {
    let detail: Vec<f32> = readable.iter().map(|(_, look)| look.appearance.sharpness.max(1e-9).ln()).collect();
    let median = |values: &mut dyn Iterator<Item = f32>| quantile(values, 0.5).unwrap_or(0.0) as f32;
    let middle = median(&mut detail.iter().copied());
    let spread = median(&mut detail.iter().map(|value| (value - middle).abs()));
    let limit = middle - (DEVIATIONS * spread).max(-OUT_OF_FOCUS.ln());
    let soft = readable.iter().zip(&detail).filter(|(_, detail)| **detail < limit);
    if readable.len() < ENOUGH { Vec::new() } else { soft.map(|((path, _), _)| (*path).clone()).collect() }
}

fn look(path: &Path) -> Result<Look, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let picture = decode::decode(&bytes).map_err(|error| error.to_string())?;
    let (size, hash) = ((picture.width, picture.height), pixels_hash(&picture));
    let frame = picture.into_frame(FrameMeta::of_picture("picture", size.0, size.1));
    let small = prepare(&frame, &Roi::FULL, &SMALL).map_err(|error| error.to_string())?.image;
    let (red, rest) = small.split_at(SMALL.width * SMALL.height);
    let (green, blue) = rest.split_at(SMALL.width * SMALL.height);
    let grey: Vec<f32> = red.iter().zip(green).zip(blue).map(|((r, g), b)| (r + g + b) / 6.0 + 0.5).collect();
    Ok(Look { hash, size, appearance: Appearance::of(&grey, SMALL.width) })
}

/// What light and focus are measured on: pictures of all sizes compare, and what is left of the sensor's noise is little.
const SMALL: PreprocessSpec = PreprocessSpec {
    width: 128,
    height: 128,
    geometry: Geometry::Stretch,
    normalisation: Normalisation::SymmetricOne,
    sketch: SketchPlane::None,
    tiles: None,
};

/// A hash of what a picture shows: the same whether it is stored as PNG or BMP, as grey or as three equal channels.
fn pixels_hash(picture: &Picture) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&picture.width.to_le_bytes()).update(&picture.height.to_le_bytes());
    let (samples, grey) = match picture.format {
        PixelFormat::Gray8 => (1, true),
        PixelFormat::Gray16 { .. } => (2, true),
        PixelFormat::Rgb8 => (1, false),
        PixelFormat::Rgb16 => (2, false),
    };
    hasher.update(&[samples as u8]);
    if grey {
        let row = picture.width as usize * samples;
        for row in picture.pixels.chunks(row.max(1)) {
            hasher.update(&row.chunks(samples).flat_map(|sample| sample.repeat(3)).collect::<Vec<u8>>());
        }
    } else {
        hasher.update(&picture.pixels);
    }
    hasher.finalize()
}

/// Surveys a set, says what was found, and takes what cannot be used out of it.
pub fn survey_and_clean(set: &mut Set, skipped: &mut Vec<Skipped>) -> Survey {
    let survey = survey(set);
    survey.log();
    survey.clean(set, skipped);
    survey
}

impl Survey {
    /// Takes what cannot be read, and what is there twice, out of a set's training pictures.
    pub fn clean(&self, set: &mut Set, skipped: &mut Vec<Skipped>) {
        let unreadable = self.unreadable.iter().map(|(path, reason)| (path, reason.clone()));
        let repeated =
            self.repeated.iter().map(|(path, first)| (path, format!("the same picture as {}", first.display())));
        for (path, reason) in unreadable.chain(repeated) {
            set.train.retain(|kept| kept != path);
            skipped.push(Skipped { path: path.clone(), reason });
        }
        set.test.retain(|sample| !self.unreadable.iter().any(|(path, _)| *path == sample.path));
    }

    /// What should be known before training, each in a sentence with its remedy.
    pub fn remarks(&self) -> Vec<String> {
        let Self { set, train, test_defective, .. } = self;
        let mut remarks = Vec::new();
        if let [((width, height), count), others @ ..] = &self.sizes[..]
            && !others.is_empty()
        {
            remarks.push(format!(
                "{set}: {count} pictures of {width}x{height} and {} of {} other sizes: all come onto one grid, so cut them \
                 alike if they do not show the same field",
                others.iter().map(|(_, count)| count).sum::<usize>(),
                others.len()
            ));
        }
        if let Some(light) = self.light.filter(|light| light.ratio() > WIDE_LIGHT) {
            remarks.push(format!(
                "{set}: light spreads widely: mean brightness {:.2} to {:.2}; defects must show against all of that, so fix \
                 exposure and gain of the camera and keep other light out",
                light.low, light.high
            ));
        }
        if let Some(first) = self.blurred.first() {
            remarks.push(format!(
                "{set}: {} of {train} good pictures are far less sharp than the others; take those out that are out of \
                 focus, look first at {}",
                self.blurred.len(),
                first.display()
            ));
        }
        for (test, twin) in &self.duplicates {
            let (test, twin) = (test.display(), twin.display());
            remarks.push(format!("{set}: {test} is in the test and, as {twin}, in training: remove one of them"));
        }
        if let Some(first) = self.without_mask.first() {
            remarks.push(format!(
                "{set}: {} of {test_defective} defective pictures have no mask and leave the pixel metrics, for one {}",
                self.without_mask.len(),
                first.display()
            ));
        }
        remarks
    }

    /// Says all of it in the log.
    pub fn log(&self) {
        log::info!("{self}");
        self.remarks().iter().for_each(|remark| log::warn!("{remark}"));
    }
}

impl std::fmt::Display for Survey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { set, train, test_good, test_defective, .. } = self;
        write!(f, "{set}: {train} good pictures")?;
        if let [((width, height), _), others @ ..] = &self.sizes[..] {
            write!(f, " of {width}x{height}")?;
            if !others.is_empty() {
                write!(f, " and {} other sizes", others.len())?;
            }
        }
        for (name, spread) in [("aspect", self.aspect), ("light", self.light), ("sharpness", self.sharpness)] {
            if let Some(Spread { low, median, high }) = spread {
                write!(f, ", {name} {median:.3} ({low:.3} to {high:.3})")?;
            }
        }
        if test_good + test_defective > 0 {
            write!(f, "; test: {test_good} good, {test_defective} defective")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::discover::discover;
    use super::*;

    #[test]
    fn what_spoils_a_training_is_found() {
        let dir = tempfile::tempdir().expect("directory");
        let picture = |path: &str, grey: u8| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("makes folders");
            image::GrayImage::from_pixel(8, 8, image::Luma([grey])).save(path).expect("writes");
        };
        picture("train/good/0.png", 1);
        picture("train/good/1.png", 2);
        picture("train/good/3.png", 2);
        picture("test/good/7.png", 2);
        picture("test/hole/0.png", 3);
        picture("test/hole/1.png", 4);
        picture("ground_truth/hole/0_mask.png", 255);
        std::fs::write(dir.path().join("train/good/2.png"), b"\x89PNG\r\n\x1a\n, then nothing").expect("writes");
        let set = discover(dir.path()).expect("a set").sets.remove(0);
        let found = survey(&set);
        assert_eq!((found.train, found.test_good, found.test_defective), (4, 1, 2));
        assert_eq!(found.sizes, [((8, 8), 3)]);
        assert_eq!(found.repeated, [(dir.path().join("train/good/3.png"), dir.path().join("train/good/1.png"))]);
        assert_eq!(found.without_mask, [dir.path().join("test/hole/1.png")]);
        assert_eq!(found.unreadable[0].0, dir.path().join("train/good/2.png"));
        let (mut cleaned, mut skipped) = (set.clone(), Vec::new());
        found.clean(&mut cleaned, &mut skipped);
        assert_eq!((cleaned.train.len(), cleaned.test.len(), skipped.len()), (2, 3, 2));
        assert_eq!(found.duplicates, [(dir.path().join("test/good/7.png"), dir.path().join("train/good/1.png"))]);
    }

    fn folder(pictures: impl Iterator<Item = image::GrayImage>) -> (tempfile::TempDir, Set) {
        let dir = tempfile::tempdir().expect("directory");
        for (k, picture) in pictures.enumerate() {
            picture.save(dir.path().join(format!("{k:03}.png"))).expect("writes");
        }
        let set = discover(dir.path()).expect("a set").sets.remove(0);
        (dir, set)
    }

    fn texture(width: u32, height: u32, seed: u32, share: f32) -> image::GrayImage {
        image::GrayImage::from_fn(width, height, |x, y| {
            let noise = (x / 6 * 7 + y / 6 * 13 + seed).wrapping_mul(2_654_435_761) >> 24;
            image::Luma([(share * (40.0 + noise as f32 * 0.6)) as u8])
        })
    }

    #[test]
    fn the_same_pixels_are_found_in_another_format() {
        let (dir, set) = folder((0..3).map(|seed| texture(40, 30, seed, 1.0)));
        let colour = image::DynamicImage::ImageLuma8(texture(40, 30, 1, 1.0)).into_rgb8();
        colour.save(dir.path().join("twin.bmp")).expect("writes");
        let set = Set { train: [set.train, vec![dir.path().join("twin.bmp")]].concat(), ..set };
        assert_eq!(survey(&set).repeated, [(dir.path().join("twin.bmp"), dir.path().join("001.png"))]);
    }

    #[test]
    fn shapes_light_and_focus_are_measured_and_said() {
        let (_dir, set) = folder((0..20).map(|k| texture(60, 40, k, 0.5 + 0.025 * k as f32)));
        let found = survey(&set);
        let (aspect, light) = (found.aspect.expect("pictures"), found.light.expect("pictures"));
        assert!((aspect.median - 1.5).abs() < 1e-6 && aspect.ratio() <= ONE_SHAPE);
        assert!((light.ratio() - 1.8).abs() < 0.15, "{light:?}");
        assert!(found.remarks().iter().any(|remark| remark.contains("fix exposure")), "{:?}", found.remarks());

        let (_dir, set) = folder((0..20).map(|k| {
            let sharp = texture(256, if k < 4 { 128 } else { 256 }, k, 1.0);
            if k == 7 { image::imageops::blur(&sharp, 6.0) } else { sharp }
        }));
        let found = survey(&set);
        assert!(found.aspect.expect("pictures").ratio() > ONE_SHAPE);
        let looks: Vec<f32> = found.looks.iter().map(|look| look.sharpness).collect();
        assert_eq!(found.blurred.len(), 1, "{looks:?}");
        assert!(found.blurred[0].ends_with("007.png"));
        assert!(!found.remarks().iter().any(|remark| remark.contains("exposure")));
    }
}
