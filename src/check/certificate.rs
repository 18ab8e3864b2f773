//! What a certificate chain says to a caller: dates, names, and who signed it.

use rustls::{
    CertificateError, Error, RootCertStore,
    client::{verify_server_cert_signed_by_trust_anchor, verify_server_name},
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};

use super::{Aspect, Finding, Report, Severity, Subject, public_url};
use crate::{
    config::{Tls, read_file},
    http::tls::Certificates,
};

/// The alert `WeniEdgeCertificateExpires` has the same limit.
const RENEW_DAYS: i64 = 14;
const ASPECT: Aspect = Aspect::Certificate;

/// Looks at the files of `[http.tls]`. A proxy may stand between this certificate and Weni, so only what
/// stops the edge itself, and dates, are problems.
pub(super) fn probe(subject: &Subject, report: &Report) {
    let Some(tls) = &subject.config.http.tls else { return };
    let name = tls.certificate_file.display();
    let chain = match chain_of(tls) {
        Ok(chain) => chain,
        Err(error) => {
            let remedy = "give http.tls.certificate_file the chain, the edge's own certificate \
                          first, and http.tls.key_file its key: the edge does not start without";
            return report.add(ASPECT.problem(format!("{error:#}"), remedy));
        }
    };
    let host = subject.config.http.public_url.as_deref().and_then(public_url::host);
    let now = UnixTime::now();
    let dates = judge_dates(&chain[0], now);
    report.all(judge(&chain, host.as_deref(), &subject.roots, now).into_iter().map(|finding| {
        let severity = if finding == dates { finding.severity } else { Severity::Warning };
        Finding { severity, found: format!("{name}: {}", finding.found), ..finding }
    }));
}

/// What callers find who are shown this chain, the server's own certificate first.
pub(super) fn judge(
    chain: &[CertificateDer<'_>],
    host: Option<&str>,
    roots: &RootCertStore,
    now: UnixTime,
) -> Vec<Finding> {
    let Some((own, others)) = chain.split_first() else {
        return vec![ASPECT.problem("there is no certificate", "give the server one")];
    };
    let dates = judge_dates(own, now);
    let trust = judge_trust(own, others, host, roots, now);
    let others = others.iter().map(|other| {
        let judged = judge_dates(other, now);
        // Callers may not need it.
        let severity = judged.severity.min(Severity::Warning);
        let parsed = x509_parser::parse_x509_certificate(other);
        let name = parsed.map_or("another".to_owned(), |(_, parsed)| parsed.subject().to_string());
        let found = format!("beside it the chain has {name}: {}", judged.found);
        Finding { severity, found, ..judged }
    });
    let all = [dates.clone()].into_iter().chain(trust).chain(others);
    let findings: Vec<_> = all.filter(|finding| finding.severity > Severity::Ok).collect();
    // Good dates are worth a line only where nothing else is said.
    if findings.is_empty() { vec![dates] } else { findings }
}

fn chain_of(tls: &Tls) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    // As the edge reads them: it also compares certificate and key.
    Certificates::load(tls, std::sync::Arc::default())?;
    let text = read_file(&tls.certificate_file)?;
    Ok(CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>()?)
}

fn judge_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Finding {
    let now = now.as_secs() as i64;
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
        return ASPECT.problem("it cannot be read", "make it anew");
    };
    let (begin, end) = (parsed.validity().not_before, parsed.validity().not_after);
    if begin.timestamp() > now {
        let found = format!("it is valid only from {} on", begin.to_datetime().date());
        let remedy = "compare this machine's clock with the right time (timedatectl); if it is \
                      right, use the certificate from before until then";
        return ASPECT.problem(found, remedy);
    }
    let days = (end.timestamp() - now).div_euclid(24 * 60 * 60);
    let until = end.to_datetime().date();
    if end.timestamp() < now {
        let remedy = "renew it; a running edge takes up changed files by itself";
        return ASPECT.problem(format!("it expired on {until}"), remedy);
    }
    if days < RENEW_DAYS {
        let remedy = "renew it now, and find out why it was not renewed by itself";
        return ASPECT.warning(format!("it expires on {until}, in {days} days"), remedy);
    }
    ASPECT.ok(format!("valid until {until}, for {days} days"))
}

/// Judges the server's own certificate as a caller does who trusts `roots`.
fn judge_trust(
    own: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    host: Option<&str>,
    roots: &RootCertStore,
    now: UnixTime,
) -> Option<Finding> {
    let problem = |found: String, remedy: &str| Some(ASPECT.problem(found, remedy));
    let parsed = match ParsedCertificate::try_from(own) {
        Ok(parsed) => parsed,
        Err(error) => return problem(format!("callers cannot read it: {error}"), "make it anew"),
    };
    if let Some(host) = host
        && let Ok(name) = ServerName::try_from(host)
        && verify_server_name(&parsed, &name).is_err()
    {
        let found = format!("it is not for {host}, so Weni's client refuses it");
        return problem(found, "get one that names the host of the URL in Weni");
    }
    let algorithms = ring::default_provider().signature_verification_algorithms;
    let verified =
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, others, now, algorithms.all);
    match verified {
        Ok(()) => None,
        Err(Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        )) => match judge_dates(own, now).severity {
            // It has a finding of its own.
            Severity::Problem => None,
            _ => problem(
                "a certificate of its chain that callers need has expired, or is not valid yet".into(),
                "put the authority's present chain into the file",
            ),
        },
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => problem(
            "no authority that callers trust has signed it, or an intermediate certificate is missing"
                .into(),
            "use a certificate of a public authority, and put its whole chain into the file, the \
             server's own certificate first",
        ),
        Err(error) => problem(format!("Weni's client refuses it: {error}"), "make it anew"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd,
    };

    use super::*;

    /// 2026-06-01.
    const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_780_272_000));

    /// A chain for edge.example.com that is valid in 2026 until that day of June, and who signed it.
    fn chain(until: u8) -> (Vec<CertificateDer<'static>>, RootCertStore) {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.not_before = date_time_ymd(2020, 1, 1);
        authority.not_after = date_time_ymd(2040, 1, 1);
        let authority =
            CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let mut own = CertificateParams::new(["edge.example.com".to_owned()]).unwrap();
        own.not_before = date_time_ymd(2026, 5, 1);
        own.not_after = date_time_ymd(2026, 6, until);
        let own = own.signed_by(&KeyPair::generate().unwrap(), &authority).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        (vec![own.der().clone()], roots)
    }

    #[test]
    fn a_chain_is_judged_by_its_first_end_its_name_and_who_signed_it() {
        use Severity::{Ok, Problem, Warning};
        let host = "edge.example.com";
        let judged = |until, host: &str| {
            let (chain, roots) = chain(until);
            let judged = judge(&chain, Some(host), &roots, NOW).into_iter();
            judged.map(|finding| (finding.severity, finding.found)).collect::<Vec<_>>()
        };
        for (until, severity, found) in [
            (30, Ok, "valid until 2026-06-30, for 29 days"),
            (15, Ok, "valid until 2026-06-15, for 14 days"),
            (14, Warning, "it expires on 2026-06-14, in 13 days"),
        ] {
            assert_eq!(judged(until, host), [(severity, found.to_owned())], "{until}");
        }
        let other = judged(30, "shop.example.com");
        assert_eq!(other[0].0, Problem);
        assert!(other.len() == 1 && other[0].1.contains("not for shop.example.com"), "{other:?}");

        let (chain, roots) = chain(30);
        let found = |roots: &RootCertStore, seconds| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            let judged = judge(&chain, Some(host), roots, now).into_iter();
            judged.map(|finding| (finding.severity, finding.found)).collect::<Vec<_>>()
        };
        // 2026-07-01 and 2023-11-14.
        let expired = found(&roots, 1_782_864_000);
        assert_eq!(expired, [(Problem, "it expired on 2026-06-30".to_owned())]);
        let early = found(&roots, 1_700_000_000);
        assert_eq!(early, [(Problem, "it is valid only from 2026-05-01 on".to_owned())]);
        let strange = found(&RootCertStore::empty(), NOW.as_secs());
        assert_eq!(strange.len(), 1, "{strange:?}");
        assert!(strange[0].1.contains("no authority that callers trust"), "{strange:?}");

        let mut old = CertificateParams::default();
        old.not_after = date_time_ymd(2021, 1, 1);
        old.distinguished_name.push(rcgen::DnType::CommonName, "Old Root");
        let old = old.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let longer = [&chain[..], &[old.der().clone()]].concat();
        let beside = judge(&longer, Some(host), &roots, NOW);
        assert!(beside.len() == 1 && beside[0].severity == Warning, "{beside:?}");
        assert!(beside[0].found.contains("Old Root: it expired on 2021-01-01"), "{beside:?}");
    }
}
