//! Is there room, and may this user write?

use std::path::Path;

use rustix::fs::{Access, access, statvfs};

use super::{Finding, Grade};

/// Below it nothing goes on for long, MiB.
const LEAST: u64 = 64;
/// Below it somebody should tidy up, MiB.
const LITTLE: u64 = 1024;

pub(super) fn look(subject: &str, folder: &Path) -> Finding {
    let Some(there) = folder.ancestors().find(|path| path.exists()) else {
        return Finding::problem(subject, format!("{}: not there", folder.display()), "give an absolute path");
    };
    let shown = folder.display();
    if !there.is_dir() {
        let found = format!("{shown}: {} is no folder", there.display());
        return Finding::problem(subject, found, "give the path of a folder");
    }
    if access(there, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let found = format!("{shown}: this user may not write into {}", there.display());
        let remedy = format!("`install -d -o inspect -g inspect {shown}`, or run it as the service's user");
        return Finding::problem(subject, found, remedy);
    }
    let room = match statvfs(there) {
        Ok(room) => room,
        Err(error) => return Finding::problem(subject, format!("{shown}: {error}"), "check the disk and its mount"),
    };
    let free = room.f_bavail.saturating_mul(room.f_frsize) >> 20;
    let found = format!("{shown}: writable, {} free", size(free));
    // File systems without a table of files say 0 of 0.
    if room.f_files > 0 && room.f_favail == 0 {
        return Finding::problem(
            subject,
            format!("{found}, but no file can be made"),
            "remove files that are not needed",
        );
    }
    match grade(free) {
        Grade::Ok => Finding::ok(subject, found),
        grade => Finding {
            grade,
            ..Finding::warning(
                subject,
                format!("{found}: below {}", size(if grade == Grade::Problem { LEAST } else { LITTLE })),
                "make room, or move it to another disk; images are what grows",
            )
        },
    }
}

fn grade(free_mib: u64) -> Grade {
    match free_mib {
        ..LEAST => Grade::Problem,
        LEAST..LITTLE => Grade::Warning,
        _ => Grade::Ok,
    }
}

fn size(mib: u64) -> String {
    if mib < 10_240 { format!("{mib} MiB") } else { format!("{} GiB", mib >> 10) }
}

pub(super) fn cache(folder: Option<&Path>, own: Option<&Path>) -> Finding {
    const SUBJECT: &str = "kernel cache";
    let Some(folder) = folder else {
        let found = "no place: neither XDG_CACHE_HOME nor HOME is set; every start compiles all kernels anew";
        return Finding::warning(SUBJECT, found, "set XDG_CACHE_HOME to a folder that stays");
    };
    let mut finding = look(SUBJECT, folder);
    if finding.grade == Grade::Problem {
        finding.found += "; every start compiles all kernels anew";
        return finding;
    }
    finding.found += &format!("; {} kept", size(bytes(folder) >> 20));
    if finding.grade == Grade::Ok && own.is_none_or(|own| !own.exists()) {
        let found = format!("{}, none of this program", finding.found);
        return Finding::warning(SUBJECT, found, "`dsad warm-up --config FILE` as the service's user compiles them");
    }
    finding
}

/// Bytes of all files below a folder.
fn bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_may_be_made_later_but_not_below_a_file() {
        let dir = tempfile::tempdir().expect("directory");
        let finding = look("state", &dir.path().join("state/deep"));
        assert_ne!(finding.grade, Grade::Problem, "{finding:?}");
        assert!(finding.found.contains("writable"), "{finding:?}");
        std::fs::write(dir.path().join("file"), vec![0; 3 << 20]).expect("writes");
        let finding = look("state", &dir.path().join("file/deep"));
        assert_eq!(finding.grade, Grade::Problem);
        assert!(finding.found.contains("is no folder") && finding.remedy.is_some(), "{finding:?}");
        let own = dir.path().join("file");
        assert!(cache(Some(dir.path()), Some(&own)).found.ends_with("; 3 MiB kept"));
        let cold = cache(Some(dir.path()), Some(&dir.path().join("other")));
        assert_eq!(cold.grade, Grade::Warning);
        assert!(cold.found.ends_with("; 3 MiB kept, none of this program"), "{cold:?}");
        assert_eq!(cache(None, None).grade, Grade::Warning);
    }

    #[test]
    fn what_cannot_be_written_is_a_problem() {
        // Nobody writes there, not even root.
        let finding = look("state", Path::new("/proc/sys/kernel"));
        assert_eq!(finding.grade, Grade::Problem, "{finding:?}");
    }

    #[test]
    fn room_is_graded() {
        assert_eq!([0, 63, 64, 1023, 1024].map(grade), {
            use Grade::{Ok, Problem, Warning};
            [Problem, Problem, Warning, Warning, Ok]
        });
        assert_eq!([size(12), size(20 << 10)], ["12 MiB", "20 GiB"]);
    }
}
