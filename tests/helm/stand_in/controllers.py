"""What makes pods of Deployments, StatefulSets and LeaderWorkerSets, and rolls them: the rules of Kubernetes's own controllers, as
far as the chart leans on them. One pass looks at everything; Controllers runs a pass whenever the store has changed."""

import copy
import hashlib
import json
import threading
import time
import uuid

from .api_server import Store, now


def digest(template: dict) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def amount(value, total: int, up: bool) -> int:
    """maxSurge and maxUnavailable: a number, or a share in per cent."""
    if isinstance(value, str) and value.endswith("%"):
        share = total * int(value[:-1])
        return -(-share // 100) if up else share // 100
    return int(value)


def ending(pod: dict) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def condition(pod: dict, kind: str) -> dict | None:
    return next((c for c in pod.get("status", {}).get("conditions", []) if c["type"] == kind), None)


def ready(pod: dict) -> bool:
    found = condition(pod, "Ready")
    return not ending(pod) and found is not None and found["status"] == "True"


def available(pod: dict, min_ready_seconds: int) -> bool:
    return ready(pod) and time.time() - pod["status"].get("readySince", 0) >= min_ready_seconds


class Controllers:
    def __init__(self, store: Store):
        self.store = store
        self.stopping = False
        self.errors: list[str] = []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def close(self):
        self.stopping = True
        self.thread.join()

    def run(self):
        while not self.stopping:
            with self.store.lock:
                before = self.store.version
                try:
                    self.step()
                except Exception as e:  # noqa: BLE001: a test asks for it
                    self.errors.append(repr(e))
                if self.store.version == before:
                    self.store.lock.wait(0.2)  # also minReadySeconds pass

    def step(self):
        for o in list(self.store.of_kind("leaderworkersets")):
            self.leader_worker_set(o)
        for o in list(self.store.of_kind("deployments")):
            self.deployment(o)
        for o in list(self.store.of_kind("replicasets")):
            self.replica_set(o)
        for o in list(self.store.of_kind("statefulsets")):
            self.stateful_set(o)

    def owned(self, plural: str, owner: dict) -> list[dict]:
        return [o for o in self.store.of_kind(plural)
                if any(r["uid"] == owner["metadata"]["uid"] for r in o["metadata"].get("ownerReferences", []))]

    def create(self, plural: str, owner: dict, o: dict):
        meta = owner["metadata"]
        o["metadata"]["ownerReferences"] = [{"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": meta["name"],
                                             "uid": meta["uid"], "controller": True, "blockOwnerDeletion": True}]
        self.store.create(plural, meta["namespace"], o)

    def pod(self, owner: dict, name: str, labels: dict):
        template = copy.deepcopy(owner["spec"]["template"])
        meta = template.setdefault("metadata", {})
        meta["name"] = name
        meta["labels"] = {**meta.get("labels", {}), **labels}
        self.create("pods", owner, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]})

    # --- Deployments ---------------------------------------------------------------------------------------------

    def deployment(self, o: dict):
        wanted = o["spec"].get("replicas", 1)
        revision = digest(o["spec"]["template"])
        sets = self.owned("replicasets", o)
        current = next((s for s in sets if s["metadata"]["labels"]["pod-template-hash"] == revision), None)
        if current is None:
            template = copy.deepcopy(o["spec"]["template"])
            template.setdefault("metadata", {}).setdefault("labels", {})["pod-template-hash"] = revision
            selector = copy.deepcopy(o["spec"]["selector"])
            selector["matchLabels"]["pod-template-hash"] = revision
            self.create("replicasets", o, {
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "status": {},
                "metadata": {"name": f"{o['metadata']['name']}-{revision}", "labels": template["metadata"]["labels"]},
                "spec": {"replicas": 0, "selector": selector, "template": template,
                         "minReadySeconds": o["spec"].get("minReadySeconds", 0)}})
            return
        self.scale(o, wanted, current, [s for s in sets if s is not current])

        pods = [p for s in self.owned("replicasets", o) for p in self.owned("pods", s) if not ending(p)]
        updated = [p for p in pods if p["metadata"]["labels"]["pod-template-hash"] == revision]
        on = sum(available(p, o["spec"].get("minReadySeconds", 0)) for p in pods)
        old = self.store.find("deployments", o["metadata"]["namespace"], o["metadata"]["name"]) or o
        self.store.set_status("deployments", old, {
            "observedGeneration": old["metadata"]["generation"], "replicas": len(pods), "updatedReplicas": len(updated),
            "readyReplicas": sum(map(ready, pods)), "availableReplicas": on, "unavailableReplicas": max(0, wanted - on),
            "conditions": [{"type": "Available", "status": str(on >= wanted), "reason": "MinimumReplicasAvailable"},
                           {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}]})

    def scale(self, o: dict, wanted: int, current: dict, olds: list[dict]):
        strategy = o["spec"].get("strategy", {}).get("rollingUpdate", {})
        surge = amount(strategy.get("maxSurge", "25%"), wanted, True)
        away = amount(strategy.get("maxUnavailable", "25%"), wanted, False)
        size = lambda s: s["spec"]["replicas"]  # noqa: E731
        old_total = sum(map(size, olds))
        self.resize(current, max(size(current) if size(current) <= wanted else wanted, min(wanted, wanted + surge - old_total)))
        min_ready = o["spec"].get("minReadySeconds", 0)
        pods = {id(s): [p for p in self.owned("pods", s) if not ending(p)] for s in [current, *olds]}
        on = sum(available(p, min_ready) for s in [current, *olds] for p in pods[id(s)])
        for s in olds:
            useless = sum(not available(p, min_ready) for p in pods[id(s)])
            spare = max(0, on - (wanted - away))
            fewer = min(size(s), useless + spare)
            on -= max(0, fewer - useless)
            self.resize(s, size(s) - fewer)

    def resize(self, s: dict, replicas: int):
        if s["spec"]["replicas"] != replicas:
            new = copy.deepcopy(s)
            new["spec"]["replicas"] = replicas
            self.store.replace("replicasets", s, new)

    def replica_set(self, s: dict):
        pods = sorted((p for p in self.owned("pods", s) if not ending(p)), key=ready)
        wanted = s["spec"]["replicas"]
        for _ in range(wanted - len(pods)):
            self.pod(s, f"{s['metadata']['name']}-{uuid.uuid4().hex[:5]}", {})
        for p in pods[:max(0, len(pods) - wanted)]:
            self.store.delete("pods", p)
        pods = [p for p in self.owned("pods", s) if not ending(p)]
        self.store.set_status("replicasets", s, {
            "observedGeneration": s["metadata"]["generation"], "replicas": len(pods), "fullyLabeledReplicas": len(pods),
            "readyReplicas": sum(map(ready, pods)),
            "availableReplicas": sum(available(p, s["spec"].get("minReadySeconds", 0)) for p in pods)})

    # --- StatefulSets --------------------------------------------------------------------------------------------

    def stateful_set(self, o: dict):
        name, spec = o["metadata"]["name"], o["spec"]
        wanted, first = spec.get("replicas", 1), spec.get("ordinals", {}).get("start", 0)
        update = f"{name}-{digest(spec['template'])}"
        pods = {int(p["metadata"]["name"].rpartition("-")[2]): p for p in self.owned("pods", o)}
        ordered = spec.get("podManagementPolicy", "OrderedReady") == "OrderedReady"
        numbers = range(first, first + wanted)
        for n in numbers:
            if n not in pods:
                if self.store.find("pods", o["metadata"]["namespace"], f"{name}-{n}"):
                    continue  # that of a set before it has yet to go
                self.pod(o, f"{name}-{n}", {"controller-revision-hash": update, "apps.kubernetes.io/pod-index": str(n),
                                            "statefulset.kubernetes.io/pod-name": f"{name}-{n}"})
                if ordered:
                    break
            elif ordered and not ready(pods[n]):
                break
        for n in sorted(set(pods) - set(numbers), reverse=True):
            self.store.delete("pods", pods[n])
        if spec.get("updateStrategy", {}).get("type", "RollingUpdate") == "RollingUpdate":
            self.roll(pods, numbers, update)

        alive = [p for p in self.owned("pods", o) if not ending(p)]
        updated = [p for p in alive if p["metadata"]["labels"]["controller-revision-hash"] == update]
        done = len(updated) == wanted and all(map(ready, updated))
        before = o.get("status", {}).get("currentRevision", update)
        self.store.set_status("statefulsets", o, {
            "observedGeneration": o["metadata"]["generation"], "replicas": len(alive), "readyReplicas": sum(map(ready, alive)),
            "availableReplicas": sum(available(p, spec.get("minReadySeconds", 0)) for p in alive),
            "updatedReplicas": len(updated), "currentReplicas": len(updated) if done else len(alive) - len(updated),
            "updateRevision": update, "currentRevision": update if done else before})

    def roll(self, pods: dict[int, dict], numbers: range, update: str):
        """From the last to the first, one at a time."""
        for n in reversed(numbers):
            if n not in pods or ending(pods[n]):
                return
            if pods[n]["metadata"]["labels"]["controller-revision-hash"] != update:
                self.store.delete("pods", pods[n])
                return
            if not ready(pods[n]):
                return


    # --- LeaderWorkerSets ----------------------------------------------------------------------------------------
    # As the operator does it: a StatefulSet of the leaders; for each leader one of its workers, which goes with that leader; a headless
    # Service for all. Known here is what the chart asks for: subdomainPolicy Shared, restartPolicy None, no surge.

    LABEL = "leaderworkerset.sigs.k8s.io/"

    def leader_worker_set(self, o: dict):
        meta, spec = o["metadata"], o["spec"]
        name, namespace, size = meta["name"], meta["namespace"], spec["leaderWorkerTemplate"].get("size", 1)
        whose = {self.LABEL + "name": name}
        if self.store.find("services", namespace, name) is None:
            self.create("services", o, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {
                "clusterIP": "None", "publishNotReadyAddresses": True, "selector": dict(whose)}})
        revision = digest(spec["leaderWorkerTemplate"])
        worker = spec["leaderWorkerTemplate"]["workerTemplate"]
        leaders = self.group(o, name, {**whose, self.LABEL + "worker-index": "0", self.LABEL + "template-revision-hash": revision},
                             spec["leaderWorkerTemplate"].get("leaderTemplate", worker), spec.get("replicas", 1), 0)
        for leader in self.owned("pods", leaders):
            group = leader["metadata"]["name"].rpartition("-")[2]
            if size > 1 and not ending(leader):
                self.group(leader, leader["metadata"]["name"], {
                    **whose, self.LABEL + "group-index": group,
                    self.LABEL + "template-revision-hash": leader["metadata"]["labels"][self.LABEL + "template-revision-hash"]},
                    worker, size - 1, 1)
        status = leaders.get("status", {})
        self.store.set_status("leaderworkersets", o, {
            "observedGeneration": meta["generation"], "replicas": spec.get("replicas", 1), "readyReplicas": status.get("readyReplicas", 0),
            "updatedReplicas": status.get("updatedReplicas", 0)})

    def group(self, owner: dict, name: str, labels: dict, template: dict, replicas: int, first: int) -> dict:
        """The StatefulSet `name`. One of workers stays as its leader is: a new template comes with a new leader."""
        namespace = owner["metadata"]["namespace"]
        template = copy.deepcopy(template)
        template["metadata"]["labels"] = {**template["metadata"].get("labels", {}), **labels}
        shown = {k: v for k, v in labels.items() if not k.endswith("revision-hash")}
        wanted = {"replicas": replicas, "serviceName": labels[self.LABEL + "name"], "podManagementPolicy": "Parallel",
                  "ordinals": {"start": first}, "selector": {"matchLabels": shown}, "template": template}
        found = self.store.find("statefulsets", namespace, name)
        if found is None:
            self.create("statefulsets", owner, {"apiVersion": "apps/v1", "kind": "StatefulSet", "spec": wanted,
                                                "metadata": {"name": name, "labels": shown}})
        elif owner["kind"] == "LeaderWorkerSet":
            self.store.replace("statefulsets", found, {**copy.deepcopy(found), "spec": {**copy.deepcopy(found["spec"]), **wanted}})
        return self.store.find("statefulsets", namespace, name)


def pod_conditions(is_ready: bool, initialised: bool = True) -> list[dict]:
    return [{"type": kind, "status": str(on), "lastTransitionTime": now()}
            for kind, on in (("PodScheduled", True), ("Initialized", initialised), ("ContainersReady", is_ready), ("Ready", is_ready))]
