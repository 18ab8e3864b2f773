#!/usr/bin/env python3
"""Checks that all files, links, sections, tests, constants, keys, recipes and steps that the documents name exist.

    tests/docs.py        the last line counts: `N passed, N failed`
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# CHANGELOG.md is left out, because it names removed things.
DOCUMENTS = ["README*.md", "AGENTS.md", "llms.txt", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "deploy/*.md", "deploy/consumers/*/*.md", "src/ARCHITECTURE.md"]
TOP = {".ci", ".github", "benches", "deploy", "docs", "fuzz", "src", "tests"}
# Other programs' words that the code does not name.
FOREIGN = {"abort_transaction", "commit_transaction", "exactly_once_v2"}
GENERATED = {"target", "__pycache__", "libs", "artifacts", "coverage"}


def files():
    """What is written by hand, or kept as if it were."""
    for top in sorted(TOP):
        for path in sorted((ROOT / top).rglob("*")):
            if path.is_file() and not GENERATED & set(path.relative_to(ROOT).parts):
                yield path
    yield from (path for path in sorted(ROOT.iterdir()) if path.is_file())


def words():
    """Every name in the program, its tests and what ships it; metrics also without their prefix."""
    found = set()
    for path in files():
        if path.suffix not in (".md", ".png", ".lock") and path != Path(__file__).resolve():
            found |= set(re.findall(r"[A-Za-z_]\w*", path.read_text(errors="replace")))
    return found | {word.removeprefix("weni_edge_") for word in found}


def slug(heading):
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path):
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)}


def missing_links(document, prose):
    """Links of `document` that lead nowhere; those to other hosts are not followed."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            yield f"link {target}"


def missing_names(text, known):
    for code in set(re.findall(r"`([^`\n]+)`", text)):
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)+", code) and code.split("/")[0] in TOP and not (ROOT / code).exists():
            yield f"file {code}"
        if re.fullmatch(r"_?[a-z][a-z0-9]*(_[a-z0-9]+)+|[A-Z][A-Z0-9]+(_[A-Z0-9]+)+", code) and code not in known | FOREIGN:
            yield f"name {code}"
        if match := re.fullmatch(r"[a-z]\w*(?:::\w+)*::(\w+)|(?:admin|http|journal|kafka|log|topics)\.(\w+)", code):
            if not {*match.groups()} & (known | {"rs"}):
                yield f"name {code}"
        if match := re.match(r"just ([a-z]+[\w-]*)", code):
            if not re.search(rf"^{match[1]}\b.*:", (ROOT / "justfile").read_text(), re.MULTILINE):
                yield f"recipe {match[1]}"
        if match := re.match(r"\.ci/(run|full) ([a-z]+)", code):
            if not re.search(rf"^(step_)?{match[2]}\(\)", (ROOT / ".ci" / match[1]).read_text(), re.MULTILINE):
                yield f"step {match[2]} of .ci/{match[1]}"


def main():
    known, passed, failed = words(), 0, 0
    for document in sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern)):
        text = document.read_text()
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        missing = sorted({*missing_links(document, prose), *missing_names(prose, known)})
        passed, failed = passed + (not missing), failed + bool(missing)
        for what in missing:
            print(f"{document.relative_to(ROOT)}: there is no {what}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
