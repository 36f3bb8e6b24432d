//! The MQTT client against a real broker (`mosquitto`), through a way that is cut again and again; and the webhook against a real server.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dsad::config::telling::{BrokerAddress, MqttSettings, WebhookSettings};
use dsad::inspection::account::Level;
use dsad::inspection::station_state::State;
use dsad::inspection::time::Clock;
use dsad::inspection::trigger::{Done, RefusalCode, Refused};
use dsad::inspection::verdict::{Record, Verdict};
use dsad::output::envelope::Envelopes;
use dsad::output::store::outbox::{Destination, Outlet};
use dsad::output::store::read::Reader;
use dsad::platform::clock::SystemClock;
use dsad::service::Desk;
use dsad::service::metrics::Reading;
use dsad::service::mqtt::{Mqtt, MqttHealth, Secrets};
use dsad::service::webhook::{Webhook, WebhookHealth};
use rumqttc::{Client, Event, MqttOptions, Packet, QoS};
use serde_json::{Value, json};

use crate::store::inspection;
use crate::support::{Kept, kept};

const LONG: Duration = Duration::from_secs(60);

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// Waits for something, but not for ever.
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < LONG, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A broker of its own.
struct Broker {
    process: Child,
    port: u16,
}

impl Broker {
    fn start(dir: &Path) -> Self {
        let port = free_port();
        let file = dir.join("mosquitto.conf");
        std::fs::write(&file, format!("listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n"))
            .expect("writes");
        let process = Command::new("mosquitto").arg("-c").arg(&file).spawn();
        let process = process.expect("mosquitto is not installed: apt-get install mosquitto");
        until("the broker's start", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        Self { process, port }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The way to a broker, which can be cut.
struct Way {
    port: u16,
    open: Arc<AtomicBool>,
    broker: Arc<AtomicU16>,
    under_way: Arc<Mutex<Vec<TcpStream>>>,
}

impl Way {
    fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
        let port = listener.local_addr().expect("address").port();
        let (open, broker) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU16::new(0)));
        let under_way: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let (is_open, to, kept) = (Arc::clone(&open), Arc::clone(&broker), Arc::clone(&under_way));
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if !is_open.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, to.load(Ordering::SeqCst))) else { continue };
                for (mut from, mut to) in [(near.try_clone(), far.try_clone()), (far.try_clone(), near.try_clone())]
                    .map(|(a, b)| (a.expect("clones"), b.expect("clones")))
                {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                kept.lock().expect("kept").extend([near, far]);
            }
        });
        Self { port, open, broker, under_way }
    }

    fn open(&self, broker: &Broker) {
        self.broker.store(broker.port, Ordering::SeqCst);
        self.open.store(true, Ordering::SeqCst);
    }

    /// Cuts whatever is under way.
    fn cut(&self) {
        self.under_way.lock().expect("kept").drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }
}

/// Somebody who reads everything of a broker.
#[derive(Clone)]
struct Listener {
    heard: Arc<Mutex<Vec<(Instant, String, Value)>>>,
    client: Client,
}

impl Listener {
    fn new(broker: &Broker) -> Self {
        let mut options = MqttOptions::new("listener", ("127.0.0.1", broker.port));
        options.set_keep_alive(30);
        let (client, mut connection) = Client::builder(options).capacity(100).build();
        client.subscribe("#", QoS::AtLeastOnce).expect("subscribes");
        let heard: Arc<Mutex<Vec<(Instant, String, Value)>>> = Arc::default();
        let (into, there) = (Arc::clone(&heard), Arc::new(AtomicBool::new(false)));
        let subscribed = Arc::clone(&there);
        std::thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::SubAck(_))) => subscribed.store(true, Ordering::SeqCst),
                    Ok(Event::Incoming(Packet::Publish(message))) => {
                        // Commands of the tests need not be any.
                        let body = serde_json::from_slice(&message.payload).unwrap_or(Value::Null);
                        let topic = String::from_utf8_lossy(&message.topic).into_owned();
                        into.lock().expect("heard").push((Instant::now(), topic, body));
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
        until("the subscription", || there.load(Ordering::SeqCst));
        Self { heard, client }
    }

    /// What came on a topic.
    fn on(&self, topic: &str) -> Vec<Value> {
        let heard = self.heard.lock().expect("heard");
        heard.iter().filter(|(_, of, _)| of.ends_with(topic)).map(|(.., body)| body.clone()).collect()
    }
}

fn settings(port: u16, level: Option<Level>) -> MqttSettings {
    MqttSettings {
        address: BrokerAddress::Tcp("127.0.0.1".into(), port, false),
        topics: "dsad/l/s/".into(),
        client_id: "dsad-s".into(),
        username: None,
        password_file: None,
        ca: None,
        identity: None,
        keep_alive_s: 5,
        level,
    }
}

/// A record and a client of it.
struct Station {
    kept: Kept,
    envelopes: Envelopes,
    working: Vec<JoinHandle<()>>,
    desk: Arc<Desk>,
    state: Arc<Mutex<State>>,
    health: Arc<MqttHealth>,
}

impl Station {
    fn start(dir: &Path, port: u16, level: Option<Level>) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
        let mut kept = kept(dir, vec![Outlet { to: Destination::Mqtt, passes: true }], &clock);
        let worker = std::mem::replace(&mut kept.worker.1, Box::new(|| ()));
        let state = Arc::new(Mutex::new(State::Ready));
        let desk = Arc::new(Desk::default());
        let now = Arc::clone(&state);
        let read = move || Reading { state: *now.lock().expect("state"), ..Reading::default() };
        let act = |order: dsad::inspection::command::Order| match order.command.word() {
            "StartSingleJob" => Ok(Done::Accepted { camera: "top".into(), frame_id: 7 }),
            _ => Err(Refused::new(RefusalCode::NotReady, "not now")),
        };
        desk.open(Arc::new(read), Arc::new(act));
        let health: Arc<MqttHealth> = Arc::default();
        let mqtt = Mqtt {
            settings: settings(port, level),
            secrets: Secrets::default(),
            reader: Reader::open(dir).expect("opens"),
            clerk: kept.clerk.clone(),
            record: Arc::clone(&kept.health),
            desk: Arc::clone(&desk),
            health: Arc::clone(&health),
        };
        kept.health.listens();
        let working = vec![std::thread::spawn(worker), std::thread::spawn(move || mqtt.run().expect("runs"))];
        let envelopes = Envelopes::new("l", "s", 1, clock);
        Self { kept, envelopes, working, desk, state, health }
    }

    /// Keeps an inspection, every fourth of which is a failure; says its id.
    fn keep(&mut self, frame: u64) -> String {
        let envelope = self.envelopes.make();
        let id = envelope.event_id.to_string();
        let verdict = if frame % 4 == 3 { Verdict::Fail } else { Verdict::Pass };
        while self.kept.recording.keep(envelope.clone(), inspection(frame, verdict, 0.5)).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        id
    }

    fn stop(self) {
        drop(self.kept.recording);
        self.working.into_iter().for_each(|worker| worker.join().expect("ends"));
    }
}

/// The broker is away for so many events and the way to it is cut so often, while more events come.
fn outage(events: u64, cuts: usize) {
    let dir = tempfile::tempdir().expect("directory");
    let way = Way::new();
    let mut station = Station::start(dir.path(), way.port, None);
    let mut told: BTreeSet<String> = (0..events).map(|frame| station.keep(frame)).collect();
    until("the commit of all", || {
        Reader::open(dir.path()).and_then(|reader| reader.last_number()) == Ok(events as i64)
    });
    let broker = Broker::start(dir.path());
    let listener = Listener::new(&broker);
    way.open(&broker);
    // Live events, first beside the backlog that drains, then through a way that is cut.
    let mut live = BTreeMap::new();
    let mut frame = events;
    let begun = Instant::now();
    let mut keep = |station: &mut Station, live: &mut BTreeMap<String, Instant>| {
        let id = station.keep(frame);
        frame += 1;
        live.insert(id.clone(), Instant::now());
        told.insert(id);
        std::thread::sleep(Duration::from_millis(20));
    };
    until("the connection", || station.health.connected.load(Ordering::SeqCst));
    for _ in 0..50 {
        keep(&mut station, &mut live);
    }
    let lost = station.health.losses.load(Ordering::SeqCst);
    for cut in 0..cuts {
        until("the connection", || station.health.connected.load(Ordering::SeqCst));
        (0..cut % 10).for_each(|_| keep(&mut station, &mut BTreeMap::new()));
        way.cut();
        until("the loss", || station.health.losses.load(Ordering::SeqCst) > lost + cut as u64);
        (0..5).for_each(|_| keep(&mut station, &mut BTreeMap::new()));
    }
    let arrived = |listener: &Listener| {
        let ids = listener
            .on("verdict")
            .iter()
            .map(|event| event["event_id"].as_str().expect("id").to_owned())
            .collect::<BTreeSet<_>>();
        ids.len()
    };
    until("the arrival of all", || arrived(&listener) == told.len());
    let took = begun.elapsed();
    station.stop();
    let heard = listener.heard.lock().expect("heard").clone();
    let mut first: BTreeMap<String, (Instant, u64, bool)> = BTreeMap::new();
    let (mut order, mut repeated) = (Vec::new(), 0);
    for (at, topic, event) in &heard {
        if !topic.ends_with("/verdict") {
            continue;
        }
        let (id, seq) = (event["event_id"].as_str().expect("id").to_owned(), event["seq"].as_u64().expect("number"));
        if first.insert(id.clone(), (*at, seq, event["verdict"] == "pass")).is_some() {
            repeated += 1;
        } else {
            order.push((seq, event["verdict"] == "pass"));
        }
    }
    assert_eq!(first.keys().cloned().collect::<BTreeSet<_>>(), told);
    // What waited for the broker came in the order in which it was published, failures and passes each.
    for pass in [false, true] {
        let backlog: Vec<u64> =
            order.iter().filter(|(seq, is)| *seq <= events && *is == pass).map(|(seq, _)| *seq).collect();
        assert!(backlog.is_sorted(), "pass {pass}");
    }
    let mut waits: Vec<f64> = live.iter().map(|(id, kept)| (first[id].0 - *kept).as_secs_f64() * 1e3).collect();
    waits.sort_by(f64::total_cmp);
    println!(
        "{}",
        json!({"events": told.len(), "cuts": cuts, "repeated": repeated, "drained_after_s": took.as_secs_f64(),
               "live_p50_ms": waits[waits.len() / 2], "live_p99_ms": waits[waits.len() * 99 / 100]})
    );
    // The state is told at each connection, and the broker tells of each that broke.
    let states = listener.on("state");
    assert!(states.iter().filter(|state| state["state"] == "Offline").count() >= cuts, "{}", states.len());
    assert_eq!(states.last().expect("a state")["state"], "Offline");
    let reader = Reader::open(dir.path()).expect("opens");
    let left = dsad::output::store::outbox::Turn::begin(&reader, Destination::Mqtt)
        .and_then(|mut turn| turn.next(&reader, 10_000));
    assert!(left.expect("reads").is_empty(), "everything is acknowledged");
}

#[test]
fn a_broker_that_was_away_hears_everything_in_order() {
    outage(1_000, 6);
}

#[test]
#[ignore = "takes minutes: cargo test --test main mqtt -- --ignored --nocapture"]
fn a_broker_that_was_away_for_ten_thousand_events_hears_everything() {
    outage(10_000, 50);
}

#[test]
fn the_state_is_retained_and_commands_are_answered() {
    let dir = tempfile::tempdir().expect("directory");
    let broker = Broker::start(dir.path());
    let station = Station::start(dir.path(), broker.port, Some(Level::Operator));
    until("the connection", || station.health.connected.load(Ordering::SeqCst));
    std::thread::sleep(Duration::from_millis(300));
    // Who comes later hears it, too.
    let listener = Listener::new(&broker);
    until("the state", || listener.on("state").last().is_some_and(|state| state["state"] == "Ready"));
    *station.state.lock().expect("state") = State::Error;
    until("the next state", || {
        listener.on("state").last().is_some_and(|state| state["state"] == "Error" && state["ready"] == false)
    });
    let asked = [
        (
            r#"{"command": "StartSingleJob", "id": 17, "part_id": "A"}"#,
            json!({"ok": true, "camera": "top", "frame_id": 7, "id": 17}),
        ),
        (r#"{"command": "Stop", "id": "x"}"#, json!({"ok": false, "error": "not_ready", "text": "not now", "id": "x"})),
        (r#"{"command": "Explode"}"#, json!({"ok": false, "error": "unknown", "id": null})),
        (r#"{"command": "StartSingleJob", "part_id": [1]}"#, json!({"ok": false, "error": "unknown", "id": null})),
        ("no JSON", json!({"ok": false, "error": "unknown", "id": null})),
        (r#"{"id": 3}"#, json!({"ok": false, "error": "unknown", "id": 3})),
    ];
    for (number, (payload, expected)) in asked.iter().enumerate() {
        listener.client.publish("dsad/l/s/cmd", *payload, rumqttc::PublishOptions::at_least_once()).expect("publishes");
        until("the answer", || listener.on("ack").len() > number);
        let answer = listener.on("ack").remove(number);
        for (key, value) in expected.as_object().expect("object") {
            assert_eq!(&answer[key], value, "{payload}: {answer}");
        }
    }
    assert!(station.desk.read().is_some());
    station.stop();
    until("the farewell", || listener.on("state").last().is_some_and(|state| state["state"] == "Offline"));
}

#[test]
fn no_command_is_taken_where_none_is_allowed() {
    let dir = tempfile::tempdir().expect("directory");
    let broker = Broker::start(dir.path());
    let station = Station::start(dir.path(), broker.port, None);
    until("the connection", || station.health.connected.load(Ordering::SeqCst));
    let listener = Listener::new(&broker);
    let payload = r#"{"command": "StartSingleJob"}"#;
    listener.client.publish("dsad/l/s/cmd", payload, rumqttc::PublishOptions::at_least_once()).expect("publishes");
    until("its arrival", || listener.on("cmd").len() == 1);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!((listener.on("ack").len(), station.health.commands.load(Ordering::SeqCst)), (0, 0));
    station.stop();
}

/// Heads and bodies.
type Requests = Arc<Mutex<Vec<(String, String)>>>;

/// A server that answers by a list of statuses, then 200; gives the requests.
fn server(statuses: Vec<u16>) -> (SocketAddr, Requests) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
    let address = listener.local_addr().expect("address");
    let requests = Requests::default();
    let into = Arc::clone(&requests);
    std::thread::spawn(move || {
        let mut statuses = statuses.into_iter();
        for mut stream in listener.incoming().flatten() {
            let mut bytes = Vec::new();
            let mut piece = [0; 4096];
            let (head, body) = loop {
                let count = stream.read(&mut piece).unwrap_or(0);
                bytes.extend_from_slice(&piece[..count]);
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head
                    .to_lowercase()
                    .split("content-length: ")
                    .nth(1)
                    .and_then(|rest| rest.lines().next()?.parse().ok());
                if length.is_some_and(|length: usize| body.len() >= length) {
                    break (head.to_owned(), body.to_owned());
                }
            };
            into.lock().expect("requests").push((head, body));
            let status = statuses.next().unwrap_or(200);
            let _ = stream
                .write_all(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").as_bytes());
        }
    });
    (address, requests)
}

#[test]
fn a_webhook_is_posted_until_it_is_taken_and_its_messages_are_signed() {
    let dir = tempfile::tempdir().expect("directory");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let (address, requests) = server(vec![200, 503, 429, 200, 400]);
    let mut kept = kept(dir.path(), vec![Outlet { to: Destination::Webhook, passes: false }], &clock);
    kept.health.listens();
    let health: Arc<WebhookHealth> = Arc::default();
    let webhook = Webhook {
        settings: WebhookSettings {
            url: format!("http://{address}/hook"),
            passes: false,
            secret_file: None,
            ca: None,
            timeout_s: 5.0,
        },
        secret: Some(b"key".to_vec()),
        ca: None,
        reader: Reader::open(dir.path()).expect("opens"),
        clerk: kept.clerk.clone(),
        record: Arc::clone(&kept.health),
        health: Arc::clone(&health),
    };
    let working =
        [std::thread::spawn(kept.worker.1), std::thread::spawn(move || webhook.run(std::thread::sleep).expect("runs"))];
    let mut envelopes = Envelopes::new("l", "s", 1, clock);
    for (frame, verdict) in
        [Verdict::Fail, Verdict::Pass, Verdict::Fail, Verdict::Fail, Verdict::Fail].into_iter().enumerate()
    {
        kept.recording.keep(envelopes.make(), inspection(frame as u64, verdict, 0.5)).expect("there is room");
    }
    until("the last message", || health.sent.load(Ordering::SeqCst) + health.refused.load(Ordering::SeqCst) == 4);
    drop(kept.recording);
    working.into_iter().for_each(|worker| worker.join().expect("ends"));
    let requests = requests.lock().expect("requests");
    let frames: Vec<u64> = requests
        .iter()
        .map(|(_, body)| serde_json::from_str::<Value>(body).expect("JSON")["frame_id"].as_u64().expect("number"))
        .collect();
    // No passes; the second failure is tried until it is taken, the third is refused for good.
    assert_eq!(frames, [0, 2, 2, 2, 3, 4]);
    assert_eq!(
        (
            health.sent.load(Ordering::SeqCst),
            health.failed.load(Ordering::SeqCst),
            health.refused.load(Ordering::SeqCst)
        ),
        (3, 2, 1)
    );
    for (head, body) in requests.iter() {
        let signature = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"key"), body.as_bytes());
        let hex: String = signature.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(
            head.starts_with("POST /hook ") && head.to_lowercase().contains(&format!("x-dsad-signature: sha256={hex}")),
            "{head}"
        );
    }
}
