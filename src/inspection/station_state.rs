//! The state of a station, by OPC 40100-1: what it is in, and what follows on what.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::time::Timestamp;

/// The state; its number is the same on every protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub enum State {
    /// It starts.
    #[default]
    Preoperational = 0,
    /// Somebody stopped it.
    Halted = 1,
    /// Something is broken.
    Error = 2,
    /// No recipe is prepared.
    Initialized = 3,
    /// It waits.
    Ready = 4,
    /// Triggered inspections run.
    SingleExecution = 5,
    /// Cameras that run free are judged.
    ContinuousExecution = 6,
}

impl State {
    /// All of them, by their numbers.
    pub const ALL: [Self; 7] = [
        Self::Preoperational,
        Self::Halted,
        Self::Error,
        Self::Initialized,
        Self::Ready,
        Self::SingleExecution,
        Self::ContinuousExecution,
    ];

    /// The number on the wire.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::Preoperational => "Preoperational",
            Self::Halted => "Halted",
            Self::Error => "Error",
            Self::Initialized => "Initialized",
            Self::Ready => "Ready",
            Self::SingleExecution => "SingleExecution",
            Self::ContinuousExecution => "ContinuousExecution",
        }
    }

    /// Whether parts are judged in it: the line may bring some.
    pub fn is_ready(self) -> bool {
        self >= Self::Ready
    }
}

/// Where a station goes by itself once it has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// To work: the first recipe of each camera is prepared, and cameras that run free are judged.
    #[default]
    Automatic,
    /// To Initialized: somebody prepares a recipe.
    Initialized,
    /// To Halted: somebody takes it into work.
    Halted,
}

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// A camera, or the line that triggers it. Ends by itself when it is back.
    Camera,
    /// The networks.
    Detector,
    /// A line that tells verdicts.
    Output,
    /// What keeps the record.
    Store,
}

impl FaultKind {
    /// All of them; the place is the bit in registers.
    pub const ALL: [Self; 4] = [Self::Camera, Self::Detector, Self::Output, Self::Store];

    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::Camera => "camera",
            Self::Detector => "detector",
            Self::Output => "output",
            Self::Store => "store",
        }
    }

    /// Whether it ends without a `Reset`.
    pub fn clears_itself(self) -> bool {
        self == Self::Camera
    }
}

/// A fault that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is broken.
    pub kind: FaultKind,
    /// Which one: a camera, an output.
    pub of: String,
    /// In words.
    pub text: String,
}

/// How a station stands: what listeners hear.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// The state.
    pub state: State,
    /// Since when.
    pub since: Timestamp,
    /// The same, nanoseconds since the Unix epoch.
    pub since_wall_nanos: u64,
    /// What is broken.
    pub faults: Vec<Fault>,
}

/// What may change the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Everything that inspecting needs is there.
    Loaded,
    /// The command.
    SelectModeAutomatic,
    /// `PrepareRecipe`: every camera has one now, or some have none yet.
    PrepareRecipe {
        /// Whether every camera has one.
        all: bool,
    },
    /// The command.
    UnprepareRecipe,
    /// A trigger was accepted.
    Accepted,
    /// Nothing is owed any more for triggers.
    NoneTriggered,
    /// Nothing is owed any more for cameras that run free; whether something is for triggers.
    NoneFree {
        /// Whether a triggered inspection is still owed.
        triggered: bool,
    },
    /// The command.
    StartContinuous,
    /// The command.
    Stop,
    /// The command.
    Abort,
    /// The command.
    Halt,
    /// The command.
    Reset {
        /// Whether something is still broken that a reset does not forget.
        broken: bool,
    },
    /// Something broke.
    Fault,
    /// Nothing is broken any more.
    Cleared,
}

/// The state with what decides where it goes next. It does nothing by itself: whoever holds it does, and tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    state: State,
    /// Where a fault that ends leads back to.
    before: State,
    /// Where to go from Preoperational.
    start: Start,
    /// Whether any camera runs free.
    runs_free: bool,
    loaded: bool,
    broken: bool,
    /// Whether every camera has a recipe.
    prepared: bool,
    /// Whether a stop waits for the frames that were taken.
    stopping: bool,
}

impl Machine {
    /// A station that starts.
    pub fn new(start: Start, runs_free: bool) -> Self {
        Self {
            state: State::Preoperational,
            before: State::Preoperational,
            start,
            runs_free,
            loaded: false,
            broken: false,
            prepared: start == Start::Automatic,
            stopping: false,
        }
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether frames are judged that nobody asked for.
    pub fn judges_free(&self) -> bool {
        self.state == State::ContinuousExecution && !self.stopping
    }

    /// What a step leads to; nothing where the state has no such step.
    pub fn after(&self, step: Step) -> Option<Self> {
        use State::{ContinuousExecution, Error, Halted, Initialized, Preoperational, Ready, SingleExecution};
        let to = |state: State| Some(self.to(state));
        match (step, self.state) {
            (Step::Loaded, _) => Some(Self { loaded: true, ..*self }.passed()),
            (Step::SelectModeAutomatic, Halted) if !self.loaded => None,
            (Step::SelectModeAutomatic, Halted) if self.broken => Some(Self { before: Initialized, ..self.to(Error) }),
            (Step::SelectModeAutomatic, Halted) => Some(Self { prepared: false, ..self.to(Initialized) }),
            (Step::PrepareRecipe { all: true }, Initialized) => Some(Self { prepared: true, ..self.to(Ready) }),
            (Step::PrepareRecipe { .. }, Initialized | Ready | SingleExecution | ContinuousExecution) => Some(*self),
            (Step::UnprepareRecipe, Ready) => Some(Self { prepared: false, ..self.to(Initialized) }),
            (Step::Accepted, Ready) => to(SingleExecution),
            // A fault opens no station that was halted, or had no recipe.
            (Step::Accepted, Error) if matches!(self.before, Halted | Initialized) => None,
            (Step::Accepted, SingleExecution | ContinuousExecution | Error) => Some(*self),
            (Step::NoneTriggered, SingleExecution) => to(Ready),
            (Step::NoneFree { triggered }, ContinuousExecution) if self.stopping => {
                to(if triggered { SingleExecution } else { Ready })
            }
            (Step::NoneTriggered | Step::NoneFree { .. }, _) => Some(*self),
            (Step::StartContinuous, Ready) if self.runs_free => to(ContinuousExecution),
            (Step::Stop, ContinuousExecution) => Some(Self { stopping: true, ..*self }),
            // What ended just before it was aborted leaves nothing to abort.
            (Step::Abort, Ready | SingleExecution | ContinuousExecution) => to(Ready),
            (Step::Halt, _) => to(Halted),
            (Step::Reset { broken }, Halted | Error) => Some(Self { broken, ..self.to(Preoperational) }.passed()),
            (Step::Fault, Error) => Some(Self { broken: true, ..*self }),
            (Step::Fault, state) => {
                let before = match state {
                    SingleExecution => Ready,
                    ContinuousExecution if self.stopping => Ready,
                    other => other,
                };
                Some(Self { broken: true, before, ..self.to(Error) })
            }
            (Step::Cleared, Error) => {
                let prepared = self.prepared && self.before != Initialized;
                Some(Self { broken: false, prepared, ..self.to(self.before) }.passed())
            }
            (Step::Cleared, _) => Some(Self { broken: false, ..*self }),
            _ => None,
        }
    }

    fn to(&self, state: State) -> Self {
        Self { state, stopping: false, ..*self }
    }

    /// Out of Preoperational, if nothing holds it there.
    fn passed(self) -> Self {
        if self.state != State::Preoperational || !self.loaded {
            return self;
        }
        if self.broken {
            return Self { before: State::Preoperational, ..self.to(State::Error) };
        }
        match self.start {
            Start::Automatic if self.prepared && self.runs_free => self.to(State::ContinuousExecution),
            Start::Automatic if self.prepared => self.to(State::Ready),
            // Only the start itself ends there.
            Start::Halted => Self { start: Start::Initialized, ..self.to(State::Halted) },
            _ => Self { prepared: false, ..self.to(State::Initialized) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::State::{
        ContinuousExecution as Con, Error as Err, Halted as Hal, Initialized as Ini, Preoperational as Pre,
        Ready as Rea, SingleExecution as Sin,
    };
    use super::*;

    /// Every state of a station that has loaded, whose cameras run free.
    fn machine(state: State, start: Start) -> Machine {
        let machine = Machine { loaded: state != Pre, prepared: state >= Rea, ..Machine::new(start, true) };
        match state {
            Err => Machine { broken: true, before: Rea, ..machine.to(Err) },
            state => machine.to(state),
        }
    }

    #[test]
    fn every_step_from_every_state_leads_where_the_table_says() {
        let no = None;
        // From Preoperational, Halted, Error, Initialized, Ready, SingleExecution, ContinuousExecution.
        let table: [(Step, [Option<State>; 7]); 17] = [
            (Step::Loaded, [Some(Ini), Some(Hal), Some(Err), Some(Ini), Some(Rea), Some(Sin), Some(Con)]),
            (Step::SelectModeAutomatic, [no, Some(Ini), no, no, no, no, no]),
            (Step::PrepareRecipe { all: true }, [no, no, no, Some(Rea), Some(Rea), Some(Sin), Some(Con)]),
            (Step::PrepareRecipe { all: false }, [no, no, no, Some(Ini), Some(Rea), Some(Sin), Some(Con)]),
            (Step::UnprepareRecipe, [no, no, no, no, Some(Ini), no, no]),
            (Step::Accepted, [no, no, Some(Err), no, Some(Sin), Some(Sin), Some(Con)]),
            (Step::NoneTriggered, [Some(Pre), Some(Hal), Some(Err), Some(Ini), Some(Rea), Some(Rea), Some(Con)]),
            (
                Step::NoneFree { triggered: false },
                [Some(Pre), Some(Hal), Some(Err), Some(Ini), Some(Rea), Some(Sin), Some(Con)],
            ),
            (
                Step::NoneFree { triggered: true },
                [Some(Pre), Some(Hal), Some(Err), Some(Ini), Some(Rea), Some(Sin), Some(Con)],
            ),
            (Step::StartContinuous, [no, no, no, no, Some(Con), no, no]),
            (Step::Stop, [no, no, no, no, no, no, Some(Con)]),
            (Step::Abort, [no, no, no, no, Some(Rea), Some(Rea), Some(Rea)]),
            (Step::Halt, [Some(Hal); 7]),
            (Step::Reset { broken: false }, [no, Some(Ini), Some(Ini), no, no, no, no]),
            (Step::Reset { broken: true }, [no, Some(Err), Some(Err), no, no, no, no]),
            (Step::Fault, [Some(Err); 7]),
            (Step::Cleared, [Some(Pre), Some(Hal), Some(Rea), Some(Ini), Some(Rea), Some(Sin), Some(Con)]),
        ];
        for (step, row) in table {
            for (from, to) in State::ALL.into_iter().zip(row) {
                let found = machine(from, Start::Initialized).after(step).map(|after| after.state());
                assert_eq!(found, to, "{step:?} in {from:?}");
            }
        }
    }

    /// Where these steps lead from the start.
    fn walk(start: Start, runs_free: bool, steps: &[Step]) -> Machine {
        let first = Machine::new(start, runs_free);
        steps.iter().fold(first, |machine, step| machine.after(*step).unwrap_or_else(|| panic!("{machine:?} {step:?}")))
    }

    #[test]
    fn a_station_starts_where_it_is_told_to() {
        use Step::{Halt, Loaded, SelectModeAutomatic, UnprepareRecipe};
        let reset = Step::Reset { broken: false };
        let state = |start, runs_free, steps: &[Step]| walk(start, runs_free, steps).state();
        assert_eq!(state(Start::Automatic, true, &[Loaded]), Con);
        assert_eq!(state(Start::Automatic, false, &[Loaded]), Rea);
        assert_eq!(state(Start::Initialized, true, &[Loaded]), Ini);
        assert_eq!(state(Start::Halted, true, &[Loaded]), Hal);
        // A reset starts over, with the recipes that are prepared.
        assert_eq!(state(Start::Automatic, true, &[Loaded, Halt, reset]), Con);
        assert_eq!(state(Start::Automatic, false, &[Loaded, UnprepareRecipe, Halt, reset]), Ini);
        assert_eq!(state(Start::Automatic, true, &[Loaded, Halt, SelectModeAutomatic]), Ini);
        assert_eq!(state(Start::Halted, true, &[Loaded, reset]), Ini);
        // One that was halted while it started waits for what it needs.
        assert_eq!(walk(Start::Automatic, true, &[Halt]).after(SelectModeAutomatic), None);
        assert_eq!(state(Start::Automatic, true, &[Halt, reset]), Pre);
        assert_eq!(state(Start::Automatic, true, &[Halt, reset, Loaded]), Con);
        assert_eq!(state(Start::Automatic, true, &[Halt, Loaded]), Hal);
    }

    #[test]
    fn a_fault_leads_back_only_when_nothing_is_broken() {
        use Step::{Abort, Accepted, Cleared, Fault, Halt, Loaded, SelectModeAutomatic};
        let reset = |broken| Step::Reset { broken };
        let state = |runs_free, steps: &[Step]| walk(Start::Automatic, runs_free, steps).state();
        assert_eq!(state(true, &[Loaded, Fault, Cleared]), Con);
        assert_eq!(state(false, &[Loaded, Accepted, Fault, Cleared]), Rea);
        assert_eq!(state(false, &[Loaded, Halt, Fault, Cleared]), Hal);
        assert_eq!(state(false, &[Fault, Cleared]), Pre);
        assert_eq!(state(false, &[Fault, Loaded, Cleared]), Rea);
        // Neither a reset nor the way by Halted passes by a fault that stands.
        assert_eq!(state(false, &[Loaded, Fault, reset(true)]), Err);
        assert_eq!(state(false, &[Loaded, Fault, Halt, SelectModeAutomatic]), Err);
        assert_eq!(state(false, &[Loaded, Fault, Halt, SelectModeAutomatic, Cleared]), Ini);
        assert_eq!(state(false, &[Loaded, Fault, Halt, Cleared, reset(false)]), Rea);
        assert_eq!(state(false, &[Loaded, Fault, reset(false)]), Rea);
        assert_eq!(walk(Start::Automatic, false, &[Loaded, Fault]).after(Abort), None);
    }

    #[test]
    fn a_stop_waits_for_the_frames_that_were_taken() {
        use Step::{Abort, Loaded, NoneFree, StartContinuous, Stop};
        let stopping = walk(Start::Automatic, true, &[Loaded, Stop]);
        assert!(stopping.state() == Con && !stopping.judges_free());
        assert_eq!(stopping.after(NoneFree { triggered: false }).map(|after| after.state()), Some(Rea));
        assert_eq!(stopping.after(NoneFree { triggered: true }).map(|after| after.state()), Some(Sin));
        let again = walk(Start::Automatic, true, &[Loaded, Stop, Abort, StartContinuous]);
        assert!(again.judges_free());
        assert_eq!(walk(Start::Automatic, false, &[Loaded]).after(StartContinuous), None);
    }

    #[test]
    fn numbers_are_those_of_the_registers() {
        for (number, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(state.number()), number);
            assert_eq!(state.is_ready(), number >= 4);
        }
    }
}
