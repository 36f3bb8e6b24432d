//! What the machine has and lacks, looked at without changing it: files of the kernel, rights, free space. Nothing here loads a
//! driver's library, so nothing can crash in one.

mod clock;
mod disk;
mod gpu;
mod thermal;

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Access, access};
use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// It works, and somebody should know.
    Warning,
    /// It will not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What, such as `gpu` or `camera top`.
    pub subject: String,
    /// How bad.
    pub grade: Grade,
    /// What was found.
    pub found: String,
    /// What to do about it; nothing where all is well.
    pub remedy: Option<String>,
}

impl Finding {
    /// Nothing to do.
    pub fn ok(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self { subject: subject.into(), grade: Grade::Ok, found: found.into(), remedy: None }
    }

    /// It works all the same.
    pub fn warning(subject: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (subject, found, remedy) = (subject.into(), found.into(), Some(remedy.into()));
        Self { subject, grade: Grade::Warning, found, remedy }
    }

    /// It does not work.
    pub fn problem(subject: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { grade: Grade::Problem, ..Self::warning(subject, found, remedy) }
    }
}

/// The machine that is looked at: where its `/proc`, `/sys`, `/dev`, `/etc`, `/run` and `/usr/bin` are.
#[derive(Debug, Clone)]
pub struct Machine {
    root: PathBuf,
}

impl Machine {
    /// The machine whose root folder this is; `/` is this one.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where an absolute path of the machine is.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The text of a file, without its last line break; `None` where it cannot be read.
    fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let bytes = std::fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\0']).to_owned())
    }

    /// What one of its programs says; `None` where it is not there or ends with an error.
    fn asked(&self, program: &str, arguments: &[&str]) -> Option<String> {
        let output = Command::new(self.path(Path::new("/usr/bin").join(program))).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Whose rights the other findings are about.
    pub fn user(&self, service: &str) -> Finding {
        let status = self.text("/proc/self/status").unwrap_or_default();
        let id = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse().ok());
        match id {
            Some(0u32) => Finding::warning(
                "user",
                "root, who may do what the service may not",
                format!("run it as the service's user: `sudo -u {service} dsad preflight`"),
            ),
            Some(id) => Finding::ok("user", format!("number {id}; the rights below are its own")),
            None => Finding::warning("user", "unknown: /proc/self/status cannot be read", "mount /proc"),
        }
    }

    /// The GPU for device `index`, its driver, and what this program was built for (`binding`, as 12060 for CUDA 12.6).
    pub fn gpu(&self, index: usize, binding: Option<u32>) -> Vec<Finding> {
        gpu::look(self, index, binding)
    }

    /// The version of the GPU's driver; nothing where the system does not tell.
    pub fn gpu_driver(&self) -> Option<String> {
        gpu::driver_version(self)
    }

    /// The clock now (`wall_nanos` since the Unix epoch), and whether something keeps it right.
    pub fn clock(&self, wall_nanos: u64) -> Finding {
        clock::look(self, wall_nanos)
    }

    /// Every thermal zone that is warm, or one finding for all.
    pub fn thermals(&self) -> Vec<Finding> {
        thermal::look(self)
    }
}

/// Whether this user may write into `folder`, or make it, and what space is there.
pub fn folder(subject: &str, folder: &Path) -> Finding {
    disk::look(subject, folder)
}

/// Where kernels are kept that were compiled for a GPU: writable, how large, and whether there are any of this program, in `own`.
pub fn kernel_cache(folder: Option<&Path>, own: Option<&Path>) -> Finding {
    disk::cache(folder, own)
}

/// Whether this user may read and write a device.
fn may_use(path: &Path) -> bool {
    access(path, Access::READ_OK | Access::WRITE_OK).is_ok()
}

/// A tree of files, as of a machine.
#[cfg(test)]
fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("directory");
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("directories");
        std::fs::write(&path, text).expect("writes");
        let mode = if name.contains("/bin/") { 0o755 } else { 0o644 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
    }
    let machine = Machine::at(dir.path());
    (dir, machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_told_that_the_service_is_not() {
        let (_dir, machine) = tree(&[("proc/self/status", "Name:\tdsad\nUid:\t0\t0\t0\t0\n")]);
        let finding = machine.user("inspect");
        assert_eq!(finding.grade, Grade::Warning);
        assert!(finding.remedy.expect("remedy").contains("sudo -u inspect"));
        let (_dir, machine) = tree(&[("proc/self/status", "Uid:\t990\t990\t990\t990\n")]);
        assert_eq!(machine.user("inspect").grade, Grade::Ok);
    }
}
