"""One stream of callbacks, and what every consumer has to have at its end. Both are written by hand."""

import json
import re

BASE = 1_750_000_000  # 2025-06-15T15:06:40Z
FILLER = 300
NUMBER = "118406294417035"
GROUP = "120363042219860713"
PRICES = {
    "utility": {"type": "regular", "category": "utility"},
    "marketing": {"type": "regular", "category": "marketing"},
    "free": {"type": "free_customer_service", "category": "service"},
}

# Updates as STATUS@SECOND, with =PARTICIPANT in a group (- is the whole group), $PRICE and !ERROR,ERROR.
# The rounds are sent one after the other, each in the order of its column.
UPDATES = """
message        | 0: all run          | 1: one is killed          | 2: another is killed | 3: the SMS are planned
in-order       | sent@1$utility      | delivered@2$utility       | read@3               |
reversed       | read@3$utility      | delivered@2               | sent@1$utility       |
late-sent      | delivered@2$utility |                           | sent@9               |
failed-late    | delivered@2$marketing | failed@9!131026         |                      |
failed-first   | failed@1!131026     | delivered@2$utility       |                      |
repeated       | delivered@2         | delivered@2$utility delivered@2 | delivered@2$utility | delivered@2
twice          | delivered@2$utility | delivered@5               |                      |
twice-reversed | delivered@5         | delivered@2$utility       |                      |
priced-by-read | sent@1              | delivered@2               | read@3$marketing     |
priced-by-sent | sent@1$utility      | delivered@2               |                      |
only-sent      | sent@1$utility      |                           |                      |
free           | sent@1$free         | delivered@2$free          |                      |
played         | read@3              | played@4                  | delivered@2          |
unknown        | sent@1              | snoozed@9                 |                      |
only-unknown   |                     | snoozed@1                 |                      |
deleted        | read@3              | deleted@9                 |                      |
no-time        | sent@soon           |                           | delivered@2          |
group          | sent@1=- read@3=5582999000001$utility | delivered@2=5582999000002$utility | failed@2=5582999000003!131026 delivered@2=5582999000001 |
failed         | failed@1!131026     |                           |                      |
second-error   | failed@1!999999,131026 |                        |                      |
stopped        | failed@1!131050     |                           |                      |
template       | failed@1!132001     |                           |                      |
template-slow  | failed@1!132001     |                           |                      |
slow           | sent@1              |                           |                      |
fresh          | sent@1              |                           |                      |
forgotten      | sent@1              |                           |                      |
failed-then-ok | failed@1!131026     |                           |                      | delivered@2
slow-then-ok   | sent@1              |                           |                      | read@3
slow-stopped   | sent@1              |                           |                      | failed@1!131050
nul            | sent@1              |                           |                      |
"""

# The state, since which second, and the price; `-` where there is none.
STATES = """
in-order       |               | read      | 3 | utility
reversed       |               | read      | 3 | utility
late-sent      |               | delivered | 2 | utility
failed-late    |               | delivered | 2 | marketing
failed-first   |               | delivered | 2 | utility
repeated       |               | delivered | 2 | utility
twice          |               | delivered | 5 | utility
twice-reversed |               | delivered | 5 | utility
priced-by-read |               | read      | 3 | marketing
priced-by-sent |               | delivered | 2 | utility
only-sent      |               | sent      | 1 | utility
free           |               | delivered | 2 | service
played         |               | played    | 4 | -
unknown        |               | sent      | 1 | -
deleted        |               | read      | 3 | -
no-time        |               | delivered | 2 | -
group          |               | sent      | 1 | -
group          | 5582999000001 | read      | 3 | utility
group          | 5582999000002 | delivered | 2 | utility
group          | 5582999000003 | failed    | 2 | -
failed         |               | failed    | 1 | -
second-error   |               | failed    | 1 | -
stopped        |               | failed    | 1 | -
template       |               | failed    | 1 | -
template-slow  |               | failed    | 1 | -
slow           |               | sent      | 1 | -
fresh          |               | sent      | 1 | -
forgotten      |               | sent      | 1 | -
failed-then-ok |               | delivered | 2 | -
slow-then-ok   |               | read      | 3 | -
slow-stopped   |               | failed    | 1 | -
nul            |               | sent      | 1 | -
newer          |               | delivered | 2 | -
"""

# Where Weni's dashboards show another state.
AS_WENI = {"failed-late": "failed", "failed-first": "failed", "failed-then-ok": "failed"}
# By category: messages, delivered, read, failed. The group as a whole is no message.
FUNNEL = {
    "utility": (11, 10, 3, 0),
    "marketing": (2, 2, 1, 0),
    "service": (1, 1, 0, 0),
    None: (18 + FILLER, 6 + FILLER, 3 + FILLER, 7),
}
# By category: messages and what they cost, at 0.01 for utility and 0.06 for marketing.
COST = {"utility": (10, 0.1), "marketing": (2, 0.12), "service": (1, 0), None: (6 + FILLER, 0)}

# Minutes since the message was sent, when half an hour counts as late; then the reason of its SMS, and whether it is sent.
OUTGOING = {
    "in-order": (40, None, False),
    "failed-late": (40, None, False),
    "failed": (0, "failed", True),
    "second-error": (0, "failed", True),
    "stopped": (40, None, False),
    "template": (0, None, False),
    "template-slow": (40, "timeout", True),
    "silent": (40, "timeout", True),
    "slow": (40, "timeout", True),
    "fresh": (0, None, False),
    "forgotten": (120, None, False),
    "failed-then-ok": (0, "failed", False),
    "slow-then-ok": (40, "timeout", False),
    "slow-stopped": (40, "timeout", False),
}

# Hours since the order, and whose it is; the phone is spelt in more than one way.
ORDERS = {
    "order-1": (1, "in-order"),
    "order-2": (2, "in-order"),
    "order-old": (30, "in-order"),
    "order-later": (-0.5, "in-order"),
    "order-3": (1, "late-sent"),
    "order-none": (1, "silent"),
}
# One from just before round 3, in which an older message of its recipient is repeated.
ORDERS_LATER = {"order-4": (0, "repeated")}
JOINED = {
    ("order-1", "in-order"): "read",
    ("order-2", "in-order"): "read",
    ("order-3", "late-sent"): "delivered",
    ("order-4", "repeated"): "delivered",
}


def table(text):
    return [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]


ROWS = {name: (rounds + [""] * 4)[:4] for name, *rounds in table(UPDATES)[1:]}
ROUNDS = range(4)


def phone(name):
    return str(5582990000000 + [*ROWS, *OUTGOING].index(name))


def spelt(number, order):
    digits = phone(number)
    return f"+{digits[:2]} ({digits[2:4]}) {digits[4:9]}-{digits[9:]}" if order < "order-3" else digits[:4] + digits[5:]


def status(name, update):
    """The element of a callback."""
    match = re.fullmatch(r"(\w+)@(\w+)(?:=([-\w]+))?(?:\$(\w+))?(?:!([\d,]+))?", update)
    state, second, participant, price, errors = match.groups()
    found = {"id": f"wamid.{name}", "status": state, "timestamp": str(BASE + int(second)) if second.isdigit() else second,
             "recipient_id": GROUP if participant else phone(name), "nobody_knows": {"this": 1}}  # fmt: skip
    if name == "nul":  # PostgreSQL's text cannot hold it
        found["recipient_id"] = "5582\0"
    if participant:
        found["recipient_type"] = "group"
    if participant and participant != "-":
        found["recipient_participant_id"] = participant
    if price:
        found["pricing"] = {"billable": True, "pricing_model": "PMP"} | PRICES[price]
    if errors:
        found["errors"] = [{"code": int(code), "title": "Failed"} for code in errors.split(",")]
    return found


def callback(statuses):
    metadata = {"display_phone_number": "558233330000", "phone_number_id": NUMBER}
    value = {"messaging_product": "whatsapp", "metadata": metadata, "statuses": statuses, "nor_this": True}
    changes = [{"field": "messages", "value": value}]
    return json.dumps({"object": "whatsapp_business_account", "entry": [{"id": "215580931774206", "changes": changes}]}).encode()


def bodies(number):
    """The callbacks of a round. The filler comes last, so that a count of it says that the round is over."""
    named = [status(name, update) for name, rounds in ROWS.items() for update in rounds[number].split()]
    state = ("sent", "delivered", "read", "played")[number]
    filler = [{"id": f"wamid.filler-{i}", "status": state, "timestamp": str(BASE + number), "recipient_id": "5582991111111"}
              for i in range(FILLER)]  # fmt: skip
    if number == 0:  # two dead letters
        yield b"{"
        named.append({"status": "sent", "timestamp": str(BASE), "recipient_id": "5582991111111"})
    yield callback(named)
    yield callback(filler)


def states():
    """(message, participant) → (status, second, category)"""
    found = {(name, participant): (state, int(second), None if category == "-" else category)
             for name, participant, state, second, category in table(STATES)}  # fmt: skip
    return found | {(f"filler-{i}", ""): ("played", 3, None) for i in range(FILLER)}
