use super::*;
use crate::config::gpio::{Pin, PinLine};

/// Lines that write down every change of theirs, and break when they are told to.
#[derive(Default)]
struct ScriptedPins {
    now: u64,
    levels: Vec<bool>,
    broken: Vec<bool>,
    changes: Vec<(u64, usize, bool)>,
    /// Every call, those that change nothing and those that fail, too.
    calls: usize,
}

impl Pins for ScriptedPins {
    fn now(&self) -> Timestamp {
        millis(self.now)
    }

    fn set(&mut self, output: usize, active: bool) -> Result<(), String> {
        self.calls += 1;
        if self.broken[output] {
            self.levels[output] = false;
            return Err("scripted".into());
        }
        if std::mem::replace(&mut self.levels[output], active) != active {
            self.changes.push((self.now, output, active));
        }
        Ok(())
    }
}

struct Bench {
    schedule: Schedule,
    health: Arc<GpioHealth>,
    pins: ScriptedPins,
    ready: bool,
}

fn millis(ms: u64) -> Timestamp {
    Timestamp(ms * 1_000_000)
}

impl Bench {
    fn new(outputs: &[GpioOutput]) -> Self {
        let of = |output: &GpioOutput| OutputHealth { signal: output.word(), ..OutputHealth::default() };
        let health = Arc::new(GpioHealth { outputs: outputs.iter().map(of).collect(), ..GpioHealth::default() });
        let pins = ScriptedPins {
            levels: vec![false; outputs.len()],
            broken: vec![false; outputs.len()],
            ..ScriptedPins::default()
        };
        let mut bench = Self { schedule: Schedule::new(outputs, Arc::clone(&health)), health, pins, ready: true };
        bench.step(0);
        bench
    }

    fn step(&mut self, ms: u64) {
        self.pins.now = ms;
        self.schedule.step(self.ready, &mut self.pins);
    }

    /// Steps whenever the schedule asks to, and every 20 ms as the worker does, up to this millisecond.
    fn until(&mut self, ms: u64) {
        loop {
            let next = self.schedule.next().0.div_ceil(1_000_000).max(self.pins.now).min(self.pins.now + 20);
            if next >= ms {
                return self.step(ms);
            }
            self.step(next);
        }
    }

    /// An order of a camera at this millisecond for a part of an earlier one.
    fn order(&mut self, ms: u64, camera: &str, actuation: Actuation, at: u64) {
        self.until(ms);
        self.schedule.take(&Order { camera: CameraId(camera.into()), actuation, at: millis(at), sent: millis(ms) });
        self.step(ms);
    }

    fn of(&self, output: usize) -> Vec<(u64, bool)> {
        let changes = self.pins.changes.iter().filter(|(_, of, _)| *of == output);
        changes.map(|(at, _, active)| (*at, *active)).collect()
    }

    /// Pulses given, late, withheld, failed.
    fn counts(&self, output: usize) -> [u64; 4] {
        let OutputHealth { pulses, late, withheld, failed, .. } = &self.health.outputs[output];
        [pulses, late, withheld, failed].map(|count| count.load(Relaxed))
    }
}

fn pin() -> Pin {
    Pin { chip: None, line: PinLine::Name("A".into()), active_low: false }
}

fn pass(pulse_ms: u32, gap_ms: u32, window_ms: Option<u32>) -> GpioOutput {
    GpioOutput::Pass { pin: pin(), cameras: None, pulse_ms, gap_ms, window_ms }
}

fn eject(pulse_ms: u32, delay_ms: u32) -> GpioOutput {
    GpioOutput::Eject { pin: pin(), cameras: None, pulse_ms, delay_ms }
}

#[test]
fn only_an_accept_is_a_pass_and_only_a_reject_a_fail() {
    let fail = GpioOutput::Fail { pin: pin(), cameras: None, pulse_ms: 10, gap_ms: 2 };
    let mut bench = Bench::new(&[pass(10, 2, None), fail]);
    bench.order(100, "top", Actuation::Accept, 90);
    bench.order(200, "top", Actuation::Reject, 190);
    bench.order(300, "top", Actuation::Hold, 290);
    bench.order(400, "top", Actuation::Nothing, 390);
    bench.until(1000);
    assert_eq!(bench.of(0), [(100, true), (110, false)]);
    assert_eq!(bench.of(1), [(200, true), (210, false)]);
    assert_eq!((bench.counts(0), bench.counts(1)), ([1, 0, 0, 0], [1, 0, 0, 0]));
    assert!(bench.schedule.idle());
}

#[test]
fn pulses_that_overlap_are_told_apart() {
    let mut bench = Bench::new(&[pass(20, 5, None)]);
    // The second comes 8 ms after the first, the third 2 ms after that.
    bench.order(100, "top", Actuation::Accept, 100);
    bench.order(108, "top", Actuation::Accept, 108);
    bench.order(110, "top", Actuation::Accept, 110);
    bench.until(500);
    let expected = [(100, true), (108, false), (113, true), (118, false), (123, true), (143, false)];
    assert_eq!(bench.of(0), expected);
    assert_eq!(bench.counts(0), [3, 0, 0, 0]);
}

#[test]
fn a_hundred_parts_a_second_are_a_hundred_pulses() {
    let mut bench = Bench::new(&[pass(6, 3, Some(50))]);
    for part in 0..100 {
        bench.order(part * 10 + 20, "top", Actuation::Accept, part * 10);
    }
    bench.until(2000);
    assert_eq!(bench.counts(0), [100, 0, 0, 0]);
    let rises: Vec<u64> = bench.of(0).into_iter().filter(|(_, active)| *active).map(|(at, _)| at).collect();
    assert_eq!(rises, (0..100).map(|part| part * 10 + 20).collect::<Vec<_>>());
}

#[test]
fn a_pass_outside_its_window_is_not_given() {
    let mut bench = Bench::new(&[pass(20, 20, Some(50))]);
    bench.order(150, "top", Actuation::Accept, 100);
    bench.order(351, "top", Actuation::Accept, 300);
    assert_eq!(bench.counts(0), [1, 0, 1, 0]);
    // One that would have to wait for the pulses before it until its window has passed.
    for part in 0..3 {
        bench.order(500 + part, "top", Actuation::Accept, 490);
    }
    bench.until(1000);
    assert_eq!(bench.of(0)[2..], [(500, true), (520, false), (540, true), (560, false)]);
    assert_eq!(bench.counts(0), [3, 0, 2, 0]);
}

#[test]
fn without_a_window_a_pass_is_prompt_or_not_given() {
    let mut bench = Bench::new(&[pass(10, 5, None)]);
    // The worker was held up for 150 ms.
    bench.until(1000);
    let order = |sent| Order {
        camera: CameraId("top".into()),
        actuation: Actuation::Accept,
        at: millis(100),
        sent: millis(sent),
    };
    bench.schedule.take(&order(1000));
    bench.schedule.take(&order(1149));
    bench.step(1150);
    bench.until(2000);
    assert_eq!((bench.of(0), bench.counts(0)), (vec![(1150, true), (1160, false)], [1, 0, 1, 0]));
}

#[test]
fn every_reject_is_ejected_at_its_own_time() {
    let mut bench = Bench::new(&[eject(10, 300)]);
    // Verdicts come in an uneven rhythm; four parts are on the way at once.
    for (heard, at) in [(130, 100), (140, 125), (260, 180), (330, 290)] {
        bench.order(heard, "top", Actuation::Reject, at);
    }
    bench.order(335, "top", Actuation::Accept, 300);
    assert!(!bench.schedule.idle());
    bench.until(1000);
    let expected =
        [(400, true), (410, false), (425, true), (435, false), (480, true), (490, false), (590, true), (600, false)];
    assert_eq!((bench.of(0), bench.counts(0)), (expected.to_vec(), [4, 0, 0, 0]));
    assert!(bench.schedule.idle());
}

#[test]
fn rejects_close_together_are_one_long_pulse() {
    let mut bench = Bench::new(&[eject(30, 100)]);
    bench.order(10, "top", Actuation::Reject, 10);
    bench.order(30, "top", Actuation::Reject, 30);
    bench.until(500);
    assert_eq!((bench.of(0), bench.counts(0)), (vec![(110, true), (160, false)], [2, 0, 0, 0]));
}

#[test]
fn cameras_that_share_an_ejector_are_heard_in_any_order() {
    let mut bench = Bench::new(&[eject(10, 300)]);
    bench.order(250, "side", Actuation::Reject, 200);
    bench.order(260, "top", Actuation::Reject, 100);
    bench.until(1000);
    assert_eq!(bench.of(0), [(400, true), (410, false), (500, true), (510, false)]);
}

#[test]
fn a_reject_that_is_late_is_ejected_at_once_and_counted() {
    let mut bench = Bench::new(&[eject(10, 100)]);
    bench.order(250, "top", Actuation::Reject, 100);
    bench.until(500);
    assert_eq!((bench.of(0), bench.counts(0)), (vec![(250, true), (260, false)], [1, 1, 0, 0]));
}

#[test]
fn a_reject_without_room_stops_ready_until_its_part_has_gone() {
    let ready = GpioOutput::Ready { pin: pin(), period_ms: 50 };
    let mut bench = Bench::new(&[eject(10, 5000), ready]);
    for part in 0..ON_THE_WAY as u64 {
        bench.order(part, "top", Actuation::Reject, part);
    }
    bench.order(320, "top", Actuation::Reject, 320);
    assert_eq!(bench.counts(0), [0, 0, 0, 1]);
    bench.until(6000);
    let beats: Vec<u64> = bench.of(1).into_iter().map(|(at, _)| at).collect();
    assert!(beats.iter().all(|at| *at <= 320 || *at >= 5330), "{beats:?}");
    assert!(beats.iter().any(|at| *at > 5330), "{beats:?}");
    assert_eq!(bench.counts(0)[0], ON_THE_WAY as u64);
}

#[test]
fn hold_lasts_until_a_camera_accepts_or_rejects_again() {
    let hold = |cameras: Option<Vec<String>>| GpioOutput::Hold { pin: pin(), cameras };
    let mut bench = Bench::new(&[hold(None), hold(Some(vec!["side".into()]))]);
    bench.order(10, "top", Actuation::Hold, 0);
    bench.order(20, "side", Actuation::Hold, 0);
    // Nothing happened to a part: whoever looks has not looked yet.
    bench.order(30, "top", Actuation::Nothing, 0);
    bench.order(40, "top", Actuation::Accept, 0);
    bench.order(50, "side", Actuation::Reject, 0);
    assert_eq!(bench.of(0), [(10, true), (50, false)]);
    assert_eq!(bench.of(1), [(20, true), (50, false)]);
}

#[test]
fn outputs_move_for_their_cameras_alone() {
    let of = |name: &str| GpioOutput::Pass {
        pin: pin(),
        cameras: Some(vec![name.into()]),
        pulse_ms: 10,
        gap_ms: 5,
        window_ms: None,
    };
    let mut bench = Bench::new(&[of("top"), of("side")]);
    bench.order(10, "side", Actuation::Accept, 0);
    bench.until(100);
    assert_eq!((bench.of(0), bench.of(1)), (vec![], vec![(10, true), (20, false)]));
}

#[test]
fn ready_beats_while_the_station_is_and_stays_inactive_otherwise() {
    let mut bench = Bench::new(&[GpioOutput::Ready { pin: pin(), period_ms: 100 }]);
    bench.until(350);
    assert_eq!(bench.of(0), [(0, true), (100, false), (200, true), (300, false)]);
    bench.until(450);
    bench.ready = false;
    bench.until(460);
    bench.until(2000);
    assert_eq!(bench.of(0)[4..], [(400, true), (460, false)]);
    bench.ready = true;
    bench.step(2000);
    bench.until(2100);
    assert_eq!(bench.of(0)[6..], [(2000, true), (2100, false)]);
}

#[test]
fn a_line_that_fails_ends_ready_and_a_pass_is_never_given_later() {
    let ready = GpioOutput::Ready { pin: pin(), period_ms: 100 };
    let mut bench = Bench::new(&[ready, pass(10, 5, None)]);
    bench.until(150);
    bench.pins.broken[1] = true;
    bench.order(150, "top", Actuation::Accept, 140);
    bench.order(160, "top", Actuation::Accept, 150);
    assert_eq!(bench.counts(1), [0, 0, 0, 2]);
    assert!(bench.health.outputs[1].failing.load(Relaxed));
    bench.until(1000);
    bench.pins.broken[1] = false;
    bench.until(3000);
    assert_eq!(bench.of(1), [], "what was not given in time is not given");
    let beats: Vec<u64> = bench.of(0).into_iter().map(|(at, _)| at).collect();
    assert!(beats.iter().all(|at| *at <= 160 || *at >= 1000), "{beats:?}");
    assert!(beats.iter().any(|at| (1000..1400).contains(at)), "READY is back: {beats:?}");
    assert!(!bench.health.outputs[1].failing.load(Relaxed));
    bench.order(3000, "top", Actuation::Accept, 2990);
    assert_eq!(bench.counts(1), [1, 0, 0, 2]);
}

#[test]
fn a_line_that_nobody_needs_is_looked_after() {
    let mut bench = Bench::new(&[pass(10, 5, None)]);
    bench.until(500);
    bench.pins.broken[0] = true;
    bench.until(1500);
    assert!(bench.health.outputs[0].failing.load(Relaxed), "found before a part needs it");
    assert!(bench.pins.calls < 10, "{}", bench.pins.calls);
}

#[test]
fn a_pulse_cut_by_a_fault_does_not_come_back() {
    let mut bench = Bench::new(&[eject(1000, 0), pass(1000, 5, None)]);
    bench.order(100, "top", Actuation::Reject, 100);
    bench.order(100, "top", Actuation::Accept, 100);
    // Both fail while they are active; looking after them finds it.
    bench.until(900);
    bench.pins.broken = vec![true, true];
    bench.until(1200);
    bench.pins.broken = vec![false, false];
    bench.until(3000);
    assert_eq!((bench.of(0), bench.of(1)), (vec![(100, true)], vec![(100, true)]));
    assert!(bench.schedule.idle());
}

#[test]
fn lost_orders_stop_ready_until_their_parts_have_gone() {
    let ready = GpioOutput::Ready { pin: pin(), period_ms: 50 };
    let mut bench = Bench::new(&[ready, eject(10, 2000)]);
    bench.until(200);
    bench.schedule.lost(millis(200));
    bench.until(4000);
    let beats: Vec<u64> = bench.of(0).into_iter().map(|(at, _)| at).filter(|at| *at > 200).collect();
    assert!(beats[0] <= 220 && (2210..2260).contains(&beats[1]), "{beats:?}");
}
