//! What clients ask of a station that runs.

use std::sync::{Arc, Mutex, PoisonError};

use super::gate::Gate;
use super::job::Recipes;
use super::state::StationState;
use super::trigger::Inlet;
use super::upkeep::AskReload;
use crate::inspection::audit::Deed;
use crate::inspection::command::{Command, Order, RecipeName, Source};
use crate::inspection::frame::CameraId;
use crate::inspection::station_state::{Start, State, Step};
use crate::inspection::time::Clock;
use crate::inspection::trigger::{Done, RefusalCode, Refused};
use crate::inspection::verdict::FaultReason;
use crate::inspection::words::did_you_mean;

/// Obeys commands, on whichever thread they come.
pub struct Control {
    cameras: Vec<Controlled>,
    station: Arc<StationState>,
    /// Which cameras have a recipe. Held while a command is obeyed: one after the other.
    prepared: Mutex<Vec<bool>>,
    /// Asks for the configuration to be read again; nothing where there is none.
    reload: Option<AskReload>,
    clock: Arc<dyn Clock>,
}

/// A camera as commands know it.
pub struct Controlled {
    /// Its name.
    pub camera: CameraId,
    /// The recipes that it knows.
    pub recipes: Arc<Recipes>,
    /// What lets its frames in.
    pub gate: Arc<Gate>,
    /// Its triggers, if it waits for any.
    pub inlet: Option<Arc<Inlet>>,
}

impl Control {
    /// Control of these cameras.
    pub fn new(
        cameras: Vec<Controlled>,
        station: Arc<StationState>,
        reload: Option<AskReload>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let prepared = vec![station.start() == Start::Automatic; cameras.len()];
        Self { cameras, station, prepared: Mutex::new(prepared), reload, clock }
    }

    /// Does what a client asks.
    ///
    /// # Errors
    /// It is refused, and nothing has happened.
    pub fn act(&self, order: Order) -> Result<Done, Refused> {
        if let Err(refused) = order.permitted() {
            let deed = deed(&order.source, order.command.word(), "station");
            // It is refused whether this is recorded or not.
            let _ = (self.station.audit())(Deed { refused: Some(refused.text.clone()), ..deed });
            return Err(refused);
        }
        let Order { command, source } = order;
        let word = command.word();
        let step = match command {
            Command::StartSingleJob { camera, part_id } => {
                let at = self.clock.now();
                let (camera, inlet) = self.inlet(camera.as_deref())?;
                let id = inlet.accept(source.way(), part_id, at)?;
                return Ok(Done::Accepted { camera: camera.to_string(), frame_id: id.0 });
            }
            Command::PrepareRecipe { camera, recipe } => return self.prepare(camera.as_deref(), &recipe, &source),
            Command::Reload => {
                let nothing = || Refused::new(RefusalCode::NotReady, "there is no configuration to read again");
                // What comes of it is in the log, in the audit trail and in `/metrics`.
                (self.reload.as_ref().ok_or_else(nothing)?)(&source)?;
                return Ok(Done::Entered { state: self.station.now() });
            }
            Command::SelectModeAutomatic => Step::SelectModeAutomatic,
            Command::UnprepareRecipe => Step::UnprepareRecipe,
            Command::StartContinuous => Step::StartContinuous,
            Command::Stop => Step::Stop,
            Command::Abort => Step::Abort,
            Command::Halt => Step::Halt,
            Command::Reset => Step::Reset { broken: false },
        };
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let (old, new) = (self.station.now(), self.station.would(word, step)?);
        self.record(&source, word, "station", old.word(), new.word())?;
        let state = self.station.command(word, step)?;
        log::info!("{word} by {} ({}): {}", source.who, source.from, state.word());
        match step {
            Step::Abort => self.abort("aborted before it was judged"),
            Step::Halt => self.abort("the station was halted before it was judged"),
            _ => {}
        }
        if state == State::Initialized {
            prepared.fill(false);
        }
        Ok(Done::Entered { state })
    }

    /// Judges by another recipe.
    fn prepare(&self, camera: Option<&str>, recipe: &RecipeName, source: &Source) -> Result<Done, Refused> {
        const WORD: &str = "PrepareRecipe";
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let asked =
            self.cameras.iter().enumerate().filter(|(_, known)| camera.is_none_or(|name| *known.camera.0 == *name));
        let found: Vec<(usize, &Controlled, usize)> =
            asked.filter_map(|(at, known)| Some((at, known, known.recipes.find(recipe)?))).collect();
        if found.is_empty() {
            return Err(self.no_such_recipe(camera, recipe));
        }
        let jobs = found.iter().map(|(_, known, index)| known.recipes.get(*index));
        if let Some(job) = jobs.clone().find(|job| !job.is_calibrated()) {
            return Err(Refused::new(RefusalCode::Uncalibrated, job.uncalibrated()));
        }
        let all = (0..prepared.len()).all(|at| prepared[at] || found.iter().any(|(place, ..)| *place == at));
        let step = Step::PrepareRecipe { all };
        self.station.would(WORD, step)?;
        let cameras: Vec<String> = found.iter().map(|(_, known, _)| known.camera.to_string()).collect();
        let ids = |which: &dyn Fn(&Controlled, usize) -> usize| {
            let ids = found.iter().map(|(_, known, index)| known.recipes.get(which(known, *index)).recipe.id.0.clone());
            ids.collect::<Vec<_>>().join(", ")
        };
        let (old, new) = (ids(&|known, _| known.recipes.current()), ids(&|_, index| index));
        self.record(source, WORD, &cameras.join(", "), &old, &new)?;
        let now = self.clock.now();
        for (at, known, index) in &found {
            known.recipes.select(*index, now);
            prepared[*at] = true;
        }
        // A fault in between has taken the station elsewhere; the recipe is prepared all the same.
        let state = self.station.command(WORD, step).unwrap_or_else(|_| self.station.now());
        log::info!(
            "{WORD} by {} ({}): {new} from the next part on, for: {}; {}",
            source.who,
            source.from,
            cameras.join(", "),
            state.word()
        );
        Ok(Done::Prepared { cameras })
    }

    /// Tells of what is about to be done.
    fn record(&self, source: &Source, what: &str, of: &str, old: &str, new: &str) -> Result<(), Refused> {
        let deed = Deed { old: Some(old.into()), new: Some(new.into()), ..deed(source, what, of) };
        (self.station.audit())(deed).map_err(|error| {
            let text = format!("{what} is not done, because the audit trail cannot tell of it: {error}");
            Refused::new(RefusalCode::NotAudited, text)
        })
    }

    fn abort(&self, text: &str) {
        self.cameras.iter().for_each(|known| known.gate.abort(FaultReason::Overrun, text));
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
                None => Err(self.no_such_camera(name)),
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

    fn no_such_camera(&self, name: &str) -> Refused {
        let names: Vec<&str> = self.cameras.iter().map(|known| &*known.camera.0).collect();
        let hint = did_you_mean(name, names.iter().copied());
        Refused::new(RefusalCode::Unknown, format!("no camera '{name}'{hint}; there are: {}", names.join(", ")))
    }

    fn no_such_recipe(&self, camera: Option<&str>, recipe: &RecipeName) -> Refused {
        if let Some(name) = camera.filter(|name| self.cameras.iter().all(|known| *known.camera.0 != **name)) {
            return self.no_such_camera(name);
        }
        let asked = self.cameras.iter().filter(|known| camera.is_none_or(|name| &*known.camera.0 == name));
        let jobs = asked.flat_map(|known| known.recipes.all());
        let mut known: Vec<String> = match recipe {
            RecipeName::Id(_) => jobs.map(|job| job.recipe.id.0.clone()).collect(),
            RecipeName::Number(_) => jobs.filter_map(|job| Some(job.recipe.number?.to_string())).collect(),
        };
        known.sort_unstable();
        known.dedup();
        let hint = match recipe {
            RecipeName::Id(id) => did_you_mean(&id.0, known.iter().map(String::as_str)),
            RecipeName::Number(_) => String::new(),
        };
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Refused::new(RefusalCode::Unknown, format!("no recipe {recipe}{hint}; loaded are: {known}"))
    }
}

fn deed(source: &Source, what: &str, of: &str) -> Deed {
    Deed { who: source.who.clone(), from: source.from.clone(), what: what.into(), of: of.into(), ..Deed::default() }
}
