//! Accounts, clients and a service to ask, for tests of the HTTP service.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use dsad::accounts::Accounts;
use dsad::inspection::account::Level;
use dsad::inspection::audit::Deed;
use dsad::inspection::time::{Clock, Timestamp};
use dsad::service::{Act, Http, Read as Tell, Service};
use tokio::sync::oneshot;

/// Longest wait for an answer.
pub const LONG: Duration = Duration::from_secs(30);

/// A clock that a test moves.
pub struct HandClock(AtomicU64);

impl HandClock {
    pub fn shared() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(1_000_000_000)))
    }

    pub fn pass(&self, seconds: u64) {
        self.0.fetch_add(seconds * 1_000_000_000, Ordering::Relaxed);
    }
}

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }

    fn wall_nanos(&self) -> u64 {
        1_800_000_000_000_000_000 + self.0.load(Ordering::Relaxed)
    }
}

/// The password of a level's account; its name is the level's word.
pub fn password(level: Level) -> String {
    format!("{level} of the line")
}

/// An account of every level, in this folder. Their hashes are made once per process.
pub fn accounts(home: &Path) -> Arc<Accounts> {
    static MADE: OnceLock<String> = OnceLock::new();
    let text = MADE.get_or_init(|| {
        let home = tempfile::tempdir().expect("directory");
        let accounts = Accounts::open(home.path()).expect("opens");
        for level in Level::ALL.into_iter().rev() {
            accounts.add(level.word(), level, &password(level)).expect("adds");
        }
        std::fs::read_to_string(home.path().join("accounts.toml")).expect("reads")
    });
    std::fs::write(home.join("accounts.toml"), text).expect("writes");
    Arc::new(Accounts::open(home).expect("opens"))
}

/// Settings with an account of every level, and what goes to the audit trail.
pub fn settings(home: &Path, clock: Arc<dyn Clock>) -> (Http, Arc<Mutex<Vec<Deed>>>) {
    let deeds: Arc<Mutex<Vec<Deed>>> = Arc::default();
    let trail = Arc::clone(&deeds);
    let http = Http {
        station: "tested".into(),
        accounts: accounts(home),
        audit: Arc::new(move |deed| {
            trail.lock().expect("deeds").push(deed);
            Ok(())
        }),
        clock,
        tls: None,
        open_reads: true,
        picture: None,
        recent: None,
    };
    (http, deeds)
}

/// A service without a daemon behind it.
pub struct Served {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
}

impl Served {
    pub fn start(http: Http, read: Tell, act: Act) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
        let service = Service::new(Some(listener), None).expect("a service").with_accounts(http);
        let address = service.addresses().expect("addresses").0.expect("http");
        let (stop, stopped) = oneshot::channel();
        let serving = std::thread::spawn(move || service.run(read, act, stopped).expect("serves"));
        Self { address, stop: Some(stop), serving: Some(serving) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.serving.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the service panicked");
    }
}

/// Status, head and body of an answer.
pub type Answer = (u16, String, String);

/// Sends a request as it is written.
pub fn ask(address: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(LONG)).expect("timeout");
    stream.write_all(request.as_bytes()).expect("asks");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answers");
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head.to_owned(), body.to_owned())
}

/// A request with a body, and more headers, each with its end of line.
pub fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: dsad\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// The header of a token.
pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// Logs in: the token.
pub fn login(address: SocketAddr, user: &str, password: &str) -> String {
    let body = serde_json::json!({"user": user, "password": password}).to_string();
    let (status, _, body) = ask(address, &request("POST", "/v1/login", "", &body));
    assert_eq!(status, 200, "{body}");
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    body["token"].as_str().expect("a token").to_owned()
}
