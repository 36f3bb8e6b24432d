//! The state of the station that runs: the machine, the faults that stand and what is owed, behind one short lock.
//!
//! Nobody waits while it is held: capture, publish, commands and the supervisor all come by.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;

use crate::inspection::audit::{Audit, Deed};
use crate::inspection::station_state::{Fault, FaultKind, Machine, Standing, Start, State, Step};
use crate::inspection::time::Clock;
use crate::inspection::trigger::{RefusalCode, Refused};
use crate::inspection::verdict::FaultReason;
use crate::service::metrics::Reading;

/// What is said of the line that triggers a camera, after the camera's name.
pub(super) const TRIGGER_LINE: &str = " trigger line";

/// The state of a station, shared by everybody who asks for it or changes it.
pub struct StationState {
    start: Start,
    held: OnceLock<Mutex<Held>>,
    told: watch::Sender<Standing>,
    /// Grows while all stages are well.
    heartbeat: AtomicU16,
    clock: Arc<dyn Clock>,
    audit: Audit,
}

struct Held {
    machine: Machine,
    faults: Vec<Fault>,
    /// Inspections that are owed: for triggers, and for cameras that run free.
    owed: [u64; 2],
}

/// What becomes of a frame or a trigger that is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It is inspected.
    Inspected,
    /// It is answered at once: nothing can be judged.
    Answered(FaultReason, String),
}

impl StationState {
    /// A station that is about to start. What it does by itself is told to `audit`, too, which must not ask for the state.
    pub fn new(start: Start, clock: Arc<dyn Clock>, audit: Audit) -> Self {
        let standing = Standing { since: clock.now(), since_wall_nanos: clock.wall_nanos(), ..Standing::default() };
        let told = watch::Sender::new(standing);
        Self { start, held: OnceLock::new(), told, heartbeat: AtomicU16::new(0), clock, audit }
    }

    /// Says whether any camera runs free, once, before anything else happens.
    pub(super) fn runs_free(&self, runs_free: bool) {
        let machine = Machine::new(self.start, runs_free);
        // Who comes second changes nothing.
        let _ = self.held.set(Mutex::new(Held { machine, faults: Vec::new(), owed: [0; 2] }));
    }

    /// Where the station goes by itself.
    pub fn start(&self) -> Start {
        self.start
    }

    /// The state now.
    pub fn now(&self) -> State {
        self.told.borrow().state
    }

    /// How the station stands now.
    pub fn standing(&self) -> Standing {
        self.told.borrow().clone()
    }

    /// Hears of every change; only the last one matters to it.
    pub fn listen(&self) -> watch::Receiver<Standing> {
        self.told.subscribe()
    }

    /// All stages are well.
    pub(super) fn beat(&self) {
        self.heartbeat.fetch_add(1, Ordering::Relaxed);
    }

    /// Changes several times a second while all stages are well.
    pub fn heartbeat(&self) -> u16 {
        self.heartbeat.load(Ordering::Relaxed)
    }

    /// Whoever tells of deeds.
    pub(super) fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Adds the state to a reading, and why it keeps the station from judging.
    pub(super) fn tell(&self, reading: &mut Reading) {
        let Standing { state, since_wall_nanos, faults, .. } = self.standing();
        let why: Vec<String> = match state {
            State::Halted => vec!["halted; Reset takes the station into work".into()],
            State::Initialized => vec!["no recipe is prepared; PrepareRecipe".into()],
            State::Error => faults
                .iter()
                // Of a camera the counters say it already.
                .filter(|fault| !fault.kind.clears_itself())
                .map(|Fault { kind, of, text }| format!("{} {of}: {text}; repair it, then Reset", kind.word()))
                .collect(),
            State::Preoperational | State::Ready | State::SingleExecution | State::ContinuousExecution => Vec::new(),
        };
        reading.obstacles.extend(why);
        if !state.is_ready() && reading.obstacles.is_empty() {
            reading.obstacles.push(format!("the station is in {}", state.word()));
        }
        (reading.state, reading.state_since_nanos, reading.faults) = (state, since_wall_nanos, faults);
        reading.heartbeat = self.heartbeat();
    }

    /// Takes a step of a command.
    ///
    /// # Errors
    /// The state has no such step.
    pub(super) fn command(&self, word: &str, step: Step) -> Result<State, Refused> {
        let mut held = self.held();
        let step = exact(&held, step);
        let machine = possible(&held.machine, word, step)?;
        if matches!(step, Step::Reset { .. }) {
            held.faults.retain(|fault| fault.kind.clears_itself());
        }
        let state = self.enter(&mut held, machine);
        // A stop waits for nothing where nothing is owed.
        let [triggered, free] = held.owed;
        match machine.after(Step::NoneFree { triggered: triggered > 0 }) {
            Some(settled) if step == Step::Stop && free == 0 => Ok(self.enter(&mut held, settled)),
            _ => Ok(state),
        }
    }

    /// Where a command would lead.
    ///
    /// # Errors
    /// The state has no such step.
    pub(super) fn would(&self, word: &str, step: Step) -> Result<State, Refused> {
        let held = self.held();
        possible(&held.machine, word, exact(&held, step)).map(|machine| machine.state())
    }

    /// Everything that inspecting needs is there.
    pub(super) fn loaded(&self) {
        let mut held = self.held();
        if let Some(machine) = held.machine.after(Step::Loaded) {
            self.by_itself(&mut held, machine, "start", "station", None);
        }
    }

    /// Something broke; nothing happens where that is known already.
    pub(super) fn fault(&self, kind: FaultKind, of: &str, text: &str) -> bool {
        let mut held = self.held();
        if held.faults.iter().any(|fault| fault.kind == kind && fault.of == of) {
            return false;
        }
        held.faults.push(Fault { kind, of: of.to_owned(), text: text.to_owned() });
        if let Some(machine) = held.machine.after(Step::Fault) {
            self.by_itself(&mut held, machine, "fault", &format!("{} {of}", kind.word()), Some(text));
        }
        true
    }

    /// Something is whole again.
    pub(super) fn clear(&self, kind: FaultKind, of: &str) {
        let mut held = self.held();
        let before = held.faults.len();
        held.faults.retain(|fault| fault.kind != kind || fault.of != of);
        if held.faults.len() == before {
            return;
        }
        let machine = if held.faults.is_empty() { held.machine.after(Step::Cleared) } else { Some(held.machine) };
        if let Some(machine) = machine {
            self.by_itself(&mut held, machine, "cleared", &format!("{} {of}", kind.word()), None);
        }
    }

    /// Whether frames are taken of cameras that run free.
    pub(super) fn judges_free(&self) -> bool {
        self.held().machine.judges_free()
    }

    /// Lets a trigger in, or a frame of a camera that runs free: from here on it is owed, until it has [`left`](Self::left).
    ///
    /// # Errors
    /// The state lets nothing in.
    pub(super) fn admit(&self, camera: &str, free: bool) -> Result<Admission, Refused> {
        let mut held = self.held();
        let state = held.machine.state();
        let refused = || {
            let text = format!("nothing is inspected in {}; /readyz says why", state.word());
            Err(Refused::new(RefusalCode::NotReady, text))
        };
        if free {
            if !held.machine.judges_free() {
                return refused();
            }
            held.owed[1] += 1;
            return Ok(Admission::Inspected);
        }
        let Some(machine) = held.machine.after(Step::Accepted) else { return refused() };
        // A camera of its own that is gone may be back in time: its frame is waited for.
        let own = |fault: &Fault| {
            fault.kind == FaultKind::Camera && fault.of.strip_suffix(TRIGGER_LINE).unwrap_or(&fault.of) == camera
        };
        let other = held.faults.iter().filter(|fault| !own(fault));
        let admission = match other.max_by_key(|fault| fault.kind == FaultKind::Detector) {
            Some(fault) if state == State::Error => {
                let reason = match fault.kind {
                    FaultKind::Camera => FaultReason::CameraFault,
                    FaultKind::Detector => FaultReason::DetectorFault,
                    FaultKind::Output | FaultKind::Store => FaultReason::Overrun,
                };
                Admission::Answered(reason, format!("the station is in Error: {} {}", fault.of, fault.text))
            }
            _ => Admission::Inspected,
        };
        held.owed[0] += 1;
        self.enter(&mut held, machine);
        Ok(admission)
    }

    /// An inspection that was owed is out.
    pub(super) fn left(&self, free: bool) {
        let mut held = self.held();
        let owed = &mut held.owed[usize::from(free)];
        *owed = owed.saturating_sub(1);
        if *owed > 0 {
            return;
        }
        let step = if free { Step::NoneFree { triggered: held.owed[0] > 0 } } else { Step::NoneTriggered };
        if let Some(machine) = held.machine.after(step) {
            self.enter(&mut held, machine);
        }
    }

    /// A change that nobody commanded: it is logged and audited, and happens in any case.
    fn by_itself(&self, held: &mut Held, machine: Machine, what: &str, of: &str, text: Option<&str>) {
        let (old, new) = (held.machine.state(), machine.state());
        let deed = Deed {
            who: "station".into(),
            from: "station".into(),
            what: what.into(),
            of: text.map_or(of.to_owned(), |text| format!("{of}: {text}")),
            old: Some(old.word().into()),
            new: Some(new.word().into()),
            refused: None,
        };
        match what {
            "fault" => log::error!("{}; the station is in {}", deed.of, new.word()),
            _ => log::info!("state: from {} to {}: {what} {of}", old.word(), new.word()),
        }
        if let Err(error) = (self.audit)(deed) {
            log::error!("audit: {what} {of} is not recorded: {error}");
        }
        self.enter(held, machine);
    }

    fn enter(&self, held: &mut Held, machine: Machine) -> State {
        let (old, new) = (held.machine.state(), machine.state());
        held.machine = machine;
        self.told.send_if_modified(|standing| {
            let faults = standing.faults != held.faults;
            if faults {
                standing.faults.clone_from(&held.faults);
            }
            if old != new {
                standing.state = new;
                (standing.since, standing.since_wall_nanos) = (self.clock.now(), self.clock.wall_nanos());
            }
            faults || old != new
        });
        new
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        let fresh = || Mutex::new(Held { machine: Machine::new(self.start, false), faults: Vec::new(), owed: [0; 2] });
        self.held.get_or_init(fresh).lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The step, with what only the faults that stand know.
fn exact(held: &Held, step: Step) -> Step {
    match step {
        Step::Reset { .. } => Step::Reset { broken: held.faults.iter().any(|fault| fault.kind.clears_itself()) },
        other => other,
    }
}

/// The machine after a command's step.
fn possible(machine: &Machine, word: &str, step: Step) -> Result<Machine, Refused> {
    machine.after(step).ok_or_else(|| {
        let state = machine.state();
        let (code, text) = match (step, state) {
            (Step::StartContinuous, State::Ready) => (RefusalCode::NotTriggered, "no camera runs free".to_owned()),
            (_, State::Preoperational) => (RefusalCode::NotReady, format!("{word}: the station starts")),
            _ => (RefusalCode::WrongState, format!("{word} is no command of {}", state.word())),
        };
        Refused::new(code, text)
    })
}
