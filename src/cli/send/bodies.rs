//! What is sent: samples made anew for each call, or files as they are.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use bytes::Bytes;

use crate::cli::samples::{MessageId, MessageIds, Sample, Template};

/// All bodies; calls take them in turn.
pub(super) struct Bodies {
    bodies: Vec<Body>,
    ids: MessageIds,
}

enum Body {
    Fixed { name: String, body: Bytes },
    Fresh(Template),
}

impl Bodies {
    /// These samples, filled up to `size` bytes.
    pub(super) fn samples(
        samples: impl Iterator<Item = &'static Sample>,
        size: usize,
        identical: bool,
    ) -> Self {
        let ids = MessageIds::default();
        let body = |sample| {
            let template = Template::new(sample, size);
            if !identical {
                return Body::Fresh(template);
            }
            let id = ids.next();
            let body = template.fill(&id, now_seconds()).into();
            Body::Fixed { name: id.as_str().into(), body }
        };
        Self { bodies: samples.map(body).collect(), ids }
    }

    /// Files, the files of directories in the order of their names, and `-` for standard input.
    pub(super) fn files(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut bodies = Vec::new();
        for path in paths {
            if path.as_os_str() == "-" {
                let mut body = Vec::new();
                io::stdin().read_to_end(&mut body).context("cannot read standard input")?;
                bodies.push(Body::Fixed { name: "-".into(), body: body.into() });
            } else if path.is_dir() {
                for file in files_of(path)? {
                    bodies.push(fixed(&file)?);
                }
            } else {
                bodies.push(fixed(path)?);
            }
        }
        if bodies.is_empty() {
            bail!("there is no file to send");
        }
        Ok(Self { bodies, ids: MessageIds::default() })
    }

    pub(super) fn len(&self) -> u64 {
        self.bodies.len() as u64
    }

    /// The body of the call at `index`, and by what name receipts list it.
    pub(super) fn at(&self, index: u64) -> (Bytes, Name<'_>) {
        match &self.bodies[(index % self.len()) as usize] {
            Body::Fixed { name, body } => (body.clone(), Name::Fixed(name)),
            Body::Fresh(template) => {
                let id = self.ids.next();
                (template.fill(&id, now_seconds()).into(), Name::Fresh(id))
            }
        }
    }
}

/// By what a sent body can be found again.
pub(super) enum Name<'a> {
    /// A file's path, or the message id of a sample that is repeated.
    Fixed(&'a str),
    Fresh(MessageId),
}

impl Name<'_> {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Fixed(name) => name,
            Self::Fresh(id) => id.as_str(),
        }
    }
}

fn files_of(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let name = || format!("cannot read {}", directory.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(name)? {
        let path = entry.with_context(name)?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn fixed(file: &Path) -> anyhow::Result<Body> {
    let name = file.display().to_string();
    let body = fs::read(file).with_context(|| format!("cannot read {name}"))?;
    Ok(Body::Fixed { name, body: body.into() })
}

fn now_seconds() -> u64 {
    // A clock before 1970 gives odd samples, no more.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
