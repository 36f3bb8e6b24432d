//! The HTTP service: who may connect, and for how long. `routes` says what is answered.
//!
//! One request per connection, of a bounded length: whoever is slow, idle or many takes a place for a bounded time, in this
//! thread alone. When all places are taken, the connection that has kept one for longest without anything being done for it
//! makes room: slow ones never keep others out.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::routes::{Shared, hold, router};
use super::{REFUSED, until};

/// Connections at once.
pub const PLACES: u32 = 256;
/// Longest time from connecting to the last byte of the answer.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Longest request line with headers, bytes.
const HEADER: usize = 16 << 10;

/// Connections for which nothing is done now, the oldest first.
#[derive(Debug, Default)]
struct Idle {
    next: u64,
    waiting: BTreeMap<u64, Arc<Notify>>,
}

/// A connection's place in the order of those that may be cut off.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    /// Whose it is.
    pub peer: IpAddr,
    number: u64,
    cut: Arc<Notify>,
    idle: Arc<Mutex<Idle>>,
}

/// While an answer is made its connection is not cut off.
pub(super) struct Busy<'a>(&'a Ticket);

impl Ticket {
    fn new(peer: IpAddr, idle: &Arc<Mutex<Idle>>) -> Self {
        let cut = Arc::new(Notify::new());
        let mut held = hold(idle);
        held.next += 1;
        let number = held.next;
        held.waiting.insert(number, Arc::clone(&cut));
        Self { peer, number, cut, idle: Arc::clone(idle) }
    }

    /// Keeps the connection while the answer lives.
    pub fn busy(&self) -> Busy<'_> {
        hold(&self.idle).waiting.remove(&self.number);
        Busy(self)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        // Whoever does not take the answer is slow again.
        hold(&self.0.idle).waiting.insert(self.0.number, Arc::clone(&self.0.cut));
    }
}

/// Answers whoever connects.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, places: Arc<Semaphore>, patience: Duration) {
    let tls = shared.http.as_ref().and_then(|http| http.tls.clone()).map(TlsAcceptor::from);
    let routes = router(&shared);
    let idle: Arc<Mutex<Idle>> = Arc::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                log::debug!("http: no connection: {error}");
                sleep(REFUSED).await;
                continue;
            }
        };
        if places.available_permits() == 0
            && let Some((_, oldest)) = hold(&idle).waiting.pop_first()
        {
            oldest.notify_one();
        }
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let ticket = Ticket::new(peer.ip().to_canonical(), &idle);
        let (routes, tls) = (routes.clone(), tls.clone());
        tokio::spawn(async move {
            let (cut, number, idle) = (Arc::clone(&ticket.cut), ticket.number, Arc::clone(&ticket.idle));
            let talk = async {
                if timeout(patience, talk(stream, peer, tls, routes, ticket)).await.is_err() {
                    log::debug!("http: {peer}: cut off after {patience:?}");
                }
            };
            until(cut.notified(), talk).await;
            hold(&idle).waiting.remove(&number);
            drop(place);
        });
    }
}

async fn talk(stream: TcpStream, peer: SocketAddr, tls: Option<TlsAcceptor>, routes: Router, ticket: Ticket) {
    match tls {
        None => answer(stream, peer, routes, ticket).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => answer(stream, peer, routes, ticket).await,
            Err(error) => log::debug!("http: {peer}: no handshake: {error}"),
        },
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(stream: S, peer: SocketAddr, routes: Router, ticket: Ticket) {
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request;
        request.extensions_mut().insert(ticket.clone());
        routes.call(request)
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEADER)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        log::debug!("http: {peer}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::thread::JoinHandle;

    use tokio::sync::oneshot;

    use super::super::metrics::Reading;
    use super::*;
    use crate::inspection::trigger::{RefusalCode, Refused};

    fn served(places: usize, patience: Duration) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
        listener.set_nonblocking(true).expect("is set");
        let address = listener.local_addr().expect("address");
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("listens");
                let act: super::super::Act = Arc::new(|_| Err(Refused::new(RefusalCode::NotReady, "")));
                let shared = Arc::new(Shared::new(Arc::new(Reading::default), act, None));
                until(stopped, serve(listener, shared, Arc::new(Semaphore::new(places)), patience)).await;
            });
        });
        (address, stop, serving)
    }

    fn ask(address: SocketAddr) -> String {
        let mut client = TcpStream::connect(address).expect("connects");
        client.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").expect("asks");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("answers");
        answer
    }

    #[test]
    fn who_is_slow_gives_the_place_back() {
        let (address, stop, serving) = served(64, Duration::from_millis(200));
        let idle: Vec<TcpStream> = (0..6).map(|_| TcpStream::connect(address).expect("connects")).collect();
        let answer = ask(address);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"ready\":true"), "{answer}");
        for mut client in idle {
            assert_eq!(client.read(&mut [0]).expect("is closed"), 0);
        }
        drop(stop);
        serving.join().expect("stops");
    }

    #[test]
    fn who_waits_for_nothing_makes_room() {
        // Nobody's patience ends while this test runs.
        let (address, stop, serving) = served(2, Duration::from_secs(3_600));
        let mut idle: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(address).expect("connects")).collect();
        idle.iter_mut()
            .for_each(|client| drop(client.write_all(b"POST /v1/trigger HTTP/1.1\r\nContent-Length: 9\r\n\r\nx")));
        for _ in 0..10 {
            assert!(ask(address).starts_with("HTTP/1.1 200"));
        }
        assert_eq!(idle[0].read(&mut [0]).unwrap_or(0), 0, "the oldest was cut off");
        drop(stop);
        serving.join().expect("stops");
    }
}
