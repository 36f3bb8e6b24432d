//! What cameras there are, and what they can do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use v4l::device::Handle;
use v4l::frameinterval::FrameIntervalEnum;
use v4l::framesize::FrameSizeEnum;
use v4l::video::Capture;
use v4l::{Device, FourCC};

use super::calls::{self, Capability};
use super::controls::{self, Control};
use super::device;
use crate::inspection::layout::FourCc;

/// A device that streams pictures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listed {
    /// Its name, as the driver says it.
    pub name: String,
    /// The driver.
    pub driver: String,
    /// Where it is plugged in.
    pub bus: String,
    /// The path that may change when it is plugged in again.
    pub device: PathBuf,
    /// Paths that stay: use one of these in a configuration.
    pub stable: Vec<PathBuf>,
    /// Layouts of its pictures.
    pub formats: Vec<Format>,
    /// What can be set.
    pub controls: Vec<Control>,
    /// Why it cannot be looked into.
    pub problem: Option<String>,
}

/// A layout that a camera offers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Format {
    /// FOURCC.
    pub code: String,
    /// In words.
    pub description: String,
    /// Whether `dsad` reads it.
    pub read: bool,
    /// Sizes and their rates.
    pub sizes: Vec<Size>,
}

/// A size that a camera offers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Size {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Pictures a second, highest first; of a range, its ends.
    pub fps: Vec<f64>,
}

/// All devices that stream pictures, by number.
pub fn cameras() -> Vec<Listed> {
    // Only nodes of the kernel: a link of somebody's rules would list a camera twice.
    let number = |name: &str| name.strip_prefix("video").and_then(|number| number.parse::<u32>().ok());
    let names = std::fs::read_dir("/dev").into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut numbers: Vec<u32> = names.filter_map(|name| number(&name.to_string_lossy())).collect();
    numbers.sort_unstable();
    let links = links();
    let node = |number: u32| listed(Path::new(&format!("/dev/video{number}")), &links);
    numbers.into_iter().filter_map(node).collect()
}

/// The links under `/dev/v4l`, by what they point to.
fn links() -> BTreeMap<PathBuf, Vec<PathBuf>> {
    let mut found: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    for folder in ["/dev/v4l/by-id", "/dev/v4l/by-path"] {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if let Ok(target) = entry.path().canonicalize() {
                found.entry(target).or_default().push(entry.path());
            }
        }
    }
    found.values_mut().for_each(|links| links.sort());
    found
}

fn listed(path: &Path, links: &BTreeMap<PathBuf, Vec<PathBuf>>) -> Option<Listed> {
    let stable = links.get(path).cloned().unwrap_or_default();
    let mut listed = Listed {
        name: String::new(),
        driver: String::new(),
        bus: String::new(),
        device: path.to_path_buf(),
        stable,
        formats: Vec::new(),
        controls: Vec::new(),
        problem: None,
    };
    match device(path) {
        Ok((device, handle)) => {
            if let Ok(Capability { card, driver, bus, .. }) = calls::capability(&handle) {
                (listed.name, listed.driver, listed.bus) = (card, driver, bus);
            }
            listed.formats = formats(&device, &handle);
            listed.controls = controls::list(&handle);
        }
        // The other nodes of a camera (metadata, encoders) are none of its pictures'.
        Err(reason) if reason.starts_with("is no ") => return None,
        Err(reason) => listed.problem = Some(reason),
    }
    Some(listed)
}

fn formats(device: &Device, handle: &Handle) -> Vec<Format> {
    let format = |(code, description): ([u8; 4], String)| Format {
        code: FourCc(code).to_string(),
        description,
        read: FourCc(code).layout().is_some(),
        sizes: sizes(device, FourCC::new(&code)),
    };
    calls::formats(handle).into_iter().map(format).collect()
}

fn sizes(device: &Device, code: FourCC) -> Vec<Size> {
    let size = |width, height| Size { width, height, fps: rates(device, code, width, height) };
    let mut sizes = Vec::new();
    for listed in device.enum_framesizes(code).unwrap_or_default() {
        match listed.size {
            FrameSizeEnum::Discrete(one) => sizes.push(size(one.width, one.height)),
            FrameSizeEnum::Stepwise(steps) => {
                sizes.push(size(steps.min_width, steps.min_height));
                sizes.push(size(steps.max_width, steps.max_height));
            }
        }
    }
    sizes
}

fn rates(device: &Device, code: FourCC, width: u32, height: u32) -> Vec<f64> {
    let rate = |period: v4l::Fraction| f64::from(period.denominator) / f64::from(period.numerator.max(1));
    let mut rates: Vec<f64> = Vec::new();
    for listed in device.enum_frameintervals(code, width, height).unwrap_or_default() {
        match listed.interval {
            FrameIntervalEnum::Discrete(period) => rates.push(rate(period)),
            FrameIntervalEnum::Stepwise(steps) => rates.extend([rate(steps.min), rate(steps.max)]),
        }
    }
    rates.sort_by(|a, b| b.total_cmp(a));
    rates.dedup();
    rates
}
