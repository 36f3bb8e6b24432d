//! Who may do what over HTTP: accounts, levels, guessing, encryption, the table of routes and its description.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use dsad::inspection::account::Level;
use dsad::inspection::audit::Deed;
use dsad::inspection::trigger::{RefusalCode, Refused};
use dsad::inspection::verdict::SinkError;
use dsad::platform::certificate;
use dsad::service::metrics::{CameraReading, Reading};
use dsad::service::routes::{self, Needs, Route};
use dsad::service::{Act, Http, Read as Tell};
use serde_json::{Value, json};

use crate::cli::config;
use crate::support::doors::{Answer, HandClock, Served, ask, bearer, login, password, request, settings};
use crate::support::{DSAD, tiny_bundle};

/// A service with scripted parts, and what was written of it.
struct Door {
    served: Served,
    clock: Arc<HandClock>,
    deeds: Arc<Mutex<Vec<Deed>>>,
    home: tempfile::TempDir,
}

fn nothing() -> (Tell, Act) {
    (Arc::new(Reading::default), Arc::new(|_| Err(Refused::new(RefusalCode::NotReady, "nobody inspects"))))
}

impl Door {
    fn open() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Http)) -> Self {
        let (home, clock) = (tempfile::tempdir().expect("directory"), HandClock::shared());
        let (mut http, deeds) = settings(home.path(), Arc::clone(&clock) as _);
        change(&mut http);
        let (read, act) = nothing();
        Self { served: Served::start(http, read, act), clock, deeds, home }
    }

    fn address(&self) -> SocketAddr {
        self.served.address
    }

    /// A token of the level's account.
    fn token(&self, level: Level) -> String {
        // Nobody is too fast.
        self.clock.pass(10);
        login(self.address(), level.word(), &password(level))
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        self.clock.pass(1);
        ask(self.address(), &request(method, path, headers, body))
    }

    fn try_password(&self, user: &str, password: &str) -> Answer {
        let body = json!({"user": user, "password": password}).to_string();
        ask(self.address(), &request("POST", "/v1/login", "", &body))
    }

    fn told(&self) -> Vec<String> {
        let deeds = std::mem::take(&mut *self.deeds.lock().expect("deeds"));
        let line = |deed: &Deed| {
            let refused = deed.refused.as_deref().map(|text| format!(": {text}")).unwrap_or_default();
            format!("{} {} {} {}{refused}", deed.who, deed.from, deed.what, deed.of)
        };
        deeds.iter().map(line).collect()
    }
}

fn path(route: &Route) -> String {
    route.path.replace("{name}", "nobody")
}

#[test]
fn every_route_needs_its_level_and_every_write_one_at_least() {
    let door = Door::open();
    let tokens = Level::ALL.map(|level| bearer(&door.token(level)));
    let mut writes = 0;
    for route in routes::table() {
        let (method, path) = (route.method.as_str(), path(&route));
        let is_write = !route.method.is_safe();
        let needed = match route.needs {
            Needs::Level(level) => Some(level),
            Needs::Account => Some(Level::Operator),
            Needs::Nothing | Needs::Read | Needs::Picture => None,
        };
        assert!(!is_write || needed.is_some() || path == "/v1/login", "anybody may {method} {path}");
        writes += usize::from(is_write);
        let (status, head, body) = door.ask(method, &path, "", "{\"x\": 1}");
        let Some(needed) = needed else {
            assert!(status != 401 && status != 403, "{method} {path}: {status} {body}");
            continue;
        };
        assert!(status == 401 && head.to_lowercase().contains("www-authenticate: bearer"), "{path}: {head}");
        assert_eq!(door.ask(method, &path, &bearer("x"), "{}").0, 401, "{method} {path}");
        for (level, token) in Level::ALL.into_iter().zip(&tokens) {
            // Who logs out does so for good.
            let own = (path == "/v1/logout").then(|| bearer(&door.token(level)));
            let (status, _, body) = door.ask(method, &path, own.as_ref().unwrap_or(token), "{\"x\": 1}");
            if level < needed {
                assert!(status == 403 && body.contains(needed.word()), "{method} {path} as {level}: {status} {body}");
            } else {
                assert!(![401, 403, 500].contains(&status), "{method} {path} as {level}: {status} {body}");
            }
        }
    }
    assert!(writes >= 16, "{writes} routes that write");
}

#[test]
fn what_is_read_is_closed_where_it_is_not_meant_to_be_open() {
    let door = Door::with(|http| http.open_reads = false);
    let token = bearer(&door.token(Level::Operator));
    for route in routes::table().iter().filter(|route| route.method.is_safe()) {
        let expected = route.needs != Needs::Nothing;
        assert_eq!(door.ask("GET", &path(route), "", "").0 == 401, expected, "{}", route.path);
    }
    assert_eq!(door.ask("GET", "/readyz", &token, "").0, 200);
    assert_eq!(door.ask("GET", "/v1/status", &token, "").0, 200);
}

#[test]
fn the_description_and_the_table_are_the_same() {
    let door = Door::open();
    let (_, _, text) = door.ask("GET", "/v1/openapi.json", "", "");
    let api: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(api["openapi"], "3.1.0");
    let mut described: BTreeMap<(String, String), &Value> = BTreeMap::new();
    for (path, item) in api["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("methods") {
            described.insert((path.clone(), method.to_uppercase()), operation);
        }
    }
    let table = routes::table();
    let of = |route: &Route| (route.path.to_string(), route.method.to_string());
    let built: BTreeSet<(String, String)> = table.iter().map(of).collect();
    assert_eq!(built.len(), table.len(), "a route is there twice");
    assert_eq!(described.keys().cloned().collect::<BTreeSet<_>>(), built);
    let login = json!([{"bearer": []}, {"cookie": []}]);
    for route in &table {
        let operation = described[&of(route)];
        let (security, level) = match route.needs {
            Needs::Nothing => (json!([]), Value::Null),
            Needs::Read | Needs::Picture => (json!([{}, {"bearer": []}, {"cookie": []}]), json!("operator")),
            Needs::Account => (login.clone(), Value::Null),
            Needs::Level(level) => (login.clone(), json!(level)),
        };
        assert_eq!((&operation["security"], &operation["x-level"]), (&security, &level), "{}", route.path);
        let answers = operation["responses"].as_object().expect("answers");
        assert!(answers.contains_key("429"), "{}", route.path);
        let refused = route.needs != Needs::Nothing;
        assert!(!refused || (answers.contains_key("401") && answers.contains_key("403")), "{}", route.path);
        assert!(operation["summary"].is_string(), "{}", route.path);
        let named = operation["parameters"].as_array().is_some_and(|all| all.iter().any(|p| p["in"] == "path"));
        assert_eq!(named, route.path.contains('{'), "{}", route.path);
    }
    // What is referred to is there.
    for reference in text.split("\"$ref\": \"#").skip(1).map(|rest| rest.split('"').next().expect("an end")) {
        assert!(api.pointer(reference).is_some(), "{reference}");
    }
}

#[test]
fn a_page_of_another_origin_commands_nothing() {
    let door = Door::open();
    let token = door.token(Level::Operator);
    let (by_cookie, by_header) = (format!("Cookie: a=b; dsad_session={token}\r\n"), bearer(&token));
    let (own, other) = ("Origin: http://dsad\r\n", "Origin: http://evil.example\r\n");
    let command = |headers: &str| door.ask("POST", "/v1/trigger", headers, "").0;
    assert_eq!(command(&format!("{by_cookie}{own}")), 503, "nobody inspects, but it is asked");
    assert_eq!(command(&by_header), 503);
    assert_eq!(command(&by_cookie), 403, "the browser adds a cookie for anybody");
    for headers in [&by_cookie, &by_header] {
        assert_eq!(command(&format!("{headers}{other}")), 403);
        assert_eq!(command(&format!("{headers}Origin: https://dsad\r\n")), 403);
        assert_eq!(command(&format!("{headers}Origin: null\r\n")), 403);
    }
    assert_eq!(door.ask("POST", "/v1/login", other, "{}").0, 403, "nor logs anybody in");
    assert_eq!(
        door.ask("GET", "/v1/events", &by_cookie, "").0,
        404,
        "reading needs no origin, and there are no events"
    );
}

#[test]
fn who_logged_in_is_told_and_logs_out_again() {
    let door = Door::open();
    let body = json!({"user": "engineer", "password": password(Level::Engineer)}).to_string();
    let (status, head, body) = door.ask("POST", "/v1/login", "", &body);
    let told: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, &told["level"], &told["must_change"]), (200, &json!("engineer"), &json!(false)));
    let token = told["token"].as_str().expect("a token");
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
    assert_eq!(cookie, format!("dsad_session={token}; HttpOnly; SameSite=Strict; Path=/; Max-Age=43200"));
    let status = |token: &str| -> Value {
        serde_json::from_str(&door.ask("GET", "/v1/status", &bearer(token), "").2).expect("JSON")
    };
    assert_eq!(status(token)["account"]["user"], "engineer");
    assert_eq!(door.ask("POST", "/v1/logout", &bearer(token), "").0, 200);
    assert_eq!(status(token)["account"], Value::Null);
    let token = door.token(Level::Engineer);
    door.clock.pass(12 * 3_600);
    assert_eq!(status(&token)["account"], Value::Null, "a session ends");
    let told = door.told();
    let line = |what: &str| format!("engineer http 127.0.0.1 {what} engineer");
    assert_eq!(told, [line("login"), line("logout"), line("login")]);
}

#[test]
fn guessing_locks_out_where_it_is_guessed_from() {
    let door = Door::open();
    for user in ["technician", "somebody-else"] {
        door.clock.pass(60);
        for guess in 1..=5 {
            let (status, head, body) = door.try_password(user, &format!("guess number {guess}"));
            assert_eq!(status, if guess < 5 { 401 } else { 429 }, "{user}: {body}");
            assert_eq!(head.contains("retry-after: 60"), guess == 5, "{head}");
        }
        let (status, head, _) = door.try_password(user, &password(Level::Technician));
        assert!(status == 429 && head.contains("retry-after: 60"), "not even the right one: {head}");
    }
    let told = door.told();
    assert_eq!(told.len(), 10, "one each, and none while it is locked: {told:?}");
    assert_eq!(told[0], "nobody http 127.0.0.1 login technician: wrong password");
    assert_eq!(told[4], "nobody http 127.0.0.1 login technician: wrong password; locked for 60 s");
    // Others go on, here and elsewhere.
    door.token(Level::Operator);
    let body = json!({"user": "technician", "password": password(Level::Technician)}).to_string();
    let elsewhere = ask_from([127, 0, 0, 2].into(), door.address(), &request("POST", "/v1/login", "", &body));
    assert!(elsewhere.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&elsewhere));
    door.clock.pass(61);
    assert_eq!(door.try_password("technician", "guess number 6").0, 429, "the second lock is longer");
    door.clock.pass(61);
    assert_eq!(door.try_password("technician", &password(Level::Technician)).0, 429);
    door.clock.pass(60);
    assert_eq!(door.try_password("technician", &password(Level::Technician)).0, 200);
}

#[test]
fn many_guesses_at_once_are_no_way_around() {
    let door = Door::open();
    let (address, users) = (door.address(), 40);
    let guesses: Vec<_> = (0..users)
        .map(|guess| {
            let body = json!({"user": "admin", "password": format!("guess number {guess}")}).to_string();
            std::thread::spawn(move || ask(address, &request("POST", "/v1/login", "", &body)).0)
        })
        .collect();
    let answers: Vec<u16> = guesses.into_iter().map(|guess| guess.join().expect("answers")).collect();
    assert!(answers.iter().all(|status| [401, 429, 503].contains(status)), "{answers:?}");
    let looked = door.told().len();
    assert!(looked <= 5, "{looked} of {users} passwords were looked at");
}

/// What is answered to somebody who connects from this address of the machine.
pub fn ask_from(from: Ipv4Addr, address: SocketAddr, request: &str) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("runtime");
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind((IpAddr::from(from), 0).into()).expect("binds");
        socket.connect(address).await.expect("connects").into_std().expect("a stream")
    });
    talk(stream, request.as_bytes())
}

fn talk(mut stream: TcpStream, request: &[u8]) -> Vec<u8> {
    stream.set_nonblocking(false).expect("waits");
    stream.set_read_timeout(Some(crate::support::doors::LONG)).expect("timeout");
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    // What it did not want to read to the end may be said by a reset.
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn accounts_are_given_and_taken_and_told() {
    let door = Door::open();
    let admin = bearer(&door.token(Level::Admin));
    let new = json!({"name": "line.2", "level": "technician", "password": "a good password"}).to_string();
    assert_eq!(door.ask("POST", "/v1/accounts", &admin, &new).0, 201);
    assert_eq!(door.ask("POST", "/v1/accounts", &admin, &new).0, 409);
    let weak = json!({"name": "line.3", "level": "technician", "password": "short"}).to_string();
    let (status, _, body) = door.ask("POST", "/v1/accounts", &admin, &weak);
    assert!(status == 409 && body.contains("10 characters"), "{body}");
    let (_, _, body) = door.ask("GET", "/v1/accounts", &admin, "");
    assert!(body.contains("{\"name\":\"line.2\",\"level\":\"technician\",\"must_change\":false}"), "{body}");
    assert!(!body.contains("argon2"), "{body}");
    door.clock.pass(60);
    let token = bearer(&login(door.address(), "line.2", "a good password"));
    // The session that changes its password goes on under a new token; the others of the account end.
    let other = bearer(&login(door.address(), "line.2", "a good password"));
    let change = json!({"old": "a wrong password", "new": "a better password"}).to_string();
    assert_eq!(door.ask("POST", "/v1/password", &token, &change).0, 401);
    let change = json!({"old": "a good password", "new": "a better password"}).to_string();
    let (status, _, body) = door.ask("POST", "/v1/password", &token, &change);
    assert_eq!(status, 200, "{body}");
    let told: Value = serde_json::from_str(&body).expect("JSON");
    let renewed = bearer(told["token"].as_str().expect("a token"));
    for (token, status) in [(&token, 401), (&other, 401), (&renewed, 503)] {
        assert_eq!(door.ask("POST", "/v1/trigger", token, "").0, status);
    }
    // Somebody at the machine itself takes it away: the session ends at once, and it is told.
    dsad::accounts::Accounts::open(door.home.path()).expect("opens").remove("line.2").expect("removes");
    assert_eq!(door.ask("POST", "/v1/trigger", &renewed, "").0, 401);
    assert_eq!(door.ask("DELETE", "/v1/accounts/operator", &admin, "").0, 200);
    assert_eq!(door.ask("DELETE", "/v1/accounts/admin", &admin, "").0, 409, "nobody could give accounts any more");
    let told = door.told();
    let expected = [
        "admin http 127.0.0.1 login admin",
        "admin http 127.0.0.1 add_account line.2",
        "admin http 127.0.0.1 add_account line.2",
        "admin http 127.0.0.1 add_account line.2: account 'line.2' is there already",
        "admin http 127.0.0.1 add_account line.3",
        "admin http 127.0.0.1 add_account line.3: a password has at least 10 characters and at most 256 bytes",
        "line.2 http 127.0.0.1 login line.2",
        "line.2 http 127.0.0.1 login line.2",
        "line.2 http 127.0.0.1 password line.2: wrong password",
        "line.2 http 127.0.0.1 password line.2",
        "station accounts.toml account line.2",
        "admin http 127.0.0.1 remove_account operator",
        "admin http 127.0.0.1 remove_account admin",
    ];
    assert_eq!(told[..expected.len()], expected);
}

#[test]
fn what_cannot_be_told_later_is_not_done() {
    let door = Door::with(|http| http.audit = Arc::new(|_| Err(SinkError("the disk is full".into()))));
    door.clock.pass(10);
    let (status, _, body) = door.try_password("admin", &password(Level::Admin));
    assert!(status == 503 && body.contains("not_audited") && !body.contains("token"), "{body}");
}

#[test]
fn a_damaged_file_of_accounts_lets_nobody_in() {
    let door = Door::open();
    let token = bearer(&door.token(Level::Admin));
    std::fs::write(door.home.path().join("accounts.toml"), "accounts = 1").expect("writes");
    assert_eq!(door.ask("GET", "/v1/accounts", &token, "").0, 503);
    assert_eq!(door.try_password("admin", &password(Level::Admin)).0, 503);
    assert_eq!(door.ask("GET", "/livez", "", "").0, 200);
}

#[test]
fn events_and_pictures_are_those_of_the_station() {
    let door = Door::with(|http| {
        http.recent = Some(Arc::new(|after, limit| match after {
            Some("01JDZ9XW5T0000000000000000") => Ok(vec![format!("{{\"limit\":{limit}}}")]),
            Some(_) => Err("the store is gone".into()),
            None => Ok(vec!["{\"seq\":1}".into(), "{\"seq\":2}".into()]),
        }));
        http.picture = Some(Arc::new(|camera| (camera == "top left/\u{e9}").then(|| b"\xff\xd8picture".to_vec())));
    });
    let token = bearer(&door.token(Level::Operator));
    let events = |query: &str| {
        let (status, _, body) = door.ask("GET", &format!("/v1/events{query}"), &token, "");
        (status, body.trim().to_owned())
    };
    assert_eq!(events(""), (200, "{\"events\":[{\"seq\":1},{\"seq\":2}]}".into()));
    let after = "?after=01JDZ9XW5T0000000000000000";
    assert_eq!(events(after), (200, "{\"events\":[{\"limit\":100}]}".into()));
    assert_eq!(events(&format!("{after}&limit=500")), (200, "{\"events\":[{\"limit\":500}]}".into()));
    for wrong in ["?limit=501", "?limit=0", "?limit=-1", "?after=x", "?after=01JDZ9XW5T00000000000000'%20", "?x=1"] {
        assert_eq!(events(wrong).0, 400, "{wrong}");
    }
    assert_eq!(events("?after=01JDZ9XW5T0000000000000001").0, 503);
    let (status, head, body) = door.ask("GET", "/v1/cameras/top%20left%2F%C3%A9/frame.jpg", "", "");
    assert!(status == 200 && head.contains("image/jpeg") && body.ends_with("picture"), "{head}");
    assert_eq!(door.ask("GET", "/v1/cameras/side/frame.jpg", "", "").0, 404);
    assert_eq!(door.ask("GET", "/v1/cameras/%ff/frame.jpg", "", "").0, 404);
}

#[test]
fn the_page_allows_no_script_but_its_own() {
    let door = Door::open();
    let pages = [(); 2].map(|()| door.ask("GET", "/", "", ""));
    let nonces = pages.each_ref().map(|(status, head, body)| {
        assert_eq!(*status, 200);
        let nonce = head.split("script-src 'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).expect("a nonce");
        assert_eq!(body.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "style and script");
        assert!(!body.contains("{nonce}") && !body.contains("://"), "nothing from elsewhere");
        nonce.to_owned()
    });
    assert_ne!(nonces[0], nonces[1]);
}

#[test]
fn yield_counts_faults_as_parts_that_are_not_good() {
    let (home, clock) = (tempfile::tempdir().expect("directory"), HandClock::shared());
    let (http, _) = settings(home.path(), clock);
    let read: Tell = Arc::new(|| Reading {
        cameras: vec![
            CameraReading {
                camera: "top".into(),
                inspections: vec![
                    ("pass", "", 6),
                    ("fail", "region", 1),
                    ("fail", "image_score", 1),
                    ("fault", "overrun", 2),
                ],
                ..CameraReading::default()
            },
            CameraReading { camera: "new".into(), ..CameraReading::default() },
        ],
        ..Reading::default()
    });
    let served = Served::start(http, read, nothing().1);
    let (_, _, body) = ask(served.address, &request("GET", "/v1/status", "", ""));
    let told: Value = serde_json::from_str(&body).expect("JSON");
    let numbers = |camera: usize| ["pass", "fail", "fault", "yield"].map(|key| told["cameras"][camera][key].clone());
    assert_eq!(numbers(0), [json!(6), json!(2), json!(2), json!(0.6)]);
    assert_eq!(numbers(1), [json!(0), json!(0), json!(0), Value::Null]);
}

#[test]
fn the_certificate_of_its_own_making_is_trusted_by_whoever_was_given_it() {
    let home = tempfile::tempdir().expect("directory");
    let clock = dsad::platform::clock::SystemClock::start();
    let files = certificate::own(home.path(), Ipv4Addr::LOCALHOST.into(), &clock).expect("makes");
    let tls = certificate::server(&files, &clock).expect("belong together");
    let door = Door::with(|http| http.tls = Some(tls));
    let pem = std::fs::read(&files.certificate).expect("reads");
    let root = ureq::tls::Certificate::from_pem(&pem).expect("a certificate");
    let agent = |roots| {
        let tls = ureq::tls::TlsConfig::builder().root_certs(roots).build();
        ureq::Agent::from(ureq::Agent::config_builder().tls_config(tls).http_status_as_error(false).build())
    };
    let knows = agent(ureq::tls::RootCerts::new_with_certs(&[root]));
    let port = door.address().port();
    for host in ["localhost", "127.0.0.1"] {
        let mut answer = knows.get(format!("https://{host}:{port}/livez")).call().expect("answers");
        assert_eq!(answer.body_mut().read_to_string().expect("text"), "ok\n");
    }
    let stranger = agent(ureq::tls::RootCerts::WebPki);
    let error = stranger.get(format!("https://localhost:{port}/livez")).call().expect_err("refused").to_string();
    assert!(error.contains("certificate") || error.contains("UnknownIssuer"), "{error}");
    // A cookie that leaves only encrypted, and an origin that says so.
    let body = json!({"user": "operator", "password": password(Level::Operator)}).to_string();
    let answer = knows.post(format!("https://localhost:{port}/v1/login")).send(&body).expect("answers");
    let cookie = answer.headers()["set-cookie"].to_str().expect("text").to_owned();
    assert!(cookie.ends_with("; Secure"), "{cookie}");
    let cookie = cookie.split(';').next().expect("a pair").to_owned();
    for (origin, status) in [(format!("https://localhost:{port}"), 503), (format!("http://localhost:{port}"), 403)] {
        let trigger = knows.post(format!("https://localhost:{port}/v1/trigger"));
        let answer = trigger.header("Cookie", &cookie).header("Origin", &origin).send_empty().expect("answers");
        assert_eq!(answer.status().as_u16(), status, "{origin}");
    }
    // In the clear nothing is said; those who begin a handshake and do no more keep nobody out.
    let plain = talk(TcpStream::connect(door.address()).expect("connects"), b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(!plain.windows(5).any(|bytes| bytes == b"HTTP/"), "{}", String::from_utf8_lossy(&plain));
    let mut slow: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(door.address()).expect("connects")).collect();
    slow.iter_mut().for_each(|stream| drop(stream.write_all(&[0x16, 3, 1, 2, 0])));
    assert!(knows.get(format!("https://localhost:{port}/livez")).call().expect("answers").status().is_success());
}

/// The daemon as it is shipped, with `[http]` of its configuration.
struct Daemon {
    program: std::process::Child,
    address: SocketAddr,
    log: Option<std::thread::JoinHandle<Vec<String>>>,
}

impl Daemon {
    fn start(dir: &Path, http: &str) -> Self {
        let (bundle, _) = tiny_bundle();
        config(dir, bundle, "{ kind = 'synthetic', product = 'washer', fps = 5.0 }", "events.ndjson");
        let file = dir.join("dsad.toml");
        let text = std::fs::read_to_string(&file).expect("reads");
        std::fs::write(&file, format!("{text}[http]\nlisten = '127.0.0.1:0'\n{http}")).expect("writes");
        let mut program = Command::new(DSAD)
            .args(["run", "--config", "dsad.toml"])
            .current_dir(dir)
            .env("RUST_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(program.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let mut log = Vec::new();
        let address = lines
            .find_map(|line| {
                let address = line.split_once("http: listening on ").and_then(|(_, rest)| rest.parse().ok());
                log.push(line);
                address
            })
            .unwrap_or_else(|| panic!("no address: {log:?}"));
        let log = std::thread::spawn(move || log.into_iter().chain(lines).collect());
        Self { program, address, log: Some(log) }
    }

    fn stop(mut self) -> Vec<String> {
        assert!(
            Command::new("kill").args(["-TERM", &self.program.id().to_string()]).status().expect("kills").success()
        );
        let status = self.program.wait().expect("ends");
        let log = self.log.take().expect("once").join().expect("log");
        assert_eq!(status.code(), Some(0), "{log:?}");
        log
    }
}

#[test]
fn the_first_password_opens_nothing_but_its_own_change() {
    let dir = tempfile::tempdir().expect("directory");
    let daemon = Daemon::start(dir.path(), "");
    let file = dir.path().join("state/first-password");
    let first = std::fs::read_to_string(&file).expect("the first password").trim().to_owned();
    let post = |path: &str, headers: &str, body: Value| {
        let (status, _, body) = ask(daemon.address, &request("POST", path, headers, &body.to_string()));
        (status, serde_json::from_str::<Value>(&body).expect("JSON"))
    };
    let (status, told) = post("/v1/login", "", json!({"user": "admin", "password": first}));
    assert_eq!((status, &told["must_change"]), (200, &json!(true)));
    let token = bearer(told["token"].as_str().expect("a token"));
    let (status, told) = post("/v1/trigger", &token, json!({}));
    assert_eq!((status, &told["error"]), (403, &json!("change_password")));
    let account = json!({"name": "line", "level": "operator", "password": "a good password"});
    assert_eq!(post("/v1/accounts", &token, account.clone()).0, 403);
    let (status, _) = post("/v1/password", &token, json!({"old": first, "new": first}));
    assert!(status == 409 && file.exists(), "the same one is no change");
    let (status, told) = post("/v1/password", &token, json!({"old": first, "new": "a better password"}));
    assert!(status == 200 && !file.exists(), "{told}");
    let token = bearer(told["token"].as_str().expect("a token"));
    assert_eq!(post("/v1/accounts", &token, account).0, 201);
    assert_eq!(post("/v1/login", "", json!({"user": "admin", "password": first})).0, 401);
    // The tool and the daemon work on the same accounts.
    let tool = |args: &[&str], input: &str| {
        let mut program = Command::new(DSAD)
            .args(["accounts"])
            .args(args)
            .args(["--config", "dsad.toml"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        // One that asks for nothing may be gone.
        let _ = program.stdin.take().expect("piped").write_all(input.as_bytes());
        let output = program.wait_with_output().expect("ends");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.success(), text(output.stdout) + &text(output.stderr))
    };
    let (done, said) = tool(&["list"], "");
    assert!(done && said == "admin: admin\nline: operator\n", "{said}");
    let (done, said) = tool(&["add", "shift.b", "--level", "technician"], "the second shift\n");
    assert!(done, "{said}");
    let login = |user: &str, password: &str| post("/v1/login", "", json!({"user": user, "password": password})).0;
    assert_eq!(login("shift.b", "the second shift"), 200);
    let (done, said) = tool(&["passwd", "shift.b"], "the second shift!\n");
    assert!(done && login("shift.b", "the second shift!") == 200, "{said}");
    let (done, said) = tool(&["remove", "shift.b"], "");
    assert!(done && login("shift.b", "the second shift!") == 401, "{said}");
    for (args, input, word) in [
        (&["add", "x", "--level", "boss"][..], "", "technician"),
        (&["add", "x", "--level", "admin"], "short\n", "10 characters"),
        (&["add", "x", "--level", "admin"], "", "standard input"),
        (&["passwd", "nobody"], "", "no account 'nobody'"),
        (&["remove", "admin"], "", "admin would be left"),
    ] {
        let (done, said) = tool(args, input);
        assert!(!done && said.contains(word), "{args:?}: {said}");
    }
    // What a camera saw last is shown to the machine itself.
    let picture = crate::service::wait(|| {
        Some(ask(daemon.address, &request("GET", "/v1/cameras/a/frame.jpg", "", ""))).filter(|answer| answer.0 == 200)
    });
    assert!(picture.1.contains("content-type: image/jpeg") && picture.2.contains("JFIF"), "{}", picture.1);
    let log = daemon.stop();
    assert!(log.iter().any(|line| line.contains("first-password")), "where it is is said: {log:?}");
    assert!(!log.iter().any(|line| line.contains(&first)), "and never what it is");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(dir.path().join("state/accounts.toml")).expect("is there").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    let again = Daemon::start(dir.path(), "tls = true\n");
    assert!(!file.exists(), "no second account is made");
    assert!(dir.path().join("state/tls/cert.pem").exists());
    again.stop();
}
