//! A Modbus TCP server: state, verdicts and commands in registers, for controllers and panels. `docs/modbus.md` has the map.
//!
//! | file | what |
//! |---|---|
//! | `image` | the last verdicts, and the sink that writes them |
//! | `registers` | the map |
//! | `idle` | connections that end when no request comes |

mod idle;
pub mod image;
pub mod registers;

use std::collections::BTreeMap;
use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_modbus::server::tcp::Server;
use tokio_modbus::{ExceptionCode, Request, Response};

use self::idle::Idle;
use self::image::Image;
use self::registers::{CAMERA, CAMERA_ROWS, Commands, Picture, STATION_ROWS};
use super::{Act, Read};
use crate::config::access::Access;
use crate::inspection::command::{Command, Order, RecipeName, Source};
use crate::inspection::frame::CameraId;
use crate::inspection::trigger::{RefusalCode, Refused};

/// Controllers at once; more wait in the system's queue until a place is free.
const PLACES: usize = 16;
/// A connection without a whole request for so long is closed: the controller is gone, and its place is needed.
const SILENCE: Duration = Duration::from_secs(60);
/// Wait after the system refused a connection.
const REFUSED: Duration = Duration::from_millis(100);
/// The most registers, and the most coils, that a request may read.
const MOST: (u16, u16) = (125, 2_000);
/// Address of the register that makes a command be done.
const REQUEST: u16 = 13;
/// Address of the first register that is written.
const COMMAND: u16 = 8;
/// Where in a camera's block a verdict is acknowledged.
const SEEN: u16 = 22;
/// What was done.
const DONE: u16 = 1;

/// What all connections share.
pub struct Modbus {
    /// The last verdicts.
    pub image: Arc<Image>,
    /// Who may connect.
    pub access: Access,
    /// Tells how the station is.
    pub read: Read,
    /// Obeys.
    pub act: Act,
    /// What was commanded.
    pub commands: Mutex<Commands>,
}

/// Answers whoever connects, until it is dropped.
pub async fn serve(listener: TcpListener, modbus: Arc<Modbus>) {
    let places = Arc::new(Semaphore::new(PLACES));
    let server = Server::new(listener);
    loop {
        let connect = |stream: TcpStream, peer: SocketAddr| {
            let (modbus, places) = (Arc::clone(&modbus), Arc::clone(&places));
            async move {
                if !modbus.access.admits(peer.ip()) {
                    log::debug!("modbus: {peer} is on no list");
                    return Ok(None);
                }
                let _ = stream.set_nodelay(true);
                let place = places.acquire_owned().await.map_err(io::Error::other)?;
                let source = Source::unnamed("modbus", peer, modbus.access.level);
                Ok(Some((Session { modbus, source }, Idle::new(stream, SILENCE, place))))
            }
        };
        let ended = server.serve(&connect, |error| log::debug!("modbus: {error}")).await;
        log::debug!("modbus: no connection: {ended:?}");
        sleep(REFUSED).await;
    }
}

/// One connection.
struct Session {
    modbus: Arc<Modbus>,
    source: Source,
}

impl tokio_modbus::server::Service for Session {
    type Request = Request<'static>;
    type Response = Response;
    type Exception = ExceptionCode;
    type Future = Ready<Result<Response, ExceptionCode>>;

    fn call(&self, request: Self::Request) -> Self::Future {
        ready(self.answer(request))
    }
}

impl Session {
    fn answer(&self, request: Request<'static>) -> Result<Response, ExceptionCode> {
        Ok(match request {
            Request::ReadCoils(at, count) => Response::ReadCoils(self.read(at, count, MOST.1, Picture::coil)?),
            Request::ReadDiscreteInputs(at, count) => {
                Response::ReadDiscreteInputs(self.read(at, count, MOST.1, Picture::input)?)
            }
            Request::ReadHoldingRegisters(at, count) => {
                Response::ReadHoldingRegisters(self.read(at, count, MOST.0, Picture::register)?)
            }
            Request::ReadInputRegisters(at, count) => {
                Response::ReadInputRegisters(self.read(at, count, MOST.0, Picture::register)?)
            }
            Request::WriteSingleCoil(at, on) => {
                self.coils(at, &[on])?;
                Response::WriteSingleCoil(at, on)
            }
            Request::WriteMultipleCoils(at, on) => {
                self.coils(at, &on)?;
                Response::WriteMultipleCoils(at, on.len() as u16)
            }
            Request::WriteSingleRegister(at, value) => {
                self.write(at, &[value])?;
                Response::WriteSingleRegister(at, value)
            }
            Request::WriteMultipleRegisters(at, values) => {
                self.write(at, &values)?;
                Response::WriteMultipleRegisters(at, values.len() as u16)
            }
            Request::ReadWriteMultipleRegisters(from, count, at, values) => {
                self.write(at, &values)?;
                Response::ReadWriteMultipleRegisters(self.read(from, count, MOST.0, Picture::register)?)
            }
            _ => return Err(ExceptionCode::IllegalFunction),
        })
    }

    fn read<T>(
        &self,
        at: u16,
        count: u16,
        most: u16,
        of: impl Fn(&Picture, u16) -> Option<T>,
    ) -> Result<Vec<T>, ExceptionCode> {
        if !(1..=most).contains(&count) {
            return Err(ExceptionCode::IllegalDataValue);
        }
        let end = at.checked_add(count).ok_or(ExceptionCode::IllegalDataAddress)?;
        let image = &self.modbus.image;
        // Verdicts first: what was commanded meanwhile is not older than they are.
        let slots = (0..image.cameras().count()).filter_map(|place| image.slot(place)).collect();
        let mut reading = (self.modbus.read)();
        let told = std::mem::take(&mut reading.cameras);
        let of_camera = |camera: &CameraId| told.iter().find(|told| told.camera == *camera.0).cloned();
        reading.cameras = image.cameras().map(|camera| of_camera(camera).unwrap_or_default()).collect();
        let picture = Picture { slots, reading, commands: *self.commands() };
        (at..end).map(|address| of(&picture, address)).collect::<Option<_>>().ok_or(ExceptionCode::IllegalDataAddress)
    }

    /// Writes registers: all of them, or none.
    fn write(&self, at: u16, values: &[u16]) -> Result<(), ExceptionCode> {
        if values.is_empty() {
            return Err(ExceptionCode::IllegalDataValue);
        }
        let count = u16::try_from(values.len()).map_err(|_| ExceptionCode::IllegalDataValue)?;
        let end = at.checked_add(count).ok_or(ExceptionCode::IllegalDataAddress)?;
        let cameras = self.modbus.image.cameras().count();
        let place = |address: u16| usize::from(address / CAMERA).checked_sub(1).filter(|place| *place < cameras);
        let is_free = |address: u16| {
            let (rows, within): (&[_], _) = match place(address) {
                Some(_) => (&CAMERA_ROWS, address % CAMERA),
                None => (&STATION_ROWS, address),
            };
            rows.iter().any(|row| row.writable && (row.at..row.at + row.words).contains(&within))
        };
        if !(at..end).all(is_free) {
            return Err(ExceptionCode::IllegalDataAddress);
        }
        let mut requested = None;
        for (address, value) in (at..end).zip(values) {
            match place(address) {
                Some(place) if address % CAMERA == SEEN => self.modbus.image.acknowledge(place, *value),
                _ => {
                    let mut commands = self.commands();
                    commands.written[usize::from(address - COMMAND)] = *value;
                    requested = (address == REQUEST && *value != commands.acknowledge).then_some(*commands);
                }
            }
        }
        if let Some(asked) = requested {
            let result = self.command(&asked);
            let mut commands = self.commands();
            (commands.acknowledge, commands.result) = (asked.written[5], result);
        }
        Ok(())
    }

    /// Triggers the cameras whose coils are set.
    fn coils(&self, at: u16, on: &[bool]) -> Result<(), ExceptionCode> {
        if on.is_empty() {
            return Err(ExceptionCode::IllegalDataValue);
        }
        let places = usize::from(at)..usize::from(at) + on.len();
        let cameras: Vec<String> = self.modbus.image.cameras().map(ToString::to_string).collect();
        if at == 0 || places.end > cameras.len() + 1 {
            return Err(ExceptionCode::IllegalDataAddress);
        }
        for (place, _) in places.zip(on).filter(|(_, on)| **on) {
            let camera = Some(cameras[place - 1].clone());
            let result = self.obey(Command::StartSingleJob { camera, part_id: part(self.commands().part()) });
            self.modbus.image.triggered(place - 1, result);
        }
        Ok(())
    }

    fn command(&self, asked: &Commands) -> u16 {
        let [number, camera, recipe, ..] = asked.written;
        let unknown = RefusalCode::Unknown.number();
        let camera = match camera {
            0 => None,
            n => match self.modbus.image.cameras().nth(usize::from(n) - 1) {
                Some(camera) => Some(camera.to_string()),
                None => return unknown,
            },
        };
        let command = match Command::words().find(|(_, known)| *known == number).map(|(word, _)| word) {
            Some("PrepareRecipe") => Command::PrepareRecipe { camera, recipe: RecipeName::Number(recipe) },
            Some("StartSingleJob") => Command::StartSingleJob { camera, part_id: part(asked.part()) },
            Some(word) => match Command::parse(word, &BTreeMap::new()) {
                Ok(command) => command,
                Err(Refused { code, .. }) => return code.number(),
            },
            None => return unknown,
        };
        self.obey(command)
    }

    fn obey(&self, command: Command) -> u16 {
        let word = command.word();
        match (self.modbus.act)(Order { command, source: self.source.clone() }) {
            Ok(_) => DONE,
            Err(refused) => {
                log::debug!("{}: {word}: {refused}", self.source.from);
                refused.code.number()
            }
        }
    }

    fn commands(&self) -> MutexGuard<'_, Commands> {
        self.modbus.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn part(number: u32) -> Option<String> {
    (number > 0).then(|| number.to_string())
}
