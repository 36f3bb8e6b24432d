//! GPIO against the kernel's simulated chip. Ignored where there is none: `.ci/gpio/run` runs them in a virtual machine, as root,
//! one after the other. Each prints what it measured as one line of JSON.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dsad::config::gpio::{EdgeKind, GpioInput, GpioOutput, Pin, PinLine};
use dsad::daemon::job::{Job, faulty};
use dsad::daemon::publish::Envelopes;
use dsad::gpio::input::Edges;
use dsad::gpio::output::{self, GpioHealth, GpioSink};
use dsad::inspection::frame::FrameMeta;
use dsad::inspection::frame::TriggerInfo;
use dsad::inspection::line::Actuation;
use dsad::inspection::time::{Clock, Timestamp};
use dsad::inspection::trigger::{Edge, EdgeError, EdgeSource};
use dsad::inspection::verdict::{FaultReason, Inspection, VerdictSink};
use dsad::platform::clock::SystemClock;
use serde_json::json;

use crate::pipeline::job;
use crate::support::envelopes;
use chip::{Chip, Trace, pace};

/// The simulated chip, who reads its lines, and who keeps a rhythm.
mod chip;
/// Edges in, inspections, pulses out: the whole daemon.
mod daemon;

/// A number of the environment, for shorter or longer runs.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::start())
}

fn input(line: &str, debounce_us: u32) -> GpioInput {
    let (line, edge) = (PinLine::Name(line.into()), EdgeKind::Rising);
    GpioInput { chip: None, line, active_low: false, edge, debounce_us, bias: None }
}

fn pin(line: &str) -> Pin {
    Pin { chip: None, line: PinLine::Name(line.into()), active_low: false }
}

/// Opens the line and waits for nothing.
fn open(edges: &mut Edges) {
    assert_eq!(edges.next_edge(), Err(EdgeError::Timeout));
}

/// The next edge, within two seconds.
fn next(edges: &mut Edges) -> Option<Edge> {
    (0..20).find_map(|_| match edges.next_edge() {
        Ok(edge) => Some(edge),
        Err(EdgeError::Timeout) => None,
        Err(error) => panic!("{error:?}"),
    })
}

/// When a line became active.
fn rises(changes: &[(Timestamp, bool)]) -> Vec<Timestamp> {
    changes.iter().filter(|(_, up)| *up).map(|(at, _)| *at).collect()
}

/// Least, mean and most of some milliseconds.
fn spread(values: &[f64]) -> [f64; 3] {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    [least, mean, most].map(|millis| (millis * 1e3).round() / 1e3)
}

#[test]
#[ignore = "needs gpio-sim: .ci/gpio/run"]
fn sim_every_edge_comes_with_the_kernels_time() {
    let wanted = number("EDGES", 1000);
    let (chip, clock) = (Chip::new("plc", &["TRIGGER"]), clock());
    let mut edges = Edges::new(input("TRIGGER", 0), Arc::clone(&clock));
    open(&mut edges);
    let (found, made) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| std::iter::from_fn(|| next(&mut edges)).collect::<Vec<_>>());
        let mut made = Vec::new();
        pace(clock.as_ref(), Duration::from_millis(10), wanted, |_| {
            let before = clock.now();
            chip.pull(0, true);
            made.push((before, clock.now()));
            std::thread::sleep(Duration::from_millis(5));
            chip.pull(0, false);
        });
        (reader.join().unwrap(), made)
    });
    assert_eq!((found.len() as u64, found.iter().map(|edge| edge.missed).sum::<u64>()), (wanted, 0));
    // The kernel stamps while the simulated voltage is written, or right after.
    let lags: Vec<f64> = found.iter().zip(&made).map(|(edge, (before, _))| edge.at.millis_since(*before)).collect();
    for (edge, (before, after)) in found.iter().zip(&made) {
        assert!(edge.at.0 + 2_000 >= before.0, "an edge before its cause");
        assert!(edge.at.millis_since(*after) < 20.0, "{} ms after its cause", edge.at.millis_since(*after));
    }
    let apart: Vec<f64> = found.windows(2).map(|pair| pair[1].at.millis_since(pair[0].at)).collect();
    println!(
        "{}",
        json!({"check": "edges", "made": wanted, "seen": found.len(), "missed": 0,
        "interval_ms": spread(&apart), "stamp_after_cause_ms": spread(&lags)})
    );
}

#[test]
#[ignore = "needs gpio-sim: .ci/gpio/run"]
fn sim_what_the_kernel_could_not_keep_is_counted() {
    let (chip, clock) = (Chip::new("plc", &["TRIGGER"]), clock());
    let mut edges = Edges::new(input("TRIGGER", 0), clock);
    open(&mut edges);
    // The simulated chip has no interrupt of its own for every change of a burst.
    for _ in 0..2500 {
        chip.pull(0, true);
        std::thread::sleep(Duration::from_micros(200));
        chip.pull(0, false);
    }
    let found: Vec<Edge> = std::iter::from_fn(|| next(&mut edges)).collect();
    let missed: u64 = found.iter().map(|edge| edge.missed).sum();
    println!("{}", json!({"check": "nobody reads", "made": 2500, "seen": found.len(), "missed": missed}));
    assert_eq!(found.len(), 1024, "what the kernel keeps");
    assert!(missed > 0 && missed <= 2500 - 1024, "{missed} missed");
}

#[test]
#[ignore = "needs gpio-sim: .ci/gpio/run"]
fn sim_bounces_are_one_edge() {
    let parts = number("EDGES", 1000) / 20;
    let (chip, clock) = (Chip::new("plc", &["TRIGGER"]), clock());
    let mut edges = Edges::new(input("TRIGGER", 5_000), Arc::clone(&clock));
    open(&mut edges);
    let (found, settled) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| std::iter::from_fn(|| next(&mut edges)).collect::<Vec<_>>());
        let mut settled = Vec::new();
        pace(clock.as_ref(), Duration::from_millis(100), parts, |_| {
            for up in [true, false] {
                for _ in 0..4 {
                    chip.pull(0, up);
                    chip.pull(0, !up);
                }
                chip.pull(0, up);
                if up {
                    settled.push(clock.now());
                }
                std::thread::sleep(Duration::from_millis(40));
            }
        });
        (reader.join().unwrap(), settled)
    });
    assert_eq!(found.len() as u64, parts, "four bounces each");
    let lags: Vec<f64> = found.iter().zip(&settled).map(|(edge, since)| edge.at.millis_since(*since)).collect();
    println!(
        "{}",
        json!({"check": "debounce", "parts": parts, "bounces": parts * 8, "seen": found.len(),
        "debounce_ms": 5, "stamp_after_last_bounce_ms": spread(&lags)})
    );
}

#[test]
#[ignore = "needs gpio-sim: .ci/gpio/run"]
fn sim_an_input_comes_back_with_its_chip() {
    let times = number("REPLUGS", 20);
    let (chip, clock) = (Chip::new("plc", &["TRIGGER"]), clock());
    let mut edges = Edges::new(input("TRIGGER", 0), Arc::clone(&clock));
    open(&mut edges);
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let mut away = Vec::new();
    for _ in 0..times {
        chip.live(false);
        let gone = clock.now();
        let lost = (0..20).find_map(|_| match edges.next_edge() {
            Err(EdgeError::Lost { reason }) => Some(reason),
            _ => None,
        });
        assert!(lost.is_some_and(|reason| reason.contains("TRIGGER")), "nobody noticed");
        away.push(clock.now().millis_since(gone));
        let still = edges.next_edge();
        assert!(matches!(&still, Err(EdgeError::Lost { reason }) if reason.contains("dsad gpio")), "{still:?}");
        chip.live(true);
        open(&mut edges);
        chip.pull(0, true);
        assert_eq!(next(&mut edges).map(|edge| edge.missed), Some(0));
    }
    assert_eq!(descriptors(), before);
    println!(
        "{}",
        json!({"check": "input unplugged", "times": times, "noticed_after_ms": spread(&away),
        "descriptors": [before, descriptors()]})
    );
}

/// A line with a sink, driven by made-up inspections.
struct Outputs {
    sink: GpioSink,
    envelopes: Envelopes,
    job: Job,
    clock: Arc<dyn Clock>,
}

impl Outputs {
    fn start<'scope>(
        scope: &'scope std::thread::Scope<'scope, '_>,
        outputs: &[GpioOutput],
        clock: &Arc<dyn Clock>,
    ) -> (Self, Arc<GpioHealth>) {
        let (sink, worker, health) = output::open(outputs, Arc::clone(clock), Box::new(|| true));
        scope.spawn(move || worker.run());
        (Self { sink, envelopes: envelopes(Arc::clone(clock)), job: job(None), clock: Arc::clone(clock) }, health)
    }

    fn order(&mut self, actuation: Actuation, at: Timestamp) {
        let trigger = Some(TriggerInfo { source: "gpio".into(), part_id: None, at });
        let meta = FrameMeta { trigger, captured_at: at, ..FrameMeta::of_picture("top", 0, 0) };
        let inspection = faulty(meta, &self.job, FaultReason::Overrun, String::new(), self.clock.as_ref());
        let inspection = Inspection { actuation, ..inspection };
        self.sink.publish(&inspection, &(self.envelopes)()).unwrap();
    }
}

fn counts(health: &GpioHealth, output: usize) -> [u64; 4] {
    let output = &health.outputs[output];
    [&output.pulses, &output.late, &output.withheld, &output.failed].map(|count| count.load(Ordering::Relaxed))
}

#[test]
#[ignore = "needs gpio-sim: .ci/gpio/run"]
fn sim_pulses_are_those_of_the_verdicts() {
    let parts = number("EDGES", 1000) / 4;
    let names = ["PASS", "FAIL", "EJECT", "READY", "HOLD"];
    let (_chip, clock) = (Chip::new("plc", &names), clock());
    let all = None;
    let outputs = [
        GpioOutput::Pass { pin: pin("PASS"), cameras: all.clone(), pulse_ms: 20, gap_ms: 5, window_ms: Some(60) },
        GpioOutput::Fail { pin: pin("FAIL"), cameras: all.clone(), pulse_ms: 20, gap_ms: 5 },
        GpioOutput::Eject { pin: pin("EJECT"), cameras: all.clone(), pulse_ms: 20, delay_ms: 300 },
        GpioOutput::Ready { pin: pin("READY"), period_ms: 50 },
        GpioOutput::Hold { pin: pin("HOLD"), cameras: all },
    ];
    let trace = Trace::start();
    let mut triggers: [Vec<Timestamp>; 2] = Default::default();
    let mut sent = Vec::new();
    let health = std::thread::scope(|scope| {
        let (mut line, health) = Outputs::start(scope, &outputs, &clock);
        std::thread::sleep(Duration::from_millis(500));
        pace(clock.as_ref(), Duration::from_millis(50), parts, |part| {
            // The verdict comes 10 ms after the trigger; each fifth part is bad.
            let at = Timestamp(clock.now().0 - 10_000_000);
            let bad = part % 5 == 4;
            triggers[usize::from(bad)].push(at);
            sent.push(clock.now());
            line.order(if bad { Actuation::Reject } else { Actuation::Accept }, at);
        });
        // One that is too late for its window, one that stops the line until the next is good.
        line.order(Actuation::Accept, Timestamp(clock.now().0 - 61_000_000));
        line.order(Actuation::Hold, clock.now());
        std::thread::sleep(Duration::from_millis(200));
        let at = clock.now();
        triggers[1].push(at);
        line.order(Actuation::Reject, at);
        health
    });
    let [passes, fails, ejects, beats, holds] = trace.stop(names.len(), clock.as_ref()).try_into().unwrap();
    let [accepted, rejected] = &triggers;
    let widths = |changes: &[(Timestamp, bool)]| -> Vec<f64> {
        changes.chunks(2).map(|pair| pair[1].0.millis_since(pair[0].0)).collect()
    };
    let after = |rises: &[Timestamp], causes: &[Timestamp]| -> Vec<f64> {
        rises.iter().zip(causes).map(|(rise, cause)| rise.millis_since(*cause)).collect()
    };
    let (pass, fail, eject) = (rises(&passes), rises(&fails), rises(&ejects));
    let (pass_after, eject_after) = (after(&pass, accepted), after(&eject, rejected));
    println!(
        "{}",
        json!({"check": "outputs", "accepted": accepted.len(), "rejected": rejected.len(),
        "pass": pass.len(), "fail": fail.len(), "eject": eject.len(), "withheld": counts(&health, 0)[2],
        "pass_after_trigger_ms": spread(&pass_after), "pass_width_ms": spread(&widths(&passes)),
        "eject_after_trigger_ms": spread(&eject_after), "eject_width_ms": spread(&widths(&ejects)),
        "fail_width_ms": spread(&widths(&fails)), "ready_changes": beats.len(), "hold_ms": spread(&widths(&holds))})
    );
    assert_eq!((pass.len(), fail.len(), eject.len()), (accepted.len(), rejected.len(), rejected.len()));
    assert_eq!(counts(&health, 0), [accepted.len() as u64, 0, 1, 0]);
    assert!(pass_after.iter().all(|millis| (10.0..62.0).contains(millis)), "outside the window");
    assert!(eject_after.iter().all(|millis| (299.0..330.0).contains(millis)), "not at the ejector");
    assert_eq!(holds.len(), 2);
    assert!(beats.len() as u64 > parts / 2, "READY beats");
    assert!(passes.last().is_some_and(|(_, up)| !up) && beats.last().is_some_and(|(_, up)| !up), "inactive at the end");
}

#[test]
#[ignore = "needs gpio-sim: .ci/gpio/run"]
fn sim_an_output_that_is_unplugged_ends_ready_and_gives_no_late_pass() {
    let times = number("REPLUGS", 20);
    let (away, _near, clock) = (Chip::new("away", &["PASS"]), Chip::new("near", &["", "READY"]), clock());
    let outputs = [
        GpioOutput::Pass { pin: pin("PASS"), cameras: None, pulse_ms: 20, gap_ms: 5, window_ms: None },
        GpioOutput::Ready { pin: pin("READY"), period_ms: 20 },
    ];
    // How often PASS and READY changed.
    let changes = |trace: Trace| trace.stop(2, clock.as_ref()).iter().map(Vec::len).collect::<Vec<_>>();
    let wait = |millis| std::thread::sleep(Duration::from_millis(millis));
    std::thread::scope(|scope| {
        let (mut line, health) = Outputs::start(scope, &outputs, &clock);
        wait(200);
        for time in 0..times {
            let trace = Trace::start();
            wait(300);
            assert!(changes(trace)[1] > 4, "READY beats");
            away.live(false);
            // Half of the times a part finds it, half the time nobody needs the line.
            if time % 2 == 0 {
                line.order(Actuation::Accept, clock.now());
            }
            wait(1300);
            assert!(!health.obstacles().is_empty(), "nobody noticed");
            let trace = Trace::start();
            line.order(Actuation::Accept, clock.now());
            wait(200);
            assert_eq!(changes(trace), [0, 0], "READY beats without its PASS");
            let trace = Trace::start();
            away.live(true);
            wait(800);
            assert_eq!(changes(trace)[0], 0, "a pulse for a part that is gone");
            assert!(health.obstacles().is_empty(), "{:?}", health.obstacles());
            let trace = Trace::start();
            line.order(Actuation::Accept, clock.now());
            wait(200);
            assert_eq!(changes(trace)[0], 2, "one pulse");
        }
        let [pulses, _, _, failed] = counts(&health, 0);
        println!("{}", json!({"check": "output unplugged", "times": times, "given": pulses, "refused": failed}));
        assert_eq!((pulses, failed), (times, times + times.div_ceil(2)));
    });
}
