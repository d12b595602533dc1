"""Samples of values.schema.json: for every leaf, values that it takes and values that it must refuse."""

import json
import random
import re

from support import CHART

SCHEMA = json.loads((CHART / "values.schema.json").read_text())

# Values for leaves whose schema is a pattern or open, with the corners of each pattern.
TEXTS = {
    "nameOverride": ["", "a", "other-name"], "fullnameOverride": ["", "a", "b" * 36],
    "repository": ["a", "registry.example.com:5000/a/b-c"], "tag": ["", "1.0_x"], "digest": ["", "sha256:" + "a" * 64],
    "name": ["a", "a-1.b"], "optionalName": ["", "name"], "dataKey": ["k", "_A.b-c"], "absolutePath": ["/a", "/a/b.c_d@1"],
    "labelKey": ["a", "example.com/a_b.c"], "labelValue": ["", "v", "A-1_b.c"], "labels": [{}, {"example.com/a": "", "b": "c"}],
    "annotations": [{}, {"example.com/a": "any: {{ text }}\n", "b": ""}], "resourceName": ["a.b/c", "amd.com/gpu"],
    "duration": ["1s", "90m"], "memory": ["1Gi", "123456Ki", "2000000000"], "cpu": [1, 4096, "0.5", "250m", "1.25"],
    "quantities": [{}, {"cpu": 2, "memory": "1Gi"}, {"cpu": "1500m", "memory": "2Gi", "ephemeral-storage": "1Gi", "hugepages-2Mi": "64Mi"}],
    "env": [[], [{"name": "A", "value": ""}, {"name": "B_1", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]],
    "tolerations": [[], [{"operator": "Exists"}], [{"key": "a/b", "operator": "Equal", "value": "c", "effect": "NoExecute"}]],
    "servedName": ["", "LFM2 24B: \"quoted\" # é <&>", "'"], "hostPath": ["", "/a"], "imageReference": ["", "a:b@sha256:c"],
    "subPath": ["", "a", "a/b.c"], "topologyKey": ["", "a/b"], "runbookUrl": ["", "https://a.b/c?d=e"], "prometheusAddress": ["http://p:9090", "https://a/b?c=d"],
    "value": ["", "!" * 32, "\"'\\{}" * 8], "timeout": ["", "1h30m"], "clusterDomain": ["cluster.local", "a"],
    "network": ["", "10.0.0.0/24,eth0", "fe80::/10"], "profile": ["", "9.0:132:139GiB"],
    "affinity": [{}, {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {
        "matchExpressions": [{"key": "a/b", "operator": "In", "values": ["1", "null"]}]}}]}},
                 {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "a", "labelSelector": {}}]}}],
}
LISTS = {
    "pullSecrets": [[], ["a", "b"]], "keys": [[], ["sk-1", "\"two'"]], "clients": [[], [{"podSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}]],
    "parentRefs": [[], [{"name": "a", "namespace": "b", "sectionName": "c", "port": 443}]], "hostnames": [[], ["a.b", "*.c.d"]],
    "extraObjects": [[], [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x1"}}]],
    "mpirun_args": [[], ["--mca", "a b"]], "cors_origins": [[], ["*"], ["https://a"]],
}


# For every pattern that does not take them: what is no DNS name, no label, no path.
BAD_NAMES = ["a..b", "a.-b", "-a", "a-", ".", "A_", "a" * 64 + "/b", "a..b/c"]


def resolved(schema: dict) -> tuple[str, dict]:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return name, SCHEMA["definitions"][name]
    return "", schema


def leaves(schema: dict = SCHEMA, path: tuple = ()):
    """(path, schema) of every value that is no closed map."""
    _, plain = resolved(schema)
    if "properties" in plain and path[-1:] != ("quantities",) and "$ref" not in schema:
        for name, below in plain["properties"].items():
            if name != "global":
                yield from leaves(below, path + (name,))
    else:
        yield path, schema


def maps(schema: dict = SCHEMA, path: tuple = ()):
    """Paths of the maps that are closed."""
    if "$ref" not in schema and "properties" in schema:
        yield path
        for name, below in schema["properties"].items():
            if name != "global":
                yield from maps(below, path + (name,))


def good(path: tuple, schema: dict) -> list:
    name, plain = resolved(schema)
    leaf = path[-1]
    if "enum" in plain:
        return list(plain["enum"])
    if name in TEXTS:
        return TEXTS[name]
    if path == ("gateway", "topologySpread", "keys"):
        return [[], ["kubernetes.io/hostname", "a"]]
    if plain.get("type") == "array":
        return LISTS[leaf]
    if leaf in TEXTS and plain.get("type") not in ("integer", "number", "boolean"):
        return TEXTS[leaf]
    kinds = plain.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    out: list = []
    if "anyOf" in plain:
        for option in plain["anyOf"]:
            if "const" in option:
                out.append(option["const"])
            elif "$ref" in option or option.get("type") != "string":
                out += good(path, option)
            elif option["pattern"].startswith("^([1-9][0-9]{0,2}KiB"):
                out += ["1KiB", "999MiB", "3GiB"]
            else:
                raise AssertionError(f"no samples for {'.'.join(path)}")
    if "null" in kinds:
        out.append(None)
    if "boolean" in kinds:
        out += [True, False]
    if "integer" in kinds:
        out += sorted({plain["minimum"], plain["maximum"], (plain["minimum"] + min(plain["maximum"], plain["minimum"] + 200)) // 2})
    if "number" in kinds:
        low = plain.get("minimum", plain.get("exclusiveMinimum"))
        out += [low if "minimum" in plain else low + 0.01, plain["maximum"], (low + plain["maximum"]) / 2]
    if "string" in kinds:
        assert "pattern" not in plain, f"no samples for {'.'.join(path)}"
        out += ["", "text"]
    assert out, f"no samples for {'.'.join(path)}: {plain}"
    return out


def bad(path: tuple, schema: dict) -> list:
    name, plain = resolved(schema)
    kinds = plain.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    out: list = [{"unknown": 1}] if name not in ("labels", "annotations") and kinds != ["object"] else [{"a b": "x"}]
    if "enum" in plain:
        return out + ["nonsense", "", None, 1.5]
    if "integer" in kinds or "number" in kinds:
        if "minimum" in plain:
            out.append(plain["minimum"] - 1)
        if "exclusiveMinimum" in plain:
            out.append(plain["exclusiveMinimum"])
        out += [plain["maximum"] * 2 + 1, "1", True] + ([1.5] if "integer" in kinds else [])
    elif "boolean" in kinds:
        out += ["true", 0, 1]
    elif "array" in kinds:
        out += ["a", 1, {}]
    elif "string" in kinds:
        out += [1, True, []]
        out += ["a b\n", "\x01"] if "pattern" in plain else []
    else:
        out += [[1], True] if name != "cpu" else [True, 0, "0", "1.0000", "-1", "1e3"]
    if kinds == ["object"]:
        out = ["a", 1, []]
    elif "pattern" in plain:
        out += [word for word in BAD_NAMES if not re.search(plain["pattern"], word)]
    return out


def put(tree: dict, path: tuple, value) -> dict:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
    return tree


def mixtures(seed: int, coupled) -> list[dict]:
    """Groups of samples such that every sample of every leaf that is not `coupled` occurs in one of them."""
    samples = [(path, value) for path, schema in leaves() if path not in coupled for value in good(path, schema)]
    random.Random(seed).shuffle(samples)
    groups: list[dict] = []
    for path, value in samples:
        group = next((g for g in groups if path not in g and len(g) < 24), None)
        if group is None:
            groups.append(group := {})
        group[path] = value
    return groups


def described(sample: dict) -> str:
    return re.sub(r"\s+", " ", ", ".join(f"{'.'.join(p)}={v!r}" for p, v in sample.items()))[:400]
