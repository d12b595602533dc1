#!/usr/bin/env python3
"""Registers, shared memory, stack and spills of the CUDA kernels, as ptxas reports them.

  kernel_resources.py record [ccache] nvcc ARGS...  runs the compiler and keeps ptxas' report beside the
                                                    object, as OBJECT.resources (the build does this)
  kernel_resources.py table OBJECT...               writes kernels/cuda/resources.md
  kernel_resources.py check OBJECT...               fails when a kernel has a stack or spills that
                                                    kernels/cuda/spills_allowed.txt does not give a reason
                                                    for, or resources.md names a kernel that is not built

OBJECT may also be a folder: all reports below it count.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "kernels/cuda/resources.md"
ALLOWED = ROOT / "kernels/cuda/spills_allowed.txt"

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
# What ptxas says with -v when nothing is wrong.
QUIET = re.compile(r"^ptxas info\s*:(?! \(C\d)|^\s+\d+ bytes stack frame|^\s*$")
# What it says, as information too, of wgmma that it runs one by one and of register moves that it ignores.
LOSS = re.compile(r"^ptxas info\s*: (\(C\d.*)$", re.MULTILINE)


def record(command: list[str]) -> int:
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    lines = done.stderr.splitlines(keepends=True)
    sys.stderr.write("".join(line for line in lines if not QUIET.match(line)))
    if done.returncode == 0 and "-o" in command:
        target = pathlib.Path(command[command.index("-o") + 1] + ".resources")
        target.write_text("".join(line for line in lines if QUIET.match(line) or LOSS.match(line)), encoding="utf-8")
    return done.returncode


def reports(arguments: list[str]) -> list[pathlib.Path]:
    found = []
    for argument in map(pathlib.Path, arguments):
        if argument.is_dir():
            found += sorted(argument.rglob("*.resources"))
        elif (report := pathlib.Path(f"{argument}.resources")).exists():
            found.append(report)
    return found


def parse(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """(mangled kernel, architecture) -> registers, shared, stack, spills (bytes but for the first)."""
    kernels: dict[tuple[str, str], dict[str, int]] = {}
    values: dict[str, int] = {}
    for line in text.splitlines():
        if match := ENTRY.search(line):
            values = kernels[match[1], match[2]] = {"registers": 0, "shared": 0, "stack": 0, "spills": 0}
        elif match := STACK.search(line):
            values["stack"] = int(match[1])
            values["spills"] = int(match[2]) + int(match[3])
        elif match := USED.search(line):
            values["registers"] = int(match[1])
            shared = SHARED.search(line)
            values["shared"] = int(shared[1]) if shared else 0
    return kernels


def short(demangled: str) -> str:
    """Name and template arguments: no namespace of ours, no parameters."""
    name = re.sub(r"millrace::kernels::cuda::|\(anonymous namespace\)::", "", demangled)
    name = re.sub(r"^void ", "", name)
    depth = 0
    for i, c in enumerate(name):
        depth += {"<": 1, ">": -1}.get(c, 0)
        if c == "(" and depth == 0:
            return name[:i]
    return name


def read(arguments: list[str]) -> dict[tuple[str, str], dict[str, int]]:
    mangled: dict[tuple[str, str], dict[str, int]] = {}
    for report in reports(arguments):
        mangled.update(parse(report.read_text(encoding="utf-8")))
    names = sorted({name for name, _ in mangled})
    filtered = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    demangle = dict(zip(names, map(short, filtered.stdout.splitlines())))
    return {(demangle[name], arch): values for (name, arch), values in mangled.items()}


def table(kernels: dict[tuple[str, str], dict[str, int]]) -> str:
    archs = sorted({arch for _, arch in kernels}, key=lambda arch: int(re.sub(r"\D", "", arch)))
    lines = [
        "# Resources of the CUDA kernels",
        "",
        "Registers of a thread / bytes of static shared memory, as ptxas reports them; then stack and spilled",
        "bytes, if any. Kernels of another architecture's instructions are empty: a few registers. Written by",
        "`scripts/kernel_resources.py table` from a build with nvcc.",
        "",
        f"| kernel | {' | '.join(archs)} |",
        "|---" * (len(archs) + 1) + "|",
    ]
    for kernel in sorted({name for name, _ in kernels}):
        cells = []
        for arch in archs:
            v = kernels.get((kernel, arch))
            text = "" if v is None else f"{v['registers']} / {v['shared']}"
            if v and (v["stack"] or v["spills"]):
                text += f", stack {v['stack']}, spills {v['spills']}"
            cells.append(text)
        lines.append(f"| `{kernel}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def losses(arguments: list[str]) -> list[str]:
    return [f"{report.name}: {found}" for report in reports(arguments) for found in LOSS.findall(report.read_text(encoding="utf-8"))]


def allowances() -> dict[str, int]:
    """Kernel (without template arguments) -> bytes of stack and spills that it may have."""
    allowed = {}
    for line in ALLOWED.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            kernel, limit, _reason = line.split(maxsplit=2)
            allowed[kernel] = int(limit)
    return allowed


def check(kernels: dict[tuple[str, str], dict[str, int]]) -> list[str]:
    problems = [] if kernels else ["no reports: were the kernels built with nvcc?"]
    allowed = allowances()
    for (kernel, arch), v in sorted(kernels.items()):
        if max(v["stack"], v["spills"]) > allowed.get(kernel.split("<")[0], 0):
            problems.append(f"{kernel} for {arch}: {v['stack']} bytes of stack, {v['spills']} spilled")
    built = {kernel for kernel, _ in kernels}
    for kernel in allowed:
        if kernel not in {name.split("<")[0] for name in built}:
            problems.append(f"{ALLOWED.name}: {kernel} is not built")
    if TABLE.exists():
        for kernel in re.findall(r"^\| `(.+)` \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE):
            if kernel not in built:
                problems.append(f"{TABLE.name}: {kernel} is not built (run kernel_resources.py table)")
    return problems


def main() -> int:
    if len(sys.argv) < 3 or sys.argv[1] not in ("record", "table", "check"):
        sys.exit(__doc__)
    if sys.argv[1] == "record":
        return record(sys.argv[2:])
    kernels = read(sys.argv[2:])
    if sys.argv[1] == "table":
        TABLE.write_text(table(kernels), encoding="utf-8")
        return 0
    problems = check(kernels) + losses(sys.argv[2:])
    print("\n".join(problems) if problems else f"{len(kernels)} kernels, no stack and no spills")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
