#!/usr/bin/env python3
"""Writes the chart's dashboards and rules from monitoring/*.py. With --check it only says what is stale. Standard library only."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "millrace"
sys.path.insert(0, str(ROOT / "monitoring"))

from dashboards import DASHBOARDS  # noqa: E402
from panels import dashboard_json  # noqa: E402
from rules import rules_yaml  # noqa: E402


def files() -> dict[pathlib.Path, str]:
    out = {CHART / "dashboards" / f"{name}.json": dashboard_json(d) for name, d in DASHBOARDS.items()}
    out[CHART / "rules" / "millrace.yaml"] = rules_yaml()
    return out


def main() -> int:
    wanted = files()
    here = {p for folder in ("dashboards", "rules") for p in (CHART / folder).iterdir() if p.suffix in (".json", ".yaml")}
    stale = sorted(p for p in wanted if not p.exists() or p.read_text() != wanted[p]) + sorted(here - set(wanted))
    if "--check" in sys.argv:
        for path in stale:
            print(f"stale: {path.relative_to(ROOT)}; run scripts/monitoring_files.py", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path]) if path in wanted else path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
