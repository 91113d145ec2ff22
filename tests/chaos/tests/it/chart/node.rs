//! A machine for pods: a network of its own with a bridge, a name server, and what leads a Service's address to its
//! pods.
//!
//! The network is a namespace without a name that a process holds. Pods' namespaces are held by their processes
//! as well, so that nothing is left when the test ends, however it does.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coffer_chaos::wait_for;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Runtime;

use super::rendered::NAMESPACE;

/// The bridge's address, at which the name server answers.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The address of the Kubernetes API.
pub(crate) const API: Ipv4Addr = Ipv4Addr::new(10, 77, 255, 1);
/// What clusters' names end with unless somebody chose otherwise.
pub(crate) const DOMAIN: &str = "cluster.local";
/// For so long connections to a Service are still led to a pod that was told to stop: nodes hear of it one by one.
const HEARD_LATE: Duration = Duration::from_secs(2);

/// How often it is tried in that time.
const CONNECT_EVERY: Duration = Duration::from_millis(100);

/// The machine.
pub(crate) struct Node {
    holder: Child,
    pub(crate) runtime: Runtime,
    book: Arc<Mutex<Book>>,
}

/// Who is where.
#[derive(Default)]
struct Book {
    pods: BTreeMap<String, Entry>,
    services: BTreeMap<String, Entrance>,
    /// What must not have happened.
    faults: Vec<String>,
}

/// A pod as the network sees it.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) address: Ipv4Addr,
    pub(crate) labels: BTreeMap<String, String>,
    /// The Service under whose name the pod has one.
    pub(crate) subdomain: Option<String>,
    pub(crate) ports: BTreeMap<String, u16>,
    pub(crate) ready: bool,
    pub(crate) stopping: Option<Instant>,
}

/// A Service.
#[derive(Clone)]
struct Entrance {
    /// None: it is headless.
    address: Option<Ipv4Addr>,
    selector: BTreeMap<String, String>,
    publish_not_ready: bool,
}

impl Entrance {
    fn selects(&self, pod: &Entry) -> bool {
        self.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    }

    /// Whether the pod's name stands in the name server.
    fn tells_of(&self, pod: &Entry) -> bool {
        self.selects(pod) && (self.publish_not_ready || pod.ready && pod.stopping.is_none())
    }

    fn leads_to(&self, pod: &Entry) -> bool {
        let there = pod.stopping.is_none_or(|since| since.elapsed() < HEARD_LATE);
        self.selects(pod) && (self.publish_not_ready || pod.ready) && there
    }
}

impl Node {
    /// Makes the network and moves this thread into it, with all threads and processes it starts from now on.
    pub(crate) fn start() -> Result<Self> {
        let holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot make a network namespace")?;
        let (ours, its) = ("/proc/thread-self/ns/net", format!("/proc/{}/ns/net", holder.id()));
        let outside = fs::read_link(ours)?;
        wait_for("a network namespace", || {
            Ok(fs::read_link(&its).is_ok_and(|it| it != outside).then_some(()))
        })?;
        move_into_link_name_space(File::open(&its)?.as_fd(), Some(LinkNameSpaceType::Network))?;
        ensure!(fs::read_link(ours)? != outside, "this thread is still in the machine's network");
        ip("link set lo up")?;
        ip("link add bridge type bridge")?;
        ip(&format!("address add {HOST}/16 dev bridge"))?;
        ip(&format!("address add {API}/32 dev bridge"))?;
        ip("link set bridge up")?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let book = Arc::<Mutex<Book>>::default();
        let socket = runtime.block_on(UdpSocket::bind((HOST, 53)))?;
        runtime.spawn(tell_names(socket, Arc::clone(&book)));
        Ok(Self { holder, runtime, book })
    }

    /// The process that holds the network.
    pub(crate) fn holder(&self) -> u32 {
        self.holder.id()
    }

    pub(crate) fn set_pod(&self, name: &str, entry: Entry) {
        book(&self.book).pods.insert(name.to_owned(), entry);
    }

    pub(crate) fn forget_pod(&self, name: &str) {
        book(&self.book).pods.remove(name);
    }

    /// Finds out that a pod that is told to stop takes connections as long as Services may still lead to it.
    pub(crate) fn expect_still_served(&self, name: &str, pod: &Entry) {
        let book = book(&self.book);
        // Where pods are named before they are ready, nobody counts on their being so.
        let mut leading = book.services.values().filter(|it| it.address.is_some());
        if pod.ready && leading.any(|it| !it.publish_not_ready && it.selects(pod)) {
            self.runtime.spawn(connect_on(name.to_owned(), pod.clone(), Arc::clone(&self.book)));
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        match book(&self.book).faults.first() {
            Some(fault) => bail!("{fault}"),
            None => Ok(()),
        }
    }

    /// The address of a Service that is not headless.
    pub(crate) fn service(&self, name: &str) -> Option<Ipv4Addr> {
        book(&self.book).services.get(name).and_then(|service| service.address)
    }

    /// Takes up a Service, a new one or one that is there.
    pub(crate) fn apply_service(&self, service: &Service) -> Result<()> {
        let name = service.metadata.name.clone().context("a Service has a name")?;
        let spec = service.spec.as_ref().context("a Service has a spec")?;
        let headless = spec.cluster_ip.as_deref() == Some("None");
        let known = book(&self.book).services.get(&name).map(|known| known.address);
        let address = match known {
            Some(address) => address,
            None if headless => None,
            None => {
                let count = u8::try_from(book(&self.book).services.len())?;
                let address = Ipv4Addr::new(10, 77, 255, 10 + count);
                ip(&format!("address add {address}/32 dev bridge"))?;
                Some(address)
            }
        };
        let entrance = Entrance {
            address,
            selector: spec.selector.clone().unwrap_or_default(),
            publish_not_ready: spec.publish_not_ready_addresses == Some(true),
        };
        book(&self.book).services.insert(name.clone(), entrance);
        if let (Some(address), None) = (address, known) {
            for port in spec.ports.iter().flatten() {
                let at = SocketAddr::from((address, u16::try_from(port.port)?));
                let target = port.target_port.clone().unwrap_or(IntOrString::Int(port.port));
                let listener = self.runtime.block_on(TcpListener::bind(at))?;
                let book = Arc::clone(&self.book);
                self.runtime.spawn(lead(listener, name.clone(), target, book));
            }
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn book(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ip(args: &str) -> Result<()> {
    let output = Command::new("ip").args(args.split(' ')).output().context("cannot run ip")?;
    ensure!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Connects to all ports of a pod again and again, for as long as nodes may not have heard that it goes.
async fn connect_on(name: String, pod: Entry, pods: Arc<Mutex<Book>>) {
    let began = Instant::now();
    while began.elapsed() < HEARD_LATE {
        for port in pod.ports.values() {
            if let Err(error) = TcpStream::connect((pod.address, *port)).await {
                let when = began.elapsed();
                let fault = format!(
                    "{name} takes no connection to port {port} {when:.1?} after it was told to stop, and not all \
                     nodes know yet: {error}"
                );
                book(&pods).faults.push(fault);
                return;
            }
        }
        tokio::time::sleep(CONNECT_EVERY).await;
    }
}

/// Leads connections to a Service's address on to its pods, each to the next one.
async fn lead(listener: TcpListener, name: String, target: IntOrString, pods: Arc<Mutex<Book>>) {
    let turn = AtomicUsize::new(0);
    while let Ok((mut from, _)) = listener.accept().await {
        let ends: Vec<SocketAddr> = {
            let book = book(&pods);
            let Some(service) = book.services.get(&name) else { continue };
            book.pods
                .values()
                .filter(|pod| service.leads_to(pod))
                .filter_map(|pod| {
                    let port = match &target {
                        IntOrString::Int(port) => u16::try_from(*port).ok(),
                        IntOrString::String(port) => pod.ports.get(port).copied(),
                    };
                    Some(SocketAddr::from((pod.address, port?)))
                })
                .collect()
        };
        if ends.is_empty() {
            continue;
        }
        let end = ends[turn.fetch_add(1, Ordering::Relaxed) % ends.len()];
        tokio::spawn(async move {
            let mut to = TcpStream::connect(end).await?;
            tokio::io::copy_bidirectional(&mut from, &mut to).await
        });
    }
}

/// A name server for Services and pods: RFC 1035, as far as resolvers ask for addresses.
async fn tell_names(socket: UdpSocket, names: Arc<Mutex<Book>>) {
    let mut question = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut question).await {
        let answer = answer(&question[..length], &book(&names));
        if let Some(answer) = answer {
            // Whoever does not hear it asks again.
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

const HEADER_BYTES: usize = 12;
const TYPE_A: u16 = 1;
const NO_SUCH_NAME: u8 = 3;

fn answer(question: &[u8], book: &Book) -> Option<Vec<u8>> {
    let (mut at, mut labels) = (HEADER_BYTES, Vec::new());
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(std::str::from_utf8(question.get(at..at + length)?).ok()?.to_lowercase());
        at += length;
    }
    let asked = u16::from_be_bytes(question.get(at..at + 2)?.try_into().ok()?);
    let end = at + 4;
    let found = addresses(&labels.join("."), book);
    let told: &[Ipv4Addr] = if asked == TYPE_A { found.as_deref().unwrap_or(&[]) } else { &[] };
    let mut answer = question.get(..end)?.to_vec();
    // An answer, with authority; recursion was desired and is there.
    answer[2..4].copy_from_slice(&[0x85, 0x80 | if found.is_some() { 0 } else { NO_SUCH_NAME }]);
    answer[4..HEADER_BYTES].copy_from_slice(&[0, 1, 0, u8::try_from(told.len()).ok()?, 0, 0, 0, 0]);
    for address in told {
        // The name of the question; an address of the Internet, good for five seconds, in four bytes.
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

/// What stands behind a name; none where there is no such name.
fn addresses(name: &str, book: &Book) -> Option<Vec<Ipv4Addr>> {
    let name = name.strip_suffix(&format!(".svc.{DOMAIN}"))?;
    if name == "kubernetes.default" {
        return Some(vec![API]);
    }
    let name = name.strip_suffix(&format!(".{NAMESPACE}"))?;
    if let Some((pod, service)) = name.split_once('.') {
        let entrance = book.services.get(service).filter(|it| it.address.is_none())?;
        let entry = book.pods.get(pod).filter(|it| it.subdomain.as_deref() == Some(service))?;
        return entrance.tells_of(entry).then(|| vec![entry.address]);
    }
    let service = book.services.get(name)?;
    if let Some(address) = service.address {
        return Some(vec![address]);
    }
    let there = book.pods.values().filter(|pod| service.tells_of(pod));
    Some(there.map(|pod| pod.address).collect())
}
