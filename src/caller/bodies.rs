//! The bodies of calls: samples, filled anew for each call, or files as they are.

use std::{
    borrow::Cow,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use bytes::Bytes;

use super::samples::{MessageId, Sample, Template};

/// All bodies. Calls take them in turn.
pub struct Bodies(Vec<Body>);

enum Body {
    Fixed { name: String, body: Bytes },
    Fresh(Template),
}

impl Bodies {
    /// These samples, padded to `size` bytes. `identical` ones keep their first message id.
    pub fn samples(
        samples: impl IntoIterator<Item = &'static Sample>,
        size: usize,
        identical: bool,
    ) -> Self {
        let body = |sample| {
            let template = Template::new(sample, size);
            if !identical {
                return Body::Fresh(template);
            }
            let id = MessageId::fresh();
            Body::Fixed { body: template.fill(&id).into(), name: id.text }
        };
        Self(samples.into_iter().map(body).collect())
    }

    /// Files, the files of directories in the order of their names, and `-` for standard input.
    ///
    /// # Errors
    /// When a file cannot be read, or there is none.
    pub fn files(paths: &[PathBuf]) -> anyhow::Result<Self> {
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
        Ok(Self(bodies))
    }

    /// How many different bodies there are.
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// The body of the call at `index`, and its name: a message id, or a file's path.
    pub fn at(&self, index: u64) -> (Bytes, Cow<'_, str>) {
        match &self.0[(index % self.count()) as usize] {
            Body::Fixed { name, body } => (body.clone(), name.into()),
            Body::Fresh(template) => {
                let id = MessageId::fresh();
                (template.fill(&id).into(), id.text.into())
            }
        }
    }
}

fn files_of(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let paths = |entries: fs::ReadDir| entries.map(|entry| Ok(entry?.path())).collect();
    let found: io::Result<Vec<_>> = fs::read_dir(directory).and_then(paths);
    let mut files = found.with_context(|| format!("cannot read {}", directory.display()))?;
    files.retain(|path| path.is_file());
    files.sort();
    Ok(files)
}

fn fixed(file: &Path) -> anyhow::Result<Body> {
    let name = file.display().to_string();
    let body = fs::read(file).with_context(|| format!("cannot read {name}"))?;
    Ok(Body::Fixed { name, body: body.into() })
}
