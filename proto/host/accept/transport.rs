//! What carries a connection: TLS, or plain text where it may.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::proto::host::clock;
use crate::proto::host::credential::Credential;
use crate::proto::host::tls::{self, Clients, Shown, Unbelieved};

/// The first byte of a TLS handshake: its content type, RFC 8446 section 5.1.
const HANDSHAKE: u8 = 22;

/// Does the server's part of handshakes, with what can be changed while they go on.
#[derive(Debug, Default)]
pub struct Handshakes(ArcSwapOption<Next>);

/// What handshakes can be done with.
#[derive(Debug)]
pub struct Next {
    config: Arc<ServerConfig>,
    clients: Clients,
}

impl Handshakes {
    /// From the next connection on with this credential, and for clients of these roots.
    ///
    /// # Errors
    /// Where the credential or a root is none; then all stays as it is.
    pub fn change(
        &self,
        credential: &Credential,
        roots: &[CertificateDer<'static>],
    ) -> Result<(), rustls::Error> {
        self.show(Next::new(credential, roots)?);
        Ok(())
    }

    /// From the next connection on with what was made ready.
    pub fn show(&self, next: Next) {
        self.0.store(Some(Arc::new(next)));
    }

    /// From the next connection on there are none.
    pub fn stop(&self) {
        self.0.store(None);
    }

    /// Opens a connection, and says whom its certificate shows the client to be; `None`: it speaks plain text.
    ///
    /// # Errors
    /// Why it cannot be opened, in words.
    pub(super) async fn open(
        &self,
        stream: TcpStream,
        may_be_plain: bool,
    ) -> Result<(Transport, Option<Result<Shown, Unbelieved>>), String> {
        // Nothing is set aside for whoever says nothing.
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(0) => return Err("it was closed before anything was said".to_owned()),
            Ok(_) if first == [HANDSHAKE] => {}
            Ok(_) if may_be_plain => return Ok((Transport::Plain(stream), None)),
            Ok(_) => {
                return Err("it speaks plain text, which is not heeded from where it comes".to_owned());
            }
            Err(error) => return Err(error.to_string()),
        }
        let Some(current) = self.0.load_full() else {
            return Err("there is no certificate here yet, and nothing to say without".to_owned());
        };
        let accepted = TlsAcceptor::from(Arc::clone(&current.config)).accept(stream).await;
        let stream = accepted.map_err(|error| fault(&error))?;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let shown = current.clients.judge(certificates, clock::since_epoch());
        Ok((Transport::Tls(Box::new(stream)), Some(shown)))
    }
}

impl Next {
    /// This credential, for clients of these roots.
    ///
    /// # Errors
    /// Where the credential or a root is none.
    pub fn new(credential: &Credential, roots: &[CertificateDer<'static>]) -> Result<Self, rustls::Error> {
        Ok(Self { config: tls::server(credential)?.into(), clients: Clients::new(roots)? })
    }
}

/// Why a handshake failed, in words. What the other side finds wrong with this one comes as an alert.
fn fault(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::AlertReceived(alert)) => {
            format!("it does not believe this certificate ({alert:?})")
        }
        Some(error) => format!("its handshake failed: {error}"),
        None => format!("its handshake failed: {error}"),
    }
}

/// A stream of bytes.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        content: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, content),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, content),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        content: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, content),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, content),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
