//! The members: started, crashed, started again from what was on their disks.
//!
//! A crash is a point in time. What of the member's files was synced, and what happened to be written
//! besides, is copied at that point, and the next start is made from the copy; connections break; calls
//! under way end. The tasks of the dead member are ended as well, but whatever they still do reaches
//! nobody and nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use coffer_model::id::{ClusterId, MemberId};
use coffer_service::identity::ProcessIdentity;
use coffer_service::peer::PeerId;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::net::{Host, Net};
use crate::config::Config;
use crate::member::tests::kit::{TestGroup, copy_dir};
use crate::member::{Opened, Running};
use crate::store::Store;
use crate::truncation::LogPolicy;

/// How many members there are.
pub(super) const MEMBERS: usize = 3;
/// How long a member may take to start, in simulated time.
const START_MAX: Duration = Duration::from_secs(30);

tokio::task_local! {
    /// Who is being started, and until when it lives.
    static STARTING: (Host, CancellationToken);
}

/// Whose channels are being made.
pub(super) fn starting() -> Option<(Host, CancellationToken)> {
    STARTING.try_with(Clone::clone).ok()
}

/// The files of a group in which nobody has run yet: many runs can begin with them.
pub(super) struct Files {
    _group: TestGroup,
    pub(super) cluster: ClusterId,
    configs: Vec<Config>,
    pub(super) members: Vec<(MemberId, PeerId)>,
}

impl Files {
    pub(super) fn founded() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let group = runtime.block_on(TestGroup::founded(MEMBERS));
        let mut members: Vec<(MemberId, PeerId, Config)> = Vec::new();
        for (member, config) in group.descriptor.members.iter().zip(&group.configs) {
            let peer = ProcessIdentity::recorded(&config.data_dir).unwrap();
            // Making the tables of a store takes longer than all else, and need not be done for each run.
            drop(Opened::open(config).unwrap());
            members.push((member.id, peer, config.clone()));
        }
        // Ids decide elections between equals, so the places go by them, and not by chance.
        members.sort_by_key(|(id, ..)| *id);
        let mut configs: Vec<Config> = members.iter().map(|(.., it)| it.clone()).collect();
        for (number, config) in configs.iter_mut().enumerate() {
            config.bootstrap = number == 0;
        }
        let members = members.into_iter().map(|(id, peer, _)| (id, peer)).collect();
        Self { cluster: group.id, _group: group, configs, members }
    }
}

/// A place on the disk for a run. What a disk does is simulated, so memory will do where there is some.
fn work_dir() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir()
        && let Ok(dir) = tempfile::tempdir_in(memory)
    {
        return dir;
    }
    tempfile::tempdir().unwrap()
}

/// One member, running or not.
struct Member {
    config: Config,
    running: Option<Running>,
    alive: CancellationToken,
    /// How often it was started.
    starts: usize,
}

/// The members of one run.
pub(super) struct Group {
    dir: TempDir,
    net: std::sync::Arc<Net>,
    policy: LogPolicy,
    members: Vec<Member>,
    ending: Vec<JoinHandle<()>>,
}

impl Group {
    pub(super) fn new(files: &Files, net: &std::sync::Arc<Net>, policy: LogPolicy) -> Self {
        let dir = work_dir();
        let members = files.configs.iter().enumerate().map(|(number, config)| {
            let data_dir = volume(dir.path(), number, 0);
            copy_dir(&config.data_dir, &data_dir);
            let config = Config { data_dir, ..config.clone() };
            Member { config, running: None, alive: CancellationToken::new(), starts: 0 }
        });
        let members = members.collect();
        Self { dir, net: std::sync::Arc::clone(net), policy, members, ending: Vec::new() }
    }

    /// Starts a member, if it does not run; says what went wrong.
    pub(super) async fn start(&mut self, number: usize) -> Result<(), String> {
        let member = &mut self.members[number];
        if member.running.is_some() {
            return Ok(());
        }
        let (host, alive) = (Host::Member(number), CancellationToken::new());
        let net = std::sync::Arc::clone(&self.net);
        let served = alive.clone();
        let starting = Running::start_with(member.config.clone(), self.policy, |_, calls, stop| {
            net.serve(host, calls, served);
            tokio::spawn(async move {
                stop.cancelled().await;
                Ok(())
            })
        });
        let started = timeout(START_MAX, STARTING.scope((host, alive.clone()), starting)).await;
        let started = started.map_err(|_| format!("member {number} does not start"))?;
        member.running =
            Some(started.map_err(|error| format!("member {number} does not start: {error}"))?);
        member.alive = alive;
        member.starts += 1;
        Ok(())
    }

    /// Crashes a member, if it runs.
    pub(super) fn crash(&mut self, number: usize) {
        let member = &mut self.members[number];
        let Some(running) = member.running.take() else { return };
        member.alive.cancel();
        self.net.forget(Host::Member(number));
        let left = volume(self.dir.path(), number, member.starts);
        copy_dir(&member.config.data_dir, &left);
        let gone = std::mem::replace(&mut member.config.data_dir, left);
        self.ending.push(tokio::spawn(async move {
            running.crash().await;
            let _ = std::fs::remove_dir_all(gone);
        }));
    }

    /// Who leads by its own word, in the latest term.
    pub(super) fn leader(&self) -> Option<usize> {
        let led = self.members.iter().enumerate().filter_map(|(number, member)| {
            let metrics = member.running.as_ref()?.raft.metrics();
            let metrics = metrics.borrow();
            (metrics.current_leader == Some(metrics.id)).then_some((metrics.current_term, number))
        });
        led.max().map(|(_, number)| number)
    }

    pub(super) fn store(&self, number: usize) -> Option<&std::sync::Arc<Store>> {
        self.members[number].running.as_ref().map(|running| &running.store)
    }

    /// What ended a member that nobody crashed, if something did.
    pub(super) fn fault(&self, number: usize) -> Option<String> {
        let running = self.members[number].running.as_ref()?;
        let raft = running.raft.metrics().borrow().running_state.clone();
        let poisoned = running.store.poison().reason().map(str::to_owned);
        poisoned.or(raft.err().map(|error| error.to_string()))
    }

    /// How often members were started again.
    pub(super) fn restarts(&self) -> usize {
        self.members.iter().map(|member| member.starts.saturating_sub(1)).sum()
    }

    /// Ends everything, and waits until nothing of it is left.
    pub(super) async fn end(mut self) {
        for number in 0..MEMBERS {
            self.crash(number);
        }
        for ending in self.ending {
            let _ = ending.await;
        }
    }
}

fn volume(dir: &Path, number: usize, start: usize) -> PathBuf {
    dir.join(format!("member-{number}-{start}"))
}
