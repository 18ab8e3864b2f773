"""Checks that every name in the runbook exists: metrics, panels, configuration keys, commands and options."""

import re
import subprocess
import tomllib

import static

RUNBOOK = static.DEPLOY / "RUNBOOK.md"
# Words in backticks that are not this project's: Kafka's settings, systems' programs.
FOREIGN = {"read_committed"}
# Parts of paths and names that only look like keys.
FILES = {"CHANGELOG.md"}


def vocabulary(scrape):
    """Everything that a single word with an underscore or a dot may be."""
    text = re.sub(r"^#(?=\S)", "", (static.DEPLOY / "weni-edge.toml").read_text(), flags=re.MULTILINE)
    sections = tomllib.loads(text)
    keys = set(sections) | {"sources"}
    for section, table in sections.items():
        tables = [table, *(inner for inner in table.values() if isinstance(inner, dict))]
        keys |= {key for one in tables for key in one}
        keys |= {f"{section}.{key}" for one in tables for key in one} | {f"{section}.{key}" for key in table}
    metrics = {name.removeprefix("weni_edge_") for name in static.registered()}
    values = {value for labels in scrape.values() for label in labels.values() for value in label}
    events = set(re.findall(r'"(\w+)"', "".join(path.read_text() for path in (static.ROOT / "src/event").glob("*.rs"))))
    return keys, metrics, values | events


def check(report, scrape, edge):
    text = RUNBOOK.read_text()
    keys, metrics, values = vocabulary(scrape)
    for name in sorted(set(re.findall(r"`([a-z][\w.]*[_.][\w.]*)`", text)) - FOREIGN):
        known = name in keys | metrics | values or name.startswith(("max.message", "min.insync", "offsets."))
        # A reason may be the beginning of a metric: position_went_back.
        report.that(f"the runbook's `{name}` is a metric, a key or a value",
                    known or any(metric.startswith(name + "_") for metric in metrics))  # fmt: skip
    for name in sorted(set(re.findall(r"\bm ([a-z_]+)", text))):
        report.that(f"the runbook's `m {name}` finds metrics", any(metric.startswith(name) for metric in metrics))
    for reason in sorted(set(re.findall(r"^- ((?:`[a-z_]+`(?:, )?)+)", text, re.MULTILINE))):
        unknown = {name for name in re.findall(r"`(\w+)`", reason)} - values
        report.same(f"the runbook's reasons {reason} are values of a label", unknown, set())
    check_titles(report, text)
    check_commands(report, text, edge)


def check_titles(report, text):
    """What is in italics is a panel, a row, a dashboard, or what the program says."""
    boards = static.dashboards()
    titles = {board["title"] for board in boards} | {panel["title"] for board in boards for panel in board["panels"]}
    said = "\n".join(one for path in (static.ROOT / "src").rglob("*.rs") for one in re.findall(r'"([^"\n]+)"', path.read_text()))
    prose = re.sub(r"```.*?```|`[^`\n]*`|\*\*[^*]*\*\*", "", text, flags=re.DOTALL)
    found = re.findall(r"(?<![*\w])\*([^*]+?)\*(?![*\w])", prose)
    report.that("the runbook names panels", len(found) > 20)
    for name in sorted({" ".join(one.split()) for one in found} - {"not"}):
        name = re.sub(r"^\[(.*)\]\(.*\)$", r"\1", name).strip("[]")
        report.that(f"the runbook's *{name}* is a panel, a row, a dashboard or a message", name in titles or name in said)


def check_commands(report, text, edge):
    """Subcommands and options as the program has them."""
    found = re.findall(r"weni-edge ((?:serve|journal|replay|send|dev|healthcheck|check|[a-z]+)\b[^`\n]*)", "\n".join(code(text)))
    report.that("the runbook has commands of the program", len(found) > 3)
    for line in sorted(set(found)):
        words = line.partition("#")[0].replace("[", "").replace("]", "").split()
        command = [word for word in words[:2] if re.fullmatch(r"[a-z]+", word)]
        shown = subprocess.run([edge, *command, "--help"], capture_output=True, text=True)
        unknown = [word for word in words if word.startswith("-") and not re.search(rf"(?<![\w-]){word}(?![\w-])", shown.stdout)]
        values = [value for option, value in zip(words, words[1:]) if option == "--from" and f"`{value}`" not in shown.stdout]
        report.same(f"the program knows `weni-edge {line.strip()}`", (shown.returncode, unknown, values), (0, [], []))
    options = set(re.findall(r"`(--[a-z-]+)", text))
    every = "".join(subprocess.run([edge, *command.split(), "--help"], capture_output=True, text=True).stdout
                    for command in ("serve", "replay", "journal fork", "journal show", ""))  # fmt: skip
    report.same("options that are named alone are the program's", {one for one in options if one not in every}, set())


def code(text):
    yield from re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", text)
