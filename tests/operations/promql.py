"""The part of PromQL that the checks need: selectors with their matchers, aggregations with their labels."""

import re
from dataclasses import dataclass

SELECTOR = re.compile(r"(?<![\w:$.])([a-zA-Z_][\w:]*)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
GROUPED = re.compile(r"\b(by|on|without|ignoring)\s*\(([^)]*)\)")
NUMBER = re.compile(r"(?<![\w.:])\d+(?:\.\d+)?(?:ms|[smhdw])?(?![\w.:])")


@dataclass
class Selector:
    metric: str
    matchers: list  # (label, operator, value)


def selectors(expr):
    return [Selector(metric, MATCHER.findall(inner)) for metric, inner in SELECTOR.findall(expr)]


def groups(expr):
    """(by | on | …, labels, the text that it applies to): of `by` the aggregated expression, else everything."""
    for found in GROUPED.finditer(expr):
        labels = [label.strip() for label in found[2].split(",") if label.strip()]
        inner = balanced(expr, found.end()) if found[1] in ("by", "without") else expr
        yield found[1], labels, inner


def balanced(text, at):
    """The parentheses that begin at or after a place, and what is in them."""
    start = text.index("(", at)
    depth = 0
    for end in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if depth == 0:
            return text[start + 1 : end]
    raise ValueError(f"no end: {text}")


def alternatives(pattern):
    """The parts of `a|b|c`; a pattern with parentheses is one part."""
    return [pattern] if "(" in pattern else pattern.split("|")


def numbers(expr):
    """Every number and duration, in order: thresholds and windows. What is in quotes is none."""
    return NUMBER.findall(re.sub(r'"[^"]*"', '""', expr))
