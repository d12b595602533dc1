#!/usr/bin/env python3
"""Every kernel waits for the one in front (await_previous_kernel, kernels/cuda/launch.cuh) before it does anything else: on a stream that
overlaps kernels, what comes before may run while the one in front still writes. Argument: kernels/cuda. Standard library only."""

import pathlib
import re
import sys

# The plain product asks for weights first, which no kernel writes; in its own words.
LATER = {"gemm_wgmma_kernel"}


def bodies(text: str):
    """(name, what the body begins with) of each kernel."""
    for match in re.finditer(r"__global__ void[^{;]*?(\w+_kernel)\([^{};]*?\) \{\n(.*?)\n", text):
        yield match.group(1), match.group(2).strip()


def main() -> int:
    sources = [p for p in sorted(pathlib.Path(sys.argv[1]).iterdir()) if p.suffix in (".cu", ".cuh")]
    found, wrong = 0, []
    for path in sources:
        text = path.read_text()
        kernels = list(bodies(text))
        if len(kernels) != text.count("__global__"):
            wrong.append(f"{path.name}: {text.count('__global__')} kernels, of which {len(kernels)} could be read")
        found += len(kernels)
        wrong += [f"{path.name}: {name} begins with: {first}" for name, first in kernels
                  if first != "await_previous_kernel();" and name not in LATER]
    print("\n".join(wrong) or f"{found} kernels")
    return 1 if wrong or found < 20 else 0


if __name__ == "__main__":
    sys.exit(main())
