//! What the configuration itself shows: who may call, and who may read its secrets.

use super::{Aspect, Report, Subject};

const ASPECT: Aspect = Aspect::Configuration;

pub(super) fn probe(subject: &Subject, report: &Report) {
    let config = &subject.config;
    let mut findings = Vec::new();
    if let Some(files) = config.exposed_files() {
        let found = format!("every user of this machine may read or change the secrets in {files}");
        findings.push(ASPECT.warning(found, format!("run chmod o-rwx {files}")));
    }
    for (name, _) in config.sources.iter().filter(|(_, source)| source.allow_unauthenticated) {
        let found = format!("source {name} takes calls from anyone who knows its URL");
        let remedy =
            "give it a header and a secret, unless something in front of it checks callers";
        findings.push(ASPECT.warning(found, remedy));
    }
    if findings.is_empty() {
        let sources: Vec<_> = config.sources.keys().map(String::as_str).collect();
        findings.push(ASPECT.ok(format!("it can be used; sources: {}", sources.join(", "))));
    }
    report.all(findings);
}
