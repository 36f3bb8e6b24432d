//! The MQTT 3.1.1 client: verdicts and alarms from the outbox, the state of the station, and commands where they are allowed.
//!
//! | topic, below `PREFIX/LINE/STATION/` | what | retained |
//! |---|---|---|
//! | `state` | state, reasons and faults as one JSON object; the broker says `Offline` when the station is gone | yes |
//! | `verdict` | an event (`docs/events.md`) | no |
//! | `alarm` | something that began or ended to be wrong | no |
//! | `cmd` | read: `{"command": "StartSingleJob", "id": "17", "part_id": "A"}` | |
//! | `ack` | what came of it, with its `id` | no |
//!
//! Everything is sent with QoS 1. What is told from the outbox leaves it when the broker has acknowledged it: what was under way when a
//! connection broke is sent again, and readers know it by its `event_id`. A connection has no session at the broker.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rumqttc::{
    AsyncClient, Broker, Event, EventLoop, LastWill, MqttOptions, Packet, PublishOptions, QoS, TlsConfiguration,
    Transport,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::metrics::Reading;
use super::{Desk, told};
use crate::config::telling::{BrokerAddress, MqttSettings};
use crate::inspection::account::Level;
use crate::inspection::command::{Order, Source};
use crate::inspection::time::rfc3339;
use crate::inspection::trigger::{Done, RefusalCode, Refused};
use crate::output::record::{Clerk, RecordHealth};
use crate::output::store::outbox::{Destination, Turn, Waiting};
use crate::output::store::read::Reader;

/// Messages that the broker may owe an acknowledgement for.
const WINDOW: usize = 32;
/// Rows that are read from the outbox together.
const READ: usize = 64;
/// How often the outbox and the station are looked at.
const TICK: Duration = Duration::from_millis(20);
/// Ticks between looks at the state.
const STATE: u32 = 10;
/// Waits after a connection that failed, the first and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Longest time that what is left may take when the station stops.
const GRACE: Duration = Duration::from_secs(2);
/// The state of a station that is gone.
const OFFLINE: &str = r#"{"state":"Offline","number":null,"ready":false}"#;
/// Longest message that is sent, bytes: an event has at most 64 regions, 20 KiB.
const MESSAGE: usize = 4 << 20;
/// Longest command, bytes.
const COMMAND: usize = 4 << 10;

/// What the client reports.
#[derive(Debug, Default)]
pub struct MqttHealth {
    /// Whether the broker is there.
    pub connected: AtomicBool,
    /// Connections that broke or never came.
    pub losses: AtomicU64,
    /// Messages that the broker acknowledged.
    pub sent: AtomicU64,
    /// Commands that came.
    pub commands: AtomicU64,
}

/// Secrets that were read from files.
#[derive(Clone, Default)]
pub struct Secrets {
    /// The password of the account at the broker.
    pub password: Option<String>,
    /// PEM of who signed the broker's certificate.
    pub ca: Vec<u8>,
    /// PEM of a certificate of the station's own, and of its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// The client, not yet running.
pub struct Mqtt {
    /// How the broker is spoken to.
    pub settings: MqttSettings,
    /// What files said.
    pub secrets: Secrets,
    /// The outbox.
    pub reader: Reader,
    /// Where acknowledgements go.
    pub clerk: Clerk,
    /// When the record is closed the client ends.
    pub record: Arc<RecordHealth>,
    /// The station.
    pub desk: Arc<Desk>,
    /// What it reports.
    pub health: Arc<MqttHealth>,
}

/// How a connection ended.
enum End {
    /// The station stops.
    Stopped,
    /// It broke.
    Broken(String),
}

/// What is known while the broker is there.
struct Link {
    turn: Turn,
    ready: VecDeque<Waiting>,
    under_way: usize,
    /// Acknowledged, and not yet told to the record.
    done: Vec<i64>,
    /// Commits of the record when the outbox was read last, if all of it was read.
    read_at: Option<u64>,
    /// The state that was told last.
    state: Value,
}

impl Mqtt {
    /// Works on the calling thread until the record is closed.
    ///
    /// # Errors
    /// The system refuses what the client needs.
    pub fn run(self) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
        let worked = runtime.map(|runtime| runtime.block_on(self.work()));
        self.record.left();
        worked
    }

    async fn work(&self) {
        let mut wait = RETRY.0;
        let mut told: Option<String> = None;
        loop {
            match self.connection().await {
                End::Stopped => return,
                End::Broken(reason) => {
                    self.health.losses.fetch_add(1, Ordering::Relaxed);
                    if self.health.connected.swap(false, Ordering::Relaxed) {
                        wait = RETRY.0;
                    }
                    // Once for each reason: a broker may be away for weeks.
                    if told.as_ref() != Some(&reason) {
                        log::error!("mqtt: {reason}; verdicts wait in the outbox, the broker is tried again");
                    }
                    told = Some(reason);
                }
            }
            if self.record.is_closed() {
                return;
            }
            sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    fn options(&self) -> MqttOptions {
        let MqttSettings { address, client_id, username, keep_alive_s, .. } = &self.settings;
        let broker = match address {
            BrokerAddress::Tcp(host, port, _) => Broker::tcp(host.as_str(), *port),
            BrokerAddress::Unix(path) => Broker::unix(path.clone()),
        };
        let mut options = MqttOptions::new(client_id.as_str(), broker);
        options.set_keep_alive(*keep_alive_s).set_clean_session(true).set_inflight(WINDOW as u16);
        // What is too large for the client breaks the connection, and comes first again on the next: an event must always fit.
        options.set_max_packet_size(4 * COMMAND, MESSAGE);
        match address {
            BrokerAddress::Tcp(.., true) => {
                let (ca, client_auth) = (self.secrets.ca.clone(), self.secrets.identity.clone());
                options.set_transport(Transport::Tls(TlsConfiguration::Simple { ca, alpn: None, client_auth }));
            }
            BrokerAddress::Tcp(.., false) => {}
            BrokerAddress::Unix(_) => {
                options.set_transport(Transport::Unix);
            }
        }
        if let Some(username) = username {
            options.set_credentials(username.as_str(), self.secrets.password.clone().unwrap_or_default());
        }
        options.set_last_will(LastWill::new(self.topic("state"), OFFLINE, QoS::AtLeastOnce, true));
        options
    }

    fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.settings.topics)
    }

    /// From connecting until the connection breaks or the station stops.
    async fn connection(&self) -> End {
        let (client, events) = match AsyncClient::builder(self.options()).capacity(WINDOW + 8).try_build() {
            Ok(built) => built,
            Err(error) => return End::Broken(error.to_string()),
        };
        // A connection that is being made must not be given up at every tick: it has a task of its own.
        let (heard_in, mut heard) = mpsc::channel(WINDOW);
        let listening = tokio::spawn(listen(events, heard_in));
        let (acked_in, mut acked) = mpsc::unbounded_channel();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut link, mut ticks, mut closing) = (None::<Link>, 0u32, None::<u32>);
        let end = loop {
            tokio::select! {
                event = heard.recv() => match event {
                    Some(Ok(Packet::ConnAck(_))) => match self.begin(&client) {
                        Ok(begun) => link = Some(begun),
                        Err(reason) => break End::Broken(reason),
                    },
                    // One that the broker kept is of another time: it would be obeyed again at every connection.
                    Some(Ok(Packet::Publish(message))) if message.retain => {
                        log::warn!("mqtt: a retained command is ignored; send commands without `retain`");
                    }
                    Some(Ok(Packet::Publish(message))) => self.command(&client, &message.payload),
                    Some(Ok(_)) => {}
                    Some(Err(reason)) => break End::Broken(reason),
                    None => break End::Broken("the connection ended".into()),
                },
                Some(id) = acked.recv(), if link.is_some() => {
                    if let Some(link) = &mut link {
                        link.under_way -= 1;
                        link.done.push(id);
                    }
                }
                _ = tick.tick() => {
                    ticks = ticks.wrapping_add(1);
                    if self.record.is_closed() {
                        closing.get_or_insert(ticks);
                    }
                    if let Some(link) = &mut link {
                        self.acknowledge(link);
                        if ticks % STATE == 0 {
                            self.tell_state(&client, link);
                        }
                    }
                }
            }
            let told = link.as_mut().map(|link| self.fill(link, &client, &acked_in));
            if let Some(Err(reason)) = told {
                break End::Broken(reason);
            }
            let Some(since) = closing else { continue };
            let idle =
                link.as_ref().is_none_or(|link| link.ready.is_empty() && link.under_way == 0 && link.done.is_empty());
            if idle || ticks.wrapping_sub(since) >= (GRACE.as_millis() / TICK.as_millis()) as u32 {
                break End::Stopped;
            }
        };
        if let (End::Stopped, Some(mut link)) = (&end, link) {
            self.acknowledge(&mut link);
            let retained = PublishOptions::at_least_once().retained();
            let _ = client.publish(self.topic("state"), OFFLINE, retained).await;
            let _ = client.disconnect_with_timeout(GRACE / 2).await;
            let _ = timeout(GRACE, async { while heard.recv().await.is_some_and(|event| event.is_ok()) {} }).await;
        }
        listening.abort();
        end
    }

    /// The broker is there.
    fn begin(&self, client: &AsyncClient) -> Result<Link, String> {
        if !self.health.connected.swap(true, Ordering::Relaxed) {
            log::info!("mqtt: connected as '{}'", self.settings.client_id);
        }
        let turn = Turn::begin(&self.reader, Destination::Mqtt).map_err(|error| format!("the outbox: {error}"))?;
        let mut link =
            Link { turn, ready: VecDeque::new(), under_way: 0, done: Vec::new(), read_at: None, state: Value::Null };
        if self.settings.level.is_some() {
            client.try_subscribe(self.topic("cmd"), QoS::AtLeastOnce).map_err(|error| error.to_string())?;
        }
        self.tell_state(client, &mut link);
        Ok(link)
    }

    /// Sends what the window has room for.
    fn fill(&self, link: &mut Link, client: &AsyncClient, acked: &mpsc::UnboundedSender<i64>) -> Result<(), String> {
        while link.under_way < WINDOW {
            if link.ready.is_empty() {
                let commits = self.record.commits();
                if link.read_at == Some(commits) {
                    return Ok(());
                }
                let rows = link.turn.next(&self.reader, READ).map_err(|error| format!("the outbox: {error}"))?;
                link.read_at = (rows.len() < READ).then_some(commits);
                link.ready.extend(rows);
                if link.ready.is_empty() {
                    return Ok(());
                }
            }
            let Some(Waiting { id, topic, body }) = link.ready.pop_front() else { return Ok(()) };
            match client.try_publish_tracked(self.topic(&topic), body.clone(), PublishOptions::at_least_once()) {
                Ok(notice) => {
                    link.under_way += 1;
                    let acked = acked.clone();
                    tokio::spawn(async move {
                        // Without an acknowledgement it stays in the outbox.
                        if notice.wait_async().await.is_ok() {
                            let _ = acked.send(id);
                        }
                    });
                }
                Err(_) => {
                    // The client has no room just now.
                    link.ready.push_front(Waiting { id, topic, body });
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Tells the record what the broker has; if it has no room, next time.
    fn acknowledge(&self, link: &mut Link) {
        if !link.done.is_empty() && self.clerk.sent(link.done.clone()).is_ok() {
            self.health.sent.fetch_add(link.done.len() as u64, Ordering::Relaxed);
            link.done.clear();
        }
    }

    /// Tells the state, if it is another than before.
    fn tell_state(&self, client: &AsyncClient, link: &mut Link) {
        let Some(reading) = self.desk.read() else { return };
        let state = state(&reading);
        if state != link.state {
            let retained = PublishOptions::at_least_once().retained();
            if client.try_publish(self.topic("state"), state.to_string(), retained).is_ok() {
                link.state = state;
            }
        }
    }

    /// Obeys a command, and says what came of it.
    fn command(&self, client: &AsyncClient, payload: &[u8]) {
        self.health.commands.fetch_add(1, Ordering::Relaxed);
        let Some(level) = self.settings.level else { return };
        let (id, outcome) = obey(payload, level, &self.desk);
        let is_done = outcome.is_ok();
        let mut ack = match outcome {
            Ok(done) => told(&done),
            Err(Refused { code, text }) => json!({"error": code.word(), "text": text}),
        };
        ack["ok"] = is_done.into();
        ack["id"] = id;
        if client.try_publish(self.topic("ack"), ack.to_string(), PublishOptions::at_least_once()).is_err() {
            log::warn!("mqtt: an answer to a command found no room: {ack}");
        }
    }
}

/// What a payload commands, done; with the id that the answer carries.
fn obey(payload: &[u8], level: Level, desk: &Desk) -> (Value, Result<Done, Refused>) {
    let unknown = |text: String| Err(Refused::new(RefusalCode::Unknown, text));
    if payload.len() > COMMAND {
        return (Value::Null, unknown(format!("a command is longer than {COMMAND} bytes")));
    }
    let mut object: BTreeMap<String, Value> = match serde_json::from_slice(payload) {
        Ok(object) => object,
        Err(error) => return (Value::Null, unknown(format!("no JSON object: {error}"))),
    };
    // An id may be long or deep: only what names a command comes back.
    let id = object.remove("id").filter(|id| id.is_string() || id.is_number()).unwrap_or(Value::Null);
    let Some(Value::String(word)) = object.remove("command") else {
        return (id, unknown("`command` is missing; write {\"command\": \"StartSingleJob\"}".into()));
    };
    let text = |(key, value): (String, Value)| match value {
        Value::String(text) => Ok((key, text)),
        Value::Number(number) => Ok((key, number.to_string())),
        _ => Err(Refused::new(RefusalCode::Unknown, format!("'{key}' must be a text or a number"))),
    };
    let fields = match object.into_iter().map(text).collect::<Result<BTreeMap<_, _>, _>>() {
        Ok(fields) => fields,
        Err(refused) => return (id, Err(refused)),
    };
    let order = Order::parse(&word, &fields, Source::unnamed("mqtt", "broker", level));
    (id, order.and_then(|order| desk.act(order)))
}

/// The state as it is told.
fn state(reading: &Reading) -> Value {
    let faults: Vec<Value> = reading
        .faults
        .iter()
        .map(|fault| json!({"kind": fault.kind.word(), "of": fault.of, "text": fault.text}))
        .collect();
    json!({
        "state": reading.state.word(), "number": reading.state.number(), "ready": reading.state.is_ready() && reading.obstacles.is_empty(),
        "since": rfc3339(reading.state_since_nanos), "reasons": reading.obstacles, "faults": faults,
        "recipes": reading.cameras.iter().map(|camera| (camera.camera.clone(), camera.recipe.clone().into())).collect::<serde_json::Map<_, Value>>(),
    })
}

/// Hands on what the broker says, until the connection breaks.
async fn listen(mut events: EventLoop, heard: mpsc::Sender<Result<Packet, String>>) {
    loop {
        let event = match events.poll().await {
            Ok(Event::Incoming(packet)) => Ok(packet),
            Ok(Event::Outgoing(_)) => continue,
            Err(error) => Err(error.to_string()),
        };
        let last = event.is_err();
        if heard.send(event).await.is_err() || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, RngExt, SeedableRng};

    use super::*;

    /// So many payloads that were commands, or nearly: each is answered, and none is taken for another.
    fn mutated(count: usize) {
        let desk = Desk::default();
        let obeyed = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&obeyed);
        let act = move |order: Order| {
            assert!(order.source.level == Level::Operator && order.source.way() == "mqtt");
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(Done::Prepared { cameras: Vec::new() })
        };
        desk.open(Arc::new(Reading::default), Arc::new(act));
        let seeds: [&[u8]; 5] = [
            br#"{"command": "StartSingleJob", "id": "17", "part_id": "A 17", "camera": "top"}"#,
            br#"{"command": "PrepareRecipe", "recipe": "bottle", "id": 4}"#,
            br#"{"command": "PrepareRecipe", "number": 12}"#,
            br#"{"command": "Halt"}"#,
            br#"[[[[{"command": {"a": [1, 2, null, 1e308]}}]]]]"#,
        ];
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(8);
        let (mut done, mut refused) = (0u64, 0u64);
        for number in 0..count {
            let mut payload = seeds[number % seeds.len()].to_vec();
            for _ in 0..random.random_range(0..4) {
                let at = random.random_range(0..payload.len());
                match random.random_range(0..4) {
                    0 => payload[at] = random.next_u32() as u8,
                    1 => payload.truncate(at.max(1)),
                    2 => payload.insert(at, b"{}[]\",:\\u0"[random.random_range(0..10)]),
                    _ => payload = payload.repeat(2),
                }
            }
            match obey(&payload, Level::Operator, &desk).1 {
                Ok(_) => done += 1,
                Err(Refused { text, .. }) => {
                    assert!(text.len() < 2_000, "{text}");
                    refused += 1;
                }
            }
        }
        assert_eq!(done, obeyed.load(Ordering::Relaxed));
        assert!(done > count as u64 / 20 && refused > count as u64 / 20, "{done} obeyed, {refused} refused");
        println!("{count} payloads: {done} obeyed, {refused} refused");
    }

    #[test]
    fn any_payload_is_answered() {
        mutated(5_000);
    }

    #[test]
    #[ignore = "takes a while: cargo test --lib any_hundred_thousand -- --ignored --nocapture"]
    fn any_hundred_thousand_payloads_are_answered() {
        mutated(100_000);
    }
}
