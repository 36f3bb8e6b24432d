//! The configuration files as they are written. Unknown keys are refused.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::device::DeviceChoice;
use super::gpio::{GpioInput, GpioOutput};
use super::record::{ArchiveFile, StoreFile};
use super::telling::{MqttFile, WebhookFile};
use crate::inspection::account::Level;
use crate::inspection::detect::StepChoice;
use crate::inspection::layout::FourCc;
use crate::inspection::line::{FailIf, OnFault};
use crate::inspection::polygon::PolygonRoi;
use crate::inspection::roi::Roi;
use crate::inspection::station_state::Start;
use crate::inspection::tiles::TileGrid;

/// `dsad.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StationFile {
    /// Name of the station, in every event.
    pub station: String,
    /// Name of the line, in every event.
    #[serde(default)]
    pub line: String,
    /// `cpu`, `cuda` or `cuda:N`.
    #[serde(default)]
    pub device: DeviceChoice,
    /// Folder of public keys (`*.pub`); with it, unsigned bundles are refused.
    pub keys: Option<PathBuf>,
    /// Folder of calibrations that `dsad calibrate` made here; they go before those of the bundles.
    pub calibrations: Option<PathBuf>,
    /// Folder of what the station keeps: events, accounts, certificates; made when it is not there.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// How much this program logs: `error`, `warn`, `info`, `debug` or `trace`. `RUST_LOG` goes before it.
    #[serde(default)]
    pub log: LogLevel,
    /// Where the station goes by itself once it has started.
    #[serde(default)]
    pub start: Start,
    /// Milliseconds that a stop may take before the process ends anyway.
    #[serde(default = "default_shutdown")]
    pub shutdown_timeout_ms: u64,
    /// The cameras.
    pub cameras: Vec<CameraFile>,
    /// Where inspections go.
    pub outputs: OutputsFile,
    /// Golden parts that are judged again and again; absent is never.
    pub challenge: Option<ChallengeFile>,
    /// How much the database keeps.
    #[serde(default)]
    pub store: StoreFile,
    /// Which pictures are kept; absent is none.
    pub archive: Option<ArchiveFile>,
    /// The MQTT broker that is told; absent is none.
    pub mqtt: Option<MqttFile>,
    /// The server that is told; absent is none.
    pub webhook: Option<WebhookFile>,
    /// The HTTP service; absent is none.
    pub http: Option<HttpFile>,
    /// Commands as lines of text over TCP; absent is none.
    pub tcp: Option<TcpFile>,
    /// Registers and coils over Modbus TCP; absent is none.
    pub modbus: Option<ModbusFile>,
}

/// How much this program logs; each level has those before it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// What needs somebody.
    Error,
    /// What may need somebody.
    Warn,
    /// What happens.
    #[default]
    Info,
    /// What a developer asks for.
    Debug,
    /// All of it.
    Trace,
}

fn default_state() -> PathBuf {
    "state".into()
}

fn default_shutdown() -> u64 {
    10_000
}

/// One `[[cameras]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CameraFile {
    /// Name, in every event.
    pub name: String,
    /// The recipe that judges its frames when the station starts.
    pub recipe: PathBuf,
    /// More recipes that are loaded, to be changed to by their id.
    #[serde(default)]
    pub more_recipes: Vec<PathBuf>,
    /// What kind of camera.
    pub source: SourceFile,
    /// What makes its frames be inspected; absent is every frame.
    #[serde(default)]
    pub trigger: TriggerFile,
}

/// What makes frames be inspected.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TriggerFile {
    /// Every frame; the newest wins.
    #[default]
    Free,
    /// The camera's own trigger line: every frame is of a part. Its mode is set by `controls` of the source.
    Line,
    /// Commands over HTTP or TCP.
    Network {
        /// Milliseconds from the trigger to the part before the camera.
        #[serde(default)]
        delay_ms: f64,
        /// Milliseconds after a trigger in which another is a bounce.
        #[serde(default)]
        debounce_ms: f64,
        /// Milliseconds that a frame of the part is waited for.
        #[serde(default = "default_wait")]
        wait_ms: f64,
    },
    /// Edges of a GPIO line; commands as well.
    Gpio {
        /// The line.
        input: GpioInput,
        /// As of `network`.
        #[serde(default)]
        delay_ms: f64,
        /// As of `network`.
        #[serde(default = "default_wait")]
        wait_ms: f64,
    },
}

impl TriggerFile {
    /// The line whose edges are triggers, if it is one.
    pub fn input(&self) -> Option<&GpioInput> {
        match self {
            Self::Gpio { input, .. } => Some(input),
            Self::Free | Self::Line | Self::Network { .. } => None,
        }
    }
}

fn default_wait() -> f64 {
    500.0
}

/// Where frames come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SourceFile {
    /// Pictures of a folder, once.
    Replay {
        /// The folder.
        folder: PathBuf,
        /// Frames per second; absent is as fast as they are judged.
        fps: Option<f64>,
    },
    /// The procedural product line.
    Synthetic {
        /// `washer`, `fabric` or `board`.
        product: String,
        /// Seed of all parts.
        #[serde(default)]
        seed: u64,
        /// Parts per second; absent is as fast as they are judged.
        fps: Option<f64>,
        /// Share of defective parts, 0 to 1.
        #[serde(default)]
        defect_rate: f64,
        /// Parts until the line ends; absent is never.
        parts: Option<u64>,
    },
    /// A camera by V4L2.
    V4l2 {
        /// Its path; one under `/dev/v4l` stays when it is plugged in again.
        device: PathBuf,
        /// FOURCC of its pictures, as `GREY`; absent is what the camera has, or the first that is read.
        format: Option<FourCc>,
        /// Columns and rows; absent is what the camera has.
        size: Option<[u32; 2]>,
        /// Pictures a second; absent is what the camera has.
        fps: Option<f64>,
        /// Controls by name, as `v4l2-ctl` and `dsad cameras` call them.
        #[serde(default)]
        controls: BTreeMap<String, i64>,
        /// Seconds without a picture after which the camera is opened anew; 0 is never, for cameras that wait for a trigger.
        #[serde(default = "default_silence")]
        silence_s: f64,
    },
    /// A webcam by `nokhwa`: for bringing a station up, never for a line.
    Nokhwa {
        /// Its number: 0 is `/dev/video0`.
        #[serde(default)]
        index: u32,
        /// FOURCC: YUYV, MJPG, NV12, RGB3 or BGR3; absent is the cheapest that the camera offers.
        format: Option<FourCc>,
        /// Columns and rows; absent is the first that the camera offers.
        size: Option<[u32; 2]>,
        /// Pictures a second, a whole number; absent is the highest rate.
        fps: Option<f64>,
        /// Seconds without a picture after which the camera is lost, and opened anew.
        #[serde(default = "default_silence")]
        silence_s: f64,
    },
}

fn default_silence() -> f64 {
    5.0
}

/// `[outputs]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputsFile {
    /// The file of events, one JSON object a line.
    pub events: PathBuf,
    /// Size at which the file is renamed to `.1` and begun anew, MiB.
    #[serde(default = "default_events_max")]
    pub events_max_mib: u64,
    /// Lines that tell verdicts to the machine.
    #[serde(default)]
    pub gpio: Vec<GpioOutput>,
}

fn default_events_max() -> u64 {
    256
}

/// `[challenge]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChallengeFile {
    /// Minutes from one challenge to the next.
    pub every_min: u32,
}

/// `[http]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpFile {
    /// Address and port, such as `127.0.0.1:8080`.
    pub listen: String,
    /// Whether `/readyz`, `/metrics` and the state are told without an account.
    #[serde(default = "yes")]
    pub open_reads: bool,
    /// Whether it is encrypted; absent is where the address is not of this machine alone.
    pub tls: Option<bool>,
    /// The plant's certificate, PEM; absent is one of the station's own making.
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
}

fn yes() -> bool {
    true
}

/// `[tcp]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpFile {
    /// Address and port, such as `192.168.0.10:7000`.
    pub listen: String,
    /// Who may connect: addresses and networks, such as `192.168.0.0/24`; absent is this machine alone.
    pub allow: Option<Vec<String>>,
    /// What whoever connects may command.
    #[serde(default = "default_level")]
    pub level: Level,
}

/// `[modbus]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModbusFile {
    /// Address and port, such as `192.168.0.10:502`.
    pub listen: String,
    /// Who may connect, as of `[tcp]`.
    pub allow: Option<Vec<String>>,
    /// What whoever connects may command, as of `[tcp]`.
    #[serde(default = "default_level")]
    pub level: Level,
}

fn default_level() -> Level {
    Level::Operator
}

/// A recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RecipeFile {
    /// Name, in every event.
    pub id: String,
    /// Number, for controllers that have no names: 1 to 65535, of one recipe alone; absent is none.
    pub number: Option<u16>,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// Product kind of a multi-class bundle; absent is the null class.
    pub class: Option<String>,
    /// Denoising steps that the bundle lists, or `"auto"`.
    pub steps: StepChoice,
    /// Inspected part of the frame, normalised; absent is all of it.
    #[serde(default)]
    pub roi: Roi,
    /// Polygons in the frame that are inspected, or are not.
    #[serde(default)]
    pub rois: Vec<PolygonRoi>,
    /// How parts are cut that are larger than the model's input; absent is as the bundle says.
    pub tiles: Option<TileGrid>,
    /// 0 to 1; 0.5 is the calibrated point, higher rejects more.
    #[serde(default = "default_sensitivity")]
    pub sensitivity: f64,
    /// Milliseconds from the trigger, or from the capture where there is none, until the verdict must be out; absent is never.
    pub deadline_ms: Option<u64>,
    /// How many bad frames reject a part; absent is one.
    pub fail_if: Option<FailIf>,
    /// Bad parts in a row at which the line stops; absent is never.
    pub hold_after: Option<u32>,
    /// What happens to a part that could not be judged.
    #[serde(default)]
    pub on_fault: OnFault,
    /// Controls of the camera for this product, by name.
    #[serde(default)]
    pub controls: BTreeMap<String, i64>,
}

fn default_sensitivity() -> f64 {
    0.5
}
