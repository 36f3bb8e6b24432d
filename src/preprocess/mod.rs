//! From sensor bytes to model input, on the host. The only such path: `trainer` and `dsad` both go through [`prepare`].

pub mod canny;
pub mod decode;
mod resize;
pub mod spec;

use std::sync::Arc;

use self::resize::{Region, Resizer};
use self::spec::{Geometry, Normalisation, PreprocessSpec, SketchPlane};
use crate::inspection::frame::{Frame, PixelFormat, Prepared, Rectangle};
use crate::inspection::mask::Placement;
use crate::inspection::recipe::Recipe;
use crate::inspection::roi::{Roi, Transform};

/// Smallest side of an inspected region, pixels.
pub const SMALLEST_SIDE: usize = 8;

/// Why a frame cannot become model input.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PrepareError {
    /// The buffer does not hold the frame.
    #[error("frame of {width}x{height} {format:?} needs {expected} bytes and has {actual}")]
    Length {
        /// Columns stated.
        width: u32,
        /// Rows stated.
        height: u32,
        /// Layout stated.
        format: PixelFormat,
        /// Bytes that this takes.
        expected: usize,
        /// Bytes there are.
        actual: usize,
    },
    /// The region is not inside the frame, or has no pixel.
    #[error("roi: {0}")]
    Roi(String),
    /// A polygon of the recipe means nothing on the model grid of this frame.
    #[error("{0}")]
    Rois(String),
    /// The region has too few pixels to show a part; stretched to the model grid it would be judged all the same.
    #[error(
        "{width}x{height} pixels are inspected, at least {SMALLEST_SIDE}x{SMALLEST_SIDE} are needed; check the picture and the ROI"
    )]
    TooSmall {
        /// Columns of the region.
        width: usize,
        /// Rows of the region.
        height: usize,
    },
    /// The model grid is none that a network takes.
    #[error("preprocess: {0}")]
    Spec(String),
}

/// Rows and columns of a crop, in frame pixels.
struct Crop {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
}

/// Crops, resizes and normalises a frame. The same frame gives the same bits.
///
/// Triangle filter with antialias (its support grows with the reduction); grey becomes three equal channels; 16-bit
/// samples are scaled by their bit depth, never by the image's own maximum.
///
/// # Errors
/// A grid that [`PreprocessSpec::problem`] names, a buffer of the wrong length, a region outside of the frame or of fewer
/// than [`SMALLEST_SIDE`] pixels a side.
pub fn prepare(frame: &Frame, roi: &Roi, spec: &PreprocessSpec) -> Result<Prepared, PrepareError> {
    Preparer::default().prepare(frame, roi, spec)
}

/// Prepares frame after frame in the same buffers.
#[derive(Default)]
pub struct Preparer {
    resizer: Resizer,
    /// The region at the size of the model grid, in bytes or in words.
    small: (Vec<u8>, Vec<u16>),
    /// The same in 0 to 1.
    values: Vec<f32>,
    /// Model inputs that were given out, to be filled again when nobody holds them any more.
    planes: Vec<Arc<Vec<f32>>>,
}

/// Model inputs that are kept: those that wait for the device, one at it, and one that is drawn.
const KEPT: usize = 8;

impl Preparer {
    /// As [`prepare`].
    ///
    /// # Errors
    /// As [`prepare`].
    pub fn prepare(&mut self, frame: &Frame, roi: &Roi, spec: &PreprocessSpec) -> Result<Prepared, PrepareError> {
        if let Some(problem) = spec.problem() {
            return Err(PrepareError::Spec(problem));
        }
        let meta = &frame.meta;
        let (frame_width, frame_height) = (meta.width as usize, meta.height as usize);
        // A size that overflows is a size that no buffer has.
        let expected = frame_width.saturating_mul(frame_height).saturating_mul(frame.format.bytes_per_pixel());
        let bytes: &[u8] = &frame.pixels;
        if bytes.len() != expected || expected == 0 {
            return Err(PrepareError::Length {
                width: meta.width,
                height: meta.height,
                format: frame.format,
                expected,
                actual: bytes.len(),
            });
        }
        let crop = crop(roi, frame_width, frame_height)?;
        let (width, height) = spec.canvas();
        let (inner_width, inner_height) = match spec.geometry {
            Geometry::Stretch => (width, height),
            Geometry::Letterbox => {
                let scale = (width as f64 / crop.width as f64).min(height as f64 / crop.height as f64);
                let side = |length: usize, limit: usize| ((length as f64 * scale).round() as usize).clamp(1, limit);
                (side(crop.width, width), side(crop.height, height))
            }
        };
        let (left, top) = ((width - inner_width) / 2, (height - inner_height) / 2);
        self.resize(bytes, frame.format, frame_width, &crop, [inner_width, inner_height]);
        let plane = width * height;
        let mut image = self.free(3 * plane);
        let unit = Arc::make_mut(&mut image);
        if spec.geometry == Geometry::Letterbox {
            unit.fill(0.5);
        }
        for (y, row) in self.values.chunks_exact(3 * inner_width).enumerate() {
            let start = (top + y) * width + left;
            for (x, pixel) in row.chunks_exact(3).enumerate() {
                for (channel, value) in pixel.iter().enumerate() {
                    unit[channel * plane + start + x] = *value;
                }
            }
        }
        let sketch = (spec.sketch == SketchPlane::Canny).then(|| canny::canny(unit, width, height));
        // Of the picture, not of the bars around it.
        let light = self.values.iter().sum::<f32>() / self.values.len() as f32;
        normalise(unit, plane, spec.normalisation);
        if self.planes.len() < KEPT && !self.planes.iter().any(|kept| Arc::ptr_eq(kept, &image)) {
            self.planes.push(Arc::clone(&image));
        }
        let (scale_x, scale_y) = (crop.width as f64 / inner_width as f64, crop.height as f64 / inner_height as f64);
        let transform = Transform {
            offset_x: crop.x as f64 - left as f64 * scale_x,
            offset_y: crop.y as f64 - top as f64 * scale_y,
            scale_x,
            scale_y,
        };
        let tiles = spec.tiles.map(|tiles| (tiles, (spec.width, spec.height)));
        let inside = Rectangle { left, top, width: inner_width, height: inner_height };
        Ok(Prepared { width, height, tiles, image, sketch, light, transform, inside, rois: None })
    }

    /// A buffer of this length that nobody holds. What is in it is that of an older frame.
    fn free(&mut self, length: usize) -> Arc<Vec<f32>> {
        let free = self.planes.iter().position(|kept| Arc::strong_count(kept) == 1);
        let mut image = free.map_or_else(Arc::default, |index| self.planes.swap_remove(index));
        Arc::make_mut(&mut image).resize(length, 0.0);
        image
    }

    /// The crop at the size asked for, interleaved RGB in 0 to 1, into `values`.
    fn resize(&mut self, frame: &[u8], format: PixelFormat, stride: usize, crop: &Crop, size: [usize; 2]) {
        let (bytes, row) = (format.bytes_per_pixel(), stride * format.bytes_per_pixel());
        let channels = match format {
            PixelFormat::Gray8 | PixelFormat::Gray16 { .. } => 1,
            PixelFormat::Rgb8 | PixelFormat::Rgb16 => 3,
        };
        let first = crop.y * row + crop.x * bytes;
        let region = Region { bytes: &frame[first..], stride: row, width: crop.width, height: crop.height, channels };
        let (small, wide) = &mut self.small;
        // Without the bits above the depth.
        let most = match format {
            PixelFormat::Gray16 { bits } => u16::MAX >> (16 - bits.clamp(1, 16)),
            _ => u16::MAX,
        };
        match format {
            PixelFormat::Gray8 | PixelFormat::Rgb8 => {
                small.resize(size[0] * size[1] * channels, 0);
                self.resizer.bytes(&region, size, small);
            }
            PixelFormat::Gray16 { .. } | PixelFormat::Rgb16 => {
                wide.resize(size[0] * size[1] * channels, 0);
                self.resizer.words(&region, most, size, wide);
            }
        }
        let narrow = |value: &u8| f32::from(*value) / 255.0;
        let deep = |value: &u16| f32::from(*value) / f32::from(most);
        let values = &mut self.values;
        values.clear();
        match format {
            PixelFormat::Rgb8 => values.extend(small.iter().map(narrow)),
            PixelFormat::Gray8 => values.extend(small.iter().flat_map(|value| [narrow(value); 3])),
            PixelFormat::Rgb16 => values.extend(wide.iter().map(deep)),
            PixelFormat::Gray16 { .. } => values.extend(wide.iter().flat_map(|value| [deep(value); 3])),
        }
    }

    /// Prepares a frame as a recipe asks for it: its part of the frame, and what of that counts.
    ///
    /// # Errors
    /// As [`prepare`], or a ROI of which nothing is left on the model grid.
    pub fn prepare_for(
        &mut self,
        recipe: &Recipe,
        frame: &Frame,
        spec: &PreprocessSpec,
    ) -> Result<Prepared, PrepareError> {
        let prepared = self.prepare(frame, &recipe.roi, spec)?;
        let Prepared { width, height, inside, transform, .. } = prepared;
        let placement = Placement { width, height, inside, transform, frame: (frame.meta.width, frame.meta.height) };
        let rois = recipe.rois.mask(&placement).map_err(|problem| PrepareError::Rois(problem.to_string()))?;
        Ok(Prepared { rois, ..prepared })
    }
}

/// As [`Preparer::prepare_for`], for one frame.
///
/// # Errors
/// As [`prepare`], or a ROI of which nothing is left on the model grid.
pub fn prepare_for(recipe: &Recipe, frame: &Frame, spec: &PreprocessSpec) -> Result<Prepared, PrepareError> {
    Preparer::default().prepare_for(recipe, frame, spec)
}

fn crop(roi: &Roi, width: usize, height: usize) -> Result<Crop, PrepareError> {
    if let Some(problem) = roi.problem() {
        return Err(PrepareError::Roi(problem));
    }
    let edge = |start: f64, length: f64, size: usize| {
        let first = ((start * size as f64).round() as usize).min(size - 1);
        let last = (((start + length) * size as f64).round() as usize).clamp(first + 1, size);
        (first, last - first)
    };
    let (x, crop_width) = edge(roi.x, roi.width, width);
    let (y, crop_height) = edge(roi.y, roi.height, height);
    if crop_width.min(crop_height) < SMALLEST_SIDE {
        return Err(PrepareError::TooSmall { width: crop_width, height: crop_height });
    }
    Ok(Crop { x, y, width: crop_width, height: crop_height })
}

/// Planar model input `[3, height, width]` as interleaved bytes RGB.
pub fn to_rgb(planes: &[f32], normalisation: Normalisation) -> Vec<u8> {
    let plane = planes.len() / 3;
    let value = |channel: usize, value: f32| match normalisation {
        Normalisation::SymmetricOne => (value + 1.0) * 127.5,
        Normalisation::ImageNet => (value * DEVIATION[channel] + MEAN[channel]) * 255.0,
    };
    // The conversion saturates, and bytes are not negative: half more is `round`, which is a call without SSE 4.1.
    let byte = |channel: usize, plane: f32| (value(channel, plane) + 0.5) as u8;
    let (red, rest) = planes.split_at(plane);
    let (green, blue) = rest.split_at(plane);
    let mut rgb = vec![0; 3 * plane];
    for (((rgb, red), green), blue) in rgb.chunks_exact_mut(3).zip(red).zip(green).zip(blue) {
        rgb.copy_from_slice(&[byte(0, *red), byte(1, *green), byte(2, *blue)]);
    }
    rgb
}

/// Mean and standard deviation of ImageNet's channels in 0 to 1.
/// What [`Normalisation::ImageNet`] takes off a channel of 0 to 1, and divides it by.
pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// See [`MEAN`].
pub const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

fn normalise(planes: &mut [f32], plane: usize, normalisation: Normalisation) {
    for (channel, values) in planes.chunks_exact_mut(plane).enumerate() {
        match normalisation {
            Normalisation::SymmetricOne => values.iter_mut().for_each(|v| *v = *v * 2.0 - 1.0),
            Normalisation::ImageNet => {
                values.iter_mut().for_each(|v| *v = (*v - MEAN[channel]) / DEVIATION[channel]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspection::frame::{CameraId, FrameBuf, FrameId, FrameMeta};
    use crate::inspection::time::Timestamp;

    fn frame(width: u32, height: u32, format: PixelFormat, pixels: Vec<u8>) -> Frame {
        let meta = FrameMeta {
            id: FrameId(0),
            camera: CameraId("test".into()),
            captured_at: Timestamp(0),
            sequence: 0,
            trigger: None,
            width,
            height,
        };
        Frame { meta, format, pixels: FrameBuf::from(pixels) }
    }

    fn spec(geometry: Geometry) -> PreprocessSpec {
        PreprocessSpec {
            width: 64,
            height: 32,
            geometry,
            normalisation: Normalisation::SymmetricOne,
            sketch: SketchPlane::None,
            tiles: None,
        }
    }

    #[test]
    fn sixteen_bit_samples_are_scaled_by_their_depth() {
        for (bits, value) in [(10u8, 1023u16), (12, 4095), (16, 65535), (12, 2048)] {
            let pixels: Vec<u8> = value.to_le_bytes().into_iter().cycle().take(2 * 80 * 40).collect();
            let prepared =
                prepare(&frame(80, 40, PixelFormat::Gray16 { bits }, pixels), &Roi::FULL, &spec(Geometry::Stretch))
                    .expect("prepares");
            let expected = f32::from(value) / f32::from(u16::MAX >> (16 - bits)) * 2.0 - 1.0;
            assert!(prepared.image.iter().all(|v| (v - expected).abs() < 1e-4), "{bits} bits");
        }
    }

    #[test]
    fn a_region_of_a_few_pixels_is_no_part() {
        let full = prepare(&frame(8, 8, PixelFormat::Gray8, vec![255; 64]), &Roi::FULL, &spec(Geometry::Stretch));
        assert!(full.expect("prepares").image.iter().all(|v| *v == 1.0));
        for (width, height) in [(1, 1), (7, 8), (8, 7)] {
            let small = frame(width, height, PixelFormat::Gray8, vec![255; (width * height) as usize]);
            let error = prepare(&small, &Roi::FULL, &spec(Geometry::Stretch)).expect_err("refused");
            assert_eq!(error, PrepareError::TooSmall { width: width as usize, height: height as usize });
        }
    }

    #[test]
    fn reduction_averages_instead_of_picking() {
        let pixels = (0..256 * 128).map(|i| if (i % 256 + i / 256) % 2 == 0 { 0 } else { 255 }).collect();
        let prepared = prepare(&frame(256, 128, PixelFormat::Gray8, pixels), &Roi::FULL, &spec(Geometry::Stretch))
            .expect("prepares");
        assert!(prepared.image.iter().all(|v| v.abs() < 0.02));
    }

    #[test]
    fn channels_stay_apart_and_in_order() {
        let pixels = [255u8, 0, 127].into_iter().cycle().take(3 * 64 * 32).collect();
        let prepared =
            prepare(&frame(64, 32, PixelFormat::Rgb8, pixels), &Roi::FULL, &spec(Geometry::Stretch)).expect("prepares");
        let plane = 64 * 32;
        assert!(prepared.image[..plane].iter().all(|v| *v == 1.0));
        assert!(prepared.image[plane..2 * plane].iter().all(|v| *v == -1.0));
        assert!(prepared.image[2 * plane..].iter().all(|v| v.abs() < 0.01));
    }

    #[test]
    fn letterbox_keeps_the_aspect_and_maps_back() {
        let prepared =
            prepare(&frame(100, 100, PixelFormat::Gray8, vec![255; 10_000]), &Roi::FULL, &spec(Geometry::Letterbox))
                .expect("prepares");
        assert_eq!((prepared.image[0], prepared.image[16]), (0.0, 1.0));
        let corner = prepared.transform.to_frame(16.0, 0.0, 32.0, 32.0);
        assert!((corner.x).abs() < 1e-9 && (corner.width - 100.0).abs() < 1e-9 && (corner.height - 100.0).abs() < 1e-9);
    }

    #[test]
    fn a_region_is_cropped_and_maps_back() {
        let mut pixels = vec![0u8; 100 * 100];
        for y in 50..100 {
            pixels[y * 100 + 50..(y + 1) * 100].fill(255);
        }
        let roi = Roi { x: 0.5, y: 0.5, width: 0.5, height: 0.5 };
        let frame = frame(100, 100, PixelFormat::Gray8, pixels);
        let prepared = prepare(&frame, &roi, &spec(Geometry::Stretch)).expect("prepares");
        assert!(prepared.image.iter().all(|v| *v == 1.0));
        assert_eq!(prepared.transform.to_frame(0.0, 0.0, 64.0, 32.0).x, 50.0);
        let outside = Roi { x: 0.6, ..roi };
        assert!(matches!(prepare(&frame, &outside, &spec(Geometry::Stretch)), Err(PrepareError::Roi(_))));
    }

    #[test]
    fn a_constant_picture_stays_constant_at_every_size() {
        for (width, height) in [(8, 9), (31, 33), (64, 32), (97, 200), (640, 481)] {
            for value in [1u8, 77, 128, 254] {
                let pixels = vec![value; 3 * width * height];
                let frame = frame(width as u32, height as u32, PixelFormat::Rgb8, pixels);
                let prepared = prepare(&frame, &Roi::FULL, &spec(Geometry::Stretch)).expect("prepares");
                let expected = f32::from(value) / 127.5 - 1.0;
                assert!(prepared.image.iter().all(|v| (v - expected).abs() < 1e-6), "{width}x{height} of {value}");
            }
        }
    }

    #[test]
    fn the_same_frame_gives_the_same_bits() {
        let pixels: Vec<u8> = (0..2 * 301 * 203u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let spec = PreprocessSpec { sketch: SketchPlane::Canny, ..spec(Geometry::Letterbox) };
        let run = || {
            let frame = frame(301, 203, PixelFormat::Gray16 { bits: 12 }, pixels.clone());
            prepare(&frame, &Roi { x: 0.1, y: 0.2, width: 0.7, height: 0.5 }, &spec).expect("prepares")
        };
        let bits = |p: &Prepared| p.image.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let (first, second) = (run(), run());
        assert_eq!(bits(&first), bits(&second));
        assert_eq!(first, second);
    }

    #[test]
    fn frames_in_the_same_buffers_do_not_mix() {
        let grey = |value: u8| frame(80, 40, PixelFormat::Gray8, vec![value; 80 * 40]);
        let tall = frame(20, 90, PixelFormat::Rgb8, vec![77; 3 * 20 * 90]);
        let (spec, full) = (spec(Geometry::Letterbox), &Roi::FULL);
        let mut preparer = Preparer::default();
        let held: Vec<Prepared> = (0..20).map(|v| preparer.prepare(&grey(v), full, &spec).expect("prepares")).collect();
        let again = preparer.prepare(&tall, full, &spec).expect("prepares");
        assert_eq!(again, prepare(&tall, full, &spec).expect("prepares"));
        for (value, prepared) in (0..20).zip(&held) {
            assert_eq!(*prepared, prepare(&grey(value), full, &spec).expect("prepares"));
        }
        let place = held[0].image.as_ptr();
        drop(held);
        let again = |v| preparer.prepare(&grey(v), full, &spec).expect("prepares").image.as_ptr();
        let places: Vec<_> = (0..20).map(again).collect();
        assert!(places.contains(&place), "a buffer that nobody holds is filled again");
    }

    #[test]
    fn sixteen_bit_precision_survives_the_resize() {
        // Two neighbours of a 16-bit ramp that an 8-bit resize would make equal.
        let grey = |value: u16| {
            let pixels: Vec<u8> = value.to_le_bytes().into_iter().cycle().take(2 * 90 * 90).collect();
            let frame = frame(90, 90, PixelFormat::Gray16 { bits: 16 }, pixels);
            prepare(&frame, &Roi::FULL, &spec(Geometry::Stretch)).expect("prepares").image[0]
        };
        assert!(grey(30_001) > grey(30_000));
    }

    #[test]
    fn the_edge_plane_is_there_when_it_is_asked_for() {
        let pixels = (0..128 * 64).map(|i| if i % 128 < 64 { 20 } else { 230 }).collect();
        let frame = frame(128, 64, PixelFormat::Gray8, pixels);
        let plain = prepare(&frame, &Roi::FULL, &spec(Geometry::Stretch)).expect("prepares");
        assert_eq!(plain.sketch, None);
        let with = PreprocessSpec { sketch: SketchPlane::Canny, ..spec(Geometry::Stretch) };
        let edges = prepare(&frame, &Roi::FULL, &with).expect("prepares").sketch.expect("a sketch");
        assert!(edges.chunks_exact(64).all(|row| row.iter().sum::<f32>() == 1.0 && row[31] + row[32] == 1.0));
    }

    #[test]
    fn imagenet_is_normalised_per_channel() {
        let spec = PreprocessSpec { normalisation: Normalisation::ImageNet, ..spec(Geometry::Stretch) };
        let frame = frame(8, 8, PixelFormat::Rgb8, vec![255; 3 * 64]);
        let image = prepare(&frame, &Roi::FULL, &spec).expect("prepares").image;
        let plane = 64 * 32;
        for (value, expected) in [(image[0], 2.248_908), (image[plane], 2.428_571), (image[2 * plane], 2.64)] {
            assert!((value - expected).abs() < 1e-5, "{value} is not {expected}");
        }
    }

    #[test]
    fn a_grid_that_no_network_takes_is_an_error() {
        let frame = frame(8, 8, PixelFormat::Gray8, vec![0; 64]);
        for width in [0, 33, 4096] {
            let spec = PreprocessSpec { width, ..spec(Geometry::Stretch) };
            assert!(matches!(prepare(&frame, &Roi::FULL, &spec), Err(PrepareError::Spec(_))), "{width}");
        }
    }

    #[test]
    fn a_size_that_overflows_is_an_error() {
        let frame = frame(u32::MAX, u32::MAX, PixelFormat::Rgb16, vec![0; 6]);
        let result = prepare(&frame, &Roi::FULL, &spec(Geometry::Stretch));
        assert!(matches!(result, Err(PrepareError::Length { actual: 6, .. })));
    }

    #[test]
    fn a_short_buffer_is_an_error() {
        let short = frame(100, 100, PixelFormat::Rgb8, vec![0; 100]);
        assert!(matches!(
            prepare(&short, &Roi::FULL, &spec(Geometry::Stretch)),
            Err(PrepareError::Length { expected: 30_000, actual: 100, .. })
        ));
    }
}
