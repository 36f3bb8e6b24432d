//! `dsad run`: the daemon.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;

use super::load::{Bundles, boot_id, keys};
use super::problems::examine;
use super::serve::{Told, listen};
use super::swap::{SwapHealth, Swaps};
use super::upkeep::{self, Reload, Reloads, level};
use super::{kernels, preflight, record, safe_mode, telling};
use crate::config::station::{Station, load};
use crate::daemon::challenge::{Challenge, GoldenPart};
use crate::daemon::pipeline::{self, Camera, Ending, Parts, Watch};
use crate::daemon::state::StationState;
use crate::daemon::upkeep::Aside;
use crate::gpio::input::Edges;
use crate::gpio::output::GpioHealth;
use crate::inspection::conditions::Conditions;
use crate::inspection::frame::CameraId;
use crate::inspection::station_state::{Fault, FaultKind};
use crate::inspection::time::{Clock, Timestamp};
use crate::inspection::trigger::EdgeSource;
use crate::inspection::verdict::VerdictSink;
use crate::output::envelope::Envelopes;
use crate::output::latest;
use crate::platform::clock::SystemClock;
use crate::platform::thermal::Thermal;
use crate::platform::{logger, memory, service_manager, signals};
use crate::service::metrics::{OutputReading, Reading};
use crate::service::{Desk, Draw, Service};
use crate::{camera, gpio};

/// Exit code for a configuration that is refused (EX_CONFIG): restarting would not help.
const REFUSED: u8 = 78;

/// Arguments of `dsad run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The station's configuration
    #[arg(long)]
    config: PathBuf,
    /// One JSON object at the end
    #[arg(long)]
    json: bool,
    /// Stay up and tell why when the configuration is refused, as under systemd
    #[arg(long)]
    safe_mode: bool,
}

/// Runs the verb.
///
/// # Errors
/// The system refuses signal handlers or randomness.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let (stop, hangup) = (signals::stop_flag()?, signals::reload_flag()?);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let refused = |problems: Vec<String>| {
        eprintln!("dsad: configuration refused:\n{}", problems.join("\n"));
        if args.safe_mode || service_manager::is_there() {
            return safe_mode::run(&args.config, problems, &stop, clock.as_ref());
        }
        Ok(ExitCode::from(REFUSED))
    };
    let station = match load(&args.config) {
        Ok(station) => station,
        Err(error) => return refused(error.0.iter().map(ToString::to_string).collect()),
    };
    logger::set_level(level(station.log));
    preflight::before_start(&station);
    let conditions = Arc::<Conditions>::default();
    let kept = match record::open(&station, telling::outlets(&station), Arc::clone(&conditions), &clock) {
        Ok(kept) => kept,
        Err(error) => {
            // A disk may be there, or have room, at the next start.
            eprintln!("dsad: {error:#}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let audit = kept.clerk.audit();
    let (latest, pictures) = latest::open(station.cameras.iter().map(|camera| CameraId(camera.name.as_str().into())));
    let picture: Draw = Arc::new(move |camera| pictures.jpeg(camera));
    let told = Told { audit: Arc::clone(&audit), picture: Some(picture), recent: Some(Arc::clone(&kept.recent)) };
    let service = match listen(&station, &args.config, &clock, told) {
        Ok(service) => service,
        Err(error) => {
            // Not a refused configuration: the address may be free, or there, at the next start.
            eprintln!("dsad: {error}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let (bundles, cameras, golden) = match open(&station, &clock) {
        Ok(opened) => opened,
        Err(error) => {
            // Its address is needed to tell why.
            drop(service);
            return refused(examine(&args.config).err().unwrap_or_else(|| vec![format!("{error:#}")]));
        }
    };
    let outputs = &station.outputs;
    let mut envelopes = Envelopes::new(&station.line, &station.name, boot_id()?, Arc::clone(&clock));
    let desk = Arc::new(Desk::default());
    let told = match telling::open(&station, &kept, &desk, &clock) {
        Ok(told) => told,
        Err(error) => {
            drop(service);
            return refused(vec![format!("{}: {error:#}", args.config.display())]);
        }
    };
    let (mut sinks, mut workers): (Vec<Box<dyn VerdictSink>>, _) = (Vec::new(), kept.workers);
    workers.extend(told.workers);
    let mut adds = told.add;
    if station.http.is_some() {
        sinks.push(Box::new(latest));
    }
    {
        let (record, archive) = (Arc::clone(&kept.health), kept.archive);
        adds.push(Box::new(move |reading| record::tell(&record, archive.as_deref(), reading)));
    }
    sinks.splice(0..0, service.iter().flat_map(Service::sinks));
    let mut watches: Vec<Watch> = vec![record::watch(Arc::clone(&kept.health))];
    let lease = Arc::new(AtomicU64::new(0));
    let mut lines: Option<Arc<GpioHealth>> = None;
    if !outputs.gpio.is_empty() {
        let (lease, now) = (Arc::clone(&lease), Arc::clone(&clock));
        let ready = move || now.now().0 < lease.load(Ordering::Relaxed);
        let (sink, worker, health) = gpio::output::open(&outputs.gpio, Arc::clone(&clock), Box::new(ready));
        lines = Some(Arc::clone(&health));
        watches.push(broken_line(Arc::clone(&health)));
        // Before all others: they take their time.
        sinks.insert(0, Box::new(sink));
        workers.push(("gpio", Box::new(move || worker.run())));
        adds.push(Box::new(move |reading| tell(&health, reading)));
    }
    let reloads = Arc::new(Reloads::default());
    {
        let reloads = Arc::clone(&reloads);
        adds.push(Box::new(move |reading| reloads.tell(reading)));
    }
    let swapped = Arc::<SwapHealth>::default();
    {
        let swapped = Arc::clone(&swapped);
        adds.push(Box::new(move |reading| swapped.tell(reading)));
    }
    let service = service.map(|service| adds.into_iter().fold(service, Service::with));
    let challenge = station.challenge_min.map(|minutes| {
        let every = Duration::from_secs(60 * u64::from(minutes));
        Challenge::new(golden, every, Arc::clone(&audit), clock.as_ref())
    });
    let attempt = kernels::before_start(station.device);
    let status = format!("judging {} camera(s) on {}", cameras.len(), station.device);
    let since = Arc::clone(&clock);
    let recipes = cameras.iter().map(|camera| &camera.recipes[..]);
    let detectors =
        bundles.detectors(station.device, Arc::clone(&clock), recipes, Some(Arc::clone(&audit)), move |step| {
            log::info!("start, {}: {step}", seconds(since.as_ref()));
            service_manager::starting(step);
        });
    let shutdown = Duration::from_millis(station.shutdown_timeout_ms);
    let state = Arc::new(StationState::new(station.start, Arc::clone(&clock), Arc::clone(&audit)));
    let swaps = Swaps::new(keys(station.keys.as_deref())?, Arc::clone(&audit), swapped);
    let reload = Reload { running: station, audit, swaps, limits: kept.limits, status: status.clone(), told: reloads };
    let (ask, asked) = upkeep::requests();
    let upkeep = upkeep::upkeep(reload, hangup, asked, Thermal::new("/".as_ref()), Arc::clone(&conditions));
    let since = Arc::clone(&clock);
    let ending = pipeline::run(Parts {
        cameras,
        detectors,
        envelopes: Box::new(move || envelopes.make()),
        sinks,
        record: Box::new(kept.recording),
        workers,
        service,
        desk,
        state,
        watches,
        clock,
        stop,
        shutdown,
        aside: Aside { upkeep: Some(upkeep), reload: Some(ask), conditions, challenge },
        ready: Box::new(move || {
            kernels::after_start(attempt.as_ref());
            log::info!("ready after {}: {status}", seconds(since.as_ref()));
            service_manager::ready(&status);
        }),
        alive: Box::new(service_manager::alive),
        lease,
    });
    service_manager::stopping();
    let lost = kept.health.all_lost();
    match ending {
        Ending::Drained(counts) => {
            if args.json {
                println!(
                    "{}",
                    json!({"counts": counts, "events_written": kept.health.kept.load(Ordering::Relaxed),
                           "events_lost": lost, "peak_rss_mb": memory::peak_rss_mb()})
                );
            }
            log::info!("drained: {counts:?}");
            // A verdict without a record is not a clean end.
            Ok(if lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Ending::Failed(reason) => {
            // The stages that failed still hold what drives the lines: nothing else would make a PASS end that is on.
            lines.inspect(|lines| lines.abandon());
            log::error!("{reason}");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Lines that cannot be driven.
fn broken_line(health: Arc<GpioHealth>) -> Watch {
    Box::new(move || {
        let failing = health.outputs.iter().find(|output| output.failing.load(Ordering::Relaxed))?;
        let of = format!("gpio {}, {}", failing.signal, failing.pin);
        Some(Fault { kind: FaultKind::Output, of, text: "cannot be driven".into() })
    })
}

/// What the GPIO outputs report.
fn tell(health: &GpioHealth, reading: &mut Reading) {
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let outputs = health.outputs.iter().map(|output| OutputReading {
        signal: output.signal,
        pin: output.pin.clone(),
        pulses: get(&output.pulses),
        wrong: vec![("late", get(&output.late)), ("withheld", get(&output.withheld)), ("failed", get(&output.failed))],
        failing: output.failing.load(Ordering::Relaxed),
    });
    reading.outputs = outputs.collect();
    reading.obstacles.extend(health.obstacles());
}

/// How long the program has run.
fn seconds(clock: &dyn Clock) -> String {
    format!("{:.2} s", clock.now().millis_since(Timestamp(0)) / 1e3)
}

/// Bundles and cameras, and the golden parts of challenges.
fn open(station: &Station, clock: &Arc<dyn Clock>) -> anyhow::Result<(Bundles, Vec<Camera>, Vec<GoldenPart>)> {
    let keys = keys(station.keys.as_deref())?;
    let mut bundles = Bundles::default();
    let mut cameras = Vec::new();
    for settings in &station.cameras {
        let recipes = bundles.jobs(&settings.recipes, &keys, station.device, station.calibrations.as_deref())?;
        let source = camera::open(settings, Arc::clone(clock)).map_err(anyhow::Error::msg)?;
        let (id, paced, mode) = (CameraId(settings.name.as_str().into()), settings.paced(), settings.mode);
        let line = settings.trigger_line.clone().map(|input| Edges::new(input, Arc::clone(clock)));
        let line = line.map(|line| Box::new(line) as Box<dyn EdgeSource>);
        cameras.push(Camera { id, source, paced, mode, line, recipes });
    }
    let golden = match station.challenge_min {
        Some(_) => bundles.golden_parts(station.calibrations.as_deref())?,
        None => Vec::new(),
    };
    Ok((bundles, cameras, golden))
}
