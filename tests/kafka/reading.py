"""Reads a callback's body as the contract says, on its own: no code and no idea of the edge's is used.

Strict JSON readers refuse what Weni sends on (invalid UTF-8, lone surrogates, a key given twice, deep
nesting), and none tells which bytes an element has. So this is a reader of its own: every node knows
where it begins and ends.
"""

import hashlib
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
        """The value of a key: the last one given."""
        return (self.all(key) or [None])[-1]

    def object(self, key):
        return next((node for node in reversed(self.all(key)) if node.kind == "object"), None)

    def items(self, key):
        """The elements of all arrays given for a key."""
        return [item for node in self.all(key) if node.kind == "array" for _, item in node.children]

    def text(self, key):
        """A scalar as text: strings as they are, other values as they are written, none as ''."""
        node = self.get(key)
        if node is None or node.bytes == b"null":
            return ""
        if node.kind == "string":
            return unescape(node.bytes)
        return node.bytes.decode("utf-8", "replace")

    def walk(self):
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(child for _, child in node.children)


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


def resolve(root, pointer):
    """All nodes that a JSON pointer may mean (a key may be given twice)."""
    nodes = [root] if pointer[:1] in ("", "/") else []
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        found = []
        for node in nodes:
            found += node.all(name)
            if node.kind == "array" and name.isdigit() and int(name) < len(node.children):
                found.append(node.children[int(name)][1])
        arrays = [node for node in found if node.kind == "array"]
        if len(arrays) > 1:  # repeated arrays may be counted through
            joined = Node("array", root.body, -1)
            items = [item for node in arrays for _, item in node.children]
            joined.children = list(enumerate(items))
            found.append(joined)
        nodes = found
    return nodes


def part(event, name):
    """An object within an event; an empty one if it is none."""
    value = event.get(name)
    return value if isinstance(value, dict) else {}


@dataclass
class Where:
    """What an event says of the place that its element comes from."""

    source: str
    waba_id: str = ""
    phone_number_id: str = ""
    field: str | None = None
    format: str = "cloud"

    def facts(self, event):
        """(name, as it is, as it must be)."""
        channel = part(event, "channel")
        yield "field", event.get("field"), self.field
        yield "format", event.get("format"), self.format
        yield "waba_id", channel.get("waba_id", ""), self.waba_id
        yield "phone_number_id", channel.get("phone_number_id", ""), self.phone_number_id


@dataclass
class Element:
    """Something in a callback that must be found in Kafka, and what it must be there."""

    list: str  # statuses, messages, message_echoes, history, calls
    kind: str  # the event's kind, or dead_letter
    node: Node
    where: Where
    reason: str = ""  # of a dead letter

    @property
    def event_id(self):
        return event_id(self.kind, self.where.phone_number_id or self.where.source, self.node)


def event_id(kind, channel, node):
    """The nine parts of the contract, hashed."""
    message = kind in ("message_status", "inbound_message")
    message_id, timestamp = node.text("id"), node.text("timestamp")
    participant = (
        node.text("recipient_participant_user_id")
        or node.text("recipient_participant_id")
        or node.text("participant_recipient_id")
    )
    second = str(int(timestamp)) if re.fullmatch("[0-9]{1,11}", timestamp) else timestamp
    bound = message and message_id and timestamp
    parts = [
        b"wcb1",
        kind.encode(),
        channel.encode(),
        message_id.encode(),
        node.text("type" if kind == "inbound_message" else "status").encode(),
        second.encode(),
        participant.encode(),
        b"" if bound else hashlib.sha256(node.bytes).digest(),
        b"",
    ]
    framed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hashlib.sha256(framed).digest()[:16].hex()


# What says where an element comes from, and is not itself an event.
CONTEXT = {
    "callback": {"object", "entry"},
    "entry": {"id", "time", "changes"},
    "change": {"field", "value"},
}
LISTS = {"contacts", "statuses", "messages", "message_echoes", "calls", "history"}
CONTEXT["value"] = LISTS | {"messaging_product", "metadata"}
VALUE = LISTS | {"metadata", "errors", "standby"}
STATUS_KINDS = {"": "message_status", "message": "message_status", "payment": "payment_status", "call": "call_status"}


class Callback:
    """A body, read: its elements, and what else must not get lost."""

    def __init__(self, body, source):
        self.body, self.source = body, source
        self.elements = []  # in the order of the document
        self.kept = []  # (node, Where or None): bytes that some event or dead letter must carry
        self.contacts = []  # likewise, or an event names them
        self.whole = ""  # reason, when the whole body is one dead letter
        self.root = None
        self._read()

    @property
    def is_empty(self):
        return not (self.elements or self.kept or self.contacts or self.whole)

    def _read(self):
        if not self.body.strip(b" \t\r\n"):
            return
        try:
            self.root = parse(self.body)
        except NotJson:
            self.whole = "invalid_json"
            return
        if self.root.kind == "array":
            for _, item in self.root.children:
                if not self._callback(item):
                    self.kept.append((item, None))
        elif not self._callback(self.root):
            self.whole = "unrecognized"

    def _callback(self, node):
        """Reads an envelope, a change or a bare value; says whether it is one."""
        if node.kind != "object":
            return False
        keys = {key for key, _ in node.children}
        if not keys:
            return True
        if "entry" in keys:
            self._members(node, "callback", keys & VALUE)
            for entry in node.items("entry"):
                self._entry(entry)
            if keys & VALUE:
                self._value(node, "", None, bare=True)
            return True
        if keys >= {"field", "value"} and not keys & VALUE:
            self._change(node, "")
            return True
        if keys & VALUE:
            self._value(node, "", None, bare=True)
            return True
        return False

    def _entry(self, entry):
        if entry.kind != "object":
            self.kept.append((entry, None))
            return
        self._members(entry, "entry")
        for change in entry.items("changes"):
            self._change(change, entry.text("id"))

    def _change(self, change, waba_id):
        if change.kind != "object":
            self.kept.append((change, None))
            return
        self._members(change, "change")
        value = change.object("value")
        name = change.text("field") if change.get("field") else None
        if value is not None:
            self._value(value, waba_id, name)
        elif change.get("value") is not None:
            self.kept.append((change.get("value"), None))

    def _value(self, value, waba_id, name, bare=False):
        metadata = value.object("metadata")
        where = Where(
            self.source,
            waba_id,
            metadata.text("phone_number_id") if metadata else "",
            name,
            "on_premise" if bare and metadata is None else "cloud",
        )
        self._members(value, "value", CONTEXT["callback"] if bare else frozenset(), where)
        self.contacts += [(contact, where) for contact in value.items("contacts")]

        def add(list_name, kind, node, reason=""):
            self.elements.append(Element(list_name, kind, node, where, reason))

        for status in value.items("statuses"):
            add("statuses", *read_status(status))
        for message in value.items("messages"):
            add("messages", *read_item(message, "inbound_message", must_have_id=True))
        for echo in value.items("message_echoes"):
            add("message_echoes", *read_item(echo, "echo"))
        for call in value.items("calls"):
            add("calls", *read_item(call, "call"))
        for history in value.items("history"):
            threads = history.items("threads")
            for message in (item for thread in threads for item in thread.items("messages")):
                add("history", *read_item(message, "history_message"))
            if not threads:
                self.kept.append((history, where))
            for key, member in history.children:
                if key != "threads":
                    self.kept.append((member, where))

    def _members(self, node, kind, besides=frozenset(), where=None):
        """What nobody knows must be kept, and so must a list that is no list."""
        for key, child in node.children:
            unread_list = key in ("entry", "changes", "statuses", "messages") and child.kind != "array"
            empty = child.bytes == b"null" or (child.kind in ("array", "object") and not child.children)
            if (key not in CONTEXT[kind] | besides or unread_list) and not empty:
                self.kept.append((child, where))


def read_item(node, kind, must_have_id=False):
    if node.kind != "object":
        return "dead_letter", node, "not_an_object"
    if must_have_id and not node.text("id"):
        return "dead_letter", node, "missing_id"
    return kind, node


def read_status(node):
    if node.kind != "object":
        return "dead_letter", node, "not_an_object"
    kind = STATUS_KINDS.get(node.text("type"), "channel_event")
    if kind == "message_status" and not node.text("id"):
        return "dead_letter", node, "missing_id"
    if kind == "message_status" and not node.text("status"):
        return "dead_letter", node, "missing_status"
    return kind, node
