//! Registers and coils of a whole daemon, by a client of the field; and whatever else comes over the wire.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dsad::inspection::account::Level;
use dsad::inspection::station_state::{Start, State};
use dsad::inspection::trigger::TriggerMode;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Runtime;
use tokio_modbus::client::{Context, tcp};
use tokio_modbus::prelude::{ExceptionCode, Reader, Slave, SlaveContext, Writer};

use crate::triggers::{Controller, Setup, Station, Told};

/// A controller that reads and writes registers.
struct Plc {
    runtime: Runtime,
    context: Context,
    request: u16,
}

impl Plc {
    fn connect(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let context = runtime.block_on(tcp::connect(address)).expect("connects");
        let mut plc = Self { runtime, context, request: 0 };
        plc.request = plc.registers(6, 1)[0];
        plc
    }

    fn try_registers(&mut self, at: u16, count: u16) -> Result<Vec<u16>, ExceptionCode> {
        self.runtime.block_on(self.context.read_holding_registers(at, count)).expect("answers")
    }

    fn registers(&mut self, at: u16, count: u16) -> Vec<u16> {
        self.try_registers(at, count).expect("registers")
    }

    fn inputs(&mut self, at: u16, count: u16) -> Vec<bool> {
        self.runtime.block_on(self.context.read_discrete_inputs(at, count)).expect("answers").expect("inputs")
    }

    fn write(&mut self, at: u16, values: &[u16]) -> Result<(), ExceptionCode> {
        self.runtime.block_on(self.context.write_multiple_registers(at, values)).expect("answers")
    }

    fn coil(&mut self, at: u16) -> Result<(), ExceptionCode> {
        self.runtime.block_on(self.context.write_single_coil(at, true)).expect("answers")
    }

    /// A command with its fields, and what came of it.
    fn command(&mut self, number: u16, camera: u16, recipe: u16, part: u32) -> u16 {
        self.request = self.request.wrapping_add(1);
        let [high, low] = [(part >> 16) as u16, part as u16];
        self.write(8, &[number, camera, recipe, high, low, self.request]).expect("is taken");
        let [acknowledge, result] = self.registers(6, 2)[..] else { panic!("two registers") };
        assert_eq!(acknowledge, self.request);
        result
    }

    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let started = Instant::now();
        while !done(self) {
            assert!(started.elapsed() < Duration::from_secs(60), "never");
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    fn state(&mut self) -> u16 {
        self.registers(1, 1)[0]
    }

    /// Takes the verdict of a camera, by the handshake: its block, once `done` is there.
    fn verdict(&mut self, camera: u16) -> Vec<u16> {
        self.until(|plc| plc.inputs(10 * camera + 1, 1)[0]);
        let block = self.registers(100 * camera, 23);
        self.write(100 * camera + 22, &[block[2]]).expect("is taken");
        assert!(!self.inputs(10 * camera + 1, 1)[0]);
        block
    }
}

fn long(block: &[u16], at: usize) -> u32 {
    u32::from(block[at]) << 16 | u32::from(block[at + 1])
}

const SELECT: u16 = 1;
const PREPARE: u16 = 2;
const JOB: u16 = 4;
const HALT: u16 = 8;
const RESET: u16 = 9;

#[test]
fn a_controller_drives_the_station_by_registers() {
    let station = Station::start(Setup { start: Start::Initialized, ..Setup::default() });
    let mut plc = Plc::connect(station.modbus);
    plc.until(|plc| plc.state() == 3);
    assert_eq!((plc.registers(0, 6)[0], plc.registers(2, 1)[0], plc.registers(5, 1)[0]), (1, 0, 1));
    assert_eq!(plc.command(JOB, 0, 0, 1), 2, "not ready");
    assert_eq!(plc.command(PREPARE, 0, 3, 0), 4, "no such recipe");
    assert_eq!(plc.command(PREPARE, 2, 1, 0), 4, "no such camera");
    assert_eq!(plc.command(77, 0, 0, 0), 4, "no such command");
    assert_eq!(plc.command(PREPARE, 0, 2, 0), 1);
    plc.until(|plc| plc.registers(2, 1)[0] == 1 && plc.inputs(0, 2) == [true, false]);
    assert_eq!((plc.state(), plc.registers(100, 1)[0]), (4, 2));
    let beat = plc.registers(3, 1)[0];
    plc.until(|plc| plc.registers(3, 1)[0] != beat);

    // The command is done once, however often its request is written.
    plc.request = plc.request.wrapping_add(1);
    for _ in 0..3 {
        plc.write(8, &[JOB, 1, 0, 1, 4_464, plc.request]).expect("is taken");
    }
    let block = plc.verdict(1);
    assert_eq!((block[2], block[3], block[4], long(&block, 7), long(&block, 9)), (1, 1, 0, 70_000, 0));
    let score = f32::from_bits(long(&block, 5));
    let told = station.told(1);
    assert_eq!(Some(score), told[0].event.score);
    assert_eq!((told[0].event.trigger.as_deref(), told[0].event.part_id.as_deref()), (Some("modbus"), Some("70000")));
    // A coil triggers its camera and clears itself.
    station.level.store(200, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(20));
    plc.coil(1).expect("is taken");
    let coils = plc.runtime.block_on(plc.context.read_coils(1, 1)).expect("answers").expect("coils");
    assert_eq!((coils, plc.registers(121, 1)[0]), (vec![false], 1));
    let block = plc.verdict(1);
    assert_eq!((block[2], block[3], block[4], long(&block, 11), long(&block, 13)), (2, 2, 5, 1, 1));
    // What nobody took when the next came is counted.
    for _ in 0..3 {
        plc.coil(1).expect("is taken");
        plc.until(|plc| !plc.inputs(10, 1)[0]);
    }
    assert_eq!(long(&plc.registers(117, 2), 0), 2);
    assert_eq!(plc.command(HALT, 0, 0, 0), 1);
    plc.coil(1).expect("is taken");
    assert_eq!((plc.state(), plc.registers(121, 1)[0]), (1, 2), "halted, and not ready");
    assert!(long(&plc.registers(119, 2), 0) >= 2, "refused triggers are counted");
    assert_eq!(plc.command(RESET, 0, 0, 0), 1);
    assert_eq!(plc.command(SELECT, 0, 0, 0), 6, "it is initialized already");
    station.stop();
}

#[test]
fn what_is_no_register_is_an_exception() {
    let station = Station::start(Setup { level: Level::Operator, cameras: vec!["a", "b"], ..Setup::default() });
    let mut plc = Plc::connect(station.modbus);
    let address = Err(ExceptionCode::IllegalDataAddress);
    for (at, count) in [(14, 1), (13, 2), (99, 1), (122, 2), (300, 1), (65_535, 1), (65_535, 2)] {
        assert_eq!(plc.try_registers(at, count), address, "{at} {count}");
    }
    assert_eq!(plc.try_registers(200, 23).expect("the second camera").len(), 23);
    assert_eq!(plc.try_registers(0, 126), Err(ExceptionCode::IllegalDataValue));
    for (at, values) in [(0, vec![1]), (7, vec![1, 1]), (102, vec![1]), (14, vec![1]), (322, vec![1])] {
        assert_eq!(plc.write(at, &values), Err(ExceptionCode::IllegalDataAddress), "{at}");
    }
    assert_eq!(plc.coil(0), Err(ExceptionCode::IllegalDataAddress));
    assert_eq!(plc.coil(3), Err(ExceptionCode::IllegalDataAddress));
    let exception = plc.runtime.block_on(plc.context.masked_write_register(8, 1, 1)).expect("answers");
    assert_eq!(exception, Err(ExceptionCode::IllegalFunction));
    // Whoever may not is told so; which unit is asked does not matter.
    plc.context.set_slave(Slave(77));
    assert_eq!(plc.command(PREPARE, 0, 1, 0), 7);
    station.stop();
}

/// Requests of all kinds, some whole, some with bits turned, bytes lost or more of them, and lengths that lie.
fn frame(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut pdu = match rng.random_range(0..10) {
        0..4 => {
            let [at, count] = [rng.random_range(0..330u16), rng.random_range(0..140u16)].map(u16::to_be_bytes);
            vec![rng.random_range(1..5), at[0], at[1], count[0], count[1]]
        }
        4 => {
            let [at, value] = [rng.random_range(0..130u16), rng.random()].map(u16::to_be_bytes);
            vec![6, at[0], at[1], value[0], value[1]]
        }
        5 => vec![5, 0, rng.random_range(0..4), if rng.random() { 0xFF } else { 0 }, 0],
        6 => {
            let request: [u8; 2] = rng.random();
            let command = rng.random_range(0..11);
            vec![16, 0, 8, 0, 6, 12, 0, command, 0, 0, 0, 1, 0, 0, 0, 9, request[0], request[1]]
        }
        _ => (0..rng.random_range(0..300)).map(|_| rng.random()).collect(),
    };
    for _ in 0..rng.random_range(0..3) {
        match rng.random_range(0..4) {
            0 if !pdu.is_empty() => {
                let at = rng.random_range(0..pdu.len());
                pdu[at] ^= 1 << rng.random_range(0..8);
            }
            1 => drop(pdu.pop()),
            2 => pdu.push(rng.random()),
            _ => {}
        }
    }
    let lie = rng.random_range(0..8) == 0;
    let length = if lie { rng.random() } else { pdu.len() as u16 + 1 };
    let mut frame = vec![rng.random(), rng.random(), 0, u8::from(rng.random_range(0..30) == 0)];
    frame.extend(length.to_be_bytes());
    frame.push(rng.random());
    frame.extend(pdu);
    frame
}

/// A line that somebody might send, and others that nobody would.
fn line(rng: &mut ChaCha8Rng) -> Vec<u8> {
    const WORDS: [&str; 14] = [
        "StartSingleJob",
        "PrepareRecipe",
        "Halt",
        "Subscribe",
        "camera",
        "part_id",
        "recipe",
        "number",
        "=",
        "\"",
        " ",
        ";",
        "\n",
        "\u{0}\u{FFFD}",
    ];
    let mut line: Vec<u8> =
        (0..rng.random_range(0..12)).flat_map(|_| WORDS[rng.random_range(0..WORDS.len())].bytes()).collect();
    if rng.random_range(0..4) == 0 {
        line.extend((0..rng.random_range(0..700)).map(|_| rng.random::<u8>()));
    }
    line.push(b';');
    line
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") / 1024
}

/// Sends so many to an address, on connections that are opened anew when they are closed.
fn flood(address: SocketAddr, count: usize, mut rng: ChaCha8Rng, of: Make) {
    let connect = || {
        let stream = TcpStream::connect(address).expect("connects");
        stream.set_read_timeout(Some(Duration::from_millis(1))).expect("is set");
        stream
    };
    let (mut stream, mut answers) = (connect(), vec![0; 4_096]);
    for number in 0..count {
        let sent = stream.write_all(&of(&mut rng)).is_ok();
        let heard = number % 8 > 0 || !matches!(stream.read(&mut answers), Ok(0));
        if !sent || !heard || number % 97 == 96 {
            stream = connect();
        }
    }
}

type Make = fn(&mut ChaCha8Rng) -> Vec<u8>;

/// One step on the way to work.
fn work(station: &Station, operator: &mut Controller) {
    let command = match station.state.now() {
        State::Halted | State::Error => "Reset;",
        State::Initialized => "PrepareRecipe number=1;",
        State::Ready => "StartContinuous;",
        State::Preoperational | State::SingleExecution | State::ContinuousExecution => return,
    };
    operator.say(command);
}

/// `FUZZ` inputs on each protocol while the line goes on.
#[test]
fn whatever_comes_over_the_wire_the_line_goes_on() {
    let count: usize = std::env::var("FUZZ").ok().and_then(|count| count.parse().ok()).unwrap_or(2_000);
    let level = Level::Technician;
    // What went out is kept: the long form has less of it.
    let every = Duration::from_millis(if count > 10_000 { 25 } else { 5 });
    let station = Station::start(Setup { mode: TriggerMode::Free, level, every, ..Setup::default() });
    station.reaches(State::ContinuousExecution);
    let calm = station.told(200);
    // A panic of a connection ends that connection alone, and is a fault all the same.
    let panics: Arc<AtomicUsize> = Arc::default();
    let (count_panics, otherwise) = (Arc::clone(&panics), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        count_panics.fetch_add(usize::from(std::thread::current().name() == Some("service")), Ordering::Relaxed);
        otherwise(panic);
    }));
    let before = peak_mib();
    let (modbus, tcp) = (station.modbus, station.tcp);
    let seed = |seed| ChaCha8Rng::seed_from_u64(seed);
    let started = Instant::now();
    let over = AtomicUsize::new(0);
    let over = &over;
    std::thread::scope(|scope| {
        let flood = move |address, rng, of| {
            flood(address, count, rng, of);
            over.fetch_add(1, Ordering::Relaxed);
        };
        scope.spawn(move || flood(modbus, seed(1), frame as Make));
        scope.spawn(move || flood(tcp, seed(2), line as Make));
        // Commands are among what comes: somebody takes the station back into work.
        let mut operator = station.controller();
        while over.load(Ordering::Relaxed) < 2 {
            work(&station, &mut operator);
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    let took = started.elapsed();
    // The last of what came may be heard late, and may be a command to halt.
    let (mut operator, mut plc, told) = (station.controller(), Plc::connect(modbus), station.told(0).len());
    let waited = Instant::now();
    while station.told(0).len() < told + 50 || plc.state() != 6 {
        let (now, more) = (station.state.now(), station.told(0).len() - told);
        assert!(waited.elapsed() < Duration::from_secs(60), "{now:?}, and {more} of 50 inspections");
        work(&station, &mut operator);
        std::thread::sleep(Duration::from_millis(2));
    }
    let p99 = |told: &[Told]| {
        let mut millis: Vec<f64> = told.iter().map(|told| told.inspection.latency.total).collect();
        millis.sort_by(f64::total_cmp);
        millis[millis.len() * 99 / 100]
    };
    let during = station.told(0);
    println!(
        "{count} on each in {took:.1?}; {} MiB more at the peak; p99 of {} before {:.2} ms, of {} meanwhile {:.2} ms",
        peak_mib() - before,
        calm.len(),
        p99(&calm),
        during.len() - calm.len(),
        p99(&during[calm.len()..])
    );
    assert_eq!(panics.load(Ordering::Relaxed), 0, "the service panicked");
    assert!(peak_mib() - before < 200, "memory grows");
    station.stop();
}
