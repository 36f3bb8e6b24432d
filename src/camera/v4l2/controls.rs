//! Controls by name: exposure, gain, trigger mode and what else a camera has. Set, then read back.

use std::collections::BTreeMap;
use std::io;

use serde::Serialize;
use v4l::device::Handle;

use super::calls::{self, ControlInfo};
use crate::config::problem::did_you_mean;

/// Flags of `V4L2_CTRL_FLAG_*` that matter here.
const DISABLED: u32 = 0x0001;
const READ_ONLY: u32 = 0x0004;
const WRITE_ONLY: u32 = 0x0040;

/// Kinds of `V4L2_CTRL_TYPE_*` whose value is a number.
const KINDS: [(u32, &str); 7] = [
    (1, "integer"),
    (2, "boolean"),
    (MENU, "menu"),
    (BUTTON, "button"),
    (WIDE, "integer of 64 bits"),
    (8, "bitmask"),
    (MENU_OF_NUMBERS, "integer menu"),
];
const MENU: u32 = 3;
const BUTTON: u32 = 4;
const WIDE: u32 = 5;
const MENU_OF_NUMBERS: u32 = 9;
/// Entries of a menu that are listed.
const MENU_ENTRIES: i64 = 100;

/// A control that can be set by a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Control {
    /// The name that configurations use.
    pub name: String,
    /// What it is.
    pub kind: &'static str,
    /// Least value.
    pub minimum: i64,
    /// Largest value.
    pub maximum: i64,
    /// Step between values.
    pub step: u64,
    /// Value of a new device.
    pub default: i64,
    /// Value now; a button has none.
    pub value: Option<i64>,
    /// It can only be read.
    pub read_only: bool,
    /// What the values of a menu mean; other kinds have none.
    pub menu: Vec<MenuEntry>,
}

/// A value of a menu.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MenuEntry {
    /// The value that is set.
    pub value: i64,
    /// What it means.
    pub name: String,
}

/// `Trigger Mode` as `trigger_mode`: what `v4l2-ctl` calls it.
fn plain(name: &str) -> String {
    let mut plain = String::new();
    for letter in name.chars() {
        match letter.to_ascii_lowercase() {
            letter if letter.is_ascii_alphanumeric() => plain.push(letter),
            _ if !plain.is_empty() && !plain.ends_with('_') => plain.push('_'),
            _ => {}
        }
    }
    plain.trim_end_matches('_').to_owned()
}

/// Those of a device that can be set by a number.
pub fn list(handle: &Handle) -> Vec<Control> {
    usable(handle).map(|(info, kind)| described(handle, &info, kind)).collect()
}

fn usable(handle: &Handle) -> impl Iterator<Item = (ControlInfo, &'static str)> {
    calls::controls(handle).into_iter().filter(|info| info.flags & DISABLED == 0).filter_map(|info| {
        let kind = KINDS.into_iter().find(|(kind, _)| *kind == info.kind)?.1;
        Some((info, kind))
    })
}

fn described(handle: &Handle, info: &ControlInfo, kind: &'static str) -> Control {
    Control {
        name: plain(&info.name),
        kind,
        minimum: info.minimum,
        maximum: info.maximum,
        step: info.step,
        default: info.default,
        value: value(handle, info).ok(),
        read_only: info.flags & READ_ONLY != 0,
        menu: menu(handle, info),
    }
}

fn menu(handle: &Handle, info: &ControlInfo) -> Vec<MenuEntry> {
    if info.kind != MENU && info.kind != MENU_OF_NUMBERS {
        return Vec::new();
    }
    let last = info.maximum.min(info.minimum.saturating_add(MENU_ENTRIES - 1));
    let entry = |value: i64| {
        let index = u32::try_from(value).ok()?;
        let name = calls::menu_entry(handle, info.id, index, info.kind == MENU_OF_NUMBERS)?;
        Some(MenuEntry { value, name })
    };
    (info.minimum..=last).filter_map(entry).collect()
}

fn value(handle: &Handle, info: &ControlInfo) -> io::Result<i64> {
    if info.kind == WIDE { calls::value64(handle, info.id) } else { calls::value(handle, info.id).map(i64::from) }
}

/// Sets controls, those of a lower number first: a trigger's source before its mode is the driver's own order.
///
/// # Errors
/// A name that the device does not have, a value that it does not take, or one that it took and did not keep.
pub fn apply(handle: &Handle, wanted: &BTreeMap<String, i64>) -> Result<(), String> {
    if wanted.is_empty() {
        return Ok(());
    }
    let known: Vec<(ControlInfo, &str)> = usable(handle).collect();
    let names: Vec<String> = known.iter().map(|(info, _)| plain(&info.name)).collect();
    for name in wanted.keys() {
        if !names.contains(&plain(name)) {
            let hint = did_you_mean(name, names.iter().map(String::as_str));
            return Err(format!("controls.{name}: the camera has no such control{hint}; it has: {}", names.join(", ")));
        }
    }
    for ((info, _), name) in known.iter().zip(&names) {
        let Some((_, &value)) = wanted.iter().find(|(wanted, _)| plain(wanted) == *name) else { continue };
        set(handle, info, name, value)?;
    }
    Ok(())
}

fn set(handle: &Handle, info: &ControlInfo, name: &str, value: i64) -> Result<(), String> {
    let (least, most) = (info.minimum, info.maximum);
    if info.kind != BUTTON && !(least..=most).contains(&value) {
        return Err(format!("controls.{name} = {value}: must be {least} to {most}"));
    }
    let given = if info.kind == WIDE {
        calls::set_value64(handle, info.id, value)
    } else {
        let number = i32::try_from(value).map_err(|_| format!("controls.{name} = {value}: does not fit 32 bits"))?;
        calls::set_value(handle, info.id, number)
    };
    given.map_err(|error| format!("controls.{name} = {value}: {error}"))?;
    if info.kind == BUTTON || info.flags & WRITE_ONLY != 0 {
        return Ok(());
    }
    match self::value(handle, info) {
        Ok(kept) if kept == value => Ok(()),
        Ok(kept) => Err(format!("controls.{name} = {value}: the camera made {kept} of it (steps of {})", info.step)),
        Err(error) => Err(format!("controls.{name} = {value}: cannot be read back: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_v4l2_ctl() {
        assert_eq!(plain("Exposure Time, Absolute"), "exposure_time_absolute");
        assert_eq!(plain("White Balance, Automatic"), "white_balance_automatic");
        assert_eq!(plain("trigger_mode"), "trigger_mode");
    }
}
