//! Picture files to pixels: PNG, JPEG, BMP, TIFF and PNM, known by their content.

use std::io::Cursor;
use std::sync::Arc;

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
        Frame { meta, format: self.format, pixels: FrameBuf(Arc::from(self.pixels)) }
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
    decoder.set_options(options.jpeg_set_out_colorspace(space));
    let pixels = decoder.decode().map_err(|error| damaged(error.to_string()))?;
    if pixels.len() != width * height * format.bytes_per_pixel() {
        return Err(damaged("fewer pixels than the header states".into()));
    }
    Ok(Picture { width: width as u32, height: height as u32, format, pixels })
}

fn decode_other(bytes: &[u8], format: ImageFormat) -> Result<Picture, DecodeError> {
    let damaged = |reason: String| DecodeError::Damaged { format: format!("{format:?}").to_uppercase(), reason };
    let reader = || ImageReader::with_format(Cursor::new(bytes), format);
    let (width, height) = reader().into_dimensions().map_err(|error| damaged(error.to_string()))?;
    check(u64::from(width), u64::from(height))?;
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

    #[test]
    fn damage_is_an_error_at_every_length() {
        let noise = ImageBuffer::from_fn(16, 16, |x, y| Luma([(x * 37 + y * 91) as u8]));
        let png = encode(&DynamicImage::ImageLuma8(noise), ImageFormat::Png);
        let mut jpeg = Vec::new();
        let pixels: Vec<u8> = (0..64 * 64).map(|i| (i * 37 % 251) as u8).collect();
        jpeg_encoder::Encoder::new(&mut jpeg, 90)
            .encode(&pixels, 64, 64, jpeg_encoder::ColorType::Luma)
            .expect("encodes");
        for length in 0..png.len() - 20 {
            assert!(decode(&png[..length]).is_err(), "PNG cut to {length}");
        }
        for length in 0..jpeg.len() / 2 {
            assert!(decode(&jpeg[..length]).is_err(), "JPEG cut to {length} of {}", jpeg.len());
        }
        assert_eq!(decode(b"GIF89a..."), Err(DecodeError::Unknown));
        assert_eq!(decode(b""), Err(DecodeError::Unknown));
    }

    #[test]
    fn a_huge_header_is_refused_before_anything_is_allocated() {
        let pnm = b"P5 20000 20000 255\n";
        assert_eq!(decode(pnm), Err(DecodeError::TooLarge { width: 20_000, height: 20_000 }));
    }
}
