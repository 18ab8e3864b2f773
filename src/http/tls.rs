//! The public listener's certificate, from files that may change while it is served.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::{config::Tls, metrics::Metrics};

/// Certificate and key, as they are now. Connections that are open keep what they began with.
pub struct Certificates {
    files: Tls,
    metrics: Arc<Metrics>,
    provider: Arc<CryptoProvider>,
    served: Arc<Served>,
    acceptor: TlsAcceptor,
    /// Of the files as they were last read, right or wrong.
    seen: Mutex<[u8; 32]>,
}

/// What the files hold.
struct Read {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Certificates {
    /// Loads them for the first time.
    ///
    /// # Errors
    /// When a file cannot be read, holds no PEM, or the key is not the certificate's.
    pub fn load(files: &Tls, metrics: Arc<Metrics>) -> anyhow::Result<Arc<Self>> {
        let provider = Arc::new(ring::default_provider());
        let read = Read::from(files)?;
        let served = Arc::new(Served(ArcSwap::from(read.certified(files, &provider, &metrics)?)));
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&served) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(Self {
            files: files.clone(),
            metrics,
            provider,
            served,
            acceptor: TlsAcceptor::from(Arc::new(config)),
            seen: Mutex::new(read.digest()),
        }))
    }

    /// Takes up files that have changed. What is wrong is logged once, and the old certificate stays.
    pub fn reload(&self) {
        match self.take_up() {
            Ok(false) => {}
            Ok(true) => tracing::info!("took up a changed certificate"),
            Err(error) => {
                tracing::error!("the certificate is wrong; the old one stays: {error:#}");
            }
        }
    }

    /// Whether something new was taken up.
    fn take_up(&self) -> anyhow::Result<bool> {
        let read = Read::from(&self.files);
        let digest = read.as_ref().map(Read::digest).unwrap_or_default();
        if std::mem::replace(&mut *self.seen.lock(), digest) == digest {
            return Ok(false);
        }
        self.served.0.store(read?.certified(&self.files, &self.provider, &self.metrics)?);
        Ok(true)
    }

    /// The server's side of a handshake.
    pub(super) fn accept(&self, stream: TcpStream) -> tokio_rustls::Accept<TcpStream> {
        self.acceptor.accept(stream)
    }
}

impl Read {
    fn from(files: &Tls) -> anyhow::Result<Self> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("{}", path.display()));
        Ok(Self { certificate: read(&files.certificate_file)?, key: read(&files.key_file)? })
    }

    fn digest(&self) -> [u8; 32] {
        let lengths = (self.certificate.len() as u64).to_le_bytes();
        let parts = Sha256::new().chain_update(lengths).chain_update(&self.certificate);
        parts.chain_update(&self.key).finalize().into()
    }

    /// The chain with its key, if they belong together. Tells the metric when it expires.
    fn certified(
        &self,
        files: &Tls,
        provider: &CryptoProvider,
        metrics: &Metrics,
    ) -> anyhow::Result<Arc<CertifiedKey>> {
        let (certificate_file, key_file) =
            (files.certificate_file.display(), files.key_file.display());
        let chain = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("{certificate_file}"))?;
        let Some(leaf) = chain.first() else { bail!("{certificate_file} holds no certificate") };
        let (_, parsed) = X509Certificate::from_der(leaf)
            .with_context(|| format!("the certificate in {certificate_file}"))?;
        let not_after = parsed.validity().not_after.timestamp();
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .with_context(|| format!("the private key in {key_file}"))?;
        let certified = CertifiedKey::from_der(chain, key, provider)
            .with_context(|| format!("{certificate_file} with {key_file}"))?;
        metrics
            .tls_certificate_not_after_seconds
            .with_label_values::<&str>(&[])
            .set(not_after as f64);
        Ok(Arc::new(certified))
    }
}

/// Gives each handshake the certificate of the moment.
#[derive(Debug)]
struct Served(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}
