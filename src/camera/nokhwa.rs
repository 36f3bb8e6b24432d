//! Webcams by `nokhwa`, for bringing a station up and for systems without V4L2. A line's camera is one of V4L2.
//!
//! `nokhwa` has no time-out: a camera that falls silent holds its caller for ever. So it has a thread of its own, which hands
//! pictures over. One that hangs is abandoned, and ends when the camera wakes up; until then the driver gives the camera to
//! nobody else, and the thread counts as one of a few that may hang.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use nokhwa::Camera;
use nokhwa::utils::{CameraFormat, CameraIndex, FrameFormat, RequestedFormat, RequestedFormatType};

use super::unpack::{Encoding, Picture, Unpacker};
use super::v4l2;
use crate::config::camera::NokhwaSettings;
use crate::inspection::frame::{CameraId, Frame, FrameBuf, FrameId, FrameMeta, FrameSource, PixelFormat, SourceError};
use crate::inspection::layout::FourCc;
use crate::inspection::time::{Clock, Timestamp};

/// Longest wait for a picture before the caller hears that none came.
const WAIT: Duration = Duration::from_millis(100);
/// Pictures between the two threads; one that comes when they are full is skipped, and counted.
const WAITING: usize = 2;
/// Threads that may hang at a time: each holds memory and an open camera.
const HANGING: usize = 3;
/// How old a picture may be by its own stamp: more is a clock that was set.
const OLDEST: Duration = Duration::from_secs(10);
/// How much longer than its pixels a buffer may be: the rest of a page of memory.
const PAGE: usize = 4096;

/// What `nokhwa` calls the layouts that it knows, those that cost least first.
const KNOWN: [(FrameFormat, &[u8; 4]); 5] = [
    (FrameFormat::RAWRGB, b"RGB3"),
    (FrameFormat::RAWBGR, b"BGR3"),
    (FrameFormat::YUYV, b"YUYV"),
    (FrameFormat::NV12, b"NV12"),
    (FrameFormat::MJPEG, b"MJPG"),
];

/// A picture on its way from the thread.
struct Shot {
    taken: Timestamp,
    /// Pictures before it that found no room.
    skipped: u64,
    size: [u32; 2],
    unpacked: Result<(PixelFormat, FrameBuf), String>,
}

/// What gives pictures and may never come back: `nokhwa`, or a script.
trait Webcam {
    /// The next picture; an error is the end of the camera.
    fn shoot(&mut self) -> Result<Shot, String>;
}

/// Opens a webcam in the thread that is to use it.
type Open = dyn Fn() -> Result<Box<dyn Webcam>, String> + Send + Sync;

/// A thread that waits for a camera.
struct Feed {
    shots: Receiver<Result<Shot, String>>,
    thread: JoinHandle<()>,
    /// When its last picture came, or it was started.
    heard: Timestamp,
}

/// A camera that is open, or is opened by the next call.
pub struct NokhwaCamera {
    camera: CameraId,
    name: String,
    silence_s: f64,
    clock: Arc<dyn Clock>,
    open: Arc<Open>,
    feed: Option<Feed>,
    /// Threads that were left alone and may not have ended.
    abandoned: Vec<JoinHandle<()>>,
    next: u64,
    sequence: u64,
}

impl NokhwaCamera {
    /// Opens a camera. One that is not there yet is no error here: it may be plugged in later.
    pub fn new(camera: CameraId, settings: NokhwaSettings, clock: Arc<dyn Clock>) -> Self {
        let name = format!("nokhwa {}", settings.index);
        let (silence_s, with) = (settings.silence_s, Arc::clone(&clock));
        // What the camera had at first it must have again: other pixels would be judged by the same thresholds.
        let first = Mutex::new(None);
        let open = move || Ok(Box::new(ByNokhwa::open(&settings, &first, Arc::clone(&with))?) as Box<dyn Webcam>);
        Self::with(camera, name, silence_s, clock, Arc::new(open))
    }

    fn with(camera: CameraId, name: String, silence_s: f64, clock: Arc<dyn Clock>, open: Arc<Open>) -> Self {
        Self { camera, name, silence_s, clock, open, feed: None, abandoned: Vec::new(), next: 0, sequence: 0 }
    }

    fn start(&mut self) -> Result<&mut Feed, SourceError> {
        if self.hanging() >= HANGING {
            return Err(self.lost(format!(
                "{HANGING} threads hang inside of nokhwa, which has no time-out, and no more are started: unplug the camera or \
                 restart the program; a camera of kind \"v4l2\" cannot hang"
            )));
        }
        let (to, shots) = bounded(WAITING);
        let open = Arc::clone(&self.open);
        let thread = Builder::new().name("webcam".into()).spawn(move || deliver(open.as_ref(), &to));
        match thread {
            Ok(thread) => Ok(self.feed.insert(Feed { shots, thread, heard: self.clock.now() })),
            Err(error) => Err(self.lost(format!("no thread for it: {error}"))),
        }
    }

    /// Threads that were left alone and have not ended.
    fn hanging(&mut self) -> usize {
        self.abandoned.retain(|thread| !thread.is_finished());
        self.abandoned.len()
    }

    fn lost(&mut self, reason: String) -> SourceError {
        self.abandoned.extend(self.feed.take().map(|feed| feed.thread));
        SourceError::Lost { reason: format!("{}: {reason}", self.name) }
    }
}

impl FrameSource for NokhwaCamera {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        let now = self.clock.now();
        let feed = match &mut self.feed {
            Some(feed) => feed,
            None => self.start()?,
        };
        let shot = match feed.shots.recv_timeout(WAIT) {
            Ok(Ok(shot)) => shot,
            Ok(Err(reason)) => {
                let held = match self.hanging() {
                    0 => String::new(),
                    count => format!("; {count} of our own threads still hang in it and end when it wakes up"),
                };
                return Err(self.lost(format!("{reason}{held}")));
            }
            Err(RecvTimeoutError::Disconnected) => return Err(self.lost("nokhwa panicked".into())),
            Err(RecvTimeoutError::Timeout) if now.millis_since(feed.heard) > self.silence_s * 1e3 => {
                let silence = self.silence_s;
                return Err(self.lost(format!("no picture for {silence} s, and its thread hangs")));
            }
            Err(RecvTimeoutError::Timeout) => return Err(SourceError::Timeout),
        };
        // Before the wait: a tenth of a second at most.
        feed.heard = now;
        let id = FrameId(self.next);
        self.sequence += shot.skipped + u64::from(self.next > 0);
        self.next += 1;
        let [width, height] = shot.size;
        let meta = FrameMeta {
            id,
            camera: self.camera.clone(),
            captured_at: shot.taken,
            sequence: self.sequence,
            trigger: None,
            width,
            height,
        };
        match shot.unpacked {
            Ok((format, pixels)) => Ok(Frame { meta, format, pixels }),
            Err(reason) => {
                Err(SourceError::Damaged { meta: Box::new(FrameMeta { width: 0, height: 0, ..meta }), reason })
            }
        }
    }
}

/// The thread: pictures, until the camera ends or nobody wants them.
fn deliver(open: &Open, to: &Sender<Result<Shot, String>>) {
    let mut skipped = 0;
    let end = match open() {
        Ok(mut webcam) => loop {
            match webcam.shoot() {
                Ok(shot) => match to.try_send(Ok(Shot { skipped, ..shot })) {
                    Ok(()) => skipped = 0,
                    Err(TrySendError::Full(_)) => skipped += 1,
                    Err(TrySendError::Disconnected(_)) => return,
                },
                Err(reason) => break reason,
            }
        },
        Err(reason) => reason,
    };
    // Waits for room: the reason is not to be lost. Nobody may want it any more.
    let _ = to.send(Err(end));
}

/// A camera in the hands of `nokhwa`.
struct ByNokhwa {
    camera: Camera,
    picture: Picture,
    unpacker: Unpacker,
    clock: Arc<dyn Clock>,
}

impl ByNokhwa {
    fn open(
        settings: &NokhwaSettings,
        first: &Mutex<Option<CameraFormat>>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, String> {
        let codes = KNOWN.map(|(_, code)| *code);
        v4l2::offer(&PathBuf::from(format!("/dev/video{}", settings.index)), &codes)?;
        let formats = KNOWN.map(|(format, _)| format);
        let asked = |kind| RequestedFormat::with_formats(kind, &formats);
        let index = CameraIndex::Index(settings.index);
        let mut camera = Camera::new(index, asked(RequestedFormatType::None)).map_err(|error| error.to_string())?;
        let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
        let format = match *first {
            Some(format) => format,
            None => choose(&camera.compatible_camera_formats().map_err(|error| error.to_string())?, settings)?,
        };
        let failed = |error: nokhwa::NokhwaError| format!("{format} is refused: {error}");
        camera.set_camera_requset(asked(RequestedFormatType::Exact(format))).map_err(failed)?;
        let got = camera.camera_format();
        if got != format {
            return Err(format!("{format} was asked for and the camera gives {got}"));
        }
        camera.open_stream().map_err(|error| error.to_string())?;
        *first = Some(format);
        let Some(layout) = code_of(format).and_then(|code| FourCc(code).layout()) else {
            return Err(format!("{format} is not read"));
        };
        let (width, height) = (format.width() as usize, format.height() as usize);
        // What it does not say means BT.601, limited, as everywhere.
        let encoding = Encoding { bt709: false, full_range: false };
        let picture = Picture { layout, width, height, stride: 0, encoding };
        Ok(Self { camera, picture, unpacker: Unpacker::default(), clock })
    }
}

impl Webcam for ByNokhwa {
    fn shoot(&mut self) -> Result<Shot, String> {
        let buffer = self.camera.frame().map_err(|error| error.to_string())?;
        let wall = Duration::from_nanos(self.clock.wall_nanos());
        let age = buffer.capture_timestamp().and_then(|stamp| wall.checked_sub(stamp));
        let age = age.filter(|age| *age < OLDEST).unwrap_or_default();
        let taken = Timestamp(self.clock.now().0.saturating_sub(age.as_nanos() as u64));
        let Picture { width, height, .. } = self.picture;
        let unpacked =
            dense(&self.picture, buffer.buffer()).and_then(|bytes| self.unpacker.unpack(&self.picture, bytes));
        Ok(Shot { taken, skipped: 0, size: [width as u32, height as u32], unpacked })
    }
}

/// A buffer whose rows follow one another: `nokhwa` does not say how long a row is.
fn dense<'a>(picture: &Picture, bytes: &'a [u8]) -> Result<&'a [u8], String> {
    let (width, height) = (picture.width, picture.height);
    match picture.layout.bytes(width, height) {
        Some(needed) if bytes.len() >= needed + PAGE => Err(format!(
            "{} bytes where {width}x{height} have {needed}: its rows are padded, and nokhwa does not say how; use kind \"v4l2\"",
            bytes.len()
        )),
        _ => Ok(bytes),
    }
}

fn code_of(format: CameraFormat) -> Option<[u8; 4]> {
    KNOWN.into_iter().find(|(known, _)| *known == format.format()).map(|(_, code)| *code)
}

/// The format that was asked for; what was left open is the cheapest layout, its first size and the highest rate of that.
fn choose(offered: &[CameraFormat], wanted: &NokhwaSettings) -> Result<CameraFormat, String> {
    let fits = |format: &&CameraFormat| {
        wanted.format.is_none_or(|code| code_of(**format) == Some(code.0))
            && wanted.size.is_none_or(|size| size == [format.width(), format.height()])
            && wanted.fps.is_none_or(|fps| fps == format.frame_rate())
    };
    let cheapest = KNOWN.iter().find_map(|(known, _)| offered.iter().filter(fits).find(|f| f.format() == *known));
    let best = cheapest.and_then(|cheapest| {
        let same = |f: &&CameraFormat| f.format() == cheapest.format() && f.resolution() == cheapest.resolution();
        offered.iter().filter(fits).filter(same).max_by_key(|f| f.frame_rate())
    });
    best.copied().ok_or_else(|| {
        let mut names: Vec<String> = offered.iter().map(ToString::to_string).collect();
        names.dedup();
        format!("the camera has no such format, size and rate; nokhwa sees: {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::platform::clock::SystemClock;

    const SILENCE: f64 = 0.15;

    /// Gives so many pictures, then does what it is told to.
    struct Scripted {
        left: usize,
        then: Then,
        clock: Arc<dyn Clock>,
    }

    #[derive(Clone)]
    enum Then {
        /// Waits until something is sent, or the sender is gone, and gives another picture.
        Hang(Receiver<()>),
        Break,
        Panic,
    }

    impl Webcam for Scripted {
        fn shoot(&mut self) -> Result<Shot, String> {
            std::thread::sleep(Duration::from_millis(5));
            if self.left == 0 {
                match &self.then {
                    Then::Hang(wake) => drop(wake.recv()),
                    Then::Break => return Err("broken".into()),
                    Then::Panic => panic!("scripted"),
                }
            }
            self.left = self.left.saturating_sub(1);
            let unpacked = Ok((PixelFormat::Gray8, FrameBuf::from(vec![7])));
            Ok(Shot { taken: self.clock.now(), skipped: 0, size: [1, 1], unpacked })
        }
    }

    fn camera(
        open: impl Fn(usize, Arc<dyn Clock>) -> Result<Scripted, String> + Send + Sync + 'static,
    ) -> NokhwaCamera {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
        let (opened, with) = (AtomicUsize::new(0), Arc::clone(&clock));
        let open = move || {
            let webcam = open(opened.fetch_add(1, Ordering::Relaxed), Arc::clone(&with))?;
            Ok(Box::new(webcam) as Box<dyn Webcam>)
        };
        NokhwaCamera::with(CameraId("web".into()), "nokhwa 0".into(), SILENCE, clock, Arc::new(open))
    }

    /// Frames until the camera is lost, and why.
    fn until_lost(camera: &mut NokhwaCamera) -> (Vec<FrameMeta>, String) {
        let mut frames = Vec::new();
        for _ in 0..1000 {
            match camera.next_frame() {
                Ok(frame) => frames.push(frame.meta),
                Err(SourceError::Timeout) => {}
                Err(SourceError::Lost { reason }) => return (frames, reason),
                Err(error) => panic!("{error}"),
            }
        }
        panic!("never lost");
    }

    #[test]
    fn a_camera_that_hangs_is_lost_and_comes_back_when_it_wakes_up() {
        let (wake, asleep) = bounded(0);
        // The driver gives it to nobody while the first thread hangs in it.
        let open = move |count, clock| match count {
            0 => Ok(Scripted { left: 5, then: Then::Hang(asleep.clone()), clock }),
            1 => Err("busy".into()),
            _ => Ok(Scripted { left: 3, then: Then::Break, clock }),
        };
        let mut camera = camera(open);
        let (frames, reason) = until_lost(&mut camera);
        assert_eq!(frames.len(), 5);
        assert!(reason.contains("nokhwa 0: no picture for 0.15 s") && camera.hanging() == 1, "{reason}");
        let (frames, reason) = until_lost(&mut camera);
        assert!(frames.is_empty() && reason.contains("busy; 1 of our own threads"), "{reason}");
        drop(wake);
        let (frames, reason) = until_lost(&mut camera);
        assert!(reason.contains("broken"), "{reason}");
        // Numbers go on, and the picture that woke the first thread is nobody's.
        assert_eq!(frames.iter().map(|meta| (meta.id.0, meta.sequence)).collect::<Vec<_>>(), [(5, 5), (6, 6), (7, 7)]);
        while camera.hanging() > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn no_more_threads_hang_than_are_allowed() {
        let (wake, asleep) = bounded::<()>(0);
        let mut camera = camera(move |_, clock| Ok(Scripted { left: 1, then: Then::Hang(asleep.clone()), clock }));
        for hanging in 1..=HANGING {
            assert_eq!(until_lost(&mut camera).0.len(), 1);
            assert_eq!(camera.hanging(), hanging);
        }
        let (frames, reason) = until_lost(&mut camera);
        assert!(frames.is_empty() && reason.contains("3 threads hang") && reason.contains("v4l2"), "{reason}");
        drop(wake);
        while camera.hanging() > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        // The script of this one gives pictures without end, now that nothing hangs.
        assert!((0..100).any(|_| camera.next_frame().is_ok()));
    }

    #[test]
    fn a_thread_that_panics_is_a_lost_camera() {
        let mut camera = camera(|_, clock| Ok(Scripted { left: 2, then: Then::Panic, clock }));
        let (frames, reason) = until_lost(&mut camera);
        assert!(frames.len() == 2 && reason.contains("panicked"), "{reason}");
        assert_eq!(until_lost(&mut camera).0.len(), 2);
    }

    #[test]
    fn pictures_that_find_no_room_are_counted() {
        let mut camera = camera(|_, clock| Ok(Scripted { left: 40, then: Then::Break, clock }));
        while camera.next_frame().is_err() {}
        std::thread::sleep(Duration::from_millis(100));
        let (frames, _) = until_lost(&mut camera);
        let gaps = frames.windows(2).filter(|pair| pair[1].sequence > pair[0].sequence + 1).count();
        assert!(gaps == 1 && frames.len() < 39, "{gaps} gaps in {} frames", frames.len());
    }

    #[test]
    fn what_is_left_open_is_chosen() {
        let format = |format, size: [u32; 2], fps| CameraFormat::new_from(size[0], size[1], format, fps);
        let offered = [
            format(FrameFormat::MJPEG, [1280, 720], 30),
            format(FrameFormat::YUYV, [640, 480], 15),
            format(FrameFormat::YUYV, [640, 480], 30),
            format(FrameFormat::YUYV, [320, 240], 60),
        ];
        let any = NokhwaSettings { index: 0, format: None, size: None, fps: None, silence_s: 5.0 };
        assert_eq!(choose(&offered, &any), Ok(offered[2]));
        assert_eq!(choose(&offered, &NokhwaSettings { fps: Some(15), ..any.clone() }), Ok(offered[1]));
        assert_eq!(choose(&offered, &NokhwaSettings { size: Some([320, 240]), ..any.clone() }), Ok(offered[3]));
        assert_eq!(choose(&offered, &NokhwaSettings { format: Some(FourCc(*b"MJPG")), ..any.clone() }), Ok(offered[0]));
        let error = choose(&offered, &NokhwaSettings { fps: Some(25), ..any }).expect_err("none");
        assert!(error.contains("640x480"), "{error}");
    }

    #[test]
    fn padded_rows_are_refused() {
        let encoding = Encoding { bt709: false, full_range: false };
        let of = |layout| Picture { layout, width: 320, height: 240, stride: 0, encoding };
        let yuyv = of(FourCc(*b"YUYV").layout().expect("known"));
        assert!(dense(&yuyv, &vec![0; 320 * 240 * 2 + PAGE - 1]).is_ok());
        assert!(dense(&yuyv, &vec![0; 384 * 240 * 2]).expect_err("padded").contains("v4l2"));
        let jpeg = of(FourCc(*b"MJPG").layout().expect("known"));
        assert!(dense(&jpeg, &vec![0; 1 << 20]).is_ok());
    }
}
