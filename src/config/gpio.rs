//! GPIO lines and what they are for, as an operator writes it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::file::StationFile;
use super::problem::did_you_mean;

/// Longest pulse, gap or heartbeat, milliseconds.
const LONGEST_MS: u32 = 60_000;

/// A line of a GPIO chip. "Pin", because a line is what the parts go along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Path of the chip, or its name or label as `dsad gpio` lists them; absent: the chip that has a line of this name.
    pub chip: Option<String>,
    /// Number or name of the line.
    pub line: PinLine,
    /// Whether the line is active while its voltage is low.
    #[serde(default)]
    pub active_low: bool,
}

/// Which line of a chip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a line's number or its name")]
pub enum PinLine {
    /// By its number, from 0.
    Number(u32),
    /// By its name.
    Name(String),
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.line {
            PinLine::Number(number) => write!(f, "line {number}")?,
            PinLine::Name(name) => write!(f, "line '{name}'")?,
        }
        self.chip.as_ref().map_or(Ok(()), |chip| write!(f, " of {chip}"))
    }
}

impl Pin {
    /// What is wrong, if anything: the key, and the words.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        match (&self.chip, &self.line) {
            (None, PinLine::Number(number)) => {
                Some(("chip", format!("is missing: line {number} of which chip? `dsad gpio` lists them")))
            }
            (Some(chip), _) if chip.is_empty() => Some(("chip", "is empty; `dsad gpio` lists the chips".into())),
            (_, PinLine::Name(name)) if name.is_empty() => {
                Some(("line", "is empty; `dsad gpio` lists the names, and a line without one has its number".into()))
            }
            _ => None,
        }
    }

    /// Whether both are written as the same line.
    fn is(&self, other: &Pin) -> bool {
        (&self.chip, &self.line) == (&other.chip, &other.line)
    }
}

/// Which change of an input is an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EdgeKind {
    /// From inactive to active.
    #[default]
    Rising,
    /// From active to inactive.
    Falling,
}

/// What an open input is drawn to, where the chip can do that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// To high voltage.
    PullUp,
    /// To low voltage.
    PullDown,
    /// To nothing.
    Disabled,
}

/// An input whose edges trigger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GpioInput {
    /// Path of the chip, or its name or label as `dsad gpio` lists them; absent: the chip that has a line of this name.
    pub chip: Option<String>,
    /// Number or name of the line.
    pub line: PinLine,
    /// Whether the line is active while its voltage is low.
    #[serde(default)]
    pub active_low: bool,
    /// Which change counts.
    #[serde(default)]
    pub edge: EdgeKind,
    /// How long the line must stay as it is before the change counts, microseconds; 0 is not at all.
    #[serde(default)]
    pub debounce_us: u32,
    /// Absent: as the chip has it.
    pub bias: Option<Bias>,
}

impl GpioInput {
    /// The line.
    pub fn pin(&self) -> Pin {
        Pin { chip: self.chip.clone(), line: self.line.clone(), active_low: self.active_low }
    }

    /// What is wrong, if anything: the key, and the words.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let long = (self.debounce_us > 1_000_000)
            .then(|| ("debounce_us", format!("{}: must be at most 1000000, a second", self.debounce_us)));
        self.pin().problem().or(long)
    }
}

/// One `[[outputs.gpio]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "signal", rename_all = "snake_case", deny_unknown_fields)]
pub enum GpioOutput {
    /// A pulse for every accepted part: the only output that is active for a good one.
    Pass {
        /// The line.
        pin: Pin,
        /// Of which cameras; absent is all.
        cameras: Option<Vec<String>>,
        /// How long a pulse is, milliseconds.
        pulse_ms: u32,
        /// How long the line is inactive between two pulses at least, and how short a pulse may be cut for the next.
        #[serde(default = "default_gap")]
        gap_ms: u32,
        /// From the trigger, or the capture where there is none, to the latest moment at which a pulse may begin.
        window_ms: Option<u32>,
    },
    /// A pulse for every rejected part.
    Fail {
        /// The line.
        pin: Pin,
        /// Of which cameras; absent is all.
        cameras: Option<Vec<String>>,
        /// How long a pulse is, milliseconds.
        pulse_ms: u32,
        /// As of `pass`.
        #[serde(default = "default_gap")]
        gap_ms: u32,
    },
    /// Active while the line is to stop.
    Hold {
        /// The line.
        pin: Pin,
        /// Of which cameras; absent is all.
        cameras: Option<Vec<String>>,
    },
    /// Changes again and again while the station is ready, stays inactive otherwise.
    Ready {
        /// The line.
        pin: Pin,
        /// How long it stays as it is, milliseconds.
        #[serde(default = "default_period")]
        period_ms: u32,
    },
    /// A pulse for every rejected part when it is at the ejector.
    Eject {
        /// The line.
        pin: Pin,
        /// Of which cameras; absent is all.
        cameras: Option<Vec<String>>,
        /// How long a pulse is, milliseconds.
        pulse_ms: u32,
        /// From the trigger, or the capture where there is none, to the pulse.
        delay_ms: u32,
    },
}

fn default_gap() -> u32 {
    5
}

fn default_period() -> u32 {
    250
}

impl GpioOutput {
    /// The word in the configuration, in logs and in metrics.
    pub fn word(&self) -> &'static str {
        match self {
            GpioOutput::Pass { .. } => "pass",
            GpioOutput::Fail { .. } => "fail",
            GpioOutput::Hold { .. } => "hold",
            GpioOutput::Ready { .. } => "ready",
            GpioOutput::Eject { .. } => "eject",
        }
    }

    /// The line.
    pub fn pin(&self) -> &Pin {
        match self {
            GpioOutput::Pass { pin, .. }
            | GpioOutput::Fail { pin, .. }
            | GpioOutput::Hold { pin, .. }
            | GpioOutput::Ready { pin, .. }
            | GpioOutput::Eject { pin, .. } => pin,
        }
    }

    /// Of which cameras; absent is all.
    pub fn cameras(&self) -> Option<&[String]> {
        match self {
            GpioOutput::Pass { cameras, .. }
            | GpioOutput::Fail { cameras, .. }
            | GpioOutput::Hold { cameras, .. }
            | GpioOutput::Eject { cameras, .. } => cameras.as_deref(),
            GpioOutput::Ready { .. } => None,
        }
    }

    /// Times with the least and most that they may be.
    fn times(&self) -> Vec<(&'static str, u32, u32, u32)> {
        let pulse = |ms: &u32| ("pulse_ms", *ms, 1, LONGEST_MS);
        let gap = |ms: &u32, pulse: &u32| ("gap_ms", *ms, 1, (*pulse).max(1));
        match self {
            GpioOutput::Pass { pulse_ms, gap_ms, window_ms, .. } => {
                let window = window_ms.map(|ms| ("window_ms", ms, 1, LONGEST_MS));
                [pulse(pulse_ms), gap(gap_ms, pulse_ms)].into_iter().chain(window).collect()
            }
            GpioOutput::Fail { pulse_ms, gap_ms, .. } => vec![pulse(pulse_ms), gap(gap_ms, pulse_ms)],
            GpioOutput::Hold { .. } => Vec::new(),
            GpioOutput::Ready { period_ms, .. } => vec![("period_ms", *period_ms, 10, LONGEST_MS)],
            GpioOutput::Eject { pulse_ms, .. } => vec![pulse(pulse_ms)],
        }
    }
}

/// Everything that is wrong with the lines of a station: keys, and words.
pub fn problems(file: &StationFile) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut inputs: Vec<(String, Pin)> = Vec::new();
    for (index, camera) in file.cameras.iter().enumerate() {
        let Some(input) = camera.trigger.input() else { continue };
        let key = format!("cameras[{index}].trigger.input");
        found.extend(input.problem().map(|(name, message)| (format!("{key}.{name}"), message)));
        if let Some((other, _)) = inputs.iter().find(|(_, other)| input.pin().is(other)) {
            found.push((key.clone(), format!("{} is used twice: {other} has it", input.pin())));
        }
        inputs.push((key, input.pin()));
    }
    let cameras: Vec<&str> = file.cameras.iter().map(|camera| camera.name.as_str()).collect();
    found.extend(of_outputs(&file.outputs.gpio, &inputs, &cameras, file.shutdown_timeout_ms));
    found
}

/// What is wrong with outputs, beside the lines of these inputs.
fn of_outputs(
    outputs: &[GpioOutput],
    inputs: &[(String, Pin)],
    cameras: &[&str],
    shutdown_ms: u64,
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut lines: Vec<(String, &Pin)> = inputs.iter().map(|(key, pin)| (key.clone(), pin)).collect();
    for (index, output) in outputs.iter().enumerate() {
        let key = |name: &str| format!("outputs.gpio[{index}].{name}");
        let pin = output.pin();
        found.extend(pin.problem().map(|(name, message)| (key(&format!("pin.{name}")), message)));
        if let Some((other, _)) = lines.iter().find(|(_, other)| pin.is(other)) {
            found.push((key("pin"), format!("{pin} is used twice: {other} has it; every signal needs its own")));
        }
        lines.push((key("pin"), pin));
        for (name, value, least, most) in output.times() {
            if !(least..=most).contains(&value) {
                let why = if name == "gap_ms" { ": no more than pulse_ms" } else { "" };
                found.push((key(name), format!("{value}: must be {least} to {most}{why}")));
            }
        }
        if let GpioOutput::Eject { pulse_ms, delay_ms, .. } = output
            && u64::from(*pulse_ms) + u64::from(*delay_ms) >= shutdown_ms
        {
            let message = format!(
                "{delay_ms}: with the pulse it must be less than shutdown_timeout_ms, {shutdown_ms}: a stop waits for the \
                 rejects that are on their way"
            );
            found.push((key("delay_ms"), message));
        }
        for camera in output.cameras().unwrap_or_default() {
            if !cameras.contains(&camera.as_str()) {
                let hint = did_you_mean(camera, cameras.iter().copied());
                let message = format!("no camera '{camera}'{hint}; there are: {}", cameras.join(", "));
                found.push((key("cameras"), message));
            }
        }
        if output.cameras().is_some_and(<[String]>::is_empty) {
            found.push((key("cameras"), "is empty: the output would never move; leave it out for all cameras".into()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Written {
        gpio: Vec<GpioOutput>,
    }

    fn outputs(text: &str) -> Result<Vec<GpioOutput>, String> {
        toml::from_str::<Written>(text).map(|written| written.gpio).map_err(|error| error.message().to_owned())
    }

    fn keys(text: &str) -> Vec<String> {
        let found = of_outputs(&outputs(text).expect("parses"), &[], &["top", "side"], 10_000);
        found.into_iter().map(|(key, _)| key.trim_start_matches("outputs.gpio").to_owned()).collect()
    }

    #[test]
    fn all_signals_are_read() {
        let text = r#"
            gpio = [
                { signal = "pass", pin = { line = "PASS" }, pulse_ms = 20, window_ms = 400, cameras = ["top"] },
                { signal = "fail", pin = { chip = "/dev/gpiochip0", line = 6 }, pulse_ms = 20, gap_ms = 2 },
                { signal = "hold", pin = { chip = "/dev/gpiochip0", line = 7, active_low = true } },
                { signal = "ready", pin = { line = "READY" } },
                { signal = "eject", pin = { line = "EJECT" }, pulse_ms = 30, delay_ms = 800 },
            ]"#;
        let read = outputs(text).expect("parses");
        assert_eq!(of_outputs(&read, &[], &["top"], 10_000), []);
        let words: Vec<&str> = read.iter().map(GpioOutput::word).collect();
        assert_eq!(words, ["pass", "fail", "hold", "ready", "eject"]);
        assert_eq!(read[1].pin().to_string(), "line 6 of /dev/gpiochip0");
        assert!(read[2].pin().active_low && !read[1].pin().active_low);
        assert!(matches!(read[3], GpioOutput::Ready { period_ms: 250, .. }));
        assert!(matches!(read[0], GpioOutput::Pass { gap_ms: 5, window_ms: Some(400), .. }));
    }

    #[test]
    fn a_key_of_another_signal_is_refused() {
        let error =
            outputs(r#"gpio = [{ signal = "hold", pin = { line = "A" }, pulse_ms = 5 }]"#).expect_err("refused");
        assert!(error.contains("unknown field `pulse_ms`"), "{error}");
        let error = outputs(r#"gpio = [{ signal = "stop", pin = { line = "A" } }]"#).expect_err("refused");
        assert!(error.contains("`stop`") && error.contains("`hold`"), "{error}");
        let error = outputs(r#"gpio = [{ signal = "hold", pin = { line = 1.5 } }]"#).expect_err("refused");
        assert!(error.contains("number or its name"), "{error}");
    }

    #[test]
    fn what_cannot_be_is_named() {
        let one = |rest: &str| keys(&format!("gpio = [{{ signal = {rest} }}]"));
        assert_eq!(one(r#""hold", pin = { line = 3 }"#), ["[0].pin.chip"]);
        assert_eq!(one(r#""hold", pin = { line = "" }"#), ["[0].pin.line"]);
        assert_eq!(one(r#""pass", pin = { line = "A" }, pulse_ms = 0"#), ["[0].pulse_ms", "[0].gap_ms"]);
        assert_eq!(one(r#""pass", pin = { line = "A" }, pulse_ms = 4"#), ["[0].gap_ms"]);
        assert_eq!(one(r#""pass", pin = { line = "A" }, pulse_ms = 5, window_ms = 0"#), ["[0].window_ms"]);
        assert_eq!(one(r#""ready", pin = { line = "A" }, period_ms = 5"#), ["[0].period_ms"]);
        assert_eq!(one(r#""eject", pin = { line = "A" }, pulse_ms = 5, delay_ms = 9995"#), ["[0].delay_ms"]);
        assert_eq!(one(r#""hold", pin = { line = "A" }, cameras = ["tip"]"#), ["[0].cameras"]);
        assert_eq!(one(r#""hold", pin = { line = "A" }, cameras = []"#), ["[0].cameras"]);
        let twice = r#"gpio = [{ signal = "hold", pin = { line = "A" } }, { signal = "ready", pin = { line = "A" } }]"#;
        assert_eq!(keys(twice), ["[1].pin"]);
        let read = outputs(r#"gpio = [{ signal = "hold", pin = { line = "A" } }]"#).expect("parses");
        let input = Pin { chip: None, line: PinLine::Name("A".into()), active_low: true };
        let found = of_outputs(&read, &[("cameras[0].trigger.gpio".into(), input)], &[], 10_000);
        assert!(found[0].1.contains("cameras[0].trigger.gpio has it"), "{found:?}");
    }

    #[test]
    fn inputs_are_read() {
        let read = |text| toml::from_str::<GpioInput>(text).expect("parses");
        let input = read("line = 'TRIGGER'\nedge = 'falling'\ndebounce_us = 1000\nbias = 'pull_down'");
        assert_eq!((input.edge, input.bias, input.problem()), (EdgeKind::Falling, Some(Bias::PullDown), None));
        assert_eq!(read("line = 4").problem().map(|(key, _)| key), Some("chip"));
        let slow = read("line = 'A'\ndebounce_us = 2000000");
        assert_eq!(slow.problem().map(|(key, _)| key), Some("debounce_us"));
        assert_eq!(slow.edge, EdgeKind::Rising);
    }
}
