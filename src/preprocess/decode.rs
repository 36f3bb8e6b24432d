//! Picture files to pixels: PNG, JPEG, BMP, TIFF and PNM, known by their content.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, ImageReader, Limits};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::inspection::frame::{Frame, FrameBuf, FrameMeta, PixelFormat};

/// Pixels that a picture may have: 8 bytes each at most stay far below the memory of the smallest device.
pub const MAX_PIXELS: u64 = 64 * 1024 * 1024;

/// Extensions of picture files, lower case.
pub const EXTENSIONS: [&str; 10] = ["png", "jpg", "jpeg", "bmp", "tif", "tiff", "pnm", "pgm", "ppm", "pbm"];

/// Why bytes are not a picture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No known format.
    #[error("not a picture of a known format (PNG, JPEG, BMP, TIFF, PNM)")]
    Unknown,
    /// The header states more than is allowed; nothing was allocated.
    #[error("{width}x{height} pixels are more than the {} million that are read; reduce it, or set a smaller ROI on the camera", MAX_PIXELS / 1_000_000)]
    TooLarge {
        /// Columns stated.
        width: u64,
        /// Rows stated.
        height: u64,
    },
    /// The file is damaged or cut short.
    #[error("damaged {format}: {reason}")]
    Damaged {
        /// What it began as.
        format: String,
        /// What the decoder says.
        reason: String,
    },
}

/// A decoded picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Layout of `pixels`.
    pub format: PixelFormat,
    /// Row-major without padding.
    pub pixels: Vec<u8>,
}

impl Picture {
    /// The picture as a frame; `meta` states its size.
    pub fn into_frame(self, meta: FrameMeta) -> Frame {
        let meta = FrameMeta { width: self.width, height: self.height, ..meta };
        Frame { meta, format: self.format, pixels: FrameBuf::from(self.pixels) }
    }
}

/// Decodes a picture. An alpha channel is ignored; 16-bit samples stay 16 bits.
///
/// # Errors
/// An unknown format, a size above [`MAX_PIXELS`], or damage.
pub fn decode(bytes: &[u8]) -> Result<Picture, DecodeError> {
    match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => decode_jpeg(bytes),
        Ok(format @ (ImageFormat::Png | ImageFormat::Bmp | ImageFormat::Tiff | ImageFormat::Pnm)) => {
            decode_other(bytes, format)
        }
        _ => Err(DecodeError::Unknown),
    }
}

fn check(width: u64, height: u64) -> Result<(), DecodeError> {
    if width.saturating_mul(height) > MAX_PIXELS { Err(DecodeError::TooLarge { width, height }) } else { Ok(()) }
}

fn decode_jpeg(bytes: &[u8]) -> Result<Picture, DecodeError> {
    let damaged = |reason: String| DecodeError::Damaged { format: "JPEG".into(), reason };
    // Strict: a lenient decoder fills the missing rest of a cut file with grey, and grey would be judged.
    let options = DecoderOptions::default().set_strict_mode(true).set_max_width(65_535).set_max_height(65_535);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| damaged(error.to_string()))?;
    let (width, height) = decoder.dimensions().ok_or_else(|| damaged("no size".into()))?;
    check(width as u64, height as u64)?;
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let (space, format) =
        if grey { (ColorSpace::Luma, PixelFormat::Gray8) } else { (ColorSpace::RGB, PixelFormat::Rgb8) };
    if !jpeg_ends(bytes) {
        return Err(damaged("it is cut short: it has no end marker".into()));
    }
    decoder.set_options(options.jpeg_set_out_colorspace(space));
    let pixels = decoder.decode().map_err(|error| damaged(error.to_string()))?;
    if pixels.len() != width * height * format.bytes_per_pixel() {
        return Err(damaged("fewer pixels than the header states".into()));
    }
    Ok(Picture { width: width as u32, height: height as u32, format, pixels })
}

/// Whether the end marker follows the scans: a decoder may fill what is missing without it.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(2..).unwrap_or_default();
    // In coded data FF is followed by 0 or a restart number; FF FF is padding.
    let is_marker = |pair: &[u8]| pair[0] == 0xFF && !matches!(pair[1], 0x00 | 0x01 | 0xD0..=0xD7 | 0xFF);
    while let Some(start) = rest.windows(2).position(is_marker) {
        if rest[start + 1] == 0xD9 {
            return true;
        }
        // Segments are stepped over by their length: a thumbnail inside of one has an end marker of its own.
        let length = rest.get(start + 2..start + 4).map_or(0, |b| usize::from(u16::from_be_bytes([b[0], b[1]])));
        rest = rest.get(start + 2 + length..).unwrap_or_default();
    }
    false
}

/// Whether the end chunk is there in full.
fn png_ends(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((head, _)) = rest.split_first_chunk::<8>() {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let Some(next) = rest.get(length.saturating_add(12)..) else { return false };
        if &head[4..] == b"IEND" {
            return true;
        }
        rest = next;
    }
    false
}

fn decode_other(bytes: &[u8], format: ImageFormat) -> Result<Picture, DecodeError> {
    let damaged = |reason: String| DecodeError::Damaged { format: format!("{format:?}").to_uppercase(), reason };
    let reader = || ImageReader::with_format(Cursor::new(bytes), format);
    let (width, height) = reader().into_dimensions().map_err(|error| damaged(error.to_string()))?;
    check(u64::from(width), u64::from(height))?;
    if format == ImageFormat::Png && !png_ends(bytes) {
        return Err(damaged("it is cut short: it has no whole end chunk".into()));
    }
    let mut reader = reader();
    let mut limits = Limits::default();
    limits.max_alloc = Some(16 * MAX_PIXELS);
    reader.limits(limits);
    let image = reader.decode().map_err(|error| damaged(error.to_string()))?;
    let little = |samples: Vec<u16>| samples.into_iter().flat_map(u16::to_le_bytes).collect();
    let (format, pixels): (PixelFormat, Vec<u8>) = match image {
        DynamicImage::ImageLuma8(grey) => (PixelFormat::Gray8, grey.into_raw()),
        DynamicImage::ImageLumaA8(_) => (PixelFormat::Gray8, image.into_luma8().into_raw()),
        DynamicImage::ImageLuma16(grey) => (PixelFormat::Gray16 { bits: 16 }, little(grey.into_raw())),
        DynamicImage::ImageLumaA16(_) => (PixelFormat::Gray16 { bits: 16 }, little(image.into_luma16().into_raw())),
        DynamicImage::ImageRgb16(_) | DynamicImage::ImageRgba16(_) => {
            (PixelFormat::Rgb16, little(image.into_rgb16().into_raw()))
        }
        DynamicImage::ImageRgb8(rgb) => (PixelFormat::Rgb8, rgb.into_raw()),
        DynamicImage::ImageRgba8(_) => (PixelFormat::Rgb8, image.into_rgb8().into_raw()),
        _ => return Err(damaged("floating-point samples have no fixed range; save it with 8 or 16 bits".into())),
    };
    Ok(Picture { width, height, format, pixels })
}

#[cfg(test)]
mod tests {
    use image::{ImageBuffer, Luma, Rgba};

    use super::*;

    fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).expect("encodes");
        bytes.into_inner()
    }

    #[test]
    fn sixteen_bit_grey_keeps_its_samples() {
        let image = DynamicImage::ImageLuma16(ImageBuffer::from_fn(3, 2, |x, y| Luma([(x * 1000 + y * 7) as u16])));
        for format in [ImageFormat::Png, ImageFormat::Tiff] {
            let picture = decode(&encode(&image, format)).expect("decodes");
            assert_eq!(picture.format, PixelFormat::Gray16 { bits: 16 });
            assert_eq!(&picture.pixels[2..4], &1000u16.to_le_bytes());
        }
    }

    #[test]
    fn alpha_is_ignored() {
        let image = DynamicImage::ImageRgba8(ImageBuffer::from_pixel(2, 2, Rgba([10, 20, 30, 0])));
        let picture = decode(&encode(&image, ImageFormat::Png)).expect("decodes");
        assert_eq!((picture.format, &picture.pixels[..3]), (PixelFormat::Rgb8, &[10u8, 20, 30][..]));
    }

    #[test]
    fn every_format_is_known_by_its_content() {
        let image = DynamicImage::ImageRgb8(ImageBuffer::from_pixel(5, 4, image::Rgb([1, 2, 3])));
        for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::Pnm] {
            let picture = decode(&encode(&image, format)).expect("decodes");
            assert_eq!((picture.width, picture.height, &picture.pixels[..3]), (5, 4, &[1u8, 2, 3][..]));
        }
        let mut jpeg = Vec::new();
        jpeg_encoder::Encoder::new(&mut jpeg, 95)
            .encode(&[200; 8 * 8 * 3], 8, 8, jpeg_encoder::ColorType::Rgb)
            .expect("encodes");
        let picture = decode(&jpeg).expect("decodes");
        assert!(picture.pixels.iter().all(|v| v.abs_diff(200) <= 2));
    }

    fn jpeg(progressive: bool) -> Vec<u8> {
        let pixels: Vec<u8> = (0..64 * 64).map(|i| (i * 37 % 251) as u8).collect();
        let mut bytes = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
        encoder.set_progressive(progressive);
        encoder.encode(&pixels, 64, 64, jpeg_encoder::ColorType::Luma).expect("encodes");
        bytes
    }

    fn one_of_each() -> Vec<Vec<u8>> {
        let noise = DynamicImage::ImageLuma8(ImageBuffer::from_fn(16, 16, |x, y| Luma([(x * 37 + y * 91) as u8])));
        let formats = [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::Pnm];
        let mut files: Vec<_> = formats.into_iter().map(|format| encode(&noise, format)).collect();
        files.extend([jpeg(false), jpeg(true)]);
        files
    }

    #[test]
    fn a_cut_file_is_an_error_at_every_length() {
        for file in one_of_each() {
            assert!(decode(&file).is_ok());
            for length in 0..file.len() {
                let head = &file[..file.len().min(4)];
                assert!(decode(&file[..length]).is_err(), "{head:?} cut to {length} of {}", file.len());
            }
        }
        assert_eq!(decode(b"GIF89a..."), Err(DecodeError::Unknown));
        assert_eq!(decode(b""), Err(DecodeError::Unknown));
    }

    #[test]
    fn an_end_marker_inside_of_a_segment_is_not_the_end() {
        let whole = jpeg(false);
        // An application segment after the start marker, as a thumbnail lies there.
        let mut bytes = vec![0xFF, 0xD8, 0xFF, 0xE1, 0x00, 0x06, 0xFF, 0xD8, 0xFF, 0xD9];
        bytes.extend(&whole[2..]);
        assert_eq!(decode(&bytes).expect("decodes").pixels, decode(&whole).expect("decodes").pixels);
        assert!(decode(&bytes[..bytes.len() - 2]).is_err());
        // Bytes behind the end are no damage: cameras pad.
        bytes.extend([0; 16]);
        assert!(decode(&bytes).is_ok());
    }

    #[test]
    fn changed_bytes_never_panic() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize
        };
        for file in one_of_each() {
            for _ in 0..300 {
                let mut bytes = file.clone();
                for _ in 0..1 + next() % 4 {
                    let at = next() % bytes.len();
                    bytes[at] = next() as u8;
                }
                if let Ok(picture) = decode(&bytes) {
                    let pixels = picture.width as usize * picture.height as usize;
                    assert_eq!(picture.pixels.len(), pixels * picture.format.bytes_per_pixel());
                }
            }
        }
    }

    #[test]
    fn a_palette_becomes_colours() {
        // 1x1 PNG of colour type 3: one palette entry (7, 8, 9).
        let chunk = |kind: &[u8; 4], data: &[u8]| {
            let body = [kind.as_slice(), data].concat();
            [&(data.len() as u32).to_be_bytes(), body.as_slice(), &crc32(&body).to_be_bytes()].concat()
        };
        let scan = [0x78, 0x01, 0x01, 2, 0, 0xFD, 0xFF, 0, 0, 0x00, 0x02, 0x00, 0x01];
        let png = [
            b"\x89PNG\r\n\x1a\n".to_vec(),
            chunk(b"IHDR", &[0, 0, 0, 1, 0, 0, 0, 1, 8, 3, 0, 0, 0]),
            chunk(b"PLTE", &[7, 8, 9]),
            chunk(b"IDAT", &scan),
            chunk(b"IEND", &[]),
        ]
        .concat();
        let picture = decode(&png).expect("decodes");
        assert_eq!((picture.format, picture.pixels), (PixelFormat::Rgb8, vec![7, 8, 9]));
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 })
        })
    }

    #[test]
    fn a_small_png_that_claims_to_be_huge_is_refused() {
        let mut png = one_of_each().remove(0);
        png[16..20].copy_from_slice(&20_000u32.to_be_bytes());
        png[20..24].copy_from_slice(&20_000u32.to_be_bytes());
        let crc = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&crc.to_be_bytes());
        let error = decode(&png).expect_err("refused");
        assert_eq!(error, DecodeError::TooLarge { width: 20_000, height: 20_000 });
        assert!(error.to_string().contains("20000x20000") && error.to_string().contains("67 million"), "{error}");
    }

    #[test]
    fn a_huge_header_is_refused_before_anything_is_allocated() {
        let pnm = b"P5 20000 20000 255\n";
        assert_eq!(decode(pnm), Err(DecodeError::TooLarge { width: 20_000, height: 20_000 }));
    }
}
