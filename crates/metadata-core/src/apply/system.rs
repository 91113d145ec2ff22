//! System ops, one function each. No user signs them; each says whether it checks out. What does not
//! changes nothing and is not logged.

use coffer_model::descriptor::{Link, Replaced, SignedDescriptor};
use coffer_model::encoding::{decode, encode};
use coffer_model::id::NodeId;
use coffer_model::layout::Layout;
use coffer_model::log::{ClockReading, LogBody, NodeReport, SystemOp};
use coffer_model::merkle::Frontier;
use coffer_model::order::{Decision, Order};
use coffer_model::share::ShareProof;
use coffer_model::signing::{Domain, PublicKey, Signature};
use coffer_model::time::LogTime;

use crate::apply::{append, cluster, core_version, purge};
use crate::state::{
    CORE_VERSION_CHANGES, CORE_VERSION_FIRST, CORE_VERSION_MAX, CORE_VERSION_REPLACEMENT,
    FORMER_LAYOUTS_MAX, InodeState, Layouts, load, meta, store,
};
use crate::tables::{Overlay, Table, TableError, Tables};

/// Applies a system op; one that does not check out changes nothing and is not logged.
pub(crate) fn apply<T: Tables>(tables: &mut Overlay<T>, op: &SystemOp) -> Result<(), TableError> {
    let time = load(tables, Table::Meta, meta::TIME)?.unwrap_or(LogTime::ZERO);
    let in_force = core_version(tables)?;
    let applied_at = match op {
        SystemOp::Genesis { descriptor, layout } => {
            genesis(tables, descriptor, layout)?.then_some(time)
        }
        SystemOp::Tick { readings } => tick(tables, readings, time)?,
        SystemOp::NodeReport { report, signature } => {
            node_report(tables, report, signature)?.then_some(time)
        }
        SystemOp::CoreVersion { version } => {
            raise_core_version(tables, in_force, *version).then_some(time)
        }
        _ if in_force < CORE_VERSION_CHANGES => None,
        SystemOp::NextDescriptor { descriptor } => {
            next_descriptor(tables, descriptor, in_force)?.then_some(time)
        }
        SystemOp::NextLayout { layout } => next_layout(tables, layout)?.then_some(time),
        SystemOp::ShareProof { proof, signature } => {
            share_proof(tables, proof, signature)?.then_some(time)
        }
        SystemOp::Order { order: bytes, signatures } => {
            order(tables, bytes, signatures)?.then_some(time)
        }
        SystemOp::Purge { inode } => purge::step(tables, inode, time)?.then_some(time),
    };
    if let Some(time) = applied_at {
        let mut frontier: Frontier = load(tables, Table::Meta, meta::FRONTIER)?.unwrap_or_default();
        append(tables, &mut frontier, time, LogBody::System(op.clone()));
    }
    Ok(())
}

fn genesis<T: Tables>(
    tables: &mut Overlay<T>,
    descriptor: &[u8],
    layout: &[u8],
) -> Result<bool, TableError> {
    if tables.get(Table::Meta, meta::CLUSTER)?.is_some() {
        return Ok(false);
    }
    let Ok(signed) = decode::<SignedDescriptor>("descriptor", descriptor) else { return Ok(false) };
    let Ok((cluster, content)) = signed.verify_first(None) else { return Ok(false) };
    if Layout::verify(layout, &cluster, &content.administrators).is_err() {
        return Ok(false);
    }
    tables.put(Table::Meta, meta::CLUSTER, store(&cluster));
    tables.put(Table::Meta, meta::DESCRIPTOR, descriptor.to_vec());
    tables.put(Table::Meta, meta::LAYOUT, layout.to_vec());
    tables.put(Table::Meta, meta::CORE_VERSION, store(&CORE_VERSION_FIRST));
    Ok(true)
}

fn raise_core_version<T: Tables>(tables: &mut Overlay<T>, in_force: u32, version: u32) -> bool {
    let next = in_force > 0 && version == in_force + 1 && version <= CORE_VERSION_MAX;
    if next {
        tables.put(Table::Meta, meta::CORE_VERSION, store(&version));
    }
    next
}

/// The new log time, if the readings are good and it moves.
fn tick<T: Tables>(
    tables: &mut Overlay<T>,
    readings: &[ClockReading],
    time: LogTime,
) -> Result<Option<LogTime>, TableError> {
    let Some((descriptor, cluster)) = cluster(tables)? else { return Ok(None) };
    if readings.len() > descriptor.members.len()
        || readings.len() <= descriptor.members.len() / 2
        || !readings.windows(2).all(|pair| pair[0].member < pair[1].member)
    {
        return Ok(None);
    }
    for reading in readings {
        let bytes = encode(&(reading.member, reading.time));
        let good = descriptor.member_key(reading.member).is_some_and(|key| {
            key.verify(Domain::ClockReading, &cluster, &bytes, &reading.signature).is_ok()
        });
        if !good {
            return Ok(None);
        }
    }
    let mut times: Vec<LogTime> = readings.iter().map(|reading| reading.time).collect();
    times.sort_unstable();
    let median = times[(times.len() - 1) / 2];
    if median <= time {
        return Ok(None);
    }
    tables.put(Table::Meta, meta::TIME, store(&median));
    Ok(Some(median))
}

fn node_report<T: Tables>(
    tables: &mut Overlay<T>,
    bytes: &[u8],
    signature: &Signature,
) -> Result<bool, TableError> {
    let Some((descriptor, cluster)) = cluster(tables)? else { return Ok(false) };
    let Ok(report) = decode::<NodeReport>("node report", bytes) else { return Ok(false) };
    let signed = descriptor
        .node_key(report.node)
        .is_some_and(|key| key.verify(Domain::NodeReport, &cluster, bytes, signature).is_ok());
    let former: Option<NodeReport> = load(tables, Table::Nodes, report.node.as_bytes())?;
    if !signed || former.is_some_and(|former| former.number >= report.number) {
        return Ok(false);
    }
    tables.put(Table::Nodes, report.node.as_bytes(), bytes.to_vec());
    Ok(true)
}

fn next_descriptor<T: Tables>(
    tables: &mut Overlay<T>,
    bytes: &[u8],
    in_force: u32,
) -> Result<bool, TableError> {
    let Some((former, cluster)) = cluster(tables)? else { return Ok(false) };
    let Ok(signed) = decode::<SignedDescriptor>("descriptor", bytes) else { return Ok(false) };
    let Ok((next, link)) = signed.verify_link(&cluster, &former) else { return Ok(false) };
    if let Link::Replacement(replaced) = link {
        if in_force < CORE_VERSION_REPLACEMENT {
            return Ok(false);
        }
        if let Replaced::Node { lost, new } = replaced
            && !replace_in_layout(tables, lost, new)?
        {
            return Ok(false);
        }
    }
    tables.put(Table::Descriptors, &next.number.to_be_bytes(), bytes.to_vec());
    tables.put(Table::Meta, meta::DESCRIPTOR_NUMBER, store(&next.number));
    Ok(true)
}

/// Gives the share of a lost storage node to the new one, where it has one. The new one has proven nothing,
/// so the layout before stays readable. Says whether there is room for that.
fn replace_in_layout<T: Tables>(
    tables: &mut Overlay<T>,
    lost: NodeId,
    new: NodeId,
) -> Result<bool, TableError> {
    let Some(layouts) = Layouts::load(tables)? else { return Ok(false) };
    match Layout::with_replaced(&layouts.signed[0], lost, new) {
        Ok(Some(_)) if layouts.former().len() >= FORMER_LAYOUTS_MAX => return Ok(false),
        Ok(Some(next)) => put_in_force(tables, &layouts, &next)?,
        // It holds nothing: a layout that comes later may change that.
        Ok(None) => {}
        Err(_) => return Ok(false),
    }
    // Its address is that of a process that does not belong any more, and it proves nothing.
    tables.delete(Table::Nodes, lost.as_bytes());
    tables.delete(Table::Proofs, lost.as_bytes());
    Ok(true)
}

fn next_layout<T: Tables>(tables: &mut Overlay<T>, signed: &[u8]) -> Result<bool, TableError> {
    let Some((descriptor, cluster)) = cluster(tables)? else { return Ok(false) };
    let Some(layouts) = Layouts::load(tables)? else { return Ok(false) };
    let Ok(next) = Layout::verify(signed, &cluster, &descriptor.administrators) else {
        return Ok(false);
    };
    let current = layouts.in_force();
    let follows = current.version().checked_add(1) == Some(next.version())
        && current.partition_bits() == next.partition_bits()
        && next.nodes().iter().all(|node| descriptor.node_key(*node).is_some())
        && layouts.former().len() < FORMER_LAYOUTS_MAX;
    if !follows {
        return Ok(false);
    }
    put_in_force(tables, &layouts, signed)?;
    Ok(true)
}

/// Puts the next layout in force; what was in force is the newest of the former ones.
fn put_in_force<T: Tables>(
    tables: &mut Overlay<T>,
    layouts: &Layouts,
    signed: &[u8],
) -> Result<(), TableError> {
    let position: u64 = load(tables, Table::Meta, meta::FEED)?.unwrap_or(0);
    tables.put(Table::Meta, meta::LAYOUT, signed.to_vec());
    tables.put(Table::Meta, meta::FORMER_LAYOUTS, store(&layouts.signed));
    tables.put(Table::Meta, meta::LAYOUT_SINCE, store(&position));
    Ok(())
}

fn share_proof<T: Tables>(
    tables: &mut Overlay<T>,
    bytes: &[u8],
    signature: &Signature,
) -> Result<bool, TableError> {
    let Some((descriptor, cluster)) = cluster(tables)? else { return Ok(false) };
    let Some(layouts) = Layouts::load(tables)? else { return Ok(false) };
    let Ok(proof) = decode::<ShareProof>("share proof", bytes) else { return Ok(false) };
    let signed = descriptor
        .node_key(proof.node)
        .is_some_and(|key| key.verify(Domain::ShareProof, &cluster, bytes, signature).is_ok());
    let current = layouts.in_force();
    let position: u64 = load(tables, Table::Meta, meta::FEED)?.unwrap_or(0);
    let counts = signed
        && proof.layout == current.version()
        && proof.position <= position
        && current.holders_all().contains(&proof.node)
        && layouts.proven(tables, proof.node)?.is_none_or(|former| former < proof.position);
    if !counts {
        return Ok(false);
    }
    tables.put(Table::Proofs, proof.node.as_bytes(), bytes.to_vec());
    if !layouts.former().is_empty() && everybody_has_proven(tables, &layouts)? {
        tables.delete(Table::Meta, meta::FORMER_LAYOUTS);
    }
    Ok(true)
}

/// Whether every node of the layout in force holds what there was when it came into force.
fn everybody_has_proven(tables: &impl Tables, layouts: &Layouts) -> Result<bool, TableError> {
    for node in layouts.in_force().holders_all() {
        if layouts.proven(tables, node)?.is_none_or(|position| position < layouts.since) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn order<T: Tables>(
    tables: &mut Overlay<T>,
    bytes: &[u8],
    signatures: &[(PublicKey, Signature)],
) -> Result<bool, TableError> {
    let Some((descriptor, cluster)) = cluster(tables)? else { return Ok(false) };
    let Ok(order) = decode::<Order>("order", bytes) else { return Ok(false) };
    let last: u64 = load(tables, Table::Meta, meta::ORDER_NUMBER)?.unwrap_or(0);
    if last.checked_add(1) != Some(order.number)
        || !descriptor.approves(Domain::Order, &cluster, bytes, signatures)
    {
        return Ok(false);
    }
    match order.what {
        Decision::Retention { ms } => tables.put(Table::Meta, meta::RETENTION, store(&ms)),
        Decision::Quota { home, bytes } => {
            let (table, key) = match &home {
                Some(home) => (Table::Quotas, home.as_bytes().as_slice()),
                None => (Table::Meta, meta::QUOTA),
            };
            if let Some(home) = home {
                let state: Option<InodeState> = load(tables, Table::Inodes, home.as_bytes())?;
                if state.is_none_or(|state| state.home != home) {
                    return Ok(false);
                }
            }
            match bytes {
                Some(bytes) => tables.put(table, key, store(&bytes)),
                None => tables.delete(table, key),
            }
        }
        Decision::Invite { invite, expires } => {
            tables.put(Table::Invites, invite.as_bytes(), store(&expires));
        }
    }
    tables.put(Table::Meta, meta::ORDER_NUMBER, store(&order.number));
    Ok(true)
}
