//! The public listener's certificate, taken up again when its files change.

use std::{fs, sync::Arc};

use anyhow::Context;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use sha2::{Digest, Sha256};

use crate::{config::Tls, metrics::Metrics};

/// HTTP/2's name in TLS.
pub(super) const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// The certificate that new connections get.
pub struct Certificates {
    files: Tls,
    metrics: Arc<Metrics>,
    current: ArcSwap<ServerConfig>,
    last: Mutex<Last>,
}

/// What was seen last, so that the same is not taken up, and not complained of, twice.
struct Last {
    digest: [u8; 32],
    trouble: Option<String>,
}

/// The two files as they are now.
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Certificates {
    /// Reads certificate chain and key.
    ///
    /// # Errors
    /// When a file cannot be read, or key and certificate are no pair.
    pub fn load(files: &Tls, metrics: Arc<Metrics>) -> anyhow::Result<Arc<Self>> {
        let read = Files::read(files)?;
        let (config, not_after) = read.parse(files)?;
        let certificates = Self {
            files: files.clone(),
            metrics,
            current: ArcSwap::from_pointee(config),
            last: Mutex::new(Last { digest: read.digest(), trouble: None }),
        };
        certificates.show(not_after);
        Ok(Arc::new(certificates))
    }

    /// Takes up files that have changed. What cannot be used is logged once, and the certificate
    /// before it stays.
    pub fn reload(&self) {
        let mut last = self.last.lock();
        match self.changed(&last) {
            Ok(None) => last.trouble = None,
            Ok(Some((digest, config, not_after))) => {
                self.current.store(Arc::new(config));
                self.show(not_after);
                *last = Last { digest, trouble: None };
                tracing::info!("a new certificate is served");
            }
            Err(error) => {
                let trouble = format!("{error:#}");
                if last.trouble.as_ref() != Some(&trouble) {
                    tracing::error!(error = trouble, "the certificate before it stays in use");
                    last.trouble = Some(trouble);
                }
            }
        }
    }

    /// For the next connection.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    fn changed(&self, last: &Last) -> anyhow::Result<Option<([u8; 32], ServerConfig, i64)>> {
        let read = Files::read(&self.files)?;
        let digest = read.digest();
        if digest == last.digest {
            return Ok(None);
        }
        let (config, not_after) = read.parse(&self.files)?;
        Ok(Some((digest, config, not_after)))
    }

    fn show(&self, not_after: i64) {
        let gauge = self.metrics.tls_certificate_not_after_seconds.with_label_values::<&str>(&[]);
        gauge.set(not_after as f64);
    }
}

impl Files {
    fn read(files: &Tls) -> anyhow::Result<Self> {
        let read = |path| fs::read(path).with_context(|| format!("cannot read {path:?}"));
        Ok(Self { certificate: read(&files.certificate_file)?, key: read(&files.key_file)? })
    }

    fn digest(&self) -> [u8; 32] {
        let length = (self.certificate.len() as u64).to_le_bytes();
        Sha256::new()
            .chain_update(length)
            .chain_update(&self.certificate)
            .chain_update(&self.key)
            .finalize()
            .into()
    }

    /// The server's configuration, and when its certificate expires in seconds since 1970.
    fn parse(&self, files: &Tls) -> anyhow::Result<(ServerConfig, i64)> {
        let Tls { certificate_file, key_file } = files;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<_, _>>()
            .with_context(|| format!("{certificate_file:?} is not PEM"))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .with_context(|| format!("{key_file:?} holds no private key in PEM"))?;
        let first = chain.first().with_context(|| format!("{certificate_file:?} is empty"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(first)
            .with_context(|| format!("{certificate_file:?} holds no certificate"))?;
        let not_after = parsed.validity().not_after.timestamp();
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .with_context(|| format!("{certificate_file:?} and {key_file:?}"))?;
        config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        Ok((config, not_after))
    }
}
