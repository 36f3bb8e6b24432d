//! Heat and power of the machine, as Linux tells of them in files. What is not there is not told of.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::inspection::conditions::{Machine, Zone};

/// Reads the files again and again.
#[derive(Debug)]
pub struct Thermal {
    root: PathBuf,
    /// The counters of over-current as they were at the last look; nothing before the first.
    counted: Option<BTreeMap<String, u64>>,
}

impl Thermal {
    /// Of the machine whose files lie under `root`: `/`, but for tests.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf(), counted: None }
    }

    /// The machine now.
    pub fn read(&mut self) -> Machine {
        let over_current = self.counters();
        // Those of before the first look say nothing about now.
        let before = self.counted.replace(over_current.clone()).unwrap_or_else(|| over_current.clone());
        let rose = |(name, count): (&String, &u64)| before.get(name).is_some_and(|before| count > before);
        Machine {
            zones: self.zones(),
            is_over_current: over_current.iter().any(rose),
            over_current: over_current.into_iter().collect(),
            power_mode: self.power_mode(),
        }
    }

    fn zones(&self) -> Vec<Zone> {
        let zone = |SensedZone { name, celsius, trips }: SensedZone| {
            let above =
                |kinds: &[&str]| trips.iter().any(|(kind, at)| kinds.contains(&kind.as_str()) && celsius >= *at);
            let (throttled, critical) = (above(&["passive", "hot"]), above(&["critical"]));
            Zone { name, celsius, throttled, critical }
        };
        sensed_zones(&self.root).into_iter().map(zone).collect()
    }

    /// Counters of a Jetson's supplies: `oc1_event_cnt` of its monitors.
    fn counters(&self) -> BTreeMap<String, u64> {
        let mut counters = BTreeMap::new();
        for (folder, place) in listed(&self.root.join("sys/class/hwmon"), "hwmon") {
            for (name, file) in listed(&place, "oc") {
                if let Some(count) = name.ends_with("_event_cnt").then(|| number(&file)).flatten() {
                    counters.insert(format!("{folder}/{name}"), count);
                }
            }
        }
        counters
    }

    /// What `nvpmodel` of a Jetson remembers: `pmode:0002`.
    fn power_mode(&self) -> Option<String> {
        let status = word(&self.root.join("var/lib/nvpmodel/status"))?;
        let mode = status.strip_prefix("pmode:")?.split_whitespace().next()?;
        Some(mode.parse::<u32>().map_or_else(|_| mode.to_owned(), |mode| mode.to_string()))
    }
}

/// A thermal zone as the kernel tells of it.
pub(super) struct SensedZone {
    /// Its kind, with its folder where another zone is of that kind.
    pub name: String,
    /// Its temperature.
    pub celsius: f64,
    /// Its trip points that are set: kinds and temperatures.
    pub trips: Vec<(String, f64)>,
}

/// The zones of the machine whose files lie under `root`. One that is turned off has files that cannot be read, and is left out.
pub(super) fn sensed_zones(root: &Path) -> Vec<SensedZone> {
    let mut zones: Vec<SensedZone> = Vec::new();
    for (folder, place) in listed(&root.join("sys/class/thermal"), "thermal_zone") {
        let (Some(kind), Some(celsius)) = (word(&place.join("type")), degrees(&place.join("temp"))) else { continue };
        let trips = (0..)
            .map_while(|n| word(&place.join(format!("trip_point_{n}_type"))).map(|kind| (n, kind)))
            .filter_map(|(n, kind)| Some((kind, degrees(&place.join(format!("trip_point_{n}_temp")))?)))
            // Drivers write 0, or less, for a point that is not set.
            .filter(|(_, at)| *at > 0.0)
            .collect();
        let known = zones.iter().any(|zone| zone.name == kind);
        let name = if known { format!("{kind} {folder}") } else { kind };
        zones.push(SensedZone { name, celsius, trips });
    }
    zones
}

/// What lies in a folder under a name that begins like this, in order; nothing where there is no folder.
fn listed(folder: &Path, begins: &str) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(String, PathBuf)> = entries
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .filter(|(name, _)| name.starts_with(begins))
        .collect();
    found.sort();
    found
}

fn word(file: &Path) -> Option<String> {
    fs::read_to_string(file).ok().map(|text| text.trim().to_owned())
}

fn number<T: FromStr>(file: &Path) -> Option<T> {
    word(file)?.parse().ok()
}

/// Thousandths of a degree in a file; nothing below what there is.
fn degrees(file: &Path) -> Option<f64> {
    number::<i64>(file).map(|thousandths| thousandths as f64 / 1e3).filter(|celsius| *celsius > -273.15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
            fs::write(path, format!("{text}\n")).expect("writes");
        }
    }

    #[test]
    fn zones_trips_counters_and_the_mode_are_read() {
        let root = tempfile::tempdir().expect("directory");
        let nothing = Thermal::new(root.path()).read();
        assert_eq!(nothing, Machine::default());
        write(
            root.path(),
            &[
                ("sys/class/thermal/thermal_zone0/type", "gpu-thermal"),
                ("sys/class/thermal/thermal_zone0/temp", "51500"),
                ("sys/class/thermal/thermal_zone0/trip_point_0_type", "passive"),
                ("sys/class/thermal/thermal_zone0/trip_point_0_temp", "95000"),
                ("sys/class/thermal/thermal_zone0/trip_point_1_type", "critical"),
                ("sys/class/thermal/thermal_zone0/trip_point_1_temp", "104500"),
                ("sys/class/thermal/thermal_zone1/type", "acpitz"),
                ("sys/class/thermal/thermal_zone1/temp", "20000"),
                ("sys/class/thermal/thermal_zone1/trip_point_0_type", "critical"),
                ("sys/class/thermal/thermal_zone1/trip_point_0_temp", "0"),
                ("sys/class/thermal/thermal_zone2/type", "acpitz"),
                ("sys/class/thermal/thermal_zone2/temp", "21000"),
                ("sys/class/thermal/thermal_zone3/type", "off"),
                ("sys/class/thermal/thermal_zone4/type", "broken"),
                ("sys/class/thermal/thermal_zone4/temp", "-274000"),
                ("sys/class/thermal/cooling_device0/type", "fan"),
                ("sys/class/hwmon/hwmon3/oc1_event_cnt", "4"),
                ("sys/class/hwmon/hwmon3/oc1_throt_en", "1"),
                ("var/lib/nvpmodel/status", "pmode:0002 fmode:quiet"),
            ],
        );
        let mut thermal = Thermal::new(root.path());
        let first = thermal.read();
        let zones: Vec<(&str, f64, bool)> = first
            .zones
            .iter()
            .map(|zone| (zone.name.as_str(), zone.celsius, zone.throttled || zone.critical))
            .collect();
        assert_eq!(
            zones,
            [("gpu-thermal", 51.5, false), ("acpitz", 20.0, false), ("acpitz thermal_zone2", 21.0, false)]
        );
        assert_eq!(first.over_current, [("hwmon3/oc1_event_cnt".to_owned(), 4)]);
        assert_eq!((first.is_over_current, first.power_mode.as_deref()), (false, Some("2")));
        write(
            root.path(),
            &[("sys/class/thermal/thermal_zone0/temp", "95000"), ("sys/class/hwmon/hwmon3/oc1_event_cnt", "5")],
        );
        let hot = thermal.read();
        assert_eq!((hot.zones[0].throttled, hot.zones[0].critical, hot.is_over_current), (true, false, true));
        write(root.path(), &[("sys/class/thermal/thermal_zone0/temp", "105000")]);
        let hottest = thermal.read();
        assert_eq!((hottest.zones[0].critical, hottest.is_over_current), (true, false));
    }
}
