//! The GPU: is its driver loaded, are its nodes there and allowed, and is the driver new enough for what this program was built for?

use super::{Finding, Machine, may_use};

/// First driver for each CUDA major version, as NVIDIA's release notes say it; within one, older drivers run newer programs.
const DRIVERS: [(u32, [u32; 2]); 3] = [(11, [450, 80]), (12, [525, 60]), (13, [580, 65])];

/// CUDA of the Jetson Linux releases.
const JETSON: [(u32, u32); 4] = [(35, 11), (36, 12), (38, 13), (39, 13)];

const DRIVER: &str = "gpu driver";

pub(super) fn look(machine: &Machine, index: usize, binding: Option<u32>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if machine.path("/dev/nvmap").exists() || machine.path("/etc/nv_tegra_release").exists() {
        findings.push(release(machine, binding));
        // The older name, and the newer one.
        let names = ["/dev/nvhost-ctrl-gpu", "/dev/nvgpu/igpu0/ctrl"];
        let gpu = names.into_iter().find(|name| machine.path(name).exists()).unwrap_or(names[0]);
        findings.push(nodes(machine, &["/dev/nvmap", gpu], "video, or take the drop-in of docs/jetson.md"));
        return findings;
    }
    findings.push(driver(machine, binding));
    let own = format!("/dev/nvidia{index}");
    findings.push(nodes(
        machine,
        &["/dev/nvidiactl", &own, "/dev/nvidia-uvm"],
        "that owns them (`ls -l /dev/nvidia*`)",
    ));
    if let Some(listed) =
        machine.asked("nvidia-smi", &["--query-gpu=index,name,temperature.gpu", "--format=csv,noheader"])
    {
        let names: Vec<&str> = listed.lines().collect();
        findings.push(match names.get(index) {
            Some(name) => Finding::ok("gpu", format!("{name} degrees")),
            None => Finding::problem(
                "gpu",
                format!("number {index} is not there: nvidia-smi lists {}", names.len()),
                "take another number in `device`, counted from 0",
            ),
        });
    }
    findings
}

/// The version of the GPU's driver, as the system names it.
pub(super) fn driver_version(machine: &Machine) -> Option<String> {
    let jetson = machine.text("/etc/nv_tegra_release").and_then(|text| text.lines().next().map(str::to_owned));
    let driver = || version(&machine.text("/proc/driver/nvidia/version")?).map(|(name, _)| name.to_owned());
    jetson.or_else(driver)
}

/// Are these nodes there, and may this user use them?
fn nodes(machine: &Machine, nodes: &[&str], group: &str) -> Finding {
    const SUBJECT: &str = "gpu nodes";
    let missing: Vec<&str> = nodes.iter().copied().filter(|node| !machine.path(node).exists()).collect();
    if !missing.is_empty() {
        let remedy = "load the driver before dsad starts: `modprobe nvidia-uvm`, `systemctl enable --now nvidia-persistenced`; a \
                      service that was started before needs a restart";
        return Finding::problem(SUBJECT, format!("not there: {}", missing.join(", ")), remedy);
    }
    let refused: Vec<&str> = nodes.iter().copied().filter(|node| !may_use(&machine.path(node))).collect();
    if !refused.is_empty() {
        let remedy = format!("put the user into the group {group}");
        return Finding::problem(SUBJECT, format!("this user may not open {}", refused.join(", ")), remedy);
    }
    Finding::ok(SUBJECT, nodes.join(", "))
}

fn driver(machine: &Machine, binding: Option<u32>) -> Finding {
    let text = machine.text("/proc/driver/nvidia/version").unwrap_or_default();
    let Some((name, version)) = version(&text) else {
        let remedy =
            "install NVIDIA's driver and restart, or set device = \"cpu\"; `dmesg | grep -i nvidia` says what failed";
        return Finding::problem(DRIVER, "none is loaded: /proc/driver/nvidia/version is not there", remedy);
    };
    let found = format!("{name}, {}", built_for(binding));
    let Some(major) = binding.map(|binding| binding / 1000) else { return unpinned(found) };
    match DRIVERS.iter().find(|(cuda, _)| *cuda == major) {
        Some((_, least)) if version < *least => {
            let [first, second] = least;
            let remedy = format!(
                "install driver {first}.{second} or newer, or build with CUDARC_CUDA_VERSION set to the CUDA that nvidia-smi shows"
            );
            Finding::problem(DRIVER, found, remedy)
        }
        Some(_) => Finding::ok(DRIVER, found),
        None => Finding::warning(DRIVER, found, "compare with the CUDA version that nvidia-smi shows"),
    }
}

/// The release of Jetson Linux, in which the driver is part.
fn release(machine: &Machine, binding: Option<u32>) -> Finding {
    let text = machine.text("/etc/nv_tegra_release").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let number = line.split_whitespace().find_map(|word| word.strip_prefix('R')?.parse::<u32>().ok());
    let Some(number) = number else {
        let found = format!("a Jetson whose release is unknown, {}", built_for(binding));
        return Finding::warning(DRIVER, found, "`cat /etc/nv_tegra_release` and `apt show nvidia-jetpack` tell it");
    };
    let found = format!("Jetson Linux R{number}, {}", built_for(binding));
    let Some(major) = binding.map(|binding| binding / 1000) else { return unpinned(found) };
    match JETSON.iter().find(|(known, _)| *known == number) {
        Some((_, cuda)) if *cuda < major => {
            let remedy = format!("install the package that was built for this JetPack (CUDA {cuda})");
            Finding::problem(DRIVER, found, remedy)
        }
        Some(_) => Finding::ok(DRIVER, found),
        None => Finding::warning(DRIVER, found, "compare with the CUDA version of `apt show nvidia-jetpack`"),
    }
}

fn unpinned(found: String) -> Finding {
    let remedy =
        "build with CUDARC_CUDA_VERSION=12060 (CUDA 12.6) or the like: without it the bindings are for the newest CUDA";
    Finding::warning(DRIVER, found, remedy)
}

fn built_for(binding: Option<u32>) -> String {
    match binding {
        Some(binding) => format!("built for CUDA {}.{}", binding / 1000, binding % 1000 / 10),
        None => "built for a CUDA version that nobody chose".into(),
    }
}

/// The driver's version in the first line of `/proc/driver/nvidia/version`: as text, and its first two numbers.
fn version(text: &str) -> Option<(&str, [u32; 2])> {
    let word = text.lines().next()?.split_whitespace().find(|word| {
        let numbers: Vec<&str> = word.split('.').collect();
        numbers.len() >= 2 && numbers.iter().all(|number| number.parse::<u32>().is_ok())
    })?;
    let mut numbers = word.split('.').filter_map(|number| number.parse().ok());
    Some((word, [numbers.next()?, numbers.next()?]))
}

#[cfg(test)]
mod tests {
    use super::super::{Grade, tree};
    use super::*;

    const OPEN: &str =
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release Build\nGCC version:  gcc 12\n";
    const OLD: &str = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\n";
    const NODES: [(&str, &str); 3] = [("dev/nvidiactl", ""), ("dev/nvidia0", ""), ("dev/nvidia-uvm", "")];

    fn grades(files: &[(&str, &str)], index: usize, binding: Option<u32>) -> Vec<(String, Grade)> {
        let (_dir, machine) = tree(files);
        let findings = look(&machine, index, binding);
        for finding in &findings {
            assert_eq!(finding.remedy.is_some(), finding.grade != Grade::Ok, "{finding:?}");
        }
        findings.into_iter().map(|finding| (finding.found, finding.grade)).collect()
    }

    #[test]
    fn the_driver_is_held_against_the_binding() {
        for (text, binding, grade) in [
            (OPEN, Some(12060), Grade::Ok),
            (OPEN, Some(13020), Grade::Ok),
            (OPEN, None, Grade::Warning),
            (OPEN, Some(14000), Grade::Warning),
            (OLD, Some(11080), Grade::Ok),
            (OLD, Some(12060), Grade::Problem),
            ("", Some(12060), Grade::Problem),
        ] {
            let files = [&NODES[..], &[("proc/driver/nvidia/version", text)]].concat();
            let found = grades(&files, 0, binding);
            assert_eq!(found[0].1, grade, "{text} {binding:?}: {found:?}");
            assert_eq!(found[1].1, Grade::Ok);
        }
        let (_dir, machine) = tree(&[("proc/driver/nvidia/version", OPEN)]);
        assert_eq!(machine.gpu_driver().as_deref(), Some("580.159.03"));
        assert_eq!(tree(&[]).1.gpu_driver(), None);
    }

    #[test]
    fn a_missing_node_is_named() {
        let found = grades(&[("proc/driver/nvidia/version", OPEN), NODES[0]], 1, Some(12060));
        assert_eq!(found[1], ("not there: /dev/nvidia1, /dev/nvidia-uvm".into(), Grade::Problem));
    }

    #[test]
    fn nvidia_smi_knows_how_many_there_are() {
        let smi = ("usr/bin/nvidia-smi", "#!/bin/sh\necho '0, NVIDIA H100, 41'\n");
        let files = [&NODES[..], &[("proc/driver/nvidia/version", OPEN), smi, ("dev/nvidia1", "")]].concat();
        assert_eq!(grades(&files, 0, Some(12060))[2], ("0, NVIDIA H100, 41 degrees".into(), Grade::Ok));
        assert_eq!(grades(&files, 1, Some(12060))[2].1, Grade::Problem);
    }

    #[test]
    fn a_jetson_is_known_by_its_release() {
        let release = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n";
        let files = [("etc/nv_tegra_release", release), ("dev/nvmap", ""), ("dev/nvhost-ctrl-gpu", "")];
        let found = grades(&files, 0, Some(12060));
        assert_eq!(tree(&files).1.gpu_driver().as_deref(), Some(release.trim_end()));
        assert_eq!(found[0], ("Jetson Linux R36, built for CUDA 12.6".into(), Grade::Ok));
        assert_eq!(found[1].1, Grade::Ok);
        assert_eq!(grades(&files, 0, Some(13020))[0].1, Grade::Problem);
        assert_eq!(grades(&files[..1], 0, Some(12060))[1].1, Grade::Problem);
        assert_eq!(grades(&files[1..], 0, None)[0].1, Grade::Warning);
    }
}
