#!/usr/bin/env python3
"""Keeps the generated parts of the chart: `config` in values.schema.json, from config/default.yaml, and the table of
values in helm/README.md, from values.yaml. With --check it only says what is stale. Standard library only."""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "millrace"

# Fields that other values of the chart decide; in `config` they are refused.
OWNED = {
    "model": ["path", "served_name"],
    "grid": ["stages", "lanes", "cells", "embedded"],
    "device": ["backend", "indices"],
    "gateway": ["host", "port", "cell_host", "cell_port", "api_keys", "api_keys_file"],
    "cell": ["id", "index", "gateways", "health_host", "health_port", "hosts", "mpirun", "secret_file"],
    "node_agent": ["host", "port", "secret_file"],
}
# Texts that have a form (config/cluster_rules.cc, worker/cuda).
FORMS = {
    "network": r"^[A-Za-z0-9./,:_-]*$",
    "profile": r"^([0-9]{1,2}\.[0-9]:[1-9][0-9]{0,3}:[1-9][0-9]{0,3}(\.[0-9]+)?[MG]iB)?$",
}


def fields():
    """(section, field, comment, default) of config/default.yaml, in order."""
    section, comment = "", []
    for line in (ROOT / "config" / "default.yaml").read_text().splitlines():
        if found := re.fullmatch(r"\s*# ?(.*)", line):
            comment.append(found.group(1))
        elif found := re.fullmatch(r"(\w+):", line):
            section, comment = found.group(1), []
        elif found := re.fullmatch(r"  (\w+): (.*)", line):
            yield section, found.group(1), " ".join(comment), found.group(2)
            comment = []
        else:
            comment = []


def size_schema(high: float) -> dict:
    """Sizes as words, up to `high` bytes: at most three digits of each unit that stay below it."""
    words = []
    for unit, factor in (("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)):
        most = int(high // factor)
        if most >= 1:
            words.append(("[1-9][0-9]{0,2}" if most >= 999 else f"[1-{min(most, 9)}]") + unit)
    return {"type": "string", "pattern": f"^({'|'.join(words)})$"}


def field_schema(name: str, comment: str, default: str) -> dict:
    """The JSON schema of a field, from the words that config/config_writer.cc describes it with."""
    meaning, _, allowed = comment.partition(" Allowed: ")
    allowed = allowed.rstrip(".")
    schema: dict = {"description": meaning}
    if found := re.fullmatch(r"one of (.*)", allowed):
        words = found.group(1).split(", ")
        schema["enum"] = [int(w) if w.isdigit() else w for w in words]
    elif found := re.fullmatch(r"(?:an integer|tokens|milliseconds|a size|a number) in ([(\[])(\S+), (\S+)([)\]])", allowed):
        low, high = (float(found.group(i)) for i in (2, 3))
        number = allowed.startswith("a number")
        bounds = {"type": "number" if number else "integer",
                  "exclusiveMinimum" if found.group(1) == "(" else "minimum": low if number else int(low),
                  "exclusiveMaximum" if found.group(4) == ")" else "maximum": high if number else int(high)}
        schema |= {"anyOf": [bounds, size_schema(high)]} if name.endswith("_bytes") else bounds
    elif allowed:
        raise SystemExit(f"config/default.yaml: {name}: cannot read 'Allowed: {allowed}'")
    elif default in ("true", "false"):
        schema["type"] = "boolean"
    elif default.startswith("["):
        schema |= {"type": "array", "items": {"type": "string"}}
    else:
        schema["type"] = "string"
        if name in FORMS:
            schema["pattern"] = FORMS[name]
    return schema


def config_schema() -> dict:
    sections: dict = {}
    for section, name, comment, default in fields():
        if name in OWNED.get(section, ()):
            continue
        sections.setdefault(section, {})[name] = field_schema(name, comment, default)
    missing = {(s, n) for s, names in OWNED.items() for n in names} - {(s, n) for s, n, _, _ in fields()}
    if missing:
        raise SystemExit(f"scripts/chart_files.py: OWNED names fields that are gone: {missing}")
    return {"type": "object", "additionalProperties": False, "properties": {
        name: {"type": "object", "additionalProperties": False, "properties": members}
        for name, members in sections.items()}}


def schema_text() -> str:
    schema = json.loads((CHART / "values.schema.json").read_text())
    schema["properties"]["config"] = config_schema()
    return json.dumps(schema, indent=2) + "\n"


def values():
    """(path, comment, default) of every key of values.yaml that holds no further keys; a key without a comment of
    its own is an error."""
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    seen: list[list] = []
    for number, line in enumerate((CHART / "values.yaml").read_text().splitlines(), 1):
        if found := re.fullmatch(r"\s*# (.*)", line):
            comment.append(found.group(1))
        elif found := re.fullmatch(r"( *)(\w+):(?: (.*))?", line):
            indent = len(found.group(1))
            if not comment:
                raise SystemExit(f"values.yaml:{number}: {found.group(2)} has no comment")
            path = [p for p in path if p[0] < indent] + [(indent, found.group(2))]
            seen.append([".".join(p[1] for p in path), " ".join(comment), found.group(3)])
            comment = []
        elif not line.strip():
            comment = []
        else:
            raise SystemExit(f"values.yaml:{number}: cannot read '{line}'")
    return [entry for entry in seen if entry[2] is not None]


def readme_text() -> str:
    readme = ROOT / "helm" / "README.md"
    head, begin, rest = readme.read_text().partition("<!-- values -->\n")
    _, end, tail = rest.partition("<!-- /values -->\n")
    if not begin or not end:
        raise SystemExit("helm/README.md: the marks of the table are missing")
    rows = "".join(f"| `{path}` | `{default}` | {comment} |\n" for path, comment, default in values())
    return f"{head}{begin}| value | default | meaning |\n|---|---|---|\n{rows}{end}{tail}"


def main() -> int:
    stale = []
    for path, text in ((CHART / "values.schema.json", schema_text()), (ROOT / "helm" / "README.md", readme_text())):
        if path.read_text() == text:
            continue
        stale.append(str(path.relative_to(ROOT)))
        if "--check" not in sys.argv:
            path.write_text(text)
    if stale and "--check" in sys.argv:
        print(f"stale: {', '.join(stale)}; run scripts/chart_files.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
