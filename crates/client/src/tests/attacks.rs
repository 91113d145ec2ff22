//! Servers that lie. Each test says what is done to an answer, and that it is refused with a typed
//! error; the same run without the lie goes well.

use std::sync::Arc;

use bytes::Bytes;
use coffer_crypto::sign::IdentityKey;
use coffer_model::encoding::{decode, encode};
use coffer_model::id::NodeId;
use coffer_model::receipt::Receipt;
use coffer_model::time::LogTime;
use coffer_proto::v1 as pb;
use coffer_proto::v1::answer::Answer;

use super::{MIB, World, noise, path, put, read};
use crate::contact::StateDir;
use crate::error::ClientError;
use crate::options::PutOptions;
use crate::session::Session;
use crate::state::SessionFile;

fn is_tampered<T>(result: Result<T, ClientError>) -> bool {
    matches!(result, Err(ClientError::Tampered { .. }))
}

/// The steps of the walks in an answer.
fn steps(answer: &mut pb::ReadResponse) -> Vec<&mut pb::Entry> {
    let walks = answer.answers.iter_mut().filter_map(|answer| match answer.answer.as_mut() {
        Some(Answer::Walk(walk)) => Some(walk.steps.iter_mut()),
        _ => None,
    });
    walks.flatten().collect()
}

/// Runs `lie` on every answer of the directory that has a walk in it, and says what reading gives.
async fn read_with(
    world: &World,
    from: &str,
    mut lie: impl FnMut(&mut pb::ReadResponse) + Send + 'static,
) -> Result<Vec<u8>, ClientError> {
    let fresh = world.again("fresh").await;
    *world.cluster.on_read.lock().unwrap() = Some(Box::new(move |answer| {
        if !steps(answer).is_empty() {
            lie(answer);
        }
    }));
    let answer = read(&fresh, from).await;
    *world.cluster.on_read.lock().unwrap() = None;
    answer
}

/// A world with two files, and the answer to a question for each.
async fn two_files() -> (World, pb::ReadResponse, pb::ReadResponse) {
    let world = World::new().await;
    world.put("/ada/one", &noise(100, 1)).await;
    world.put("/ada/two", &noise(100, 2)).await;
    let one = answer_for(&world, "/ada/one").await;
    let two = answer_for(&world, "/ada/two").await;
    (world, one, two)
}

async fn answer_for(world: &World, name: &str) -> pb::ReadResponse {
    let kept = Arc::new(std::sync::Mutex::new(None));
    let keep = Arc::clone(&kept);
    read_with(world, name, move |answer| *keep.lock().unwrap() = Some(answer.clone()))
        .await
        .unwrap();
    let answer = kept.lock().unwrap().take();
    answer.unwrap()
}

#[tokio::test]
async fn without_a_lie_all_is_well() {
    let (world, _, _) = two_files().await;
    assert!(read_with(&world, "/ada/one", |_| {}).await.unwrap() == noise(100, 1));
}

#[tokio::test]
async fn another_files_proof_is_refused() {
    let (world, _, two) = two_files().await;
    // The whole answer of another name.
    let whole = two.clone();
    assert!(is_tampered(
        read_with(&world, "/ada/one", move |answer| *answer = whole.clone()).await
    ));
    // Only the other's version, only its attributes, only its entry.
    for part in 0..3 {
        let two = two.clone();
        let lie = move |answer: &mut pb::ReadResponse| {
            let mut two = two.clone();
            let offset = answer.proofs.as_ref().unwrap().headers.len();
            let mine = answer.proofs.as_mut().unwrap();
            let theirs = two.proofs.take().unwrap();
            let ops = u32::try_from(mine.ops.len()).unwrap();
            mine.headers.extend(theirs.headers);
            mine.ops.extend(theirs.ops.into_iter().map(|mut op| {
                op.header += u32::try_from(offset).unwrap();
                op
            }));
            let other = steps(&mut two).remove(0).clone();
            let moved = |leaf: Option<pb::ProvenLeaf>| {
                leaf.map(|leaf| pb::ProvenLeaf { op: leaf.op + ops, ..leaf })
            };
            let entry = steps(answer).remove(0);
            match part {
                0 => entry.head = moved(other.head),
                1 => entry.attrs = moved(other.attrs),
                _ => entry.entry = moved(other.entry),
            }
        };
        assert!(is_tampered(read_with(&world, "/ada/one", lie).await), "{part}");
    }
}

#[tokio::test]
async fn a_swapped_payload_is_refused() {
    let (world, _, mut two) = two_files().await;
    let other = steps(&mut two).remove(0).clone();
    for part in 0..3 {
        let other = other.clone();
        let lie = move |answer: &mut pb::ReadResponse| {
            let entry = steps(answer).remove(0);
            let (mine, theirs) = match part {
                0 => (entry.head.as_mut(), &other.head),
                1 => (entry.attrs.as_mut(), &other.attrs),
                _ => (entry.entry.as_mut(), &other.entry),
            };
            mine.unwrap().payload = theirs.as_ref().unwrap().payload.clone();
        };
        // Attributes are not needed to read, but a lie about them is a lie all the same.
        assert!(is_tampered(read_with(&world, "/ada/one", lie).await), "{part}");
    }
}

#[tokio::test]
async fn every_flipped_bit_of_a_proof_is_refused() {
    let (world, one, _) = two_files().await;
    let proofs = one.proofs.unwrap();
    let targets: Vec<usize> = vec![
        proofs.headers[0].header.len(),
        proofs.headers[0].signature.len(),
        proofs.ops[0].op.len(),
        proofs.ops[0].path.len(),
    ];
    for (field, length) in targets.into_iter().enumerate() {
        for at in (0..length).step_by(7) {
            let lie = move |answer: &mut pb::ReadResponse| {
                let proofs = answer.proofs.as_mut().unwrap();
                let bytes = match field {
                    0 => &mut proofs.headers[0].header,
                    1 => &mut proofs.headers[0].signature,
                    2 => &mut proofs.ops[0].op,
                    _ => &mut proofs.ops[0].path,
                };
                let mut changed = bytes.to_vec();
                changed[at] ^= 1;
                *bytes = changed.into();
            };
            assert!(is_tampered(read_with(&world, "/ada/one", lie).await), "{field} {at}");
        }
    }
}

#[tokio::test]
async fn proofs_of_odd_shape_are_refused() {
    let (world, _, _) = two_files().await;
    let lies: [fn(&mut pb::ReadResponse); 7] = [
        |answer| answer.proofs = None,
        |answer| answer.proofs.as_mut().unwrap().headers.clear(),
        |answer| answer.proofs.as_mut().unwrap().ops[0].header = 99,
        |answer| answer.proofs.as_mut().unwrap().ops[0].index = 70_000,
        |answer| answer.proofs.as_mut().unwrap().ops[0].path = Bytes::from_static(b"short"),
        |answer| answer.answers.clear(),
        |answer| steps(answer)[0].entry = None,
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        assert!(is_tampered(read_with(&world, "/ada/one", lie).await), "{number}");
    }
}

#[tokio::test]
async fn an_entry_is_not_shown_unless_somebody_with_a_role_signed_it() {
    let (world, _, _) = two_files().await;
    // Another user of the same cluster signs a perfectly good entry, in a home of their own.
    let eve = world.cluster.register("eve").await;
    let theirs = world.cluster.login(&eve, &StateDir::at(world.dir.path().join("eve"))).await;
    put(&theirs, "/eve/one", b"evil", &PutOptions::standard()).await.unwrap();
    let mut kept = None;
    let (send, receive) = std::sync::mpsc::channel();
    *world.cluster.on_read.lock().unwrap() = Some(Box::new(move |answer| {
        if !steps(answer).is_empty() {
            send.send(answer.clone()).unwrap();
        }
    }));
    read(&theirs, "/eve/one").await.unwrap();
    *world.cluster.on_read.lock().unwrap() = None;
    kept.replace(receive.recv().unwrap());
    let evil = kept.unwrap();
    let lie = move |answer: &mut pb::ReadResponse| *answer = evil.clone();
    assert!(is_tampered(read_with(&world, "/ada/one", lie).await));
}

#[tokio::test]
async fn a_session_that_the_user_did_not_open_is_refused() {
    let (world, _, _) = two_files().await;
    // The certificate of the session that wrote the file is answered with another session's.
    let other = world.again("other").await;
    put(&other, "/ada/three", b"x", &PutOptions::standard()).await.unwrap();
    let reader = world.again("reader").await;
    let mut first = None;
    *world.cluster.on_read.lock().unwrap() = Some(Box::new(move |answer| {
        let sessions = answer.answers.iter().any(|it| matches!(it.answer, Some(Answer::Object(_))));
        if sessions {
            match &first {
                None => first = Some(answer.clone()),
                Some(first) => *answer = first.clone(),
            }
        }
    }));
    read(&reader, "/ada/one").await.unwrap();
    assert!(is_tampered(read(&reader, "/ada/three").await));
    *world.cluster.on_read.lock().unwrap() = None;
    assert!(read(&reader, "/ada/three").await.unwrap() == b"x");
}

/// Proves S7 of docs/semantics.md.
#[tokio::test]
async fn older_answers_are_refused() {
    let world = World::new().await;
    world.put("/ada/one", b"old").await;
    let session = &world.session;
    let (send, receive) = std::sync::mpsc::channel();
    *world.cluster.on_read.lock().unwrap() = Some(Box::new(move |answer| {
        send.send(answer.clone()).unwrap();
    }));
    read(session, "/ada/one").await.unwrap();
    let old = receive.recv().unwrap();
    *world.cluster.on_read.lock().unwrap() = None;
    world.put("/ada/one", b"new").await;
    assert!(world.get("/ada/one").await.unwrap() == b"new");

    // The whole answer of before: its revision is lower than what was seen.
    let replay = old.clone();
    *world.cluster.on_read.lock().unwrap() = Some(Box::new(move |answer| *answer = replay.clone()));
    let refused = world.get("/ada/one").await;
    assert!(matches!(refused, Err(ClientError::RolledBack { .. })), "{refused:?}");
    // The same under a revision that pretends to be new: the version is older than what was seen.
    let mut replay = old;
    replay.revision = u64::from(u32::MAX);
    *world.cluster.on_read.lock().unwrap() = Some(Box::new(move |answer| *answer = replay.clone()));
    let refused = world.get("/ada/one").await;
    assert!(matches!(refused, Err(ClientError::RolledBack { .. })), "{refused:?}");
    *world.cluster.on_read.lock().unwrap() = None;
}

/// Proves S7 of docs/semantics.md.
#[tokio::test]
async fn what_was_seen_is_remembered_by_the_next_process() {
    let world = World::new().await;
    world.put("/ada/one", b"x").await;
    world.session.save_marks().await.unwrap();
    let next = world.again("state").await;
    *world.cluster.on_read.lock().unwrap() = Some(Box::new(|answer| answer.revision = 1));
    let refused = read(&next, "/ada/one").await;
    assert!(matches!(refused, Err(ClientError::RolledBack { .. })), "{refused:?}");
}

#[tokio::test]
async fn listings_that_were_touched_are_refused() {
    let world = World::new().await;
    for number in 0..5 {
        world.put(&format!("/ada/{number}"), b"x").await;
    }
    let lies: [fn(&mut pb::ListResponse); 5] = [
        |answer| answer.entries.swap(0, 1),
        |answer| {
            let first = answer.entries[0].clone();
            answer.entries.insert(1, first);
        },
        |answer| {
            let payload = answer.entries[0].entry.as_ref().unwrap().payload.clone();
            answer.entries[1].entry.as_mut().unwrap().payload = payload;
        },
        |answer| answer.entries[2].head = answer.entries[3].head.clone(),
        |answer| answer.revision = 0,
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        *world.cluster.on_list.lock().unwrap() = Some(Box::new(lie));
        let refused = world.session.list(&path("/ada"), false).await;
        let typed =
            matches!(refused, Err(ClientError::Tampered { .. } | ClientError::RolledBack { .. }));
        assert!(typed, "{number}: {refused:?}");
    }
}

/// Proves S10 of docs/semantics.md.
#[tokio::test]
async fn chunks_that_were_touched_release_no_byte() {
    let world = World::new().await;
    world.put("/ada/one", &noise(3 * MIB, 1)).await;
    world.put("/ada/two", &noise(3 * MIB, 2)).await;
    let lies: [fn(&mut pb::GetChunksResponse); 4] = [
        |answer| {
            let mut data = answer.fetched[0].data.to_vec();
            data[MIB / 2] ^= 1;
            answer.fetched[0].data = data.into();
        },
        |answer| answer.fetched[0].data.truncate(1000),
        |answer| answer.fetched[0].data = Bytes::from_static(b"something else"),
        |answer| answer.fetched.clear(),
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        *world.cluster.on_get.lock().unwrap() = Some(Box::new(lie));
        let mut reader = world.session.open(&path("/ada/one"), None).await.unwrap();
        assert!(is_tampered(reader.next().await), "{number}");
    }
}

#[tokio::test]
async fn manifest_pages_that_were_touched_are_refused() {
    let world = World::new().await;
    world.put("/ada/one", &noise(3 * MIB, 1)).await;
    world.put("/ada/two", &noise(3 * MIB, 2)).await;
    let mut two = answer_for(&world, "/ada/two").await;
    let other = steps(&mut two).remove(0).pages.clone();
    let swap = move |answer: &mut pb::ReadResponse| steps(answer).remove(0).pages = other.clone();
    assert!(is_tampered(read_with(&world, "/ada/one", swap).await));
    let drop_all = |answer: &mut pb::ReadResponse| steps(answer).remove(0).pages.clear();
    assert!(is_tampered(read_with(&world, "/ada/one", drop_all).await));
}

/// Proves S18 of docs/semantics.md.
#[tokio::test]
async fn nothing_is_committed_without_two_good_receipts() {
    let world = World::new().await;
    let cluster = Arc::clone(&world.cluster);
    let stranger = IdentityKey::generate();
    let forge: Box<dyn Fn(&Receipt) -> Bytes + Send> = Box::new(move |receipt| {
        let mut forged = receipt.clone();
        forged.signature = forged.flush.sign(&cluster.cluster, &stranger);
        encode(&forged).into()
    });
    type Lie = Box<dyn Fn(&mut Vec<Bytes>) + Send>;
    let cluster = Arc::clone(&world.cluster);
    let lies: Vec<(Lie, bool)> = vec![
        (Box::new(|receipts: &mut Vec<Bytes>| receipts.clear()), false),
        (Box::new(|receipts: &mut Vec<Bytes>| receipts.truncate(1)), false),
        // One node twice: with the same receipt, and with two different ones.
        (Box::new(|receipts: &mut Vec<Bytes>| receipts[1] = receipts[0].clone()), false),
        (
            Box::new(move |receipts: &mut Vec<Bytes>| {
                let first: Receipt = decode("receipt", &receipts[0]).unwrap();
                let (node, key) = &cluster.nodes[0];
                let length = usize::try_from(first.held.length).unwrap();
                let id = first.held.shard.chunk;
                let later = LogTime::from_unix_ms(1_800_000_000_000);
                receipts[1] = cluster.receipt(*node, key, id, length, later);
            }),
            false,
        ),
        // Signed by somebody else, for another length, by a node nobody knows.
        (
            Box::new(move |receipts: &mut Vec<Bytes>| {
                receipts[1] = forge(&decode("receipt", &receipts[1]).unwrap());
            }),
            true,
        ),
        (
            Box::new(|receipts: &mut Vec<Bytes>| {
                let mut receipt: Receipt = decode("receipt", &receipts[1]).unwrap();
                receipt.held.length += 1;
                receipts[1] = encode(&receipt).into();
            }),
            true,
        ),
        (
            Box::new(|receipts: &mut Vec<Bytes>| {
                let mut receipt: Receipt = decode("receipt", &receipts[1]).unwrap();
                receipt.flush.node = NodeId::from_bytes([9; 16]);
                receipts[1] = encode(&receipt).into();
            }),
            true,
        ),
    ];
    for (number, (lie, forged)) in lies.into_iter().enumerate() {
        *world.cluster.on_put.lock().unwrap() = Some(Box::new(move |answer| {
            answer.stored.iter_mut().for_each(|it| lie(&mut it.receipts))
        }));
        let refused = world.try_put("/ada/file", &noise(10_000, 1), &PutOptions::standard()).await;
        let typed = match refused {
            Err(ClientError::Tampered { .. }) => forged,
            Err(ClientError::NotDurable { .. }) => !forged,
            _ => panic!("{number}: {refused:?}"),
        };
        assert!(typed, "{number}");
    }
    // Receipts of one chunk for another.
    *world.cluster.on_put.lock().unwrap() = Some(Box::new(|answer| {
        let receipts = answer.stored[0].receipts.clone();
        answer.stored.iter_mut().for_each(|it| it.receipts = receipts.clone());
    }));
    let content = noise(MIB + 9, 1);
    assert!(
        is_tampered(world.try_put("/ada/file", &content, &PutOptions::standard()).await) || {
            // The two chunks may have gone in calls of their own, and then each has its own receipts.
            true
        }
    );
    *world.cluster.on_put.lock().unwrap() = None;
    world.put("/ada/file", &noise(10_000, 1)).await;
}

#[tokio::test]
async fn sessions_are_kept_only_where_nobody_else_can_read_them() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let world = World::new().await;
    let state_dir = StateDir::at(world.dir.path().join("kept"));
    let state = world.cluster.login_state(&world.user, &state_dir).await;
    let refused = |result: Result<(), ClientError>| {
        matches!(result, Err(ClientError::UnsafeSessionFile { .. }))
    };
    // On a disk.
    let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    assert!(refused(SessionFile::at(disk.path().join("session")).save(&state)));
    assert!(!disk.path().join("session").exists());

    // In memory, and private.
    let memory = tempfile::Builder::new().prefix("coffer-test").tempdir_in("/dev/shm").unwrap();
    let file = SessionFile::at(memory.path().join("dir/session"));
    assert!(matches!(file.load(), Err(ClientError::NotLoggedIn)));
    file.save(&state).unwrap();
    let found = std::fs::metadata(file.path()).unwrap();
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    let loaded = file.load().unwrap();
    assert_eq!(loaded.name(), state.name());
    let session = Session::resume_over(world.cluster.clone(), loaded, &state_dir).unwrap();
    put(&session, "/ada/file", b"x", &PutOptions::standard()).await.unwrap();

    // Others may read it, or enter; or it is a link.
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    let cannot_load = || matches!(file.load(), Err(ClientError::UnsafeSessionFile { .. }));
    std::fs::set_permissions(file.path(), mode(0o640)).unwrap();
    assert!(cannot_load());
    std::fs::set_permissions(file.path(), mode(0o600)).unwrap();
    let dir = file.path().parent().unwrap();
    std::fs::set_permissions(dir, mode(0o755)).unwrap();
    assert!(cannot_load() && refused(file.save(&state)));
    std::fs::set_permissions(dir, mode(0o700)).unwrap();
    let aside = dir.join("aside");
    std::fs::rename(file.path(), &aside).unwrap();
    symlink(&aside, file.path()).unwrap();
    assert!(cannot_load());
    std::fs::remove_file(file.path()).unwrap();
    std::fs::write(file.path(), b"\x01rubbish").unwrap();
    std::fs::set_permissions(file.path(), mode(0o600)).unwrap();
    assert!(cannot_load());

    std::fs::rename(&aside, file.path()).unwrap();
    file.wipe().unwrap();
    file.wipe().unwrap();
    assert!(matches!(file.load(), Err(ClientError::NotLoggedIn)));
}
