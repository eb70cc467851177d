//! TLS towards a server: rustls with the ring provider, named explicitly so that no other crate's choice of
//! a process-wide default matters.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::{Error, Result, Side};

/// Where Debian and its relatives keep the certificates of the public authorities, and where others do.
const SYSTEM_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What `[source.tls]` and `[destination.tls]` say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM file of the authorities that may have signed the server's certificate; without it the system's.
    pub ca: Option<PathBuf>,
    /// PEM file of the client certificate, with its chain.
    pub cert: Option<PathBuf>,
    /// PEM file of the client certificate's key.
    pub key: Option<PathBuf>,
    /// The name that the server's certificate must carry, when it is not the host of the URL.
    pub server_name: Option<String>,
}

/// Everything that a TLS handshake with one server needs; files are read once, when it is made.
pub struct TlsClient {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

impl std::fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsClient").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl TlsClient {
    /// Reads the files.
    ///
    /// # Errors
    /// A file that cannot be read or holds no certificate or key, half a client certificate, a server name
    /// that is none. All of them are the gateway's configuration.
    pub fn new(options: &TlsOptions) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        let bundle = match &options.ca {
            Some(path) => path.as_path(),
            None => SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.exists()).ok_or_else(|| {
                wrong("this system has no bundle of certificate authorities")
                    .remedy("install the package ca-certificates, or name a file as `ca`")
            })?,
        };
        let (added, _) = roots.add_parsable_certificates(certificates(bundle)?);
        if added == 0 {
            return Err(wrong(format!("{} holds no usable certificate", bundle.display())));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|cause| wrong("TLS cannot be set up").because(cause))?
            .with_root_certificates(roots);
        let config = match (&options.cert, &options.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let private = PrivateKeyDer::from_pem_file(key).map_err(|cause| {
                    wrong(format!("cannot read a key from {}", key.display())).because(cause)
                })?;
                builder.with_client_auth_cert(certificates(cert)?, private).map_err(|cause| {
                    wrong(format!("{} and {} do not fit together", cert.display(), key.display()))
                        .because(cause)
                })?
            }
            _ => return Err(wrong("a client certificate needs both `cert` and `key`")),
        };
        let server_name = options.server_name.as_deref().map(name).transpose()?;
        Ok(Self { config: Arc::new(config), server_name })
    }

    /// The handshake, over a connected socket. `host` is checked against the certificate unless the
    /// configuration names another.
    pub(super) async fn handshake(
        &self,
        host: &str,
        tcp: TcpStream,
        side: Side,
    ) -> Result<TlsStream<TcpStream>> {
        let expected = match &self.server_name {
            Some(expected) => expected.clone(),
            None => name(host)?,
        };
        TlsConnector::from(self.config.clone()).connect(expected, tcp).await.map_err(|cause| {
            // A certificate that does not fit stays so until somebody does something; a cut does not.
            let verdict = cause.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            match verdict {
                Some(rustls::Error::InvalidCertificate(_)) => {
                    Error::new(side, "the server's TLS certificate is not accepted")
                        .remedy("name the authority as `ca`, or the certificate's name as `server_name`")
                        .because(cause)
                }
                _ => Error::passing(side, "the TLS handshake failed").because(cause),
            }
        })
    }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(Side::Gateway, message)
}

fn name(text: &str) -> Result<ServerName<'static>> {
    ServerName::try_from(text.to_owned())
        .map_err(|_| wrong(format!("\"{text}\" is no host name that a certificate could carry")))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let unreadable = |cause: rustls_pki_types::pem::Error| {
        wrong(format!("cannot read certificates from {}", path.display())).because(cause)
    };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(unreadable)?
        .collect::<std::result::Result<_, _>>()
        .map_err(unreadable)?;
    if found.is_empty() {
        return Err(wrong(format!("{} holds no certificate", path.display())));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "nothing").unwrap();
        let message = |options: TlsOptions| TlsClient::new(&options).unwrap_err().to_string();
        let missing = message(TlsOptions { ca: Some("/nowhere/ca.pem".into()), ..Default::default() });
        assert!(missing.contains("/nowhere/ca.pem"), "{missing}");
        let none = message(TlsOptions { ca: Some(empty), ..Default::default() });
        assert!(none.contains("holds no certificate"), "{none}");
    }
}
