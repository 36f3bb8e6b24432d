//! A connection that ends when no request is answered on it for too long: bytes alone keep no place.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};

/// The connection, with its place.
pub struct Idle {
    stream: TcpStream,
    silence: Duration,
    patience: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Idle {
    /// A connection that may go without an answer for so long.
    pub fn new(stream: TcpStream, silence: Duration, place: OwnedSemaphorePermit) -> Self {
        Self { stream, silence, patience: Box::pin(sleep(silence)), _place: place }
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

impl AsyncRead for Idle {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let idle = self.get_mut();
        let done = Pin::new(&mut idle.stream).poll_read(context, bytes);
        idle.or_end(done, context)
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
