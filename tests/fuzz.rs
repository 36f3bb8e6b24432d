//! Any bytes over HTTP, while parts are judged: nothing panics, nothing grows, nothing waits.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dsad::daemon::pipeline::Ending;
use dsad::inspection::account::Level;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cli::lines;
use crate::service::{Station, scripted, shots, sum, wait};
use crate::support::calibration;
use crate::support::doors::{bearer, login, password, request};

/// Requests at once.
const AT_ONCE: usize = 24;
/// What requests are made of.
const WORDS: [&str; 24] = [
    "\r\n",
    "\r\n\r\n",
    "Content-Length: 99999999999999999999\r\n",
    "Transfer-Encoding: chunked\r\n",
    "\0",
    "\u{e9}",
    "%00",
    "%2e%2e/",
    "Host: a\r\nHost: b\r\n",
    "{\"camera\":",
    "\"part_id\"",
    "[[[[[[[[",
    "1e999",
    "\\ud800",
    "HTTP/2.0",
    "CONNECT ",
    "/v1/accounts/",
    "Origin: http://dsad\r\n",
    "Cookie: dsad_session=;;=\r\n",
    "Authorization: Bearer \r\n",
    "?after=&limit=",
    "Expect: 100-continue\r\n",
    "Upgrade: websocket\r\nConnection: upgrade\r\n",
    "GET http://dsad/livez HTTP/1.1",
];

fn seeds(address: SocketAddr) -> Vec<Vec<u8>> {
    let [operator, admin] =
        [Level::Operator, Level::Admin].map(|level| bearer(&login(address, level.word(), &password(level))));
    let account = "{\"name\": \"line.2\", \"level\": \"operator\", \"password\": \"a good password\"}";
    let seeds = [
        ("GET", "/", "", ""),
        ("GET", "/readyz", "", ""),
        ("GET", "/metrics", "", ""),
        ("GET", "/v1/status", &operator, ""),
        ("GET", "/v1/events?limit=7&after=01JDZ9XW5T0000000000000000", &operator, ""),
        ("GET", "/v1/cameras/a/frame.jpg", &operator, ""),
        ("POST", "/v1/login", "", "{\"user\": \"operator\", \"password\": \"a wrong password\"}"),
        ("POST", "/v1/logout", "Cookie: dsad_session=0123456789abcdef\r\n", ""),
        ("POST", "/v1/password", &operator, "{\"old\": \"a wrong password\", \"new\": \"a better password\"}"),
        ("GET", "/v1/accounts", &admin, ""),
        ("POST", "/v1/accounts", &admin, account),
        ("DELETE", "/v1/accounts/line.2", &admin, ""),
        ("POST", "/v1/trigger", &operator, "{\"camera\": \"a\", \"part_id\": \"A 17\"}"),
        ("POST", "/v1/trigger", &operator, "{\"camera\": \"a\", \"part_id\": \"A 17\"}"),
        ("POST", "/v1/recipe", &operator, "{\"recipe\": \"scripted\", \"camera\": \"a\"}"),
    ];
    seeds.iter().map(|(method, path, headers, body)| request(method, path, headers, body).into_bytes()).collect()
}

fn mutate(rng: &mut ChaCha8Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[rng.random_range(0..seeds.len())].clone();
    for _ in 0..rng.random_range(0..5) {
        let at = rng.random_range(0..=bytes.len());
        let until = (at + rng.random_range(0..40)).min(bytes.len());
        match rng.random_range(0..8) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => drop(bytes.drain(at..until)),
            3 => bytes = [&bytes[..until], &bytes[at..]].concat(),
            4 | 5 => drop(bytes.splice(at..at, WORDS[rng.random_range(0..WORDS.len())].bytes())),
            6 => bytes.truncate(at),
            7 if rng.random_bool(0.02) => {
                let much = rng.random_range(1..40_000);
                drop(bytes.splice(at..at, std::iter::repeat_n(b'x', much)));
            }
            _ => {
                let other = &seeds[rng.random_range(0..seeds.len())];
                bytes = [&bytes[..at], &other[rng.random_range(0..other.len())..]].concat();
            }
        }
    }
    bytes
}

/// Memory of this process, MiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("reads");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
}

/// Sends so many requests from as many addresses as there are, and counts the answers by their status; 0 is none.
fn send(address: SocketAddr, requests: usize, seeds: &Arc<Vec<Vec<u8>>>) -> BTreeMap<u16, usize> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let next = Arc::new(AtomicUsize::new(0));
    runtime.block_on(async {
        let senders: Vec<_> = (0..AT_ONCE)
            .map(|sender| {
                let (next, seeds) = (Arc::clone(&next), Arc::clone(seeds));
                tokio::spawn(async move {
                    let (mut rng, mut seen) = (ChaCha8Rng::seed_from_u64(sender as u64), BTreeMap::new());
                    while next.fetch_add(1, Ordering::Relaxed) < requests {
                        let status = one(address, &mut rng, &seeds).await;
                        *seen.entry(status).or_insert(0) += 1;
                    }
                    seen
                })
            })
            .collect();
        let mut all = BTreeMap::new();
        for sender in senders {
            for (status, count) in sender.await.expect("sends") {
                *all.entry(status).or_insert(0) += count;
            }
        }
        all
    })
}

async fn one(address: SocketAddr, rng: &mut ChaCha8Rng, seeds: &[Vec<u8>]) -> u16 {
    let bytes = mutate(rng, seeds);
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    // No one address is slowed down.
    let from = Ipv4Addr::new(127, rng.random_range(1..20), rng.random(), rng.random_range(1..255));
    socket.bind((from, 0).into()).expect("binds");
    let mut stream = socket.connect(address).await.expect("connects");
    let _ = stream.write_all(&bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    if answer.is_empty() {
        return 0;
    }
    let text = String::from_utf8_lossy(&answer[..answer.len().min(16)]).into_owned();
    let status = text.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
    status.unwrap_or_else(|| panic!("{text:?} for {:?}", String::from_utf8_lossy(&bytes)))
}

fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share) as usize]
}

fn fuzz(requests: usize) {
    let dir = tempfile::tempdir().expect("directory");
    let station = Station::start(dir.path(), &[("a", false)], &calibration(), scripted(Duration::from_millis(2)));
    // Enough for all the time that it takes; the rest is judged before it stops.
    station.tell(0, shots(1_000, 20));
    let seeds = Arc::new(seeds(station.address));
    let judged = || sum(&station.metrics(), "dsad_inspections_total") as usize;
    wait(|| (judged() == 1_000).then_some(()));
    send(station.address, 500, &seeds);
    let (before, warm) = (resident(), judged());
    let (stop, feeding) = (std::sync::atomic::AtomicBool::new(false), &station);
    let seen = std::thread::scope(|scope| {
        let feeder = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                feeding.tell(0, shots(10, 20));
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let seen = send(station.address, requests, &seeds);
        stop.store(true, Ordering::Relaxed);
        feeder.join().expect("feeds");
        seen
    });
    let (after, during) = (resident(), judged() - warm);
    assert!(!seen.contains_key(&500) && seen.len() > 6, "{seen:?}");
    // Many are whole enough to reach an answer, and many are not.
    let of = |statuses: &[u16]| statuses.iter().filter_map(|status| seen.get(status)).sum::<usize>();
    assert!(of(&[200, 201, 202, 409]) > requests / 20, "{seen:?}");
    assert!(of(&[400]) > requests / 20 && of(&[401, 403, 404]) > requests / 20, "{seen:?}");
    assert!(after - before < 64.0, "{before:.1} MiB before, {after:.1} after");
    assert!(during > 5, "{during} parts were judged meanwhile");
    let Ending::Drained(counts) = station.stop() else { panic!("it failed") };
    assert_eq!(counts.fault + counts.overrun + counts.fail, 0);
    let events = lines(&std::fs::read_to_string(dir.path().join("events.ndjson")).expect("events"));
    let infer = |events: &[serde_json::Value]| -> Vec<f64> {
        events.iter().filter_map(|event| event["latency_ms"]["total"].as_f64()).collect()
    };
    println!("{requests} requests: {seen:?}; {before:.1} MiB before, {after:.1} after; {during} parts meanwhile");
    let (quiet, busy) = (infer(&events[100..1_000]), infer(&events[1_000..]));
    for share in [0.5, 0.99] {
        let of = |values: &Vec<f64>| quantile(values.clone(), share);
        println!("capture to verdict at {share}: {:.2} ms quiet, {:.2} ms meanwhile", of(&quiet), of(&busy));
    }
}

#[test]
fn any_bytes_are_answered_or_not_and_parts_go_on() {
    fuzz(2_000);
}

#[test]
#[ignore = "takes minutes; for a machine that has them: cargo test --test main fuzz -- --ignored --nocapture"]
fn a_hundred_thousand_of_them() {
    fuzz(100_000);
}
