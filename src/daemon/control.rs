//! What clients ask of a station that runs.

use std::sync::Arc;

use super::job::Recipes;
use super::trigger::Inlet;
use crate::inspection::frame::CameraId;
use crate::inspection::time::Clock;
use crate::inspection::trigger::{Command, Done, RefusalCode, Refused};

/// Obeys commands, on whichever thread they come.
pub struct Control {
    cameras: Vec<Controlled>,
    clock: Arc<dyn Clock>,
}

/// A camera as commands know it.
pub struct Controlled {
    /// Its name.
    pub camera: CameraId,
    /// The recipes that it knows.
    pub recipes: Arc<Recipes>,
    /// Its triggers, if it waits for any.
    pub inlet: Option<Arc<Inlet>>,
}

impl Control {
    /// Control of these cameras.
    pub fn new(cameras: Vec<Controlled>, clock: Arc<dyn Clock>) -> Self {
        Self { cameras, clock }
    }

    /// Does what a client asks.
    ///
    /// # Errors
    /// It is refused, and nothing has happened.
    pub fn act(&self, command: Command) -> Result<Done, Refused> {
        match command {
            Command::Trigger { camera, part_id, source } => {
                let at = self.clock.now();
                let (camera, inlet) = self.inlet(camera.as_deref())?;
                let id = inlet.accept(source, part_id, at)?;
                Ok(Done::Accepted { camera: camera.to_string(), frame_id: id.0 })
            }
            Command::PrepareRecipe { camera, recipe } => {
                let asked =
                    self.cameras.iter().filter(|known| camera.as_ref().is_none_or(|name| *known.camera.0 == **name));
                let prepared = asked.filter(|known| known.recipes.select(&recipe, self.clock.now()).is_some());
                let cameras: Vec<String> = prepared.map(|known| known.camera.to_string()).collect();
                if cameras.is_empty() {
                    return Err(self.no_such_recipe(camera.as_deref(), &recipe));
                }
                log::info!("recipe '{recipe}' from the next part on, for: {}", cameras.join(", "));
                Ok(Done::Prepared { cameras })
            }
        }
    }

    /// The camera of that name, or the only one that waits for triggers.
    fn inlet(&self, name: Option<&str>) -> Result<(&CameraId, &Arc<Inlet>), Refused> {
        let waiting = || self.cameras.iter().filter_map(|known| Some((&known.camera, known.inlet.as_ref()?)));
        let names = || waiting().map(|(camera, _)| &*camera.0).collect::<Vec<_>>().join(", ");
        match name {
            Some(name) => match self.cameras.iter().find(|known| &*known.camera.0 == name) {
                Some(Controlled { camera, inlet: Some(inlet), .. }) => Ok((camera, inlet)),
                Some(_) => Err(Refused::new(
                    RefusalCode::NotTriggered,
                    format!("camera '{name}' does not wait for triggers: give it trigger = {{ kind = \"network\" }}"),
                )),
                None => {
                    Err(Refused::new(RefusalCode::Unknown, format!("no camera '{name}'; there are: {}", self.names())))
                }
            },
            None => {
                let mut all = waiting();
                match (all.next(), all.next()) {
                    (Some(only), None) => Ok(only),
                    (None, _) => Err(Refused::new(
                        RefusalCode::NotTriggered,
                        "no camera waits for triggers: give one trigger = { kind = \"network\" }",
                    )),
                    _ => Err(Refused::new(RefusalCode::Unknown, format!("name the camera, one of: {}", names()))),
                }
            }
        }
    }

    fn no_such_recipe(&self, camera: Option<&str>, recipe: &str) -> Refused {
        if let Some(name) = camera.filter(|name| self.cameras.iter().all(|known| *known.camera.0 != **name)) {
            return Refused::new(RefusalCode::Unknown, format!("no camera '{name}'; there are: {}", self.names()));
        }
        let mut known: Vec<String> = self
            .cameras
            .iter()
            .filter(|known| camera.is_none_or(|name| &*known.camera.0 == name))
            .flat_map(|known| known.recipes.all())
            .map(|job| job.recipe.id.0.clone())
            .collect();
        known.sort_unstable();
        known.dedup();
        Refused::new(RefusalCode::Unknown, format!("no recipe '{recipe}'; loaded are: {}", known.join(", ")))
    }

    fn names(&self) -> String {
        self.cameras.iter().map(|known| &*known.camera.0).collect::<Vec<_>>().join(", ")
    }
}
