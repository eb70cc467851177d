//! The client's end of a session: a TCP, Unix or TLS socket that is written without waiting.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;
use tokio_util::io::poll_read_buf;

/// A client's socket.
#[derive(Debug)]
pub(super) enum ClientStream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl ClientStream {
    /// Reads into `buf`; 0 at the end. Uses the sockets' own bookkeeping of readiness, which spares the read
    /// that would only say "nothing more".
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut read = ReadBuf::new(buf);
        ready!(match self {
            ClientStream::Tcp(stream) => Pin::new(stream).poll_read(cx, &mut read),
            ClientStream::Unix(stream) => Pin::new(stream).poll_read(cx, &mut read),
            ClientStream::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, &mut read),
        })?;
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Appends up to `most` bytes to `buf`, without touching the memory that they do not fill; 0 at the end.
    pub(super) fn poll_append(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut BytesMut,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        buf.reserve(most);
        let mut buf = buf.limit(most);
        match self {
            ClientStream::Tcp(stream) => poll_read_buf(Pin::new(stream), cx, &mut buf),
            ClientStream::Unix(stream) => poll_read_buf(Pin::new(stream), cx, &mut buf),
            ClientStream::Tls(stream) => poll_read_buf(Pin::new(stream.as_mut()), cx, &mut buf),
        }
    }

    /// Writes what the socket takes now, from outside the session's own task. `WouldBlock` for TLS always:
    /// its records are written by the session's task.
    pub(super) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            ClientStream::Tcp(stream) if slices.len() == 1 => stream.try_write(&slices[0]),
            ClientStream::Tcp(stream) => stream.try_write_vectored(slices),
            ClientStream::Unix(stream) => stream.try_write_vectored(slices),
            ClientStream::Tls(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Writes from the session's task, which is woken when the socket takes more.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            ClientStream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            ClientStream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            ClientStream::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, slices),
        }
    }

    /// Tells the other side of TLS that nothing more comes, if the socket takes it at once: without it, whatever was said last
    /// may as well have been cut off.
    pub(super) fn farewell(&mut self) {
        if let ClientStream::Tls(stream) = self {
            let mut cx = Context::from_waker(Waker::noop());
            let _ = Pin::new(stream.as_mut()).poll_shutdown(&mut cx);
        }
    }

    /// Passes on what TLS still holds back.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            ClientStream::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            _ => Poll::Ready(Ok(())),
        }
    }
}
