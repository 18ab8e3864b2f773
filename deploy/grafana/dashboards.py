#!/usr/bin/env python3
"""Renders Grafana's dashboards for weni-edge.

    dashboards.py            write dashboards/*.json beside this file
    dashboards.py --check    fail unless they are what would be written
"""

import json
import sys
from pathlib import Path

from business import BUSINESS
from depth import DEPTH
from overview import OVERVIEW

FOLDER = Path(__file__).parent / "dashboards"


def main():
    wanted = {one["uid"] + ".json": json.dumps(one, indent=1, ensure_ascii=False) + "\n" for one in (OVERVIEW, DEPTH, BUSINESS)}
    if sys.argv[1:] != ["--check"]:
        for name, text in wanted.items():
            (FOLDER / name).write_text(text)
    elif {path.name: path.read_text() for path in FOLDER.iterdir()} != wanted:
        sys.exit(f"{FOLDER} is not what {sys.argv[0]} renders: render it again")


if __name__ == "__main__":
    main()
