//! The calls of V4L2 that the crate `v4l` 0.14 has no form of that comes back: waiting with a limit, taking and giving buffers,
//! controls of kinds that it does not know, names that are no UTF-8.
//!
//! `v4l::io::mmap::Stream` gives a buffer twice after a time-out, so that every later call fails, and panics when it is
//! dropped beside a dead device; `Device::query_controls` panics at kinds of controls of newer kernels, and `query_caps` and
//! `enum_formats` at a name that the kernel cut inside of a letter.

#![expect(unsafe_code, reason = "system calls and mapped memory; nothing outside of this file needs it")]

use std::ffi::{c_int, c_void};
use std::io;
use std::mem;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use v4l::device::Handle;
use v4l::v4l_sys::{
    v4l2_buffer, v4l2_capability, v4l2_control, v4l2_ext_control, v4l2_ext_controls, v4l2_fmtdesc, v4l2_format,
    v4l2_query_ext_ctrl, v4l2_querymenu, v4l2_requestbuffers, v4l2_streamparm,
};
use v4l::v4l2::{self, vidioc};

/// `V4L2_BUF_TYPE_VIDEO_CAPTURE`.
const CAPTURE: u32 = 1;
/// `V4L2_MEMORY_MMAP`.
const MMAP: u32 = 1;
/// `V4L2_BUF_FLAG_ERROR`: the driver says that the picture is damaged.
const FLAG_ERROR: u32 = 0x0000_0040;
/// `V4L2_BUF_FLAG_TIMESTAMP_MASK` and `..._MONOTONIC`.
const TIMESTAMP_MASK: u32 = 0x0000_e000;
const TIMESTAMP_MONOTONIC: u32 = 0x0000_2000;
/// `V4L2_CTRL_FLAG_NEXT_CTRL`.
const NEXT_CONTROL: u32 = 0x8000_0000;
/// `V4L2_CAP_TIMEPERFRAME`.
const TIME_PER_FRAME: u32 = 0x1000;
/// `V4L2_CAP_DEVICE_CAPS`: the flags of the node itself are in `device_caps`.
const DEVICE_CAPS: u32 = 0x8000_0000;
/// `V4L2_CAP_VIDEO_CAPTURE`, `V4L2_CAP_VIDEO_CAPTURE_MPLANE`, `V4L2_CAP_STREAMING`.
pub const CAPTURES: u32 = 0x0000_0001;
pub const CAPTURES_PLANES: u32 = 0x0000_1000;
pub const STREAMS: u32 = 0x0400_0000;
/// How old a picture may be by its own stamp: more is a clock that is not ours.
const OLDEST: Duration = Duration::from_secs(10);

/// One call, again where a signal came between.
fn call<T>(fd: c_int, request: vidioc::_IOC_TYPE, argument: &mut T) -> io::Result<()> {
    // A request states how many bytes the kernel reads and writes.
    assert_eq!((request as usize >> 16) & 0x3fff, mem::size_of::<T>(), "request {request:#x}");
    loop {
        // SAFETY: `argument` is valid, is no reference, and has the size that the request states.
        match unsafe { v4l2::ioctl(fd, request, ptr::from_mut(argument).cast()) } {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A structure of numbers, all 0.
fn zeroed<T: Plain>() -> T {
    // SAFETY: `Plain` is only implemented for structures of V4L2, in which all zeros are a value.
    unsafe { mem::zeroed() }
}

trait Plain {}
impl Plain for v4l2_buffer {}
impl Plain for v4l2_capability {}
impl Plain for v4l2_control {}
impl Plain for v4l2_ext_control {}
impl Plain for v4l2_ext_controls {}
impl Plain for v4l2_fmtdesc {}
impl Plain for v4l2_format {}
impl Plain for v4l2_query_ext_ctrl {}
impl Plain for v4l2_querymenu {}
impl Plain for v4l2_requestbuffers {}
impl Plain for v4l2_streamparm {}

/// A buffer that the driver filled, until it is given back.
#[derive(Debug, PartialEq, Eq)]
pub struct Filled {
    /// Which.
    pub index: usize,
    /// Bytes that the driver says it filled.
    pub used: usize,
    /// The driver says that the picture is damaged.
    pub damaged: bool,
    /// Its number, of 32 bits.
    pub sequence: u32,
    /// How long ago it was taken.
    pub age: Duration,
}

/// Buffers of a device, shared with its driver, while it streams.
pub struct Ring {
    handle: Arc<Handle>,
    maps: Vec<Map>,
}

struct Map {
    start: *mut c_void,
    length: usize,
}

// SAFETY: a mapping may be read and undone by any thread; `Ring` hands it out by reference only.
unsafe impl Send for Map {}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: `start` and `length` are those of a mapping that nothing refers to any more. Beside a dead device this may
        // fail, and there is nothing to be done about it.
        let _ = unsafe { v4l2::munmap(self.start, self.length) };
    }
}

impl Ring {
    /// Asks for buffers, gives all of them to the driver, and starts the stream.
    ///
    /// # Errors
    /// What the driver says; the device is left as it was.
    pub fn start(handle: Arc<Handle>, count: u32) -> io::Result<Self> {
        let mut request: v4l2_requestbuffers = zeroed();
        (request.count, request.type_, request.memory) = (count, CAPTURE, MMAP);
        call(handle.fd(), vidioc::VIDIOC_REQBUFS, &mut request)?;
        if request.count < 2 {
            return Err(io::Error::other(format!("the driver has {} buffers, two are needed", request.count)));
        }
        let mut ring = Self { handle, maps: Vec::new() };
        for index in 0..request.count {
            let mut buffer = buffer(index);
            call(ring.handle.fd(), vidioc::VIDIOC_QUERYBUF, &mut buffer)?;
            // SAFETY: the union is `offset`, because the buffer is of the kind MMAP.
            let offset = unsafe { buffer.m.offset };
            let (protection, sharing, length) = (libc::PROT_READ, libc::MAP_SHARED, buffer.length as usize);
            // SAFETY: a new mapping of what the driver just described.
            let start = unsafe {
                v4l2::mmap(ptr::null_mut(), length, protection, sharing, ring.handle.fd(), libc::off_t::from(offset))
            }?;
            ring.maps.push(Map { start, length });
        }
        for index in 0..request.count {
            call(ring.handle.fd(), vidioc::VIDIOC_QBUF, &mut buffer(index))?;
        }
        let mut kind = CAPTURE as c_int;
        call(ring.handle.fd(), vidioc::VIDIOC_STREAMON, &mut kind)?;
        Ok(ring)
    }

    /// Waits for a filled buffer, at most so long; none came if there is none.
    ///
    /// # Errors
    /// What the driver says: the stream is over.
    pub fn take(&mut self, limit: Duration) -> io::Result<Option<Filled>> {
        let mut events = libc::pollfd { fd: self.handle.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid structure.
        match unsafe { libc::poll(&raw mut events, 1, limit.as_millis() as c_int) } {
            0 => return Ok(None),
            -1 => {
                let error = io::Error::last_os_error();
                return if error.kind() == io::ErrorKind::Interrupted { Ok(None) } else { Err(error) };
            }
            _ => {}
        }
        let mut taken = buffer(0);
        match call(self.handle.fd(), vidioc::VIDIOC_DQBUF, &mut taken) {
            Ok(()) => {}
            // The device does not wait. Woken for nothing it is asked again; woken for an error, that would be without end.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && events.revents & libc::POLLERR == 0 => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let index = taken.index as usize;
        if index >= self.maps.len() {
            return Err(io::Error::other(format!("buffer {index} of {}", self.maps.len())));
        }
        let age = if taken.flags & TIMESTAMP_MASK == TIMESTAMP_MONOTONIC {
            let number = |value: i64| u64::try_from(value).ok();
            let (seconds, micros) = (number(taken.timestamp.tv_sec), number(taken.timestamp.tv_usec));
            let (seconds, micros) = (seconds.map(Duration::from_secs), micros.map(Duration::from_micros));
            let stamp = seconds.zip(micros).and_then(|(seconds, micros)| seconds.checked_add(micros));
            let age = stamp.and_then(|stamp| monotonic().checked_sub(stamp));
            age.filter(|age| *age < OLDEST).unwrap_or_default()
        } else {
            Duration::ZERO
        };
        let damaged = taken.flags & FLAG_ERROR != 0;
        Ok(Some(Filled { index, used: taken.bytesused as usize, damaged, sequence: taken.sequence, age }))
    }

    /// What the driver filled a buffer with.
    pub fn bytes(&self, filled: &Filled) -> &[u8] {
        let map = &self.maps[filled.index];
        // SAFETY: the mapping lives as long as `self`, and the driver writes into no buffer that it has not been given.
        unsafe { std::slice::from_raw_parts(map.start.cast(), filled.used.min(map.length)) }
    }

    /// The device.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Gives a buffer back to the driver.
    ///
    /// # Errors
    /// What the driver says.
    pub fn give(&mut self, filled: Filled) -> io::Result<()> {
        call(self.handle.fd(), vidioc::VIDIOC_QBUF, &mut buffer(filled.index as u32))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Beside a dead device these fail, and closing it does the same.
        let mut kind = CAPTURE as c_int;
        let _ = call(self.handle.fd(), vidioc::VIDIOC_STREAMOFF, &mut kind);
        self.maps.clear();
        let mut none: v4l2_requestbuffers = zeroed();
        (none.type_, none.memory) = (CAPTURE, MMAP);
        let _ = call(self.handle.fd(), vidioc::VIDIOC_REQBUFS, &mut none);
    }
}

fn buffer(index: u32) -> v4l2_buffer {
    let mut buffer: v4l2_buffer = zeroed();
    (buffer.index, buffer.type_, buffer.memory) = (index, CAPTURE, MMAP);
    buffer
}

/// Now, by the clock of the drivers.
fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid structure; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Makes calls on a device come back at once.
///
/// # Errors
/// What the system says.
pub fn never_block(handle: &Handle) -> io::Result<()> {
    // SAFETY: plain flags of an open file.
    let set = unsafe {
        let flags = libc::fcntl(handle.fd(), libc::F_GETFL);
        libc::fcntl(handle.fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    if set == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// Its name.
    pub card: String,
    /// The driver.
    pub driver: String,
    /// Where it is plugged in.
    pub bus: String,
    /// `V4L2_CAP_*` of this node.
    pub flags: u32,
}

/// Text up to its end. A name that the kernel cut inside of a letter is still a name.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// What a device is.
///
/// # Errors
/// It is no video device.
pub fn capability(handle: &Handle) -> io::Result<Capability> {
    let mut found: v4l2_capability = zeroed();
    call(handle.fd(), vidioc::VIDIOC_QUERYCAP, &mut found)?;
    let of_node = found.capabilities & DEVICE_CAPS != 0;
    let flags = if of_node { found.device_caps } else { found.capabilities };
    Ok(Capability { card: text(&found.card), driver: text(&found.driver), bus: text(&found.bus_info), flags })
}

/// The layouts that a device offers: FOURCC and words.
pub fn formats(handle: &Handle) -> Vec<([u8; 4], String)> {
    let mut found = Vec::new();
    let mut format: v4l2_fmtdesc = zeroed();
    format.type_ = CAPTURE;
    // Their end is EINVAL; nobody has so many.
    while found.len() < 1000 && call(handle.fd(), vidioc::VIDIOC_ENUM_FMT, &mut format).is_ok() {
        found.push((format.pixelformat.to_le_bytes(), text(&format.description)));
        format.index += 1;
    }
    found
}

/// A picture's form, as the driver has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// FOURCC.
    pub code: [u8; 4],
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Bytes from row to row.
    pub stride: u32,
    /// `enum v4l2_colorspace`.
    pub colorspace: u32,
    /// `enum v4l2_ycbcr_encoding`.
    pub encoding: u32,
    /// `enum v4l2_quantization`.
    pub quantisation: u32,
}

/// The form that pictures have, or get where one is asked for; a driver may choose another than asked.
///
/// # Errors
/// What the driver says.
pub fn form(handle: &Handle, asked: Option<([u8; 4], u32, u32)>) -> io::Result<Form> {
    let mut format: v4l2_format = zeroed();
    format.type_ = CAPTURE;
    call(handle.fd(), vidioc::VIDIOC_G_FMT, &mut format)?;
    if let Some((code, width, height)) = asked {
        format.fmt.pix.pixelformat = u32::from_le_bytes(code);
        (format.fmt.pix.width, format.fmt.pix.height) = (width, height);
        // The driver has to choose these.
        (format.fmt.pix.bytesperline, format.fmt.pix.sizeimage) = (0, 0);
        call(handle.fd(), vidioc::VIDIOC_S_FMT, &mut format)?;
    }
    // SAFETY: the union is `pix` for this kind of buffers.
    let pix = unsafe { format.fmt.pix };
    // SAFETY: the second name of the same number.
    let encoding = unsafe { pix.__bindgen_anon_1.ycbcr_enc };
    Ok(Form {
        code: pix.pixelformat.to_le_bytes(),
        width: pix.width,
        height: pix.height,
        stride: pix.bytesperline,
        colorspace: pix.colorspace,
        encoding,
        quantisation: pix.quantization,
    })
}

/// Asks for so many pictures a second; what the driver made of it, where it has a rate at all.
///
/// # Errors
/// What the driver says.
pub fn rate(handle: &Handle, fps: f64) -> io::Result<Option<f64>> {
    let mut parameters: v4l2_streamparm = zeroed();
    parameters.type_ = CAPTURE;
    match call(handle.fd(), vidioc::VIDIOC_G_PARM, &mut parameters) {
        // Bridges and image processors have no rate of their own.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => return Ok(None),
        result => result?,
    }
    // SAFETY: the union is `capture` for this kind of buffers.
    unsafe {
        if parameters.parm.capture.capability & TIME_PER_FRAME == 0 {
            return Ok(None);
        }
        // A whole rate as one: some drivers keep the fraction as it is, and some readers know no other.
        let parts = if fps.fract() == 0.0 { 1 } else { 1000 };
        parameters.parm.capture.timeperframe.numerator = parts;
        parameters.parm.capture.timeperframe.denominator = (fps * f64::from(parts)).round() as u32;
    }
    call(handle.fd(), vidioc::VIDIOC_S_PARM, &mut parameters)?;
    // SAFETY: as above.
    let period = unsafe { parameters.parm.capture.timeperframe };
    Ok((period.numerator > 0).then(|| f64::from(period.denominator) / f64::from(period.numerator)))
}

/// A control as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlInfo {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// `enum v4l2_ctrl_type`.
    pub kind: u32,
    /// Least value.
    pub minimum: i64,
    /// Largest value.
    pub maximum: i64,
    /// Step between values.
    pub step: u64,
    /// Value of a new device.
    pub default: i64,
    /// `V4L2_CTRL_FLAG_*`.
    pub flags: u32,
}

/// All controls of a device, in the driver's order.
pub fn controls(handle: &Handle) -> Vec<ControlInfo> {
    let mut found = Vec::new();
    let mut query: v4l2_query_ext_ctrl = zeroed();
    query.id = NEXT_CONTROL;
    // A driver without controls, or at their end, says EINVAL.
    while call(handle.fd(), vidioc::VIDIOC_QUERY_EXT_CTRL, &mut query).is_ok() {
        // One that does not come after the last would come for ever.
        if found.last().is_some_and(|last: &ControlInfo| last.id >= query.id) {
            break;
        }
        found.push(ControlInfo {
            id: query.id,
            name: text(&query.name.map(|byte| byte as u8)),
            kind: query.type_,
            minimum: query.minimum,
            maximum: query.maximum,
            step: query.step,
            default: query.default_value,
            flags: query.flags,
        });
        query.id |= NEXT_CONTROL;
    }
    found
}

/// The value of a control of 32 bits.
///
/// # Errors
/// What the driver says: a control that only writes, or is off.
pub fn value(handle: &Handle, id: u32) -> io::Result<i32> {
    let mut control = v4l2_control { id, value: 0 };
    call(handle.fd(), vidioc::VIDIOC_G_CTRL, &mut control)?;
    Ok(control.value)
}

/// Sets a control of 32 bits.
///
/// # Errors
/// What the driver says.
pub fn set_value(handle: &Handle, id: u32, value: i32) -> io::Result<()> {
    call(handle.fd(), vidioc::VIDIOC_S_CTRL, &mut v4l2_control { id, value })
}

/// The value of a control of 64 bits.
///
/// # Errors
/// What the driver says.
pub fn value64(handle: &Handle, id: u32) -> io::Result<i64> {
    extended(handle, vidioc::VIDIOC_G_EXT_CTRLS, id, 0)
}

/// Sets a control of 64 bits.
///
/// # Errors
/// What the driver says.
pub fn set_value64(handle: &Handle, id: u32, value: i64) -> io::Result<()> {
    extended(handle, vidioc::VIDIOC_S_EXT_CTRLS, id, value).map(drop)
}

fn extended(handle: &Handle, request: vidioc::_IOC_TYPE, id: u32, value: i64) -> io::Result<i64> {
    let mut control: v4l2_ext_control = zeroed();
    control.id = id;
    control.__bindgen_anon_1.value64 = value;
    // All zeros: whatever class the control is of.
    let mut controls: v4l2_ext_controls = zeroed();
    (controls.count, controls.controls) = (1, &raw mut control);
    // The list is of one control, which lives until the call is over.
    call(handle.fd(), request, &mut controls)?;
    // SAFETY: the union is `value64` for this kind of control.
    Ok(unsafe { control.__bindgen_anon_1.value64 })
}

/// What an entry of a menu is called, or which number it stands for; a driver may leave entries out.
pub fn menu_entry(handle: &Handle, id: u32, index: u32, of_numbers: bool) -> Option<String> {
    let mut entry: v4l2_querymenu = zeroed();
    (entry.id, entry.index) = (id, index);
    call(handle.fd(), vidioc::VIDIOC_QUERYMENU, &mut entry).ok()?;
    // SAFETY: the union is `value` for menus of numbers, and `name` for all others.
    unsafe {
        if of_numbers {
            let value = entry.__bindgen_anon_1.value;
            Some(value.to_string())
        } else {
            Some(text(&entry.__bindgen_anon_1.name))
        }
    }
}
