//! Cameras of Linux by V4L2: a ring of buffers shared with the driver.
//!
//! Any error but a time-out closes the device and opens it again by the path that the configuration names, with its format,
//! rate and controls: after a cable was pulled, `/dev/video0` may be `/dev/video1`, and a path under `/dev/v4l` is the same.

mod calls;
pub mod controls;
pub mod list;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use v4l::Device;
use v4l::device::Handle;

use self::calls::{Form, Ring};
use super::unpack::{Encoding, Picture, Unpacker};
use crate::config::camera::V4l2Settings;
use crate::inspection::frame::{CameraId, Frame, FrameId, FrameMeta, FrameSource, SourceError};
use crate::inspection::layout::{FourCc, LAYOUTS};
use crate::inspection::time::{Clock, Timestamp};

/// Buffers of the ring: one is filled, one is read, two more ride out a late thread.
const BUFFERS: u32 = 4;
/// Longest wait for a picture before the caller hears that none came.
const WAIT: Duration = Duration::from_millis(100);
/// Longest time that a picture may have been under way, nanoseconds.
const FRESH: u64 = 1_000_000_000;

/// A rate that nearly every camera has, for one that is to stand at a whole rate.
const COMMON_RATE: f64 = 30.0;

/// A camera that is open, or is opened by the next call.
pub struct V4l2Camera {
    camera: CameraId,
    settings: V4l2Settings,
    clock: Arc<dyn Clock>,
    /// Controls that the source sets, whatever the product.
    own: BTreeMap<String, i64>,
    open: Option<Streaming>,
    /// Why the stream is over, found with its last picture: the next call says it.
    broken: Option<String>,
    next: u64,
    sequence: Sequence,
    unpacker: Unpacker,
}

struct Streaming {
    ring: Ring,
    picture: Picture,
    /// When the last picture came, or the stream began.
    heard: Timestamp,
    /// When the last picture was taken, and how long after the one before it.
    rhythm: (Timestamp, u64),
}

/// A driver's counter of 32 bits that starts anew with every stream, as one that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sequence {
    /// The driver's last number, if the stream has given one.
    last: Option<u32>,
    /// That number as one that goes on.
    whole: u64,
    begun: bool,
}

impl Sequence {
    fn advance(&mut self, number: u32) -> u64 {
        let step = match self.last {
            // A number that was there before is that of a driver that began anew without a word, and the next picture all the same.
            Some(last) => u64::try_from(number.wrapping_sub(last).cast_signed()).unwrap_or(0).max(1),
            None => u64::from(self.begun),
        };
        self.whole += step;
        (self.last, self.begun) = (Some(number), true);
        self.whole
    }

    /// The next number is the first of another stream.
    fn restart(&mut self) {
        self.last = None;
    }
}

impl V4l2Camera {
    /// Opens a camera. One that is not there yet is no error here: it may be plugged in later.
    pub fn new(camera: CameraId, settings: V4l2Settings, clock: Arc<dyn Clock>) -> Self {
        let own = settings.controls.clone();
        Self {
            camera,
            settings,
            clock,
            own,
            open: None,
            broken: None,
            next: 0,
            sequence: Sequence::default(),
            unpacker: Unpacker::default(),
        }
    }

    fn lost(&mut self, reason: String) -> SourceError {
        self.open = None;
        self.sequence.restart();
        SourceError::Lost { reason: format!("{}: {reason}", self.settings.device.display()) }
    }

    fn meta(&mut self, sequence: u32, captured_at: Timestamp) -> FrameMeta {
        let id = FrameId(self.next);
        self.next += 1;
        FrameMeta {
            id,
            camera: self.camera.clone(),
            captured_at,
            sequence: self.sequence.advance(sequence),
            trigger: None,
            width: 0,
            height: 0,
        }
    }
}

impl FrameSource for V4l2Camera {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        if let Some(reason) = self.broken.take() {
            return Err(self.lost(reason));
        }
        let streaming = match &mut self.open {
            Some(streaming) => streaming,
            None => {
                let (ring, picture, form) = stream(&self.settings).map_err(|reason| self.lost(reason))?;
                // What the camera had at first it must have again: other pixels would be judged by the same thresholds.
                self.settings.format = Some(FourCc(form.code));
                self.settings.size = Some([form.width, form.height]);
                let (heard, never) = (self.clock.now(), Timestamp(0));
                self.open.insert(Streaming { ring, picture, heard, rhythm: (never, 0) })
            }
        };
        let filled = match streaming.ring.take(WAIT) {
            Ok(Some(filled)) => filled,
            Ok(None) => {
                let silent = self.clock.now().millis_since(streaming.heard) / 1e3;
                let limit = self.settings.silence_s;
                if limit > 0.0 && silent > limit {
                    let remedy = "a camera that waits for a trigger needs silence_s = 0";
                    return Err(self.lost(format!("no picture for {silent:.1} s; {remedy}")));
                }
                return Err(SourceError::Timeout);
            }
            Err(error) => return Err(self.lost(error.to_string())),
        };
        let now = self.clock.now();
        streaming.heard = now;
        let taken = Timestamp(now.0.saturating_sub(filled.age.as_nanos() as u64));
        streaming.rhythm = (taken, taken.0.saturating_sub(streaming.rhythm.0.0));
        let (picture, bytes) = (&streaming.picture, streaming.ring.bytes(&filled));
        let unpacked = if filled.damaged {
            Err("the driver says that the picture is damaged".to_owned())
        } else {
            self.unpacker.unpack(picture, bytes)
        };
        let (width, height) = (picture.width as u32, picture.height as u32);
        let sequence = filled.sequence;
        let given = streaming.ring.give(filled);
        let meta = self.meta(sequence, taken);
        // This picture is whole all the same.
        self.broken = given.err().map(|error| error.to_string());
        match unpacked {
            Ok((format, pixels)) => Ok(Frame { meta: FrameMeta { width, height, ..meta }, format, pixels }),
            Err(reason) => Err(SourceError::Damaged { meta: Box::new(meta), reason }),
        }
    }

    fn set_controls(&mut self, controls: &BTreeMap<String, i64>) -> Timestamp {
        let all = self.own.iter().chain(controls).map(|(name, value)| (name.clone(), *value)).collect();
        if self.settings.controls == all {
            return Timestamp(0);
        }
        self.settings.controls = all;
        let Some(streaming) = &mut self.open else { return self.clock.now() };
        if let Err(reason) = controls::apply(streaming.ring.handle(), &self.settings.controls) {
            self.broken = Some(reason);
        }
        // A picture may be under way.
        Timestamp(self.clock.now().0 + streaming.rhythm.1.min(FRESH))
    }
}

/// Sets controls of a camera, whoever streams from it.
///
/// # Errors
/// A path that is no camera, and what [`controls::apply`] says.
pub fn set(path: &Path, wanted: &BTreeMap<String, i64>) -> Result<(), String> {
    let (_device, handle) = device(path)?;
    controls::apply(&handle, wanted)
}

/// Gives a camera one of these layouts, and a whole rate: `nokhwa` does not open a camera that stands at any other.
///
/// # Errors
/// A path that is no camera, one that is in use, or one that has none of them.
pub fn offer(path: &Path, codes: &[[u8; 4]]) -> Result<(), String> {
    let (_device, handle) = device(path)?;
    let now = calls::form(&handle, None).map_err(failed("format"))?;
    if !codes.contains(&now.code) {
        let offered: Vec<[u8; 4]> = calls::formats(&handle).into_iter().map(|(code, _)| code).collect();
        let Some(code) = codes.iter().find(|code| offered.contains(code)) else {
            let names = |codes: &[[u8; 4]]| codes.iter().map(|c| FourCc(*c).to_string()).collect::<Vec<_>>().join(", ");
            return Err(format!("format: the camera offers {}, and none of {}", names(&offered), names(codes)));
        };
        calls::form(&handle, Some((*code, now.width, now.height))).map_err(failed("format"))?;
    }
    calls::rate(&handle, COMMON_RATE).map_err(failed("fps"))?;
    Ok(())
}

/// A device that captures, and never waits.
fn device(path: &Path) -> Result<(Device, Arc<Handle>), String> {
    let device = Device::with_path(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "is not there; `dsad cameras` lists those that are".to_owned(),
        io::ErrorKind::PermissionDenied => format!("{error}; the user must be in the group video"),
        _ => error.to_string(),
    })?;
    let handle = device.handle();
    calls::never_block(&handle).map_err(|error| error.to_string())?;
    let able = calls::capability(&handle).map_err(|error| format!("is no video device: {error}"))?.flags;
    if able & calls::CAPTURES_PLANES != 0 && able & calls::CAPTURES == 0 {
        return Err("gives its pictures in several planes, which is not read; use a driver of one plane".into());
    }
    if able & calls::CAPTURES == 0 || able & calls::STREAMS == 0 {
        return Err("is no camera: it does not stream pictures; `dsad cameras` lists those that do".into());
    }
    Ok((device, handle))
}

/// What a call on a device said.
fn failed(what: &'static str) -> impl Fn(io::Error) -> String {
    move |error| match error.raw_os_error() {
        Some(libc::EBUSY) => "another program uses the camera".to_owned(),
        _ => format!("{what}: {error}"),
    }
}

fn stream(settings: &V4l2Settings) -> Result<(Ring, Picture, Form), String> {
    let (_device, handle) = device(&settings.device)?;
    let offered: Vec<[u8; 4]> = calls::formats(&handle).into_iter().map(|(code, _)| code).collect();
    let now = calls::form(&handle, None).map_err(failed("format"))?;
    let code = match settings.format {
        Some(FourCc(code)) => code,
        None => best(now.code, &offered),
    };
    let [width, height] = settings.size.unwrap_or([now.width, now.height]);
    let form = calls::form(&handle, Some((code, width, height))).map_err(failed("format"))?;
    if (form.code, form.width, form.height) != (code, width, height) {
        let names: Vec<String> = offered.into_iter().map(|code| FourCc(code).to_string()).collect();
        return Err(format!(
            "format: {} at {width}x{height} is to be read and the camera gives {} at {}x{}; it offers {} (`dsad cameras` lists \
             sizes, too)",
            FourCc(code),
            FourCc(form.code),
            form.width,
            form.height,
            names.join(", ")
        ));
    }
    let Some(layout) = FourCc(form.code).layout() else {
        let known: Vec<&str> = LAYOUTS.iter().map(|(name, _)| name.trim_end()).collect();
        return Err(format!("format: {} is not read; set one of {}", FourCc(form.code), known.join(", ")));
    };
    if let Some(fps) = settings.fps {
        let got = calls::rate(&handle, fps).map_err(failed("fps"))?;
        if got.is_none_or(|got| (got - fps).abs() > 0.01 * fps) {
            let got = got.map_or("no rate that can be set".into(), |got| format!("{got:.2}"));
            log::warn!("{}: {fps} pictures a second were asked for, the camera has {got}", settings.device.display());
        }
    }
    controls::apply(&handle, &settings.controls)?;
    let ring = Ring::start(handle, BUFFERS).map_err(failed("stream"))?;
    let (width, height, stride) = (form.width as usize, form.height as usize, form.stride as usize);
    Ok((ring, Picture { layout, width, height, stride, encoding: encoding(&form) }, form))
}

/// What pictures are in now, if it is read; else the first of our list that the device offers.
fn best(now: [u8; 4], offered: &[[u8; 4]]) -> [u8; 4] {
    if FourCc(now).layout().is_some() {
        return now;
    }
    let read = LAYOUTS.iter().map(|(name, _)| name.as_bytes());
    read.filter_map(|name| offered.iter().find(|code| code[..] == *name)).next().copied().unwrap_or(now)
}

/// `V4L2_YCBCR_ENC_709`, `V4L2_COLORSPACE_REC709`, `V4L2_QUANTIZATION_FULL_RANGE`, `V4L2_COLORSPACE_JPEG` of videodev2.h; a
/// driver that says nothing means BT.601, limited.
fn encoding(form: &Form) -> Encoding {
    let (rec709, jpeg) = (3, 7);
    let bt709 = form.encoding == 2 || (form.encoding == 0 && form.colorspace == rec709);
    let full_range = form.quantisation == 1 || (form.quantisation == 0 && form.colorspace == jpeg);
    Encoding { bt709, full_range }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_goes_on_where_the_driver_begins_anew() {
        let mut sequence = Sequence::default();
        let numbers = |sequence: &mut Sequence, of: &[u32]| of.iter().map(|n| sequence.advance(*n)).collect::<Vec<_>>();
        // Two were lost after the second; it wraps; another stream.
        assert_eq!(numbers(&mut sequence, &[u32::MAX - 4, u32::MAX - 3, u32::MAX, 0]), [0, 1, 4, 5]);
        sequence.restart();
        assert_eq!(numbers(&mut sequence, &[0, 1, 3]), [6, 7, 9]);
        // A number twice, and one that goes back.
        assert_eq!(numbers(&mut sequence, &[3, 0, 1]), [10, 11, 12]);
    }

    #[test]
    fn what_is_read_is_preferred() {
        assert_eq!(best(*b"YUYV", &[*b"H264", *b"GREY"]), *b"YUYV");
        assert_eq!(best(*b"H264", &[*b"H264", *b"MJPG", *b"YUYV"]), *b"YUYV");
        assert_eq!(best(*b"H264", &[*b"H264"]), *b"H264");
    }

    #[test]
    fn a_camera_that_is_not_there_is_lost_and_asked_for_again() {
        let settings = V4l2Settings {
            device: "/dev/v4l/by-path/none".into(),
            format: None,
            size: None,
            fps: None,
            controls: Default::default(),
            silence_s: 1.0,
        };
        let clock = Arc::new(crate::platform::clock::SystemClock::start());
        let mut camera = V4l2Camera::new(CameraId("top".into()), settings, clock);
        for _ in 0..2 {
            let Err(SourceError::Lost { reason }) = camera.next_frame() else { panic!("lost") };
            assert!(reason.contains("/dev/v4l/by-path/none") && reason.contains("dsad cameras"), "{reason}");
        }
    }
}
