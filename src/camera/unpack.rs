//! The bytes of a camera's buffer as pixels that are judged.
//!
//! Whatever a driver states, nothing is read beyond the bytes that it says it filled: a buffer that is too short is an error.

use yuv::{YuvBiPlanarImage, YuvConversionMode, YuvPackedImage, YuvRange, YuvStandardMatrix};

use crate::inspection::frame::{FrameBuf, PixelFormat};
use crate::inspection::layout::{Layout, Mosaic};
use crate::inspection::pool::FramePool;
use crate::preprocess::decode::{self, MAX_PIXELS};

/// How brightness and colour were made of red, green and blue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    /// By ITU-R BT.709 and not BT.601.
    pub bt709: bool,
    /// Over all 256 values and not 16 to 235.
    pub full_range: bool,
}

/// What is in a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Picture {
    /// Layout.
    pub layout: Layout,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Bytes from one row to the next; 0 where rows follow one another.
    pub stride: usize,
    /// For layouts with brightness and colour.
    pub encoding: Encoding,
}

/// Makes pixels of a camera's buffers, in buffers that are used again: after the first frames of a size it allocates nothing,
/// but for what the decoder of JPEG allocates itself.
#[derive(Debug, Default)]
pub struct Unpacker {
    pool: FramePool,
    between: Between,
}

/// Room for what is between a camera's buffer and the pixels.
#[derive(Debug, Default)]
struct Between {
    rows: Vec<u8>,
    cells: Vec<u16>,
    padded: Vec<u16>,
    colours: Vec<u16>,
}

impl Unpacker {
    /// Layout and pixels of a camera's buffer, row by row without padding.
    ///
    /// # Errors
    /// Too few bytes, a size that is not read, or a damaged JPEG.
    pub fn unpack(&mut self, picture: &Picture, bytes: &[u8]) -> Result<(PixelFormat, FrameBuf), String> {
        let Self { pool, between } = self;
        pool.fill(|pixels| picture.unpack(bytes, between, pixels))
    }
}

impl Picture {
    fn unpack(&self, bytes: &[u8], between: &mut Between, pixels: &mut Vec<u8>) -> Result<PixelFormat, String> {
        let Self { layout, width, height, .. } = *self;
        if width == 0 || height == 0 || (width as u64).saturating_mul(height as u64) > MAX_PIXELS {
            return Err(format!("pictures of {width}x{height} are not read"));
        }
        let Between { rows, cells, .. } = between;
        Ok(match layout {
            Layout::Jpeg => {
                // Some cameras fill the rest of the buffer: what follows the end of the file is nobody's.
                let picture = decode::decode(bytes).map_err(|error| error.to_string())?;
                let (columns, rows) = (picture.width, picture.height);
                if [columns as usize, rows as usize] != [width, height] {
                    return Err(format!("a JPEG of {columns}x{rows} where the camera said {width}x{height}"));
                }
                *pixels = picture.pixels;
                picture.format
            }
            Layout::Grey8 => {
                self.rows(bytes, width, height, pixels)?;
                PixelFormat::Gray8
            }
            Layout::Grey16 { bits } => {
                self.rows(bytes, 2 * width, height, pixels)?;
                PixelFormat::Gray16 { bits }
            }
            Layout::Rgb8 => {
                self.rows(bytes, 3 * width, height, pixels)?;
                PixelFormat::Rgb8
            }
            Layout::Bgr8 => {
                self.rows(bytes, 3 * width, height, pixels)?;
                pixels.chunks_exact_mut(3).for_each(|pixel| pixel.swap(0, 2));
                PixelFormat::Rgb8
            }
            Layout::Yuyv | Layout::Uyvy => {
                self.even("two pixels share their colour", width % 2)?;
                self.rows(bytes, 2 * width, height, rows)?;
                self.packed(rows, pixels)?;
                PixelFormat::Rgb8
            }
            Layout::Nv12 => {
                self.even("2x2 pixels share their colour", width % 2 + height % 2)?;
                self.rows(bytes, width, height + height / 2, rows)?;
                self.planar(rows, pixels)?;
                PixelFormat::Rgb8
            }
            Layout::Bayer8(mosaic) => {
                self.rows(bytes, width, height, rows)?;
                cells.clear();
                cells.extend(rows.iter().map(|value| u16::from(*value)));
                self.demosaic(mosaic, between)?;
                pixels.clear();
                pixels.extend(between.colours.iter().map(|value| *value as u8));
                PixelFormat::Rgb8
            }
            Layout::Bayer16(mosaic) => {
                self.rows(bytes, 2 * width, height, rows)?;
                cells.clear();
                cells.extend(rows.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])));
                self.demosaic(mosaic, between)?;
                pixels.resize(6 * width * height, 0);
                for (pair, value) in pixels.chunks_exact_mut(2).zip(&between.colours) {
                    pair.copy_from_slice(&value.to_le_bytes());
                }
                PixelFormat::Rgb16
            }
        })
    }

    /// The bytes of `rows` rows of `row` bytes, without what lies between them.
    fn rows(&self, bytes: &[u8], row: usize, rows: usize, out: &mut Vec<u8>) -> Result<(), String> {
        let Self { width, height, .. } = self;
        let stride = match self.stride {
            0 => row,
            stride if stride < row || stride > 64 * row.max(1024) => {
                return Err(format!("{stride} bytes from row to row, where one has {row}"));
            }
            stride => stride,
        };
        // The last row may end where its pixels do.
        let needed = stride * (rows - 1) + row;
        if bytes.len() < needed {
            return Err(format!("{} bytes where {width}x{height} need {needed}", bytes.len()));
        }
        out.clear();
        out.reserve(row * rows);
        (0..rows).for_each(|y| out.extend_from_slice(&bytes[y * stride..][..row]));
        Ok(())
    }

    fn matrix(&self) -> (YuvRange, YuvStandardMatrix) {
        let range = if self.encoding.full_range { YuvRange::Full } else { YuvRange::Limited };
        (range, if self.encoding.bt709 { YuvStandardMatrix::Bt709 } else { YuvStandardMatrix::Bt601 })
    }

    fn packed(&self, whole: &[u8], rgb: &mut Vec<u8>) -> Result<(), String> {
        let (w, h) = (self.width as u32, self.height as u32);
        let image = YuvPackedImage { yuy: whole, yuy_stride: 2 * w, width: w, height: h };
        rgb.resize(3 * self.width * self.height, 0);
        let (range, matrix) = self.matrix();
        let convert = if self.layout == Layout::Yuyv { yuv::yuyv422_to_rgb } else { yuv::uyvy422_to_rgb };
        convert(&image, rgb, 3 * w, range, matrix).map_err(|error| error.to_string())
    }

    fn planar(&self, whole: &[u8], rgb: &mut Vec<u8>) -> Result<(), String> {
        let (brightness, colour) = whole.split_at(self.width * self.height);
        let (w, h) = (self.width as u32, self.height as u32);
        let image =
            YuvBiPlanarImage { y_plane: brightness, y_stride: w, uv_plane: colour, uv_stride: w, width: w, height: h };
        rgb.resize(3 * self.width * self.height, 0);
        let (range, matrix) = self.matrix();
        yuv::yuv_nv12_to_rgb(&image, rgb, 3 * w, range, matrix, YuvConversionMode::Balanced)
            .map_err(|error| error.to_string())
    }

    fn even(&self, why: &str, rest: usize) -> Result<(), String> {
        let Self { width, height, .. } = self;
        if rest != 0 { Err(format!("{width}x{height}: {why}, so sides must be even")) } else { Ok(()) }
    }

    /// Red, green and blue of every pixel: its own colour, and the means of the nearest cells of the others (bilinear).
    fn demosaic(&self, mosaic: Mosaic, between: &mut Between) -> Result<(), String> {
        let (width, height) = (self.width, self.height);
        let Between { cells, padded, colours, .. } = between;
        if width < 2 || height < 2 {
            return Err(format!("{width}x{height}: a mosaic has at least 2x2 pixels"));
        }
        // Column and row parity of red; blue is at the other diagonal.
        let (red_x, red_y) = match mosaic {
            Mosaic::Rggb => (0, 0),
            Mosaic::Grbg => (1, 0),
            Mosaic::Gbrg => (0, 1),
            Mosaic::Bggr => (1, 1),
        };
        // One cell more on every side, mirrored at the outermost, which keeps the colours in turn.
        let pitch = width + 2;
        padded.clear();
        for y in 0..height + 2 {
            let y = if y == 0 {
                1
            } else if y == height + 1 {
                height - 2
            } else {
                y - 1
            };
            let row = &cells[y * width..][..width];
            padded.push(row[1]);
            padded.extend_from_slice(row);
            padded.push(row[width - 2]);
        }
        colours.resize(3 * width * height, 0);
        for (y, out) in colours.chunks_exact_mut(3 * width).enumerate() {
            let row = |k: usize| &padded[(y + k) * pitch..][..pitch];
            let around = row(0).windows(3).zip(row(1).windows(3)).zip(row(2).windows(3));
            let of_red = y % 2 == red_y;
            for (x, (pixel, ((above, here), below))) in out.chunks_exact_mut(3).zip(around).enumerate() {
                let mean2 = |a: u16, b: u16| ((u32::from(a) + u32::from(b)) / 2) as u16;
                let mean4 = |a: u16, b: u16, c: u16, d: u16| {
                    ((u32::from(a) + u32::from(b) + u32::from(c) + u32::from(d)) / 4) as u16
                };
                let beside = mean2(here[0], here[2]);
                let upright = mean2(above[1], below[1]);
                let touching = mean4(here[0], here[2], above[1], below[1]);
                let diagonal = mean4(above[0], above[2], below[0], below[2]);
                let rgb = match (of_red, x % 2 == red_x) {
                    (true, true) => [here[1], touching, diagonal],
                    (false, false) => [diagonal, touching, here[1]],
                    (true, false) => [beside, here[1], upright],
                    (false, true) => [upright, here[1], beside],
                };
                pixel.copy_from_slice(&rgb);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::inspection::layout::LAYOUTS;

    const PLAIN: Encoding = Encoding { bt709: false, full_range: false };

    fn picture(layout: Layout, width: usize, height: usize, stride: usize) -> Picture {
        Picture { layout, width, height, stride, encoding: PLAIN }
    }

    fn unpack(picture: Picture, bytes: &[u8]) -> Result<(PixelFormat, FrameBuf), String> {
        Unpacker::default().unpack(&picture, bytes)
    }

    fn unpacked(layout: Layout, size: (usize, usize), stride: usize, bytes: &[u8]) -> Vec<u8> {
        unpack(picture(layout, size.0, size.1, stride), bytes).expect("unpacks").1.to_vec()
    }

    #[test]
    fn rows_are_taken_without_their_padding() {
        assert_eq!(unpacked(Layout::Grey8, (2, 2), 3, &[1, 2, 99, 3, 4]), [1, 2, 3, 4]);
        assert_eq!(unpacked(Layout::Bgr8, (1, 2), 4, &[1, 2, 3, 99, 4, 5, 6]), [3, 2, 1, 6, 5, 4]);
        let bytes = [1, 2, 99, 99, 3, 4];
        let (format, pixels) = unpack(picture(Layout::Grey16 { bits: 12 }, 1, 2, 4), &bytes).expect("unpacks");
        assert_eq!((format, &pixels[..]), (PixelFormat::Gray16 { bits: 12 }, &[1, 2, 3, 4][..]));
    }

    #[test]
    fn brightness_and_colour_become_red_green_and_blue() {
        // BT.601, limited: 16 is black, 235 white; (81, 90, 240) is pure red. BT.709: (63, 102, 240).
        let near = |found: &[u8], expected: [u8; 3]| {
            found.iter().zip(expected).all(|(found, expected)| found.abs_diff(expected) <= 2)
        };
        let pixels = unpacked(Layout::Yuyv, (2, 1), 0, &[16, 128, 235, 128]);
        assert!(near(&pixels[..3], [0, 0, 0]) && near(&pixels[3..], [255, 255, 255]), "{pixels:?}");
        let pixels = unpacked(Layout::Uyvy, (2, 2), 6, &[90, 81, 240, 81, 7, 7, 90, 81, 240, 81]);
        assert!(pixels.chunks(3).all(|pixel| near(pixel, [255, 0, 0])), "{pixels:?}");
        let pixels = unpacked(Layout::Nv12, (2, 2), 0, &[81, 81, 81, 81, 90, 240]);
        assert!(pixels.chunks(3).all(|pixel| near(pixel, [255, 0, 0])), "{pixels:?}");
        let encoding = Encoding { bt709: true, full_range: false };
        let high = Picture { encoding, ..picture(Layout::Yuyv, 2, 1, 0) };
        let (_, pixels) = unpack(high, &[63, 102, 63, 240]).expect("unpacks");
        assert!(near(&pixels[..3], [255, 0, 0]), "{pixels:?}");
        let encoding = Encoding { bt709: false, full_range: true };
        let full = Picture { encoding, ..picture(Layout::Yuyv, 2, 1, 0) };
        let (_, pixels) = unpack(full, &[0, 128, 200, 128]).expect("unpacks");
        assert!(near(&pixels, [0, 0, 0]) && near(&pixels[3..], [200, 200, 200]), "{pixels:?}");
    }

    #[test]
    fn a_mosaic_of_one_colour_is_that_colour_everywhere() {
        let colour = [200u8, 100, 50];
        for (mosaic, cells) in [
            (Mosaic::Rggb, [0, 1, 1, 2]),
            (Mosaic::Grbg, [1, 0, 2, 1]),
            (Mosaic::Gbrg, [1, 2, 0, 1]),
            (Mosaic::Bggr, [2, 1, 1, 0]),
        ] {
            let cell = |k: usize| colour[cells[k / 6 % 2 * 2 + k % 6 % 2]];
            let bytes: Vec<u8> = (0..24).map(cell).collect();
            let pixels = unpacked(Layout::Bayer8(mosaic), (6, 4), 0, &bytes);
            assert!(pixels.chunks(3).all(|pixel| pixel == colour), "{mosaic:?}: {pixels:?}");
            let wide: Vec<u8> = bytes.iter().flat_map(|value| (u16::from(*value) * 257).to_le_bytes()).collect();
            let pixels = unpacked(Layout::Bayer16(mosaic), (6, 4), 0, &wide);
            let values: Vec<u16> = pixels.chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
            assert!(values.chunks(3).all(|pixel| pixel == colour.map(|value| u16::from(value) * 257)), "{mosaic:?}");
        }
    }

    #[test]
    fn between_cells_of_a_colour_is_their_mean() {
        // Green falls from left to right; the red cell in the middle lies between 30 and 10, and 20 and 20.
        let cells = [9, 20, 9, 0, 30, 77, 10, 0, 9, 20, 9, 0, 0, 0, 0, 0];
        let pixels = unpacked(Layout::Bayer8(Mosaic::Bggr), (4, 4), 0, &cells);
        assert_eq!(pixels[3 * 5..][..3], [77, 20, 9]);
    }

    #[test]
    fn a_short_buffer_is_an_error_in_every_layout() {
        for (name, layout) in LAYOUTS {
            let error = unpack(picture(layout, 64, 48, 0), &[0; 64]).expect_err(name);
            assert!(error.contains("64 bytes") || layout == Layout::Jpeg, "{name}: {error}");
        }
    }

    /// How many frames of a layout are damaged: 1e6 by hand.
    fn mutated_frames() -> usize {
        std::env::var("DSAD_MUTATED_FRAMES").ok().and_then(|count| count.parse().ok()).unwrap_or(100_000)
    }

    #[test]
    fn mutated_frames_are_pixels_or_an_error() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut jpeg = Vec::new();
        let part: Vec<u8> = (0..32 * 24 * 3).map(|i| (i * 7 % 251) as u8).collect();
        jpeg_encoder::Encoder::new(&mut jpeg, 80).encode(&part, 32, 24, jpeg_encoder::ColorType::Rgb).expect("encodes");
        // One for all: what an older frame left in a buffer must not be seen in a newer one.
        let mut unpacker = Unpacker::default();
        for (name, layout) in LAYOUTS {
            let (mut whole, mut damaged) = (0, 0);
            let sound: Vec<u8> =
                if layout == Layout::Jpeg { jpeg.clone() } else { (0..32 * 24 * 6).map(|_| rng.random()).collect() };
            for _ in 0..mutated_frames() {
                let mut bytes = sound.clone();
                for _ in 0..rng.random_range(0..4) {
                    let at = rng.random_range(0..bytes.len());
                    bytes[at] = rng.random();
                }
                if rng.random_bool(0.3) {
                    bytes.truncate(rng.random_range(0..=bytes.len()));
                }
                let side = |rng: &mut ChaCha8Rng, usual: usize| {
                    if rng.random_bool(0.7) { usual } else { rng.random_range(0..80) }
                };
                let (width, height) = (side(&mut rng, 32), side(&mut rng, 24));
                let stride = if rng.random_bool(0.7) { 0 } else { rng.random_range(0..400) };
                let encoding = Encoding { bt709: rng.random(), full_range: rng.random() };
                match unpacker.unpack(&Picture { layout, width, height, stride, encoding }, &bytes) {
                    Ok((format, pixels)) => {
                        assert_eq!(pixels.len(), width * height * format.bytes_per_pixel(), "{name}");
                        whole += 1;
                    }
                    Err(_) => damaged += 1,
                }
            }
            assert!(whole > 0 && damaged > 0, "{name}: {whole} whole, {damaged} damaged");
        }
    }
}
