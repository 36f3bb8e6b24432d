//! From a configured device to one that burn runs on. The only place that knows which backends are built in.

#[cfg(feature = "cpu")]
mod awake;
#[cfg(all(feature = "cuda", feature = "kernel-cache"))]
mod kept;
#[cfg(not(all(feature = "cuda", feature = "kernel-cache")))]
mod not_kept;

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

#[cfg(all(feature = "cuda", feature = "kernel-cache"))]
pub use self::kept::{KernelStore, kernel_damage, kernel_database};
#[cfg(not(all(feature = "cuda", feature = "kernel-cache")))]
pub use self::not_kept::{KernelStore, kernel_damage, kernel_database};
use crate::config::device::DeviceChoice;

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The backend is not part of this program.
    #[error(
        "device '{choice}': this program was built without the feature '{feature}'; rebuild with --features {feature}, or use a device that it has"
    )]
    NotBuilt {
        /// What was asked for.
        choice: DeviceChoice,
        /// The cargo feature that brings it.
        feature: &'static str,
    },
    /// The driver or the device does not answer.
    #[error("device '{choice}' cannot be used: {reason}; check the driver (nvidia-smi), or use --device cpu")]
    Unusable {
        /// What was asked for.
        choice: DeviceChoice,
        /// What the driver says.
        reason: String,
    },
}

/// An opened device.
#[derive(Debug, Clone)]
pub struct Compute {
    /// Where tensors live.
    pub device: Device,
    /// What was asked for.
    pub choice: DeviceChoice,
}

impl Compute {
    /// The kernels that are kept for this device; nothing on the CPU, or where none are kept.
    pub fn kernels(&self) -> Option<KernelStore> {
        match self.choice {
            DeviceChoice::Cpu => None,
            DeviceChoice::Cuda(index) => KernelStore::of(index),
        }
    }
}

/// What compiled kernels are good for: only where all of it is the same are they used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelOrigin {
    /// Version of cubecl, which compiled them.
    pub cubecl: String,
    /// Build ID of the program, in hex.
    pub build: String,
    /// The GPU, as its driver names it.
    pub device: String,
    /// What they were compiled for, with the compute capability: `ptx_sm90` for 9.0.
    pub architecture: String,
    /// The driver's version; nothing where the system does not tell.
    pub driver: Option<String>,
}

/// Home of the station's user as the package makes it, and its caches as the unit has them: a verb that this user starts by hand finds the
/// kernels of the service.
const STATION: [&str; 2] = ["/var/lib/dsad", "/var/cache/dsad"];

/// The folder that kernels are kept in, below the caches of this user (XDG_CACHE_HOME, those of the station, or .cache in HOME); nothing
/// where neither is set.
pub fn kernel_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    Some(caches(set("XDG_CACHE_HOME"), set("HOME"))?.join("dsad-kernels"))
}

fn caches(caches: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    let [station, kept] = STATION.map(Path::new);
    caches.or_else(|| home.map(|home| if home == station { kept.to_owned() } else { home.join(".cache") }))
}

/// Opens a device and proves with one small operation that it works.
///
/// # Errors
/// The backend is not built in, or the device does not answer.
pub fn open(choice: DeviceChoice) -> Result<Compute, DeviceError> {
    let device = match choice {
        DeviceChoice::Cpu => cpu(choice)?,
        DeviceChoice::Cuda(index) => cuda(choice, index)?,
    };
    // The CUDA runtime panics where there is no driver: the answer must be an error, not an end.
    let probe = std::panic::catch_unwind(|| {
        let sum = (Tensor::<1>::ones([4], &device) * 2.0).sum();
        sum.try_into_scalar::<f32>().map_err(|error| error.to_string())
    });
    let reason = match probe {
        Ok(Ok(8.0)) => return Ok(Compute { device, choice }),
        Ok(Ok(other)) => format!("2 * 4 is {other} there"),
        Ok(Err(error)) => error,
        Err(panic) => (panic.downcast_ref::<String>().map(String::as_str))
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("the driver could not be initialised")
            .to_owned(),
    };
    Err(DeviceError::Unusable { choice, reason })
}

/// [`open`] for training: on CUDA every operation runs by itself from now on, in the whole process. burn-fusion looks for operations
/// that can be one kernel, on the host; a step of training is thousands of them, and the search took up to half a minute at the
/// start of a stage, and of eight fits two did not come back from it within minutes. Steps are about a sixth slower without.
///
/// # Errors
/// As [`open`].
pub fn open_for_training(choice: DeviceChoice) -> Result<Compute, DeviceError> {
    if let DeviceChoice::Cuda(_) = choice {
        no_search();
    }
    open(choice)
}

/// Runs what computes on the CPU on a thread of the pool that its kernels divide their work among: from any other thread every
/// one of them would wait for the pool and be woken again. What computes on another device runs where it is called: there a
/// thread has its own stream.
pub fn pooled<T: Send>(device: &Device, work: impl FnOnce() -> T + Send) -> T {
    #[cfg(feature = "cpu")]
    if *device == Device::flex() {
        return rayon::scope(|_| work());
    }
    #[cfg(not(feature = "cpu"))]
    let _ = device;
    work()
}

/// [`pooled`], with another thread of the pool awake until it is done.
pub fn attended<T: Send>(device: &Device, work: impl FnOnce() -> T + Send) -> T {
    pooled(device, || {
        #[cfg(feature = "cpu")]
        if *device == Device::flex() {
            return awake::during(work);
        }
        work()
    })
}

#[cfg(feature = "cpu")]
fn cpu(_: DeviceChoice) -> Result<Device, DeviceError> {
    Ok(Device::flex())
}

#[cfg(not(feature = "cpu"))]
fn cpu(choice: DeviceChoice) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { choice, feature: "cpu" })
}

#[cfg(feature = "cuda")]
fn cuda(_: DeviceChoice, index: usize) -> Result<Device, DeviceError> {
    #[cfg(feature = "kernel-cache")]
    kept::keep();
    Ok(Device::new(burn_cuda::CudaDevice::new(index)))
}

#[cfg(feature = "cuda")]
fn no_search() {
    use burn_std::config::{BurnConfig, RuntimeConfig};
    let config: Result<BurnConfig, _> = toml::from_str("[fusion.beam_search]\nmax_explorations = 0");
    if !config.is_ok_and(BurnConfig::try_set) {
        log::warn!("burn-fusion was configured before: training may wait for its search");
    }
}

#[cfg(not(feature = "cuda"))]
fn no_search() {}

#[cfg(not(feature = "cuda"))]
fn cuda(choice: DeviceChoice, _: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { choice, feature: "cuda" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stations_user_finds_what_the_service_keeps() {
        let path = |text: &str| Some(PathBuf::from(text));
        for (set, home, expected) in [
            (path("/var/cache/dsad"), path("/var/lib/dsad"), path("/var/cache/dsad")),
            (None, path("/var/lib/dsad"), path("/var/cache/dsad")),
            (None, path("/home/a"), path("/home/a/.cache")),
            (path("/x"), None, path("/x")),
            (None, None, None),
        ] {
            assert_eq!(caches(set.clone(), home.clone()), expected, "{set:?} {home:?}");
        }
    }
}
