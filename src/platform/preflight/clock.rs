//! Is the clock right?

use super::{Finding, Machine};
use crate::platform::clock::SYNCHRONISED;

/// 1 January 2026, nanoseconds: a clock that is before it was never set.
const EARLIEST: u64 = 1_767_225_600_000_000_000;

const SUBJECT: &str = "clock";

pub(super) fn look(machine: &Machine, wall_nanos: u64) -> Finding {
    if wall_nanos < EARLIEST {
        let found = "is before 2026: it was never set since power came on, and events carry its time";
        return Finding::problem(
            SUBJECT,
            found,
            "give the machine a battery for its clock, or a time server (NTP, PTP)",
        );
    }
    // The kernel's own word, which every daemon that keeps time sets.
    let asked = machine.asked("timedatectl", &["show", "--property=NTPSynchronized", "--value"]);
    let synchronised = match asked.as_deref() {
        Some("yes") => Some(true),
        Some("no") => Some(false),
        _ => machine.path(SYNCHRONISED).exists().then_some(true),
    };
    let remedy = "give it a time server: `timedatectl set-ntp true`, NTP= in /etc/systemd/timesyncd.conf, or chrony; \
                  `timedatectl` shows the state";
    match synchronised {
        Some(true) => Finding::ok(SUBJECT, "synchronised"),
        Some(false) => Finding::warning(SUBJECT, "not synchronised: times of events drift", remedy),
        None => Finding::warning(SUBJECT, "whether it is synchronised is unknown: timedatectl does not say", remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Grade, tree};
    use super::*;

    #[test]
    fn the_clock_is_as_timedatectl_says() {
        let cases = [
            (vec![("usr/bin/timedatectl", "#!/bin/sh\necho yes\n")], EARLIEST, Grade::Ok, "synchronised"),
            (vec![("usr/bin/timedatectl", "#!/bin/sh\necho no\n")], EARLIEST, Grade::Warning, "not synchronised"),
            (vec![("run/systemd/timesync/synchronized", "")], EARLIEST, Grade::Ok, "synchronised"),
            (vec![("usr/bin/timedatectl", "#!/bin/sh\nexit 1\n")], EARLIEST, Grade::Warning, "unknown"),
            (vec![("usr/bin/timedatectl", "#!/bin/sh\necho yes\n")], 1_000, Grade::Problem, "never set"),
        ];
        for (files, now, grade, word) in cases {
            let (_dir, machine) = tree(&files);
            let finding = look(&machine, now);
            assert_eq!(finding.grade, grade, "{files:?}");
            assert!(finding.found.contains(word), "{finding:?}");
            assert_eq!(finding.remedy.is_some(), grade != Grade::Ok);
        }
    }
}
