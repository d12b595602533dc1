#!/usr/bin/env python3
"""Puts together the root file system of Millrace's container image: what the binary needs, and nothing else.

    scripts/image_root.py --binary build/cpu/bin/millrace --out DIR [--library FILE...] [--dry-run]

The binary (stripped), Open MPI with its plugins, tini as process 1, all shared libraries that any of these load, the
sample model, the user and group 10001 (`millrace`), licences of every package, Debian's package records where scanners
look for them (/var/lib/dpkg/status.d), and /usr/share/millrace/sbom.spdx.json: every package and file, by SPDX 2.3.
No shell, no package manager. --library names further libraries that are opened at run time (libnccl.so.2).

Prints the size as one JSON object: in all, of the C and C++ libraries that any such image has ("base"), and by package.
Everything is taken from this machine, which must be the Debian that the binary was built on. Timestamps are
SOURCE_DATE_EPOCH's when that is set, so that the same inputs give the same image.
"""

import argparse
import datetime
import glob
import hashlib
import json
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIB = "/usr/lib/x86_64-linux-gnu"
USER = 10001
# Files that ldd cannot know: programs that Open MPI starts, plugins opened by name, texts of messages.
OPENED_BY_NAME = ["/usr/bin/mpirun.openmpi", "/usr/bin/orted", "/usr/bin/tini-static", f"{LIB}/openmpi/lib/openmpi3/*.so",
                  "/usr/share/openmpi/*", "/etc/openmpi/*.conf", f"{LIB}/pmix2/lib/pmix/*.so",
                  f"{LIB}/pmix2/share/pmix/*.txt", f"{LIB}/ucx/*.so*", f"{LIB}/libibverbs/*.so", "/etc/libibverbs.d/*"]
LINKS = {"/usr/bin/mpirun": "mpirun.openmpi", "/usr/bin/tini": "tini-static"}
BASE_PACKAGES = {"libc6", "libstdc++6", "libgcc-s1"}
# Compiled into the binary: no file of theirs is in the image.
COMPILED_IN = ["libboost1.81-dev", "libcli11-dev", "nlohmann-json3-dev", "prometheus-cpp-dev"]
EMPTY_FOLDERS = {"/tmp": 0o1777, "/run": 0o755, "/dev": 0o755, "/proc": 0o555, "/sys": 0o555, "/models": 0o755}


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def merged(path: str) -> str:
    """With /lib as Debian has it: a link to /usr/lib."""
    return re.sub(r"^/(lib|lib64|bin|sbin)/", r"/usr/\1/", path)


def is_elf(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def libraries_of(files: list[str]) -> set[str]:
    """All shared libraries that these load, and the loader."""
    found: set[str] = set()
    for file in files:
        run = subprocess.run(["ldd", file], capture_output=True, text=True)
        if "not found" in run.stdout:
            missing = ", ".join(line.strip() for line in run.stdout.splitlines() if "not found" in line)
            raise SystemExit(f"scripts/image_root.py: {file}: {missing}; install the package or name it with --library")
        found |= {merged(path) for path in re.findall(r"(/\S+) \(0x", run.stdout)}
    return found


def packages_of(paths: list[str]) -> dict[str, str]:
    """Path -> name of the Debian package that has the file, or "" for what comes from elsewhere."""
    def unmerged(path: str) -> str:
        return re.sub(r"^/usr/(lib|lib64|bin|sbin)/", r"/\1/", path)

    names = {name for path in paths for real in (path, os.path.realpath(path)) for name in (real, unmerged(real))}
    answer = subprocess.run(["dpkg-query", "-S", *sorted(names)], capture_output=True, text=True).stdout
    known = {line.split(": ", 1)[1]: line.split(":")[0] for line in answer.splitlines() if not line.startswith("diversion")}
    found = {}
    for path in paths:
        real = os.path.realpath(path)
        found[path] = next((known[n] for n in (path, unmerged(path), real, unmerged(real)) if n in known), "")
    return found


class Tree:
    """The image's files, gathered before any is written."""

    def __init__(self):
        self.sources: dict[str, str] = {}   # path in the image -> file here
        self.links: dict[str, str] = {}
        self.texts: dict[str, str] = {}

    def add(self, path: str, source: str = ""):
        """A file, and through its links the file that it names."""
        source = source or path
        while os.path.islink(source):
            target = os.path.join(os.path.dirname(source), os.readlink(source))
            if os.path.dirname(os.path.normpath(target)) != os.path.dirname(source):
                break  # /etc/alternatives and the like: a copy instead
            self.links[path] = os.readlink(source)
            path = source = os.path.normpath(target)
        self.sources[path] = os.path.realpath(source)

    def write(self, out: pathlib.Path, epoch: int | None):
        for path, mode in EMPTY_FOLDERS.items():
            folder = out / path[1:]
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode)
        for name in ("lib", "lib64", "bin", "sbin"):
            (out / "usr" / name).mkdir(parents=True, exist_ok=True)
            (out / name).symlink_to(f"usr/{name}")
        for path, source in self.sources.items():
            target = out / path[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755 if os.stat(source).st_mode & stat.S_IXUSR else 0o644)
        for path, link in self.links.items():
            target = out / path[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(link)
        for path, text in self.texts.items():
            target = out / path[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            target.chmod(0o644)
        if epoch is not None:
            for folder, folders, files in os.walk(out, topdown=False):
                for name in [*folders, *files]:
                    os.utime(os.path.join(folder, name), (epoch, epoch), follow_symlinks=False)


def gather(binary: str, libraries: list[str]) -> Tree:
    tree = Tree()
    tree.add("/usr/bin/millrace", binary)
    for pattern in OPENED_BY_NAME:
        files = sorted(glob.glob(pattern))
        if not files and not pattern.startswith((f"{LIB}/ucx", f"{LIB}/libibverbs", "/etc/libibverbs")):
            raise SystemExit(f"scripts/image_root.py: nothing at {pattern}; install openmpi-bin and tini")
        for file in files:
            if os.path.isfile(file):
                tree.add(file)
    for file in libraries:
        tree.add(f"{LIB}/{os.path.basename(file)}", file)
    for path in libraries_of([source for source in tree.sources.values() if is_elf(source)]):
        tree.add(path)
    sample = ROOT / "models/sample"
    for file in sorted(sample.rglob("*")):
        if file.is_file():
            tree.add(f"/usr/share/millrace/models/sample/{file.relative_to(sample)}", str(file))
    tree.add("/usr/share/doc/millrace/LICENSE", str(ROOT / "LICENSE"))
    tree.links.update(LINKS)
    tree.texts["/etc/passwd"] = (f"root:x:0:0:root:/:/sbin/nologin\n"
                                 f"millrace:x:{USER}:{USER}:Millrace:/tmp:/sbin/nologin\n")
    tree.texts["/etc/group"] = f"root:x:0:\nmillrace:x:{USER}:\n"
    tree.texts["/etc/nsswitch.conf"] = "passwd: files\ngroup: files\nhosts: files dns\n"
    tree.texts["/etc/os-release"] = pathlib.Path("/etc/os-release").read_text(encoding="utf-8")
    return tree


def add_package_records(tree: Tree, packages: set[str]):
    for package in sorted(packages):
        record = output("dpkg-query", "-s", package).split("\n\n")[0]
        tree.texts[f"/var/lib/dpkg/status.d/{package}"] = record + "\n"
        licence = f"/usr/share/doc/{package}/copyright"
        if os.path.exists(licence):
            tree.sources[licence] = os.path.realpath(licence)


def spdx_id(kind: str, name: str) -> str:
    return f"SPDXRef-{kind}-" + re.sub(r"[^A-Za-z0-9.-]", "-", name)


def debian_package(name: str) -> dict:
    version, architecture, homepage = output(
        "dpkg-query", "-W", "-f", "${Version}\t${Architecture}\t${Homepage}", name).split("\n")[0].split("\t")
    return {"SPDXID": spdx_id("Package", name), "name": name, "versionInfo": version,
            "supplier": "Organization: Debian", "downloadLocation": "NOASSERTION", "filesAnalyzed": False,
            "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION", "copyrightText": "NOASSERTION",
            **({"homepage": homepage} if homepage else {}),
            "comment": f"Licence: /usr/share/doc/{name}/copyright",
            "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl",
                              "referenceLocator": f"pkg:deb/debian/{name}@{version}?arch={architecture}&distro=bookworm"}]}


def other_package(name: str, version: str, licence: str, comment: str) -> dict:
    return {"SPDXID": spdx_id("Package", name), "name": name, "versionInfo": version, "downloadLocation": "NOASSERTION",
            "filesAnalyzed": False, "licenseConcluded": licence, "licenseDeclared": licence,
            "copyrightText": "NOASSERTION", "comment": comment}


def sbom(tree: Tree, owners: dict[str, str], version: str, epoch: int | None) -> str:
    moment = datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc) if epoch is not None else \
        datetime.datetime.now(datetime.timezone.utc)
    packages = [other_package("millrace", version, "Apache-2.0", "The binary and the sample model")]
    packages += [debian_package(name) for name in sorted(set(owners.values()) - {"", "millrace"})]
    if "" in owners.values():
        packages.append(other_package("nvidia-libraries", "NOASSERTION", "NOASSERTION", "Named with --library"))
    compiled_in = [name for name in COMPILED_IN if subprocess.run(["dpkg-query", "-W", name],
                                                                  capture_output=True).returncode == 0]
    packages += [debian_package(name) for name in compiled_in if name not in owners.values()]
    relationships = [{"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES",
                      "relatedSpdxElement": spdx_id("Package", "millrace")}]
    relationships += [{"spdxElementId": spdx_id("Package", name), "relationshipType": "BUILD_DEPENDENCY_OF",
                       "relatedSpdxElement": spdx_id("Package", "millrace")} for name in compiled_in]
    files = []
    for number, (path, source) in enumerate(sorted(tree.sources.items())):
        data = pathlib.Path(source).read_bytes()
        files.append({"SPDXID": f"SPDXRef-File-{number}", "fileName": "." + path,
                      "checksums": [{"algorithm": "SHA1", "checksumValue": hashlib.sha1(data).hexdigest()},
                                    {"algorithm": "SHA256", "checksumValue": hashlib.sha256(data).hexdigest()}],
                      "licenseConcluded": "NOASSERTION", "licenseInfoInFiles": ["NOASSERTION"],
                      "copyrightText": "NOASSERTION"})
        relationships.append({"spdxElementId": spdx_id("Package", owners[path] or "nvidia-libraries"),
                              "relationshipType": "CONTAINS", "relatedSpdxElement": f"SPDXRef-File-{number}"})
    digest = hashlib.sha256("".join(f["checksums"][1]["checksumValue"] for f in files).encode()).hexdigest()
    return json.dumps({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": f"millrace-{version}",
        "documentNamespace": f"urn:millrace:image:{digest}",
        "creationInfo": {"created": moment.strftime("%Y-%m-%dT%H:%M:%SZ"), "creators": ["Tool: scripts/image_root.py"]},
        "packages": packages, "files": files, "relationships": relationships}, indent=1) + "\n"


def sizes(tree: Tree, owners: dict[str, str]) -> dict:
    by_package: dict[str, int] = {}
    for path, source in tree.sources.items():
        name = owners.get(path) or "other libraries"
        by_package[name] = by_package.get(name, 0) + os.path.getsize(source)
    return {"total_bytes": sum(by_package.values()),
            "base_bytes": sum(by_package.get(name, 0) for name in BASE_PACKAGES),
            "files": len(tree.sources), "by_package": dict(sorted(by_package.items(), key=lambda item: -item[1]))}


def stripped(binary: str, folder: pathlib.Path) -> str:
    copy = folder / "millrace.stripped"
    subprocess.run(["strip", "--strip-all", "-o", str(copy), binary], check=True)
    return str(copy)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder that does not exist yet")
    parser.add_argument("--library", action="append", default=[], metavar="FILE")
    parser.add_argument("--dry-run", action="store_true", help="print the size, leave nothing")
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"--out: {args.out} exists; name a new folder")
    for file in [args.binary, *args.library]:
        if not os.path.isfile(file):
            parser.error(f"{file}: no such file")
    epoch = int(os.environ["SOURCE_DATE_EPOCH"]) if os.environ.get("SOURCE_DATE_EPOCH") else None
    version = output(args.binary, "--version").split()[-1]
    args.out.mkdir(parents=True)
    try:
        tree = gather(stripped(args.binary, args.out), [os.path.abspath(file) for file in args.library])
        ours = {path: "millrace" for path in tree.sources if path == "/usr/bin/millrace" or "millrace/" in path}
        given = {f"{LIB}/{os.path.basename(file)}": packages_of([file])[file] for file in args.library}
        owners = {**packages_of([p for p in tree.sources if p not in ours and p not in given]), **given, **ours}
        add_package_records(tree, set(owners.values()) - {"", "millrace"})
        for path in tree.sources:
            if path not in owners:  # /usr/share/doc/PACKAGE/copyright
                owners[path] = path.split("/")[4]
        tree.texts["/usr/share/millrace/sbom.spdx.json"] = sbom(tree, owners, version, epoch)
        report = sizes(tree, owners)
        if args.dry_run:
            shutil.rmtree(args.out)
        else:
            tree.write(args.out, epoch)
            (args.out / "millrace.stripped").unlink()
    except BaseException:
        shutil.rmtree(args.out, ignore_errors=True)
        raise
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
