//! `schema`: prints the contract with consumers for programs.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::builder::PossibleValuesParser;

use super::{ConfigFile, terminal::print};
use crate::event::{Topic, schema};

/// Print the JSON Schema of a topic, or the AsyncAPI document of all topics
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    weni-edge schema message-status.v1\n  \
    weni-edge schema asyncapi --config weni-edge.toml\n  \
    weni-edge schema --write docs")]
pub(super) struct Args {
    /// What to print. `asyncapi` has the names of the topics in the configuration
    #[arg(required_unless_present = "write", value_parser = PossibleValuesParser::new(
        Topic::ALL.into_iter().map(Topic::as_str).chain(["asyncapi"])
    ))]
    what: Option<String>,

    /// Write all of them into this directory instead: schemas/*.json and asyncapi.yaml
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "what")]
    write: Option<PathBuf>,

    #[command(flatten)]
    config: ConfigFile,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let topics = args.config.load()?.topics;
    let asyncapi = || {
        let document = schema::asyncapi(|topic| topics.name(topic), topics.key_by_conversation);
        serde_saphyr::to_string(&document).context("the document cannot be written as YAML")
    };
    let json = |topic| format!("{:#}\n", schema::schema(topic));
    if let Some(directory) = args.write {
        let schemas = directory.join("schemas");
        fs::create_dir_all(&schemas)
            .with_context(|| format!("cannot make {}", schemas.display()))?;
        let write = |path: PathBuf, text: String| {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        for topic in Topic::ALL {
            write(schemas.join(format!("{}.json", topic.as_str())), json(topic))?;
        }
        write(directory.join("asyncapi.yaml"), asyncapi()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut topics = Topic::ALL.into_iter();
    let text = match topics.find(|topic| args.what.as_deref() == Some(topic.as_str())) {
        Some(topic) => json(topic),
        None => asyncapi()?,
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}
