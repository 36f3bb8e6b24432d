//! The state of a station, through the whole daemon: what it obeys in which state, and what faults do.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dsad::inspection::account::Level;
use dsad::inspection::station_state::{Fault, FaultKind, Start, State};
use dsad::inspection::trigger::TriggerMode;
use dsad::inspection::verdict::{FaultReason, Verdict};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::support::ScriptedDetector;
use crate::triggers::{Controller, Setup, Stalling, Station, Told, asked, fault};

fn verdicts(told: &[Told]) -> Vec<Verdict> {
    told.iter().map(|told| told.inspection.decision.verdict).collect()
}

/// Says it, and wants this answer.
fn ok(controller: &mut Controller, command: &str, answer: &str) {
    assert_eq!(controller.say(command), answer, "{command}");
}

/// Says it, and wants this refusal.
fn refused(controller: &mut Controller, command: &str, code: &str) {
    let answer = controller.say(command);
    assert!(answer.starts_with(&format!("error {code} ")), "{command} {answer}");
}

/// A counter of `/metrics`.
fn metric(station: &Station, name: &str) -> f64 {
    let text = get(station, "/metrics");
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit_once(' ').and_then(|(_, value)| value.parse().ok()).expect("a value")
}

fn get(station: &Station, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(station.http).expect("connects");
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).expect("asks");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers");
    answer
}

#[test]
fn a_station_that_starts_halted_is_taken_into_work_by_commands() {
    let station = Station::start(Setup { start: Start::Halted, ..Setup::default() });
    let mut plc = station.controller();
    station.reaches(State::Halted);
    refused(&mut plc, "StartSingleJob;", "not_ready");
    refused(&mut plc, "PrepareRecipe recipe=usual;", "wrong_state");
    assert!(get(&station, "/readyz").contains("halted; Reset"));
    ok(&mut plc, "SelectModeAutomatic;", "ok state=Initialized");
    refused(&mut plc, "StartSingleJob;", "not_ready");
    refused(&mut plc, "UnprepareRecipe;", "wrong_state");
    assert!(get(&station, "/readyz").contains("PrepareRecipe"));
    assert!(!station.is_ready());
    ok(&mut plc, "PrepareRecipe number=2;", "ok cameras=top");
    assert_eq!(station.state.now(), State::Ready);
    station.becomes_ready();
    refused(&mut plc, "StartContinuous;", "not_triggered");
    ok(&mut plc, "StartSingleJob part_id=7;", "ok camera=top frame_id=0");
    let line = plc.line();
    let told = station.told(1);
    let expected = "verdict camera=top frame_id=0 part_id=7 verdict=pass reason= score=";
    assert!(line.starts_with(expected) && line.ends_with(&format!("event_id={}", told[0].event.event_id)), "{line}");
    assert_eq!(told[0].event.recipe_id, "strict");
    station.reaches(State::Ready);
    ok(&mut plc, "UnprepareRecipe;", "ok state=Initialized");
    refused(&mut plc, "StartSingleJob;", "not_ready");
    assert!(metric(&station, "dsad_triggers_refused_total") >= 3.0);
    assert_eq!(metric(&station, "dsad_state "), 3.0);
    ok(&mut plc, "Halt;", "ok state=Halted");
    ok(&mut plc, "Reset;", "ok state=Initialized");
    let deeds = station.deeds.lock().expect("deeds").clone();
    let commanded: Vec<_> = deeds.iter().filter(|deed| deed.who == "tcp").collect();
    let whats: Vec<&str> = commanded.iter().map(|deed| deed.what.as_str()).collect();
    assert_eq!(whats, ["SelectModeAutomatic", "PrepareRecipe", "UnprepareRecipe", "Halt", "Reset"]);
    assert!(commanded.iter().all(|deed| deed.from.starts_with("tcp 127.0.0.1:") && deed.refused.is_none()));
    assert_eq!((commanded[1].old.as_deref(), commanded[1].new.as_deref()), (Some("usual"), Some("strict")));
    assert_eq!((commanded[3].old.as_deref(), commanded[3].new.as_deref()), (Some("Initialized"), Some("Halted")));
    station.stop();
}

#[test]
fn cameras_that_run_free_are_judged_in_continuous_execution_alone() {
    let station = Station::start(Setup { mode: TriggerMode::Free, ..Setup::default() });
    let mut plc = station.controller();
    station.told(5);
    station.reaches(State::ContinuousExecution);
    assert!(plc.say("Stop;").starts_with("ok state="));
    station.reaches(State::Ready);
    std::thread::sleep(Duration::from_millis(20));
    let stopped = station.told(5).len();
    let idle = metric(&station, "dsad_frames_idle_total");
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(station.told(stopped).len(), stopped, "frames go by, and nobody owes anything for them");
    assert!(metric(&station, "dsad_frames_idle_total") > idle);
    ok(&mut plc, "StartContinuous;", "ok state=ContinuousExecution");
    station.told(stopped + 5);
    ok(&mut plc, "Subscribe;", "ok");
    let line = (0..1_000).map(|_| plc.line()).find(|line| line.starts_with("verdict camera=top")).expect("a verdict");
    assert!(line.contains("verdict=pass"), "{line}");
    let (told, _) = station.stop();
    assert!(verdicts(&told).iter().all(|verdict| *verdict == Verdict::Pass || *verdict == fault(FaultReason::Overrun)));
}

#[test]
fn what_is_pending_ends_as_an_overrun_when_it_is_aborted_or_halted() {
    // No frame comes: triggers wait for a minute.
    for (command, state) in [("Abort;", State::Ready), ("Halt;", State::Halted)] {
        let station = Station::start(Setup { mode: asked(60_000, 0), ..Setup::default() });
        let mut plc = station.controller();
        plc.once_ready("StartSingleJob;");
        station.told(1);
        station.blind.store(true, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(20));
        for _ in 0..5 {
            assert!(plc.say("StartSingleJob;").starts_with("ok"));
        }
        assert_eq!(station.state.now(), State::SingleExecution);
        let asked = Instant::now();
        ok(&mut plc, command, &format!("ok state={}", state.word()));
        let told = station.told(6);
        assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
        assert_eq!(verdicts(&told)[1..], [fault(FaultReason::Overrun); 5]);
        if state == State::Halted {
            refused(&mut plc, "StartSingleJob;", "not_ready");
            ok(&mut plc, "Reset;", "ok state=Ready");
        }
        // It goes on as if nothing had been.
        station.blind.store(false, Ordering::Relaxed);
        assert!(plc.say("StartSingleJob;").starts_with("ok camera=top frame_id=6"));
        assert_eq!(verdicts(&station.told(7))[6], Verdict::Pass);
        station.stop();
    }
}

#[test]
fn a_detector_that_breaks_stops_the_station_until_it_is_reset() {
    let station = Station::start(Setup::default());
    let mut plc = station.controller();
    plc.once_ready("StartSingleJob;");
    station.told(1);
    station.level.store(255, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(20));
    assert!(plc.say("StartSingleJob;").starts_with("ok"));
    station.told(2);
    station.reaches(State::Error);
    station.level.store(20, Ordering::Relaxed);
    // Accepted, and answered: the line waits for a verdict of each.
    assert!(plc.say("StartSingleJob;").starts_with("ok"));
    let told = station.told(3);
    assert_eq!(verdicts(&told)[1..], [fault(FaultReason::DetectorFault); 2]);
    assert!(told[2].event.fault.as_deref().is_some_and(|text| text.contains("Error") && text.contains("scripted")));
    assert!(get(&station, "/readyz").contains("detector scripted: scripted; repair it, then Reset"));
    assert_eq!(metric(&station, "dsad_faults{kind=\"detector\"}"), 1.0);
    refused(&mut plc, "Abort;", "wrong_state");
    // The way by Halted does not pass by what is broken.
    ok(&mut plc, "Halt;", "ok state=Halted");
    ok(&mut plc, "SelectModeAutomatic;", "ok state=Error");
    ok(&mut plc, "Reset;", "ok state=Ready");
    assert!(plc.say("StartSingleJob;").starts_with("ok"));
    assert_eq!(verdicts(&station.told(4))[3], Verdict::Pass);
    let deeds = station.deeds.lock().expect("deeds").clone();
    let of_itself = deeds.iter().find(|deed| deed.what == "fault").expect("the fault is in the trail");
    assert_eq!((of_itself.who.as_str(), of_itself.new.as_deref()), ("station", Some("Error")));
    station.stop();
}

#[test]
fn a_camera_that_is_gone_is_an_error_until_it_is_back() {
    for mode in [asked(60, 0), TriggerMode::Free] {
        let station = Station::start(Setup { mode, ..Setup::default() });
        let work = if mode == TriggerMode::Free { State::ContinuousExecution } else { State::Ready };
        let mut plc = station.controller();
        station.reaches(work);
        while !get(&station, "/readyz").contains("\"ready\":true") {
            std::thread::sleep(Duration::from_millis(5));
        }
        station.gone.store(true, Ordering::Relaxed);
        station.reaches(State::Error);
        assert!(get(&station, "/readyz").contains("camera top: lost"));
        if mode != TriggerMode::Free {
            assert!(plc.say("StartSingleJob;").starts_with("ok"));
            assert_eq!(verdicts(&station.told(1)), [fault(FaultReason::CameraFault)]);
        }
        station.gone.store(false, Ordering::Relaxed);
        station.reaches(work);
        let before = station.told(0).len();
        if mode != TriggerMode::Free {
            assert!(plc.say("StartSingleJob;").starts_with("ok"));
        }
        // Frames of a free camera that were on their way while it was gone come first.
        let mut count = before + 1;
        while mode == TriggerMode::Free && station.told(count)[count - 1].inspection.decision.verdict != Verdict::Pass {
            count += 1;
        }
        assert_eq!(station.told(count)[count - 1].inspection.decision.verdict, Verdict::Pass);
        station.stop();
    }
}

#[test]
fn an_output_that_fails_is_an_error_that_a_reset_forgets_when_it_is_whole() {
    let station = Station::start(Setup::default());
    let mut plc = station.controller();
    station.reaches(State::Ready);
    let broken = Fault { kind: FaultKind::Output, of: "gpio pass".into(), text: "cannot be driven".into() };
    *station.broken.lock().expect("broken") = Some(broken);
    station.reaches(State::Error);
    assert!(!station.is_ready());
    assert!(plc.say("StartSingleJob;").starts_with("ok"));
    assert_eq!(verdicts(&station.told(1)), [fault(FaultReason::Overrun)]);
    // Still broken: the reset lasts until the next look.
    plc.say("Reset;");
    station.reaches(State::Error);
    *station.broken.lock().expect("broken") = None;
    std::thread::sleep(Duration::from_millis(250));
    assert_eq!(station.state.now(), State::Error, "it does not go away by itself");
    ok(&mut plc, "Reset;", "ok state=Ready");
    station.stop();
}

#[test]
fn who_may_not_and_what_cannot_be_told_of_is_not_done() {
    let station = Station::start(Setup { level: Level::Operator, ..Setup::default() });
    let mut plc = station.controller();
    station.reaches(State::Ready);
    refused(&mut plc, "PrepareRecipe recipe=strict;", "forbidden");
    refused(&mut plc, "UnprepareRecipe;", "forbidden");
    let deeds = station.deeds.lock().expect("deeds").clone();
    assert_eq!(deeds.iter().filter(|deed| deed.refused.is_some()).count(), 2);
    station.deaf.store(true, Ordering::Relaxed);
    refused(&mut plc, "Halt;", "not_audited");
    assert_eq!(station.state.now(), State::Ready);
    // A trigger is recorded by its verdict.
    assert!(plc.once_ready("StartSingleJob;").starts_with("ok"));
    station.deaf.store(false, Ordering::Relaxed);
    station.told(1);
    ok(&mut plc, "Halt;", "ok state=Halted");
    station.stop();
}

/// Random commands, triggers and faults, from a seed: whatever happens, each accepted trigger is one inspection, and nothing that was
/// accepted in a state that does not judge passes.
#[test]
fn whatever_is_commanded_no_trigger_is_lost() {
    for seed in 0..4 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let inner = ScriptedDetector { delay: Duration::from_millis(2) };
        let detector = Box::new(Stalling { every: 9, stall: Duration::from_millis(20), seen: 0, inner });
        let station = Station::start(Setup { mode: asked(40, 0), deadline_ms: Some(60), detector, ..Setup::default() });
        let mut plc = station.controller();
        let mut accepted = 0;
        station.reaches(State::Ready);
        for _ in 0..400 {
            let command = match rng.random_range(0..20) {
                0 => "Abort;",
                1 => "Halt;",
                2 | 3 => "Reset;",
                4 => "SelectModeAutomatic;",
                5 | 6 => "PrepareRecipe number=1;",
                7 => "UnprepareRecipe;",
                8 => {
                    station.level.store(if rng.random_range(0..4) == 0 { 255 } else { 20 }, Ordering::Relaxed);
                    continue;
                }
                9 => {
                    station.gone.store(rng.random_range(0..3) == 0, Ordering::Relaxed);
                    continue;
                }
                10 => {
                    std::thread::sleep(Duration::from_millis(rng.random_range(0..8)));
                    continue;
                }
                _ => "StartSingleJob;",
            };
            let answer = plc.say(command);
            if answer.starts_with("ok camera=top frame_id=") {
                assert_eq!(answer, format!("ok camera=top frame_id={accepted}"), "numbers have no gaps");
                accepted += 1;
            }
        }
        station.gone.store(false, Ordering::Relaxed);
        let told = station.told(accepted);
        let ids: Vec<u64> = told.iter().map(|told| told.inspection.frame.id.0).collect();
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..accepted as u64).collect::<Vec<_>>(), "seed {seed}");
        station.stop();
    }
}
