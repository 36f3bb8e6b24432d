//! What a station tells over the network, and the commands that it takes there. One worker thread, spawned by the daemon: what a
//! client does reaches the inspection as a command, or not at all.
//!
//! | file | what |
//! |---|---|
//! | `http` | connections: places, patience, encryption |
//! | `routes` | every route and who may ask; the router |
//! | `reads`, `commands`, `login` | the answers |
//! | `sessions`, `guard` | who has logged in; who asks too often or guesses |
//! | `tcp` | commands as lines of text, for controllers |
//! | `modbus` | registers and coils, for controllers and panels |
//! | `mqtt`, `webhook`, `alarms` | what is told whether somebody listens or not, from the outbox |
//! | `verdicts` | verdicts on their way to connections |
//! | `metrics` | a reading of the counters, and its Prometheus text |

pub mod alarms;
mod commands;
pub mod guard;
pub mod http;
mod login;
pub mod metrics;
pub mod modbus;
pub mod mqtt;
mod reads;
pub mod routes;
pub mod sessions;
pub mod tcp;
pub mod verdicts;
pub mod webhook;

use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Poll;
use std::time::Duration;

use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::ServerConfig;

use self::metrics::Reading;
use self::modbus::Modbus;
use self::modbus::image::{Image, ImageSink};
use self::routes::Shared;
use self::verdicts::{Board, BoardSink};
use crate::accounts::Accounts;
use crate::config::access::Access;
use crate::inspection::audit::Audit;
use crate::inspection::command::Order;
use crate::inspection::frame::CameraId;
use crate::inspection::time::Clock;
use crate::inspection::trigger::{Done, RefusalCode, Refused};
use crate::inspection::verdict::VerdictSink;

/// Longest time that answers which have begun may take when the service is stopped.
const GRACE: Duration = Duration::from_secs(1);
/// Wait after the system refused a connection, as when the process has no file descriptors left.
const REFUSED: Duration = Duration::from_millis(100);

/// Threads for answers that take long: one looks at a password, one reads or draws.
const BESIDE: usize = 2;

/// Tells how the station is now.
pub type Read = Arc<dyn Fn() -> Reading + Send + Sync>;
/// Obeys a command.
pub type Act = Arc<dyn Fn(Order) -> Result<Done, Refused> + Send + Sync>;

/// The station for those who ask outside of the service: empty until the stages are there.
#[derive(Default)]
pub struct Desk(OnceLock<(Read, Act)>);

impl Desk {
    /// The stages are there.
    pub fn open(&self, read: Read, act: Act) {
        // Who comes second changes nothing.
        let _ = self.0.set((read, act));
    }

    /// How the station is now.
    pub fn read(&self) -> Option<Reading> {
        self.0.get().map(|(read, _)| read())
    }

    /// Obeys a command.
    ///
    /// # Errors
    /// It is refused.
    pub fn act(&self, order: Order) -> Result<Done, Refused> {
        let starts = || Err(Refused::new(RefusalCode::NotReady, "the station starts"));
        self.0.get().map_or_else(starts, |(_, act)| act(order))
    }
}

/// What came of a command, as JSON.
fn told(done: &Done) -> serde_json::Value {
    match done {
        Done::Accepted { camera, frame_id } => json!({"camera": camera, "frame_id": frame_id}),
        Done::Prepared { cameras } => json!({"cameras": cameras}),
        Done::Entered { state } => json!({"state": state.word()}),
    }
}

/// Adds to a reading what the stages do not know.
pub type Add = Box<dyn Fn(&mut Reading) + Send + Sync>;
/// Draws what was last inspected on a camera, as JPEG; nothing where there is no such camera or picture.
pub type Draw = Arc<dyn Fn(&str) -> Option<Vec<u8>> + Send + Sync>;
/// At most so many events after that of an id, the oldest first; without an id the newest. One JSON object each.
pub type Recent = Arc<dyn Fn(Option<&str>, usize) -> Result<Vec<String>, String> + Send + Sync>;

/// Who may ask the HTTP service, and what it tells beside the counters.
#[derive(Clone)]
pub struct Http {
    /// Name of the station.
    pub station: String,
    /// Who may log in.
    pub accounts: Arc<Accounts>,
    /// Where logins and changes of accounts are written.
    pub audit: Audit,
    /// Time, for sessions and limits.
    pub clock: Arc<dyn Clock>,
    /// How it is encrypted; absent is not at all.
    pub tls: Option<Arc<ServerConfig>>,
    /// Whether state and counters are told without an account.
    pub open_reads: bool,
    /// The last pictures; absent tells none.
    pub picture: Option<Draw>,
    /// The last events; absent tells none.
    pub recent: Option<Recent>,
}

/// A service, not yet running.
#[derive(Default)]
pub struct Service {
    http: Option<TcpListener>,
    settings: Option<Http>,
    tcp: Option<TcpListener>,
    tcp_access: Access,
    board: Arc<Board>,
    modbus: Option<(TcpListener, Access, Arc<Image>)>,
    add: Vec<Add>,
}

impl Service {
    /// A service of whoever connects to these listeners. Over HTTP it is only read, until there are accounts.
    ///
    /// # Errors
    /// The system refuses what the listeners need.
    pub fn new(http: Option<TcpListener>, tcp: Option<TcpListener>) -> io::Result<Self> {
        for listener in [&http, &tcp].into_iter().flatten() {
            listener.set_nonblocking(true)?;
        }
        Ok(Self { http, tcp, ..Self::default() })
    }

    /// The same, with accounts.
    pub fn with_accounts(mut self, settings: Http) -> Self {
        self.settings = Some(settings);
        self
    }

    /// The same, with these rules for who commands by lines of text: without them this machine alone, as an operator.
    pub fn tcp_access(mut self, access: Access) -> Self {
        self.tcp_access = access;
        self
    }

    /// The same, with registers and coils of these cameras.
    ///
    /// # Errors
    /// The system refuses what the listener needs.
    pub fn modbus(mut self, listener: TcpListener, access: Access, cameras: &[CameraId]) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        self.modbus = Some((listener, access, Arc::new(Image::new(cameras))));
        Ok(self)
    }

    /// What the publish stage must tell for this service.
    pub fn sinks(&self) -> Vec<Box<dyn VerdictSink>> {
        let board = self.tcp.as_ref().map(|_| Box::new(BoardSink(Arc::clone(&self.board))) as Box<dyn VerdictSink>);
        let image =
            self.modbus.as_ref().map(|(.., image)| Box::new(ImageSink(Arc::clone(image))) as Box<dyn VerdictSink>);
        image.into_iter().chain(board).collect()
    }

    /// The address of the registers.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn modbus_address(&self) -> io::Result<Option<SocketAddr>> {
        self.modbus.as_ref().map(|(listener, ..)| listener.local_addr()).transpose()
    }

    /// The same, which tells of something else as well.
    pub fn with(mut self, add: Add) -> Self {
        self.add.push(add);
        self
    }

    /// Its addresses, HTTP and TCP, with the ports that the system chose where none were asked for.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn addresses(&self) -> io::Result<(Option<SocketAddr>, Option<SocketAddr>)> {
        let of = |listener: &Option<TcpListener>| listener.as_ref().map(TcpListener::local_addr).transpose();
        Ok((of(&self.http)?, of(&self.tcp)?))
    }

    /// Answers on the calling thread until the other end of `stop` is used or dropped.
    ///
    /// # Errors
    /// The system refuses what the listeners need.
    pub fn run(self, read: Read, act: Act, stop: oneshot::Receiver<()>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(BESIDE)
            .build()?;
        let add = self.add;
        let read: Read = Arc::new(move || {
            let mut reading = read();
            add.iter().for_each(|add| add(&mut reading));
            reading
        });
        runtime.block_on(async {
            let convert = |listener: Option<TcpListener>| listener.map(tokio::net::TcpListener::from_std).transpose();
            let (http, tcp) = (convert(self.http)?, convert(self.tcp)?);
            let http_places = Arc::new(Semaphore::new(http::PLACES as usize));
            let tcp_places = Arc::new(Semaphore::new(tcp::PLACES));
            let serve_tcp = {
                let (act, places) = (Arc::clone(&act), Arc::clone(&tcp_places));
                let (access, board) = (Arc::new(self.tcp_access), self.board);
                async move {
                    match tcp {
                        Some(listener) => {
                            let talk = move |stream, peer: SocketAddr, place| {
                                let (act, access, board) = (Arc::clone(&act), Arc::clone(&access), Arc::clone(&board));
                                async move {
                                    if access.admits(peer.ip()) {
                                        tcp::talk(stream, peer, act, access.level, board, place).await;
                                    } else {
                                        log::debug!("tcp: {peer} is on no list");
                                    }
                                }
                            };
                            accept(listener, places, talk).await;
                        }
                        None => std::future::pending().await,
                    }
                }
            };
            let tcp = tokio::spawn(serve_tcp);
            let modbus = match self.modbus {
                Some((listener, access, image)) => {
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    let (read, act) = (Arc::clone(&read), Arc::clone(&act));
                    let modbus = Modbus { image, access, read, act, commands: Mutex::default() };
                    Some(tokio::spawn(modbus::serve(listener, Arc::new(modbus))))
                }
                None => None,
            };
            match http {
                Some(listener) => {
                    let shared = Arc::new(Shared::new(read, act, self.settings));
                    until(stop, http::serve(listener, shared, Arc::clone(&http_places), http::PATIENCE)).await;
                }
                None => until(stop, std::future::pending::<()>()).await,
            }
            tcp.abort();
            modbus.inspect(|modbus| modbus.abort());
            // All places are free when all answers are out; what takes longer is cut off.
            let _ = timeout(GRACE, http_places.acquire_many(http::PLACES)).await;
            Ok(())
        })
    }
}

/// Works until either future ends.
async fn until(stop: impl Future, work: impl Future) {
    let (mut stop, mut work) = (pin!(stop), pin!(work));
    poll_fn(|context| {
        let ended = stop.as_mut().poll(context).is_ready() || work.as_mut().poll(context).is_ready();
        if ended { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Gives every connection a place, and a task of its own that gives it back.
async fn accept<T: Future<Output = ()> + Send + 'static>(
    listener: tokio::net::TcpListener,
    places: Arc<Semaphore>,
    talk: impl Fn(TcpStream, SocketAddr, OwnedSemaphorePermit) -> T,
) {
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, peer)) => drop(tokio::spawn(talk(stream, peer, place))),
            Err(error) => {
                log::debug!("no connection: {error}");
                sleep(REFUSED).await;
            }
        }
    }
}
