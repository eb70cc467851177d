//! A connection, whatever carries it.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

/// A byte stream to a server. Vectored writes reach the socket as such, also through TLS.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP, with `TCP_NODELAY` and keep-alive set.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
    /// TLS over TCP, handshake done.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// This end's address, as the server sees it where nothing translates addresses between; `None` for a unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Stream::Tcp(inner) => inner.local_addr().ok(),
            Stream::Tls(inner) => inner.get_ref().0.local_addr().ok(),
            Stream::Unix(_) => None,
        }
    }

    /// Whether it stands and has nothing to say, as far as that has been heard.
    pub(crate) fn is_silent(&mut self) -> bool {
        let mut byte = [0; 1];
        let mut read = ReadBuf::new(&mut byte);
        Pin::new(self).poll_read(&mut Context::from_waker(Waker::noop()), &mut read).is_pending()
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(inner) => Pin::new(inner).poll_read(cx, buf),
            Stream::Unix(inner) => Pin::new(inner).poll_read(cx, buf),
            Stream::Tls(inner) => Pin::new(inner).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(inner) => Pin::new(inner).poll_write(cx, buf),
            Stream::Unix(inner) => Pin::new(inner).poll_write(cx, buf),
            Stream::Tls(inner) => Pin::new(inner).poll_write(cx, buf),
        }
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(inner) => Pin::new(inner).poll_write_vectored(cx, bufs),
            Stream::Unix(inner) => Pin::new(inner).poll_write_vectored(cx, bufs),
            Stream::Tls(inner) => Pin::new(inner).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Tcp(inner) => inner.is_write_vectored(),
            Stream::Unix(inner) => inner.is_write_vectored(),
            Stream::Tls(inner) => inner.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(inner) => Pin::new(inner).poll_flush(cx),
            Stream::Unix(inner) => Pin::new(inner).poll_flush(cx),
            Stream::Tls(inner) => Pin::new(inner).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(inner) => Pin::new(inner).poll_shutdown(cx),
            Stream::Unix(inner) => Pin::new(inner).poll_shutdown(cx),
            Stream::Tls(inner) => Pin::new(inner).poll_shutdown(cx),
        }
    }
}
