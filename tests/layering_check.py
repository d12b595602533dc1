#!/usr/bin/env python3
"""Fails when a file includes a folder that ARCHITECTURE.md's table does not allow it to."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# folder -> what its files may include of ours: folders, or single headers.
ALLOWED = {
    "config": [],
    "kernels": ["config/result.h", "config/check.h"],
    "parallel": ["kernels", "config/result.h", "config/check.h"],
    "worker": ["kernels", "parallel", "config", "monitoring"],
    "coordinator": [
        "config",
        "monitoring",
        "parallel/process_grid.h",
        "parallel/expert_placement.h",
        "worker/step.h",
    ],
    "net": ["config", "monitoring", "coordinator/request.h"],
    "monitoring": ["config"],
    "cli": ["config", "kernels", "parallel", "worker", "coordinator", "net", "monitoring"],
}

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def allowed(folder: str, header: str) -> bool:
    own = header.split("/")[0] == folder
    return own or any(header == a or header.startswith(a + "/") for a in ALLOWED[folder])


def violations() -> list[str]:
    found = []
    for folder in ALLOWED:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix not in {".h", ".cc", ".cu", ".cuh"}:
                continue
            for header in INCLUDE.findall(path.read_text(encoding="utf-8")):
                if not (ROOT / header).exists():
                    found.append(f"{path.relative_to(ROOT)}: {header} is not a path from the root")
                elif not allowed(folder, header):
                    found.append(f"{path.relative_to(ROOT)}: may not include {header}")
    return found


def undocumented() -> list[str]:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    return [f"ARCHITECTURE.md: no row for {folder}" for folder in ALLOWED if f"| `{folder}` |" not in text]


if __name__ == "__main__":
    problems = violations() + undocumented()
    print("\n".join(problems) if problems else "layering: every include is allowed")
    sys.exit(1 if problems else 0)
