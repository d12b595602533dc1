#!/usr/bin/env python3
"""Fails when a file includes what ARCHITECTURE.md's table does not allow its folder, ours or a library's."""

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

# What the headers of a library begin with -> the folders that may include them.
LIBRARIES = {
    # devices and ranks
    ("cuda", "cublas", "cub/", "thrust/", "cooperative_groups"): ["kernels/cuda"],
    ("nccl",): ["parallel"],
    ("mpi.h",): ["parallel"],
    ("hwloc",): ["worker"],
    ("immintrin.h",): ["kernels"],
    # sockets
    ("boost/asio", "boost/beast", "sys/socket.h", "sys/un.h", "netinet/", "arpa/", "netdb.h"): ["net", "cli"],
    ("openssl/",): ["net", "cli"],
    # text
    ("yaml-cpp/",): ["config"],
    ("nlohmann/",): ["config", "worker/checkpoint", "net", "cli"],
    ("pcre2",): ["net/text"],
    ("CLI/",): ["cli"],
    ("prometheus/",): ["monitoring"],
    ("spdlog/",): ["worker", "coordinator", "net", "cli"],
}

INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]', re.MULTILINE)


def within(path: str, places: list[str]) -> bool:
    return any(path == place or path.startswith(place + "/") for place in places)


def problem(path: str, quote: str, header: str) -> str | None:
    """What is wrong with an include of the file at `path`, both from the root."""
    ours = header.split("/")[0] in ALLOWED or (ROOT / header).exists()
    if quote == "<":
        if ours:
            return f'<{header}> is ours: "{header}"'
        for prefixes, places in LIBRARIES.items():
            if header.startswith(prefixes) and not within(path, places):
                return f"may not include <{header}>: only {', '.join(places)}"
        return None
    if not (ROOT / header).exists():
        return f"{header} is not a path from the root"
    folder = path.split("/")[0]
    return None if within(header, [folder, *ALLOWED[folder]]) else f"may not include {header}"


def problems_of(path: str, text: str) -> list[str]:
    found = (problem(path, quote, header) for quote, header in INCLUDE.findall(text))
    return [f"{path}: {p}" for p in found if p]


def violations() -> list[str]:
    found = []
    for folder in ALLOWED:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".h", ".cc", ".cu", ".cuh"}:
                found += problems_of(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    return found


def undocumented() -> list[str]:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    return [f"ARCHITECTURE.md: no row for {folder}" for folder in ALLOWED if f"| `{folder}` |" not in text]


def misjudged() -> list[str]:
    """Includes that this script must refuse, or must not."""
    right = [("kernels/gemm.cc", '"kernels/gemm.h"'), ("kernels/gemm.cc", '"config/check.h"'),
             ("cli/main.cc", '"net/engine.h"'), ("coordinator/cell.h", '"worker/step.h"'),
             ("kernels/cuda/a.cu", "<cuda_runtime.h>"), ("parallel/a.cc", "<mpi.h>"), ("config/a.cc", "<vector>"),
             ("net/a.h", "<boost/asio/ip/tcp.hpp>"), ("coordinator/cell.cc", "<boost/system/result.hpp>")]
    wrong = [("kernels/gemm.cc", '"config/cluster_config.h"'), ("kernels/gemm.cc", '"worker/step.h"'),
             ("net/a.cc", '"worker/step.h"'), ("coordinator/cell.h", '"worker/worker.h"'),
             ("kernels/gemm.cc", '"gemm.h"'), ("kernels/gemm.cc", "<kernels/gemm.h>"), ("kernels/gemm.cc", "<mpi.h>"),
             ("kernels/cudax/a.cc", "<cuda.h>"), ("worker/cuda/a.cc", "<cuda_runtime.h>"), ("worker/a.cc", "<nccl.h>"),
             ("coordinator/cell.cc", "<boost/asio/ip/tcp.hpp>"), ("coordinator/cell.cc", "<sys/socket.h>"),
             ("worker/worker.cc", "<yaml-cpp/yaml.h>"), ("net/gateway.cc", "<prometheus/counter.h>"),
             ("worker/a.cc", "<nlohmann/json.hpp>"), ("net/a.cc", "<pcre2.h>"), ("config/a.cc", "<spdlog/spdlog.h>")]
    return [f"layering_check.py: {path} with {name} is judged wrongly"
            for cases, refused in ((right, 0), (wrong, 1)) for path, name in cases
            if len(problems_of(path, f"#pragma once\n#include {name}\n")) != refused]


if __name__ == "__main__":
    problems = misjudged() + violations() + undocumented()
    print("\n".join(problems) if problems else "layering: every include is allowed")
    sys.exit(1 if problems else 0)
