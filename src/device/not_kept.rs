//! What a program without CUDA, or without the feature `kernel-cache`, has in place of a store of kernels: none.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use super::KernelOrigin;

/// The file that this program keeps kernels in; nothing where it cannot.
pub fn kernel_database() -> Option<PathBuf> {
    None
}

/// What is wrong with a database of kernels: there is none.
pub fn kernel_damage(_: &Path, _: &Path) -> Option<String> {
    None
}

/// The kernels that this program keeps for one GPU.
#[derive(Debug)]
pub struct KernelStore(Infallible);

impl KernelStore {
    /// Of a GPU that was opened; nothing where kernels are not kept.
    pub(super) fn of(_: usize) -> Option<Self> {
        None
    }

    /// What they are good for, but for the driver's version.
    pub fn origin(&self) -> &KernelOrigin {
        match self.0 {}
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        match self.0 {}
    }

    /// Writes them into a file, in cubecl's form.
    ///
    /// # Errors
    /// What cubecl says.
    pub fn export(&self, _: &Path) -> Result<(), String> {
        match self.0 {}
    }

    /// Takes those in that another run wrote, and says how many were not there. What is there stays.
    ///
    /// # Errors
    /// Bytes that are not in cubecl's form, or a database that cannot be written.
    pub fn import(&self, _: Vec<u8>) -> Result<u64, String> {
        match self.0 {}
    }
}
