"""Recomputes every vector of coffer_v1.json from its inputs, with `cryptography` (50 or later) and
`blake3` alone. It shares no code with the crate: it is docs/formats/keys-and-sealing.md, executable.

    pip install cryptography blake3
    python check_vectors.py
"""

import json
import pathlib
import struct
import sys

from blake3 import blake3
from cryptography.cobblestone import Cobblestone256Decryptor
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

FILE = json.loads((pathlib.Path(__file__).parent / "coffer_v1.json").read_text())
INPUT, EXPECTED = FILE["inputs"], FILE["expected"]
SUITE = struct.pack("<H", 1)


def raw(name):
    return bytes.fromhex(INPUT[name])


def expand(key, info, length):
    return HKDFExpand(hashes.SHA512(), length, info).derive(key)


def subkey(key, use, length, about=b""):
    return expand(key, b"coffer/v1/key/" + use + b"\0" + about, length)


def siv(key, purpose, place, plaintext):
    return AESSIV(key).encrypt(plaintext, [SUITE, b"coffer/v1/seal/" + purpose, *place])


def padme(length):
    exponent = length.bit_length() - 1
    if exponent < 1:
        return length
    mask = (1 << (exponent - exponent.bit_length())) - 1
    return (length + mask) & ~mask


def frame(encoding):
    plaintext = struct.pack("<I", len(encoding)) + encoding
    return plaintext.ljust(max(64, padme(len(plaintext))), b"\0")


def vec(content):
    return struct.pack("<I", len(content)) + content


CLUSTER, DIRECTORY, INODE = raw("cluster"), raw("directory"), raw("inode")
WRITE, PRINCIPAL, RANDOM = raw("write"), raw("principal"), raw("random")
GENERATION, SLOT = struct.pack("<I", INPUT["generation"]), struct.pack("<Q", INPUT["slot"])
KEY, TAG_KEY, FILE_KEY = raw("directory_key"), raw("directory_tag_key"), raw("file_key")
CHILD = raw("child_directory_key") + raw("child_directory_tag_key")
FORMER = raw("former_directory_key") + raw("former_directory_tag_key")
NAME = INPUT["name"].encode()
found = {}

found["new_file_key"] = subkey(KEY, b"file", 32, WRITE)
found["new_directory_key_and_tag_key"] = subkey(KEY, b"directory", 32, WRITE) + subkey(
    KEY, b"directory-tag", 32, WRITE
)
found["new_inode"] = subkey(KEY, b"inode", 16, WRITE)
committed = SUITE + CLUSTER + DIRECTORY + GENERATION + KEY + TAG_KEY
found["vault_key_commitment"] = blake3(
    committed, derive_key_context="coffer/v1/vault-key-commitment"
).digest()

place = [CLUSTER, DIRECTORY, INODE, GENERATION]
found["wrap_of_directory"] = siv(subkey(KEY, b"wrap", 64), b"entry-directory", place, CHILD)
found["wrap_of_file"] = siv(subkey(KEY, b"wrap", 64), b"entry-file", place, FILE_KEY)
place = [CLUSTER, INODE, INODE, GENERATION]
found["wrap_of_former_directory"] = siv(
    subkey(CHILD[:32], b"wrap-former", 64), b"former-directory", place, FORMER
)
found["wrap_of_former_file"] = siv(
    subkey(FILE_KEY, b"wrap-former", 64), b"former-file", place, raw("former_file_key")
)

recipient = X25519PrivateKey.from_private_bytes(raw("hpke_secret"))
found["hpke_public_key"] = recipient.public_key().public_bytes_raw()
info = b"coffer/v1/hpke/vault-key\0" + SUITE + CLUSTER + DIRECTORY + GENERATION + PRINCIPAL
suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
sealed = bytes.fromhex(EXPECTED["sealed_vault_key"])
assert suite.decrypt(sealed, recipient, info) == KEY + TAG_KEY
found["sealed_vault_key"] = sealed

found["name_tag"] = blake3(NAME, key=TAG_KEY).digest()
bucket = next(size for size in (32, 64, 128, 256) if len(NAME) < size)
padded = (bytes([len(NAME)]) + NAME).ljust(bucket, b"\0")
found["sealed_name"] = RANDOM + siv(
    subkey(KEY, b"name", 64), b"name", [CLUSTER, DIRECTORY, INODE, RANDOM], padded
)

attrs = INPUT["attrs"]
xattrs = sorted((name.encode(), bytes.fromhex(value)) for name, value in attrs["xattrs"].items())
encoding = struct.pack("<IqI", attrs["mode"], attrs["mtime_ns"], len(xattrs))
encoding += b"".join(vec(name) + vec(value) for name, value in xattrs)
found["attrs_plaintext"] = frame(encoding)
found["sealed_attrs"] = RANDOM + siv(
    subkey(FILE_KEY, b"attrs", 64), b"attrs", [CLUSTER, INODE, RANDOM], frame(encoding)
)

version = INPUT["version"]
encoding = struct.pack("<Qq", version["length"], version["mtime_ns"])
encoding += b"\x01" + vec(bytes.fromhex(version["inline"]))
found["version_plaintext"] = frame(encoding)
found["sealed_version"] = siv(
    subkey(FILE_KEY, b"version", 64), b"version", [CLUSTER, INODE, WRITE], frame(encoding)
)

content = bytes(i % 251 for i in range(20_000))
context = SUITE + CLUSTER + INODE + WRITE + SLOT
salt = blake3(context + content, key=subkey(FILE_KEY, b"chunk-salt", 32)).digest(24)
chunk_key = subkey(FILE_KEY, b"chunk", 32)
derived = expand(chunk_key, b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0" + salt + context, 76)
cipher, base, commitment = AESGCM(derived[:32]), derived[32:44], derived[44:]
chunk = salt + commitment
for number in range(len(content) // 16_384 + 1):
    nonce = (int.from_bytes(base) ^ number).to_bytes(12)
    chunk += cipher.encrypt(nonce, content[number * 16_384 : (number + 1) * 16_384], b"")
decryptor = Cobblestone256Decryptor(chunk_key, context)
assert decryptor.update(chunk) + decryptor.finalize() == content
found["sealed_chunk_salt_and_commitment"] = chunk[:56]
found["chunk_id"] = blake3(chunk).digest()

pin = vec(b"bob") + bytes.fromhex(INPUT["pins"]["bob"])
keyring = frame(raw("identity_seed") + raw("hpke_secret") + struct.pack("<I", 1) + pin)
epoch = struct.pack("<Q", INPUT["keyring_epoch"])
wraps = b""
for kind, use, secret in (
    (0, b"keyring-password", raw("export_key")),
    (1, b"keyring-recovery", raw("recovery_code")),
):
    derived = subkey(secret, use, 96)
    wrap = derived[64:] + siv(derived[:64], use, [CLUSTER, PRINCIPAL, RANDOM], raw("keyring_key"))
    wraps += bytes([kind]) + RANDOM + vec(wrap)
sealed = siv(subkey(raw("keyring_key"), b"keyring", 64), b"keyring", [CLUSTER, PRINCIPAL, epoch], keyring)
found["keyring"] = SUITE + epoch + struct.pack("<I", 2) + wraps + vec(sealed)

issued = INPUT["session_issued"]
certificate = SUITE + CLUSTER + PRINCIPAL + Ed25519PrivateKey.from_private_bytes(raw("session_seed")).public_key().public_bytes_raw()
certificate += b"\0" + struct.pack("<QQ", issued, issued + 12 * 3600 * 1000)
identity = Ed25519PrivateKey.from_private_bytes(raw("identity_seed"))
signature = identity.sign(b"coffer/v1/sign/session\0" + CLUSTER + certificate)
kept = raw("session_seed") + raw("hpke_secret") + vec(b"bob") + raw("session_home")
kept += identity.public_key().public_bytes_raw() + certificate + signature
certificate_hash = blake3(certificate, derive_key_context="coffer/v1/session-certificate").digest()
found["session"] = b"\1" + siv(
    subkey(raw("bearer_key"), b"session", 64), b"session", [CLUSTER, certificate_hash], frame(kept)
)

found["argon2id_of_64_zeros"] = Argon2id(
    salt=bytes(16), length=64, iterations=3, lanes=4, memory_cost=64 * 1024
).derive(bytes(64))
found["opaque_context"] = b"coffer/v1/login"
found["opaque_server_identifier"] = b"coffer" + CLUSTER

checksum = blake3(bytes(20), derive_key_context="coffer/v1/recovery-code-checksum").digest()
bits = int.from_bytes(bytes(20) + checksum[:5]) >> 20
code = "".join("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[bits >> 5 * i & 31] for i in reversed(range(36)))
code = "-".join(code[i : i + 4] for i in range(0, 36, 4))

wrong = [name for name, value in found.items() if value.hex() != EXPECTED[name]]
wrong += ["recovery_code_of_zeros"] if code != EXPECTED["recovery_code_of_zeros"] else []
missing = EXPECTED.keys() - found.keys() - {"recovery_code_of_zeros"}
sys.exit(f"wrong: {wrong}, not recomputed: {sorted(missing)}" if wrong or missing else 0)
