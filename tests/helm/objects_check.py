"""What no schema says about a set of rendered objects: that the parts fit each other, and that pods keep their promises."""

import fractions
import re

from support import ROOT, load_yaml, name_of, pod_templates

KNOWN_METRICS = set(re.findall(r"^\| `([a-z_:]+)` \|", (ROOT / "monitoring" / "metrics.md").read_text(), re.M))


def matches(selector: dict, labels: dict) -> bool:
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", selector).items())


def pods_of(objects: list[dict]):
    """(labels, spec) of the release's own pods."""
    return [(t["metadata"]["labels"], t["spec"]) for name, t in pod_templates(objects) if not name.startswith("Pod/")]


def pod_names(objects: list[dict]) -> set[str]:
    """Names that controllers give the pods of the first replicas."""
    names = set()
    for o in objects:
        name, spec = o["metadata"]["name"], o["spec"] if "spec" in o else {}
        if o["kind"] == "StatefulSet":
            names |= {f"{name}-{i}" for i in range(spec.get("replicas", 1))}
        elif o["kind"] == "LeaderWorkerSet":
            for g in range(spec.get("replicas", 1)):
                names.add(f"{name}-{g}")
                names |= {f"{name}-{g}-{i}" for i in range(1, spec["leaderWorkerTemplate"]["size"])}
    return names


def selector_problems(objects: list[dict]):
    pods = pods_of(objects)
    services = [o for o in objects if o["kind"] == "Service"]
    ports = {p["name"] for _, s in pods for c in s["containers"] for p in c.get("ports", [])}
    for o in objects:
        kind, spec = o["kind"], o.get("spec", {})
        if kind in ("Deployment", "StatefulSet"):
            if not matches(spec["selector"], spec["template"]["metadata"]["labels"]):
                yield f"{name_of(o)}: its selector misses its own pods"
            others = [labels for labels, s in pods if s is not spec["template"]["spec"] and matches(spec["selector"], labels)]
            if others:
                yield f"{name_of(o)}: its selector takes other pods too: {others}"
        if kind == "StatefulSet" and spec["serviceName"] not in {s["metadata"]["name"] for s in services}:
            yield f"{name_of(o)}: no Service {spec['serviceName']}"
        if kind == "Service":
            chosen = [s for labels, s in pods if matches(spec["selector"], labels)]
            if not chosen:
                yield f"{name_of(o)}: selects nothing"
            for port in spec.get("ports", []):
                for s in chosen:
                    if port["targetPort"] not in {p["name"] for c in s["containers"] for p in c.get("ports", [])}:
                        yield f"{name_of(o)}: no port {port['targetPort']} in its pods"
        if kind == "PodDisruptionBudget" and not any(matches(spec["selector"], labels) for labels, _ in pods):
            yield f"{name_of(o)}: selects nothing"
        if kind == "NetworkPolicy":
            if not any(matches(spec["podSelector"], labels) for labels, _ in pods):
                yield f"{name_of(o)}: selects nothing"
            for rule in spec.get("ingress", []):
                for port in rule.get("ports", []):
                    if port["port"] not in ports:
                        yield f"{name_of(o)}: no port {port['port']}"
        if kind in ("ServiceMonitor", "PodMonitor"):
            labels = ([s["metadata"]["labels"] for s in services] if kind == "ServiceMonitor" else [ls for ls, _ in pods])
            many = spec["selector"]["matchLabels"].get("millrace/role") == "leader"  # a pod template for each cell
            if not 1 <= sum(matches(spec["selector"], ls) for ls in labels) <= (1000 if many else 1):
                yield f"{name_of(o)}: must select one thing"
        if "scaleTargetRef" in spec:
            target = spec["scaleTargetRef"]
            found = [t for t in objects if (t["kind"], t["metadata"]["name"]) == (target["kind"], target["name"])]
            if not found or found[0]["apiVersion"] != target["apiVersion"]:
                yield f"{name_of(o)}: its target {target} is not there"
            elif "replicas" in found[0]["spec"]:
                yield f"{name_of(found[0])}: has replicas although {name_of(o)} decides them"
            for trigger in spec.get("triggers", []):
                used = set(re.findall(r"[a-z_]+:?[a-z_]+(?=\{)", trigger["metadata"]["query"]))
                if not used or used - KNOWN_METRICS:
                    yield f"{name_of(o)}: metrics {used} are not in monitoring/metrics.md"


def volume_problems(where: str, spec: dict, objects: list[dict]):
    configs = {o["metadata"]["name"]: o.get("data", {}) for o in objects if o["kind"] == "ConfigMap"}
    volumes = [v["name"] for v in spec.get("volumes", [])]
    used = set()
    for c in spec["containers"] + spec.get("initContainers", []):
        mounts = {m["mountPath"]: m["name"] for m in c.get("volumeMounts", [])}
        used |= set(mounts.values())
        for what, names in (("volume", volumes), ("mount", [m["mountPath"] for m in c.get("volumeMounts", [])]),
                            ("variable", [e["name"] for e in c.get("env", [])]),
                            ("port", [p["name"] for p in c.get("ports", [])])):
            if len(set(names)) != len(names):
                yield f"{where}: a {what} is given twice: {names}"
        if c.get("args", [""])[0] == "bench":
            continue
        path = c["args"][c["args"].index("--config") + 1]
        folder, _, file = path.rpartition("/")
        source = next((v for v in spec["volumes"] if v["name"] == mounts.get(folder)), {})
        config = configs.get(source.get("configMap", {}).get("name"), {})
        if file not in config:
            yield f"{where}: {path} is in no ConfigMap"
            continue
        # Every secret that the configuration names is mounted there, but for the model's check, which reads none.
        for section, field in (("cell", "secret_file"), ("node_agent", "secret_file"), ("gateway", "api_keys_file")):
            wanted = load_yaml(config[file]).get(section, {}).get(field, "")
            if wanted and c["args"][0] not in ("plan", "verify") and not any(wanted.startswith(m + "/") for m in mounts):
                if not (c["args"][0] == "serve" and section == "cell"):
                    yield f"{where}: {section}.{field} {wanted} is not mounted"
    if used != set(volumes):
        yield f"{where}: volumes {set(volumes) ^ used} are not mounted, or not there"


UNITS = {"": 1, "m": fractions.Fraction(1, 1000), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
         "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}


def quantity(value) -> fractions.Fraction:
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(value)).groups()
    return fractions.Fraction(number) * UNITS[unit]


def resource_problems(where: str, resources: dict):
    """What the API server demands of a container's resources beyond their schema."""
    limits = resources.get("limits", {})
    for name, request in resources.get("requests", {}).items():
        scalable = not name.startswith("hugepages-") and "/" not in name
        if not scalable and (name not in limits or quantity(limits[name]) != quantity(request)):
            yield f"{where}: asks for {request} {name}, but its limit is {limits.get(name)}"
        if name in limits and quantity(limits[name]) < quantity(request):
            yield f"{where}: asks for {request} {name}, more than its limit {limits[name]}"


def pod_problems(where: str, template: dict, objects: list[dict]):
    spec = template["spec"]
    if spec["automountServiceAccountToken"] is not False or spec["enableServiceLinks"] is not False:
        yield f"{where}: token or service links"
    security = spec["securityContext"]
    if not security["runAsNonRoot"] or not security["runAsUser"] or security["seccompProfile"] != {"type": "RuntimeDefault"}:
        yield f"{where}: {security}"
    for c in spec["containers"] + spec.get("initContainers", []):
        yield from resource_problems(f"{where} {c['name']}", c["resources"])
        own = c["securityContext"]
        rdma = any("rdma/" in r for r in c["resources"].get("limits", {}))
        if own["allowPrivilegeEscalation"] or own["capabilities"]["drop"] != ["ALL"]:
            yield f"{where}: {own}"
        if own["capabilities"].get("add", []) != (["IPC_LOCK"] if rdma else []):
            yield f"{where}: added capabilities {own['capabilities']}"
        if c["command"] != ["tini", "--", "millrace"]:
            yield f"{where}: something else than our own binary is run, or as process 1"
        ports = {p["name"] for p in c.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in c and not c[probe].get("timeoutSeconds"):
                yield f"{where}: {probe} without timeoutSeconds"
            if probe in c and (c[probe].get("httpGet") or c[probe]["tcpSocket"])["port"] not in ports:
                yield f"{where}: {probe} asks at a port that is not there"
        hook = c.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["millrace"])
        if "--timeout-s" in hook and int(hook[hook.index("--timeout-s") + 1]) >= spec["terminationGracePeriodSeconds"]:
            yield f"{where}: killed before its preStop gives up"
        if hook[0] != "millrace":
            yield f"{where}: its preStop is something else than our own binary"
    if not where.startswith("Pod/") and not any("checksum/config" in k for k in template["metadata"]["annotations"]):
        yield f"{where}: no checksum of its configuration"
    accounts = {o["metadata"]["name"] for o in objects if o["kind"] == "ServiceAccount"}
    if accounts and spec["serviceAccountName"] not in accounts:
        yield f"{where}: no ServiceAccount {spec['serviceAccountName']}"
    yield from volume_problems(where, spec, objects)


def host_problems(where: str, template: dict, objects: list[dict]):
    """The pods that a leader calls must be there under these names, and be found by them."""
    for c in template["spec"]["containers"]:
        for argument in c.get("args", []):
            if not argument.startswith("cell.hosts="):
                continue
            leader = where.split()[0].partition("/")[2] + "-0"
            hosts = [h.rpartition(":")[0].replace("$(POD_NAME)", leader) for h in load_yaml(argument.partition("=")[2])]
            if hosts[0] != leader:
                yield f"{where}: the first of {hosts} is not {leader}"
            if missing := set(hosts) - pod_names(objects):
                yield f"{where}: no pods {missing}"
            domain = template["spec"]["dnsConfig"]["searches"][0].split(".")[0]
            lws = {o["metadata"]["name"] for o in objects if o["kind"] == "LeaderWorkerSet"}
            if domain not in lws | {o["metadata"]["name"] for o in objects if o["kind"] == "Service"}:
                yield f"{where}: no headless Service {domain}"


def gateway_problems(objects: list[dict]):
    """Cells must find all gateways, ready or not, behind the names that they look up."""
    services = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "Service"}
    for o in objects:
        config = load_yaml(o.get("data", {}).get("cell.yaml", "{}"))
        for gateway in config.get("cell", {}).get("gateways", []):
            host, _, port = gateway.rpartition(":")
            service = services.get(host.split(".")[0], {})
            wanted = {"clusterIP": "None", "publishNotReadyAddresses": True}
            if {k: service.get(k) for k in wanted} != wanted or int(port) not in {p["port"] for p in service["ports"]}:
                yield f"{name_of(o)}: {gateway} is no headless Service of gateways that start"
            if not host.endswith("."):
                yield f"{name_of(o)}: {gateway} would be tried in the search domains at every lookup"


def problems(objects: list[dict]) -> list[str]:
    found = list(selector_problems(objects)) + list(gateway_problems(objects))
    for where, template in pod_templates(objects):
        found += pod_problems(where, template, objects)
        found += host_problems(where, template, objects)
    for o in objects:
        if o["metadata"].get("namespace", "serving") != "serving":
            found.append(f"{name_of(o)}: not in the release's namespace")
        if len(o["metadata"]["name"]) > {"StatefulSet": 52, "LeaderWorkerSet": 52, "Deployment": 46}.get(o["kind"], 63):
            found.append(f"{name_of(o)}: its name is too long for its pods' labels")
    return found
