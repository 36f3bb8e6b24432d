//! What is done beside the stages while they run: a changed configuration is taken, the machine is looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::channel::Sender;

use super::challenge::Challenge;
use super::exchange::Exchange;
use super::job::Recipes;
use super::stages::IDLE;
use crate::inspection::command::Source;
use crate::inspection::conditions::Conditions;
use crate::inspection::frame::CameraId;
use crate::inspection::time::Clock;
use crate::inspection::trigger::Refused;

/// What runs, for whoever changes it.
pub struct Running {
    /// The recipes of every camera, in the order of the configuration.
    pub cameras: Vec<(CameraId, Arc<Recipes>)>,
    /// Detectors that come and go.
    pub exchanges: Sender<Exchange>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Does what there is to do, several times a second. It may wait for a disk: no stage waits for it.
pub type Upkeep = Box<dyn FnMut(&Running) + Send>;

/// Asks for the configuration to be read again, for somebody; it does not wait until it is.
pub type AskReload = Arc<dyn Fn(&Source) -> Result<(), Refused> + Send + Sync>;

/// What goes on beside the stages.
#[derive(Default)]
pub struct Aside {
    /// Done again and again until the station stops.
    pub upkeep: Option<Upkeep>,
    /// How commands ask it for something.
    pub reload: Option<AskReload>,
    /// What is known of the machine.
    pub conditions: Arc<Conditions>,
    /// Golden parts that are judged in between.
    pub challenge: Option<Challenge>,
}

/// Does it until `stop` is set.
pub fn run(mut upkeep: Upkeep, running: &Running, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        upkeep(running);
        std::thread::sleep(IDLE);
    }
}
