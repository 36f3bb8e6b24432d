//! GPIO chips, their lines, and where a pin of the configuration is among them.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use gpiocdev::Request;
use gpiocdev::chip::{Chip, chips as paths};
use gpiocdev::line::{Bias, Direction};
use gpiocdev::request::Builder;
use serde::Serialize;

use crate::config::gpio::{Pin, PinLine};

/// Who a line belongs to while this program has it.
const CONSUMER: &str = "dsad";

/// A GPIO chip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedChip {
    /// Its path.
    pub path: PathBuf,
    /// The kernel's name, which may change when chips come and go.
    pub name: String,
    /// What kind of chip it is.
    pub label: String,
    /// Its lines.
    pub lines: Vec<ListedLine>,
    /// Why nothing is known about it, if so.
    pub problem: Option<String>,
}

/// A line of a chip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedLine {
    /// Its number.
    pub line: u32,
    /// Its name; many have none.
    pub name: String,
    /// Whether a program or a driver has it.
    pub used: bool,
    /// Which.
    pub consumer: String,
    /// `in` or `out`.
    pub direction: &'static str,
    /// `pull_up`, `pull_down` or `disabled`; absent is as the chip has it.
    pub bias: Option<&'static str>,
}

/// All chips.
pub fn chips() -> Vec<ListedChip> {
    paths().unwrap_or_default().iter().map(|path| listed(path)).collect()
}

fn listed(path: &Path) -> ListedChip {
    let unknown = |problem| ListedChip {
        path: path.to_path_buf(),
        name: String::new(),
        label: String::new(),
        lines: Vec::new(),
        problem: Some(problem),
    };
    let chip = match open(path) {
        Ok(chip) => chip,
        Err(problem) => return unknown(problem),
    };
    let info = match chip.info() {
        Ok(info) => info,
        Err(error) => return unknown(error.to_string()),
    };
    let lines = (0..info.num_lines).filter_map(|number| chip.line_info(number).ok()).map(|line| ListedLine {
        line: line.offset,
        name: line.name,
        used: line.used,
        consumer: line.consumer,
        direction: match line.direction {
            Direction::Input => "in",
            Direction::Output => "out",
        },
        bias: line.bias.map(|bias| match bias {
            Bias::PullUp => "pull_up",
            Bias::PullDown => "pull_down",
            Bias::Disabled => "disabled",
        }),
    });
    ListedChip { path: path.to_path_buf(), name: info.name, label: info.label, lines: lines.collect(), problem: None }
}

/// A chip, or what stands in the way.
fn open(path: &Path) -> Result<Chip, String> {
    // Opened here first: the crate's own errors do not say what kind they are.
    OpenOptions::new().read(true).open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "is not there; `dsad gpio` lists the chips that are".to_owned(),
        io::ErrorKind::PermissionDenied => format!("{error}; the user must be in the group of the chip (docs/gpio.md)"),
        _ => error.to_string(),
    })?;
    Chip::from_path(path).map_err(|error| error.to_string())
}

/// Path of the chip and number of the line that a pin means now: chips are numbered anew when they come and go.
///
/// # Errors
/// No such chip or line, or more than one.
pub fn find(pin: &Pin) -> Result<(PathBuf, u32), String> {
    let by_path = pin.chip.as_ref().filter(|chip| chip.contains('/')).map(PathBuf::from);
    let candidates = match &by_path {
        Some(path) => vec![path.clone()],
        None => paths().map_err(|error| format!("/dev: {error}"))?,
    };
    let mut found = Vec::new();
    let mut unread = None;
    for path in candidates {
        let said = |reason: String| format!("{}: {reason}", path.display());
        let opened =
            open(&path).and_then(|chip| chip.info().map(|info| (chip, info)).map_err(|error| error.to_string()));
        let (chip, info) = match opened {
            Ok(opened) => opened,
            Err(reason) if by_path.is_some() => return Err(said(reason)),
            Err(reason) => {
                unread = Some(said(reason));
                continue;
            }
        };
        let named = pin.chip.as_ref().filter(|_| by_path.is_none());
        if named.is_some_and(|name| *name != info.name && *name != info.label) {
            continue;
        }
        match &pin.line {
            PinLine::Number(number) if *number < info.num_lines => found.push((path, *number)),
            PinLine::Number(number) => {
                return Err(said(format!("no line {number}: it has {} lines, numbered from 0", info.num_lines)));
            }
            PinLine::Name(name) => {
                let lines = (0..info.num_lines).filter_map(|number| chip.line_info(number).ok());
                found.extend(lines.filter(|line| line.name == *name).map(|line| (path.clone(), line.offset)));
            }
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => {
            let unread = unread.map_or(String::new(), |reason| format!(" ({reason})"));
            Err(format!("{pin} is not there{unread}; `dsad gpio` lists the chips and lines that are"))
        }
        _ => {
            let places: Vec<String> =
                found.iter().map(|(path, number)| format!("line {number} of {}", path.display())).collect();
            Err(format!("{pin} is not the only one: {}; give the chip's path and the line's number", places.join(", ")))
        }
    }
}

/// A line of its own for this program; `configure` says what for.
///
/// # Errors
/// No such line, no permission, a line that somebody has, or one that cannot do it.
pub(super) fn request(pin: &Pin, configure: impl FnOnce(&mut Builder)) -> Result<Request, String> {
    let (path, number) = find(pin)?;
    let mut builder = Request::builder();
    builder.on_chip(&path).with_consumer(CONSUMER).with_line(number);
    if pin.active_low {
        builder.as_active_low();
    }
    configure(&mut builder);
    builder.request().map_err(|error| {
        let user = Chip::from_path(&path).and_then(|chip| chip.line_info(number)).ok().filter(|line| line.used);
        match user {
            Some(line) => format!("{pin}: '{}' has it; end that first", line.consumer),
            None => format!("{pin}: {error}"),
        }
    })
}
