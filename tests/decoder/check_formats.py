"""Recomputes the vectors of crates/model/testdata from docs/formats, with the parts of decode.py.

    python check_formats.py
"""

import hashlib
import json
import pathlib
import sys

from blake3 import blake3

import decode as d

TESTDATA = pathlib.Path(__file__).resolve().parents[2] / "crates/model/testdata"
FILE = json.loads((TESTDATA / "coffer_v1_formats.json").read_text(encoding="utf-8"))
CLUSTER = bytes.fromhex(FILE["cluster_id"])
VECTORS = {(v["page"], v["name"]): v for v in FILE["vectors"]}
checked = 0


def check(what, found, expected):
    global checked
    checked += 1
    if found != expected:
        sys.exit(f"{what}: {found!r} is not {expected!r}")


def refused(what, attempt):
    try:
        attempt()
    except d.Refused:
        check(what, True, True)
    else:
        sys.exit(f"{what} was not refused")


def of(page, *parts):
    return [v for (p, name), v in VECTORS.items() if p == page and name.startswith(parts)]


def raw(vector, field="encoding"):
    return bytes.fromhex(vector[field])


# Names.
names = VECTORS["ids-and-names.md", "file names"]
for name in names["accepted"]:
    check(name, d.check_file_name(bytes.fromhex(name)).encode().hex(), name)
for name in names["refused"]:
    refused(name, lambda: d.check_file_name(bytes.fromhex(name)))
names = VECTORS["ids-and-names.md", "user names"]
encoded = lambda name: len(name.encode()).to_bytes(4, "little") + name.encode()
for name in names["accepted"]:
    check(name, d.decode(encoded(name), d.user_name), name)
for name in names["refused"]:
    refused(name, lambda: d.decode(encoded(name), d.user_name))
chunk = VECTORS["ids-and-names.md", "chunk id"]
check("chunk id", blake3(raw(chunk, "bytes")).hexdigest(), chunk["chunk_id"])
hashed = VECTORS["ids-and-names.md", "payload hash"]
check("payload hash", d.H("coffer/v1/payload", raw(hashed, "bytes")).hex(), hashed["hash"])

# Leaves: decoded to the last byte, and their hashes, first and after another.
kinds = {
    "entry": "entry",
    "entry, moved": "entry",
    "head": "head",
    "attributes": "attrs",
    "vault": "vault",
    "user": "user",
    "session": "session",
    "staged": "staged",
    "sealed session": "sealed session",
}
for name, kind in kinds.items():
    key, leaf = (raw(VECTORS["objects.md", f"{of}: {name}"]) for of in ("object", "leaf"))
    object_number, read_key, leaf_number, read_leaf = d.KINDS[kind]
    check(name, (key[0], leaf[0]), (object_number, leaf_number))
    changed = d.Change(
        kind, d.decode(key[1:], read_key), None, d.decode(leaf[1:], read_leaf), key[1:], leaf[1:]
    )
    vector = VECTORS["objects.md", f"leaf: {name}"]
    check(name, d.leaf_hash(CLUSTER, changed).hex(), vector["leaf_hash_first"])
    changed = changed._replace(expected=b"\xf0" * 32)
    check(name, d.leaf_hash(CLUSTER, changed).hex(), vector["leaf_hash_after_f0"])

# Ops: decoded, with the hashes of what they set; nothing shorter or longer decodes.
for vector in of("ops.md", "op: "):
    _, changes = d.decode(raw(vector), d.op)
    hashes = [d.leaf_hash(CLUSTER, changed).hex() for changed in changes]
    check(vector["name"], hashes, vector["leaf_hashes"])
    refused(vector["name"], lambda: d.decode(raw(vector) + b"\0", d.op))
    refused(vector["name"], lambda: d.decode(raw(vector)[:-1], d.op))

# Signatures, all of them, and none under another domain.
for (_, name), vector in VECTORS.items():
    if "signed_bytes" in vector:
        message, key, signature = (raw(vector, f) for f in ("signed_bytes", "public_key", "signature"))
        domain, rest = message.split(b"\0", 1)
        check(name, rest[:32], CLUSTER)
        d.verify(key, domain.decode(), CLUSTER, rest[32:], signature)
        refused(name, lambda: d.verify(key, "coffer/v1/sign/process", CLUSTER, rest[32:], signature))

# Headers, op trees and paths.
def tree(leaves):
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return d.tree_node(tree(leaves[:split]), tree(leaves[split:]))


for vector in of("bundles.md", "header, "):
    header = d.decode(raw(vector), d.HEADER)
    leaves = [bytes.fromhex(leaf) for leaf in vector["op_leaves"]]
    check(vector["name"], (len(leaves), tree(leaves)), (header.ops, header.ops_root))
    for index, path in enumerate(vector["op_paths"]):
        path = [bytes.fromhex(sibling) for sibling in path]
        d.verify_inclusion(index, header.ops, leaves[index], path, header.ops_root)
        wrong = leaves[index - 1]
        refused(
            vector["name"],
            lambda: d.verify_inclusion(index, header.ops, wrong, path, header.ops_root),
        )
proof = VECTORS["bundles.md", "op proof"]
check("op proof", d.verify_op(CLUSTER, raw(proof))[1], "rename")
submission = VECTORS["bundles.md", "submission"]
hashed = d.H("coffer/v1/submission", raw(submission)).hex()
check("submission", hashed, submission["submission_hash"])

# Manifests.
for slots, levels in VECTORS["manifests.md", "heights"]["slots_and_height"]:
    check(f"height of {slots}", d.height(slots), levels)
for vector in of("manifests.md", "manifest: "):
    pages = {bytes.fromhex(name): bytes.fromhex(data) for name, data in vector["pages"].items()}
    for name, data in pages.items():
        check(vector["name"], d.H("coffer/v1/manifest-page", data), name)
    shape = d.namedtuple("Shape", "slots root")
    root = vector["root"] and bytes.fromhex(vector["root"])
    found = d.read_manifest(shape(vector["slots"], root), pages)
    if vector["chunks"] == "dense":
        expected = [(n, blake3(n.to_bytes(8, "little")).digest()) for n in range(vector["slots"])]
        check(vector["name"], [(n, slot.chunk) for n, slot in found], expected)
    else:
        expected = [(n, bytes.fromhex(slot)[1:]) for n, slot in vector["chunks"]]
        check(vector["name"], [(n, slot.raw) for n, slot in found], expected)
for vector in of("manifests.md", "refused: "):
    refused(vector["name"], lambda: d.decode(raw(vector, "page_bytes"), d.page))

# The log: leaves, and the frontier's root as the tree's.
leaves = []
for number in range(4):
    (vector,) = of("log.md", f"log entry {number}: ")
    leaves.append(hashlib.sha256(b"\0" + raw(vector)).digest())
    check(vector["name"], leaves[-1].hex(), vector["leaf"])
    frontier = VECTORS["log.md", f"frontier of {number + 1} entries"]
    check(frontier["name"], tree(leaves).hex(), frontier["root"])

# The cluster id, a certificate's name, a receipt's place, a chunk's place.
descriptor = VECTORS["descriptor.md", "descriptor"]
check("cluster id", d.H("coffer/v1/descriptor", raw(descriptor)), CLUSTER)
# What changes a cluster: the next descriptor names the hash of the one before, an invite its secret's.
following = VECTORS["descriptor.md", "next descriptor"]
start = d.Reader(raw(following))
check("next descriptor", (start.u16(), start.u64(), start.option(start.hash)), (1, 1, CLUSTER))
check("its hash", d.H("coffer/v1/descriptor", raw(following)).hex(), following["hash"])
# A lost volume is replaced by the policy: one id and one key change, and the token is known by its hash.
token = VECTORS["descriptor.md", "join token"]
hashed = d.H("coffer/v1/join-token", raw(token, "key"))
check("join token", hashed.hex(), token["hash"])
policy = raw(VECTORS["descriptor.md", "descriptor with a policy"])
check("descriptor with a policy", hashed in policy, True)
replaced = raw(VECTORS["descriptor.md", "replacement of a node"])
start = d.Reader(replaced)
former = d.H("coffer/v1/descriptor", policy)
check("replacement of a node", (start.u16(), start.u64(), start.option(start.hash)), (1, 3, former))
changed = [at for at, (old, new) in enumerate(zip(policy, replaced)) if old != new and at > 43]
check("its one seat", (len(policy), changed[-1] - changed[0] < 48), (len(replaced), True))
signed = d.Reader(raw(VECTORS["layout.md", "layout with a replacement, as it travels"], "value"))
base, _, pairs = signed.bytes(), signed.take(64), signed.list(lambda: (signed.id(), signed.id()))
check("layout with a replacement", base, raw(VECTORS["layout.md", "next layout"]))
check("whom it replaces", pairs, [(b"\x51" * 16, b"\x54" * 16)])
proof = d.Reader(raw(VECTORS["layout.md", "proof of a share"]))
check("proof of a share", (proof.id(), proof.u64(), proof.u64()), (b"\x53" * 16, 2, 7))
release = d.Reader(raw(VECTORS["layout.md", "release"]))
release.u64(), release.id(), release.u64()
chunks = release.list(release.hash)
check("release", chunks, sorted(set(chunks)))
secret = VECTORS["orders.md", "secret of the invite"]
hashed = d.H("coffer/v1/payload", raw(secret, "secret"))
check("secret of the invite", hashed.hex(), secret["payload_hash"])
invite = d.Reader(raw(VECTORS["orders.md", "order: invite"]))
check("order: invite", (invite.u64(), invite.u8(), invite.hash()), (5, 2, hashed))
for number, name in enumerate(
    ["core version", "next descriptor", "next layout", "share proof", "order", "purge"], 3
):
    check(name, raw(VECTORS["log.md", f"system op: {name}"])[0], number)
certificate = VECTORS["sessions.md", "certificate"]
hashed = d.H("coffer/v1/session-certificate", raw(certificate)).hex()
check("certificate", hashed, certificate["certificate_hash"])
held = [raw(vector) for vector in of("receipts.md", "held ")]
flush = raw(VECTORS["receipts.md", "flush"])
check("flush", tree([d.tree_leaf(content) for content in held]), flush[16:48])
layout = d.Reader(raw(VECTORS["layout.md", "layout"]))
version, bits, replicas = layout.u64(), layout.u8(), layout.u8()
nodes, table = layout.list(layout.id), layout.list(layout.u16)
check("layout", (version, len(table)), (1, replicas << bits))
placement = VECTORS["layout.md", "placement"]
partition = int.from_bytes(bytes.fromhex(placement["chunk"])[:2], "big") >> (16 - bits)
check("partition", partition, placement["partition"])
row = table[partition * replicas : (partition + 1) * replicas]
check("holders", [nodes[index].hex() for index in row], placement["holders"])

# Which signatures count, the strange ones included.
decisions = (TESTDATA / "cctv_ed25519_decisions.txt").read_text().splitlines()
for number, case in enumerate(json.loads((TESTDATA / "cctv_ed25519.json").read_text())):
    key, signature = bytes.fromhex(case["key"]), bytes.fromhex(case["sig"])
    try:
        d.verify_message(key, case["msg"].encode(), signature, "edge case")
        decision = "accept"
    except d.Refused:
        decision = "reject"
    check("edge case", f"{number} {decision}", decisions[number])

print(f"{checked} values as the documents say")
