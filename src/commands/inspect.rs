//! `dsad inspect`: judge picture files.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use serde_json::json;

use super::load::{Bundles, boot_id, keys, recipe};
use crate::camera::replay::{Replay, pictures};
use crate::config::device::DeviceChoice;
use crate::daemon::job::{Item, Job, faulty, judge_one};
use crate::inspection::detect::{ClassId, Detector, StepChoice};
use crate::inspection::event::Event;
use crate::inspection::frame::{CameraId, FrameSource, SourceError};
use crate::inspection::recipe::Recipe;
use crate::inspection::tiles::TileGrid;
use crate::inspection::time::Clock;
use crate::inspection::verdict::{FaultReason, Inspection, Latency, Verdict};
use crate::output::drawing::draw;
use crate::output::envelope::Envelopes;
use crate::platform::clock::SystemClock;
use crate::preprocess::prepare_for;
use crate::render::encode;

/// Arguments of `dsad inspect`.
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// Pictures, or folders of pictures
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// The bundle that judges
    #[arg(long, required_unless_present = "recipe")]
    bundle: Option<PathBuf>,
    /// The recipe that judges, with its bundle: to try ROIs on pictures before the line runs
    #[arg(long, conflicts_with_all = ["bundle", "steps", "class", "tiles"])]
    recipe: Option<PathBuf>,
    /// Folder for drawings: frame, reconstruction and map of every picture
    #[arg(long)]
    out: Option<PathBuf>,
    /// Denoising steps, or auto; default 2 if the bundle lists it
    #[arg(long)]
    steps: Option<StepChoice>,
    /// Product kind of a multi-class bundle; default is the null class
    #[arg(long)]
    class: Option<String>,
    /// Cut pictures otherwise than the bundle says, as 8x8,20; needs thresholds for that (`dsad calibrate --tiles`)
    #[arg(long)]
    tiles: Option<TileGrid>,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Folder of public keys; with it, an unsigned bundle is refused
    #[arg(long)]
    keys: Option<PathBuf>,
    /// Folder of calibrations that `dsad calibrate` made
    #[arg(long)]
    calibrations: Option<PathBuf>,
    /// One event a line; the summary last
    #[arg(long)]
    json: bool,
}

/// Exit code when something could not be judged.
pub const FAULT: u8 = 3;

/// Runs the verb: exit 0 all pass, 1 some fail, 3 a fault or an error.
///
/// # Errors
/// A bundle or a path that cannot be used.
pub fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let mut bundles = Bundles::default();
    let written = args.recipe.as_deref().map(recipe).transpose()?;
    let dir = written.as_ref().map(|(_, bundle)| bundle).or(args.bundle.as_ref()).context("--bundle is needed")?;
    let index = bundles.open(dir, &keys(args.keys.as_deref())?)?;
    let recipe = written.map(|(recipe, _)| recipe).unwrap_or_else(|| {
        let listed = &bundles.get(index).manifest.steps;
        let usual = listed.iter().copied().find(|steps| steps.0 == 2).unwrap_or(listed[0]);
        let (class, steps) = (args.class.clone().map(ClassId), args.steps.unwrap_or(StepChoice::Fixed(usual)));
        Recipe { tiles: args.tiles, ..Recipe::whole_frame("inspect", class, steps) }
    });
    let job = bundles.job(index, recipe, args.device, args.calibrations.as_deref())?;
    let files =
        args.paths.iter().map(|path| pictures(path)).collect::<Result<Vec<_>, _>>().map_err(anyhow::Error::msg)?;
    let mut detectors = bundles.detectors(args.device, Arc::clone(&clock), [], None, |step| log::debug!("{step}"))()
        .map_err(anyhow::Error::msg)?;
    let detector = detectors[index].as_mut();
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).with_context(|| format!("{}: cannot be made", out.display()))?;
    }
    let mut envelopes = Envelopes::new("", "inspect", boot_id()?, Arc::clone(&clock));
    let (mut pass, mut fail, mut fault) = (0usize, 0usize, 0usize);
    for file in files.iter().flatten() {
        let inspection = judge(file, &job, detector, &clock)?;
        match inspection.decision.verdict {
            Verdict::Pass => pass += 1,
            Verdict::Fail => fail += 1,
            Verdict::Fault(_) => fault += 1,
        }
        let image = match &args.out {
            Some(out) => save(out, file, &inspection)?,
            None => None,
        };
        let image = image.map(|path| path.display().to_string());
        let event = Event::new(&inspection, &envelopes.make(), image);
        if args.json {
            println!("{}", serde_json::to_string(&event)?);
        } else {
            println!("{}", line(file, &event));
        }
    }
    if args.json {
        println!("{}", json!({"images": pass + fail + fault, "pass": pass, "fail": fail, "fault": fault}));
    } else {
        println!("{} pictures: {pass} pass, {fail} fail, {fault} fault", pass + fail + fault);
    }
    Ok(match (fault, fail) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(1),
        _ => ExitCode::from(FAULT),
    })
}

fn judge(file: &Path, job: &Job, detector: &mut dyn Detector, clock: &Arc<dyn Clock>) -> anyhow::Result<Inspection> {
    let camera = CameraId("file".into());
    let mut replay = Replay::open(camera, file, None, Arc::clone(clock)).map_err(anyhow::Error::msg)?;
    let broken = |meta, text| faulty(meta, job, FaultReason::CameraFault, text, clock.as_ref());
    Ok(match replay.next_frame() {
        Ok(frame) => {
            let started = clock.now();
            match prepare_for(&job.recipe, &frame, &job.spec) {
                Ok(prepared) => {
                    let latency = Latency { prepare: clock.now().millis_since(started), ..Latency::default() };
                    judge_one(
                        Item { meta: frame.meta, prepared, pixels: None, latency, due: None },
                        job,
                        detector,
                        clock.as_ref(),
                    )
                }
                Err(error) => broken(frame.meta, format!("{}: {error}", file.display())),
            }
        }
        Err(SourceError::Damaged { meta, reason }) => broken(*meta, reason),
        Err(error) => anyhow::bail!("{}: {error}", file.display()),
    })
}

fn save(out: &Path, file: &Path, inspection: &Inspection) -> anyhow::Result<Option<PathBuf>> {
    let Some(panel) = draw(inspection) else { return Ok(None) };
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let verdict = inspection.decision.verdict.word();
    // Two folders may hold files of one name: the second does not replace the first.
    let mut path = out.join(format!("{stem}-{verdict}.jpg"));
    let mut copy = 1;
    while path.exists() {
        copy += 1;
        path = out.join(format!("{stem}-{verdict}-{copy}.jpg"));
    }
    std::fs::write(&path, encode::jpeg(&panel.rgb, panel.width, panel.height, 90)?)
        .with_context(|| format!("{}: cannot be written", path.display()))?;
    Ok(Some(path))
}

fn line(file: &Path, event: &Event) -> String {
    let number = |value: Option<f32>| value.map_or("-".into(), |value| format!("{value:.4}"));
    let why = event.fault.as_deref().or(event.reason).map_or(String::new(), |why| format!("  {why}"));
    format!(
        "{:<5} {:>8} / {:<8} {:>7.1} ms  {}{why}",
        event.verdict.to_uppercase(),
        number(event.score),
        number(event.threshold),
        event.latency_ms.total,
        file.display()
    )
}
