//! Picture files in memory.

use std::io::Cursor;

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use crate::inspection::frame::{Frame, PixelFormat};

/// Why a picture could not be encoded.
#[derive(Debug, thiserror::Error)]
#[error("picture of {width}x{height}: {reason}")]
pub struct EncodeError {
    width: usize,
    height: usize,
    reason: String,
}

/// PNG of `height * width * 3` bytes RGB.
///
/// # Errors
/// A buffer of another size.
pub fn png(rgb: &[u8], width: usize, height: usize) -> Result<Vec<u8>, EncodeError> {
    write_png(rgb, width, height, ExtendedColorType::Rgb8)
}

/// PNG of `height * width` bytes grey.
///
/// # Errors
/// A buffer of another size.
pub fn png_grey(grey: &[u8], width: usize, height: usize) -> Result<Vec<u8>, EncodeError> {
    write_png(grey, width, height, ExtendedColorType::L8)
}

/// PNG of a frame as it came: 8 bits a sample, or 16 over their whole range.
///
/// # Errors
/// A buffer of another size than the frame states.
pub fn png_of(frame: &Frame) -> Result<Vec<u8>, EncodeError> {
    let (width, height) = (frame.meta.width as usize, frame.meta.height as usize);
    let bytes: &[u8] = &frame.pixels;
    // The library takes samples in the processor's order, and stretches nothing.
    let wide = |shift: u32| -> Vec<u8> {
        let sample = |pair: &[u8]| (u16::from_le_bytes([pair[0], pair[1]]) << shift).to_ne_bytes();
        bytes.chunks_exact(2).flat_map(sample).collect()
    };
    match frame.format {
        PixelFormat::Rgb8 => png(bytes, width, height),
        PixelFormat::Gray8 => png_grey(bytes, width, height),
        PixelFormat::Gray16 { bits } => {
            write_png(&wide(16 - u32::from(bits.clamp(1, 16))), width, height, ExtendedColorType::L16)
        }
        PixelFormat::Rgb16 => write_png(&wide(0), width, height, ExtendedColorType::Rgb16),
    }
}

fn write_png(bytes: &[u8], width: usize, height: usize, kind: ExtendedColorType) -> Result<Vec<u8>, EncodeError> {
    let mut out = Cursor::new(Vec::new());
    // The library panics on a buffer of the wrong size.
    if bytes.len() != width * height * usize::from(kind.bits_per_pixel()) / 8 {
        return Err(EncodeError { width, height, reason: format!("has {} bytes", bytes.len()) });
    }
    PngEncoder::new(&mut out).write_image(bytes, width as u32, height as u32, kind).map_err(|error| EncodeError {
        width,
        height,
        reason: error.to_string(),
    })?;
    Ok(out.into_inner())
}

/// JPEG of `height * width * 3` bytes RGB at a quality of 1 to 100.
///
/// # Errors
/// A buffer of another size, or sides above 65535.
pub fn jpeg(rgb: &[u8], width: usize, height: usize, quality: u8) -> Result<Vec<u8>, EncodeError> {
    let failed = |reason: String| EncodeError { width, height, reason };
    let side = |length: usize| u16::try_from(length).map_err(|error| failed(error.to_string()));
    let mut out = Vec::new();
    jpeg_encoder::Encoder::new(&mut out, quality)
        .encode(rgb, side(width)?, side(height)?, jpeg_encoder::ColorType::Rgb)
        .map_err(|error| failed(error.to_string()))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_png_comes_back_bit_for_bit() {
        let rgb: Vec<u8> = (0..5 * 4 * 3).map(|v| v as u8 * 4).collect();
        let bytes = png(&rgb, 5, 4).expect("encodes");
        let back = image::load_from_memory(&bytes).expect("decodes").into_rgb8().into_raw();
        assert_eq!(back, rgb);
        assert!(png(&rgb, 5, 5).is_err());
    }
}
