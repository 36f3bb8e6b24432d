//! Kernels that were compiled for a GPU, kept between runs by cubecl: in a database of its own for every build of a program.
//!
//! cubecl looks a kernel up by its version, the GPU's architecture, the driver's PTX version, the kernel, and the build ID of the
//! program: whatever does not fit is not found, and compiled.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use burn_cubecl::CubeDevice;
use burn_cubecl::cubecl::bundle::{self, BundleError, BundleFormat, EmbeddedBundle, ExportOptions};
use burn_cubecl::cubecl::config::CubeClRuntimeConfig;
use burn_cubecl::cubecl::config::cache::CacheConfig;
use burn_cubecl::cubecl::environment::{self, Namespace};
use burn_cubecl::cubecl::records::RecordLevel;
use burn_cuda::CudaDevice;
use burn_std::config::RuntimeConfig;

use super::{KernelOrigin, kernel_folder};

/// Where cubecl keeps what it compiled for CUDA, among other things.
const NAMESPACE: &str = "cuda/";

/// The build ID of this program, in hex. Without one the kernels of different builds could not be told apart.
fn build() -> Option<String> {
    let id = buildid::build_id()?;
    Some(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The name of this build's database.
fn name(build: &str) -> String {
    format!("dsad-{}", build.get(..16).unwrap_or(build))
}

/// The file that this program keeps kernels in; nothing where it cannot.
pub fn kernel_database() -> Option<PathBuf> {
    Some(kernel_folder()?.join(environment::file_name(&name(&build()?))))
}

/// What is wrong with a database of kernels, if not all of it can be read. It must not be open yet in this process. `copy` is a file that is
/// not there, and may be afterwards: nobody needs it.
pub fn kernel_damage(database: &Path, copy: &Path) -> Option<String> {
    if !database.is_file() {
        return None;
    }
    let options = ExportOptions { format: BundleFormat::Flat, ..ExportOptions::default() };
    // Reads every entry. The engine may panic over pages that contradict each other.
    let read = std::panic::catch_unwind(|| bundle::export(&[database], copy, &options));
    match read {
        Ok(Err(BundleError::Storage(reason))) => Some(reason),
        // A copy that could not be written says nothing about what was read.
        Ok(Ok(_) | Err(_)) => None,
        Err(_) => Some("its pages contradict each other".into()),
    }
}

/// Keeps what is compiled from now on. The first device that is opened asks for it: cubecl reads its configuration once.
pub(super) fn keep() {
    static ASKED: OnceLock<()> = OnceLock::new();
    ASKED.get_or_init(|| {
        let (Some(folder), Some(build)) = (kernel_folder(), build()) else {
            log::warn!("kernels are not kept: there is no XDG_CACHE_HOME and no HOME, or this program has no build ID");
            return;
        };
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        config.compilation.cache = true;
        config.environment.name = name(&build);
        config.environment.path = CacheConfig::Directory(folder);
        config.environment.records.level = RecordLevel::Off;
        if !CubeClRuntimeConfig::try_set(config) {
            log::warn!("kernels are not kept: cubecl was configured before");
        }
    });
}

/// The kernels that this program keeps for one GPU.
#[derive(Debug)]
pub struct KernelStore {
    origin: KernelOrigin,
}

impl KernelStore {
    /// Of a GPU that was opened; nothing where kernels are not kept.
    pub(super) fn of(index: usize) -> Option<Self> {
        let database = kernel_database()?;
        // Whoever configured cubecl otherwise has another store, and where none can be written kernels are in memory alone.
        (environment::path() == database && database.is_file()).then_some(())?;
        let client = CubeDevice::Cuda(CudaDevice::new(index)).client();
        let identity = &client.properties().identity;
        let origin = KernelOrigin {
            cubecl: Namespace::new("").as_str().split('/').nth(1).unwrap_or_default().to_owned(),
            build: build()?,
            device: identity.name.clone(),
            architecture: identity.fingerprint.clone(),
            driver: None,
        };
        Some(Self { origin })
    }

    /// What they are good for, but for the driver's version.
    pub fn origin(&self) -> &KernelOrigin {
        &self.origin
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        count()
    }

    /// Writes them into a file, in cubecl's form.
    ///
    /// # Errors
    /// What cubecl says.
    pub fn export(&self, to: &Path) -> Result<(), String> {
        export(to)
    }

    /// Takes those in that another run wrote, and says how many were not there. What is there stays.
    ///
    /// # Errors
    /// Bytes that are not in cubecl's form, or a database that cannot be written.
    pub fn import(&self, kernels: Vec<u8>) -> Result<u64, String> {
        import(kernels)
    }
}

fn count() -> u64 {
    let all = environment::namespaces();
    all.iter().filter(|summary| summary.namespace.starts_with(NAMESPACE)).map(|summary| summary.entries).sum()
}

fn export(to: &Path) -> Result<(), String> {
    environment::bundle().save(to, BundleFormat::Flat).map(drop).map_err(|error| error.to_string())
}

fn import(kernels: Vec<u8>) -> Result<u64, String> {
    let found = EmbeddedBundle::open(burn_std::Bytes::from_bytes_vec(kernels)).map_err(|error| error.to_string())?;
    let before = count();
    let report = bundle::import(&found);
    match report.failed {
        0 => Ok(count().saturating_sub(before)),
        failed => {
            Err(format!("{failed} of {} entries could not be written", failed + report.imported + report.skipped))
        }
    }
}

#[cfg(test)]
mod tests {
    use burn_cubecl::cubecl::environment::{CacheOption, Store, StoreOptions};

    use super::*;

    fn put(key: u32, value: &str) {
        let options = StoreOptions::new().storage(Namespace::scoped("cuda", "ptx_sm90-llvm")).cache(CacheOption::Lazy);
        let mut store: Store<u32, String> = Store::new(options);
        store.insert(key, value.to_owned()).expect("keeps");
    }

    #[test]
    fn kernels_travel_from_one_database_to_another() {
        let (there, here) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
        let file = there.path().join("kernels");
        environment::set_root(there.path());
        (0..5).for_each(|key| put(key, "ptx"));
        assert_eq!(count(), 5);
        export(&file).expect("exports");
        environment::set_root(here.path());
        assert_eq!(count(), 0);
        put(3, "its own");
        let bytes = std::fs::read(&file).expect("reads");
        assert_eq!(import(bytes.clone()), Ok(4), "one is there already");
        assert_eq!(import(bytes.clone()), Ok(0), "all are there");
        assert_eq!(count(), 5);
        for length in [0, 11, 40, bytes.len() - 1] {
            assert!(import(bytes[..length].to_vec()).is_err(), "{length} bytes");
        }
        let damaged = tempfile::tempdir().expect("directory");
        let database = damaged.path().join(environment::file_name(&environment::active()));
        assert_eq!(kernel_damage(&database, &here.path().join("copy")), None, "nothing is kept yet");
        std::fs::write(&database, "no database".repeat(1000)).expect("writes");
        assert!(kernel_damage(&database, &here.path().join("copy")).is_some());
        environment::set_root(damaged.path());
        assert_eq!(count(), 0, "nothing is kept, and nothing fails");
        put(1, "in memory");
        let sound = here.path().join(environment::file_name(&environment::active()));
        assert_eq!(kernel_damage(&sound, &here.path().join("copy")), None);
    }

    #[test]
    fn every_build_has_its_own() {
        assert_ne!(name("0123456789abcdef01"), name("0123456789abcdee01"));
        assert_eq!(name("01"), "dsad-01");
    }
}
