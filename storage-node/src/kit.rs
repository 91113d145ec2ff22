//! What the tests of this crate share.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use coffer_model::chunk::SealedChunk;
use coffer_model::descriptor::{Descriptor, Member, SignedDescriptor, StorageNode};
use coffer_model::encoding::encode;
use coffer_model::id::{ChunkId, ClusterId, MemberId, NodeId};
use coffer_model::layout::Layout;
use coffer_model::receipt::Receipt;
use coffer_model::signing::{Domain, PublicKey, Signature, Signer, signed_bytes};
use coffer_model::time::LogTime;
use ed25519_dalek::{Signer as _, SigningKey};

use crate::cluster::Cluster;
use crate::disk::Disk;
use crate::index::Index;
use crate::store::{Owner, Sizes, Store, StoreError};

pub(crate) const CLUSTER: ClusterId = ClusterId::from_bytes([0xc1; 32]);
pub(crate) const NODE: NodeId = NodeId::from_bytes([0x0e; 16]);
/// Log time at which tests begin.
pub(crate) const START: LogTime = LogTime::from_unix_ms(1_700_000_000_000);

/// A signing key from a seed.
#[derive(Clone)]
pub(crate) struct Key(SigningKey);

impl Key {
    pub(crate) fn of(seed: u8) -> Self {
        Self(SigningKey::from_bytes(&[seed; 32]))
    }

    /// The key of [`NODE`].
    pub(crate) fn of_node() -> Self {
        Self::of(0x0e)
    }
}

impl Signer for Key {
    fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(self.0.verifying_key().to_bytes())
    }

    fn sign(&self, domain: Domain, cluster: &ClusterId, bytes: &[u8]) -> Signature {
        Signature::from_bytes(self.0.sign(&signed_bytes(domain, cluster, bytes)).to_bytes())
    }
}

/// A chunk of `length` bytes that only `name` gives.
pub(crate) fn chunk(name: u64, length: usize) -> SealedChunk<Bytes> {
    let mut bytes = vec![0; length];
    let mut seeded = blake3::Hasher::new().update(&name.to_le_bytes()).finalize_xof();
    seeded.fill(&mut bytes);
    SealedChunk::hash(Bytes::from(bytes)).unwrap()
}

pub(crate) fn ids(chunks: &[SealedChunk<Bytes>]) -> Vec<ChunkId> {
    chunks.iter().map(SealedChunk::id).collect()
}

/// A receipt of [`NODE`], checked as a client checks it.
pub(crate) fn checked(receipt: &[u8]) -> Receipt {
    let node_key = |node| (node == NODE).then(|| Key::of_node().public_key());
    Receipt::verify(receipt, &CLUSTER, node_key).unwrap()
}

/// A store that is open. Dropped, it is closed: the writer goes last, and is waited for.
pub(crate) struct Opened<D: Disk> {
    pub(crate) store: Store<D>,
    _writer: Writer,
}

struct Writer(Option<JoinHandle<()>>);

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(writer) = self.0.take() {
            writer.join().unwrap();
        }
    }
}

impl<D: Disk> Opened<D> {
    /// Closes the store, as a process that stops does.
    pub(crate) fn close(self) {}

    pub(crate) fn put(
        &self,
        chunks: &[SealedChunk<Bytes>],
        keep_until: LogTime,
    ) -> Result<Vec<Receipt>, StoreError> {
        let receipts = wait(self.store.put(chunks.to_vec(), keep_until))?;
        assert_eq!(receipts.len(), chunks.len());
        Ok(receipts.iter().map(|receipt| checked(receipt)).collect())
    }

    pub(crate) fn extend(
        &self,
        chunks: &[ChunkId],
        keep_until: LogTime,
    ) -> Result<Vec<Option<Receipt>>, StoreError> {
        let receipts = wait(self.store.extend(chunks.to_vec(), keep_until))?;
        assert_eq!(receipts.len(), chunks.len());
        Ok(receipts.iter().map(|receipt| receipt.as_deref().map(checked)).collect())
    }

    /// Asserts that every one of `chunks` is served, byte for byte.
    #[track_caller]
    pub(crate) fn assert_has(&self, chunks: &[SealedChunk<Bytes>]) {
        for (at, chunk) in chunks.iter().enumerate() {
            let read = self.store.read(&chunk.id()).unwrap();
            assert_eq!(read.as_ref(), Some(chunk.bytes()), "chunk {at}");
            assert!(self.store.has(&chunk.id()).unwrap());
        }
    }

    /// The chunks the node still has to fetch.
    pub(crate) fn missing(&self) -> Vec<ChunkId> {
        let rows = self.store.index().missing(None, 1000).unwrap();
        rows.into_iter().map(|(chunk, _)| chunk).collect()
    }
}

pub(crate) fn open_as<D: Disk>(
    node: NodeId,
    disk: D,
    index: &Path,
    segment_bytes: u64,
) -> Result<Opened<D>, StoreError> {
    open_with(node, disk, index, Sizes { segment_bytes, capacity_bytes: u64::MAX })
}

pub(crate) fn open_with<D: Disk>(
    node: NodeId,
    disk: D,
    index: &Path,
    sizes: Sizes,
) -> Result<Opened<D>, StoreError> {
    let index = Index::open(index)?;
    let owner = Owner { cluster: CLUSTER, node, signer: Arc::new(Key::of_node()) };
    let (store, writer) = Store::open(disk, index, owner, sizes)?;
    Ok(Opened { store, _writer: Writer(Some(writer)) })
}

/// Opens the store of [`NODE`].
pub(crate) fn open<D: Disk>(disk: D, index: &Path, segment_bytes: u64) -> Opened<D> {
    open_as(NODE, disk, index, segment_bytes).unwrap()
}

/// Runs one future to its end, for tests that restart the store many times.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// Copies a folder of files and folders.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

pub(crate) fn member(id: MemberId, key: &Key, address: &str) -> Member {
    Member { id, key: key.public_key(), address: address.to_owned() }
}

pub(crate) fn storage_node(id: NodeId, key: PublicKey) -> StorageNode {
    StorageNode { id, key, zone: String::new(), weight: 1 }
}

/// What a node of [`CLUSTER`] knows that has not heard from a member yet. Its folder is `dir`.
pub(crate) fn cluster(dir: &Path, descriptor: Descriptor) -> Arc<Cluster> {
    Arc::new(Cluster::open(CLUSTER, descriptor, dir.join("descriptors")).unwrap())
}

/// The descriptor after one, with other members or nodes, signed by the administrator.
pub(crate) fn next_descriptor(
    cluster: &ClusterId,
    former: &Descriptor,
    change: impl FnOnce(&mut Descriptor),
) -> (Descriptor, Bytes) {
    let mut next = former.clone();
    (next.number, next.former) = (former.number + 1, Some(former.hash()));
    change(&mut next);
    let signed = SignedDescriptor::next(cluster, &next, &[&administrator()]);
    (next, Bytes::from(encode(&signed)))
}

/// A layout that gives everything to all of `nodes`.
pub(crate) fn layout(version: u64, nodes: &[NodeId]) -> Layout {
    let count = u16::try_from(nodes.len()).unwrap();
    let table = (0..count << 10).map(|at| at % count).collect();
    Layout::new(version, 10, u8::try_from(count).unwrap(), nodes.to_vec(), table).unwrap()
}

/// The key that signs descriptors and layouts.
pub(crate) fn administrator() -> Key {
    Key::of(0xad)
}

pub(crate) fn descriptor(members: Vec<Member>, nodes: Vec<StorageNode>) -> Descriptor {
    Descriptor {
        suite: coffer_model::SUITE,
        number: 0,
        former: None,
        nonce: [3; 16],
        authority: Vec::new(),
        administrators: vec![administrator().public_key()],
        quorum: 1,
        members,
        nodes,
        cosigners: Vec::new(),
        replacement: None,
        open_registration: false,
    }
}
