//! Tiles: a part that is larger than the model's input is cut into overlapping tiles of that size, and what the model says of
//! each is blended into one map without seams.
//!
//! The frame is resized once to the *canvas* that all tiles together cover; a tile is a crop of it. Across an overlap the
//! weight of one tile falls as that of its neighbour rises, and weights add up to 1 everywhere.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Tiles of a frame at most: each costs as much as a whole frame without tiles.
const MOST: u32 = 400;
/// A tile may share at most this with each neighbour.
const MOST_OVERLAP: u32 = 50;

/// How a frame is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TileGrid {
    /// Tiles in a row.
    pub columns: u32,
    /// Tiles in a column.
    pub rows: u32,
    /// Share of a tile's side that it has in common with its neighbour, percent.
    pub overlap_percent: u32,
}

impl TileGrid {
    /// What is wrong, if anything.
    pub fn problem(&self) -> Option<String> {
        let Self { columns, rows, overlap_percent } = self;
        if *columns == 0 || *rows == 0 || columns.saturating_mul(*rows) > MOST {
            return Some(format!("{columns}x{rows} tiles: must be at least 1x1 and at most {MOST} together"));
        }
        (*overlap_percent > MOST_OVERLAP).then(|| {
            format!(
                "overlap_percent {overlap_percent}: must be 0 to {MOST_OVERLAP}; 20 is enough for maps without seams"
            )
        })
    }

    /// Columns and rows of the canvas for tiles of `width x height` cells.
    pub fn canvas(&self, width: usize, height: usize) -> (usize, usize) {
        let along = |count: u32, side: usize| (count as usize - 1) * self.stride(side) + side;
        (along(self.columns, width), along(self.rows, height))
    }

    /// Cells from one tile to the next.
    fn stride(&self, side: usize) -> usize {
        (side * (100 - self.overlap_percent as usize) / 100).max(1)
    }

    /// Left columns and top rows of all tiles on the canvas, row by row.
    pub fn places(&self, width: usize, height: usize) -> Vec<(usize, usize)> {
        let (across, down) = (self.stride(width), self.stride(height));
        let row = |y: usize| (0..self.columns as usize).map(move |x| (x * across, y * down));
        (0..self.rows as usize).flat_map(row).collect()
    }
}

impl fmt::Display for TileGrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{},{}", self.columns, self.rows, self.overlap_percent)
    }
}

impl FromStr for TileGrid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no grid of tiles: give columns x rows, overlap in percent, as 8x8,20");
        let (sides, overlap) = text.split_once(',').unwrap_or((text, "20"));
        let (columns, rows) = sides.split_once('x').ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse().map_err(|_| wrong());
        let grid = Self { columns: number(columns)?, rows: number(rows)?, overlap_percent: number(overlap)? };
        grid.problem().map_or(Ok(grid), Err)
    }
}

/// Planes of the canvas as they grow tile by tile.
pub struct Blend {
    grid: TileGrid,
    tile: (usize, usize),
    canvas: (usize, usize),
    planes: Vec<f32>,
    weights: Vec<f32>,
}

impl Blend {
    /// An empty canvas of `planes` planes for tiles of `width x height` cells.
    pub fn new(grid: TileGrid, (width, height): (usize, usize), planes: usize) -> Self {
        let canvas = grid.canvas(width, height);
        let cells = canvas.0 * canvas.1;
        Self { grid, tile: (width, height), canvas, planes: vec![0.0; planes * cells], weights: vec![0.0; cells] }
    }

    /// Adds the tile at `place`: planes of `height * width` values, one after the other.
    pub fn add(&mut self, (left, top): (usize, usize), values: &[f32]) {
        let (width, height) = self.tile;
        let (columns, rows) = self.canvas;
        let across = ramp(width, width - self.grid.stride(width));
        let down = ramp(height, height - self.grid.stride(height));
        for (plane, values) in values.chunks_exact(width * height).enumerate() {
            let canvas = &mut self.planes[plane * columns * rows..][..columns * rows];
            for (y, (row, weight)) in values.chunks_exact(width).zip(&down).enumerate() {
                let target = &mut canvas[(top + y) * columns + left..][..width];
                for ((cell, value), other) in target.iter_mut().zip(row).zip(&across) {
                    *cell += value * weight * other;
                }
            }
        }
        for (y, weight) in down.iter().enumerate() {
            let target = &mut self.weights[(top + y) * columns + left..][..width];
            target.iter_mut().zip(&across).for_each(|(cell, other)| *cell += weight * other);
        }
    }

    /// The blended planes, one after the other, each of the canvas' size.
    pub fn finish(mut self) -> Vec<f32> {
        for plane in self.planes.chunks_exact_mut(self.weights.len()) {
            plane.iter_mut().zip(&self.weights).for_each(|(value, weight)| *value /= weight);
        }
        self.planes
    }
}

/// Weights along a tile's side: rising over the overlap at its start, falling over that at its end, never 0.
fn ramp(side: usize, overlap: usize) -> Vec<f32> {
    let step = |cell: usize| ((cell + 1) as f32 / (overlap + 1) as f32).min(1.0);
    (0..side).map(|cell| step(cell) * step(side - 1 - cell)).collect()
}

/// The crop of planes of `columns` cells a row that one tile covers.
pub fn crop(planes: &[f32], canvas: (usize, usize), (left, top): (usize, usize), tile: (usize, usize)) -> Vec<f32> {
    let (columns, rows) = canvas;
    planes
        .chunks_exact(columns * rows)
        .flat_map(|plane| (top..top + tile.1).flat_map(move |y| &plane[y * columns + left..][..tile.0]))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: TileGrid = TileGrid { columns: 3, rows: 2, overlap_percent: 20 };

    #[test]
    fn a_smooth_picture_cut_and_blended_is_itself() {
        for grid in
            [GRID, TileGrid { overlap_percent: 0, ..GRID }, TileGrid { overlap_percent: 50, columns: 5, rows: 4 }]
        {
            let tile = (32, 64);
            let canvas = grid.canvas(tile.0, tile.1);
            let cells = canvas.0 * canvas.1;
            let value = |i: usize| ((i % canvas.0) as f32 * 0.13).sin() + (i / canvas.0) as f32 * 0.02;
            let picture: Vec<f32> = (0..2 * cells).map(|i| value(i % cells) + (i / cells) as f32).collect();
            let mut blend = Blend::new(grid, tile, 2);
            for place in grid.places(tile.0, tile.1) {
                blend.add(place, &crop(&picture, canvas, place, tile));
            }
            let worst = blend.finish().iter().zip(&picture).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "{grid}: {worst}");
        }
    }

    #[test]
    fn tiles_that_disagree_meet_without_a_step() {
        let grid = TileGrid { columns: 2, rows: 1, overlap_percent: 25 };
        let mut blend = Blend::new(grid, (32, 32), 1);
        for (place, level) in grid.places(32, 32).into_iter().zip([0.0, 1.0]) {
            blend.add(place, &vec![level; 32 * 32]);
        }
        let row = &blend.finish()[..grid.canvas(32, 32).0];
        assert_eq!((row[0], row[row.len() - 1]), (0.0, 1.0));
        assert!(row.windows(2).all(|pair| pair[1] >= pair[0] && pair[1] - pair[0] < 0.2), "{row:?}");
    }

    #[test]
    fn a_grid_is_read_and_refused() {
        assert_eq!("3x2".parse(), Ok(GRID));
        assert_eq!("3x2,20".parse::<TileGrid>().expect("reads").to_string(), "3x2,20");
        for wrong in ["3", "3x", "0x2", "30x30", "2x2,80", "2x2,x"] {
            assert!(wrong.parse::<TileGrid>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn tiles_cover_the_canvas_and_stay_inside() {
        let places = GRID.places(32, 64);
        let (columns, rows) = GRID.canvas(32, 64);
        assert_eq!((places.len(), columns, rows), (6, 2 * 25 + 32, 51 + 64));
        assert_eq!(places.last(), Some(&(columns - 32, rows - 64)));
    }
}
