//! A disk in memory that fails as it is told, and forgets at a power failure what was not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::disk::{Disk, Segment};

/// Bytes that a disk writes whole or not at all.
const SECTOR: usize = 512;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A write is refused after half of it.
    Write,
    /// A write is done and reported as failed.
    WriteReported,
    /// A sync fails, and the system forgets what was to be synced, as Linux does: it is still read,
    /// and a later sync that succeeds does not write it.
    Sync,
    /// A sync is done and reported as failed.
    SyncReported,
    /// There is no room for a new segment.
    Full,
    /// A write is reported as done, and something else is kept.
    Rot,
    /// A segment is not removed.
    Remove,
    /// A segment is removed, and that is reported as failed.
    RemoveReported,
}

#[derive(Default)]
struct State {
    files: BTreeMap<u64, File>,
    fault: Option<Fault>,
    /// What goes wrong after so many more things were written, synced, made or removed.
    later: Option<(u64, Fault)>,
    /// While it is set, syncs wait.
    held: bool,
    /// Syncs that were begun.
    syncs: u64,
    /// Segments that were set aside.
    aside: Vec<u64>,
    /// Segments that were removed; who has one open still reads it.
    removed: BTreeSet<u64>,
    /// Bytes that cannot be read: segment, and from where to where.
    unreadable: Option<(u64, Range<u64>)>,
}

#[derive(Default)]
struct File {
    durable: Vec<u8>,
    /// What a read gives: also what is not durable yet.
    seen: Vec<u8>,
    /// Writes since the last sync.
    pending: Vec<(usize, Vec<u8>)>,
}

/// The disk. Clones are the same disk; it outlives the stores that are opened on it.
#[derive(Clone, Default)]
pub(crate) struct Platter(Arc<(Mutex<State>, Condvar)>);

/// Random enough, and the same for the same seed.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    if bytes.len() < at + new.len() {
        bytes.resize(at + new.len(), 0);
    }
    bytes[at..at + new.len()].copy_from_slice(new);
}

impl Platter {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap()
    }

    /// From now on, this goes wrong.
    pub(crate) fn fail(&self, fault: Option<Fault>) {
        let mut state = self.state();
        (state.fault, state.later) = (fault, None);
    }

    /// This goes wrong after so many more things were written, synced, made or removed.
    pub(crate) fn fail_later(&self, things: u64, fault: Fault) {
        self.state().later = Some((things, fault));
    }

    /// Whether something goes wrong now.
    fn due_fault(&self) -> Option<Fault> {
        let mut state = self.state();
        match &mut state.later {
            Some((0, fault)) => {
                state.fault = Some(*fault);
                state.later = None;
            }
            Some((things, _)) => *things -= 1,
            None => {}
        }
        state.fault
    }

    /// From now on, these bytes of a segment cannot be read.
    pub(crate) fn break_sector(&self, sector: Option<(u64, Range<u64>)>) {
        self.state().unreadable = sector;
    }

    /// A byte of a segment rots.
    pub(crate) fn rot(&self, segment: u64, at: u64) {
        let at = usize::try_from(at).unwrap();
        let mut state = self.state();
        let file = state.files.get_mut(&segment).unwrap();
        file.seen[at] ^= 0x10;
        file.durable[at] ^= 0x10;
    }

    /// Holds syncs up, or lets them go on.
    pub(crate) fn hold_syncs(&self, held: bool) {
        self.state().held = held;
        self.0.1.notify_all();
    }

    /// The segments that were set aside.
    pub(crate) fn aside(&self) -> Vec<u64> {
        self.state().aside.clone()
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// The power goes: of what was not synced, each sector is kept or lost as the dice fall.
    pub(crate) fn lose_power(&self, dice: &mut Dice) {
        for file in self.state().files.values_mut() {
            for (at, bytes) in std::mem::take(&mut file.pending) {
                let mut from = 0;
                while from < bytes.len() {
                    let to = ((at + from) / SECTOR + 1) * SECTOR - at;
                    let to = to.min(bytes.len());
                    if dice.below(2) == 0 {
                        put(&mut file.durable, at + from, &bytes[from..to]);
                    }
                    from = to;
                }
            }
            file.seen = file.durable.clone();
        }
    }
}

pub(crate) struct OpenFile(Platter, u64);

impl OpenFile {
    fn with<T>(&self, act: impl FnOnce(&mut File) -> T) -> T {
        act(self.0.state().files.get_mut(&self.1).unwrap())
    }
}

fn broken() -> io::Error {
    io::Error::other("the platter is broken")
}

impl Disk for Platter {
    type Segment = OpenFile;

    fn segments(&self) -> io::Result<Vec<u64>> {
        let state = self.state();
        Ok(state.files.keys().filter(|number| !state.removed.contains(number)).copied().collect())
    }

    fn create(&self, number: u64, bytes: u64, header: &[u8]) -> io::Result<OpenFile> {
        if self.due_fault() == Some(Fault::Full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut durable = vec![0; usize::try_from(bytes).unwrap()];
        put(&mut durable, 0, header);
        let file = File { seen: durable.clone(), durable, pending: Vec::new() };
        assert!(self.state().files.insert(number, file).is_none(), "{number} was there");
        self.open(number)
    }

    fn open(&self, number: u64) -> io::Result<OpenFile> {
        Ok(OpenFile(self.clone(), number))
    }

    fn set_aside(&self, number: u64) -> io::Result<()> {
        let mut state = self.state();
        state.files.remove(&number).unwrap();
        state.aside.push(number);
        Ok(())
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        let fault = self.due_fault();
        let mut state = self.state();
        if fault == Some(Fault::Remove) {
            return Err(broken());
        }
        assert!(state.files.contains_key(&number), "{number} was never there");
        state.removed.insert(number);
        if fault == Some(Fault::RemoveReported) { Err(broken()) } else { Ok(()) }
    }
}

impl Segment for OpenFile {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let fault = self.0.due_fault();
        let kept = if fault == Some(Fault::Write) { bytes.len() / 2 } else { bytes.len() };
        let offset = usize::try_from(offset).unwrap();
        let mut bytes = bytes[..kept].to_vec();
        if let (Some(Fault::Rot), Some(last)) = (fault, bytes.len().checked_sub(9)) {
            // Not the last ones: those may be padding.
            bytes[last] ^= 0x10;
        }
        self.with(|file| {
            put(&mut file.seen, offset, &bytes);
            file.pending.push((offset, bytes));
        });
        match fault {
            Some(Fault::Write | Fault::WriteReported) => Err(broken()),
            _ => Ok(()),
        }
    }

    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        if let Some((segment, bad)) = &self.0.state().unreadable {
            let end = offset + length as u64;
            if *segment == self.1 && offset < bad.end && bad.start < end {
                return Err(rustix::io::Errno::IO.into());
            }
        }
        let offset = usize::try_from(offset).unwrap();
        let bytes = self.with(|file| file.seen.get(offset..offset + length).map(<[u8]>::to_vec));
        bytes.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn uncache(&self, _: u64, _: u64) {}

    fn sync(&self) -> io::Result<()> {
        let fault = self.0.due_fault().filter(|_| !self.0.state().held);
        let mut state = self.0.state();
        state.syncs += 1;
        while state.held {
            state = self.0.0.1.wait(state).unwrap();
        }
        // While it waited, it may have been told to fail.
        let fault = fault.or(state.fault);
        let file = state.files.get_mut(&self.1).unwrap();
        let pending = std::mem::take(&mut file.pending);
        if fault != Some(Fault::Sync) {
            for (at, bytes) in pending {
                put(&mut file.durable, at, &bytes);
            }
        }
        match fault {
            Some(Fault::Sync | Fault::SyncReported) => Err(broken()),
            _ => Ok(()),
        }
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.with(|file| file.seen.len() as u64))
    }
}
