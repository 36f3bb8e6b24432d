//! The counters in the Prometheus text format; `docs/metrics.md` lists them.
//!
//! The daemon counts on its own atomics and hands out a [`Reading`], a copy. The metric types of `prometheus-client` hold
//! locks while they are written out, which a stage would have to wait for: only its text encoder is used.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::inspection::conditions::Machine;
use crate::inspection::drift::{Drift, Levels};
use crate::inspection::station_state::{Fault, FaultKind, State};

/// Type of the body that [`text`] makes.
pub use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

/// The station at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reading {
    /// When the process began to inspect, nanoseconds since the Unix epoch.
    pub started_nanos: u64,
    /// The state.
    pub state: State,
    /// Since when, nanoseconds since the Unix epoch.
    pub state_since_nanos: u64,
    /// What is broken.
    pub faults: Vec<Fault>,
    /// Grows while all stages are well.
    pub heartbeat: u16,
    /// Every camera, by name.
    pub cameras: Vec<CameraReading>,
    /// Inspections that each sink refused.
    pub sink_errors: Vec<(String, u64)>,
    /// GPIO outputs, in the order of the configuration.
    pub outputs: Vec<OutputReading>,
    /// The machine that it runs on.
    pub machine: Machine,
    /// Challenges with golden parts, by what came of them.
    pub challenges: Vec<(&'static str, u64)>,
    /// Configurations that it was told to read again, by what came of them.
    pub reloads: Vec<(&'static str, u64)>,
    /// Keys that are written otherwise than they run, and need a restart.
    pub restart_needed: u64,
    /// What others count: they add it to the reading.
    pub families: Vec<Family>,
    /// Why the station is not ready; nothing when it is.
    pub obstacles: Vec<String>,
}

/// Numbers of one name.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// Without the prefix, and without the ending of a counter.
    pub name: &'static str,
    /// What it is, in a sentence.
    pub help: &'static str,
    /// Whether it only ever grows, while the process runs.
    pub counter: bool,
    /// Labels and values.
    pub rows: Vec<(Vec<(&'static str, String)>, u64)>,
}

impl Family {
    /// One number that only ever grows.
    pub fn counter(name: &'static str, help: &'static str, value: u64) -> Self {
        Self { name, help, counter: true, rows: vec![(Vec::new(), value)] }
    }

    /// One number.
    pub fn gauge(name: &'static str, help: &'static str, value: u64) -> Self {
        Self { name, help, counter: false, rows: vec![(Vec::new(), value)] }
    }
}

/// One GPIO output at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OutputReading {
    /// What it says.
    pub signal: &'static str,
    /// Its line.
    pub pin: String,
    /// Pulses given.
    pub pulses: u64,
    /// Pulses that were not as they should be, by what was wrong.
    pub wrong: Vec<(&'static str, u64)>,
    /// Whether its line cannot be driven now.
    pub failing: bool,
}

/// One camera at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CameraReading {
    /// Its name.
    pub camera: String,
    /// The recipe that judges its frames.
    pub recipe: String,
    /// Its number, if it has one.
    pub recipe_number: Option<u16>,
    /// Inspections that are owed and not out yet.
    pub owed: u64,
    /// Frames that it gave, inspected or not.
    pub frames: u64,
    /// Results that came after their deadline.
    pub late: u64,
    /// Frames that came by themselves while none of those was judged.
    pub idle: u64,
    /// Triggers that were refused.
    pub triggers_refused: u64,
    /// Frames that its driver counted and gave nobody.
    pub dropped: u64,
    /// How often it was gone.
    pub losses: u64,
    /// Inspections by verdict and reason, those that never happened too.
    pub inspections: Vec<(&'static str, &'static str, u64)>,
    /// Frames that were not judged in time.
    pub overruns: u64,
    /// Where the time of judged frames went, by part of the way.
    pub latency: Vec<(&'static str, Histogram)>,
    /// Time from triggers to the frames of their parts.
    pub waited: Histogram,
    /// Where the last frames lie among the good parts behind the thresholds, and what is said about it.
    pub drift: Option<(Levels, Drift)>,
    /// Whether its frames are replayed as one recorded graph; none where nothing is recorded.
    pub graph_recorded: Option<bool>,
}

/// How often a time was how long.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Histogram {
    /// Upper bound in seconds and count of every bucket; the last bound is infinite.
    pub buckets: Vec<(f64, u64)>,
    /// Sum of all times, seconds.
    pub sum: f64,
}

/// A reading as text.
///
/// # Errors
/// The encoder refuses a value.
pub fn text(reading: Reading) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("dsad");
    registry.register_collector(Box::new(reading));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

impl Collector for Reading {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let to = &mut to;
        to.encode_descriptor("build", "The program that runs.", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION")), ("arch", std::env::consts::ARCH)])?;
        let start = self.started_nanos as f64 / 1e9;
        let help = "When the program began to inspect, seconds since the Unix epoch.";
        to.encode_descriptor("start_time", help, Some(&Unit::Seconds), MetricType::Gauge)?.encode_gauge(&start)?;
        let help = "The state: 0 Preoperational, 1 Halted, 2 Error, 3 Initialized, 4 Ready, 5 SingleExecution, 6 ContinuousExecution.";
        let state = f64::from(self.state.number());
        to.encode_descriptor("state", help, None, MetricType::Gauge)?.encode_gauge(&state)?;
        let since = self.state_since_nanos as f64 / 1e9;
        let help = "When the state was entered, seconds since the Unix epoch.";
        to.encode_descriptor("state_since", help, Some(&Unit::Seconds), MetricType::Gauge)?.encode_gauge(&since)?;
        let broken = FaultKind::ALL.map(|kind| {
            let count = self.faults.iter().filter(|fault| fault.kind == kind).count();
            (vec![("kind", kind.word())], count as f64)
        });
        gauges(to, "faults", "Faults that stand.", broken.into_iter())?;

        let cameras = || self.cameras.iter();
        let frames = cameras().map(|camera| (vec![("camera", &*camera.camera)], camera.frames));
        counters(to, "frames", "Frames that a camera gave, inspected or not.", frames)?;
        let dropped = cameras().map(|camera| (vec![("camera", &*camera.camera)], camera.dropped));
        counters(to, "driver_drops", "Frames that the camera's driver counted and gave nobody.", dropped)?;
        let losses = cameras().map(|camera| (vec![("camera", &*camera.camera)], camera.losses));
        counters(to, "camera_losses", "How often the camera was gone.", losses)?;
        let inspections = cameras().flat_map(|camera| {
            let labels = |verdict, reason| vec![("camera", &*camera.camera), ("verdict", verdict), ("reason", reason)];
            camera.inspections.iter().map(move |(verdict, reason, count)| (labels(verdict, reason), *count))
        });
        counters(to, "inspections", "Inspections by verdict and reason.", inspections)?;
        let overruns = cameras().map(|camera| (vec![("camera", &*camera.camera)], camera.overruns));
        counters(to, "overruns", "Frames that were not judged in time; among the inspections as well.", overruns)?;
        let idle = cameras().map(|camera| (vec![("camera", &*camera.camera)], camera.idle));
        let help = "Frames of cameras that run free, while the station did not judge those: no inspection was owed.";
        counters(to, "frames_idle", help, idle)?;
        let late = cameras().map(|camera| (vec![("camera", &*camera.camera)], camera.late));
        counters(to, "late_results", "Results that came after their deadline; nothing acts on them.", late)?;
        let unasked = cameras().map(|camera| (vec![("camera", &*camera.camera)], camera.triggers_refused));
        counters(to, "triggers_refused", "Triggers that were refused: they get no verdict.", unasked)?;
        let refused = self.sink_errors.iter().map(|(sink, count)| (vec![("sink", &**sink)], *count));
        counters(to, "sink_errors", "Inspections that a sink refused.", refused)?;

        let pulses = self.outputs.iter().map(|output| (wire(output), output.pulses));
        counters(to, "gpio_pulses", "Pulses of GPIO outputs.", pulses)?;
        let wrong = self.outputs.iter().flat_map(|output| {
            let labels = move |what| [wire(output), vec![("what", what)]].concat();
            output.wrong.iter().map(move |(what, count)| (labels(*what), *count))
        });
        counters(to, "gpio_wrong_pulses", "Pulses that came late, were withheld or failed.", wrong)?;
        let failing = self.outputs.iter().map(|output| (wire(output), f64::from(u8::from(output.failing))));
        gauges(to, "gpio_failing", "1 while the output's line cannot be driven.", failing)?;

        let results = self.challenges.iter().map(|(result, count)| (vec![("result", *result)], *count));
        counters(to, "challenges", "Challenges with golden parts.", results)?;
        let results = self.reloads.iter().map(|(result, count)| (vec![("result", *result)], *count));
        counters(to, "reloads", "Configurations that the station was told to read again.", results)?;
        let help = "Keys that are written otherwise than they run, and need a restart.";
        gauges(to, "restart_needed", help, [(Vec::new(), self.restart_needed as f64)].into_iter())?;

        let help = "Temperatures of the machine.";
        let mut family = to.encode_descriptor("temperature", help, Some(&Unit::Celsius), MetricType::Gauge)?;
        for zone in &self.machine.zones {
            family.encode_family(&[("zone", &*zone.name)])?.encode_gauge(&zone.celsius)?;
        }
        let help = "1 while a part of the machine is so warm that it slows down.";
        let throttled = self.machine.zones.iter().map(|z| (vec![("zone", &*z.name)], f64::from(u8::from(z.throttled))));
        gauges(to, "throttled", help, throttled)?;
        let drawn = self.machine.over_current.iter().map(|(supply, count)| (vec![("supply", &**supply)], *count));
        counters(to, "over_current", "How often more was drawn from a supply than it gives.", drawn)?;
        let mode = self.machine.power_mode.iter().map(|mode| (vec![("mode", &**mode)], 1.0));
        gauges(to, "power_mode", "The mode of power that was chosen; always 1.", mode)?;

        let help = "Time of judged frames, by part of the way.";
        let parts = cameras().flat_map(|camera| {
            let labels = |part| vec![("camera", &*camera.camera), ("part", part)];
            camera.latency.iter().map(move |(part, times)| (labels(*part), times))
        });
        histograms(to, "latency", help, parts)?;
        let help = "Time from triggers to the frames of their parts.";
        let waited = cameras().map(|camera| (vec![("camera", &*camera.camera)], &camera.waited));
        histograms(to, "trigger_to_frame", help, waited)?;

        let help = "1 while frames are replayed as one recorded graph, 0 where every kernel is launched by itself.";
        let graphs = cameras().filter_map(|camera| Some((camera, camera.graph_recorded?)));
        let graphs = graphs.map(|(camera, on)| (vec![("camera", &*camera.camera)], f64::from(u8::from(on))));
        gauges(to, "graph_recorded", help, graphs)?;

        let watched = || cameras().filter_map(|camera| Some((camera, camera.drift?)));
        let help = "Mean rank of the last scores among those of the good parts behind the thresholds, 0.5: like them.";
        let rank = watched().map(|(camera, (levels, _))| (place(camera), levels.score_rank));
        gauges(to, "drift_score_rank", help, rank)?;
        let help = "How far the mean light of the last frames is off that of the good parts, in their spreads.";
        let light = watched().map(|(camera, (levels, _))| (place(camera), levels.light_spreads));
        gauges(to, "drift_light_spreads", help, light)?;
        let help = "Mean rank of how unlike good parts the last frames are as a whole; 0.5 is like them.";
        let novelty = watched().map(|(camera, (levels, _))| (place(camera), levels.novelty_rank));
        gauges(to, "drift_novelty_rank", help, novelty)?;
        let alarms = watched().flat_map(|(camera, (_, drift))| {
            [("score", drift.score), ("light", drift.light), ("features", drift.features)].map(|(what, on)| {
                let labels = [place(camera), vec![("what", what)]].concat();
                (labels, f64::from(u8::from(on)))
            })
        });
        gauges(to, "drift_alarm", "1 while the station says that this drifts.", alarms)?;

        for Family { name, help, counter, rows } in &self.families {
            let rows = rows.iter().map(|(row, value)| {
                let labels: Labels = row.iter().map(|(name, value)| (*name, &**value)).collect();
                (labels, *value)
            });
            if *counter {
                counters(to, name, help, rows)?;
            } else {
                gauges(to, name, help, rows.map(|(labels, value)| (labels, value as f64)))?;
            }
        }
        Ok(())
    }
}

fn wire(output: &OutputReading) -> Labels<'_> {
    vec![("signal", output.signal), ("pin", &output.pin)]
}

fn place(camera: &CameraReading) -> Labels<'_> {
    vec![("camera", &camera.camera), ("recipe", &camera.recipe)]
}

fn counters<'a>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl Iterator<Item = (Labels<'a>, u64)>,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in rows {
        family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
    }
    Ok(())
}

fn histograms<'a>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl Iterator<Item = (Labels<'a>, &'a Histogram)>,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for (labels, Histogram { buckets, sum }) in rows {
        let count = buckets.iter().map(|(_, count)| count).sum();
        family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)?;
    }
    Ok(())
}

fn gauges<'a>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl Iterator<Item = (Labels<'a>, f64)>,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in rows {
        family.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}
