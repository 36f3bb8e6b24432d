//! `dsad cameras`: which cameras there are, what they can do, and what they see.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use serde::Serialize;
use serde_json::json;

use crate::camera;
use crate::camera::v4l2::list::{Format, Listed, cameras};
use crate::camera::v4l2::{V4l2Camera, set};
use crate::config::camera::V4l2Settings;
use crate::config::station;
use crate::inspection::frame::{CameraId, Frame, FrameSource, SourceError};
use crate::inspection::layout::FourCc;
use crate::inspection::time::{Clock, Timestamp};
use crate::platform::signals;
use crate::render::encode::png_of;

/// Arguments of `dsad cameras`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct CamerasArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// One JSON object a camera
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Write a picture as the station would see it
    Snap(SnapArgs),
    /// Take pictures for a while and say what was lost: for a new cable, hub, rate or exposure
    Watch(WatchArgs),
    /// Set controls until the camera is unplugged, beside a running station: to find what belongs into the configuration
    Set(SetArgs),
}

/// Arguments of `dsad cameras set`.
#[derive(Debug, clap::Args)]
struct SetArgs {
    /// The camera's path
    camera: PathBuf,
    /// Names and values, as exposure_time_absolute=120
    #[arg(required = true, value_name = "NAME=VALUE", value_parser = setting)]
    controls: Vec<(String, i64)>,
}

fn setting(text: &str) -> Result<(String, i64), String> {
    let (name, value) = text.split_once('=').ok_or("is no NAME=VALUE")?;
    Ok((name.to_owned(), value.parse().map_err(|_| format!("'{value}' is no whole number"))?))
}

/// Which camera, and how.
#[derive(Debug, clap::Args)]
struct Chosen {
    /// The camera: a path, or with --config the name of one of the station's
    camera: String,
    /// The station's configuration: the camera with the format, rate and controls that it has there
    #[arg(long)]
    config: Option<PathBuf>,
    /// FOURCC of the pictures, as GREY
    #[arg(long, conflicts_with = "config")]
    format: Option<FourCc>,
    /// Columns and rows
    #[arg(long, num_args = 2, value_names = ["COLUMNS", "ROWS"], conflicts_with = "config")]
    size: Option<Vec<u32>>,
    /// Pictures a second
    #[arg(long, conflicts_with = "config")]
    fps: Option<f64>,
}

/// Arguments of `dsad cameras watch`.
#[derive(Debug, clap::Args)]
struct WatchArgs {
    #[command(flatten)]
    chosen: Chosen,
    /// For so long, seconds
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Until so many pictures came, if that is before
    #[arg(long)]
    frames: Option<u64>,
    /// The summary as one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `dsad cameras snap`.
#[derive(Debug, clap::Args)]
struct SnapArgs {
    #[command(flatten)]
    chosen: Chosen,
    /// Pictures to let go by first: many cameras need some to find their exposure
    #[arg(long, default_value_t = 5)]
    skip: u32,
    /// Seconds to wait for the picture
    #[arg(long, default_value_t = 10.0)]
    wait: f64,
    /// The PNG that is written
    #[arg(long, default_value = "snap.png")]
    out: PathBuf,
}

impl Chosen {
    fn open(&self, clock: Arc<dyn Clock>) -> anyhow::Result<Box<dyn FrameSource>> {
        Ok(match &self.config {
            Some(config) => {
                let station = station::load(config)?;
                let Some(settings) = station.cameras.iter().find(|camera| camera.name == self.camera) else {
                    let names: Vec<&str> = station.cameras.iter().map(|camera| camera.name.as_str()).collect();
                    bail!("{}: no camera '{}'; it has: {}", config.display(), self.camera, names.join(", "));
                };
                camera::open(settings, clock).map_err(anyhow::Error::msg)?
            }
            None => {
                let settings = V4l2Settings {
                    device: self.camera.clone().into(),
                    format: self.format,
                    size: self.size.as_ref().map(|size| [size[0], size[1]]),
                    fps: self.fps,
                    controls: BTreeMap::new(),
                    silence_s: 0.0,
                };
                Box::new(V4l2Camera::new(CameraId(self.camera.as_str().into()), settings, clock))
            }
        })
    }
}

/// Runs the verb.
///
/// # Errors
/// A camera that gives no picture.
pub fn run(args: &CamerasArgs, clock: Arc<dyn Clock>) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Some(Verb::Snap(args)) => return snap(args, clock),
        Some(Verb::Watch(args)) => return watch(args, clock.as_ref(), args.chosen.open(Arc::clone(&clock))?),
        Some(Verb::Set(SetArgs { camera, controls })) => {
            let controls = controls.iter().cloned().collect();
            set(camera, &controls).map_err(|reason| anyhow!("{}: {reason}", camera.display()))?;
            println!("{}: set, and read back where it can be", camera.display());
            return Ok(ExitCode::SUCCESS);
        }
        None => {}
    }
    let found = cameras();
    for camera in &found {
        if args.json { println!("{}", json!(camera)) } else { print(camera) }
    }
    if found.is_empty() && !args.json {
        println!("no camera: no /dev/video* that streams pictures");
    }
    Ok(ExitCode::SUCCESS)
}

fn print(camera: &Listed) {
    let Listed { name, driver, bus, device, stable, formats, controls, problem } = camera;
    if let Some(problem) = problem {
        println!("{}: {problem}", device.display());
        return;
    }
    println!("{}: {name} ({driver}, {bus})", device.display());
    match stable.first() {
        Some(stable) => println!("  stable path: {}", stable.display()),
        None => println!("  stable path: none; the number may change when it is plugged in again"),
    }
    let unread = formats.iter().filter(|format| !format.read).count();
    for Format { code, description, sizes, .. } in formats.iter().filter(|format| format.read) {
        let sizes = sizes.iter().map(|size| {
            let fps = size.fps.first().map_or(String::new(), |fps| format!("@{fps:.0}"));
            format!("{}x{}{fps}", size.width, size.height)
        });
        let sizes: Vec<String> = sizes.collect();
        println!("  {code:<4} {description}: {}", sizes.join(" "));
    }
    if unread > 0 {
        println!("  and {unread} formats that are not read (--json lists them)");
    }
    for control in controls {
        let value = control.value.map_or("-".into(), |value| value.to_string());
        let (name, kind, least, most) = (&control.name, control.kind, control.minimum, control.maximum);
        let read_only = if control.read_only { ", read only" } else { "" };
        println!("  {name} = {value} ({kind}, {least} to {most}{read_only})");
        let entries = control.menu.iter().map(|entry| format!("{} {}", entry.value, entry.name));
        if !control.menu.is_empty() {
            println!("    {}", entries.collect::<Vec<_>>().join(", "));
        }
    }
}

fn snap(args: &SnapArgs, clock: Arc<dyn Clock>) -> anyhow::Result<ExitCode> {
    let mut source = args.chosen.open(Arc::clone(&clock))?;
    let frame = picture(source.as_mut(), args, clock.as_ref())?;
    let png = png_of(&frame)?;
    std::fs::write(&args.out, png).with_context(|| format!("{}: cannot be written", args.out.display()))?;
    let (width, height) = (frame.meta.width, frame.meta.height);
    println!("{}: {width}x{height}, {:?}", args.out.display(), frame.format);
    Ok(ExitCode::SUCCESS)
}

/// A whole picture, after those that are let go by.
fn picture(source: &mut dyn FrameSource, args: &SnapArgs, clock: &dyn Clock) -> anyhow::Result<Frame> {
    let started = clock.now();
    let mut left = args.skip;
    let mut damaged = None;
    loop {
        match source.next_frame() {
            Ok(frame) if left == 0 => return Ok(frame),
            Ok(_) => left -= 1,
            Err(SourceError::Damaged { reason, .. }) => damaged = Some(reason),
            Err(SourceError::Timeout) => {}
            Err(error) => bail!("{error}"),
        }
        let waited = clock.now().millis_since(started) / 1e3;
        let why = damaged
            .as_ref()
            .map_or("does it wait for a trigger?".into(), |reason| format!("the last was damaged: {reason}"));
        ensure!(waited < args.wait, "{}: no picture in {waited:.0} s; {why}", args.chosen.camera);
    }
}

/// What came and what did not.
#[derive(Debug, Default, Serialize)]
struct Watched {
    /// Pictures that came whole.
    frames: u64,
    /// Pictures that came damaged.
    damaged: u64,
    /// Pictures that the driver counted and nobody got.
    dropped: u64,
    /// How often the camera was gone.
    lost: u64,
    /// How often it came back.
    recovered: u64,
    /// Longest time from gone to the next picture, seconds.
    longest_recovery_s: f64,
    /// Pictures a second, while it was there.
    fps: f64,
    /// Columns and rows of the last.
    size: [u32; 2],
}

/// Waits between tries to open a camera that is gone.
const RETRY: Duration = Duration::from_millis(100);

fn watch(args: &WatchArgs, clock: &dyn Clock, mut source: Box<dyn FrameSource>) -> anyhow::Result<ExitCode> {
    let mut seen = Watched::default();
    let (started, mut last) = (clock.now(), None::<(Timestamp, u64)>);
    let (mut gone, mut apart, mut intervals) = (None::<Timestamp>, 0.0, 0u32);
    let stop = signals::stop_flag()?;
    let goes_on = |frames: u64| {
        let long_enough = clock.now().millis_since(started) >= args.seconds * 1e3;
        !(stop.load(Ordering::Relaxed) || long_enough || args.frames.is_some_and(|most| frames >= most))
    };
    while goes_on(seen.frames) {
        let meta = match source.next_frame() {
            Ok(frame) => {
                seen.frames += 1;
                seen.size = [frame.meta.width, frame.meta.height];
                frame.meta
            }
            Err(SourceError::Damaged { meta, reason }) => {
                seen.damaged += 1;
                log::warn!("damaged: {reason}");
                *meta
            }
            Err(SourceError::Timeout) => continue,
            Err(SourceError::Ended) => break,
            Err(SourceError::Lost { reason }) => {
                ensure!(seen.frames + seen.damaged > 0 || seen.lost == 0, "{reason}");
                if gone.is_none() {
                    seen.lost += 1;
                    log::warn!("{reason}");
                }
                gone.get_or_insert_with(|| clock.now());
                last = None;
                std::thread::sleep(RETRY);
                continue;
            }
        };
        let now = clock.now();
        if let Some(since) = gone.take() {
            seen.recovered += 1;
            seen.longest_recovery_s = seen.longest_recovery_s.max(now.millis_since(since) / 1e3);
        }
        if let Some((before, sequence)) = last {
            apart += now.millis_since(before);
            intervals += 1;
            seen.dropped += meta.sequence.saturating_sub(sequence + 1);
        }
        last = Some((now, meta.sequence));
    }
    seen.fps = if apart > 0.0 { f64::from(intervals) / apart * 1e3 } else { 0.0 };
    if args.json {
        println!("{}", json!(seen));
    } else {
        let Watched { frames, damaged, dropped, lost, recovered, longest_recovery_s, fps, size: [width, height] } =
            &seen;
        println!(
            "{frames} pictures of {width}x{height}, {fps:.1} a second; {damaged} damaged, {dropped} dropped by the driver"
        );
        println!("gone {lost} times, came back {recovered} times, after {longest_recovery_s:.1} s at most");
    }
    Ok(if seen.frames > 0 { ExitCode::SUCCESS } else { ExitCode::from(super::inspect::FAULT) })
}
