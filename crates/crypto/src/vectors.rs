//! The vectors of `docs/formats/keys-and-sealing.md`: fixed inputs, expected bytes.
//! `UPDATE_EXPECT=1` writes the file anew.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use coffer_model::id::{ClusterId, InodeId, PrincipalId, WriteId};
use serde_json::{Map, Value, json};

use crate::chunk::{ChunkContext, seal_chunk};
use crate::content::{Attrs, Mode, VersionInfo, Xattrs};
use crate::hpke::{HpkeSecret, VaultKeyContext, open_vault_key, seal_vault_key};
use crate::keyring::{self, KeyringOwner, RecoveryCode};
use crate::keys::ChildSecret;
use crate::keys::tests::{directory, file};
use crate::login::{self, CONTEXT, server_identifier};
use crate::names::NameContext;
use crate::padding::Padding;
use crate::plaintext::Plaintext;
use crate::seal::{AttrsContext, VersionContext, seal_attrs, seal_version};
use crate::session;
use crate::wrap::{FormerContext, WrapContext};

const CLUSTER: ClusterId = ClusterId::from_bytes([0x01; 32]);
const DIRECTORY: InodeId = InodeId::from_bytes([0x02; 16]);
const INODE: InodeId = InodeId::from_bytes([0x03; 16]);
const WRITE: WriteId = WriteId::from_bytes([0x04; 16]);
const PRINCIPAL: PrincipalId = PrincipalId::from_bytes([0x05; 16]);
const OWNER: KeyringOwner = KeyringOwner { cluster: CLUSTER, principal: PRINCIPAL };
const RANDOM: [u8; 16] = [0x06; 16];
/// Generation of the directory's key, epoch of the vault.
const GENERATION: u32 = 7;
const SLOT: u64 = 8;
const DIRECTORY_KEY: u8 = 0x11;
const CHILD_KEY: u8 = 0x22;
const FILE_KEY: u8 = 0x33;
const FORMER_KEY: u8 = 0x44;
const HPKE_SECRET: [u8; 32] = [0x55; 32];
const NAME: &str = "grün.txt";

fn inputs() -> Value {
    json!({
        "cluster": CLUSTER.to_string(),
        "directory": DIRECTORY.to_string(),
        "inode": INODE.to_string(),
        "write": WRITE.to_string(),
        "principal": PRINCIPAL.to_string(),
        "random": hex::encode(RANDOM),
        "generation": GENERATION,
        "slot": SLOT,
        "directory_key": hex::encode([DIRECTORY_KEY; 32]),
        "directory_tag_key": hex::encode([!DIRECTORY_KEY; 32]),
        "child_directory_key": hex::encode([CHILD_KEY; 32]),
        "child_directory_tag_key": hex::encode([!CHILD_KEY; 32]),
        "file_key": hex::encode([FILE_KEY; 32]),
        "former_directory_key": hex::encode([FORMER_KEY; 32]),
        "former_directory_tag_key": hex::encode([!FORMER_KEY; 32]),
        "former_file_key": hex::encode([FORMER_KEY; 32]),
        "hpke_secret": hex::encode(HPKE_SECRET),
        "identity_seed": hex::encode([0x66; 32]),
        "keyring_key": hex::encode([0x77; 32]),
        "keyring_epoch": 9,
        "export_key": hex::encode([0x88; 64]),
        "recovery_code": hex::encode([0x99; 20]),
        "pins": { "bob": hex::encode([0xaa; 32]) },
        "session_seed": hex::encode([0xbb; 32]),
        "bearer_key": hex::encode([0xcc; 32]),
        "session_home": hex::encode([0xdd; 16]),
        "session_issued": 1_800_000_000_000_u64,
        "name": NAME,
        "attrs": {
            "mode": 0o640,
            "mtime_ns": -1,
            "xattrs": { "user.a": hex::encode("1"), "user.b": "" },
        },
        "version": { "length": 5, "mtime_ns": 1_700_000_000_000_000_000_i64, "inline": hex::encode("hello") },
        "chunk": "20,000 bytes, byte i = i mod 251",
    })
}

/// Everything that comes out the same each time.
fn outputs() -> Map<String, Value> {
    let parent = directory(DIRECTORY_KEY);
    let key = file(FILE_KEY);
    let wrap = WrapContext {
        cluster: CLUSTER,
        directory: DIRECTORY,
        child: INODE,
        generation: GENERATION,
    };
    let former = FormerContext { cluster: CLUSTER, inode: INODE, generation: GENERATION };
    let name_context = NameContext { cluster: CLUSTER, directory: DIRECTORY, inode: INODE };
    let name = NAME.parse().unwrap();
    let mut xattrs = Xattrs::default();
    xattrs.insert(b"user.a", b"1").unwrap();
    xattrs.insert(b"user.b", b"").unwrap();
    let attrs =
        Attrs { mode: Mode::from_bits(0o640), mtime_ns: -1, xattrs }.encode(Padding::Bucket);
    let inline = Some(Plaintext::from(b"hello".to_vec()));
    let version = VersionInfo { length: 5, mtime_ns: 1_700_000_000_000_000_000, inline };
    let version = version.encode(Padding::Bucket).unwrap();
    let content: Vec<u8> = (0u8..251).cycle().take(20_000).collect();
    let chunk_context = ChunkContext { cluster: CLUSTER, inode: INODE, write: WRITE, slot: SLOT };
    let chunk = seal_chunk(&key, &chunk_context, &content).unwrap();
    let new_directory = parent.directory_for(&WRITE).to_plaintext();
    let attrs_context = AttrsContext { cluster: CLUSTER, inode: INODE };
    let version_context = VersionContext { cluster: CLUSTER, inode: INODE, write: WRITE };

    let wrap_of = |child| hex::encode(parent.wrap(&wrap, &child));
    let rows = [
        ("new_file_key", hex::encode(parent.file_key_for(&WRITE).to_plaintext())),
        ("new_directory_key_and_tag_key", hex::encode(new_directory)),
        ("new_inode", parent.inode_for(&WRITE).to_string()),
        ("vault_key_commitment", parent.commitment(&CLUSTER, &DIRECTORY, GENERATION).to_string()),
        ("wrap_of_directory", wrap_of(ChildSecret::Directory(directory(CHILD_KEY)))),
        ("wrap_of_file", wrap_of(ChildSecret::File(file(FILE_KEY)))),
        (
            "wrap_of_former_directory",
            hex::encode(directory(CHILD_KEY).wrap_former(&former, &directory(FORMER_KEY))),
        ),
        ("wrap_of_former_file", hex::encode(key.wrap_former(&former, &file(FORMER_KEY)))),
        (
            "hpke_public_key",
            format!("{:?}", HpkeSecret::from_secret_bytes(&HPKE_SECRET).public_key()),
        ),
        ("name_tag", parent.name_tag(&name).to_string()),
        ("sealed_name", hex::encode(parent.seal_name(&name_context, &RANDOM, &name))),
        ("attrs_plaintext", hex::encode(&attrs)),
        ("sealed_attrs", hex::encode(seal_attrs((&key).into(), &attrs_context, &RANDOM, &attrs))),
        ("version_plaintext", hex::encode(&version)),
        ("sealed_version", hex::encode(seal_version(&key, &version_context, &version))),
        ("chunk_id", chunk.id().to_string()),
        ("sealed_chunk_salt_and_commitment", hex::encode(&chunk.bytes()[..56])),
        ("keyring", hex::encode(keyring::tests::vector(&OWNER, RANDOM).encode())),
        ("session", hex::encode(session::tests::vector(CLUSTER, PRINCIPAL))),
        ("argon2id_of_64_zeros", hex::encode(login::tests::stretched_zeros())),
        ("recovery_code_of_zeros", RecoveryCode::from_bytes([0; 20]).to_text().to_string()),
        ("opaque_context", hex::encode(CONTEXT)),
        ("opaque_server_identifier", hex::encode(server_identifier(&CLUSTER))),
    ];
    rows.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect()
}

fn vault_key_context() -> VaultKeyContext {
    VaultKeyContext { cluster: CLUSTER, vault: DIRECTORY, epoch: GENERATION, principal: PRINCIPAL }
}

fn sealed_vault_key() -> Value {
    let recipient = HpkeSecret::from_secret_bytes(&HPKE_SECRET).public_key();
    let sealed =
        seal_vault_key(&recipient, &vault_key_context(), &directory(DIRECTORY_KEY)).unwrap();
    hex::encode(sealed).into()
}

#[test]
fn formats_stay_as_they_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/coffer_v1.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    let mut found = outputs();
    // HPKE is randomised: what was sealed once is kept.
    let sealed = file["expected"].get("sealed_vault_key").cloned();
    found.insert("sealed_vault_key".to_owned(), sealed.unwrap_or_else(sealed_vault_key));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let file = json!({ "inputs": inputs(), "expected": found });
        std::fs::write(path, serde_json::to_string_pretty(&file).unwrap() + "\n").unwrap();
        return;
    }
    assert_eq!(file["inputs"], inputs());
    assert_eq!(file["expected"], Value::from(found));
}

#[test]
fn a_vault_key_that_was_sealed_once_opens_for_ever() {
    let file: Value = serde_json::from_str(include_str!("../testdata/coffer_v1.json")).unwrap();
    let sealed = hex::decode(file["expected"]["sealed_vault_key"].as_str().unwrap()).unwrap();
    let parent = directory(DIRECTORY_KEY);
    let commitment = parent.commitment(&CLUSTER, &DIRECTORY, GENERATION);
    let recipient = HpkeSecret::from_secret_bytes(&HPKE_SECRET);
    let opened = open_vault_key(&recipient, &vault_key_context(), &commitment, &sealed).unwrap();
    assert!(*opened.to_plaintext() == *parent.to_plaintext());
}
