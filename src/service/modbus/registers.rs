//! The map of registers, coils and discrete inputs; `docs/modbus.md` is made of these tables.

use super::image::Slot;
use crate::inspection::station_state::{Fault, FaultKind};
use crate::service::metrics::{CameraReading, Reading};

/// Version of the map.
pub const VERSION: u16 = 1;
/// Registers of camera n begin at n times this.
pub const CAMERA: u16 = 100;
/// Discrete inputs of camera n begin at n times this.
pub const CAMERA_INPUTS: u16 = 10;

/// A row of the map: one register, or two for 32 bits, the high word first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its address from the beginning of its block, counted from 0.
    pub at: u16,
    /// Registers.
    pub words: u16,
    /// Its name.
    pub name: &'static str,
    /// `u16`, `u32`, `f32` or `bits`.
    pub kind: &'static str,
    /// Whether the controller writes it.
    pub writable: bool,
    /// What it means.
    pub text: &'static str,
}

const fn row(at: u16, name: &'static str, kind: &'static str, text: &'static str) -> Row {
    let words = if matches!(kind.as_bytes(), b"u32" | b"f32") { 2 } else { 1 };
    Row { at, words, name, kind, writable: false, text }
}

const fn input(at: u16, name: &'static str, kind: &'static str, text: &'static str) -> Row {
    Row { writable: true, ..row(at, name, kind, text) }
}

/// Of the station, from address 0.
pub const STATION_ROWS: [Row; 13] = [
    row(0, "version", "u16", "version of this map: 1"),
    row(
        1,
        "state",
        "u16",
        "0 Preoperational, 1 Halted, 2 Error, 3 Initialized, 4 Ready, 5 SingleExecution, 6 ContinuousExecution",
    ),
    row(2, "ready", "u16", "1 while parts can be judged, as `/readyz` says"),
    row(
        3,
        "heartbeat",
        "u16",
        "grows several times a second while all stages are well; one that stands still is a fault",
    ),
    row(4, "faults", "bits", "what is broken: bit 0 a camera, 1 the detector, 2 an output, 3 the store"),
    row(5, "cameras", "u16", "how many cameras there are, in the order of the configuration"),
    row(6, "acknowledge", "u16", "the last `request` that was done or refused"),
    row(7, "result", "u16", "what came of it: 0 none yet, 1 done, else a refusal"),
    input(8, "command", "u16", "the command, by its number"),
    input(
        9,
        "camera",
        "u16",
        "for StartSingleJob and PrepareRecipe: 1 is the first camera, 0 the only one, or all that know the recipe",
    ),
    input(10, "recipe", "u16", "for PrepareRecipe: the recipe's `number`"),
    input(11, "part", "u32", "for StartSingleJob and coils: the part's identity, 0 is none"),
    input(13, "request", "u16", "the command is done once when this changes"),
];

/// Of camera n, from address 100 n.
pub const CAMERA_ROWS: [Row; 15] = [
    row(0, "recipe", "u16", "number of the recipe that judges; 0 where it has none"),
    row(1, "flags", "bits", "bit 0 busy: an inspection is owed; bit 1 done: `number` is not acknowledged"),
    row(2, "number", "u16", "grows by one with each verdict, over 65535 to 1; 0 before the first"),
    row(3, "verdict", "u16", "0 none, 1 pass, 2 fail, 3 fault"),
    row(
        4,
        "reason",
        "u16",
        "0 none, 1 overrun, 2 camera_fault, 3 detector_fault, 4 uncalibrated, 5 image_score, 6 region",
    ),
    row(5, "score", "f32", "the score; 0 where nothing was judged"),
    row(7, "part", "u32", "the part's identity where it is a number, else 0"),
    row(9, "frame", "u32", "the last 32 bits of the inspection's number"),
    row(11, "passes", "u32", "passes since the start"),
    row(13, "fails", "u32", "fails since the start"),
    row(15, "faults", "u32", "faults since the start"),
    row(17, "overwritten", "u32", "verdicts that were not acknowledged when the next one came"),
    row(19, "refused", "u32", "triggers that were refused since the start, of all protocols"),
    row(21, "trigger", "u16", "what came of the last trigger by coil: 0 none yet, 1 accepted, else a refusal"),
    input(22, "seen", "u16", "write `number` here when the verdict is taken"),
];

/// What a controller wrote, and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Commands {
    /// Registers from `command` to `request`.
    pub written: [u16; 6],
    /// The last request that was answered.
    pub acknowledge: u16,
    /// With what.
    pub result: u16,
}

impl Commands {
    /// The part's identity.
    pub fn part(&self) -> u32 {
        u32::from(self.written[3]) << 16 | u32::from(self.written[4])
    }
}

/// Everything that can be read, at one moment.
pub struct Picture {
    /// The station.
    pub reading: Reading,
    /// The last verdicts, in the order of the cameras.
    pub slots: Vec<Slot>,
    /// The commands.
    pub commands: Commands,
}

impl Picture {
    /// A register.
    pub fn register(&self, address: u16) -> Option<u16> {
        match address / CAMERA {
            0 => self.station(address),
            n => {
                let place = usize::from(n) - 1;
                self.camera(self.slots.get(place)?, self.reading.cameras.get(place)?, address % CAMERA)
            }
        }
    }

    fn station(&self, at: u16) -> Option<u16> {
        let Reading { state, heartbeat, faults, obstacles, .. } = &self.reading;
        Some(match at {
            0 => VERSION,
            1 => state.number(),
            2 => u16::from(obstacles.is_empty()),
            3 => *heartbeat,
            4 => bits(faults),
            5 => self.slots.len() as u16,
            6 => self.commands.acknowledge,
            7 => self.commands.result,
            8..=13 => self.commands.written[usize::from(at) - 8],
            _ => return None,
        })
    }

    fn camera(&self, slot: &Slot, reading: &CameraReading, at: u16) -> Option<u16> {
        let half = |value: u32, first: u16| if at == first { (value >> 16) as u16 } else { value as u16 };
        let refused = reading.triggers_refused as u32;
        Some(match at {
            0 => reading.recipe_number.unwrap_or_default(),
            1 => u16::from(reading.owed > 0) | u16::from(slot.is_done()) << 1,
            2 => slot.number,
            3 => slot.verdict,
            4 => slot.reason,
            5 | 6 => half(slot.score.to_bits(), 5),
            7 | 8 => half(slot.part, 7),
            9 | 10 => half(slot.frame, 9),
            11 | 12 => half(slot.counts[0], 11),
            13 | 14 => half(slot.counts[1], 13),
            15 | 16 => half(slot.counts[2], 15),
            17 | 18 => half(slot.overwritten, 17),
            19 | 20 => half(refused, 19),
            21 => slot.trigger,
            22 => slot.acknowledged,
            _ => return None,
        })
    }

    /// A discrete input.
    pub fn input(&self, address: u16) -> Option<bool> {
        let place = |n: u16| usize::from(n) - 1;
        Some(match (address / CAMERA_INPUTS, address % CAMERA_INPUTS) {
            (0, 0) => self.reading.obstacles.is_empty(),
            (0, 1) => !self.reading.faults.is_empty(),
            (n @ 1.., 0) => self.reading.cameras.get(place(n)).filter(|_| place(n) < self.slots.len())?.owed > 0,
            (n @ 1.., 1) => self.slots.get(place(n))?.is_done(),
            _ => return None,
        })
    }

    /// A coil. Each clears itself: what it asked for is done when the answer comes.
    pub fn coil(&self, address: u16) -> Option<bool> {
        (1..=self.slots.len()).contains(&usize::from(address)).then_some(false)
    }
}

fn bits(faults: &[Fault]) -> u16 {
    FaultKind::ALL
        .iter()
        .enumerate()
        .fold(0, |bits, (place, kind)| bits | u16::from(faults.iter().any(|fault| fault.kind == *kind)) << place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspection::command::Command;
    use crate::inspection::trigger::RefusalCode;

    fn picture() -> Picture {
        let cameras = vec![CameraReading { owed: 1, recipe_number: Some(7), ..CameraReading::default() }; 2];
        let reading = Reading { cameras, ..Reading::default() };
        let slot = Slot { number: 9, score: 0.5, counts: [65_536 + 3, 2, 1], part: 70_000, ..Slot::default() };
        Picture { reading, slots: vec![slot; 2], commands: Commands::default() }
    }

    #[test]
    fn every_address_of_the_tables_can_be_read_and_no_other() {
        let picture = picture();
        let inside = |rows: &[Row], at: u16| rows.iter().any(|row| (row.at..row.at + row.words).contains(&at));
        for address in 0..=u16::MAX {
            let expected = match address / CAMERA {
                0 => inside(&STATION_ROWS, address),
                1 | 2 => inside(&CAMERA_ROWS, address % CAMERA),
                _ => false,
            };
            assert_eq!(picture.register(address).is_some(), expected, "register {address}");
            let inputs = [0, 1, 10, 11, 20, 21];
            assert_eq!(picture.input(address).is_some(), inputs.contains(&address), "input {address}");
            assert_eq!(picture.coil(address).is_some(), [1, 2].contains(&address), "coil {address}");
        }
        // The high word comes first.
        let pair = |at: u16| [picture.register(at), picture.register(at + 1)].map(Option::unwrap_or_default);
        assert_eq!((pair(105), pair(111), pair(207)), ([0x3F00, 0], [1, 3], [1, 4464]));
        assert_eq!((picture.register(101), picture.register(100)), (Some(3), Some(7)));
    }

    #[test]
    fn the_document_is_the_map() {
        let text = include_str!("../../../docs/modbus.md");
        let mut wanted: Vec<String> = Vec::new();
        for (base, rows) in [("", &STATION_ROWS[..]), ("100 n + ", &CAMERA_ROWS[..])] {
            wanted.extend(rows.iter().map(|row| {
                let access = if row.writable { "read, write" } else { "read" };
                format!("| {base}{} | `{}` | {} | {access} | {} |", row.at, row.name, row.kind, row.text)
            }));
        }
        wanted.extend(Command::words().map(|(word, number)| format!("| {number} | {word} |")));
        wanted.extend(RefusalCode::ALL.map(|code| format!("| {} | `{}` |", code.number(), code.word())));
        for line in wanted {
            assert!(text.contains(&line), "docs/modbus.md has no line\n{line}");
        }
    }
}
