//! How warm the machine is, against its own limits: zones differ from board to board, so all that are there are read.

use super::{Finding, Machine};
use crate::platform::thermal::{SensedZone, sensed_zones};

/// This far below a limit somebody should know, degrees.
const NEAR: f64 = 5.0;

/// Limits beyond which the kernel slows the machine down or stops it.
const LIMITS: [&str; 3] = ["passive", "hot", "critical"];

pub(super) fn look(machine: &Machine) -> Vec<Finding> {
    let zones = sensed_zones(&machine.path("/"));
    let mut findings = Vec::new();
    for SensedZone { name, celsius, trips } in &zones {
        let limits = trips.iter().filter(|(kind, _)| LIMITS.contains(&kind.as_str()));
        let Some((word, limit)) = limits.min_by(|(_, one), (_, other)| one.total_cmp(other)) else { continue };
        let subject = format!("thermal {name}");
        let found = format!("{celsius:.1} degrees, its limit '{word}' is {limit:.1} degrees");
        let remedy = "check fan, heat sink and dust, or take a lower power mode; above the limit frames take longer";
        if celsius >= limit {
            findings.push(Finding::problem(subject, found, remedy));
        } else if *celsius >= limit - NEAR {
            findings.push(Finding::warning(subject, found, remedy));
        }
    }
    if findings.is_empty() {
        let found = match zones.iter().max_by(|one, other| one.celsius.total_cmp(&other.celsius)) {
            Some(SensedZone { name, celsius, .. }) => {
                format!("{} zones, the warmest is {name} with {celsius:.1} degrees", zones.len())
            }
            None => "no thermal zone, as in a virtual machine".into(),
        };
        findings.push(Finding::ok("thermals", found));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::{Grade, tree};
    use super::*;

    #[test]
    fn a_zone_is_held_against_its_lowest_limit() {
        let zone = |temp: &'static str| {
            vec![
                ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
                ("sys/class/thermal/thermal_zone0/temp", temp),
                ("sys/class/thermal/thermal_zone0/trip_point_0_type", "critical\n"),
                ("sys/class/thermal/thermal_zone0/trip_point_0_temp", "104500\n"),
                ("sys/class/thermal/thermal_zone0/trip_point_1_type", "active\n"),
                ("sys/class/thermal/thermal_zone0/trip_point_1_temp", "51000\n"),
                ("sys/class/thermal/thermal_zone0/trip_point_2_type", "passive\n"),
                ("sys/class/thermal/thermal_zone0/trip_point_2_temp", "99000\n"),
                ("sys/class/thermal/thermal_zone1/type", "gpu-thermal\n"),
            ]
        };
        for (temp, grade, word) in [
            ("60000\n", Grade::Ok, "60.0 degrees"),
            ("94000\n", Grade::Warning, "'passive' is 99.0"),
            ("99000\n", Grade::Problem, "99.0 degrees, its limit"),
            ("no number\n", Grade::Ok, "no thermal zone"),
        ] {
            let (_dir, machine) = tree(&zone(temp));
            let findings = look(&machine);
            assert_eq!(findings.len(), 1);
            assert_eq!(findings[0].grade, grade, "{findings:?}");
            assert!(findings[0].found.contains(word), "{findings:?}");
        }
        let (_dir, machine) = tree(&[]);
        assert!(look(&machine)[0].found.contains("no thermal zone"));
    }
}
