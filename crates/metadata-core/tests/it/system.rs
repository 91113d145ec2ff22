//! System ops: what does not check out changes nothing and is not logged.

use coffer_metadata_core::state::{CORE_VERSION_FIRST, CORE_VERSION_MAX};
use coffer_metadata_core::{
    Command, CoreError, MemoryTables, Overlay, Prepared, Reply, apply, layout, query,
};
use coffer_model::descriptor::{Descriptor, SignedDescriptor};
use coffer_model::encoding::{decode, encode};
use coffer_model::id::{ClusterId, MemberId, NodeId};
use coffer_model::log::{ClockReading, NodeReport, SystemOp};
use coffer_model::signing::{Domain, Signer};
use coffer_model::time::LogTime;

use crate::invariants::Checker;
use crate::kit::{Cluster, ClusterOptions, Key, START_MS};

pub(crate) fn check_ignored(what: &str, cluster: &mut Cluster, op: SystemOp) {
    let before = cluster.tables.clone();
    assert_eq!(cluster.apply(&Command::System(op)), Reply::System);
    assert_eq!(cluster.tables, before, "{what}: changed something");
}

pub(crate) fn check_logged(cluster: &mut Cluster, op: SystemOp) {
    let revision = cluster.revision();
    cluster.system(op);
    assert_eq!(cluster.revision(), revision + 1);
    Checker::new(cluster.id).check(&cluster.tables);
}

// -- genesis --------------------------------------------------------------------------------------

#[test]
fn a_cluster_begins_once() {
    let mut cluster = Cluster::before_genesis(&ClusterOptions::usual());
    let genesis = cluster.genesis.clone();
    check_logged(&mut cluster, genesis.clone());
    check_ignored("the same again", &mut cluster, genesis);
    let other =
        Cluster::before_genesis(&ClusterOptions { word: "other", ..ClusterOptions::usual() });
    assert_ne!(other.id, cluster.id);
    check_ignored("another", &mut cluster, other.genesis);
    let (descriptor, _) = query::genesis(&cluster.tables).unwrap().unwrap();
    let SystemOp::Genesis { descriptor: expected, .. } = &cluster.genesis else { panic!() };
    assert_eq!(descriptor, *expected);
}

#[test]
fn a_beginning_is_signed_by_its_administrators() {
    let base = Cluster::before_genesis(&ClusterOptions::usual());
    let SystemOp::Genesis { descriptor, layout } = base.genesis.clone() else { panic!() };
    let signed: SignedDescriptor = decode("descriptor", &descriptor).unwrap();
    let content: Descriptor = decode("descriptor", &signed.bytes).unwrap();
    let mallory = Key::of("mallory");
    let planned = layout::first(&content.nodes).unwrap();
    let with = |change: &dyn Fn(&mut Descriptor), signers: &[&dyn Signer]| {
        let mut content = content.clone();
        change(&mut content);
        encode(&SignedDescriptor::first(&content, signers))
    };
    let admin: &dyn Signer = &base.admin;
    let mut bent = layout.clone();
    bent[10] ^= 1;
    let mut long = descriptor.clone();
    long.push(0);
    let rows: Vec<(&str, Vec<u8>, Vec<u8>)> = vec![
        ("nothing", Vec::new(), Vec::new()),
        ("no signature", with(&|_| {}, &[]), layout.clone()),
        ("a foreign signature", with(&|_| {}, &[&mallory]), layout.clone()),
        ("too few signatures", with(&|d| d.quorum = 2, &[admin]), layout.clone()),
        ("one signature twice", with(&|d| d.quorum = 2, &[admin, admin]), layout.clone()),
        ("another suite", with(&|d| d.suite = 2, &[admin]), layout.clone()),
        ("trailing bytes", long, layout.clone()),
        ("no layout", descriptor.clone(), Vec::new()),
        ("a layout that was tampered with", descriptor.clone(), bent),
        ("a layout by somebody else", descriptor.clone(), planned.sign(&base.id, &mallory)),
        ("a layout for another cluster", descriptor.clone(), {
            planned.sign(&ClusterId::from_bytes([1; 32]), &base.admin)
        }),
    ];
    for (what, descriptor, layout) in rows {
        let mut cluster = base.clone();
        check_ignored(what, &mut cluster, SystemOp::Genesis { descriptor, layout });
        assert_eq!(cluster.tables, MemoryTables::default());
    }
}

// -- the version of the state machine -------------------------------------------------------------

#[test]
fn a_version_comes_into_force_one_by_one() {
    let mut cluster = Cluster::new();
    assert_eq!(query::core_version(&cluster.tables).unwrap(), 2);
    for version in [0, 1, 2, CORE_VERSION_MAX + 2, u32::MAX] {
        check_ignored("not the next", &mut cluster, SystemOp::CoreVersion { version });
    }
    check_logged(&mut cluster, SystemOp::CoreVersion { version: 3 });
    assert_eq!(query::core_version(&cluster.tables).unwrap(), 3);
    for version in [2, 3, CORE_VERSION_MAX + 2] {
        check_ignored("not the next", &mut cluster, SystemOp::CoreVersion { version });
    }
    let mut cluster = Cluster::new().of_version_1();
    for version in [0, 1, 3] {
        check_ignored("not the next", &mut cluster, SystemOp::CoreVersion { version });
    }
    check_logged(&mut cluster, SystemOp::CoreVersion { version: 2 });
    assert_eq!(query::core_version(&cluster.tables).unwrap(), 2);
    check_ignored("the same again", &mut cluster, SystemOp::CoreVersion { version: 2 });
}

/// Goal: whatever a program knows, the first entry of a log comes to the same state. Method: the number is
/// spelt out; clusters exist whose first entry came to it.
#[test]
fn a_cluster_begins_with_the_version_it_always_began_with() {
    assert_eq!(CORE_VERSION_FIRST, 2);
    assert_eq!(query::core_version(&Cluster::new().tables).unwrap(), CORE_VERSION_FIRST);
}

/// Goal: a program that is too old for its group stops, and does not come to another state than the others.
#[test]
fn a_version_that_is_not_known_here_stops_the_replica() {
    let mut cluster = Cluster::new();
    while query::core_version(&cluster.tables).unwrap() < CORE_VERSION_MAX {
        let version = query::core_version(&cluster.tables).unwrap() + 1;
        check_logged(&mut cluster, SystemOp::CoreVersion { version });
    }
    let version = CORE_VERSION_MAX + 1;
    let command = Command::System(SystemOp::CoreVersion { version });
    let mut overlay = Overlay::new(&cluster.tables);
    let error = apply(&mut overlay, &Prepared::new(&cluster.id, command)).unwrap_err();
    assert!(matches!(error, CoreError::LaterVersion { version: found } if found == version));
    assert!(overlay.into_changes().is_empty());
}

#[test]
fn nothing_counts_before_the_beginning() {
    let mut cluster = Cluster::before_genesis(&ClusterOptions::usual());
    let readings = (0..3).map(|member| cluster.reading(member, START_MS)).collect();
    check_ignored("a tick", &mut cluster, SystemOp::Tick { readings });
    let report = cluster.report(0, 1);
    check_ignored("a report", &mut cluster, report);
    for version in [1, 2] {
        check_ignored("a version", &mut cluster, SystemOp::CoreVersion { version });
    }
}

// -- ticks ----------------------------------------------------------------------------------------

#[test]
fn log_time_is_the_lower_median_of_a_majority() {
    let rows: &[(u64, &[u64], u64)] = &[
        (1, &[7], 7),
        (3, &[5, 9], 5),
        (3, &[9, 5], 5),
        (3, &[1, 2, 1000], 2),
        (3, &[1000, 2, 1], 2),
        (5, &[5, 6, 7], 6),
        (5, &[5, 6, 7, 8], 6),
        (5, &[1, 1, 7, 900, 900], 7),
        (4, &[3, 4, 5], 4),
    ];
    for (members, ahead, expected) in rows {
        let mut cluster =
            Cluster::with(&ClusterOptions { members: *members, ..ClusterOptions::usual() });
        let readings = ahead
            .iter()
            .enumerate()
            .map(|(member, ahead)| cluster.reading(member, START_MS + ahead))
            .collect();
        check_logged(&mut cluster, SystemOp::Tick { readings });
        assert_eq!(cluster.time().unix_ms(), START_MS + expected, "{members} members: {ahead:?}");
    }
}

#[test]
fn a_tick_that_does_not_check_out_is_ignored() {
    let base = Cluster::with(&ClusterOptions { members: 5, ..ClusterOptions::usual() });
    let later = START_MS + 1000;
    let good: Vec<ClockReading> = (0..5).map(|member| base.reading(member, later)).collect();
    let pick = |members: &[usize]| -> Vec<ClockReading> {
        members.iter().map(|member| good[*member].clone()).collect()
    };
    let with = |change: &dyn Fn(&mut Vec<ClockReading>)| {
        let mut readings = pick(&[0, 1, 2]);
        change(&mut readings);
        readings
    };
    let foreign_key = Key::of("mallory");
    let sign = |key: &Key, domain, cluster: &ClusterId, member: MemberId, ms| {
        let time = LogTime::from_unix_ms(ms);
        let signature = key.sign(domain, cluster, &encode(&(member, time)));
        ClockReading { member, time, signature }
    };
    let (member, key) = &base.members[2];
    let old: Vec<ClockReading> = (0..5).map(|member| base.reading(member, START_MS)).collect();
    let before: Vec<ClockReading> =
        (0..5).map(|member| base.reading(member, START_MS - 1)).collect();
    let rows: Vec<(&str, Vec<ClockReading>)> = vec![
        ("nobody", Vec::new()),
        ("a minority", pick(&[0, 1])),
        ("one member three times", pick(&[0, 0, 0])),
        ("a member twice", pick(&[0, 1, 1])),
        ("out of order", pick(&[2, 1, 0])),
        ("more than there are", pick(&[0, 1, 2, 3, 4, 4])),
        (
            "a foreign key",
            with(&|r| {
                r[2] = sign(&foreign_key, Domain::ClockReading, &base.id, *member, later);
            }),
        ),
        (
            "a stranger",
            with(&|r| {
                r[2] = sign(
                    &foreign_key,
                    Domain::ClockReading,
                    &base.id,
                    MemberId::from_u64(9),
                    later,
                );
            }),
        ),
        (
            "for another cluster",
            with(&|r| {
                r[2] = sign(
                    key,
                    Domain::ClockReading,
                    &ClusterId::from_bytes([1; 32]),
                    *member,
                    later,
                );
            }),
        ),
        (
            "for another purpose",
            with(&|r| {
                r[2] = sign(key, Domain::Process, &base.id, *member, later);
            }),
        ),
        ("another time than was signed", with(&|r| r[2].time = r[2].time.plus_ms(1))),
        ("the time it is already", old),
        ("back in time", before),
        ("back in time by the median", {
            let mut readings: Vec<_> = (0..5).map(|member| base.reading(member, 1)).collect();
            readings[3] = base.reading(3, later);
            readings[4] = base.reading(4, later);
            readings
        }),
    ];
    for (what, readings) in rows {
        let mut cluster = base.clone();
        check_ignored(what, &mut cluster, SystemOp::Tick { readings });
        assert_eq!(cluster.time().unix_ms(), START_MS);
    }
    let mut cluster = base.clone();
    check_logged(&mut cluster, SystemOp::Tick { readings: pick(&[0, 2, 4]) });
    // The same readings once more take it nowhere.
    check_ignored("a replay", &mut cluster, SystemOp::Tick { readings: pick(&[0, 2, 4]) });
}

// -- the next descriptor --------------------------------------------------------------------------

#[test]
fn each_descriptor_is_signed_by_the_one_before() {
    let mut cluster = Cluster::new();
    let first = cluster.descriptor();
    let other = Key::of("another administrator");
    cluster.change_descriptor(|next| next.administrators = vec![other.public_key()]);
    let refused = SignedDescriptor::next(
        &cluster.id,
        &cluster.next_descriptor(|next| next.open_registration = false),
        &[&cluster.admin],
    );
    let op = SystemOp::NextDescriptor { descriptor: encode(&refused) };
    check_ignored("by an administrator of before", &mut cluster, op);
    cluster.admin = other;
    cluster.change_descriptor(|next| next.open_registration = false);
    assert_eq!(cluster.descriptor().number, 2);
    Checker::new(cluster.id).check(&cluster.tables);

    let (genesis, _) = query::genesis(&cluster.tables).unwrap().unwrap();
    let signed: SignedDescriptor = decode("descriptor", &genesis).unwrap();
    let (id, content) = signed.verify_first(Some(cluster.id)).unwrap();
    assert_eq!((id, &content), (cluster.id, &first));
    let mut last = content;
    for bytes in query::successors(&cluster.tables, 0).unwrap() {
        let signed: SignedDescriptor = decode("descriptor", &bytes).unwrap();
        last = signed.verify_next(&cluster.id, &last).unwrap();
    }
    assert_eq!(last, cluster.descriptor());
    assert_eq!(query::successors(&cluster.tables, 1).unwrap().len(), 1);
    assert_eq!(query::successors(&cluster.tables, 2).unwrap(), Vec::<Vec<u8>>::new());
    assert_eq!(query::successors(&cluster.tables, u64::MAX).unwrap(), Vec::<Vec<u8>>::new());
}

#[test]
fn successors_are_given_64_at_a_time() {
    let mut cluster = Cluster::new();
    for _ in 0..70 {
        cluster.change_descriptor(|_| {});
    }
    let successors = |after| query::successors(&cluster.tables, after).unwrap().len();
    assert_eq!((successors(0), successors(64), successors(69)), (64, 6, 1));
}

#[test]
fn a_descriptor_that_does_not_follow_is_ignored() {
    let base = Cluster::new();
    let mallory = Key::of("mallory");
    let sign = |cluster: &ClusterId, change: &dyn Fn(&mut Descriptor), by: &Key| {
        encode(&SignedDescriptor::next(cluster, &base.next_descriptor(change), &[by]))
    };
    let good = sign(&base.id, &|_| {}, &base.admin);
    let mut long = good.clone();
    long.push(0);
    let other = ClusterId::from_bytes([1; 32]);
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("trailing bytes", long),
        ("by somebody else", sign(&base.id, &|_| {}, &mallory)),
        ("for another cluster", sign(&other, &|_| {}, &base.admin)),
        ("the number after the next", sign(&base.id, &|next| next.number = 2, &base.admin)),
        ("after another one", sign(&base.id, &|next| next.former = None, &base.admin)),
        ("no members", sign(&base.id, &|next| next.members.clear(), &base.admin)),
        ("no administrators", sign(&base.id, &|next| next.administrators.clear(), &base.admin)),
        ("another key of a node", {
            sign(&base.id, &|next| next.nodes[0].key = mallory.public_key(), &base.admin)
        }),
    ];
    for (what, descriptor) in rows {
        check_ignored(what, &mut base.clone(), SystemOp::NextDescriptor { descriptor });
    }
    let op = SystemOp::NextDescriptor { descriptor: good };
    check_ignored("version 1", &mut base.clone().of_version_1(), op.clone());
    let mut cluster = base.clone();
    check_logged(&mut cluster, op.clone());
    check_ignored("the same again", &mut cluster, op);
}

/// Members, nodes and registration are as the descriptor in force says.
#[test]
fn what_counts_is_the_descriptor_in_force() {
    let mut cluster = Cluster::new();
    let report = cluster.report(2, 1);
    cluster.change_descriptor(|next| {
        next.nodes.remove(2);
        next.members.truncate(1);
        next.open_registration = false;
    });
    check_ignored("a node that went", &mut cluster, report);
    let later = START_MS + 1;
    let all = (0..3).map(|member| cluster.reading(member, later)).collect();
    check_ignored("members that went", &mut cluster, SystemOp::Tick { readings: all });
    let one = vec![cluster.reading(0, later)];
    check_logged(&mut cluster, SystemOp::Tick { readings: one });
    let mut late = crate::kit::User::newcomer("late");
    let mut draft = crate::kit::Draft::new();
    let registration = late.registration(&mut draft);
    draft.push(registration);
    let reply = cluster.submit(&late.by_identity(&cluster, &draft));
    let Reply::Bundle { outcomes, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(outcomes, [Err(coffer_model::op::Rejection::InviteRequired)]);
}

// -- node reports ---------------------------------------------------------------------------------

#[test]
fn a_report_is_by_its_node_and_the_latest_counts() {
    let mut cluster = Cluster::new();
    let first = cluster.report(0, 5);
    check_logged(&mut cluster, first.clone());
    check_ignored("the same again", &mut cluster, first);
    let older = cluster.report(0, 4);
    check_ignored("an older one", &mut cluster, older);
    let (latest, another) = (cluster.report(0, 6), cluster.report(1, 1));
    check_logged(&mut cluster, latest);
    check_logged(&mut cluster, another);
    let mut numbers: Vec<u64> =
        query::nodes(&cluster.tables).unwrap().iter().map(|report| report.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 6]);

    let (node, key) = cluster.nodes[0].clone();
    let mallory = Key::of("mallory");
    let report = |node: NodeId| NodeReport {
        node,
        number: 100,
        address: "elsewhere:1".to_owned(),
        capacity_bytes: 1,
    };
    let signed = |report: &NodeReport, key: &Key, domain, cluster: &ClusterId| {
        let report = encode(report);
        let signature = key.sign(domain, cluster, &report);
        SystemOp::NodeReport { report, signature }
    };
    let id = cluster.id;
    let stranger = NodeId::from_bytes([1; 16]);
    let mut long = encode(&report(node));
    long.push(0);
    let signature = key.sign(Domain::NodeReport, &id, &long);
    let rows = [
        ("a foreign key", signed(&report(node), &mallory, Domain::NodeReport, &id)),
        (
            "the key of another node",
            signed(&report(cluster.nodes[1].0), &key, Domain::NodeReport, &id),
        ),
        ("a stranger", signed(&report(stranger), &mallory, Domain::NodeReport, &id)),
        ("another purpose", signed(&report(node), &key, Domain::Receipt, &id)),
        ("another cluster", {
            signed(&report(node), &key, Domain::NodeReport, &ClusterId::from_bytes([1; 32]))
        }),
        ("trailing bytes", SystemOp::NodeReport { report: long, signature }),
        ("no report", SystemOp::NodeReport { report: Vec::new(), signature }),
    ];
    for (what, op) in rows {
        check_ignored(what, &mut cluster, op);
    }
}
