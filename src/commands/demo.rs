//! `dsad demo`: the whole daemon on a synthetic line with the demo bundle. Needs no camera, no GPU and no data.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use crossbeam::channel::bounded;
use serde_json::json;

use super::load::{Bundles, boot_id, keys};
use crate::camera::synthetic::SyntheticCamera;
use crate::config::camera::SyntheticLine;
use crate::config::device::DeviceChoice;
use crate::config::record::ArchiveSettings;
use crate::config::shipped;
use crate::daemon::pipeline::{self, Camera, Ending, Parts};
use crate::daemon::state::StationState;
use crate::daemon::upkeep::Aside;
use crate::inspection::detect::{ClassId, StepChoice};
use crate::inspection::event::Event;
use crate::inspection::frame::CameraId;
use crate::inspection::recipe::Recipe;
use crate::inspection::station_state::Start;
use crate::inspection::time::Clock;
use crate::output::archive;
use crate::output::envelope::Envelopes;
use crate::output::ndjson::Lines;
use crate::output::record::{self, Places};
use crate::platform::{memory, signals};
use crate::synthetic::Product;

/// Arguments of `dsad demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Parts to judge; default 60
    #[arg(long, conflicts_with = "seconds")]
    parts: Option<u64>,
    /// Judge for this long instead of a number of parts
    #[arg(long)]
    seconds: Option<f64>,
    /// Folder for pictures and events.ndjson; must be empty or absent
    #[arg(long, default_value = "dsad-demo")]
    out: PathBuf,
    /// Seed of the parts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Share of defective parts, 0 to 1
    #[arg(long, default_value_t = 0.3)]
    defect_rate: f64,
    /// Denoising steps, or auto
    #[arg(long, default_value = "2")]
    steps: StepChoice,
    /// One event a line; the summary last
    #[arg(long)]
    json: bool,
}

/// Parts of a demo that was not told how many.
const PARTS: u64 = 60;
/// Events between the publish stage and the terminal.
const EVENTS: usize = 1_024;

/// What is counted against the generator's truth.
#[derive(Default)]
struct Tally {
    pass: usize,
    fail: usize,
    fault: usize,
    good: usize,
    rejected_good: usize,
    defective: usize,
    detected: usize,
    latencies: Vec<f64>,
    first_ms: Option<f64>,
    last_ms: f64,
}

/// Runs the verb; `clock` started with the process.
///
/// # Errors
/// No demo bundle, or an output folder that cannot be used.
pub fn run(args: &DemoArgs, clock: Arc<dyn Clock>) -> anyhow::Result<ExitCode> {
    ensure!((0.0..=1.0).contains(&args.defect_rate), "--defect-rate {}: must be 0 to 1", args.defect_rate);
    let stop = signals::stop_flag()?;
    let dir = demo_bundle()?;
    let mut bundles = Bundles::default();
    let index = bundles.open(&dir, &keys(None)?)?;
    if !args.out.as_os_str().is_empty() && std::fs::read_dir(&args.out).is_ok_and(|mut found| found.next().is_some()) {
        clear(&args.out)?;
    }
    let parts = args.parts.or(args.seconds.is_none().then_some(PARTS));
    let mut cameras = Vec::new();
    let count = Product::ALL.len() as u64;
    for (number, product) in (0..).zip(Product::ALL) {
        let class = ClassId(product.name().into());
        let known = bundles.get(index).manifest.classes.contains(&class);
        let recipe = Recipe::whole_frame(&format!("demo-{}", product.name()), known.then_some(class), args.steps);
        let camera = CameraId(product.name().into());
        let job = bundles.job(index, recipe, DeviceChoice::Cpu, None)?;
        let line = SyntheticLine {
            product,
            // Far from the seeds that `trainer synth` uses for training pictures.
            seed: args.seed ^ (0xDE30 + number),
            fps: None,
            defect_rate: args.defect_rate,
            parts: parts.map(|parts| parts / count + u64::from(number < parts % count)),
            size: bundles.get(index).manifest.preprocess.width as u32,
        };
        let source = Box::new(SyntheticCamera::new(camera.clone(), line, Arc::clone(&clock)));
        cameras.push(Camera::free(camera, source, false, job));
    }
    let mut envelopes = Envelopes::new("demo", "demo", boot_id()?, Arc::clone(&clock));
    let (shown_in, shown) = bounded::<Event>(EVENTS);
    let (archive, archive_worker, archive_health) = archive::open(ArchiveSettings::everything(&args.out), None);
    let (recording, _, queue) = record::queue(Arc::clone(&clock));
    let lines = Lines::new(&args.out.join("events.ndjson"), u64::MAX);
    let places = Places { store: None, lines, archive: Some(archive), shown: Some(shown_in) };
    let (record_worker, record_health) = queue.worker(places, Box::new(|| false), Arc::default());
    let clock_of_run = Arc::clone(&clock);
    let stop_of_run = Arc::clone(&stop);
    let recipes = cameras.iter().map(|camera| &camera.recipes[..]);
    let detectors =
        bundles.detectors(DeviceChoice::Cpu, Arc::clone(&clock), recipes, None, |step| log::debug!("start: {step}"));
    let parts_of_run = Parts {
        cameras,
        detectors,
        envelopes: Box::new(move || envelopes.make()),
        sinks: Vec::new(),
        record: Box::new(recording),
        workers: vec![
            ("record", Box::new(move || record_worker.run())),
            ("archive", Box::new(move || archive_worker.run())),
        ],
        service: None,
        desk: Arc::default(),
        state: Arc::new(StationState::new(Start::Automatic, Arc::clone(&clock), Arc::new(|_| Ok(())))),
        watches: Vec::new(),
        clock: clock_of_run,
        stop: stop_of_run,
        shutdown: Duration::from_secs(10),
        ready: Box::new(|| log::info!("ready")),
        alive: Box::new(|| {}),
        lease: Arc::default(),
        aside: Aside::default(),
    };
    let seconds = args.seconds.map(Duration::from_secs_f64);
    let (ending, tally) = std::thread::scope(|scope| {
        let watched = scope.spawn(|| pipeline::run(parts_of_run));
        let tally = show(&shown, args.json, seconds, &stop, clock.as_ref());
        (watched.join(), tally)
    });
    let Ok(ending) = ending else { bail!("the pipeline panicked") };
    if let Ending::Failed(reason) = ending {
        bail!("{reason}");
    }
    let lost = record_health.all_lost() + archive_health.lost.load(Ordering::Relaxed);
    summary(tally, &args.out, args.json);
    Ok(if lost == 0 { ExitCode::SUCCESS } else { ExitCode::from(super::inspect::FAULT) })
}

/// Prints every event and counts it, until the pipeline ends.
fn show(
    events: &crossbeam::channel::Receiver<Event>,
    json: bool,
    seconds: Option<Duration>,
    stop: &AtomicBool,
    clock: &dyn Clock,
) -> Tally {
    let mut tally = Tally::default();
    let mut until = None;
    for event in events {
        let now = clock.now();
        tally.first_ms.get_or_insert(now.0 as f64 / 1e6);
        tally.last_ms = now.0 as f64 / 1e6;
        let limit = *until.get_or_insert_with(|| seconds.map(|s| now.plus_millis(s.as_millis() as u64)));
        if limit.is_some_and(|limit| now >= limit) {
            stop.store(true, Ordering::Relaxed);
        }
        let truth = event.part_id.as_deref().and_then(|id| id.rsplit('/').next()).unwrap_or("?").to_owned();
        let rejected = event.verdict == "fail";
        match event.verdict {
            "pass" => tally.pass += 1,
            "fail" => tally.fail += 1,
            _ => tally.fault += 1,
        }
        if truth == "good" {
            tally.good += 1;
            tally.rejected_good += usize::from(rejected);
        } else {
            tally.defective += 1;
            tally.detected += usize::from(rejected);
        }
        tally.latencies.push(event.latency_ms.infer + event.latency_ms.prepare + event.latency_ms.decide);
        if json {
            match serde_json::to_string(&event) {
                Ok(line) => println!("{line}"),
                Err(error) => log::error!("event not shown: {error}"),
            }
        } else {
            let right = if rejected == (truth != "good") { ' ' } else { '!' };
            println!(
                "{right} {:>4}  {:<7} {:<8} {:<5} {:>8.3} / {:<8.3} {:>7.1} ms",
                tally.pass + tally.fail + tally.fault,
                event.camera,
                truth,
                event.verdict.to_uppercase(),
                event.score.unwrap_or(f32::NAN),
                event.threshold.unwrap_or(f32::NAN),
                event.latency_ms.infer
            );
        }
    }
    tally
}

fn summary(mut tally: Tally, out: &Path, json: bool) {
    let parts = tally.pass + tally.fail + tally.fault;
    tally.latencies.sort_unstable_by(f64::total_cmp);
    let quantile = |q: f64| {
        let rank = ((tally.latencies.len() as f64 * q).ceil() as usize).max(1) - 1;
        tally.latencies.get(rank).copied()
    };
    let share = |part: usize, whole: usize| (whole > 0).then(|| part as f64 / whole as f64);
    let span = tally.first_ms.map(|first| (tally.last_ms - first) / 1e3).filter(|span| *span > 0.0);
    let per_second = span.map(|span| (parts - 1) as f64 / span);
    let (detection, rejects) = (share(tally.detected, tally.defective), share(tally.rejected_good, tally.good));
    if json {
        println!(
            "{}",
            json!({"parts": parts, "pass": tally.pass, "fail": tally.fail, "fault": tally.fault,
                   "parts_per_s": per_second, "p50_ms": quantile(0.5), "p99_ms": quantile(0.99),
                   "first_verdict_ms": tally.first_ms, "peak_rss_mb": memory::peak_rss_mb(),
                   "detection_rate": detection, "false_reject_rate": rejects})
        );
        return;
    }
    let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
    let percent = |value: Option<f64>| value.map_or("-".into(), |value| format!("{:.1} %", value * 100.0));
    println!("\n{parts} parts: {} pass, {} fail, {} fault", tally.pass, tally.fail, tally.fault);
    println!("defects found {} of {} ({})", tally.detected, tally.defective, percent(detection));
    println!("good parts rejected {} of {} ({})", tally.rejected_good, tally.good, percent(rejects));
    println!("{} parts/s, p50 {} ms, p99 {} ms", number(per_second), number(quantile(0.5)), number(quantile(0.99)));
    println!("first verdict after {} ms, peak memory {} MB", number(tally.first_ms), number(memory::peak_rss_mb()));
    println!("drawings and events in {}", out.display());
}

/// Removes what an earlier demo wrote, and nothing else.
fn clear(out: &Path) -> anyhow::Result<()> {
    ensure!(
        out.join("events.ndjson").is_file(),
        "{}: is not empty and no earlier demo; choose another --out",
        out.display()
    );
    for entry in std::fs::read_dir(out)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // Folders of pictures are called by their date.
        let is_date = name.len() == 10 && name.chars().all(|c| c.is_ascii_digit() || c == '-');
        let removed = match name == "events.ndjson" {
            true => std::fs::remove_file(&path),
            false if is_date => std::fs::remove_dir_all(&path),
            false => Ok(()),
        };
        removed.with_context(|| format!("{}: cannot be removed", path.display()))?;
    }
    Ok(())
}

/// The demo bundle: beside the working directory, in an installation, or in the source tree.
fn demo_bundle() -> anyhow::Result<PathBuf> {
    let places = shipped::places("configs/bundles/demo", "bundles/demo");
    let found = places.iter().find(|place| place.join(crate::bundle::MANIFEST).is_file());
    found.cloned().with_context(|| {
        let searched: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        format!(
            "the demo bundle is in none of {}; install the package, or run inside the source tree",
            searched.join(", ")
        )
    })
}
