//! The machine that a station runs on, as far as it tells on the verdicts: heat and power.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

/// A part of the machine whose temperature is known.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Zone {
    /// Its name.
    pub name: String,
    /// How warm it is.
    pub celsius: f64,
    /// Whether it is so warm that the machine slows down.
    pub throttled: bool,
    /// Whether it is so warm that the machine turns itself off.
    pub critical: bool,
}

/// The machine at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Machine {
    /// What has a temperature, by name.
    pub zones: Vec<Zone>,
    /// How often each supply was drawn more from than it gives, since the machine started.
    pub over_current: Vec<(String, u64)>,
    /// Whether one of them was, since the last look.
    pub is_over_current: bool,
    /// The mode of power that was chosen, where the machine has any.
    pub power_mode: Option<String>,
}

/// Words of events, in the order of the bits.
const WORDS: [&str; 2] = ["throttled", "over_current"];
/// The bit that no event tells of.
const CRITICAL: u8 = 1 << 2;

/// What is known of the machine now: whoever looks writes it, everybody reads it.
#[derive(Debug, Default)]
pub struct Conditions {
    /// For those who may not wait.
    flags: AtomicU8,
    /// Held for the time of a copy.
    machine: Mutex<Machine>,
}

impl Conditions {
    /// The machine was looked at.
    pub fn set(&self, machine: Machine) {
        let any = |of: fn(&Zone) -> bool| machine.zones.iter().any(of);
        let flags = u8::from(any(|zone| zone.throttled)) | u8::from(machine.is_over_current) << 1;
        let critical = if any(|zone| zone.critical) { CRITICAL } else { 0 };
        self.flags.store(flags | critical, Ordering::Relaxed);
        *self.machine.lock().unwrap_or_else(PoisonError::into_inner) = machine;
    }

    /// What an event that is made now says of it, in words.
    pub fn words(&self) -> Vec<&'static str> {
        let flags = self.flags.load(Ordering::Relaxed);
        WORDS.into_iter().enumerate().filter(|(bit, _)| flags >> bit & 1 == 1).map(|(_, word)| word).collect()
    }

    /// Whether the machine is about to turn itself off.
    pub fn is_critical(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & CRITICAL != 0
    }

    /// Everything.
    pub fn machine(&self) -> Machine {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why nothing should be inspected on such a machine.
    pub fn obstacles(&self) -> Vec<String> {
        if !self.is_critical() {
            return Vec::new();
        }
        let hot = |zone: &Zone| {
            let Zone { name, celsius, .. } = zone;
            format!(
                "the machine is too hot: {name} has {celsius:.0} °C; look at fan and air before it turns itself off"
            )
        };
        self.machine().zones.iter().filter(|zone| zone.critical).map(hot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_and_power_are_words_and_a_critical_zone_is_an_obstacle() {
        let conditions = Conditions::default();
        assert!(conditions.words().is_empty() && conditions.obstacles().is_empty());
        let zone = |throttled, critical| Zone { name: "gpu".into(), celsius: 99.6, throttled, critical };
        conditions.set(Machine { zones: vec![zone(true, false)], ..Machine::default() });
        assert_eq!((conditions.words(), conditions.is_critical()), (vec!["throttled"], false));
        conditions.set(Machine { zones: vec![zone(true, true)], is_over_current: true, ..Machine::default() });
        assert_eq!(conditions.words(), ["throttled", "over_current"]);
        assert!(conditions.obstacles()[0].contains("gpu has 100 °C"), "{:?}", conditions.obstacles());
        conditions.set(Machine::default());
        assert!(conditions.words().is_empty() && conditions.obstacles().is_empty());
    }
}
