//! `coffer bench`: measures a cluster of its own, beside what the machine could do at best.
//!
//! Everything runs several times in turn, ceilings too, and what is printed is the median with the
//! lowest and the highest: machines are noisy, and only figures of one run compare.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coffer_client::contact::StateDir;
use coffer_client::{
    AccountOptions, Authority, Endpoint, Engine, GetOptions, PutOptions, PutTreeOptions, Session,
    Silent, WriteOptions,
};
use coffer_model::name::{RemotePath, UserName};
use rustix::param::clock_ticks_per_second;
use serde_json::json;

use crate::dev::Temporary;
use crate::found::authority_file;
use crate::output;
use ceilings::mib_per_second;
use listing::ListingArgs;

mod ceilings;
mod listing;

const MIB: usize = 1 << 20;
/// Bytes that repeat in the large file; each slot is made different by its number.
const PATTERN_BYTES: usize = 16 * MIB;
/// Bytes of a small file.
const SMALL_BYTES: usize = 2048;

/// What is measured, if not throughput and latencies.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum BenchCommand {
    /// One directory with very many entries, listed in pages while others create and delete in it
    Listing(ListingArgs),
}

/// `coffer bench`
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: Option<BenchCommand>,
    /// Where the cluster is made; it is removed afterwards. Default: the system's temporary folder
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    /// How often everything is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Size of the large file, in MiB
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    large_mib: u32,
    /// Number of small files
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    small_files: u32,
    /// Number of single operations of each kind
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    operations: u32,
}

pub(crate) async fn run(args: BenchArgs, as_json: bool) -> Result<()> {
    let mut folder = tempfile::Builder::new();
    let folder = folder.prefix("coffer-bench");
    let folder = match &args.dir {
        Some(dir) => folder.tempdir_in(dir),
        None => folder.tempdir(),
    }
    .context("cannot make a folder for the measurement")?;
    output::remark("starting a cluster: 3 metadata members, 3 storage nodes, 1 gateway");
    let cluster = Temporary::start(&folder.path().join("cluster")).await?;
    if let Some(BenchCommand::Listing(listing)) = args.what {
        let measured = listing::measure(listing, folder.path(), &cluster).await;
        cluster.stop().await;
        let measured = measured?;
        if as_json {
            output::json(&measured.json());
        } else {
            output::line(&measured.text());
        }
        return Ok(());
    }
    let measured = measure(&args, folder.path(), &cluster).await;
    cluster.stop().await;
    let rows = measured?;
    if as_json {
        let rows: Vec<_> = rows.iter().map(Row::json).collect();
        output::json(&json!({ "runs": args.runs, "results": rows }));
        return Ok(());
    }
    output::line(&format!(
        "\n{:<34} {:>10} {:>10} {:>10}  {:<9} {:>9} {:>9} {:>9}  {}",
        "", "median", "lowest", "highest", "", "p50 ms", "p95 ms", "p99 ms", "CPU, all processes"
    ));
    for row in &rows {
        output::line(&row.text());
    }
    Ok(())
}

/// What was measured of one thing, in all runs.
#[derive(Default)]
struct Row {
    name: &'static str,
    unit: &'static str,
    /// One value a run.
    values: Vec<f64>,
    /// Every single operation, in milliseconds.
    latencies: Vec<f64>,
    /// CPU-seconds of all processes, and per what.
    cpu: Vec<f64>,
    cpu_unit: &'static str,
}

/// The value below which this share of all values lies.
fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let at = ((sorted.len().saturating_sub(1)) as f64 * share).round() as usize;
    sorted.get(at).copied()
}

impl Row {
    fn json(&self) -> serde_json::Value {
        json!({
            "name": self.name,
            "unit": self.unit,
            "values": self.values,
            "median": quantile(&self.values, 0.5),
            "p50_ms": quantile(&self.latencies, 0.5),
            "p95_ms": quantile(&self.latencies, 0.95),
            "p99_ms": quantile(&self.latencies, 0.99),
            "cpu": quantile(&self.cpu, 0.5),
            "cpu_unit": self.cpu_unit,
        })
    }

    fn text(&self) -> String {
        let number =
            |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.1}"));
        let latency = |share| {
            quantile(&self.latencies, share).map_or(String::new(), |value| format!("{value:.2}"))
        };
        let cpu = quantile(&self.cpu, 0.5)
            .map_or(String::new(), |value| format!("{value:.2} {}", self.cpu_unit));
        format!(
            "{:<34} {:>10} {:>10} {:>10}  {:<9} {:>9} {:>9} {:>9}  {cpu}",
            self.name,
            number(quantile(&self.values, 0.5)),
            number(quantile(&self.values, 0.0)),
            number(quantile(&self.values, 1.0)),
            self.unit,
            latency(0.5),
            latency(0.95),
            latency(0.99),
        )
    }
}

/// Rows in the order in which they were first measured.
#[derive(Default)]
struct Table {
    rows: Vec<Row>,
    places: BTreeMap<&'static str, usize>,
}

impl Table {
    fn row(&mut self, name: &'static str, unit: &'static str) -> &mut Row {
        let at = *self.places.entry(name).or_insert_with(|| {
            self.rows.push(Row { name, unit, ..Row::default() });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }
}

async fn measure(args: &BenchArgs, folder: &Path, cluster: &Temporary) -> Result<Vec<Row>> {
    let session = User::register(folder, cluster).await?.log_in("state").await?;
    let small = folder.join("small");
    plant(&small, args.small_files)?;
    let large = usize::try_from(args.large_mib)? * MIB;
    let pattern: Arc<[u8]> = pattern()?.into();
    let pids = cluster.pids();
    let mut table = Table::default();
    for run in 1..=args.runs {
        output::remark(&format!("run {run} of {}: ceilings", args.runs));
        for (name, unit, value) in ceilings::measure(folder).await? {
            table.row(name, unit).values.push(value);
        }

        output::remark(&format!("run {run} of {}: one large file", args.runs));
        let bench = Bench { session: &session, pids: &pids };
        let file = path(&format!("/bench/large-{run}"))?;
        let source = Box::new(Noise::new(Arc::clone(&pattern), large));
        let put = async {
            session.put(source, Path::new("-"), &file, &PutOptions::standard(), &Silent).await?;
            Ok(())
        };
        bench.bytes(table.row("put, one large file", "MiB/s"), large, put).await?;
        let get = async {
            let mut reader = session.open(&file, None).await?;
            let mut bytes = 0;
            while let Some(piece) = reader.next().await? {
                bytes += piece.len();
            }
            ensure!(bytes == large, "{bytes} bytes came back of {large}");
            Ok(())
        };
        bench.bytes(table.row("get, one large file, verified", "MiB/s"), large, get).await?;

        output::remark(&format!("run {run} of {}: many small files", args.runs));
        let count = args.small_files;
        let tree = path(&format!("/bench/small-{run}"))?;
        let put = async {
            let options = PutTreeOptions::standard();
            let report = session.put_tree(&small, &tree, &options, Arc::new(Silent)).await?;
            ensure!(report.failed == 0, "{} files failed", report.failed);
            Ok(())
        };
        bench.count(table.row("put, a tree of small files", "files/s"), count, put).await?;
        let back = folder.join(format!("back-{run}"));
        let get = async {
            let options = GetOptions::standard();
            let report = session.get_tree(&tree, &back, &options, Arc::new(Silent)).await?;
            ensure!(report.failed == 0, "{} files failed", report.failed);
            Ok(())
        };
        bench.count(table.row("get, a tree of small files", "files/s"), count, get).await?;
        std::fs::remove_dir_all(&back)?;

        output::remark(&format!(
            "run {run} of {}: single operations, one after the other",
            args.runs
        ));
        let options = WriteOptions::standard();
        let directory = path(&format!("/bench/operations-{run}"))?;
        session.mkdir(&directory, false).await?;
        let at = |number: u32| path(&format!("{directory}/{number}"));
        let small = |number: u32| {
            let session = &session;
            let file = at(number);
            async move {
                let source = Box::new(io::Cursor::new(vec![7u8; SMALL_BYTES]));
                let options = PutOptions::standard();
                session.put(source, Path::new("-"), &file?, &options, &Silent).await?;
                Ok(())
            }
        };
        let operations = args.operations;
        bench.each(table.row("put, 2 KiB", "ops/s"), operations, small).await?;
        let stat = |number: u32| {
            let (session, file) = (&session, at(number));
            async move {
                session.stat(&file?).await?;
                Ok(())
            }
        };
        bench.each(table.row("stat", "ops/s"), operations, stat).await?;
        let write = |number: u32| {
            let (session, file, options) = (&session, &file, &options);
            async move {
                let offset = u64::from(number) * MIB as u64 % (large as u64);
                session.overwrite_range(file, offset, &[9; 4096], options).await?;
                Ok(())
            }
        };
        let row = table.row("overwrite 4 KiB of the large file", "ops/s");
        bench.each(row, operations.min(50), write).await?;
        let rename = |number: u32| {
            let (session, from) = (&session, at(number));
            let to = path(&format!("{directory}/renamed-{number}"));
            async move {
                session.rename(&from?, &to?).await?;
                Ok(())
            }
        };
        bench.each(table.row("rename", "ops/s"), operations, rename).await?;
    }
    session.close().await?;
    Ok(table.rows)
}

/// A user of the cluster.
struct User {
    folder: PathBuf,
    endpoint: Endpoint,
    name: UserName,
    password: String,
}

impl User {
    /// Registers one, with a password that nobody else knows.
    async fn register(folder: &Path, cluster: &Temporary) -> Result<Self> {
        let gateway = cluster.founded.gateway().context("the cluster has no gateway")?;
        let endpoint = Endpoint {
            server: gateway.to_string(),
            server_name: None,
            authority: Authority::PemFile(authority_file(&folder.join("cluster"))),
        };
        let mut password = [0; 16];
        getrandom::fill(&mut password).context("the system gives no randomness")?;
        let password = hex::encode(password);
        let user = Self { folder: folder.to_owned(), endpoint, name: "bench".parse()?, password };
        let engine = user.engine("registration").await?;
        engine.register(&user.name, &user.password, &AccountOptions::standard()).await?;
        Ok(user)
    }

    async fn engine(&self, client: &str) -> Result<Engine> {
        Ok(Engine::connect(&self.endpoint, StateDir::at(self.folder.join(client))).await?)
    }

    /// A session with a memory of its own.
    async fn log_in(&self, client: &str) -> Result<Session> {
        let engine = self.engine(client).await?;
        Ok(engine.session(engine.login(&self.name, &self.password).await?)?)
    }
}

/// Makes small files, a hundred in a folder.
fn plant(root: &Path, files: u32) -> Result<()> {
    for number in 0..files {
        let folder = root.join(format!("{:04}", number / 100));
        if number % 100 == 0 {
            std::fs::create_dir_all(&folder)?;
        }
        let mut content = vec![b'.'; SMALL_BYTES];
        content[..4].copy_from_slice(&number.to_le_bytes());
        std::fs::write(folder.join(format!("{number}")), content)?;
    }
    Ok(())
}

fn path(text: &str) -> Result<RemotePath> {
    Ok(text.parse()?)
}

struct Bench<'a> {
    session: &'a Session,
    pids: &'a [u32],
}

impl Bench<'_> {
    /// Time and CPU-seconds of some work.
    async fn time(&self, work: impl Future<Output = Result<()>>) -> Result<(Duration, f64)> {
        let (cpu, began) = (cpu_seconds(self.pids)?, Instant::now());
        work.await?;
        let took = began.elapsed();
        self.session.save_marks().await?;
        Ok((took, cpu_seconds(self.pids)? - cpu))
    }

    async fn bytes(
        &self,
        row: &mut Row,
        bytes: usize,
        work: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let (took, cpu) = self.time(work).await?;
        row.values.push(mib_per_second(bytes, took));
        row.cpu_unit = "s/GiB";
        row.cpu.push(cpu * 1024.0 / mib_per_second(bytes, Duration::from_secs(1)));
        Ok(())
    }

    async fn count(
        &self,
        row: &mut Row,
        count: u32,
        work: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let (took, cpu) = self.time(work).await?;
        row.values.push(f64::from(count) / took.as_secs_f64());
        row.cpu_unit = "ms each";
        row.cpu.push(cpu * 1000.0 / f64::from(count));
        Ok(())
    }

    async fn each<F: Future<Output = Result<()>>>(
        &self,
        row: &mut Row,
        count: u32,
        operation: impl Fn(u32) -> F,
    ) -> Result<()> {
        let mut latencies = Vec::new();
        let work = async {
            for number in 0..count {
                let began = Instant::now();
                operation(number).await?;
                latencies.push(began.elapsed().as_secs_f64() * 1000.0);
            }
            Ok(())
        };
        self.count(row, count, work).await?;
        row.latencies.extend(latencies);
        Ok(())
    }
}

/// CPU time of this process and the given ones so far, in seconds.
fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    let mut ticks = 0;
    for pid in pids.iter().copied().chain([std::process::id()]) {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} is gone"))?;
        // The second field is the program's name in parentheses, and may hold anything.
        let fields = text.rsplit(')').next().unwrap_or_default();
        let times: Vec<u64> =
            fields.split_whitespace().skip(11).take(2).filter_map(|it| it.parse().ok()).collect();
        ensure!(times.len() == 2, "/proc/{pid}/stat is not as expected");
        ticks += times.iter().sum::<u64>();
    }
    #[allow(clippy::cast_precision_loss)]
    let seconds = ticks as f64 / clock_ticks_per_second() as f64;
    Ok(seconds)
}

/// Bytes that do not compress.
fn pattern() -> Result<Vec<u8>> {
    let mut pattern = vec![0; PATTERN_BYTES];
    getrandom::fill(&mut pattern).context("the system gives no randomness")?;
    Ok(pattern)
}

/// A stream of so many bytes, of which no two mebibytes are alike.
struct Noise {
    pattern: Arc<[u8]>,
    at: usize,
    length: usize,
}

impl Noise {
    fn new(pattern: Arc<[u8]>, length: usize) -> Self {
        Self { pattern, at: 0, length }
    }
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let from = self.at % self.pattern.len();
        let count = buffer.len().min(self.length - self.at).min(self.pattern.len() - from);
        // Not past a mebibyte, so that its number can be put at its beginning.
        let count = count.min(MIB - self.at % MIB);
        buffer[..count].copy_from_slice(&self.pattern[from..from + count]);
        if self.at.is_multiple_of(MIB) && count >= 8 {
            buffer[..8].copy_from_slice(&(self.at as u64).to_le_bytes());
        }
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), Some(2.0));
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(quantile(&values, 0.99), Some(99.0));
        assert_eq!(quantile(&values, 1.0), Some(100.0));
    }

    #[test]
    fn no_two_mebibytes_of_the_noise_are_alike() {
        let pattern: Arc<[u8]> = vec![7; PATTERN_BYTES].into();
        let length = PATTERN_BYTES * 2 + 5;
        let mut bytes = Vec::new();
        Noise::new(pattern, length).read_to_end(&mut bytes).expect("it cannot fail");
        assert_eq!(bytes.len(), length);
        let mut slots: Vec<&[u8]> = bytes.chunks(MIB).collect();
        slots.pop();
        let count = slots.len();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), count);
    }
}
