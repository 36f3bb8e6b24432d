//! How cameras lay out the bytes of a picture, by the names that V4L2 has for them.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which colours the four cells of a Bayer mosaic have, row by row from the top left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mosaic {
    /// Blue, green / green, red.
    Bggr,
    /// Green, blue / red, green.
    Gbrg,
    /// Green, red / blue, green.
    Grbg,
    /// Red, green / green, blue.
    Rggb,
}

/// A layout that frames can be read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// 8 bits of brightness.
    Grey8,
    /// Brightness in the low bits (10, 12 or 16) of two bytes, little endian.
    Grey16 {
        /// Significant bits.
        bits: u8,
    },
    /// Two pixels in `Y U Y V`.
    Yuyv,
    /// Two pixels in `U Y V Y`.
    Uyvy,
    /// A plane of Y, then one of U and V in turn for each 2x2 pixels.
    Nv12,
    /// Red, green, blue.
    Rgb8,
    /// Blue, green, red.
    Bgr8,
    /// A JPEG file for each picture.
    Jpeg,
    /// One colour a pixel, 8 bits.
    Bayer8(Mosaic),
    /// One colour a pixel, 16 bits, little endian.
    Bayer16(Mosaic),
}

impl Layout {
    /// Bytes of a picture whose rows follow one another; a JPEG has as many as it needs.
    pub fn bytes(self, width: usize, height: usize) -> Option<usize> {
        let pixels = width.saturating_mul(height);
        match self {
            Layout::Grey8 | Layout::Bayer8(_) => Some(pixels),
            Layout::Nv12 => Some(pixels.saturating_add(pixels / 2)),
            Layout::Grey16 { .. } | Layout::Bayer16(_) | Layout::Yuyv | Layout::Uyvy => Some(pixels.saturating_mul(2)),
            Layout::Rgb8 | Layout::Bgr8 => Some(pixels.saturating_mul(3)),
            Layout::Jpeg => None,
        }
    }
}

/// Every layout with its FOURCC, those that cost least before others: the order in which one is chosen.
pub const LAYOUTS: [(&str, Layout); 19] = [
    ("GREY", Layout::Grey8),
    ("Y16 ", Layout::Grey16 { bits: 16 }),
    ("Y12 ", Layout::Grey16 { bits: 12 }),
    ("Y10 ", Layout::Grey16 { bits: 10 }),
    ("RGB3", Layout::Rgb8),
    ("BGR3", Layout::Bgr8),
    ("YUYV", Layout::Yuyv),
    ("UYVY", Layout::Uyvy),
    ("NV12", Layout::Nv12),
    ("RGGB", Layout::Bayer8(Mosaic::Rggb)),
    ("GRBG", Layout::Bayer8(Mosaic::Grbg)),
    ("GBRG", Layout::Bayer8(Mosaic::Gbrg)),
    ("BA81", Layout::Bayer8(Mosaic::Bggr)),
    ("RG16", Layout::Bayer16(Mosaic::Rggb)),
    ("GR16", Layout::Bayer16(Mosaic::Grbg)),
    ("GB16", Layout::Bayer16(Mosaic::Gbrg)),
    ("BYR2", Layout::Bayer16(Mosaic::Bggr)),
    ("MJPG", Layout::Jpeg),
    ("JPEG", Layout::Jpeg),
];

/// The FOURCC of a layout that frames can be read from: four characters, the last of which may be a space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
pub struct FourCc(pub [u8; 4]);

impl FourCc {
    /// Its layout.
    pub fn layout(self) -> Option<Layout> {
        LAYOUTS.into_iter().find(|(name, _)| name.as_bytes() == self.0).map(|(_, layout)| layout)
    }
}

impl FromStr for FourCc {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = LAYOUTS.into_iter().find(|(name, _)| name.trim_end().eq_ignore_ascii_case(text.trim_end()));
        let Some((name, _)) = known else {
            let names: Vec<&str> = LAYOUTS.iter().map(|(name, _)| name.trim_end()).collect();
            return Err(format!("'{text}' is no layout that is read; known are {}", names.join(", ")));
        };
        Ok(Self(name.as_bytes().try_into().expect("four characters")))
    }
}

impl TryFrom<String> for FourCc {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<FourCc> for String {
    fn from(code: FourCc) -> Self {
        code.to_string()
    }
}

impl fmt::Display for FourCc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |byte: u8| if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '?' };
        let text: String = self.0.iter().map(|byte| shown(*byte)).collect();
        f.write_str(text.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_has_four_characters_and_is_found_by_them() {
        for (name, layout) in LAYOUTS {
            let code: FourCc = name.trim_end().to_lowercase().parse().expect("known");
            assert_eq!((code.layout(), code.to_string().as_str()), (Some(layout), name.trim_end()));
        }
        let error = "YV12".parse::<FourCc>().expect_err("not read");
        assert!(error.contains("'YV12'") && error.contains("GREY") && error.contains("MJPG"), "{error}");
        assert_eq!(FourCc(*b"H264").layout(), None);
    }
}
