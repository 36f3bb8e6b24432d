//! ROIs as an operator writes them: polygons in the frame that are inspected, or are not.
//!
//! A polygon that is meant otherwise than it is written must not run on a line: whatever is wrong with one is said when the
//! recipe is read, all at once.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::mask::{Placement, RoiMask};
use super::roi::Roi;

/// ROIs of a recipe at most: masks number them in one byte.
const MOST: usize = 64;
/// Points of a polygon at most: every pair of its edges is looked at.
const MOST_POINTS: usize = 512;
/// Thresholds may be divided and multiplied by this at most.
const MOST_FACTOR: f64 = 10.0;
/// Columns and rows of a grid that is as fine as those of bundles, or finer.
const FINE: usize = 2048;
/// Shares of the frame below which a polygon has no area.
const NO_AREA: f64 = 1e-9;

/// What a polygon is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RoiMode {
    /// What lies inside is inspected.
    #[default]
    Include,
    /// What lies inside never counts, whatever else includes it.
    Exclude,
}

/// One `[[rois]]` of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolygonRoi {
    /// Name, in the events of what is found in it.
    pub name: String,
    /// Corners in their order around the outline, normalised: 0 to 1 of the whole frame, from the top left.
    pub polygon: Vec<[f64; 2]>,
    /// Whether it is inspected.
    #[serde(default)]
    pub mode: RoiMode,
    /// Both thresholds inside, as a multiple of those that hold for the recipe: 2 needs twice the map value, 0.5 half. A map
    /// value itself would mean something else with every bundle and step count.
    pub threshold: Option<f64>,
    /// Smallest region that counts, frame pixels; never below the one of the calibration.
    pub min_area: Option<f64>,
}

/// What is wrong with a ROI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoiProblem {
    /// The key, as `rois[0].polygon`.
    pub key: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for RoiProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

/// What names the polygons of a recipe in a calibration: thresholds of masked maps hold for these alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoiSetId(pub String);

/// The ROIs of a recipe, validated, and the mask that they last made.
#[derive(Debug, Default)]
pub struct Rois {
    list: Vec<PolygonRoi>,
    /// A camera's frames lie on the grid as the one before did.
    last: Mutex<Option<Arc<RoiMask>>>,
}

impl Rois {
    /// The ROIs of a recipe that inspects `crop`.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn new(mut list: Vec<PolygonRoi>, crop: &Roi) -> Result<Self, Vec<RoiProblem>> {
        if list.len() > MOST {
            let message = format!("{} ROIs: at most {MOST}; join some", list.len());
            return Err(vec![RoiProblem { key: "rois".into(), message }]);
        }
        let mut problems = Vec::new();
        let mut names = BTreeSet::new();
        for (index, roi) in list.iter_mut().enumerate() {
            roi.polygon.dedup();
            // Many programs write the first corner again at the end.
            if roi.polygon.len() > 1 && roi.polygon.first() == roi.polygon.last() {
                roi.polygon.pop();
            }
            let mut problem = |key: &str, message: String| {
                problems.push(RoiProblem { key: format!("rois[{index}].{key}"), message });
            };
            if roi.name.is_empty() {
                problem("name", "is empty; give the ROI a name, events have it".into());
            } else if !names.insert(roi.name.clone()) {
                problem("name", format!("'{}' is used twice", roi.name));
            }
            if let Some(message) = outline_problem(&roi.polygon) {
                problem("polygon", format!("ROI '{}' {message}", roi.name));
            }
            let range = 1.0 / MOST_FACTOR..=MOST_FACTOR;
            if let Some(threshold) = roi.threshold.filter(|threshold| !range.contains(threshold)) {
                problem(
                    "threshold",
                    format!(
                        "{threshold}: must be {} to {MOST_FACTOR}; 1 is as calibrated, 2 needs twice as much",
                        1.0 / MOST_FACTOR
                    ),
                );
            }
            if let Some(area) = roi.min_area.filter(|area| !(*area > 0.0 && area.is_finite())) {
                problem("min_area", format!("{area}: must be above 0, in pixels of the frame"));
            }
            if roi.mode == RoiMode::Exclude {
                for (key, there) in [("threshold", roi.threshold), ("min_area", roi.min_area)] {
                    if there.is_some() {
                        problem(key, "means nothing in a ROI that is excluded; leave it out".into());
                    }
                }
            }
        }
        // On a grid as fine as any: what has no cell there has none on a coarser one.
        if problems.is_empty()
            && !list.is_empty()
            && crop.problem().is_none()
            && let Err(found) = RoiMask::new(&list, &Placement::of_crop(crop, (FINE, FINE)))
        {
            problems.push(found);
        }
        if problems.is_empty() { Ok(Self { list, last: Mutex::default() }) } else { Err(problems) }
    }

    /// Whether there is none: everything is judged alike.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What names these polygons; none without any.
    pub fn id(&self) -> Option<RoiSetId> {
        set_id(&self.list)
    }

    /// The mask for frames that lie so; none without ROIs. The one before is given again where it fits.
    ///
    /// # Errors
    /// A ROI of which nothing is left there.
    pub fn mask(&self, placement: &Placement) -> Result<Option<Arc<RoiMask>>, RoiProblem> {
        if self.list.is_empty() {
            return Ok(None);
        }
        // What a thread left that panicked is a whole mask or none.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mask) = last.as_ref().filter(|mask| mask.placement() == placement) {
            return Ok(Some(Arc::clone(mask)));
        }
        let mask = Arc::new(RoiMask::new(&self.list, placement)?);
        *last = Some(Arc::clone(&mask));
        Ok(Some(mask))
    }
}

impl Clone for Rois {
    fn clone(&self) -> Self {
        Self { list: self.list.clone(), last: Mutex::default() }
    }
}

impl Serialize for Rois {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.list.serialize(to)
    }
}

impl PartialEq for Rois {
    fn eq(&self, other: &Self) -> bool {
        self.list == other.list
    }
}

/// Names polygons by their modes and corners; thresholds and areas are not part of it, as the sensitivity is not.
pub(super) fn set_id(list: &[PolygonRoi]) -> Option<RoiSetId> {
    if list.is_empty() {
        return None;
    }
    let mut hash = blake3::Hasher::new();
    for roi in list {
        hash.update(&[u8::from(roi.mode == RoiMode::Exclude)]);
        hash.update(&(roi.polygon.len() as u64).to_le_bytes());
        roi.polygon.as_flattened().iter().for_each(|value| {
            hash.update(&value.to_le_bytes());
        });
    }
    Some(RoiSetId(hash.finalize().to_hex()[..12].to_owned()))
}

/// What is wrong with an outline, if anything.
fn outline_problem(corners: &[[f64; 2]]) -> Option<String> {
    if corners.len() < 3 {
        return Some(format!("has {} different corner(s): a polygon needs at least 3", corners.len()));
    }
    if corners.len() > MOST_POINTS {
        return Some(format!("has {} corners: at most {MOST_POINTS}", corners.len()));
    }
    if let Some([x, y]) = corners.iter().find(|point| point.iter().any(|value| !(0.0..=1.0).contains(value))) {
        return Some(format!(
            "has the corner [{x}, {y}] outside of the frame: coordinates are shares of the frame, 0 to 1 (pixels / width, \
             pixels / height)"
        ));
    }
    if let Some((one, other)) = crossing(corners) {
        return Some(format!(
            "crosses itself: the edge from corner {one} and that from corner {other} meet; give the corners in their order \
             around the outline"
        ));
    }
    let area = 0.5 * edges(corners).map(|([ax, ay], [bx, by])| ax * by - bx * ay).sum::<f64>();
    (area.abs() < NO_AREA).then(|| "has no area: its corners lie on a line".to_owned())
}

/// The edges of a polygon, the one back to the first corner last.
pub(super) fn edges(corners: &[[f64; 2]]) -> impl Iterator<Item = ([f64; 2], [f64; 2])> {
    corners.iter().zip(corners.iter().cycle().skip(1)).map(|(from, to)| (*from, *to))
}

/// The first two edges that cross each other, by the number of the corner they begin at.
fn crossing(corners: &[[f64; 2]]) -> Option<(usize, usize)> {
    let side =
        |[ax, ay]: [f64; 2], [bx, by]: [f64; 2], [px, py]: [f64; 2]| (bx - ax) * (py - ay) - (by - ay) * (px - ax);
    let edges: Vec<_> = edges(corners).collect();
    let apart = |a: f64, b: f64| (a > 0.0 && b < 0.0) || (a < 0.0 && b > 0.0);
    for (index, (a, b)) in edges.iter().enumerate() {
        for (other, (c, d)) in edges.iter().enumerate().skip(index + 2) {
            if apart(side(*a, *b, *c), side(*a, *b, *d)) && apart(side(*c, *d, *a), side(*c, *d, *b)) {
                return Some((index, other));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roi(name: &str, polygon: &[[f64; 2]]) -> PolygonRoi {
        let polygon = polygon.to_vec();
        PolygonRoi { name: name.into(), polygon, mode: RoiMode::Include, threshold: None, min_area: None }
    }

    fn square(low: f64, high: f64) -> Vec<[f64; 2]> {
        vec![[low, low], [high, low], [high, high], [low, high]]
    }

    fn problems(list: Vec<PolygonRoi>) -> Vec<(String, String)> {
        let found = Rois::new(list, &Roi::FULL).err().unwrap_or_default();
        found.into_iter().map(|problem| (problem.key, problem.message)).collect()
    }

    #[test]
    fn outlines_that_mean_nothing_are_refused_with_words() {
        for (polygon, words) in [
            (vec![[0.1, 0.1], [0.9, 0.9]], "at least 3"),
            (vec![[0.1, 0.1], [0.9, 0.9], [0.9, 0.9], [0.1, 0.1]], "at least 3"),
            (vec![[0.1, 0.1], [1.2, 0.1], [0.5, 0.9]], "[1.2, 0.1] outside of the frame"),
            (vec![[0.1, f64::NAN], [0.9, 0.1], [0.5, 0.9]], "outside of the frame"),
            (vec![[120.0, 40.0], [300.0, 40.0], [200.0, 90.0]], "pixels / width"),
            (vec![[0.1, 0.1], [0.9, 0.9], [0.9, 0.1], [0.1, 0.9]], "edge from corner 0 and that from corner 2"),
            (vec![[0.1, 0.1], [0.5, 0.5], [0.9, 0.9]], "no area"),
            (vec![[0.5; 2]; 3], "at least 3"),
            (vec![[0.5001, 0.5001], [0.5002, 0.5001], [0.5002, 0.5002]], "no cell"),
        ] {
            let found = problems(vec![roi("a", &polygon)]);
            assert!(found.len() == 1 && found[0].0 == "rois[0].polygon", "{polygon:?}: {found:?}");
            assert!(found[0].1.contains(words) && found[0].1.contains("'a'"), "{polygon:?}: {found:?}");
        }
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let wrong = PolygonRoi { threshold: Some(0.0), min_area: Some(f64::INFINITY), ..roi("", &square(0.1, 0.9)) };
        let idle = PolygonRoi { mode: RoiMode::Exclude, threshold: Some(2.0), ..roi("b", &square(0.2, 0.3)) };
        let keys: Vec<String> =
            problems(vec![wrong, idle, roi("b", &square(0.4, 0.9))]).into_iter().map(|(key, _)| key).collect();
        assert_eq!(
            keys,
            ["rois[0].name", "rois[0].threshold", "rois[0].min_area", "rois[1].threshold", "rois[2].name"]
        );
    }

    #[test]
    fn a_mask_that_leaves_nothing_is_refused() {
        let all = PolygonRoi { mode: RoiMode::Exclude, ..roi("all", &square(0.0, 1.0)) };
        let part = roi("part", &square(0.3, 0.6));
        assert!(problems(vec![all.clone()])[0].1.contains("nothing is left"));
        assert!(problems(vec![part.clone(), all])[0].1.contains("'part'"));
        let over = roi("over", &square(0.2, 0.7));
        assert!(problems(vec![part.clone(), over.clone()])[0].1.contains("'part'"), "a later one covers it");
        assert!(problems(vec![over, part.clone()]).is_empty());
        let crop = Roi { x: 0.7, y: 0.0, width: 0.3, height: 1.0 };
        let outside = Rois::new(vec![part], &crop).expect_err("outside of the crop");
        assert!(outside[0].message.contains("no cell"), "{outside:?}");
    }

    #[test]
    fn a_closed_ring_is_a_polygon_and_the_set_is_named_by_shapes_alone() {
        let ring = [square(0.1, 0.9), vec![[0.1, 0.1]]].concat();
        let rois = Rois::new(vec![roi("a", &ring)], &Roi::FULL).expect("valid");
        let other = PolygonRoi { threshold: Some(2.0), ..roi("b", &square(0.1, 0.9)) };
        assert_eq!(rois.id(), Rois::new(vec![other.clone()], &Roi::FULL).expect("valid").id());
        let moved = PolygonRoi { polygon: square(0.1, 0.8), ..other };
        assert_ne!(rois.id(), Rois::new(vec![moved], &Roi::FULL).expect("valid").id());
        assert_eq!(Rois::default().id(), None);
    }

    #[test]
    fn a_mask_is_made_once_for_frames_that_lie_alike() {
        let rois = Rois::new(vec![roi("a", &square(0.1, 0.9))], &Roi::FULL).expect("valid");
        let mask = |side| rois.mask(&Placement::of_crop(&Roi::FULL, (side, side))).expect("valid").expect("has ROIs");
        assert!(Arc::ptr_eq(&mask(64), &mask(64)));
        assert!(!Arc::ptr_eq(&mask(64), &mask(32)));
        assert_eq!(Rois::default().mask(&Placement::of_crop(&Roi::FULL, (8, 8))), Ok(None));
    }
}
