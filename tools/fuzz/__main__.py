"""`python -m tools.fuzz graphs` tries random models, `python -m tools.fuzz files` broken ones."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tools.fuzz.campaign import Campaign


def main() -> None:
    """Run a campaign; the exit code is 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("kind", choices=("graphs", "files"))
    parser.add_argument("--count", type=int, default=200, metavar="N", help="cases (default 200)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the first; each has its own (default 0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="processes at once (default 1)")
    parser.add_argument("--seconds", type=float, metavar="T", help="begin no case after that")
    parser.add_argument("--limit", type=float, default=120, metavar="T", help="seconds of one case (default 120)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder for failing cases and smaller ones like them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results, written all the while")
    given = parser.parse_args()
    campaign = Campaign(
        given.kind, given.seed, given.count, given.jobs, given.seconds, given.limit, given.keep, given.json
    )
    figures = campaign.run()
    print(json.dumps({name: figures[name] for name in ("tried", "judged", "failed", "outcomes", "seconds")}, indent=1))
    sys.exit(1 if figures["failed"] else 0)


if __name__ == "__main__":
    main()
