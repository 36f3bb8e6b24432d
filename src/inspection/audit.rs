//! The audit trail: who did what to a station, for people who must answer for it later.

use std::sync::Arc;

use super::verdict::SinkError;

/// Something that was done to a station, or refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Deed {
    /// The account; or what stands for one, as `station` for what the station did by itself.
    pub who: String,
    /// By which way, and from where: `http 192.168.0.7`, `modbus 192.168.0.20`, `signal`.
    pub from: String,
    /// What, in one word of the interface: `PrepareRecipe`, `login`, `reload`.
    pub what: String,
    /// To what: a camera, an account, a file.
    pub of: String,
    /// What it was before; nothing where there was nothing.
    pub old: Option<String>,
    /// What it is now.
    pub new: Option<String>,
    /// Why it was refused; nothing where it was done.
    pub refused: Option<String>,
}

/// Takes a deed into the trail. It never waits; what is refused must not be done, because nobody could tell of it.
pub type Audit = Arc<dyn Fn(Deed) -> Result<(), SinkError> + Send + Sync>;
