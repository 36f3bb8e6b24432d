//! The HTTP service: who may connect, for how long, and what is answered.
//!
//! | route | answer |
//! |---|---|
//! | `GET /livez` | 200 while the process runs |
//! | `GET /readyz` | 200 when the detectors are loaded and frames come, else 503; JSON with the reasons |
//! | `GET /metrics` | the counters, see `docs/metrics.md` |
//!
//! One request per connection, and the body of a request is not read: whoever is slow, idle or many takes a place for a
//! bounded time, in this thread alone.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use super::metrics::{self, Reading};

/// Connections at once; more wait in the system's queue until a place is free.
const PLACES: u32 = 64;
/// Longest time from connecting to the last byte of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest request line with headers, bytes.
const HEADER: usize = 16 << 10;
/// Longest time that answers which have begun may take when the service is stopped.
const GRACE: Duration = Duration::from_secs(1);
/// Wait after the system refused a connection, as when the process has no file descriptors left.
const REFUSED: Duration = Duration::from_millis(100);

/// Tells how the station is now.
pub type Read = Arc<dyn Fn() -> Reading + Send + Sync>;

/// Adds to a reading what the stages do not know.
pub type Add = Box<dyn Fn(&mut Reading) + Send + Sync>;

/// A service, not yet running.
pub struct Service {
    listener: TcpListener,
    add: Vec<Add>,
}

impl Service {
    /// A service of whoever connects to a listener.
    ///
    /// # Errors
    /// The system refuses what the listener needs.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, add: Vec::new() })
    }

    /// The same, which tells of something else as well.
    pub fn with(mut self, add: Add) -> Self {
        self.add.push(add);
        self
    }

    /// Its address, with the port that the system chose where none was asked for.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers on the calling thread until the other end of `stop` is used or dropped.
    ///
    /// # Errors
    /// The system refuses what the listener needs.
    pub fn run(self, read: Read, stop: oneshot::Receiver<()>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let Self { listener, add } = self;
        let read: Read = Arc::new(move || {
            let mut reading = read();
            add.iter().for_each(|add| add(&mut reading));
            reading
        });
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let places = Arc::new(Semaphore::new(PLACES as usize));
            until(stop, accept(listener, routes(read), Arc::clone(&places), PATIENCE)).await;
            // All places are free when all answers are out; what takes longer is cut off.
            let _ = timeout(GRACE, places.acquire_many(PLACES)).await;
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

async fn accept(listener: tokio::net::TcpListener, routes: Router, places: Arc<Semaphore>, patience: Duration) {
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let routes = routes.clone();
                tokio::spawn(async move {
                    let answer = http1::Builder::new()
                        .keep_alive(false)
                        .max_buf_size(HEADER)
                        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
                    match timeout(patience, answer).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => log::debug!("http: {peer}: {error}"),
                        Err(_) => log::debug!("http: {peer}: cut off after {patience:?}"),
                    }
                    drop(place);
                });
            }
            Err(error) => {
                log::debug!("http: no connection: {error}");
                sleep(REFUSED).await;
            }
        }
    }
}

fn routes(read: Read) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(counters))
        .with_state(read)
}

async fn ready(State(read): State<Read>) -> Response {
    let reasons = read().obstacles;
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({"ready": reasons.is_empty(), "reasons": reasons});
    (status, [(CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

async fn counters(State(read): State<Read>) -> Response {
    match metrics::text(read()) {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;

    #[test]
    fn who_is_slow_gives_the_place_back() {
        let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(Service::new).expect("binds");
        let address = service.address().expect("address");
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(service.listener).expect("listens");
                let routes = routes(Arc::new(Reading::default));
                until(stopped, accept(listener, routes, Arc::new(Semaphore::new(2)), Duration::from_millis(200))).await;
            });
        });
        let idle: Vec<TcpStream> = (0..6).map(|_| TcpStream::connect(address).expect("connects")).collect();
        let mut client = TcpStream::connect(address).expect("connects");
        client.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").expect("asks");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("answers");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"ready\":true"), "{answer}");
        for mut client in idle {
            assert_eq!(client.read(&mut [0]).expect("is closed"), 0);
        }
        drop(stop);
        serving.join().expect("stops");
    }
}
