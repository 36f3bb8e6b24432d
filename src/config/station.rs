//! A station as it is meant: validated, with paths resolved against the files that name them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::access::{Door, door};
use super::camera::{CameraSettings, resolve};
use super::device::DeviceChoice;
use super::file::{LogLevel, ModbusFile, StationFile, TcpFile};
use super::gpio::{self, GpioOutput};
use super::http::{self, HttpSettings};
use super::problem::{ConfigError, Problem, read};
use super::record::{ArchiveSettings, StoreLimits};
use super::telling::{MqttSettings, WebhookSettings};
use crate::inspection::station_state::Start;

/// Where inspections go.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputSettings {
    /// The file of events.
    pub events: PathBuf,
    /// Size at which it is rotated, bytes.
    pub events_max_bytes: u64,
    /// Lines that tell verdicts to the machine.
    pub gpio: Vec<GpioOutput>,
}

/// A validated station.
#[derive(Debug, Clone, PartialEq)]
pub struct Station {
    /// Where it was read from.
    pub path: PathBuf,
    /// What is written there.
    pub file: StationFile,
    /// Name of the station.
    pub name: String,
    /// Name of the line.
    pub line: String,
    /// Where networks run.
    pub device: DeviceChoice,
    /// Folder of public keys.
    pub keys: Option<PathBuf>,
    /// Folder of calibrations that were made here.
    pub calibrations: Option<PathBuf>,
    /// Folder of what the station keeps.
    pub state: PathBuf,
    /// How much is logged.
    pub log: LogLevel,
    /// Where the station goes by itself once it has started.
    pub start: Start,
    /// Milliseconds that a stop may take.
    pub shutdown_timeout_ms: u64,
    /// The cameras, at least one.
    pub cameras: Vec<CameraSettings>,
    /// The outputs.
    pub outputs: OutputSettings,
    /// Minutes from one challenge with golden parts to the next; absent is none.
    pub challenge_min: Option<u32>,
    /// How much the database keeps.
    pub store: StoreLimits,
    /// Which pictures are kept.
    pub archive: Option<ArchiveSettings>,
    /// The broker that is told.
    pub mqtt: Option<MqttSettings>,
    /// The server that is told.
    pub webhook: Option<WebhookSettings>,
    /// The HTTP service; absent is none.
    pub http: Option<HttpSettings>,
    /// Where commands are taken by TCP; absent is nowhere.
    pub tcp: Option<Door>,
    /// Where registers are read and written; absent is nowhere.
    pub modbus: Option<Door>,
}

/// Reads a station with its recipes.
///
/// # Errors
/// Everything that is wrong, at once as far as the files can be read.
pub fn load(path: &Path) -> Result<Station, ConfigError> {
    let file: StationFile = read(path).map_err(|problem| ConfigError(vec![problem]))?;
    let base = path.parent().unwrap_or(Path::new(""));
    let mut problems = Vec::new();
    let mut problem = |key: String, message: String| {
        problems.push(Problem { file: path.to_path_buf(), key, message });
    };
    if file.station.is_empty() {
        problem("station".into(), "is empty; give the station a name".into());
    }
    if file.cameras.is_empty() {
        problem("cameras".into(), "is empty; add at least one [[cameras]]".into());
    }
    let mut names = BTreeSet::new();
    for (index, camera) in file.cameras.iter().enumerate() {
        if !names.insert(camera.name.as_str()) {
            problem(format!("cameras[{index}].name"), format!("'{}' is used twice", camera.name));
        }
    }
    if !(1..=4096).contains(&file.outputs.events_max_mib) {
        problem("outputs.events_max_mib".into(), format!("{}: must be 1 to 4096", file.outputs.events_max_mib));
    }
    let (http, wrong) = file.http.as_ref().map_or((None, Vec::new()), |http| http::resolve(http, base));
    for (key, message) in wrong {
        problem(key.into(), message);
    }
    let challenge_min = file.challenge.as_ref().map(|challenge| challenge.every_min);
    if let Some(minutes) = challenge_min.filter(|minutes| !(1..=10_080).contains(minutes)) {
        problem("challenge.every_min".into(), format!("{minutes}: must be 1 to 10080, a week"));
    }
    let mut address = |key: &str, text: &str| match text.parse::<SocketAddr>() {
        Ok(address) => Some(address),
        Err(_) => {
            let remedy = "is no address with a port, such as 127.0.0.1:7000";
            problem(key.into(), format!("'{text}' {remedy}"));
            None
        }
    };
    let tcp = file.tcp.as_ref().and_then(|tcp| address("tcp.listen", &tcp.listen));
    let modbus = file.modbus.as_ref().and_then(|modbus| address("modbus.listen", &modbus.listen));
    let listeners = [("http", http.as_ref().map(|http| http.listen)), ("tcp", tcp), ("modbus", modbus)];
    for (place, (name, listen)) in listeners.iter().enumerate() {
        // Port 0 is whichever is free.
        let taken =
            listeners[..place].iter().find(|(_, other)| other == listen && listen.is_some_and(|a| a.port() > 0));
        if let Some((other, _)) = taken {
            problem(format!("{name}.listen"), format!("is the address of [{other}] already; take another port"));
        }
    }
    let tcp = file.tcp.as_ref().and_then(|tcp_file| {
        let TcpFile { allow, level, .. } = tcp_file;
        door("tcp", tcp, allow.as_deref(), *level, &mut problem)
    });
    let modbus = file.modbus.as_ref().and_then(|modbus_file| {
        let ModbusFile { allow, level, .. } = modbus_file;
        door("modbus", modbus, allow.as_deref(), *level, &mut problem)
    });
    for (key, message) in gpio::problems(&file) {
        problem(key, message);
    }
    let mut said = |(key, message): (&'static str, String)| problem(key.into(), message);
    let store = file.store.resolve().map_err(&mut said).ok();
    let mqtt =
        file.mqtt.as_ref().and_then(|mqtt| mqtt.resolve(base, &file.line, &file.station).map_err(&mut said).ok());
    let webhook = file.webhook.as_ref().and_then(|webhook| webhook.resolve(base).map_err(&mut said).ok());
    let archive = file.archive.as_ref().and_then(|archive| archive.resolve(base).map_err(&mut said).ok());
    let mut cameras = Vec::new();
    for (index, camera) in file.cameras.iter().enumerate() {
        match resolve(camera, base, path, index) {
            Ok(settings) => cameras.push(settings),
            Err(found) => problems.extend(found),
        }
    }
    let mut numbers: BTreeMap<u16, &str> = BTreeMap::new();
    for (recipe, _) in cameras.iter().flat_map(|camera| &camera.recipes) {
        let Some(number) = recipe.number else { continue };
        let id = recipe.id.0.as_str();
        let other = *numbers.entry(number).or_insert(id);
        if other != id {
            let message = format!("{number} is the number of '{other}' and of '{id}'; a number names one recipe");
            problems.push(Problem { file: path.to_path_buf(), key: "number".into(), message });
        }
    }
    let Some(store) = store.filter(|_| problems.is_empty()) else { return Err(ConfigError(problems)) };
    Ok(Station {
        path: path.to_path_buf(),
        file: file.clone(),
        name: file.station,
        line: file.line,
        device: file.device,
        keys: file.keys.map(|keys| base.join(keys)),
        calibrations: file.calibrations.map(|folder| base.join(folder)),
        state: base.join(file.state),
        log: file.log,
        start: file.start,
        shutdown_timeout_ms: file.shutdown_timeout_ms,
        cameras,
        outputs: OutputSettings {
            events: base.join(file.outputs.events),
            events_max_bytes: file.outputs.events_max_mib << 20,
            gpio: file.outputs.gpio,
        },
        challenge_min,
        store,
        archive,
        mqtt,
        webhook,
        http,
        tcp,
        modbus,
    })
}

#[cfg(test)]
mod tests {
    use super::super::camera::{CameraKind, NokhwaSettings};
    use super::*;
    use crate::inspection::layout::FourCc;

    const STATION: &str = r#"
        station = "one"
        [[cameras]]
        name = "top"
        recipe = "r.toml"
        source = { kind = "synthetic", product = "washer" }
        [outputs]
        events = "events.ndjson"
    "#;
    const RECIPE: &str = "id = 'r'\nbundle = 'b'\nsteps = 2\n";

    fn load_texts(station: &str, recipe: &str) -> Result<Station, ConfigError> {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::write(dir.path().join("r.toml"), recipe).expect("writes");
        let path = dir.path().join("dsad.toml");
        std::fs::write(&path, station).expect("writes");
        load(&path)
    }

    #[test]
    fn paths_are_relative_to_their_file() {
        let station = load_texts(STATION, RECIPE).expect("valid");
        assert!(station.cameras[0].recipes[0].1.is_absolute() && station.cameras[0].recipes[0].1.ends_with("b"));
        assert!(!station.cameras[0].paced());
    }

    #[test]
    fn a_misspelt_key_is_refused_with_a_suggestion() {
        let error = load_texts(&STATION.replace("events =", "evnts ="), RECIPE).expect_err("refused").to_string();
        assert!(error.contains("did you mean 'events'") && error.contains("dsad.toml"), "{error}");
        let error = load_texts(STATION, &RECIPE.replace("steps", "stps")).expect_err("refused").to_string();
        assert!(error.contains("did you mean 'steps'") && error.contains("r.toml"), "{error}");
        let error = load_texts(&STATION.replace("washer", "wascher"), RECIPE).expect_err("refused").to_string();
        assert!(error.contains("did you mean 'washer'"), "{error}");
    }

    #[test]
    fn a_webcam_is_what_nokhwa_can_do() {
        let with = |keys: &str| {
            let source = format!("{{ kind = \"nokhwa\"{keys} }}");
            load_texts(&STATION.replace("{ kind = \"synthetic\", product = \"washer\" }", &source), RECIPE)
        };
        let station = with("").expect("valid");
        let any = NokhwaSettings { index: 0, format: None, size: None, fps: None, silence_s: 5.0 };
        assert_eq!(station.cameras[0].kind, CameraKind::Nokhwa(any));
        assert!(station.cameras[0].paced());
        let station =
            with(", index = 2, format = \"yuyv\", size = [640, 480], fps = 30.0, silence_s = 2.0").expect("valid");
        let format = Some(FourCc(*b"YUYV"));
        let set = NokhwaSettings { index: 2, format, size: Some([640, 480]), fps: Some(30), silence_s: 2.0 };
        assert_eq!(station.cameras[0].kind, CameraKind::Nokhwa(set));
        let ConfigError(problems) =
            with(", format = \"GREY\", size = [0, 480], fps = 7.5, silence_s = 0.0").expect_err("refused");
        let keys: Vec<&str> = problems.iter().map(|p| p.key.rsplit('.').next().unwrap_or_default()).collect();
        assert_eq!(keys, ["silence_s", "size", "format", "fps"]);
        assert!(problems[2].message.contains("GREY") && problems[2].message.contains("v4l2"), "{problems:?}");
        let error = with(", device = \"/dev/video0\"").expect_err("refused").to_string();
        assert!(error.contains("device") && error.contains("index"), "{error}");
    }

    #[test]
    fn all_problems_are_named_at_once() {
        let station = format!("{STATION}[http]\nlisten = 'localhost'");
        let station = station.replace("\"one\"", "\"\"").replace("\"washer\"", "\"washer\", defect_rate = 2.0");
        let recipe = RECIPE.replace("'r'", "''").replace("steps = 2", "steps = 2\nsensitivity = 3.0");
        let ConfigError(problems) = load_texts(&station, &recipe).expect_err("refused");
        let keys: Vec<&str> = problems.iter().map(|p| p.key.as_str()).collect();
        assert_eq!(keys, ["station", "http.listen", "cameras[0].source.defect_rate", "id", "sensitivity"]);
    }
}
