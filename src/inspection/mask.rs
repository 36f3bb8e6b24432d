//! Which cells of a map count, and how much: the ROIs of a recipe on the model grid.
//!
//! A cell belongs to what lies at its middle. Where included polygons overlap, the one that is listed last holds, so that a
//! part of another one can be judged otherwise; excluded ones cut out of all. Bars of a letterbox belong to nothing.
//!
//! The map is never changed. Rules look at its values times the *weight* of their cell: one over the ROI's threshold, 0 where
//! nothing counts. A weighed map with thresholds of 1 or more is nowhere above the map itself, and neither is what is pooled
//! from it, so that calibrated thresholds reject good parts at most as often as they state.

use super::anomaly::{AnomalyMap, Region};
use super::frame::Rectangle;
use super::polygon::{PolygonRoi, RoiMode, RoiProblem, RoiSetId, edges, set_id};
use super::roi::{Roi, Transform};

/// How a frame lies on the model grid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    /// Columns of the grid, or of the canvas of all tiles.
    pub width: usize,
    /// Rows of the same.
    pub height: usize,
    /// The cells that show the picture.
    pub inside: Rectangle,
    /// From cells to frame pixels.
    pub transform: Transform,
    /// Columns and rows of the frame.
    pub frame: (u32, u32),
}

impl Placement {
    /// Of a crop that is stretched over `grid`, columns and rows, in a frame of any size.
    pub fn of_crop(crop: &Roi, grid: (usize, usize)) -> Self {
        let (width, height) = grid;
        let transform = Transform {
            offset_x: crop.x,
            offset_y: crop.y,
            scale_x: crop.width / width as f64,
            scale_y: crop.height / height as f64,
        };
        Self { width, height, inside: Rectangle { left: 0, top: 0, width, height }, transform, frame: (1, 1) }
    }
}

/// What holds for the cells of one owner.
#[derive(Debug, Clone, PartialEq)]
struct Held {
    name: Option<String>,
    weight: f32,
    min_area: u32,
}

/// The ROIs of a recipe on a grid.
#[derive(Debug, Clone, PartialEq)]
pub struct RoiMask {
    placement: Placement,
    id: Option<RoiSetId>,
    /// Owner of every cell: 0 is nobody, the others are those of `held` from 1.
    owners: Vec<u8>,
    held: Vec<Held>,
}

impl RoiMask {
    /// The mask of a list for frames that lie so.
    ///
    /// # Errors
    /// A ROI that has no cell, or of which others leave none.
    pub(super) fn new(list: &[PolygonRoi], placement: &Placement) -> Result<Self, RoiProblem> {
        let problem = |index: usize, what: &str| {
            let message = format!("ROI '{}' {what}", list[index].name);
            RoiProblem { key: format!("rois[{index}].polygon"), message }
        };
        let cell = placement.transform.scale_x * placement.transform.scale_y;
        let mut owners = vec![0u8; placement.width * placement.height];
        let mut held = Vec::new();
        let included = |roi: &PolygonRoi| roi.mode == RoiMode::Include;
        if !list.iter().any(included) {
            held.push(Held { name: None, weight: 1.0, min_area: 0 });
            let Rectangle { left, top, width, height } = placement.inside;
            (top..top + height).for_each(|y| owners[y * placement.width + left..][..width].fill(1));
        }
        let of_mode = |mode| list.iter().enumerate().filter(move |(_, roi)| roi.mode == mode);
        let mut places = Vec::new();
        for (index, roi) in of_mode(RoiMode::Include).chain(of_mode(RoiMode::Exclude)) {
            let owner = if included(roi) {
                // A cell's share of a pixel that is not whole: an area is reached when cells cover it.
                let min_area = roi.min_area.map_or(0.0, |area| (area / cell).ceil()).min(f64::from(u32::MAX)) as u32;
                let weight = (1.0 / roi.threshold.unwrap_or(1.0)) as f32;
                held.push(Held { name: Some(roi.name.clone()), weight, min_area });
                places.push(index);
                held.len() as u8
            } else {
                0
            };
            let mut covered = false;
            fill(&roi.polygon, placement, |cell| {
                owners[cell] = owner;
                covered = true;
            });
            if !covered {
                return Err(problem(
                    index,
                    "covers no cell of the model grid: it is smaller than a cell, or lies outside of `roi`; make it larger, or \
                     take it out",
                ));
            }
        }
        let mut counted = vec![false; held.len() + 1];
        owners.iter().for_each(|owner| counted[usize::from(*owner)] = true);
        match counted[1..].iter().position(|there| !there) {
            None => Ok(Self { placement: *placement, id: set_id(list), owners, held }),
            Some(lost) => Err(match places.get(lost) {
                Some(index) => problem(
                    *index,
                    "would judge nothing: nothing is left of it beside the ROIs that exclude, or that are listed after it",
                ),
                None => problem(0, "and the others exclude the whole picture: nothing is left to inspect"),
            }),
        }
    }

    /// How the frames lie that it is for.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// What names its polygons.
    pub fn id(&self) -> Option<&RoiSetId> {
        self.id.as_ref()
    }

    /// The name of the ROI with this number; none for what counts without one.
    pub fn name(&self, number: u8) -> Option<&str> {
        self.held_by(number)?.name.as_deref()
    }

    fn held_by(&self, number: u8) -> Option<&Held> {
        self.held.get(usize::from(number).checked_sub(1)?)
    }

    /// The number of the ROI that every cell belongs to, from 1; 0 where nothing counts.
    pub fn owners(&self) -> &[u8] {
        &self.owners
    }

    /// Whether it is for maps of this size.
    pub fn fits(&self, map: &AnomalyMap) -> bool {
        (map.width, map.height, map.values.len()) == (self.placement.width, self.placement.height, self.owners.len())
    }

    /// Frame pixels of so many cells.
    pub fn frame_area(&self, cells: u32) -> f64 {
        f64::from(cells) * self.placement.transform.scale_x * self.placement.transform.scale_y
    }

    /// Whether some ROI has a threshold of its own.
    pub fn has_thresholds(&self) -> bool {
        self.held.iter().any(|held| held.weight != 1.0)
    }

    /// The map as rules look at it: by the thresholds of its ROIs.
    pub fn weighed(&self, map: &AnomalyMap) -> AnomalyMap {
        self.times(map, |held| held.weight)
    }

    /// The map as it is where it counts, 0 elsewhere: what good parts are compared by.
    pub fn masked(&self, map: &AnomalyMap) -> AnomalyMap {
        self.times(map, |_| 1.0)
    }

    fn times(&self, map: &AnomalyMap, weight: impl Fn(&Held) -> f32) -> AnomalyMap {
        let mut weights = [0.0f32; 256];
        weights[1..].iter_mut().zip(&self.held).for_each(|(cell, held)| *cell = weight(held));
        let values = map.values.iter().zip(&self.owners).map(|(value, owner)| value * weights[usize::from(*owner)]);
        AnomalyMap { width: map.width, height: map.height, values: values.collect() }
    }

    /// The regions of a map above a threshold that are as large as they must be, highest above it first. A region may lie on
    /// several ROIs: it has the name of the one where it is highest, and must be as large as the least of them asks for, at
    /// least `min_area` cells. Peaks are values of the map itself.
    pub fn regions(&self, map: &AnomalyMap, threshold: f32, min_area: u32) -> Vec<Region> {
        let weighed = self.weighed(map);
        let mut found = Vec::new();
        weighed.each_region(threshold, |region, cells| {
            let owner = |cell: &usize| self.owners[*cell];
            let least = cells.iter().filter_map(|cell| self.held_by(owner(cell))).map(|held| held.min_area).min();
            if region.area < min_area.max(least.unwrap_or(0)) {
                return;
            }
            let highest = cells.iter().max_by(|a, b| weighed.values[**a].total_cmp(&weighed.values[**b]));
            let peak = cells.iter().map(|cell| map.values[*cell]).fold(f32::MIN, f32::max);
            found.push((region.peak, Region { peak, roi: highest.map(owner), ..region }));
        });
        found.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        found.into_iter().map(|(_, region)| region).collect()
    }
}

/// Calls `visit` with every cell whose middle lies in a polygon, by the even-odd rule.
fn fill(corners: &[[f64; 2]], placement: &Placement, mut visit: impl FnMut(usize)) {
    let Placement { width, inside, transform, frame, .. } = placement;
    let along =
        |offset: f64, cell: usize, scale: f64, size: u32| (offset + (cell as f64 + 0.5) * scale) / f64::from(size);
    let mut crossed: Vec<f64> = Vec::new();
    for row in inside.top..inside.top + inside.height {
        let y = along(transform.offset_y, row, transform.scale_y, frame.1);
        crossed.clear();
        crossed.extend(
            edges(corners)
                .filter(|([_, from], [_, to])| (*from > y) != (*to > y))
                .map(|([ax, ay], [bx, by])| ax + (y - ay) / (by - ay) * (bx - ax)),
        );
        if crossed.is_empty() {
            continue;
        }
        crossed.sort_by(f64::total_cmp);
        let mut passed = 0;
        for column in inside.left..inside.left + inside.width {
            let x = along(transform.offset_x, column, transform.scale_x, frame.0);
            while crossed.get(passed).is_some_and(|at| *at <= x) {
                passed += 1;
            }
            if passed % 2 == 1 {
                visit(row * width + column);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::anomaly::Pooling;
    use super::super::tiles::TileGrid;
    use super::*;

    fn roi(name: &str, mode: RoiMode, polygon: Vec<[f64; 2]>) -> PolygonRoi {
        PolygonRoi { name: name.into(), polygon, mode, threshold: None, min_area: None }
    }

    /// Whether a point lies in a polygon: edges to its right, the plain way.
    fn contains(polygon: &[[f64; 2]], [x, y]: [f64; 2]) -> bool {
        let mut inside = false;
        let mut before = polygon.len() - 1;
        for (index, [ax, ay]) in polygon.iter().enumerate() {
            let [bx, by] = polygon[before];
            if (*ay > y) != (by > y) && x < (bx - ax) * (y - ay) / (by - ay) + ax {
                inside = !inside;
            }
            before = index;
        }
        inside
    }

    fn placements() -> Vec<Placement> {
        let full = Placement::of_crop(&Roi::FULL, (64, 32));
        let crop = Placement::of_crop(&Roi { x: 0.2, y: 0.1, width: 0.5, height: 0.7 }, (40, 48));
        // A frame of 200x100 pixels on 64x64 cells: bars of 16 rows above and below.
        let transform = Transform { offset_x: 0.0, offset_y: -50.0, scale_x: 3.125, scale_y: 3.125 };
        let inside = Rectangle { left: 0, top: 16, width: 64, height: 32 };
        let letterbox = Placement { width: 64, height: 64, inside, transform, frame: (200, 100) };
        let canvas = TileGrid { columns: 3, rows: 2, overlap_percent: 20 }.canvas(32, 64);
        vec![full, crop, letterbox, Placement::of_crop(&Roi::FULL, canvas)]
    }

    #[test]
    fn masks_of_random_polygons_are_what_their_cells_middles_lie_in() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut made = 0;
        for round in 0..200 {
            // Corners around a middle, by their angle: polygons that do not cross themselves.
            let mut polygon = |low: f64| {
                let (x, y) = (rng.random_range(0.3..0.7), rng.random_range(0.3..0.7));
                let count = rng.random_range(3..9);
                let turn = std::f64::consts::TAU / f64::from(count);
                let corner = |k: i32| {
                    let (angle, far) = (turn * f64::from(k), rng.random_range(low..0.3));
                    [x + far * angle.cos(), y + far * angle.sin()]
                };
                (0..count).map(corner).collect::<Vec<_>>()
            };
            let list = vec![
                roi("a", RoiMode::Include, polygon(0.2)),
                roi("out", RoiMode::Exclude, polygon(0.02)),
                roi("b", RoiMode::Include, polygon(0.2)),
            ];
            for (number, placement) in placements().into_iter().enumerate() {
                // Some leave nothing of a ROI, which is refused.
                let Ok(mask) = RoiMask::new(&list, &placement) else { continue };
                made += 1;
                let Placement { width, inside, transform, frame, .. } = placement;
                for (cell, owner) in mask.owners().iter().enumerate() {
                    let (column, row) = (cell % width, cell / width);
                    let middle = transform.to_frame(column as f64 + 0.5, row as f64 + 0.5, 0.0, 0.0);
                    let point = [middle.x / f64::from(frame.0), middle.y / f64::from(frame.1)];
                    let shown = (inside.left..inside.left + inside.width).contains(&column)
                        && (inside.top..inside.top + inside.height).contains(&row);
                    let lies = |index: usize| contains(&list[index].polygon, point);
                    let expected = match (shown && !lies(1), lies(0), lies(2)) {
                        (true, _, true) => 2,
                        (true, true, false) => 1,
                        _ => 0,
                    };
                    assert_eq!(*owner, expected, "round {round}, placement {number}, cell {column},{row}");
                }
            }
        }
        assert!(made > 400, "{made}");
    }

    #[test]
    fn bars_of_a_letterbox_belong_to_nothing_even_where_the_frame_goes_on_below_them() {
        let hole = roi("hole", RoiMode::Exclude, vec![[0.4, 0.4], [0.6, 0.4], [0.5, 0.6]]);
        let all = roi("all", RoiMode::Include, vec![[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]);
        // The middle rows of a frame of 200x200 pixels: what lies under the bars is frame, but not the part inspected.
        let placement = Placement { frame: (200, 200), ..placements()[2] };
        let transform = Transform { offset_y: 0.0, ..placement.transform };
        for list in [[hole].to_vec(), [all].to_vec()] {
            let mask = RoiMask::new(&list, &Placement { transform, ..placement }).expect("valid");
            let row = |y: usize| &mask.owners()[y * 64..][..64];
            assert!([0, 15, 48, 63].into_iter().all(|y| row(y).iter().all(|owner| *owner == 0)));
            assert!([16, 47].into_iter().all(|y| row(y).iter().all(|owner| *owner == 1)));
        }
    }

    #[test]
    fn an_area_in_frame_pixels_becomes_cells_and_a_masked_map_is_never_higher() {
        let placement = placements()[2];
        let square = vec![[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]];
        let list = [PolygonRoi { min_area: Some(100.0), threshold: Some(2.0), ..roi("a", RoiMode::Include, square) }];
        let mask = RoiMask::new(&list, &placement).expect("valid");
        // 100 pixels are 10.24 cells of 9.77 pixels.
        assert_eq!(mask.held[0].min_area, 11);
        assert!((mask.frame_area(11) - 107.42).abs() < 0.01);
        assert!(mask.has_thresholds());
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let values: Vec<f32> = (0..64 * 64).map(|_| rng.random::<f32>()).collect();
        let map = AnomalyMap { width: 64, height: 64, values };
        let (masked, weighed) = (mask.masked(&map), mask.weighed(&map));
        for (cell, owner) in mask.owners().iter().enumerate() {
            let counts = f32::from(*owner);
            assert_eq!(masked.values[cell], counts * map.values[cell]);
            assert_eq!(weighed.values[cell], counts * 0.5 * map.values[cell]);
        }
        for pooling in
            [Pooling::BoxMax, Pooling::TopFraction { fraction: 0.005 }, Pooling::TopFraction { fraction: 0.9 }]
        {
            let [whole, masked, weighed] = [&map, &masked, &weighed].map(|map| pooling.pool(map).0);
            assert!(weighed < masked && masked <= whole, "{pooling:?}: {weighed} {masked} {whole}");
            assert!((weighed - 0.5 * masked).abs() < 1e-6);
        }
        assert!(masked.region_level(4) <= map.region_level(4));
    }
}
