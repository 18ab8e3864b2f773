#!/usr/bin/env python3
"""Prints bodies, each on one line with the updates that Python's parser finds in it. The test
`what_python_reads_as_updates_we_read_too` in src/normalize/tests.rs compares them with the edge's.

The bodies are the fixtures, the inputs that fuzzing kept, and both with random edits. Bodies that Python's
parser refuses are left out. So are objects with a name given twice: Python keeps one value, the edge reads all
arrays.

    read_by_python.py [SEED]
"""

import itertools
import json
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EDITS = 50_000
# Bytes that mean something to a parser are inserted more often.
TELLING = b'{}[]",:\\/ \t\n0-eEu\xed\xa0\xff'


def known_bodies():
    directories = [ROOT / "tests/fixtures/callbacks", ROOT / "fuzz/corpus/normalize"]
    return [file.read_bytes() for directory in directories for file in sorted(directory.iterdir())]


def edited(body, chance):
    """The body with up to three bytes replaced, inserted or removed, or a piece of it moved."""
    body = bytearray(body)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(body) + 1)
        byte = chance.choice([bytes([chance.choice(TELLING)]), chance.randbytes(1)])
        to = chance.choice([at, at, at + 1, chance.randrange(at, len(body) + 1)])
        body[at:to] = chance.choice([byte, byte, b"", body[at:to] * 2])
    return bytes(body)


def refuse(*_):
    raise ValueError


def once(members):
    names = dict(members)
    return names if len(names) == len(members) else refuse()


def repaired(text):
    """Half a surrogate pair, which Python keeps, is U+FFFD to us."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def array(value, name):
    found = value.get(name) if isinstance(value, dict) else None
    return enumerate(found if isinstance(found, list) else [])


def updates(callback):
    for i, entry in array(callback, "entry"):
        for j, change in array(entry, "changes"):
            value = change.get("value") if isinstance(change, dict) else None
            for k, status in array(value, "statuses"):
                texts = [status.get("id"), status.get("status")] if isinstance(status, dict) else [None]
                if all(isinstance(text, str) for text in texts):
                    pointer = f"/entry/{i}/changes/{j}/value/statuses/{k}"
                    yield [pointer, *map(repaired, texts)]


def main(seed="1"):
    chance = random.Random(seed)
    known = known_bodies()
    edits = (edited(chance.choice(known), chance) for _ in range(EDITS))
    for body in itertools.chain(known, edits):
        try:
            callback = json.loads(body.decode(), object_pairs_hook=once, parse_constant=refuse)
        except (ValueError, RecursionError):
            continue
        if found := list(updates(callback)):
            print(json.dumps([body.hex(), found]))


main(*sys.argv[1:])
