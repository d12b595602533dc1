"""A stand-in for a node: pods become containers of the real image, with the files, environment, addresses and names that the
chart asked for, their probes asked, their preStop run, and SIGTERM sent when they go.

Every pod has a network of its own on a bridge; Services have an address each, where a small proxy hands connections to ready
pods; names are in each pod's /etc/hosts as the cluster's DNS would answer them. All of it is in the network namespace of the
test, which own_network() makes. Not here: scheduling, images (an image called `missing` cannot be pulled, all others are the one
under test), limits of memory and CPU, NetworkPolicies.
"""

import base64
import copy
import ctypes
import http.client
import itertools
import os
import pathlib
import socket
import subprocess
import threading
import time

from container import ENTER, Container

from .api_server import Store
from .controllers import ending, pod_conditions, ready

CLUSTER = "svc.cluster.local"
NODE = "10.244.0.1"
CLONE_NEWNET = 0x40000000
NUMBERS = itertools.count(1)  # of pods, in all clusters of this process: the kernel takes its time to forget a pod's interfaces


def ip(*words: str):
    subprocess.run(["ip", *words], check=True, capture_output=True)


def own_network():
    """From here on this process and what it starts have a network namespace of their own, with a bridge for pods."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    ip("link", "set", "lo", "up")
    ip("link", "add", "pods", "type", "bridge")
    ip("addr", "add", f"{NODE}/16", "dev", "pods")
    ip("link", "set", "pods", "up")


class Sandbox:
    """What the containers of a pod share: its network and host name."""

    def __init__(self, number: int, name: str):
        self.address = f"10.244.{number // 250 + 1}.{number % 250 + 1}"
        self.process = subprocess.Popen(["unshare", "--net", "--uts", "sh", "-c", f"hostname {name}; echo up; exec sleep infinity"],
                                        stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()
        pid, outside = str(self.process.pid), f"pod{number}"
        ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", pid)
        ip("link", "set", outside, "master", "pods", "up")
        for words in (("link", "set", "lo", "up"), ("addr", "add", f"{self.address}/16", "dev", "eth0"),
                      ("link", "set", "eth0", "up"), ("route", "add", "default", "via", NODE)):
            subprocess.run([ENTER, "-t", pid, "-n", "ip", *words], check=True, capture_output=True)

    @property
    def network(self) -> str:
        return f"/proc/{self.process.pid}/ns/net"

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Proxy:
    """A Service's address and port: each connection goes to the next ready pod."""

    def __init__(self, node: "Node", namespace: str, name: str, address: str, port: dict):
        self.node, self.namespace, self.name, self.port = node, namespace, name, port
        self.turn = 0
        self.listener = socket.create_server((address, port["port"]))
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.carry, args=(client,), daemon=True).start()

    def carry(self, client: socket.socket):
        with client:
            for _ in range(3):  # a pod may go between the look and the call
                targets = self.node.endpoints(self.namespace, self.name, self.port)
                if not targets:
                    return
                self.turn += 1
                try:
                    server = socket.create_connection(targets[self.turn % len(targets)], timeout=2)
                except OSError:
                    continue
                server.settimeout(None)
                with server:
                    back = threading.Thread(target=self.copy, args=(server, client), daemon=True)
                    back.start()
                    self.copy(client, server)
                    back.join()
                return

    @staticmethod
    def copy(source: socket.socket, target: socket.socket):
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        try:
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)  # a thread in accept() would keep the port
        self.listener.close()


class Pod(threading.Thread):
    """One pod, from its creation until nothing is left of it."""

    def __init__(self, node: "Node", pod: dict, number: int):
        super().__init__(daemon=True)
        self.node, self.number = node, number
        self.namespace, self.name, self.uid = (pod["metadata"][k] for k in ("namespace", "name", "uid"))
        self.meta, self.spec = copy.deepcopy(pod["metadata"]), copy.deepcopy(pod["spec"])
        self.folder = node.folder / f"{self.name}-{number}"
        self.log = self.folder / "log"
        self.container: Container | None = None
        self.restarts = 0
        self.started: float | None = None  # when the startup probe had succeeded
        self.is_ready = False

    def run(self):
        try:
            self.folder.mkdir()
            self.sandbox = Sandbox(self.number, self.spec.get("hostname", self.name)[:63])
            try:
                self.live()
            finally:
                self.sandbox.close()
        except Exception as e:  # noqa: BLE001: shown with the pod's log
            self.node.errors.append(f"{self.name}: {e!r}")
        with self.node.store.lock:
            if (pod := self.current()) is not None and ending(pod):
                self.node.store.remove("pods", pod)
            self.node.pods.pop(self.uid, None)

    def current(self) -> dict | None:
        pod = self.node.store.find("pods", self.namespace, self.name)
        return pod if pod is not None and pod["metadata"]["uid"] == self.uid else None

    def leaving(self) -> bool:
        with self.node.store.lock:
            pod = self.current()
            return pod is None or ending(pod) or self.node.stopping

    def report(self, phase: str, is_ready: bool, reason: str = ""):
        self.is_ready = is_ready
        with self.node.store.lock:
            pod = self.current()
            if pod is None:
                return
            before = pod.get("status", {})
            container = self.spec["containers"][0]
            state = {"waiting": {"reason": reason}} if reason else {"running": {}} if phase == "Running" else \
                {"terminated": {"exitCode": 0 if phase == "Succeeded" else 1, "reason": "Completed"}}
            status = {"phase": phase, "reason": reason, "podIP": self.sandbox.address, "hostIP": NODE, "conditions": pod_conditions(is_ready),
                      "containerStatuses": [{"name": container["name"], "ready": is_ready, "restartCount": self.restarts,
                                             "image": container["image"], "imageID": "", "started": self.started is not None,
                                             "state": state}]}
            same = before.get("phase") == phase and ready(pod) == is_ready and before.get("reason") == reason \
                and before.get("containerStatuses", [{}])[0].get("restartCount") == self.restarts
            if same:
                return
            if is_ready:
                status["readySince"] = time.time()
            self.node.store.set_status("pods", pod, status)

    # --- what the container sees ------------------------------------------------------------------------------------

    def value(self, variable: dict) -> str:
        if "value" in variable or "valueFrom" not in variable:
            return variable.get("value", "")
        source = variable["valueFrom"]
        if "fieldRef" in source:
            path = source["fieldRef"]["fieldPath"]
            known = {"metadata.name": self.name, "metadata.namespace": self.namespace, "status.podIP": self.sandbox.address,
                     "spec.nodeName": "node"}
            if path.startswith("metadata.labels['"):
                return self.meta["labels"].get(path[len("metadata.labels['"):-2], "")
            return known[path]
        key = source["secretKeyRef"]
        secret = self.node.store.find("secrets", self.namespace, key["name"])
        return base64.b64decode(secret["data"][key["key"]]).decode()

    def volume(self, volume: dict) -> pathlib.Path:
        folder = self.folder / "volumes" / volume["name"]
        if folder.exists():
            return folder
        folder.mkdir(parents=True)
        group = self.spec.get("securityContext", {}).get("fsGroup", 0)
        if "configMap" in volume or "secret" in volume:
            kind = "configMap" if "configMap" in volume else "secret"
            source = volume[kind]
            with self.node.store.lock:
                o = self.node.store.find(kind.lower() + "s", self.namespace, source.get("name", source.get("secretName")))
                if o is None:
                    raise FileNotFoundError(f"{kind} of volume {volume['name']}")
                data = {k: v.encode() for k, v in o.get("data", {}).items()} if kind == "configMap" else \
                    {k: base64.b64decode(v) for k, v in o["data"].items()}
            items = source.get("items") or [{"key": k, "path": k} for k in data]
            for item in items:
                path = folder / item["path"]
                path.write_bytes(data[item["key"]])
                os.chown(path, 0, group)
                path.chmod(source.get("defaultMode", 0o644))
        elif "hostPath" in volume:
            path = pathlib.Path(volume["hostPath"]["path"])
            if volume["hostPath"].get("type") == "Directory" and not path.is_dir():
                raise FileNotFoundError(f"hostPath {path} of volume {volume['name']}")
            folder.rmdir()
            folder.symlink_to(path)
        elif "emptyDir" in volume:
            os.chown(folder, 0, group)
            folder.chmod(0o2777)
            if volume["emptyDir"].get("medium") == "Memory":
                subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(folder)], check=True)
                self.node.mounts.append(folder)
        else:
            raise ValueError(f"volume {volume['name']}: a kind that is not known here")
        return folder

    def start_container(self, container: dict) -> Container:
        volumes = {v["name"]: v for v in self.spec.get("volumes", [])}
        mounts = [(str(self.volume(volumes[m["name"]])), m["mountPath"], m.get("readOnly", False))
                  for m in container.get("volumeMounts", [])]
        mounts += [(str(self.hosts()), "/etc/hosts", True), (str(self.node.host_conf), "/etc/host.conf", True)]
        environment = {**self.node.image_environment, **{e["name"]: self.value(e) for e in container.get("env", [])}}
        command = container.get("command", self.node.image_entry_point) + container.get("args", [])
        command = [environment_expanded(word, environment) for word in command]
        security = {**self.spec.get("securityContext", {}), **container.get("securityContext", {})}
        user = f"{security.get('runAsUser', 10001)}:{security.get('runAsGroup', 10001)}"
        with open(self.log, "ab") as log:
            return Container(self.node.root, command, environment, user=user, groups=str(security.get("fsGroup", "")), mounts=mounts,
                             read_only=bool(security.get("readOnlyRootFilesystem")), network=self.sandbox.network, output=log)

    def hosts(self) -> pathlib.Path:
        path = self.folder / "hosts"
        with self.node.store.lock:
            lines = self.node.names()
        search = self.spec.get("dnsConfig", {}).get("searches", []) + [f"{self.namespace}.{CLUSTER}", CLUSTER, "cluster.local"]
        text = f"127.0.0.1 localhost\n{self.sandbox.address} {self.spec.get('hostname', self.name)}\n"
        for address, name in lines:
            short = [name[:-len(suffix) - 1] for suffix in search if name.endswith("." + suffix)]
            text += " ".join([address, name, name + ".", *short]) + "\n"  # the dot: as it stands, without the search list
        data = text.encode()
        if not path.exists() or path.read_bytes() != data:
            with open(path, "r+b" if path.exists() else "wb") as file:  # the same file: it is mounted
                file.write(data)
                file.truncate()
        return path

    # --- its life -----------------------------------------------------------------------------------------------------

    def live(self):
        container = self.spec["containers"][0]
        if "missing" in container["image"]:
            while not self.leaving():
                self.report("Pending", False, "ImagePullBackOff")
                time.sleep(0.1)
            return
        self.report("Pending", False, "PodInitializing")
        for init in self.spec.get("initContainers", []):
            while (started := self.start_container(init)).process.wait() != 0:
                self.restarts += 1
                self.report("Pending", False, "Init:CrashLoopBackOff")
                time.sleep(0.5)
                if self.leaving():
                    return
        while not self.leaving():
            self.container = self.start_container(container)
            self.started = None if "startupProbe" in container else time.monotonic()
            ended = self.attend(container)
            if not ended:
                self.end(container)
                return
            status = self.container.process.returncode
            if self.spec.get("restartPolicy", "Always") == "Never":
                self.report("Succeeded" if status == 0 else "Failed", False)
                return
            self.restarts += 1
            self.report("Running", False, "CrashLoopBackOff")
            time.sleep(0.5)

    def attend(self, container: dict) -> bool:
        """Asks the probes until the container ends (true) or the pod is to go (false)."""
        failures = {kind: 0 for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
        due = dict.fromkeys(failures, 0.0)
        is_ready = "readinessProbe" not in container and self.started is not None
        while not self.leaving():
            if self.container.process.poll() is not None:
                return True
            self.hosts()
            for kind in ["startupProbe"] if self.started is None else ["readinessProbe", "livenessProbe"]:
                probe = container.get(kind)
                if probe is None or time.monotonic() < due[kind]:
                    continue
                due[kind] = time.monotonic() + min(probe.get("periodSeconds", 10), 1)  # as often, or more often to save time
                good = self.probe(probe)
                failures[kind] = 0 if good else failures[kind] + 1
                limit = probe.get("failureThreshold", 3) * max(1, probe.get("periodSeconds", 10))
                if kind == "startupProbe" and good:
                    self.started = time.monotonic()
                    is_ready = "readinessProbe" not in container
                elif kind == "readinessProbe":
                    is_ready = good or (is_ready and failures[kind] < probe.get("failureThreshold", 3))
                elif failures[kind] >= limit:
                    self.node.errors.append(f"{self.name}: {kind} failed, killed")
                    self.container.signal(9)
            self.report("Running", is_ready)
            time.sleep(0.1)
        return False

    def probe(self, probe: dict) -> bool:
        limit = probe.get("timeoutSeconds", 1)
        if "exec" in probe:
            return self.container.run(probe["exec"]["command"], 10).returncode == 0
        container = self.spec["containers"][0]
        target = probe.get("httpGet", probe.get("tcpSocket"))
        port = next((p["containerPort"] for p in container.get("ports", []) if p["name"] == target["port"]), target["port"])
        try:
            if "tcpSocket" in probe:
                socket.create_connection((self.sandbox.address, port), limit).close()
                return True
            connection = http.client.HTTPConnection(self.sandbox.address, port, timeout=limit)
            try:
                connection.request("GET", target["path"])
                return 200 <= connection.getresponse().status < 400
            finally:
                connection.close()
        except (OSError, http.client.HTTPException):
            return False

    def end(self, container: dict):
        """preStop and SIGTERM within the grace period."""
        deadline = time.monotonic() + self.spec.get("terminationGracePeriodSeconds", 30)
        self.report("Running", False)
        before = container.get("lifecycle", {}).get("preStop", {})
        if "sleep" in before:
            time.sleep(before["sleep"]["seconds"])
        elif "exec" in before:
            try:
                done = self.container.run(before["exec"]["command"], deadline - time.monotonic())
                said = done.stderr if done.returncode != 0 else ""
            except ProcessLookupError as e:
                said = str(e)
            # One that crashes again and again has nothing to drain.
            if said and not (self.started is None and self.restarts):
                self.node.errors.append(f"{self.name}: preStop: {said}")
        self.container.signal()
        try:
            status = self.container.process.wait(max(0.1, deadline - time.monotonic()))
            # Before its start-up probe has succeeded, SIGTERM may meet a process without handlers, or one that crashes again and again.
            if status != 0 and not (self.started is None and (status == 143 or self.restarts)):
                self.node.errors.append(f"{self.name}: ended with {status}: {self.log.read_text(errors='replace')[-600:]}")
        except subprocess.TimeoutExpired:
            self.node.errors.append(f"{self.name}: killed after its grace period")
            self.container.signal(9)
            self.container.process.wait()


def environment_expanded(word: str, environment: dict[str, str]) -> str:
    for name, value in environment.items():
        word = word.replace(f"$({name})", value)
    return word


class Node:
    """`root`: the image's file system; mount points that pods need are made in it."""

    def __init__(self, store: Store, root: pathlib.Path, folder: pathlib.Path, entry_point: list[str], environment: dict[str, str]):
        self.store, self.root, self.folder = store, root, folder
        self.image_entry_point, self.image_environment = entry_point, environment
        self.pods: dict[str, Pod] = {}
        self.proxies: dict[str, list[Proxy]] = {}
        self.mounts: list[pathlib.Path] = []
        self.errors: list[str] = []
        self.stopping = False
        self.host_conf = folder / "host.conf"
        self.host_conf.write_text("multi on\n")  # all addresses of a name, as DNS gives them
        for file in ("etc/hosts", "etc/host.conf"):
            (root / file).touch()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stopping:
            try:
                self.step()
            except Exception as e:  # noqa: BLE001: a test asks for it
                self.errors.append(repr(e))
            time.sleep(0.05)

    def step(self):
        with self.store.lock:
            for pod in self.store.of_kind("pods"):
                if pod["metadata"]["uid"] not in self.pods and pod["status"].get("phase") == "Pending" and not ending(pod):
                    self.make_mount_points(pod)
                    self.pods[pod["metadata"]["uid"]] = started = Pod(self, pod, next(NUMBERS))
                    started.start()
                elif pod["metadata"]["uid"] not in self.pods and ending(pod):
                    self.store.remove("pods", pod)
            services = {s["metadata"]["uid"]: s for s in self.store.of_kind("services")}
        for uid, service in services.items():
            if uid not in self.proxies:
                self.proxies[uid] = self.serve(service)
        for uid in set(self.proxies) - set(services):
            for proxy in self.proxies.pop(uid):
                proxy.close()

    def make_mount_points(self, pod: dict):
        for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
            for mount in container.get("volumeMounts", []):
                if not mount["mountPath"].startswith(("/dev", "/tmp/")):
                    (self.root / mount["mountPath"][1:]).mkdir(parents=True, exist_ok=True)

    def serve(self, service: dict) -> list[Proxy]:
        address = service["spec"]["clusterIP"]
        if address == "None":
            return []
        ip("addr", "replace", f"{address}/32", "dev", "lo")  # a cluster before this one may have had it
        meta = service["metadata"]
        return [Proxy(self, meta["namespace"], meta["name"], address, port) for port in service["spec"]["ports"]]

    def chosen(self, service: dict) -> list[dict]:
        """Pods that a Service selects and that have an address."""
        wanted = service["spec"].get("selector", {})
        not_ready_too = service["spec"].get("publishNotReadyAddresses", False)
        return [p for p in self.store.of_kind("pods") if p["status"].get("podIP") and p["status"]["phase"] == "Running"
                and wanted.items() <= p["metadata"].get("labels", {}).items() and (ready(p) or not_ready_too)]

    def endpoints(self, namespace: str, name: str, port: dict) -> list[tuple[str, int]]:
        with self.store.lock:
            service = self.store.find("services", namespace, name)
            found = []
            for pod in self.chosen(service) if service else []:
                target = port.get("targetPort", port["port"])
                number = next((p["containerPort"] for p in pod["spec"]["containers"][0].get("ports", [])
                               if p.get("name") == target), target)
                found.append((pod["status"]["podIP"], number))
            return found

    def names(self) -> list[tuple[str, str]]:
        """What the cluster's DNS knows."""
        lines = []
        for service in self.store.of_kind("services"):
            name = f"{service['metadata']['name']}.{service['metadata']['namespace']}.{CLUSTER}"
            if service["spec"]["clusterIP"] != "None":
                lines.append((service["spec"]["clusterIP"], name))
                continue
            for pod in self.chosen(service):
                lines.append((pod["status"]["podIP"], name))
                lines.append((pod["status"]["podIP"], f"{pod['spec'].get('hostname', pod['metadata']['name'])}.{name}"))
        return lines

    def log(self, pod: dict) -> str:
        found = self.pods.get(pod["metadata"]["uid"])
        return found.log.read_text(errors="replace") if found and found.log.exists() else ""

    def close(self):
        self.stopping = True
        self.thread.join()
        for pod in list(self.pods.values()):
            pod.join(60)
        for proxies in self.proxies.values():
            for proxy in proxies:
                proxy.close()
        for folder in self.mounts:
            subprocess.run(["umount", str(folder)], check=False)
