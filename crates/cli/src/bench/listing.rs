//! `coffer bench listing`: one directory with very many entries, listed in pages while others create and
//! delete in it. What is there throughout has to be on exactly one page, and no process may need memory for
//! the whole directory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coffer_client::{ClientError, PutOptions, Session};
use coffer_model::name::RemotePath;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::bench::{User, path};
use crate::dev::Temporary;
use crate::output;

/// Entries that are made at a time; the engine gathers them into bundles.
const MAKING: u64 = 512;
/// Those who create and delete in the directory while it is listed.
const CHURNERS: usize = 4;
/// How often a listing whose moment is gone is begun anew.
const ATTEMPTS: u32 = 5;
/// How often it is told how far the filling has come.
const TOLD_EVERY: u64 = 100_000;

/// `coffer bench listing`
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct ListingArgs {
    /// Number of entries
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    entries: u64,
    /// Entries of one page
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1000))]
    page: u32,
}

/// What was measured.
pub(super) struct Measured {
    entries: u64,
    fill: Duration,
    list: Duration,
    pages: u64,
    /// Creations and deletions while it was listed.
    changes: u64,
    begun_anew: u32,
    /// Peak resident bytes: before the listing, and at the end.
    memory: Vec<(String, u64, u64)>,
}

pub(super) async fn measure(
    args: ListingArgs,
    folder: &Path,
    cluster: &Temporary,
) -> Result<Measured> {
    let user = User::register(folder, cluster).await?;
    let session = user.log_in("filler").await?;
    let directory = path("/bench/many")?;
    session.mkdir(&directory, false).await?;
    output::remark(&format!("making {} entries", args.entries));
    let began = Instant::now();
    fill(&session, &directory, args.entries).await?;
    let fill = began.elapsed();
    let before = memory(cluster)?;

    output::remark("listing them, while others create and delete");
    let done = Arc::new(AtomicBool::new(false));
    let churners: Vec<_> = {
        let session = user.log_in("churner").await?;
        (0..CHURNERS)
            .map(|number| tokio::spawn(churn(session.clone(), number, Arc::clone(&done))))
            .collect()
    };
    let lister = user.log_in("lister").await?;
    let began = Instant::now();
    let (mut begun_anew, mut pages) = (0, Ok(0));
    for attempt in 1..=ATTEMPTS {
        begun_anew = attempt - 1;
        pages = list(&lister, &directory, args).await;
        if !is_gone(&pages) {
            break;
        }
    }
    let list = began.elapsed();
    done.store(true, Ordering::Relaxed);
    let mut changes = 0;
    for churner in churners {
        changes += churner.await.context("somebody who creates and deletes stopped")??;
    }
    let pages = pages?;
    let mut memory_by_name: BTreeMap<String, u64> = before.into_iter().collect();
    let memory = memory(cluster)?
        .into_iter()
        .map(|(name, peak)| {
            let before = memory_by_name.remove(&name).unwrap_or_default();
            (name, before, peak)
        })
        .collect();
    let entries = args.entries;
    Ok(Measured { entries, fill, list, pages, changes, begun_anew, memory })
}

fn is_gone(pages: &Result<u64>) -> bool {
    let error = pages.as_ref().err().and_then(|error| error.downcast_ref());
    matches!(error, Some(ClientError::ListingGone))
}

fn name_of(number: u64) -> String {
    format!("entry-{number}")
}

/// Makes the entries through the API, many at a time.
async fn fill(session: &Session, directory: &RemotePath, entries: u64) -> Result<()> {
    let mut makers = JoinSet::new();
    for first in 0..MAKING.min(entries) {
        let (session, directory) = (session.clone(), directory.clone());
        makers.spawn(async move {
            let mut number = first;
            while number < entries {
                let file = path(&format!("{directory}/{}", name_of(number)))?;
                session.put_bytes(b"x", &file, &PutOptions::standard()).await?;
                if number > 0 && number.is_multiple_of(TOLD_EVERY) {
                    output::remark(&format!("{number} of {entries}"));
                }
                number += MAKING;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(made) = makers.join_next().await {
        made.context("somebody who makes entries stopped")??;
    }
    Ok(())
}

/// Creates and deletes until it is told to stop. Says how many changes that were.
async fn churn(session: Session, number: usize, done: Arc<AtomicBool>) -> Result<u64> {
    let mut changes = 0;
    while !done.load(Ordering::Relaxed) {
        let file = path(&format!("/bench/many/passing-{number}-{changes}"))?;
        session.put_bytes(b"x", &file, &PutOptions::standard()).await?;
        session.remove(&file, false).await?;
        changes += 2;
    }
    Ok(changes)
}

/// Lists the directory to its end, one page after the other. Says how many pages that were; an entry that is
/// lacking, or is there twice, is an error.
async fn list(session: &Session, directory: &RemotePath, args: ListingArgs) -> Result<u64> {
    let mut seen = vec![false; usize::try_from(args.entries)?];
    let (mut pages, mut token) = (0, None::<String>);
    loop {
        let page = session.list_page(directory, false, args.page, token.as_deref()).await?;
        pages += 1;
        for entry in page.items {
            // Others come and go.
            let Some(number) = entry.name.as_str().strip_prefix("entry-") else { continue };
            let number: usize = number.parse().context("a name that nobody made")?;
            match seen.get_mut(number) {
                Some(seen) if !*seen => *seen = true,
                Some(_) => bail!("{} is on two pages", entry.name.as_str()),
                None => bail!("{} was never made", entry.name.as_str()),
            }
        }
        token = page.next;
        if token.is_none() {
            break;
        }
    }
    let lacking = seen.iter().filter(|seen| !**seen).count();
    ensure!(lacking == 0, "{lacking} of {} entries are on no page", args.entries);
    Ok(pages)
}

/// The largest resident sizes so far, by process; this one is the client.
fn memory(cluster: &Temporary) -> Result<Vec<(String, u64)>> {
    let own = ("client".to_owned(), std::process::id());
    let all = [own].into_iter().chain(cluster.processes());
    all.map(|(name, pid)| Ok((name, peak_bytes(pid)?))).collect()
}

fn peak_bytes(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

impl Measured {
    pub(super) fn json(&self) -> Value {
        let memory: Vec<_> = self
            .memory
            .iter()
            .map(|(name, before, peak)| {
                json!({ "process": name, "before_listing_bytes": before, "peak_bytes": peak })
            })
            .collect();
        json!({
            "entries": self.entries, "pages": self.pages, "changes_meanwhile": self.changes,
            "begun_anew": self.begun_anew, "fill_s": self.fill.as_secs_f64(),
            "list_s": self.list.as_secs_f64(), "memory": memory,
        })
    }

    pub(super) fn text(&self) -> String {
        #[allow(clippy::cast_precision_loss)]
        let rate = |time: Duration| self.entries as f64 / time.as_secs_f64();
        let (fill, list) = (self.fill, self.list);
        let mut text = format!(
            "{} entries made in {:.1} s ({:.0}/s), listed in {:.1} s ({:.0}/s) on {} pages, each once",
            self.entries,
            fill.as_secs_f64(),
            rate(fill),
            list.as_secs_f64(),
            rate(list),
            self.pages
        );
        text += &format!(
            "\n{} changes by others meanwhile; begun anew {} times\n\n{:<14} {:>12} {:>12}  MiB resident",
            self.changes, self.begun_anew, "peak", "before", "at the end"
        );
        for (name, before, peak) in &self.memory {
            text += &format!("\n{name:<14} {:>12} {:>12}", before >> 20, peak >> 20);
        }
        text
    }
}
