//! `dsad run`: the daemon.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;

use super::load::{Bundles, boot_id, keys};
use super::problems::examine;
use super::{preflight, safe_mode};
use crate::config::station::{Station, load};
use crate::daemon::job::Job;
use crate::daemon::pipeline::{self, Camera, Ending, Parts, Worker};
use crate::gpio::input::Edges;
use crate::gpio::output::GpioHealth;
use crate::inspection::frame::CameraId;
use crate::inspection::time::{Clock, Timestamp};
use crate::inspection::trigger::EdgeSource;
use crate::inspection::verdict::VerdictSink;
use crate::output::envelope::Envelopes;
use crate::output::record::{Drawings, Recorder};
use crate::output::{images, ndjson};
use crate::platform::clock::SystemClock;
use crate::platform::{memory, service_manager, signals};
use crate::service::Service;
use crate::service::metrics::{OutputReading, Reading};
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
    let stop = signals::stop_flag()?;
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
    preflight::before_start(&station);
    let mut service = match listen(&station, &args.config) {
        Ok(service) => service,
        Err(error) => {
            // Not a refused configuration: the address may be free, or there, at the next start.
            eprintln!("dsad: {error}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let (bundles, cameras) = match open(&station, &clock) {
        Ok(opened) => opened,
        Err(error) => {
            // Its address is needed to tell why.
            drop(service);
            return refused(examine(&args.config).err().unwrap_or_else(|| vec![format!("{error:#}")]));
        }
    };
    let outputs = &station.outputs;
    let envelopes = Envelopes::new(&station.line, &station.name, boot_id()?, Arc::clone(&clock));
    let (events, events_worker, events_health) = ndjson::open(&outputs.events, outputs.events_max_bytes);
    let drawings = outputs.images.clone().map(|folder| Drawings { folder, of: outputs.images_of });
    let mut recorder = Recorder::new(envelopes, drawings);
    let mut sinks: Vec<Box<dyn VerdictSink>> = vec![Box::new(events)];
    let mut workers: Vec<Worker> = vec![("events", Box::new(move || events_worker.run()))];
    if outputs.images.is_some() {
        let (sink, worker, _) = images::open();
        sinks.push(Box::new(sink));
        workers.push(("images", Box::new(move || worker.run())));
    }
    let lease = Arc::new(AtomicU64::new(0));
    let mut lines: Option<Arc<GpioHealth>> = None;
    if !outputs.gpio.is_empty() {
        let (lease, now) = (Arc::clone(&lease), Arc::clone(&clock));
        let ready = move || now.now().0 < lease.load(Ordering::Relaxed);
        let (sink, worker, health) = gpio::output::open(&outputs.gpio, Arc::clone(&clock), Box::new(ready));
        lines = Some(Arc::clone(&health));
        // Before all others: they take their time.
        sinks.insert(0, Box::new(sink));
        workers.push(("gpio", Box::new(move || worker.run())));
        service = service.map(|service| service.with(Box::new(move |reading| tell(&health, reading))));
    }
    let status = format!("judging {} camera(s) on {}", cameras.len(), station.device);
    let since = Arc::clone(&clock);
    let recipes = cameras.iter().map(|camera| &camera.recipes[..]);
    let detectors = bundles.detectors(station.device, Arc::clone(&clock), recipes, move |step| {
        log::info!("start, {}: {step}", seconds(since.as_ref()));
        service_manager::starting(step);
    });
    let since = Arc::clone(&clock);
    let ending = pipeline::run(Parts {
        cameras,
        detectors,
        record: Box::new(move |inspection| recorder.record(inspection)),
        sinks,
        workers,
        service,
        clock,
        stop,
        shutdown: Duration::from_millis(station.shutdown_timeout_ms),
        ready: Box::new(move || {
            log::info!("ready after {}: {status}", seconds(since.as_ref()));
            service_manager::ready(&status);
        }),
        alive: Box::new(service_manager::alive),
        lease,
    });
    service_manager::stopping();
    let lost = events_health.lost.load(Ordering::Relaxed);
    match ending {
        Ending::Drained(counts) => {
            if args.json {
                println!(
                    "{}",
                    json!({"counts": counts, "events_written": events_health.written.load(Ordering::Relaxed),
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

/// The service on its addresses, if the station has any.
fn listen(station: &Station, file: &Path) -> Result<Option<Service>, String> {
    let bind = |key: &str, address: Option<SocketAddr>| {
        let Some(address) = address else { return Ok(None) };
        TcpListener::bind(address).map(Some).map_err(|error| {
            format!(
                "{}: {key}.listen: {address} cannot be used: {error}; take a free port of an address of this machine \
                 (`ss -ltn` lists the ports in use), or leave [{key}] out",
                file.display()
            )
        })
    };
    let (http, tcp) = (bind("http", station.http)?, bind("tcp", station.tcp)?);
    if http.is_none() && tcp.is_none() {
        return Ok(None);
    }
    let service = Service::new(http, tcp).and_then(|service| Ok((service.addresses()?, service)));
    let ((http, tcp), service) = service.map_err(|error| format!("{}: the service: {error}", file.display()))?;
    for (name, address, what) in
        [("http", http, "whoever reaches it reads"), ("tcp", tcp, "whoever reaches it commands")]
    {
        let Some(address) = address else { continue };
        log::info!("{name}: listening on {address}");
        if !address.ip().is_loopback() {
            log::warn!("{name}: {address} is open to the network, without a password: {what}");
        }
    }
    Ok(Some(service))
}

fn open(station: &Station, clock: &Arc<dyn Clock>) -> anyhow::Result<(Bundles, Vec<Camera>)> {
    let keys = keys(station.keys.as_deref())?;
    let mut bundles = Bundles::default();
    let mut cameras = Vec::new();
    for settings in &station.cameras {
        let mut recipes: Vec<Job> = Vec::new();
        for (recipe, bundle) in &settings.recipes {
            let index = bundles.open(bundle, &keys)?;
            recipes.push(bundles.job(index, recipe.clone(), station.device, station.calibrations.as_deref())?);
        }
        let source = camera::open(settings, Arc::clone(clock)).map_err(anyhow::Error::msg)?;
        let (id, paced, mode) = (CameraId(settings.name.as_str().into()), settings.paced(), settings.mode);
        let line = settings.trigger_line.clone().map(|input| Edges::new(input, Arc::clone(clock)));
        let line = line.map(|line| Box::new(line) as Box<dyn EdgeSource>);
        cameras.push(Camera { id, source, paced, mode, line, recipes });
    }
    Ok((bundles, cameras))
}
