//! What the figures were measured on.

use std::{
    fmt, fs,
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// File systems in memory, by the number that `statfs` gives: tmpfs and ramfs.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
/// The disk is measured by syncs of writes of this size to allocated blocks, as the journal makes
/// them in recycled segments.
const SYNCED_BYTES: usize = 64 << 10;
const SYNCS: usize = 400;

/// The machine and the versions, as lines of Markdown.
#[derive(Debug)]
pub(crate) struct Machine {
    processor: String,
    cores: usize,
    kernel: String,
    file_system: String,
    sync: [Duration; 2],
    versions: String,
}

impl Machine {
    /// Reads what the machine is, and measures the disk.
    ///
    /// # Errors
    /// If the build directory, which will hold the journals, is not on a disk.
    pub(crate) fn look() -> anyhow::Result<Self> {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let model =
            cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Ok(Self {
            processor: model.map_or("unknown", |(_, name)| name.trim()).to_owned(),
            cores: thread::available_parallelism()?.get(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            file_system: file_system(directory)?,
            sync: sync_latency(directory)?,
            versions: versions()?,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, cores, kernel, file_system, sync, versions } = self;
        let [middle, high] = sync.map(|sync| sync.as_secs_f64() * 1e3);
        writeln!(f, "{cores} cores ({processor}) for everything, Linux {kernel}.")?;
        writeln!(
            f,
            "Journal on {file_system}; a sync of {} KiB takes {middle:.2} ms (p99 {high:.2} ms).",
            SYNCED_BYTES >> 10
        )?;
        writeln!(f, "{versions}.")
    }
}

/// The name of the file system of a directory.
///
/// # Errors
/// If it is in memory, where a sync costs nothing and saves nothing.
pub(crate) fn file_system(directory: &Path) -> anyhow::Result<String> {
    let directory = directory.canonicalize()?;
    let kind = rustix::fs::statfs(&directory)?.f_type;
    if IN_MEMORY.contains(&u64::try_from(kind)?) {
        bail!(
            "{} is in memory, where a journal is not durable: set CARGO_TARGET_DIR to a disk",
            directory.display()
        );
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mount = |line: &str| -> Option<(usize, String)> {
        let mut fields = line.split(' ').skip(1);
        let (place, name) = (fields.next()?, fields.next()?);
        directory.starts_with(place).then(|| (place.len(), name.to_owned()))
    };
    let innermost = mounts.lines().filter_map(mount).max_by_key(|(length, _)| *length);
    Ok(innermost.context("the directory is on no mount")?.1)
}

/// Median and p99 of a sync of the data of a file whose blocks are there already.
fn sync_latency(directory: &Path) -> anyhow::Result<[Duration; 2]> {
    let file: File = tempfile::tempfile_in(directory)?;
    let block = [0x5a; SYNCED_BYTES];
    for at in 0..SYNCS {
        file.write_all_at(&block, (at * SYNCED_BYTES) as u64)?;
    }
    file.sync_all()?;
    let mut took = Vec::with_capacity(SYNCS);
    for at in 0..SYNCS {
        file.write_all_at(&block, (at * SYNCED_BYTES) as u64)?;
        let start = Instant::now();
        file.sync_data()?;
        took.push(start.elapsed());
    }
    took.sort_unstable();
    Ok([took[SYNCS / 2], took[SYNCS * 99 / 100]])
}

fn versions() -> anyhow::Result<String> {
    let lock: toml::Table = include_str!("../../Cargo.lock").parse()?;
    let packages = lock.get("package").and_then(|all| all.as_array()).context("no packages")?;
    let version = |name: &str| {
        let found = packages.iter().find(|package| package["name"].as_str() == Some(name));
        let version = found.and_then(|package| package["version"].as_str()).unwrap_or("?");
        format!("{name} {version}")
    };
    let rustc = Command::new("rustc").arg("-V").output();
    let rustc = rustc.map_or_else(
        |_| "rustc ?".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    );
    let (_, librdkafka) = rdkafka::util::get_rdkafka_version();
    let crates = ["weni-edge", "axum", "hyper", "tokio"].map(version).join(", ");
    Ok(format!("{crates}, librdkafka {librdkafka}, {rustc}"))
}
