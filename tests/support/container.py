"""Runs a container of a root file system as a runtime does, with what every Linux has: namespaces for processes, mounts and
names, a read-only root, the image's user and entry point. Needs root. No cgroups, no seccomp, no image store."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time

ENTER = shutil.which("nsenter") or "/usr/bin/nsenter"
CHROOT = shutil.which("chroot", path="/usr/sbin:/usr/bin:/sbin:/bin") or "/usr/sbin/chroot"


def may_run() -> str:
    """Empty, or why no container can be run here."""
    if os.geteuid() != 0:
        return "containers need root"
    trial = subprocess.run(["unshare", "--mount", "--pid", "--net", "--uts", "--fork", "true"], capture_output=True, text=True)
    return f"no right to make namespaces: {trial.stderr.strip()}" if trial.returncode else ""


def runtime_script(root: str, command: list[str], environment: dict[str, str], user: str, groups: str,
                   mounts: list[tuple[str, str, bool]], read_only: bool) -> str:
    """What happens between the new namespaces and the entry point. Mount points must be there: the root may be shared."""
    lines = ["set -e", "mount --make-rprivate /", f"mount --bind {root} {root}", f"mount -t proc proc {root}/proc",
             f"mount --bind /sys {root}/sys", f"mount -o remount,bind,ro {root}/sys",
             f"mount -t tmpfs -o mode=755 tmpfs {root}/dev"]
    for device in ("null", "zero", "full", "random", "urandom", "tty"):
        lines += [f"touch {root}/dev/{device}", f"mount --bind /dev/{device} {root}/dev/{device}"]
    lines += [f"mkdir -m 1777 {root}/dev/shm", f"mount -t tmpfs -o mode=1777 tmpfs {root}/dev/shm",
              f"mount -t tmpfs -o mode=1777 tmpfs {root}/tmp"]
    for source, target, fixed in mounts:
        place = shlex.quote(root + target)
        lines.append(f"mount --bind {shlex.quote(source)} {place}")
        if fixed:
            lines.append(f"mount -o remount,bind,ro {place}")
    if read_only:
        lines.append(f"mount -o remount,bind,ro {root}")
    words = " ".join(shlex.quote(word) for word in [f"--userspec={user}", f"--groups={groups}", root, *command])
    variables = " ".join(shlex.quote(f"{k}={v}") for k, v in environment.items())
    lines.append(f"exec env -i {variables} {CHROOT} {words}")
    return "\n".join(lines)


class Container:
    """Started on construction. `network`: path of a network namespace, or the caller's own. Output goes to `output`."""

    def __init__(self, root, command: list[str], environment: dict[str, str], *, user: str, groups: str = "",
                 mounts: list[tuple[str, str, bool]] = (), read_only: bool = True, network: str = "", output=subprocess.PIPE):
        self.user, self.groups, self.environment = user, groups, environment
        script = runtime_script(str(root), command, environment, user, groups, list(mounts), read_only)
        enter = [ENTER, f"--net={network}", f"--uts={network.removesuffix('net')}uts"] if network else []
        self.process = subprocess.Popen([*enter, "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script],
                                        stdout=output, stderr=subprocess.STDOUT, text=True)

    def first(self, limit_s: float = 10) -> int:
        """Process 1 of the container, as this machine numbers it."""
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        deadline = time.monotonic() + limit_s
        while not (found := children.read_text().split()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise ProcessLookupError("the container has ended")
            time.sleep(0.01)
        return int(found[0])

    def processes(self) -> dict[int, dict]:
        """Of the container's process namespace: what /proc says of each."""
        space = os.readlink(f"/proc/{self.first()}/ns/pid")
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.readlink(entry / "ns/pid") == space:
                        status = dict(line.split(":\t", 1) for line in (entry / "status").read_text().splitlines())
                        found[int(entry.name)] = {**status, "command": (entry / "cmdline").read_bytes().split(b"\0")}
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    pass  # has ended, or is none of ours
        return found

    def run(self, command: list[str], limit_s: float) -> subprocess.CompletedProcess:
        """A further command in the container, as its user (`kubectl exec`)."""
        uid, gid = self.user.split(":")
        variables = [f"{k}={v}" for k, v in self.environment.items()]
        pid = self.first()
        return subprocess.run([ENTER, "-t", str(pid), "-m", "-p", "-n", "-u", "-r", "-w", "-S", uid, "-G", gid, "--", *command],
                              env=dict(v.split("=", 1) for v in variables), capture_output=True, text=True, timeout=limit_s)

    def signal(self, number: int = signal.SIGTERM):
        try:
            os.kill(self.first(), number)
        except (ProcessLookupError, FileNotFoundError):
            pass
