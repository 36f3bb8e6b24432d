//! Triggers: what asks for a part to be inspected, besides a camera that runs free.

use std::fmt;

use super::station_state::State;
use super::time::Timestamp;

/// What makes frames be inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TriggerMode {
    /// Every frame is inspected; the newest one wins.
    #[default]
    Free,
    /// The camera takes a frame when its own line rises: every frame is of a part.
    Line,
    /// A frame is inspected for each trigger that is accepted: the first one after it.
    Asked(Asked),
}

impl TriggerMode {
    /// Whether every frame stands for a part: what is lost is then no matter of course.
    pub fn is_triggered(self) -> bool {
        self != Self::Free
    }
}

/// How a trigger and a frame find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// From the trigger to the part before the camera, nanoseconds.
    pub delay_nanos: u64,
    /// A trigger sooner than this after the last is a contact that bounces, nanoseconds.
    pub debounce_nanos: u64,
    /// Longest wait for a frame of the part, nanoseconds.
    pub patience_nanos: u64,
}

/// An edge of a trigger line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// When it came, by the clock of the system's kernel.
    pub at: Timestamp,
    /// Edges before it that were counted and given to nobody.
    pub missed: u64,
}

/// Why a trigger line gave no edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EdgeError {
    /// None within the bounded wait; ask again.
    Timeout,
    /// The line is gone; asked again, it is opened anew.
    Lost {
        /// What is wrong.
        reason: String,
    },
}

/// A line that gives edges. `next_edge` waits, but never longer than a tenth of a second or so.
pub trait EdgeSource: Send {
    /// Its name, in events.
    fn name(&self) -> &'static str;
    /// The next edge.
    ///
    /// # Errors
    /// None came in time, or the line is gone.
    fn next_edge(&mut self) -> Result<Edge, EdgeError>;
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// The trigger was accepted: it ends as exactly one inspection, with this number.
    Accepted {
        /// The camera.
        camera: String,
        /// Number of the inspection on that camera.
        frame_id: u64,
    },
    /// These cameras judge by the recipe from their next part on.
    Prepared {
        /// The cameras.
        cameras: Vec<String>,
    },
    /// The station is in this state now.
    Entered {
        /// The state.
        state: State,
    },
}

/// Why a command was refused. What is refused is no trigger: it gets no verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalCode {
    /// Nothing is inspected now: the station starts or stops.
    NotReady,
    /// It came within the debounce time of the last.
    Bounced,
    /// No camera, or no recipe, of that name; or it must be named.
    Unknown,
    /// The camera does not wait for triggers, or none runs free.
    NotTriggered,
    /// The station's state has no such command.
    WrongState,
    /// Whoever asks may not.
    Forbidden,
    /// Nobody could tell of it later: the audit trail takes nothing.
    NotAudited,
    /// The recipe has no thresholds.
    Uncalibrated,
}

impl RefusalCode {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::NotReady,
        Self::Bounced,
        Self::Unknown,
        Self::NotTriggered,
        Self::WrongState,
        Self::Forbidden,
        Self::NotAudited,
        Self::Uncalibrated,
    ];

    /// The number in registers, where 1 is what was done.
    pub fn number(self) -> u16 {
        match self {
            Self::NotReady => 2,
            Self::Bounced => 3,
            Self::Unknown => 4,
            Self::NotTriggered => 5,
            Self::WrongState => 6,
            Self::Forbidden => 7,
            Self::NotAudited => 8,
            Self::Uncalibrated => 9,
        }
    }

    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::NotReady => "not_ready",
            Self::Bounced => "bounced",
            Self::Unknown => "unknown",
            Self::NotTriggered => "not_triggered",
            Self::WrongState => "wrong_state",
            Self::Forbidden => "forbidden",
            Self::NotAudited => "not_audited",
            Self::Uncalibrated => "uncalibrated",
        }
    }
}

/// A refusal, for machines and for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What kind.
    pub code: RefusalCode,
    /// In words.
    pub text: String,
}

impl Refused {
    /// A refusal.
    pub fn new(code: RefusalCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.word(), self.text)
    }
}
