//! How warm the machine is, against its own limits: zones differ from board to board, so all that are there are read.

use super::{Finding, Machine};

/// This far below a limit somebody should know, thousandths of a degree.
const NEAR: i64 = 5_000;

/// Limits beyond which the kernel slows the machine down or stops it.
const LIMITS: [&str; 3] = ["passive", "hot", "critical"];

pub(super) fn look(machine: &Machine) -> Vec<Finding> {
    let folder = machine.path("/sys/class/thermal");
    let mut zones: Vec<_> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("thermal_zone")))
        .collect();
    zones.sort();
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let mut findings = Vec::new();
    let mut warmest: Option<(i64, String)> = None;
    for zone in &zones {
        let kind = read(zone.join("type")).unwrap_or_default();
        // A zone whose part is switched off gives an error.
        let Some(now) = read(zone.join("temp")).and_then(|text| text.parse::<i64>().ok()) else { continue };
        if warmest.as_ref().is_none_or(|(most, _)| now > *most) {
            warmest = Some((now, kind.clone()));
        }
        let limits = (0..).map_while(|number| {
            let kind = read(zone.join(format!("trip_point_{number}_type")))?;
            let at = read(zone.join(format!("trip_point_{number}_temp")))?.parse::<i64>().ok()?;
            Some((at, kind))
        });
        let Some((limit, word)) = limits.filter(|(at, kind)| *at > 0 && LIMITS.contains(&&**kind)).min() else {
            continue;
        };
        let subject = format!("thermal {kind}");
        let found = format!("{}, its limit '{word}' is {}", degrees(now), degrees(limit));
        let remedy = "check fan, heat sink and dust, or take a lower power mode; above the limit frames take longer";
        if now >= limit {
            findings.push(Finding::problem(subject, found, remedy));
        } else if now >= limit - NEAR {
            findings.push(Finding::warning(subject, found, remedy));
        }
    }
    if findings.is_empty() {
        let found = match warmest {
            Some((now, kind)) => format!("{} zones, the warmest is {kind} with {}", zones.len(), degrees(now)),
            None => "no thermal zone, as in a virtual machine".into(),
        };
        findings.push(Finding::ok("thermals", found));
    }
    findings
}

fn degrees(thousandths: i64) -> String {
    format!("{:.1} degrees", thousandths as f64 / 1e3)
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
