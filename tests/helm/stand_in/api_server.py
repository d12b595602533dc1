"""A stand-in for Kubernetes's API server: the objects that the chart makes, with what Helm's client needs of the protocol.

Kept: objects with uid, resourceVersion and generation; create, read, update, patch, delete with grace and owners; lists and
watches with selectors; discovery; strict schemas of what clients send. Left out: admission, most defaults, what an API server checks
beyond schemas, access rights, quotas, conversion. Objects are taken as given by whoever holds `lock`.
"""

import copy
import datetime
import http.server
import json
import re
import threading
import urllib.parse
import urllib.request
import uuid

from . import patches

VERSION = "1.34"
# API -> plural -> (kind, in namespaces)
RESOURCES = {
    "v1": {"namespaces": ("Namespace", False), "pods": ("Pod", True), "services": ("Service", True),
           "configmaps": ("ConfigMap", True), "secrets": ("Secret", True), "serviceaccounts": ("ServiceAccount", True),
           "events": ("Event", True), "persistentvolumeclaims": ("PersistentVolumeClaim", True),
           "replicationcontrollers": ("ReplicationController", True)},
    "apps/v1": {"deployments": ("Deployment", True), "statefulsets": ("StatefulSet", True),
                "replicasets": ("ReplicaSet", True), "daemonsets": ("DaemonSet", True)},
    "batch/v1": {"jobs": ("Job", True)},
    "policy/v1": {"poddisruptionbudgets": ("PodDisruptionBudget", True)},
    "autoscaling/v2": {"horizontalpodautoscalers": ("HorizontalPodAutoscaler", True)},
    "networking.k8s.io/v1": {"networkpolicies": ("NetworkPolicy", True)},
}
# What a cluster has when its operators are installed.
OPTIONAL = {
    "leaderworkerset.x-k8s.io/v1": {"leaderworkersets": ("LeaderWorkerSet", True)},
    "monitoring.coreos.com/v1": {"servicemonitors": ("ServiceMonitor", True), "podmonitors": ("PodMonitor", True),
                                 "prometheusrules": ("PrometheusRule", True)},
    "keda.sh/v1alpha1": {"scaledobjects": ("ScaledObject", True)},
    "gateway.networking.k8s.io/v1": {"httproutes": ("HTTPRoute", True)},
    "inference.networking.k8s.io/v1": {"inferencepools": ("InferencePool", True)},
}
PLURAL = {kind: plural for plurals in RESOURCES.values() for plural, (kind, _) in plurals.items()}
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Failure(Exception):
    def __init__(self, code: int, reason: str, message: str):
        super().__init__(message)
        self.status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
                       "reason": reason, "code": code}


def without_nulls(o):
    if isinstance(o, dict):
        return {k: without_nulls(v) for k, v in o.items() if v is not None}
    return [without_nulls(v) for v in o] if isinstance(o, list) else o


def labels_match(selector: str, labels: dict) -> bool:
    for part in filter(None, re.split(r",(?![^(]*\))", selector)):
        if found := re.fullmatch(r"\s*(\S+)\s+(in|notin)\s+\(([^)]*)\)\s*", part):
            values = [v.strip() for v in found.group(3).split(",")]
            if (labels.get(found.group(1)) in values) != (found.group(2) == "in"):
                return False
        elif "!=" in part:
            key, value = part.split("!=")
            if labels.get(key) == value:
                return False
        elif "=" in part:
            key, value = re.split("==?", part, maxsplit=1)
            if labels.get(key) != value:
                return False
        elif part.startswith("!") == (part.strip("! ") in labels):
            return False
    return True


def set_defaults(plural: str, o: dict):
    """The few that Helm's waiting looks at."""
    if plural == "pods":
        o.setdefault("status", {"phase": "Pending"})
    elif plural in ("statefulsets", "deployments"):
        o["spec"].setdefault("replicas", 1)
        strategy = o["spec"].setdefault("updateStrategy" if plural == "statefulsets" else "strategy", {})
        if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
            rolling = strategy.setdefault("rollingUpdate", {})
            for field, value in ({"partition": 0} if plural == "statefulsets" else {"maxSurge": "25%", "maxUnavailable": "25%"}).items():
                rolling.setdefault(field, value)


class Store:
    """All objects, by (plural, namespace, name). Every change is an event with a version of its own."""

    def __init__(self):
        self.lock = threading.Condition()
        self.objects: dict[tuple[str, str, str], dict] = {}
        self.events: list[tuple[int, str, str, dict]] = []  # version, type, plural, object
        self.version = 0
        self.addresses = 0

    def record(self, kind: str, plural: str, o: dict):
        self.version += 1
        o["metadata"]["resourceVersion"] = str(self.version)
        self.events.append((self.version, kind, plural, copy.deepcopy(o)))
        self.lock.notify_all()

    def find(self, plural: str, namespace: str, name: str) -> dict | None:
        return self.objects.get((plural, namespace, name))

    def of_kind(self, plural: str) -> list[dict]:
        return [o for (p, _, _), o in self.objects.items() if p == plural]

    def create(self, plural: str, namespace: str, o: dict) -> dict:
        meta = o.setdefault("metadata", {})
        if "name" not in meta:
            meta["name"] = meta.get("generateName", "") + uuid.uuid4().hex[:5]
        if plural != "namespaces":
            meta["namespace"] = namespace
        key = (plural, namespace, meta["name"])
        if key in self.objects:
            raise Failure(409, "AlreadyExists", f'{plural} "{meta["name"]}" already exists')
        meta.update(uid=str(uuid.uuid4()), creationTimestamp=now(), generation=1)
        if plural == "services":
            self.addresses += 1
            o["spec"].setdefault("clusterIP", f"10.96.0.{self.addresses}")
        set_defaults(plural, o)
        self.objects[key] = o
        self.record("ADDED", plural, o)
        return o

    def replace(self, plural: str, old: dict, new: dict) -> dict:
        key = (plural, old["metadata"].get("namespace", ""), old["metadata"]["name"])
        for field in ("uid", "creationTimestamp", "namespace", "name", "generation", "deletionTimestamp"):
            if field in old["metadata"]:
                new["metadata"][field] = old["metadata"][field]
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        set_defaults(plural, new)
        if new == old:
            return old
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] = old["metadata"]["generation"] + 1
        self.objects[key] = new
        self.record("MODIFIED", plural, new)
        return new

    def set_status(self, plural: str, o: dict, status: dict):
        if o.get("status") != status:
            self.replace(plural, o, {**copy.deepcopy(o), "status": status})

    def delete(self, plural: str, o: dict):
        """Pods go when their node has ended them; the others at once, and what they own with them."""
        meta = o["metadata"]
        if plural == "pods" and o.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            if "deletionTimestamp" not in meta:
                meta["deletionTimestamp"] = now()
                self.record("MODIFIED", plural, o)
            return
        self.remove(plural, o)

    def remove(self, plural: str, o: dict):
        meta = o["metadata"]
        if self.objects.pop((plural, meta.get("namespace", ""), meta["name"]), None) is None:
            return
        self.record("DELETED", plural, o)
        for (owned_plural, _, _), owned in list(self.objects.items()):
            if any(r["uid"] == meta["uid"] for r in owned["metadata"].get("ownerReferences", [])):
                self.delete(owned_plural, owned)


def discovery(path: str, resources: dict) -> dict | None:
    groups = sorted({api.split("/")[0] for api in resources if "/" in api})
    versions = {g: [{"groupVersion": api, "version": api.split("/")[1]} for api in resources if api.startswith(g + "/")] for g in groups}
    if path == "/version":
        major, minor = VERSION.split(".")
        return {"major": major, "minor": minor, "gitVersion": f"v{VERSION}.0", "platform": "linux/amd64"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        return {"kind": "APIGroupList", "apiVersion": "v1",
                "groups": [{"name": g, "versions": versions[g], "preferredVersion": versions[g][0]} for g in groups]}
    api = re.sub(r"^/(api|apis)/", "", path)
    if api in resources:
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api,
                "resources": [{"name": plural, "singularName": kind.lower(), "namespaced": inside, "kind": kind, "verbs": VERBS}
                              for plural, (kind, inside) in resources[api].items()]}
    # Clients look here whether patches check fields (fieldValidation).
    if path == "/openapi/v3":
        return {"paths": {("apis/" if "/" in a else "api/") + a: {"serverRelativeURL": "/openapi/v3/" + ("apis/" if "/" in a else "api/") + a}
                          for a in resources}}
    if path.startswith("/openapi/v3/"):
        root = path[len("/openapi/v3"):]
        api = re.sub(r"^/(api|apis)/", "", root)
        group, _, version = api.rpartition("/")
        patch = lambda kind: {"patch": {"parameters": [{"name": "fieldValidation", "in": "query"}], "x-kubernetes-group-version-kind":  # noqa: E731
                                        {"group": group, "version": version, "kind": kind}}}
        return {"openapi": "3.0.0", "info": {"title": "stand-in", "version": VERSION}, "paths": {
            f"{root}/namespaces/{{namespace}}/{plural}/{{name}}": patch(kind) for plural, (kind, _) in resources.get(api, {}).items()}}
    return None


ROUTE = re.compile(r"^/(?:api/(?P<core>v1)|apis/(?P<api>[^/]+/[^/]+))(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)"
                   r"(?:/(?P<name>[^/]+))?(?:/(?P<part>status|log))?$")


# http://service.namespace through the API server: what `kubectl get --raw` reaches a Service by.
PROXY = re.compile(r"^/api/v1/namespaces/(?P<namespace>[^/]+)/services/(?P<name>[^/:]+)(?::(?P<port>[^/]+))?/proxy(?P<path>/.*)?$")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store
    resources = RESOURCES
    errors_of = staticmethod(lambda o: [])  # what the schema of an object's kind says against it
    log_of = staticmethod(lambda pod: "")

    def log_message(self, *_):
        pass

    def answer(self, body: dict | str, code: int = 200):
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def serve(self):
        path, _, query = self.path.partition("?")
        self.query = {k: v[0] for k, v in urllib.parse.parse_qs(query, keep_blank_values=True).items()}
        size = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(size)
        try:
            if (found := discovery(path, self.resources)) is not None:
                return self.answer(found)
            if self.command == "GET" and (proxied := PROXY.match(path)):
                return self.proxy(**proxied.groupdict())
            route = ROUTE.match(path)
            if path.startswith("/api/v1/namespaces/") and path.count("/") == 4:
                route = re.match(r"/api/(?P<core>v1)/(?P<plural>namespaces)/(?P<name>[^/]+)(?P<namespace>x)?(?P<api>x)?(?P<part>x)?$", path)
            api = route and (route["core"] or route["api"])
            if not route or route["plural"] not in self.resources.get(api, {}):
                raise Failure(404, "NotFound", "the server could not find the requested resource")
            self.api, self.plural, self.namespace = api, route["plural"], route["namespace"] or ""
            self.act(route["name"], route["part"])
        except Failure as e:
            self.answer(e.status, e.status["code"])
        except BrokenPipeError:
            self.close_connection = True
        except (ValueError, KeyError) as e:
            failure = Failure(400, "BadRequest", f"not understood by the stand-in: {e!r}")
            self.answer(failure.status, 400)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve

    def proxy(self, namespace: str, name: str, port: str | None, path: str | None):
        with self.store.lock:
            service = self.store.find("services", namespace, name)
        if service is None:
            raise Failure(404, "NotFound", f'services "{name}" not found')
        number = next(p["port"] for p in service["spec"]["ports"] if port in (None, p.get("name"), str(p["port"])))
        with urllib.request.urlopen(f"http://{service['spec']['clusterIP']}:{number}{path or '/'}", timeout=30) as answer:
            self.answer(answer.read().decode(), answer.status)

    def act(self, name: str | None, part: str | None):
        if self.command == "GET" and not name:
            return self.watch() if self.query.get("watch") in ("1", "true") else self.answer(self.list())
        with self.store.lock:
            result, code = self.change(name, part)
            text = result if isinstance(result, str) else copy.deepcopy(result)
        self.answer(text, code)

    def change(self, name: str | None, part: str | None) -> tuple[dict | str, int]:
        content = self.headers.get("Content-Type", "")
        dry = self.query.get("dryRun") == "All"
        if self.command == "POST":
            o = patches.object_from(content, self.body)
            o.setdefault("apiVersion", self.api)
            o.setdefault("kind", self.resources[self.api][self.plural][0])
            self.check(o)
            return (o if dry else self.store.create(self.plural, self.namespace, o)), 201
        o = self.store.find(self.plural, self.namespace, name)
        if o is None and not (self.command == "PATCH" and "apply" in content):
            raise Failure(404, "NotFound", f'{self.plural} "{name}" not found')
        if self.command == "GET":
            return (self.log_of(o), 200) if part == "log" else (o, 200)
        if self.command == "DELETE":
            self.store.delete(self.plural, o)
            return {"kind": "Status", "apiVersion": "v1", "status": "Success", "metadata": {}}, 200
        if self.command == "PATCH":
            new = patches.patched(content.split(";")[0], copy.deepcopy(o), self.body)
        else:
            new = patches.object_from(content, self.body)
            new.setdefault("status", (o or {}).get("status", {}))
        self.check(new)
        if dry:
            return new, 200
        if o is None:
            return self.store.create(self.plural, self.namespace, new), 201
        return self.store.replace(self.plural, o, new), 200

    def check(self, o: dict):
        """Strictly, as clients ask for it: unknown fields, wrong types, missing fields. What is null is not there."""
        given = without_nulls({k: v for k, v in o.items() if k != "status"})
        if errors := self.errors_of(given):
            raise Failure(422, "Invalid", f'{o["kind"]} "{o["metadata"].get("name")}" is invalid: {"; ".join(errors)}')

    def selected(self, o: dict) -> bool:
        if self.namespace and o["metadata"].get("namespace") != self.namespace:
            return False
        for part in filter(None, self.query.get("fieldSelector", "").split(",")):
            field, value = re.split("==?", part, maxsplit=1)
            if field == "metadata.name" and o["metadata"]["name"] != value:
                return False
        return labels_match(self.query.get("labelSelector", ""), o["metadata"].get("labels", {}))

    def list(self) -> dict:
        with self.store.lock:
            kind = self.resources[self.api][self.plural][0]
            return {"kind": kind + "List", "apiVersion": self.api, "metadata": {"resourceVersion": str(self.store.version)},
                    "items": copy.deepcopy([o for o in self.store.of_kind(self.plural) if self.selected(o)])}

    def watch(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        seen = int(self.query.get("resourceVersion") or 0)
        if self.query.get("sendInitialEvents") == "true" or not seen:
            start = self.list()
            for o in start["items"]:
                self.event("ADDED", o)
            seen = int(start["metadata"]["resourceVersion"])
            self.event("BOOKMARK", {"kind": self.resources[self.api][self.plural][0], "apiVersion": self.api, "metadata": {
                "resourceVersion": str(seen), "annotations": {"k8s.io/initial-events-end": "true"}}})
        while True:
            with self.store.lock:
                fresh = [e for e in self.store.events if e[0] > seen]
                if not fresh and not self.store.lock.wait(30):
                    break
            for version, kind, plural, o in fresh:
                seen = version
                if plural == self.plural and self.selected(o):
                    self.event(kind, o)
        self.wfile.write(b"0\r\n\r\n")

    def event(self, kind: str, o: dict):
        data = json.dumps({"type": kind, "object": o}).encode() + b"\n"
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


class ApiServer:
    """`optional`: APIs of OPTIONAL that are installed. `errors_of`: what a schema says against an object."""

    def __init__(self, optional=(), errors_of=lambda o: []):
        self.store = Store()
        self.handler = type("StandIn", (Handler,), {"store": self.store, "errors_of": staticmethod(errors_of),
                                                    "resources": RESOURCES | {api: OPTIONAL[api] for api in optional}})
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        with self.store.lock:
            self.store.create("namespaces", "", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    def kubeconfig(self) -> dict:
        return {"apiVersion": "v1", "kind": "Config", "current-context": "stand-in",
                "clusters": [{"name": "stand-in", "cluster": {"server": self.url}}],
                "contexts": [{"name": "stand-in", "context": {"cluster": "stand-in", "user": "tester"}}],
                "users": [{"name": "tester", "user": {}}]}

    def close(self):
        self.http.shutdown()
        self.http.server_close()
