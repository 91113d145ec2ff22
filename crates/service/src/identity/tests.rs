#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use super::*;

const A: ClusterId = ClusterId::from_bytes([0xaa; 32]);
const B: ClusterId = ClusterId::from_bytes([0xbb; 32]);

fn open(dir: &Path, cluster: Option<&ClusterId>) -> Result<ProcessIdentity, IdentityError> {
    ProcessIdentity::load_or_create(dir, "worker", cluster)
}

#[test]
fn a_reopened_volume_has_the_same_identity() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(ProcessIdentity::recorded(dir.path()), None);
    let (id, key) = {
        let identity = open(dir.path(), None).unwrap();
        assert_eq!(identity.cluster(), None);
        // It is known without the volume's lock, which is taken here.
        assert_eq!(ProcessIdentity::recorded(dir.path()).as_ref(), Some(identity.peer_id()));
        (*identity.id(), identity.public_key())
    };
    let again = open(dir.path(), None).unwrap();
    assert_eq!((*again.id(), again.public_key()), (id, key));
    assert_eq!(again.role(), "worker");
    let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let other = tempfile::tempdir().unwrap();
    let other = open(other.path(), None).unwrap();
    assert_ne!((*other.id(), other.public_key()), (id, key));
}

#[test]
fn a_signature_verifies_for_its_purpose_and_cluster_only() {
    let dir = tempfile::tempdir().unwrap();
    let identity = open(dir.path(), Some(&A)).unwrap();
    let signature = identity.sign(Domain::Process, &A, b"hello");
    let key = identity.public_key();
    key.verify(Domain::Process, &A, b"hello", &signature).unwrap();
    key.verify(Domain::Process, &B, b"hello", &signature).unwrap_err();
    key.verify(Domain::Receipt, &A, b"hello", &signature).unwrap_err();
}

#[test]
fn a_volume_is_bound_once_and_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let id = {
        let identity = open(dir.path(), None).unwrap();
        identity.bind(&A).unwrap();
        identity.bind(&A).unwrap();
        let refused = identity.bind(&B).unwrap_err();
        assert!(
            matches!(refused, IdentityError::ForeignVolume { expected: B, found: A, .. }),
            "{refused:?}"
        );
        *identity.id()
    };
    let refused = open(dir.path(), Some(&B)).unwrap_err();
    assert!(
        matches!(refused, IdentityError::ForeignVolume { expected: B, found: A, .. }),
        "{refused:?}"
    );
    assert!(refused.to_string().contains("mount the right volume"), "{refused}");
    for cluster in [None, Some(&A)] {
        let identity = open(dir.path(), cluster).unwrap();
        assert_eq!((identity.cluster(), *identity.id()), (Some(A), id));
    }
}

#[test]
fn a_volume_serves_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), None).unwrap();
    let refused = open(dir.path(), None).unwrap_err();
    assert!(matches!(refused, IdentityError::Locked { .. }), "{refused:?}");
    drop(first);
    open(dir.path(), None).unwrap();
}

#[test]
fn a_volume_of_another_role_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), None).unwrap());
    let refused = ProcessIdentity::load_or_create(dir.path(), "keeper", None).unwrap_err();
    assert!(
        matches!(&refused, IdentityError::WrongRole { expected, found, .. }
            if expected == "keeper" && found == "worker"),
        "{refused:?}"
    );
    let refused = ProcessIdentity::load_or_create(dir.path(), "Not A Role", None).unwrap_err();
    assert!(matches!(refused, IdentityError::InvalidRole { .. }), "{refused:?}");
}

/// Goal: no damage goes unnoticed or is papered over. Method: flip every byte and cut at every
/// length, and see that opening fails and the file stays what it was.
#[test]
fn a_damaged_file_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), Some(&A)).unwrap());
    let path = dir.path().join(FILE);
    let good = fs::read(&path).unwrap();
    assert_eq!(good.len(), FILE_BYTES);
    let flipped = (0..good.len()).map(|at| {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        bad
    });
    let cut = (0..good.len()).map(|len| good[..len].to_vec());
    let longer = std::iter::once([&good[..], b"x"].concat());
    for bad in flipped.chain(cut).chain(longer) {
        fs::write(&path, &bad).unwrap();
        let refused = open(dir.path(), Some(&A)).unwrap_err();
        assert!(
            matches!(refused, IdentityError::Corrupt { .. } | IdentityError::UnknownVersion { .. }),
            "{refused:?}"
        );
        assert_eq!(fs::read(&path).unwrap(), bad);
    }
    fs::write(&path, &good).unwrap();
    open(dir.path(), Some(&A)).unwrap();
}

#[test]
fn what_a_crash_left_unfinished_is_not_an_identity() {
    let dir = tempfile::tempdir().unwrap();
    let unfinished = dir.path().join(".identity.0000000000000001.unfinished");
    fs::write(&unfinished, b"half").unwrap();
    open(dir.path(), None).unwrap();
    assert!(!unfinished.exists());
}

/// Version 1 is read for ever.
#[test]
fn version_1_has_these_bytes() {
    let record = Record {
        role: "worker".to_owned(),
        id: [1; 16],
        seed: Zeroizing::new([2; 32]),
        cluster: Some(ClusterId::from_bytes([3; 32])),
    };
    let bytes = record.encode();
    assert_eq!(&bytes[..20], b"COFFERID\x01\x00\x01\x06worker\x00\x00");
    assert_eq!(
        (&bytes[44..60], &bytes[60..92], &bytes[92..124]),
        (&[1; 16][..], &[2; 32][..], &[3; 32][..])
    );
    let decoded = Record::decode(Path::new("identity"), &bytes).unwrap();
    assert_eq!((decoded.role.as_str(), decoded.id, *decoded.seed), ("worker", [1; 16], [2; 32]));
    assert_eq!(decoded.cluster, record.cluster);
}

#[test]
fn debug_tells_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let identity = open(dir.path(), None).unwrap();
    let seed = fs::read(dir.path().join(FILE)).unwrap()[60..92].to_vec();
    let text = format!("{identity:?}");
    let hex: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!text.contains(&hex) && !text.contains(&format!("{seed:?}")), "{text}");
    assert!(text.contains("public_key"));
}
