"""Verifies and opens what a Coffer cluster would hand out, from docs/formats alone.

It shares no code with the engine. Primitives come from `cryptography` (AES-GCM, AES-SIV, HKDF,
Ed25519) and `blake3`; everything else is written here as the format pages say it.

    python decode.py fixture.json            opens all files: sha256, length and name of each
    python decode.py fixture.json 'NAME' OUT also writes the bytes of one file to OUT

The exit status is 0 if everything was verified and opened, 1 if anything was refused (nothing is
printed or written of it), 2 if the input is no fixture. The schema is described in README.md.
"""

import hashlib
import json
import struct
import sys
import unicodedata
from collections import namedtuple

from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

SUITE = 1
SUITE_BYTES = struct.pack("<H", SUITE)


class Refused(Exception):
    """Something does not check out. `why` is a single word for tests."""

    def __init__(self, why, text):
        super().__init__(f"{why}: {text}")
        self.why = why


# -- README.md: encoding ---------------------------------------------------------------------------


class Reader:
    """Reads one value from its canonical bytes, all of them."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        if count > len(self.data) - self.at:
            raise Refused("encoding", "the bytes end too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size):
        return int.from_bytes(self.take(size), "little")

    def u8(self):
        return self.number(1)

    def u16(self):
        return self.number(2)

    def u32(self):
        return self.number(4)

    def u64(self):
        return self.number(8)

    def i64(self):
        return int.from_bytes(self.take(8), "little", signed=True)

    def choice(self, count):
        number = self.u8()
        if number >= count:
            raise Refused("encoding", f"number {number} of a choice of {count}")
        return number

    def bool(self):
        return self.choice(2) == 1

    def option(self, read):
        return read() if self.choice(2) else None

    def bytes(self):
        return self.take(self.u32())

    def text(self):
        try:
            return self.bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused("encoding", "text that is not UTF-8") from error

    def list(self, read):
        return [read() for _ in range(self.u32())]

    def id(self):
        return self.take(16)

    def hash(self):
        return self.take(32)


def decode(data, read):
    reader = Reader(data)
    value = read(reader)
    if reader.at != len(data):
        raise Refused("encoding", "bytes are left over")
    return value


def record(shape_name, /, **fields):
    """A structure: a reader that takes the fields in order and keeps its own bytes too."""
    shape = namedtuple(shape_name, [*fields, "raw"])

    def read(reader):
        start = reader.at
        values = [of(reader) for of in fields.values()]
        return shape(*values, raw=reader.data[start : reader.at])

    return read


R = Reader
opt = lambda of: lambda reader: reader.option(lambda: of(reader))
many = lambda of: lambda reader: reader.list(lambda: of(reader))
upto = lambda count: lambda reader: reader.choice(count)

# -- ids-and-names.md ------------------------------------------------------------------------------


def user_name(reader):
    name = reader.text()
    allowed = "abcdefghijklmnopqrstuvwxyz0123456789"
    good = 2 <= len(name) <= 32 and name[0] in allowed and all(c in allowed + "._-" for c in name)
    if not good:
        raise Refused("encoding", "not a user name")
    return name


def check_file_name(data):
    try:
        name = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused("name", "a name that is not UTF-8") from error
    bidirectional = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
    bad = (
        not 1 <= len(data) <= 255
        or name in (".", "..")
        or "/" in name
        or any(unicodedata.category(c) == "Cc" or ord(c) in bidirectional for c in name)
        or unicodedata.normalize("NFC", name) != name
    )
    if bad:
        raise Refused("name", "not a file name")
    return name


CLASS_BYTES = [65_536, 1_048_576]

# -- objects.md ------------------------------------------------------------------------------------

ENTRY_KEY = record("EntryKey", directory=R.id, tag=R.hash)
STAGED_KEY = record("StagedKey", inode=R.id, write=R.id)


def entry_state(reader):
    state = reader.choice(3)
    return ("live", "deleted", "moved")[state], ENTRY_KEY(reader) if state == 2 else None


ENTRY = record(
    "Entry",
    inode=R.id,
    kind=upto(5),
    state=entry_state,
    name=R.hash,
    wrap=R.bytes,
    generation=R.u32,
    adopted_at=R.u64,
)
HEAD = record(
    "Head",
    version=R.u64,
    write=R.id,
    generation=R.u32,
    chunk_class=upto(2),
    slots=R.u64,
    root=opt(R.hash),
    payload=R.hash,
    restored=R.u64,
)
ATTRS = record("Attrs", payload=R.hash, generation=R.u32)
MEMBER = record("Member", principal=R.id, role=upto(3), sealed_key=R.bytes)
VAULT = record(
    "Vault",
    home=R.id,
    epoch=R.u32,
    key_commitment=R.hash,
    members=many(MEMBER),
    former_key=opt(R.bytes),
    gateway_custody=R.bool,
    padding=R.bool,
)
USER = record(
    "User",
    principal=R.id,
    identity=R.hash,
    hpke=R.hash,
    home=R.id,
    custody=upto(2),
    keyring=R.hash,
    keyring_epoch=R.u64,
    login_record=R.hash,
    invite=opt(R.hash),
)
# sessions.md
CERTIFICATE = record(
    "Certificate",
    suite=R.u16,
    cluster=R.hash,
    principal=R.id,
    key=R.hash,
    scope=upto(1),
    issued=R.u64,
    expires=R.u64,
)
SESSION = record("Session", certificate=CERTIFICATE, signature=lambda r: r.take(64), closed=R.bool)
STAGED = record("Staged", directory=R.id, chunk_class=upto(2), slots=R.u64, root=opt(R.hash))
SEALED_SESSION = record("SealedSession", payload=R.hash)

# name: number as object, reader of the key, number as leaf, reader of the leaf
KINDS = {
    "entry": (0, ENTRY_KEY, 0, ENTRY),
    "head": (1, R.id, 1, HEAD),
    "attrs": (2, R.id, 2, ATTRS),
    "vault": (3, R.id, 3, VAULT),
    "user": (4, user_name, 4, USER),
    "session": (6, R.hash, 5, SESSION),
    "staged": (7, STAGED_KEY, 6, STAGED),
    "sealed session": (8, R.hash, 7, SEALED_SESSION),
}

# -- README.md: hashes, signatures, trees ----------------------------------------------------------


def H(domain, data):
    return blake3(data, derive_key_context=domain).digest()


# Encodings of the points of small order, without the sign bit (README.md, "Signatures").
P = 2**255 - 19
_ORDER_8 = int.from_bytes(
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"
)
SMALL_ORDER = {0, 1, P - 1, P, P + 1, _ORDER_8, P - _ORDER_8}


def is_small_order(point):
    return int.from_bytes(point, "little") & (2**255 - 1) in SMALL_ORDER


def verify(key, domain, cluster, data, signature):
    verify_message(key, domain.encode() + b"\0" + cluster + data, signature, domain)


def verify_message(key, message, signature, domain):
    if is_small_order(key) or is_small_order(signature[:32]):
        raise Refused("signature", "a point of small order")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise Refused("signature", domain) from error


def tree_leaf(content):
    return hashlib.sha256(b"\0" + content).digest()


def tree_node(left, right):
    return hashlib.sha256(b"\1" + left + right).digest()


def verify_inclusion(index, size, leaf, path, root):
    """RFC 9162, section 2.1.3.2."""
    if index >= size:
        raise Refused("path", "no such leaf")
    position, last, value = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            raise Refused("path", "too long")
        if position & 1 or position == last:
            value = tree_node(sibling, value)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            value = tree_node(value, sibling)
        position, last = position >> 1, last >> 1
    if last != 0 or value != root:
        raise Refused("path", "does not lead to the signed root")


# -- ops.md ----------------------------------------------------------------------------------------

Change = namedtuple("Change", "kind key expected leaf raw_key raw_leaf")


def change(kind):
    _, read_key, _, read_leaf = KINDS[kind]

    def read(reader):
        start = reader.at
        key = read_key(reader)
        raw_key = reader.data[start : reader.at]
        expected = reader.option(reader.hash)
        start = reader.at
        leaf = read_leaf(reader)
        return Change(kind, key, expected, leaf, raw_key, reader.data[start : reader.at])

    return read


def base(reader):
    return reader.u64() if reader.choice(3) == 1 else None


def head_change(reader):
    found = change("head")(reader)
    base(reader)
    reader.option(reader.u64)
    return found


def op(reader):
    """The name of the op and its changes."""
    number = reader.choice(12)
    if number == 0:
        return "register", [change("user")(reader), change("vault")(reader), change("attrs")(reader)]
    if number == 1:
        return "update user", [change("user")(reader)]
    if number in (2, 3):
        return ("open session", "close session")[number - 2], [change("session")(reader)]
    if number == 4:
        changes = [change("entry")(reader), change("attrs")(reader)]
        head = reader.option(lambda: head_change(reader))
        return "create", changes + ([head] if head else [])
    if number == 5:
        head, attrs = head_change(reader), reader.option(lambda: change("attrs")(reader))
        return "commit", [head] + ([attrs] if attrs else [])
    if number == 6:
        staged = change("staged")(reader)
        base(reader)
        reader.option(reader.u64)
        return "stage", [staged]
    if number == 7:
        return "set attrs", [change("attrs")(reader)]
    if number == 8:
        return "rename", [change("entry")(reader), change("entry")(reader)]
    if number == 9:
        removed = change("entry")(reader)
        reader.bool()
        return "remove", [removed]
    if number == 10:
        return "undelete", [change("entry")(reader)]
    return "seal session", [change("sealed session")(reader)]


def leaf_hash(cluster, changed):
    object_number, _, leaf_number, _ = KINDS[changed.kind]
    former = b"\1" + changed.expected if changed.expected else b"\0"
    return H(
        "coffer/v1/leaf",
        cluster
        + bytes([object_number])
        + changed.raw_key
        + former
        + bytes([leaf_number])
        + changed.raw_leaf,
    )


# -- bundles.md ------------------------------------------------------------------------------------


def author(reader):
    return reader.hash() if reader.choice(2) == 0 else None


HEADER = record(
    "Header",
    cluster=R.hash,
    suite=R.u16,
    principal=R.id,
    session=author,
    key=R.hash,
    vaults=many(R.hash),
    request=R.id,
    not_after=R.u64,
    ops=R.u16,
    ops_root=R.hash,
)
OP_PROOF = record(
    "OpProof",
    header=R.bytes,
    signature=lambda reader: reader.take(64),
    index=R.u16,
    op=R.bytes,
    path=many(R.hash),
)


def verify_op(cluster, data):
    """The header an op was signed under, the op's name and its changes."""
    proof = decode(data, OP_PROOF)
    header = decode(proof.header, HEADER)
    if header.cluster != cluster or header.suite != SUITE:
        raise Refused("cluster", "an op of another cluster or suite")
    verify_inclusion(proof.index, header.ops, tree_leaf(proof.op), proof.path, header.ops_root)
    verify(header.key, "coffer/v1/sign/bundle", cluster, proof.header, proof.signature)
    name, changes = decode(proof.op, op)
    return header, name, changes


def only(changes, kind, wanted=lambda _: True):
    found = [changed for changed in changes if changed.kind == kind and wanted(changed)]
    if len(found) != 1:
        raise Refused("object", f"the op sets no such {kind}")
    return found[0]


# -- keys-and-sealing.md ---------------------------------------------------------------------------


def expand(key, info, length):
    return HKDFExpand(hashes.SHA512(), length, info).derive(key)


def subkey(key, label, length):
    return expand(key, b"coffer/v1/key/" + label.encode() + b"\0", length)


def open_siv(key, label, purpose, place, sealed):
    data = [SUITE_BYTES, b"coffer/v1/seal/" + purpose.encode(), *place]
    if len(sealed) < 16:
        raise Refused("sealed", purpose)
    try:
        return AESSIV(subkey(key, label, 64)).decrypt(sealed, data)
    except InvalidTag as error:
        raise Refused("sealed", purpose) from error


def unframe(plaintext):
    if len(plaintext) < 4:
        raise Refused("encoding", "no frame")
    length = int.from_bytes(plaintext[:4], "little")
    encoding, padding = plaintext[4 : 4 + length], plaintext[4 + length :]
    if len(encoding) != length or any(padding):
        raise Refused("encoding", "a frame that is cut off or not padded with zeros")
    return encoding


def payload(named, data):
    """A detached payload, if it is the one the leaf names."""
    if H("coffer/v1/payload", data) != named:
        raise Refused("payload", "not the one that was signed")
    return data


def open_name(keys, directory, inode, sealed, tag):
    place = [keys.cluster, directory, inode, sealed[:16]]
    padded = open_siv(keys.directory_key, "name", "name", place, sealed[16:])
    length = padded[0]
    name, zeros = padded[1 : 1 + length], padded[1 + length :]
    bucket = next(size for size in (32, 64, 128, 256) if length + 1 <= size)
    if len(padded) != bucket or any(zeros):
        raise Refused("name", "not padded as it must be")
    text = check_file_name(name)
    if blake3(name, key=keys.directory_tag_key).digest() != tag:
        raise Refused("name", "not the name the entry stands under")
    return text


def open_chunk(keys, file_key, inode, write, slot, sealed):
    """C2SP chunked encryption, SHA-512 and AES-256-GCM."""
    context = SUITE_BYTES + keys.cluster + inode + write + struct.pack("<Q", slot)
    salt, commitment, frames = sealed[:24], sealed[24:56], sealed[56:]
    scheme = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0"
    derived = expand(subkey(file_key, "chunk", 32), scheme + salt + context, 76)
    cipher, nonce, expected = AESGCM(derived[:32]), derived[32:44], derived[44:]
    if commitment != expected:
        raise Refused("chunk", "sealed under another key or for another place")
    plaintext, number, frame_bytes = [], 0, 16_384 + 16
    while True:
        frame = frames[number * frame_bytes : (number + 1) * frame_bytes]
        frame_nonce = int.from_bytes(nonce, "big") ^ number
        if len(frame) < 16:
            raise Refused("chunk", "cut off")
        try:
            plaintext.append(cipher.decrypt(frame_nonce.to_bytes(12, "big"), frame, None))
        except InvalidTag as error:
            raise Refused("chunk", f"frame {number} does not open") from error
        if len(frame) < frame_bytes:
            break
        number += 1
    plaintext = b"".join(plaintext)
    salt_key = subkey(file_key, "chunk-salt", 32)
    if blake3(context + plaintext, key=salt_key).digest(length=24) != salt:
        # Not needed to trust the content; it shows that sealing is a function of write and content.
        raise Refused("chunk", "the salt is not the one this content gives")
    return plaintext


# -- manifests.md ----------------------------------------------------------------------------------

SLOT_CHUNK = record(
    "SlotChunk", chunk=R.hash, length=R.u32, write=R.id, generation=R.u32, scheme=upto(1)
)


def slot(reader):
    return SLOT_CHUNK(reader) if reader.choice(2) else None


def page(reader):
    kind = reader.choice(2)
    items = reader.list((lambda: slot(reader)) if kind == 0 else lambda: reader.option(reader.hash))
    if not 1 <= len(items) <= 64 or items[-1] is None:
        raise Refused("manifest", "a page that is not in its canonical form")
    return kind, items


def height(slots):
    levels = 0
    while 64**levels < slots:
        levels += 1
    return max(levels, 1) if slots else 0


def read_manifest(head, pages):
    """The chunks of a version: slot number and slot."""
    if head.slots > 2**40:
        raise Refused("manifest", "too many slots")
    found = []

    def walk(name, level, start):
        if name is None or start >= head.slots:
            return
        if level == 0 or name not in pages:
            raise Refused("manifest", "a page is missing")
        kind, items = decode(pages[name], page)
        if (kind == 0) != (level == 1):
            raise Refused("manifest", "a page in the wrong place")
        for number, item in enumerate(items):
            first = start + number * 64 ** (level - 1)
            if kind == 1:
                walk(item, level - 1, first)
            elif item is not None and first < head.slots:
                found.append((first, item))

    walk(head.root, height(head.slots), 0)
    return found


# -- a whole file ----------------------------------------------------------------------------------

Keys = namedtuple("Keys", "cluster identity principal directory directory_key directory_tag_key")
Opened = namedtuple("Opened", "name kind mode mtime_ns xattrs version length content")


class Cluster:
    """What is known before any file is opened: a user, a session, a directory with its keys."""

    def __init__(self, fixture):
        self.keys = Keys(*(bytes.fromhex(fixture["keys"][field]) for field in Keys._fields))
        self.chunks = {bytes.fromhex(k): bytes.fromhex(v) for k, v in fixture["chunks"].items()}
        cluster = self.keys.cluster

        # The user is the pinned one, and signed the record with the identity it names.
        header, name, changes = verify_op(cluster, bytes.fromhex(fixture["user"]))
        user = only(changes, "user").leaf
        if (user.identity, user.principal) != (self.keys.identity, self.keys.principal):
            raise Refused("author", "not the pinned user")
        if name != "register" or header.session or header.key != user.identity:
            raise Refused("author", "the user's record is not signed by the user")

        # The directory is the root of the user's vault, and the keys are the ones it commits to.
        vault = only(changes, "vault", lambda changed: changed.key == self.keys.directory).leaf
        committed = (
            SUITE_BYTES
            + cluster
            + self.keys.directory
            + struct.pack("<I", vault.epoch)
            + self.keys.directory_key
            + self.keys.directory_tag_key
        )
        if H("coffer/v1/vault-key-commitment", committed) != vault.key_commitment:
            raise Refused("key", "not the directory key the vault's record commits to")
        self.vault = vault

        # The session is vouched for by the identity.
        header, name, changes = verify_op(cluster, bytes.fromhex(fixture["session"]))
        opened = only(changes, "session")
        session = opened.leaf
        certificate = session.certificate
        verify(
            self.keys.identity,
            "coffer/v1/sign/session",
            cluster,
            certificate.raw,
            session.signature,
        )
        named = H("coffer/v1/session-certificate", certificate.raw)
        fits = (
            name == "open session"
            and header.key == self.keys.identity
            and certificate.suite == SUITE
            and certificate.cluster == cluster
            and certificate.principal == self.keys.principal
            and named == opened.key
            and not session.closed
        )
        if not fits:
            raise Refused("author", "not a session of the user")
        self.session, self.session_hash = certificate, named

    def signed(self, data):
        """The changes of an op that somebody signed who may write here."""
        header, _, changes = verify_op(self.keys.cluster, bytes.fromhex(data))
        if header.session != self.session_hash or header.key != self.session.key:
            raise Refused("author", "not signed under the user's session")
        role = [m.role for m in self.vault.members if m.principal == header.principal]
        if header.principal != self.session.principal or not role or role[0] < 1:
            raise Refused("author", "may not write here")
        return changes

    def open(self, file):
        keys = self.keys
        raw = lambda field: bytes.fromhex(file[field])

        # The entry: where it stands, what it points at, its name and the key of what it points at.
        is_live_here = lambda c: c.key.directory == keys.directory and c.leaf.state[0] == "live"
        entry = only(self.signed(file["entry"]), "entry", is_live_here)
        inode, kind = entry.leaf.inode, entry.leaf.kind
        sealed_name = payload(entry.leaf.name, raw("name"))
        name = open_name(keys, keys.directory, inode, sealed_name, entry.key.tag)
        if entry.leaf.generation != self.vault.epoch:
            raise Refused("key", "wrapped under a directory key of another generation")
        generation = struct.pack("<I", entry.leaf.generation)
        place = [keys.cluster, keys.directory, inode, generation]
        file_key = open_siv(keys.directory_key, "wrap", "entry-file", place, entry.leaf.wrap)
        if len(file_key) != 32 or kind not in (1, 2):
            raise Refused("key", "not the key of a file or symlink")

        # Mode and attributes.
        of_inode = lambda changed: changed.key == inode
        attrs = only(self.signed(file["attrs"]), "attrs", of_inode).leaf
        sealed = payload(attrs.payload, raw("attrs_payload"))
        place = [keys.cluster, inode, sealed[:16]]
        opened = unframe(open_siv(file_key, "attrs", "attrs", place, sealed[16:]))
        pair = lambda reader: (reader.bytes(), reader.bytes())
        mode, attrs_mtime, xattrs = decode(opened, lambda r: (r.u32(), r.i64(), many(pair)(r)))

        # The version, and that it replaced the one before.
        head = only(self.signed(file["head"]), "head", of_inode)
        if file["head_former"] is None:
            if head.expected is not None:
                raise Refused("chain", "there is a version before")
        else:
            former = only(self.signed(file["head_former"]), "head", of_inode)
            if head.expected != leaf_hash(keys.cluster, former):
                raise Refused("chain", "it does not follow the version before")
            if head.leaf.version != former.leaf.version + 1:
                raise Refused("chain", "versions are counted one by one")
        sealed = payload(head.leaf.payload, raw("head_payload"))
        place = [keys.cluster, inode, head.leaf.write]
        opened = unframe(open_siv(file_key, "version", "version", place, sealed))
        length, mtime, inline = decode(opened, lambda r: (r.u64(), r.i64(), r.option(r.bytes)))

        content = self.content(file, file_key, inode, head.leaf, length, inline)
        mtime = attrs_mtime if kind == 2 else mtime
        kind = ("directory", "file", "symlink")[kind]
        return Opened(name, kind, mode, mtime, xattrs, head.leaf.version, length, content)

    def content(self, file, file_key, inode, head, length, inline):
        if inline is not None:
            if len(inline) != length or len(inline) > 4096 or head.root is not None:
                raise Refused("version", "inline content of another length, or chunks beside it")
            return inline
        class_bytes = CLASS_BYTES[head.chunk_class]
        if head.slots != -(-length // class_bytes):
            raise Refused("version", "the length does not fit the number of slots")
        pages = {}
        for data in map(bytes.fromhex, file["pages"]):
            pages[H("coffer/v1/manifest-page", data)] = data
        content = bytearray(length)
        for number, found in read_manifest(head, pages):
            sealed = self.chunks.get(found.chunk)
            if sealed is None:
                raise Refused("chunk", "missing")
            if blake3(sealed).digest() != found.chunk or len(sealed) != found.length:
                raise Refused("chunk", "not the bytes its id names")
            plaintext = open_chunk(self.keys, file_key, inode, found.write, number, sealed)
            start = number * class_bytes
            covered = min(class_bytes, length - start)
            if len(plaintext) < covered or any(plaintext[covered:]):
                raise Refused("chunk", "too short for its slot, or padded with something")
            content[start : start + covered] = plaintext[:covered]
        return bytes(content)


def main(arguments):
    if not 1 <= len(arguments) <= 3 or len(arguments) == 2:
        print(__doc__, file=sys.stderr)
        return 2
    with open(arguments[0], encoding="utf-8") as file:
        fixture = json.load(file)
    if fixture.get("format") != 1:
        print("this is no fixture of format 1", file=sys.stderr)
        return 2
    try:
        cluster = Cluster(fixture)
        opened = [cluster.open(file) for file in fixture["files"]]
    except Refused as refused:
        print(f"refused: {refused}", file=sys.stderr)
        return 1
    for file in opened:
        digest = hashlib.sha256(file.content).hexdigest()
        print(f"{digest}  {file.length}  {file.kind}  {file.mode:04o}  {file.name}")
        if arguments[1:] and file.name == arguments[1]:
            with open(arguments[2], "wb") as out:
                out.write(file.content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
