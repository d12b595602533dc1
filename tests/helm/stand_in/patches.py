"""Bodies that Kubernetes clients send: objects as JSON, YAML or protobuf, and the kinds of patches."""

import base64
import copy
import json

import yaml

# Lists that strategic merge patches merge by a key instead of replacing them (the patchMergeKey of Kubernetes's API types).
MERGE_KEYS = {"containers": "name", "initContainers": "name", "volumes": "name", "env": "name", "volumeMounts": "mountPath",
              "imagePullSecrets": "name", "ownerReferences": "uid", "hostAliases": "ip", "tolerations": None,
              "topologySpreadConstraints": "topologyKey"}


def merge_key(field: str, items: list) -> str | None:
    if field == "ports":  # of a Service, or of a container
        return "containerPort" if any("containerPort" in item for item in items if isinstance(item, dict)) else "port"
    return MERGE_KEYS.get(field)


def merge_patch(target, patch):
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def merge_list(field: str, target: list, patch: list, order: list | None) -> list:
    key = merge_key(field, patch + target)
    if key is None or not all(isinstance(item, dict) for item in patch + target):
        return copy.deepcopy(patch)
    result = {item.get(key): item for item in target}
    for item in patch:
        if item.get("$patch") == "delete":
            result.pop(item.get(key), None)
        else:
            result[item.get(key)] = strategic_merge(result.get(item.get(key), {}), item)
    wanted = [o.get(key) for o in order or []]
    return sorted(result.values(), key=lambda item: wanted.index(item.get(key)) if item.get(key) in wanted else len(wanted))


def strategic_merge(target: dict, patch: dict) -> dict:
    if patch.get("$patch") == "replace":
        return {k: copy.deepcopy(v) for k, v in patch.items() if k != "$patch"}
    result = dict(target)
    kept = patch.get("$retainKeys")
    if kept is not None:
        result = {k: v for k, v in result.items() if k in kept}
    for key, value in patch.items():
        if key.startswith("$setElementOrder/") or key in ("$retainKeys", "$patch"):
            continue
        if key.startswith("$deleteFromPrimitiveList/"):
            field = key.partition("/")[2]
            result[field] = [item for item in result.get(field, []) if item not in value]
        elif value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = strategic_merge(result.get(key) or {}, value)
        elif isinstance(value, list):
            result[key] = merge_list(key, result.get(key) or [], value, patch.get(f"$setElementOrder/{key}"))
        else:
            result[key] = value
    return result


def apply(target: dict | None, configuration: dict) -> dict:
    """Server-side apply by the one manager that there is: what it names, it owns whole. What the server has added stays."""
    result = copy.deepcopy(configuration)
    if target is not None:
        for field in ("uid", "creationTimestamp", "generation", "ownerReferences", "deletionTimestamp"):
            if field in target["metadata"]:
                result["metadata"][field] = target["metadata"][field]
        if "status" in target:
            result["status"] = target["status"]
        if "clusterIP" in target.get("spec", {}):
            result["spec"].setdefault("clusterIP", target["spec"]["clusterIP"])
    return result


def patched(kind: str, target: dict | None, body: bytes) -> dict:
    if kind == "application/apply-patch+yaml":
        return apply(target, yaml.safe_load(body))
    patch = json.loads(body)
    if kind == "application/strategic-merge-patch+json":
        return strategic_merge(target, patch)
    if kind == "application/merge-patch+json":
        return merge_patch(target, patch)
    raise ValueError(f"a patch of type {kind}")


# --- protobuf ------------------------------------------------------------------------------------------------------
# Helm keeps its releases in Secrets, which its client sends in Kubernetes's protobuf form whatever the server prefers; kubectl sends
# what `create` makes likewise.

def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def fields(data: bytes):
    """(number, value) of a message: integers, and bytes of strings and messages."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        if tag & 7 == 0:
            value, at = varint(data, at)
        elif tag & 7 == 2:
            size, at = varint(data, at)
            value, at = data[at:at + size], at + size
        else:
            raise ValueError(f"wire type {tag & 7}")
        yield tag >> 3, value


def entry(data: bytes) -> tuple[str, bytes]:
    parts = dict(fields(data))
    return parts.get(1, b"").decode(), parts.get(2, b"")


def metadata_of(data: bytes) -> dict:
    names = {1: "name", 2: "generateName", 3: "namespace", 5: "uid", 6: "resourceVersion"}
    meta: dict = {}
    for number, value in fields(data):
        if number in names and value:
            meta[names[number]] = value.decode()
        elif number in (11, 12):
            key, text = entry(value)
            meta.setdefault("labels" if number == 11 else "annotations", {})[key] = text.decode()
    return meta


def from_protobuf(body: bytes) -> dict:
    if body[:4] != b"k8s\0":
        raise ValueError("no protobuf envelope")
    envelope = dict(fields(body[4:]))
    kind = dict(fields(envelope[1])).get(2, b"").decode()
    if kind == "DeleteOptions":
        return {"kind": kind}
    if kind == "Namespace":
        return {"apiVersion": "v1", "kind": kind, "metadata": metadata_of(dict(fields(envelope[2]))[1])}
    if kind != "Secret":
        raise ValueError(f"a {kind} as protobuf")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {}, "data": {}}
    for number, value in fields(envelope[2]):
        if number == 1:
            secret["metadata"] = metadata_of(value)
        elif number == 2:
            key, content = entry(value)
            secret["data"][key] = base64.b64encode(content).decode()
        elif number == 3:
            secret["type"] = value.decode()
    return secret


def object_from(content_type: str, body: bytes) -> dict:
    if not body:
        return {}
    if "protobuf" in content_type:
        return from_protobuf(body)
    return yaml.safe_load(body) if "yaml" in content_type else json.loads(body)
