//! From judged pictures to the table of metrics.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::bootstrap;
use crate::inspection::anomaly::AnomalyMap;
use crate::inspection::frame::Rectangle;
use crate::inspection::metrics::{Overlap, Ranking};

/// How ground truth becomes metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Protocol {
    /// A cell is marked above one half of its mask; a defective picture without a mask leaves the pixel metrics; PRO is
    /// exact and interpolated at its limit
    #[default]
    Default,
    /// As DiAD's released code, for figures beside published ones: any trace of a mask marks a cell, a defective picture
    /// without a mask is marked everywhere, PRO has 200 thresholds
    Diad,
}

/// One judged picture.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The picture.
    pub path: PathBuf,
    /// Anomaly score.
    pub score: f32,
    /// Anomaly map.
    pub map: AnomalyMap,
    /// The cells that show the picture: the others are in no metric of pixels.
    pub inside: Rectangle,
    /// Ground truth.
    pub defective: bool,
    /// Ground truth per cell; absent for a defective picture without a mask.
    pub mask: Option<Vec<bool>>,
    /// Whether the shipped threshold rejected it; absent where there is none.
    pub rejected: Option<bool>,
    /// Milliseconds from frame to score.
    pub frame_ms: f64,
}

/// Metrics of one class; `None` where one cannot be measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name of the class, or `mean`.
    pub class: String,
    /// Area under the ROC curve of the scores.
    pub image_auroc: Option<f64>,
    /// Average precision of the scores.
    pub image_ap: Option<f64>,
    /// Largest F1 of the scores.
    pub image_f1max: Option<f64>,
    /// Area under the ROC curve of the map's cells.
    pub pixel_auroc: Option<f64>,
    /// Average precision of the map's cells.
    pub pixel_ap: Option<f64>,
    /// Largest F1 of the map's cells.
    pub pixel_f1max: Option<f64>,
    /// Per-region overlap up to a false-positive rate of 0.3.
    pub pro: Option<f64>,
    /// Share of the good pictures that the shipped threshold rejects.
    pub false_reject_rate: Option<f64>,
    /// Share of the defective pictures that the shipped threshold rejects.
    pub recall: Option<f64>,
    /// Pictures judged.
    pub images: usize,
    /// Median milliseconds per frame.
    pub frame_ms: Option<f64>,
    /// Lower end of the 95 % bootstrap interval of [`Self::image_auroc`].
    pub image_auroc_low: Option<f64>,
    /// Upper end of it.
    pub image_auroc_high: Option<f64>,
}

/// The metrics of one class.
pub fn evaluate(class: &str, judged: &[Judged], protocol: Protocol) -> Row {
    let images = Ranking::new(judged.iter().map(|j| (j.score, j.defective)));
    let marked = || {
        judged.iter().filter_map(|item| {
            let mask: Cow<'_, [bool]> = match (&item.mask, item.defective) {
                // Nothing is marked on a good part, whatever a file says.
                (_, false) => Cow::Borrowed(&[]),
                (Some(mask), true) => Cow::Borrowed(mask),
                (None, true) if protocol == Protocol::Diad => Cow::Owned(vec![true; item.map.values.len()]),
                (None, true) => return None,
            };
            Some(cropped(&item.map, mask, item.inside))
        })
    };
    let pixels = Ranking::new(marked().flat_map(|(map, mask)| {
        let cells = 0..map.values.len();
        cells.map(move |cell| (map.values[cell], mask.get(cell).copied().unwrap_or(false)))
    }));
    let (pixel_auroc, pixel_ap, pixel_f1max) = (pixels.auroc(), pixels.average_precision(), pixels.f1_max());
    // Before the next sort of as many cells.
    drop(pixels);
    let masks: Vec<_> = marked().collect();
    let overlap = Overlap::new(masks.iter().map(|(map, mask)| (&**map, &mask[..])));
    let rate = |defective: bool| {
        let rejected: Option<Vec<bool>> =
            judged.iter().filter(|j| j.defective == defective).map(|j| j.rejected).collect();
        let rejected = rejected.filter(|r| !r.is_empty())?;
        Some(rejected.iter().filter(|r| **r).count() as f64 / rejected.len() as f64)
    };
    let mut times: Vec<f64> = judged.iter().map(|j| j.frame_ms).collect();
    times.sort_unstable_by(f64::total_cmp);
    let interval = bootstrap::auroc_interval(judged.iter().map(|j| (j.score, j.defective)));
    Row {
        class: class.to_owned(),
        image_auroc: images.auroc(),
        image_ap: images.average_precision(),
        image_f1max: images.f1_max(),
        pixel_auroc,
        pixel_ap,
        pixel_f1max,
        pro: match protocol {
            Protocol::Default => overlap.pro(),
            Protocol::Diad => overlap.pro_diad(),
        },
        false_reject_rate: rate(false),
        recall: rate(true),
        images: judged.len(),
        frame_ms: times.get(times.len() / 2).copied(),
        image_auroc_low: interval.map(|(low, _)| low),
        image_auroc_high: interval.map(|(_, high)| high),
    }
}

/// Map and mask without the bars of a letterbox: cells that cannot be defective would flatter every metric.
fn cropped<'a>(
    map: &'a AnomalyMap,
    mask: Cow<'a, [bool]>,
    inside: Rectangle,
) -> (Cow<'a, AnomalyMap>, Cow<'a, [bool]>) {
    let Rectangle { left, top, width, height } = inside;
    if (width, height) == (map.width, map.height) {
        return (Cow::Borrowed(map), mask);
    }
    let cells = || (top..top + height).flat_map(|y| (left..left + width).map(move |x| y * map.width + x));
    let values = cells().map(|cell| map.values[cell]).collect();
    let mask = cells().filter_map(|cell| mask.get(cell).copied()).collect();
    (Cow::Owned(AnomalyMap { width, height, values }), Cow::Owned(mask))
}

/// Arithmetic means over the classes that have a value; the mean of several classes has no interval.
pub fn mean(rows: &[Row]) -> Row {
    let over = |value: &dyn Fn(&Row) -> Option<f64>| {
        let values: Vec<f64> = rows.iter().filter_map(value).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    Row {
        class: "mean".into(),
        image_auroc: over(&|r| r.image_auroc),
        image_ap: over(&|r| r.image_ap),
        image_f1max: over(&|r| r.image_f1max),
        pixel_auroc: over(&|r| r.pixel_auroc),
        pixel_ap: over(&|r| r.pixel_ap),
        pixel_f1max: over(&|r| r.pixel_f1max),
        pro: over(&|r| r.pro),
        false_reject_rate: over(&|r| r.false_reject_rate),
        recall: over(&|r| r.recall),
        images: rows.iter().map(|r| r.images).sum(),
        frame_ms: over(&|r| r.frame_ms),
        image_auroc_low: over(&|r| r.image_auroc_low).filter(|_| rows.len() == 1),
        image_auroc_high: over(&|r| r.image_auroc_high).filter(|_| rows.len() == 1),
    }
}

/// The rows as text.
pub fn table(rows: &[Row]) -> String {
    let heads = ["I-AUROC", "I-AP", "I-F1", "P-AUROC", "P-AP", "P-F1", "PRO", "rejects", "recall", "ms"];
    let mut out = format!("{:<18}{:>7}", "class", "images");
    heads.iter().for_each(|head| out += &format!("{head:>10}"));
    for row in rows {
        out += &format!("\n{:<18}{:>7}", row.class, row.images);
        let values = [
            row.image_auroc,
            row.image_ap,
            row.image_f1max,
            row.pixel_auroc,
            row.pixel_ap,
            row.pixel_f1max,
            row.pro,
            row.false_reject_rate,
            row.recall,
            row.frame_ms,
        ];
        values.iter().for_each(|value| out += &value.map_or(format!("{:>10}", "-"), |v| format!("{v:>10.4}")));
    }
    out
}

/// Prints the rows and their mean, last: as JSON lines or as a table.
///
/// # Errors
/// Never in practice: rows are plain values.
pub fn print(rows: &[Row], json: bool) -> anyhow::Result<()> {
    let mut all = rows.to_vec();
    all.push(mean(rows));
    if json {
        for row in &all {
            println!("{}", serde_json::to_string(row)?);
        }
    } else {
        println!("{}", table(&all));
    }
    Ok(())
}

/// Writes the rows and their mean as `metrics.json`, `metrics.csv` and `metrics.txt`.
///
/// # Errors
/// Anything that the disk refuses.
pub fn write(rows: &[Row], folder: &Path) -> anyhow::Result<()> {
    let mut all = rows.to_vec();
    all.push(mean(rows));
    std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    let file = |name: &str| folder.join(name);
    std::fs::write(file("metrics.json"), serde_json::to_vec_pretty(&all)?)?;
    std::fs::write(file("metrics.txt"), table(&all) + "\n")?;
    let mut csv = csv::Writer::from_path(file("metrics.csv"))?;
    all.iter().try_for_each(|row| csv.serialize(row))?;
    Ok(csv.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(score: f32, defective: bool, mask: Option<Vec<bool>>, rejected: bool) -> Judged {
        let map = AnomalyMap { width: 2, height: 1, values: vec![0.0, score] };
        let inside = Rectangle { left: 0, top: 0, width: 2, height: 1 };
        Judged { path: PathBuf::new(), score, map, inside, defective, mask, rejected: Some(rejected), frame_ms: 1.0 }
    }

    fn rated(class: &str, judged: &[Judged]) -> Row {
        evaluate(class, judged, Protocol::Default)
    }

    #[test]
    fn a_class_without_masks_has_no_pixel_metrics() {
        let row = rated("x", &[judged(1.0, true, None, true), judged(0.0, false, None, false)]);
        assert_eq!((row.image_auroc, row.pixel_auroc, row.pro), (Some(1.0), None, None));
        assert_eq!((row.recall, row.false_reject_rate), (Some(1.0), Some(0.0)));
        let text = serde_json::to_string(&row).expect("serialises");
        assert!(text.contains("\"pixel_auroc\":null") && text.starts_with("{\"class\":\"x\",\"image_auroc\":1.0"));
    }

    #[test]
    fn the_released_protocol_marks_a_picture_without_a_mask_everywhere() {
        let row = evaluate("x", &[judged(1.0, true, None, true), judged(0.0, false, None, false)], Protocol::Diad);
        // The defective picture's cells are 0 and 1, the good one's 0 and 0: of the four pairs two are ties.
        assert_eq!(row.pixel_auroc, Some(0.75));
    }

    #[test]
    fn bars_are_in_no_metric_of_pixels() {
        // Columns 1 and 2 of 4 are the picture; the bars would rank wrongly on the left and flatter on the right.
        let barred = |score: f32, values: [f32; 4], mask: Option<Vec<bool>>| {
            let map = AnomalyMap { width: 4, height: 1, values: values.to_vec() };
            let inside = Rectangle { left: 1, top: 0, width: 2, height: 1 };
            Judged { map, inside, ..judged(score, mask.is_some(), mask, false) }
        };
        let marked = Some(vec![false, false, true, false]);
        let with = [barred(1.0, [9.0, 0.2, 0.5, 0.0], marked), barred(0.0, [0.0, 0.3, 0.7, 0.0], None)];
        let without = [judged(0.5, true, Some(vec![false, true]), false), judged(0.7, false, None, false)];
        let without = [[0.2, 0.5], [0.3, 0.7]]
            .into_iter()
            .zip(without)
            .map(|(values, item)| Judged { map: AnomalyMap { values: values.to_vec(), ..item.map.clone() }, ..item });
        let (with, without) = (rated("x", &with), rated("x", &without.collect::<Vec<_>>()));
        assert_eq!((with.pixel_auroc, with.pixel_ap, with.pro), (without.pixel_auroc, without.pixel_ap, without.pro));
        assert!(with.pixel_auroc.is_some_and(|auroc| (auroc - 2.0 / 3.0).abs() < 1e-9), "{with:?}");
    }

    #[test]
    fn a_good_picture_has_an_empty_mask() {
        let defective = judged(1.0, true, Some(vec![false, true]), true);
        let plain = rated("x", &[defective.clone(), judged(0.0, false, None, false)]);
        let marked = rated("x", &[defective, judged(0.0, false, Some(vec![true, true]), false)]);
        assert_eq!((plain.pixel_auroc, plain.pro), (Some(1.0), Some(1.0)));
        assert_eq!(marked, plain);
    }

    #[test]
    fn a_defective_picture_without_a_mask_leaves_the_pixel_metrics_only() {
        let both = [judged(1.0, true, Some(vec![false, true]), true), judged(0.0, false, None, false)];
        let with = rated("x", &both);
        let more = rated("x", &[&both[..], &[judged(0.5, true, None, false)]].concat());
        assert_eq!((more.pixel_auroc, more.pixel_ap, more.pro), (with.pixel_auroc, with.pixel_ap, with.pro));
        assert_eq!((more.images, more.recall), (3, Some(0.5)));
    }

    #[test]
    fn rows_have_exactly_the_agreed_keys_and_gaps_are_null() {
        let without = Judged { rejected: None, ..judged(1.0, true, None, false) };
        let row = serde_json::to_value(rated("x", &[without])).expect("serialises");
        let keys: Vec<_> = row.as_object().expect("an object").keys().map(String::as_str).collect();
        let agreed = "class image_auroc image_ap image_f1max pixel_auroc pixel_ap pixel_f1max pro false_reject_rate recall \
                      images frame_ms image_auroc_low image_auroc_high";
        assert_eq!(keys, agreed.split_whitespace().collect::<Vec<_>>());
        assert!(["image_auroc", "false_reject_rate", "recall"].iter().all(|key| row[key].is_null()));
        assert!(table(&[rated("x", &[])]).lines().last().expect("a row").ends_with('-'));
    }

    #[test]
    fn means_leave_out_what_is_missing() {
        let with = rated("a", &[judged(1.0, true, Some(vec![false, true]), false), judged(0.0, false, None, true)]);
        let without = rated("b", &[judged(0.0, true, None, true), judged(1.0, false, None, false)]);
        let mean = mean(&[with.clone(), without]);
        assert_eq!(mean.image_auroc, Some(0.5));
        assert_eq!(mean.pixel_auroc, with.pixel_auroc);
        assert_eq!(mean.images, 4);
    }

    /// By hand, in a release build: MVTec-AD's test split at 256x256 as one class, every value another.
    #[test]
    #[ignore = "a measurement: cargo test --release measures_mvtec -- --ignored --nocapture"]
    fn measures_mvtec() {
        let mut state = 1u32;
        let mut draw = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state
        };
        let picture = |k: usize, draw: &mut dyn FnMut() -> u32| {
            let values = (0..65_536).map(|_| (draw() >> 8) as f32 / 16_777_216.0).collect();
            let mask = (k < 1_258).then(|| (0..65_536).map(|i| i / 256 % 50 < 10 && i % 60 < 12).collect());
            let map = AnomalyMap { width: 256, height: 256, values };
            let (path, score, defective) = (PathBuf::new(), k as f32, k < 1_258);
            let inside = Rectangle { left: 0, top: 0, width: 256, height: 256 };
            Judged { path, score, map, inside, defective, mask, rejected: None, frame_ms: 1.0 }
        };
        let judged: Vec<Judged> = (0..1_725).map(|k| picture(k, &mut draw)).collect();
        for protocol in [Protocol::Default, Protocol::Diad] {
            let started = std::time::Instant::now();
            let row = evaluate("x", &judged, protocol);
            println!("{protocol:?}: {:.1} s, pixel AUROC {:?}", started.elapsed().as_secs_f64(), row.pixel_auroc);
        }
    }
}
