//! Pictures of our own through a V4L2 device, pixel by pixel: v4l2loopback gives out what is written into it.
//!
//! `DSAD_LOOPBACK` names such a device, as `.ci/cameras/run` does it in a virtual machine. `DSAD_LOOPBACK_PICTURES` is how many
//! pictures each format gets.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dsad::camera::unpack::{Encoding, Picture, Unpacker};
use dsad::camera::v4l2::V4l2Camera;
use dsad::config::camera::V4l2Settings;
use dsad::inspection::frame::{CameraId, FrameSource, SourceError};
use dsad::inspection::layout::FourCc;
use dsad::platform::clock::SystemClock;
use v4l::video::Output;
use v4l::{Device, Format, FourCC};

const WIDTH: usize = 320;
const HEIGHT: usize = 240;
/// Between two pictures that are written.
const PERIOD: Duration = Duration::from_millis(33);
/// Waits for a picture, of 100 ms each, after which there will be none.
const PATIENCE: usize = 100;

/// The bytes of picture `k`: no two are the same.
fn bytes(code: &[u8; 4], k: usize) -> Vec<u8> {
    let value = |i: usize| ((i * 7 + i / WIDTH * 3 + k * 13) % 251) as u8;
    let mut bytes: Vec<u8> = match code {
        b"MJPG" => {
            // Wave by wave, so that files differ in length and a long one lies behind a short one in the buffer.
            let wave = 1 + k * 7 % 23;
            let pixels: Vec<u8> = (0..WIDTH * HEIGHT * 3).map(|i| (i / 3 % WIDTH / wave * 40 + k) as u8).collect();
            let mut file = Vec::new();
            let (width, height) = (WIDTH as u16, HEIGHT as u16);
            jpeg_encoder::Encoder::new(&mut file, 90)
                .encode(&pixels, width, height, jpeg_encoder::ColorType::Rgb)
                .unwrap();
            return file;
        }
        b"YUYV" => (0..2 * WIDTH * HEIGHT).map(value).collect(),
        _ => (0..WIDTH * HEIGHT).map(value).collect(),
    };
    bytes[..2].copy_from_slice(&(k as u16).to_le_bytes());
    bytes
}

/// Who may go on.
#[derive(Default)]
struct Turns {
    /// The device has its format and a picture: it takes no other size while somebody else has it open.
    fed: AtomicBool,
    /// A picture was read.
    seen: AtomicBool,
    /// Nothing is read any more.
    done: AtomicBool,
}

/// Writes pictures into the device: the first again and again until `seen`, then each once. The one in the middle is cut.
fn feed(device: &str, code: &[u8; 4], pictures: &[Vec<u8>], Turns { fed, seen, done }: &Turns) {
    let mut device = Device::with_path(device).unwrap();
    let format = Format::new(WIDTH as u32, HEIGHT as u32, FourCC::new(code));
    let got = Output::set_format(&device, &format).unwrap();
    assert_eq!((got.fourcc.repr, got.width, got.height), (*code, WIDTH as u32, HEIGHT as u32));
    while !seen.load(Ordering::Relaxed) {
        assert_eq!(device.write(&pictures[0]).unwrap(), pictures[0].len());
        fed.store(true, Ordering::Relaxed);
        std::thread::sleep(PERIOD);
    }
    for (k, picture) in pictures.iter().enumerate().skip(1) {
        let length = if k == pictures.len() / 2 { picture.len() / 2 } else { picture.len() };
        assert_eq!(device.write(&picture[..length]).unwrap(), length);
        std::thread::sleep(PERIOD);
    }
    // The device forgets what it was given when nobody feeds it.
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(PERIOD);
    }
}

/// Lets the feeder end, however the reader does.
struct Release<'a>(&'a Turns);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.seen.store(true, Ordering::Relaxed);
        self.0.done.store(true, Ordering::Relaxed);
    }
}

/// What the reader must see of a picture: what our own decoder and conversion make of the bytes as they were written.
fn expected(code: &[u8; 4], bytes: &[u8]) -> Vec<u8> {
    let layout = FourCc(*code).layout().unwrap();
    let encoding = Encoding { bt709: false, full_range: false };
    let picture = Picture { layout, width: WIDTH, height: HEIGHT, stride: 0, encoding };
    if *code == *b"GREY" {
        return bytes.to_vec();
    }
    Unpacker::default().unpack(&picture, bytes).unwrap().1.to_vec()
}

fn pictures_come_as_they_were_written(device: &str, code: &[u8; 4], count: usize) {
    let pictures: Vec<Vec<u8>> = (0..=count).map(|k| bytes(code, k)).collect();
    let known: HashMap<Vec<u8>, usize> = pictures.iter().enumerate().map(|(k, p)| (expected(code, p), k)).collect();
    assert_eq!(known.len(), pictures.len(), "no two look the same");
    let turns = Turns::default();
    let settings = V4l2Settings {
        device: device.into(),
        format: Some(FourCc(*code)),
        size: Some([WIDTH as u32, HEIGHT as u32]),
        fps: None,
        controls: Default::default(),
        silence_s: 0.0,
    };
    let mut camera = V4l2Camera::new(CameraId("loop".into()), settings, Arc::new(SystemClock::start()));
    let (mut whole, mut damaged, mut dropped) = (0, 0, 0);
    std::thread::scope(|scope| {
        let feeder = scope.spawn(|| feed(device, code, &pictures, &turns));
        let release = Release(&turns);
        while !turns.fed.load(Ordering::Relaxed) && !feeder.is_finished() {
            std::thread::sleep(PERIOD);
        }
        let (mut last, mut waited) = (None::<(usize, u64)>, 0);
        while last.is_none_or(|(k, _)| k < count) && waited < PATIENCE && !feeder.is_finished() {
            let (k, sequence) = match camera.next_frame() {
                Ok(frame) => {
                    turns.seen.store(true, Ordering::Relaxed);
                    let k = known.get(&frame.pixels[..]).copied();
                    let k = k.unwrap_or_else(|| panic!("a picture that nobody wrote, after {last:?}"));
                    whole += usize::from(k > 0);
                    (k, frame.meta.sequence)
                }
                Err(SourceError::Damaged { meta, .. }) => {
                    damaged += 1;
                    (count.div_ceil(2), meta.sequence)
                }
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(50));
                    waited += 1;
                    continue;
                }
            };
            waited = 0;
            if let Some((before, number)) = last.filter(|_| k > 0) {
                // The first is there more than once; from it on, the driver's numbers go with the pictures.
                assert!(k > before, "{k} after {before}");
                assert!(
                    before == 0 || sequence - number == (k - before) as u64,
                    "{before} to {k}: {number} to {sequence}"
                );
                dropped += k - before - 1;
            }
            last = Some((k, sequence));
        }
        drop(release);
        feeder.join().unwrap();
        assert_eq!(last.map(|(k, _)| k), Some(count), "the last that was written was seen");
    });
    let name = FourCc(*code);
    println!(
        "{{\"check\":\"loopback {name}\",\"written\":{count},\"exact\":{whole},\"damaged\":{damaged},\"dropped\":{dropped}}}"
    );
    assert_eq!(whole + damaged + dropped, count);
    assert!(dropped * 20 <= count, "{dropped} of {count} dropped");
    // Half a picture was written once: what an older one left behind it in the buffer is not shown.
    assert!(damaged <= 1 && damaged + dropped >= 1, "{damaged} damaged");
}

#[test]
#[ignore = "needs v4l2loopback: .ci/cameras/run"]
fn pictures_through_a_device() {
    let device = std::env::var("DSAD_LOOPBACK").expect("DSAD_LOOPBACK names the device");
    let count = std::env::var("DSAD_LOOPBACK_PICTURES").ok().and_then(|count| count.parse().ok()).unwrap_or(300);
    for code in [b"GREY", b"YUYV", b"MJPG"] {
        pictures_come_as_they_were_written(&device, code, count);
    }
}
