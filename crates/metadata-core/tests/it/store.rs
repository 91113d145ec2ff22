//! A store that fails: the replica stops and says so. It never takes a failure for an answer, for
//! then it would differ from the other replicas without noticing.

use std::cell::Cell;
use std::collections::BTreeMap;

use coffer_metadata_core::tables::Rows;
use coffer_metadata_core::{
    Command, CoreError, MemoryTables, Overlay, Prepared, Table, TableError, Tables, apply, query,
};
use coffer_model::encoding::{decode, encode};
use coffer_model::manifest::Slot;
use coffer_model::object::{Kind, StagedKey};
use coffer_model::op::{Base, Op};

use crate::kit::{Cluster, Draft, User, chunk, inode, key, manifest_of, write};

/// Tables whose n-th read fails, or gives bytes that mean nothing.
struct Failing<'a> {
    below: &'a MemoryTables,
    reads: Cell<usize>,
    fails_at: usize,
    garbage: bool,
    failed_in: Cell<Option<Table>>,
}

impl Failing<'_> {
    fn fails(&self, table: Table) -> bool {
        self.reads.set(self.reads.get() + 1);
        let fails = self.reads.get() == self.fails_at;
        if fails {
            self.failed_in.set(Some(table));
        }
        fails
    }
}

impl Tables for Failing<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        let value = self.below.get(table, key)?;
        match (self.fails(table), self.garbage) {
            (false, _) => Ok(value),
            (true, false) => Err(TableError("read failed".to_owned())),
            (true, true) => Ok(value.map(|_| vec![0xff; 7])),
        }
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Rows, TableError> {
        if self.fails(table) && !self.garbage {
            return Err(TableError("scan failed".to_owned()));
        }
        self.below.scan(table, from, to, limit)
    }
}

/// A cluster, and one bundle that has an op of every verb.
fn scene() -> (Cluster, Command) {
    let mut cluster = Cluster::new();
    let mut alice = User::join(&mut cluster, "alice");
    let mut draft = Draft::new();
    for name in ["docs", "empty", "gone"] {
        draft.create_directory(&cluster, key(alice.home, name), inode(name));
    }
    draft.create_file(&cluster, key(inode("docs"), "a"), inode("a"), &[1, 2, 3]);
    draft.create_file(&cluster, key(inode("docs"), "b"), inode("b"), &[4]);
    let at = StagedKey { inode: inode("b"), write: write("part") };
    draft.stage(inode("docs"), at, &[(0, chunk(7)), (99, chunk(8))].into(), 100);
    alice.act(&mut cluster, &draft);
    let mut draft = Draft::new();
    draft.remove(&cluster, key(alice.home, "gone"), false);
    alice.act(&mut cluster, &draft);
    // The remembered requests of before are cleared away by what comes.
    cluster.tick_by(70_000);

    let mut draft = Draft::new();
    draft.create_file(&cluster, key(alice.home, "new"), inode("new"), &[9]);
    // One slot of three changes, so the old page is read.
    let head = cluster.head(inode("a")).unwrap();
    let content: BTreeMap<_, _> = [(0, chunk(1)), (1, chunk(20)), (2, chunk(3))].into();
    let change = draft.head(inode("a"), Some(head.hash), 2, Base::Version(1), (3, &content));
    draft.slots(vec![(1, Slot::Chunk(chunk(20)))]);
    draft.push(Op::Commit { head: change, attrs: None });
    let head = cluster.head(inode("b")).unwrap();
    let content: BTreeMap<_, _> = [(0, chunk(7)), (50, chunk(30)), (99, chunk(8))].into();
    let mut change = draft.head(inode("b"), Some(head.hash), 2, Base::Staged, (100, &content));
    change.change.leaf.write = write("part");
    draft.slots(vec![(50, Slot::Chunk(chunk(30)))]);
    draft.push(Op::Commit { head: change, attrs: None });
    let at = StagedKey { inode: inode("a"), write: write("next") };
    draft.stage(inode("docs"), at, &[(0, chunk(40))].into(), 1);
    draft.set_attrs(&cluster, inode("a"), "other");
    draft.rename(&cluster, key(alice.home, "empty"), key(inode("docs"), "e"));
    draft.undelete(&cluster, key(alice.home, "gone"), inode("gone"), Kind::Directory);
    draft.remove(&cluster, key(alice.home, "docs"), false);
    let submission = alice.sign(&cluster, &draft);
    (cluster, Command::Submission(encode(&submission)))
}

fn run(cluster: &Cluster, command: &Command, failing: &Failing<'_>) -> Result<Outcome, CoreError> {
    let command = decode("command", &encode(command)).unwrap();
    let mut overlay = Overlay::new(failing);
    let reply = apply(&mut overlay, &Prepared::new(&cluster.id, command))?;
    Ok((reply, overlay.into_changes()))
}

type Outcome = (coffer_metadata_core::Reply, coffer_metadata_core::tables::Changes);

#[test]
fn no_failing_read_is_taken_for_an_answer() {
    let (cluster, command) = scene();
    let tables = |fails_at, garbage| Failing {
        below: &cluster.tables,
        reads: Cell::new(0),
        fails_at,
        garbage,
        failed_in: Cell::new(None),
    };
    let healthy = tables(0, false);
    let expected = run(&cluster, &command, &healthy).unwrap();
    assert_eq!(crate::kit::applied(&expected.0), 8, "{:?}", expected.0);
    let reads = healthy.reads.get();
    assert!(reads > 50, "{reads}");
    let mut failed_in = Vec::new();
    for fails_at in 1..=reads {
        let failing = tables(fails_at, false);
        let answer = run(&cluster, &command, &failing);
        let table = failing.failed_in.get().unwrap();
        assert!(answer.is_err(), "read {fails_at}, of {}: {answer:?}", table.name());
        failed_in.push(table);
    }
    for table in [Table::Pages, Table::Heads, Table::Staged, Table::Usage, Table::RepeatsByTime] {
        assert!(failed_in.contains(&table), "{} was not read", table.name());
    }
    // Tried again, it goes through as if nothing had been.
    assert_eq!(run(&cluster, &command, &tables(0, false)).unwrap(), expected);
}

/// The same for a purge, of a directory and of a file.
#[test]
fn no_failing_read_lets_a_purge_forget_something() {
    let (mut cluster, _) = scene();
    let mut alice = User { requests: 100, ..User::newcomer("alice") };
    cluster.give(coffer_model::order::Decision::Retention { ms: 0 });
    let mut draft = Draft::new();
    draft.push(alice.login(&cluster, 1));
    cluster.submit(&alice.by_identity(&cluster, &draft));
    for name in ["docs", "b"] {
        if name == "docs" {
            let mut draft = Draft::new();
            draft.remove(&cluster, key(alice.home, name), false);
            alice.act(&mut cluster, &draft);
            cluster.tick_by(1);
        }
        let op = coffer_model::log::SystemOp::Purge { inode: inode(name) };
        let command = Command::System(op);
        for garbage in [false, true] {
            let tables = |fails_at| Failing {
                below: &cluster.tables,
                reads: Cell::new(0),
                fails_at,
                garbage,
                failed_in: Cell::new(None),
            };
            let healthy = tables(0);
            let expected = run(&cluster, &command, &healthy).unwrap();
            assert!(!expected.1.is_empty(), "{name} is due");
            for fails_at in 1..=healthy.reads.get() {
                let failing = tables(fails_at);
                let answer = run(&cluster, &command, &failing);
                let table = failing.failed_in.get().unwrap();
                let harmless = garbage && answer.as_ref().is_ok_and(|answer| *answer == expected);
                assert!(answer.is_err() || harmless, "{name}, read {fails_at} of {}", table.name());
            }
        }
        cluster.apply(&command);
    }
}

/// Tables whose values are not looked into, only whether they are there.
const OPAQUE: [Table; 3] = [Table::VaultHashes, Table::Principals, Table::RepeatsByTime];

#[test]
fn no_damaged_value_is_taken_for_an_answer() {
    let (cluster, command) = scene();
    let tables = |fails_at| Failing {
        below: &cluster.tables,
        reads: Cell::new(0),
        fails_at,
        garbage: true,
        failed_in: Cell::new(None),
    };
    let healthy = tables(0);
    let expected = run(&cluster, &command, &healthy).unwrap();
    for fails_at in 1..=healthy.reads.get() {
        let failing = tables(fails_at);
        match run(&cluster, &command, &failing) {
            Err(_) => {}
            // There was nothing to damage, or nobody looks inside.
            Ok(answer) => {
                let table = failing.failed_in.get().unwrap();
                assert!(answer == expected || OPAQUE.contains(&table), "{}", table.name());
            }
        }
    }
}

/// The same for questions: an error, never half an answer.
#[test]
fn no_question_is_answered_from_a_failing_store() {
    let (cluster, _) = scene();
    let alice = User::newcomer("alice");
    let want = query::Want { attrs: true, head: true, from_slot: 0, to_slot: 200 };
    let tags = [key(alice.home, "docs").tag, key(inode("docs"), "a").tag];
    type Ask<'a> = Box<dyn Fn(&Failing<'_>) -> Result<String, String> + 'a>;
    fn said<V: std::fmt::Debug, E: std::fmt::Debug>(
        answer: Result<V, E>,
    ) -> Result<String, String> {
        answer.map(|value| format!("{value:?}")).map_err(|error| format!("{error:?}"))
    }
    let who = alice.principal;
    let certificate = User::join(&mut Cluster::new(), "alice").certificate;
    let questions: Vec<Ask<'_>> = vec![
        Box::new(|t| said(query::walk(t, who, &alice.home, &tags, &want))),
        Box::new(|t| said(query::list(t, who, &inode("docs"), None, 1, &want, true))),
        Box::new(|t| said(query::content(t, who, &inode("a"), 1, 0, 9))),
        Box::new(|t| said(query::versions(t, who, &inode("a"), None, 9))),
        Box::new(|t| said(query::login_user(t, &alice.name))),
        Box::new(|t| said(query::session(t, &certificate, &cluster.admin_key()))),
        Box::new(|t| said(query::write_home(t, who, &inode("docs")))),
        Box::new(|t| said(query::revision(t))),
        Box::new(|t| said(query::totals(t))),
        Box::new(|t| said(query::nodes(t))),
        Box::new(|t| said(query::genesis(t))),
        Box::new(|t| said(query::op_proof(t, cluster.head(inode("a")).unwrap().at))),
    ];
    for (number, ask) in questions.iter().enumerate() {
        let tables = |fails_at| Failing {
            below: &cluster.tables,
            reads: Cell::new(0),
            fails_at,
            garbage: false,
            failed_in: Cell::new(None),
        };
        let healthy = tables(0);
        ask(&healthy).unwrap_or_else(|error| panic!("question {number}: {error}"));
        assert!(healthy.reads.get() > 0);
        for fails_at in 1..=healthy.reads.get() {
            let answer = ask(&tables(fails_at));
            assert!(answer.is_err(), "question {number}, read {fails_at}: {answer:?}");
        }
    }
}

#[test]
fn the_scene_is_what_it_seems() {
    let (cluster, _) = scene();
    let staged = cluster.staged(&StagedKey { inode: inode("b"), write: write("part") }).unwrap();
    let content = [(0, chunk(7)), (99, chunk(8))].into();
    assert_eq!(staged.leaf.root, manifest_of(100, &content).0);
}
