"""A JSON reader that knows where each value begins and ends.

Strict JSON readers refuse what Weni passes on: invalid UTF-8, lone surrogates, a key given twice, deep
nesting. None of them tells which bytes an element has.
"""

import math
import re
from dataclasses import dataclass, field

TOKEN = re.compile(
    rb"[ \t\r\n]*(?:(?P<mark>[{}\[\],:])"
    rb'|(?P<string>"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")'
    rb"|(?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![0-9a-zA-Z.+-]))"
    rb"|(?P<literal>true|false|null)(?![0-9a-zA-Z]))"
)
SPACE = re.compile(rb"[ \t\r\n]*")
ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
DEPTH_MAX = 100
SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
SURROGATES = re.compile("([\ud800-\udbff])([\udc00-\udfff])|[\ud800-\udfff]")


class NotJson(ValueError):
    """The bytes are no JSON."""


def utf16_pair(match):
    high, low = match.groups()
    if high is None:
        return "\ufffd"
    return chr(0x10000 + ((ord(high) - 0xD800) << 10) + ord(low) - 0xDC00)


def unescape(literal):
    """The text of a JSON string; what is no text becomes U+FFFD."""
    text = literal[1:-1].decode("utf-8", "replace")
    text = ESCAPE.sub(lambda match: chr(int(match[1], 16)) if match[1] else SHORT.get(match[2], match[2]), text)
    return SURROGATES.sub(utf16_pair, text)


@dataclass
class Node:
    """A JSON value and its place in the body."""

    kind: str  # object, array, string, number, literal
    body: bytes = field(repr=False)
    start: int
    end: int = -1
    children: list = field(default_factory=list)  # (key or index, Node)

    @property
    def bytes(self):
        return self.body[self.start : self.end]

    def all(self, key):
        """Every value given for a key."""
        return [child for name, child in self.children if self.kind == "object" and name == key]

    def get(self, key):
        """The value of a key: the last text, number or flag that is given, else the last but null."""
        given = self.all(key)
        texts = [node for node in given if node.scalar is not None]
        return (texts or [node for node in given if not node.is_null] or given or [None])[-1]

    @property
    def is_null(self):
        return self.bytes == b"null"

    @property
    def scalar(self):
        """The text of a string, or a number or flag as it is written; None for null, objects and arrays."""
        if self.kind in ("object", "array") or self.is_null:
            return None
        return unescape(self.bytes) if self.kind == "string" else self.bytes.decode()

    def text(self, key):
        """The text of a member; '' if it has none."""
        node = self.get(key)
        return (node and node.scalar) or ""

    def inner(self, outer, key):
        """The text of a member of a member."""
        node = self.get(outer)
        return node.text(key) if node else ""

    def first(self, *keys):
        """The first text that is not empty."""
        return next(filter(None, map(self.text, keys)), "")

    def depth(self):
        deepest, stack = 0, [(self, 1)]
        while stack:
            node, level = stack.pop()
            if node.kind in ("object", "array"):
                deepest = max(deepest, level)
                stack += [(child, level + 1) for _, child in node.children]
        return deepest

    def walk(self):
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(child for _, child in node.children)

    def is_strict(self):
        """Whether a strict parser reads its bytes."""
        try:
            text = self.bytes.decode()
        except UnicodeDecodeError:
            return False
        escapes = re.sub(r"\\\\", "-", text)
        escapes = re.sub(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..", "", escapes)
        if re.search(r"\\u[dD][89a-fA-F]", escapes) or self.depth() > DEPTH_MAX:
            return False
        return not any(node.kind == "number" and math.isinf(float(node.bytes)) for node in self.walk())


def parse(body):
    """The tree of a body. Without recursion: nesting may be deep."""
    open_nodes, root, key, expect, at = [], None, None, "value", 0
    while True:
        if expect == "end" and SPACE.match(body, at).end() == len(body):
            return root
        match = TOKEN.match(body, at)
        if match is None or expect == "end":
            raise NotJson(f"at byte {at}")
        at, kind = match.end(), match.lastgroup
        token, start = match[kind], match.start(kind)
        if kind == "mark" and token in b"}]":
            top = open_nodes[-1] if open_nodes else None
            closes = top is not None and (token == b"}") == (top.kind == "object")
            if not closes or expect not in ("more", "key or end", "value or end"):
                raise NotJson(f"at byte {start}")
            if (expect == "key or end") != (token == b"}") and expect != "more":
                raise NotJson(f"at byte {start}")
            open_nodes.pop().end = at
            expect = "more" if open_nodes else "end"
        elif token == b"," and expect == "more":
            expect = "key" if open_nodes[-1].kind == "object" else "value"
        elif token == b":" and expect == "colon":
            expect = "value"
        elif kind == "string" and expect in ("key", "key or end"):
            key, expect = unescape(token), "colon"
        elif expect in ("value", "value or end") and token not in (b",", b":"):
            kind = {b"{": "object", b"[": "array"}.get(token, kind)
            node = Node(kind, body, start, at)
            if open_nodes:
                parent = open_nodes[-1]
                name = key if parent.kind == "object" else len(parent.children)
                parent.children.append((name, node))
            else:
                root = node
            if kind in ("object", "array"):
                open_nodes.append(node)
                expect = "key or end" if kind == "object" else "value or end"
            else:
                expect = "more" if open_nodes else "end"
        else:
            raise NotJson(f"at byte {start}")
