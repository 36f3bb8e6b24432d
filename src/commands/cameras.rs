//! `dsad cameras`: which cameras there are, what they can do, and what they see.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use serde_json::json;

use crate::camera::v4l2::list::{Format, Listed, cameras};
use crate::camera::{self, v4l2::V4l2Camera};
use crate::config::station::{self, V4l2Settings};
use crate::inspection::frame::{CameraId, Frame, FrameSource, SourceError};
use crate::inspection::layout::FourCc;
use crate::inspection::time::Clock;
use crate::render::encode::png_of;

/// Arguments of `dsad cameras`.
#[derive(Debug, clap::Args)]
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
}

/// Arguments of `dsad cameras snap`.
#[derive(Debug, clap::Args)]
struct SnapArgs {
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

/// Runs the verb.
///
/// # Errors
/// A camera that gives no picture.
pub fn run(args: &CamerasArgs, clock: Arc<dyn Clock>) -> anyhow::Result<ExitCode> {
    if let Some(Verb::Snap(args)) = &args.verb {
        return snap(args, clock);
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
    println!("{}: {name} ({driver}, {bus})", device.display());
    if let Some(problem) = problem {
        println!("  {problem}");
    }
    match stable.first() {
        Some(stable) => println!("  stable path: {}", stable.display()),
        None => println!("  stable path: none; the number may change when it is plugged in again"),
    }
    for Format { code, description, read, sizes } in formats {
        let sizes = sizes.iter().map(|size| {
            let fps = size.fps.first().map_or(String::new(), |fps| format!("@{fps:.0}"));
            format!("{}x{}{fps}", size.width, size.height)
        });
        let sizes: Vec<String> = sizes.collect();
        println!("  {code:<4} {description}{}: {}", if *read { "" } else { " (not read)" }, sizes.join(" "));
    }
    for control in controls {
        let value = control.value.map_or("-".into(), |value| value.to_string());
        let (name, kind, least, most) = (&control.name, control.kind, control.minimum, control.maximum);
        println!(
            "  {name} = {value} ({kind}, {least} to {most}{})",
            if control.read_only { ", read only" } else { "" }
        );
    }
}

fn snap(args: &SnapArgs, clock: Arc<dyn Clock>) -> anyhow::Result<ExitCode> {
    let mut source: Box<dyn FrameSource> = match &args.config {
        Some(config) => {
            let station = station::load(config)?;
            let Some(settings) = station.cameras.iter().find(|camera| camera.name == args.camera) else {
                let names: Vec<&str> = station.cameras.iter().map(|camera| camera.name.as_str()).collect();
                bail!("{}: no camera '{}'; it has: {}", config.display(), args.camera, names.join(", "));
            };
            camera::open(settings, Arc::clone(&clock)).map_err(anyhow::Error::msg)?
        }
        None => Box::new(V4l2Camera::new(
            CameraId(args.camera.clone()),
            V4l2Settings {
                device: args.camera.clone().into(),
                format: args.format,
                size: args.size.as_ref().map(|size| [size[0], size[1]]),
                fps: None,
                controls: Default::default(),
                silence_s: 0.0,
            },
            Arc::clone(&clock),
        )),
    };
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
        ensure!(waited < args.wait, "{}: no picture in {waited:.0} s; {why}", args.camera);
    }
}
