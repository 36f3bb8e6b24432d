//! A connection of whole requests that mean what they say, which ends when none is answered on it for too long: bytes alone keep no
//! place.
//!
//! `tokio-modbus` 0.17 believes what a request says of its own length, and panics where that is not so: nothing of that kind may
//! reach it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};

/// Bytes of a header: transaction, protocol, length, unit.
const HEADER: usize = 7;
/// Longest request with its header, bytes.
const LONGEST: usize = 260;

/// The connection, with its place.
pub struct Idle {
    stream: TcpStream,
    silence: Duration,
    patience: Pin<Box<Sleep>>,
    /// What came and is not handed on yet; the first so many bytes are a sound request.
    held: Vec<u8>,
    sound: usize,
    _place: OwnedSemaphorePermit,
}

impl Idle {
    /// A connection that may go without an answer for so long.
    pub fn new(stream: TcpStream, silence: Duration, place: OwnedSemaphorePermit) -> Self {
        let held = Vec::with_capacity(2 * LONGEST);
        Self { stream, silence, patience: Box::pin(sleep(silence)), held, sound: 0, _place: place }
    }

    /// What `done` came to, or the end of the connection's time.
    fn or_end<T>(&mut self, done: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            return done;
        }
        let late = self.patience.as_mut().poll(context).is_ready();
        if late { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) } else { Poll::Pending }
    }
}

/// Length of the request that bytes begin with; nothing while it is not whole.
///
/// # Errors
/// It is none, or it contradicts itself.
fn request(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some(&[_, _, protocol @ .., high, low, _]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let length = 6 + usize::from(u16::from_be_bytes([high, low]));
    if protocol != [0, 0] || !(HEADER + 1..=LONGEST).contains(&length) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no header of a request"));
    }
    match bytes.get(HEADER..length) {
        None => Ok(None),
        Some(pdu) if is_sound(pdu) => Ok(Some(length)),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the request contradicts itself")),
    }
}

/// Whether as many values are there as the request says.
fn is_sound(pdu: &[u8]) -> bool {
    let word = |at: usize| pdu.get(at..at + 2).map(|pair| usize::from(u16::from_be_bytes([pair[0], pair[1]])));
    let holds = |count: Option<usize>, at: usize, bytes: &dyn Fn(usize) -> usize| {
        count.is_some_and(|count| {
            let wanted = bytes(count);
            count > 0 && pdu.get(at).is_some_and(|said| usize::from(*said) == wanted) && pdu.len() == at + 1 + wanted
        })
    };
    match pdu.first() {
        Some(15) => holds(word(3), 5, &|coils| coils.div_ceil(8)),
        Some(16) => holds(word(3), 5, &|registers| 2 * registers),
        Some(23) => holds(word(7), 9, &|registers| 2 * registers),
        _ => true,
    }
}

impl AsyncRead for Idle {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let idle = self.get_mut();
        while idle.sound == 0 {
            if let Some(length) = request(&idle.held)? {
                idle.sound = length;
                break;
            }
            let mut more = [0; LONGEST];
            let mut more = ReadBuf::new(&mut more);
            let done = Pin::new(&mut idle.stream).poll_read(context, &mut more);
            ready!(idle.or_end(done, context))?;
            if more.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            idle.held.extend_from_slice(more.filled());
        }
        let count = idle.sound.min(bytes.remaining());
        bytes.put_slice(&idle.held[..count]);
        idle.held.drain(..count);
        idle.sound -= count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Idle {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let idle = self.get_mut();
        let done = Pin::new(&mut idle.stream).poll_write(context, bytes);
        if matches!(done, Poll::Ready(Ok(_))) {
            idle.patience.set(sleep(idle.silence));
        }
        idle.or_end(done, context)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_handed_on_whole_or_not_at_all() {
        let of = |pdu: &[u8]| [&[0, 1, 0, 0, 0, pdu.len() as u8 + 1, 7], pdu].concat();
        for (pdu, sound) in [
            (&[3, 0, 0, 0, 1][..], true),
            (&[15, 0, 0, 0, 9, 2, 1, 1], true),
            (&[15, 0, 0, 0, 17, 2, 1, 1], false),
            (&[15, 0, 0, 0, 0, 0], false),
            (&[16, 0, 0, 0, 1, 2, 1, 1], true),
            (&[16, 0, 0, 0x80, 1, 2, 1, 1], false),
            (&[16, 0, 0, 0, 1, 2, 1], false),
            (&[16, 0, 0], false),
            (&[23, 0, 0, 0, 1, 0, 0, 0, 1, 2, 1, 1], true),
            (&[23, 0, 0, 0, 1, 0, 0, 0x80, 1, 2, 1, 1], false),
        ] {
            let frame = of(pdu);
            assert_eq!(request(&frame).ok(), sound.then_some(Some(frame.len())), "{pdu:?}");
            assert!((0..frame.len()).all(|cut| matches!(request(&frame[..cut]), Ok(None))));
        }
        for header in [[0, 1, 1, 0, 0, 6, 7], [0, 1, 0, 0, 0, 1, 7], [0, 1, 0, 0, 0, 0, 7], [0, 1, 0, 0, 1, 0, 7]] {
            assert!(request(&header).is_err(), "{header:?}");
        }
    }
}
