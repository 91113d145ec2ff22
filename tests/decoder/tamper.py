"""Makes copies of a fixture that must be refused, each with one thing wrong.

    python tamper.py fixture.json DIRECTORY

Writes DIRECTORY/<number>-<why>.json for every case, <why> being the word the decoder must refuse it
with, and prints one line for each: file, why, what is wrong.
"""

import copy
import json
import pathlib
import sys


def flip(text, at):
    """Changes one bit of byte `at` of a hexadecimal string; a negative place counts from the end."""
    data = bytearray.fromhex(text)
    data[at] ^= 1
    return data.hex()


def flipped(field, at, number=0):
    def change(fixture):
        fixture["files"][number][field] = flip(fixture["files"][number][field], at)

    return change


def flipped_chunk(at):
    def change(fixture):
        largest = max(fixture["chunks"], key=lambda name: len(fixture["chunks"][name]))
        fixture["chunks"][largest] = flip(fixture["chunks"][largest], at)

    return change


def flipped_key(field):
    def change(fixture):
        fixture["keys"][field] = flip(fixture["keys"][field], 0)

    return change


def swapped(field, left=0, right=2):
    def change(fixture):
        files = fixture["files"]
        files[left][field], files[right][field] = files[right][field], files[left][field]

    return change


def setting(number, field, value):
    def change(fixture):
        fixture["files"][number][field] = value

    return change


def swapped_chunks(fixture):
    left, right, *_ = sorted(fixture["chunks"])
    chunks = fixture["chunks"]
    chunks[left], chunks[right] = chunks[right], chunks[left]


def lost_chunk(fixture):
    del fixture["chunks"][min(fixture["chunks"])]


def longer_path(fixture):
    """One hash more at the end of an op's path: the number of hashes stands before two of them."""
    entry = bytearray.fromhex(fixture["files"][0]["entry"])
    assert entry[-68:-64] == (2).to_bytes(4, "little")
    entry[-68] = 3
    fixture["files"][0]["entry"] = (entry + entry[-32:]).hex()


def left_over(fixture):
    fixture["files"][0]["entry"] += "00"


def other_record_as_session(fixture):
    fixture["session"] = fixture["user"]


def signature_at(fixture):
    """Where the signature stands in an op proof: behind the header, which has its length in front."""
    return 4 + int.from_bytes(bytes.fromhex(fixture["files"][0]["entry"][:8]), "little")


def cases(fixture):
    signature = signature_at(fixture)
    yield "chunk", "a flipped byte in a chunk's salt", flipped_chunk(0)
    yield "chunk", "a flipped byte in a chunk's commitment", flipped_chunk(24)
    yield "chunk", "a flipped byte in a chunk's first frame", flipped_chunk(1000)
    yield "chunk", "a flipped byte in a chunk's last tag", flipped_chunk(-1)
    yield "chunk", "two chunks under each other's ids", swapped_chunks
    yield "chunk", "a chunk that is not there", lost_chunk
    yield "payload", "the sealed names of two entries swapped", swapped("name")
    yield "payload", "a flipped byte in a sealed name", flipped("name", 20)
    yield "payload", "a flipped byte in the sealed attributes", flipped("attrs_payload", 20)
    yield "payload", "a flipped byte in the sealed version", flipped("head_payload", 0)
    yield "payload", "the versions of two files swapped", swapped("head_payload")
    yield "object", "the head of another file", swapped("head")
    yield "object", "the attributes of another file", swapped("attrs")
    yield "path", "a flipped byte in an op's path", flipped("entry", -1)
    yield "path", "a path that is too long", longer_path
    yield "path", "a flipped byte in an op", flipped("entry", signature + 64 + 2 + 4 + 60)
    yield "signature", "a flipped byte in R", flipped("entry", signature)
    yield "signature", "a flipped byte in S", flipped("entry", signature + 32)
    yield "signature", "another request id in the header", flipped("entry", 4 + 115 + 4)
    yield "encoding", "a byte behind an op proof", left_over
    yield "manifest", "a flipped byte in a page", lambda f: f["files"][0].update(
        pages=[flip(f["files"][0]["pages"][0], 30)]
    )
    yield "manifest", "an inner page that is not there", lambda f: f["files"][1]["pages"].pop()
    yield "chain", "the version before left out", setting(1, "head_former", None)
    yield "chain", "another op as the version before", lambda f: f["files"][1].update(
        head_former=f["files"][1]["head"]
    )
    yield "key", "another directory key", flipped_key("directory_key")
    yield "key", "another tag key", flipped_key("directory_tag_key")
    yield "author", "another pinned identity", flipped_key("identity")
    yield "cluster", "another cluster", flipped_key("cluster")
    yield "object", "the user's record in place of the session", other_record_as_session
    for lie in fixture["refused"]:
        yield lie["why"], lie["what"], lambda f, lie=lie: f["files"].insert(0, lie["file"])


def main(source, target):
    fixture = json.loads(pathlib.Path(source).read_text(encoding="utf-8"))
    for number, (why, what, change) in enumerate(cases(fixture), 1):
        tampered = copy.deepcopy(fixture)
        change(tampered)
        assert tampered != fixture, what
        path = pathlib.Path(target) / f"{number:02}-{why}.json"
        path.write_text(json.dumps(tampered), encoding="utf-8")
        print(f"{path}\t{why}\t{what}")


if __name__ == "__main__":
    main(*sys.argv[1:])
