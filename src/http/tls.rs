//! The public listener's certificate, taken up again when its files change.

use std::sync::Arc;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus::Gauge;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::auth::{Digest256, digest};
use crate::{
    clock,
    config::{self, Tls},
    metrics::Metrics,
};

/// Its name in a handshake (ALPN).
pub(super) const HTTP2: &[u8] = b"h2";

/// The certificate that new connections get.
pub struct Certificates {
    files: Tls,
    /// When it expires, in seconds since 1970.
    not_after: Gauge,
    pub(super) current: ArcSwap<ServerConfig>,
    /// Of the files of the current certificate, and of the files when they were read last.
    digests: Mutex<(Digest256, Digest256)>,
}

impl Certificates {
    /// Reads certificate chain and key.
    ///
    /// # Errors
    /// If a file cannot be read, or key and certificate are no pair.
    pub fn load(files: &Tls, metrics: Arc<Metrics>) -> anyhow::Result<Arc<Self>> {
        let (texts, digest) = read(files)?;
        let (config, expiry) = parse(files, &texts)?;
        let (current, digests) = (ArcSwap::from_pointee(config), Mutex::new((digest, digest)));
        let not_after = metrics.tls_certificate_not_after_seconds.with_label_values::<&str>(&[]);
        not_after.set(expiry);
        Ok(Arc::new(Self { files: files.clone(), not_after, current, digests }))
    }

    /// Takes up changed files: `at_once`, or when they are read the same twice in a row, because they may be
    /// half written. If they cannot be used, the old certificate stays in use, and the reason is returned.
    /// Blocks as long as the file system does.
    pub fn reload(&self, at_once: bool) -> Option<String> {
        self.take_up(at_once).err().map(|error| format!("{error:#}"))
    }

    fn take_up(&self, at_once: bool) -> anyhow::Result<()> {
        let (texts, digest) = read(&self.files)?;
        let mut digests = self.digests.lock();
        let (current, last) = &mut *digests;
        let is_settled = std::mem::replace(last, digest) == digest || at_once;
        if *current == digest {
            return Ok(());
        }
        let (config, expiry) = parse(&self.files, &texts)?;
        if expiry < clock::wall_ms() as f64 / 1000.0 {
            bail!("{:?} has expired", self.files.certificate_file);
        }
        if is_settled {
            *current = digest;
            self.current.store(Arc::new(config));
            self.not_after.set(expiry);
            tracing::info!("a new certificate is served to new connections");
        }
        Ok(())
    }
}

/// Chain and key, and the digest of both.
fn read(files: &Tls) -> anyhow::Result<([String; 2], Digest256)> {
    let read = |path| config::read_file(path).with_context(|| format!("cannot read {path:?}"));
    let texts = [read(&files.certificate_file)?, read(&files.key_file)?];
    let digest = digest(texts.join("\0").as_bytes());
    Ok((texts, digest))
}

/// The server's configuration, and when its certificate expires in seconds since 1970.
fn parse(files: &Tls, [chain, key]: &[String; 2]) -> anyhow::Result<(ServerConfig, f64)> {
    let Tls { certificate_file, key_file } = files;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .with_context(|| format!("{certificate_file:?} is not PEM"))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .with_context(|| format!("{key_file:?} holds no private key in PEM"))?;
    let first = chain.first().with_context(|| format!("{certificate_file:?} is empty"))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(first)
        .with_context(|| format!("{certificate_file:?} holds no certificate"))?;
    let not_after = parsed.validity().not_after.timestamp() as f64;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .with_context(|| format!("{certificate_file:?} and {key_file:?} are no pair"))?;
    config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    Ok((config, not_after))
}
