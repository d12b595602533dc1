"""Values that Hypothesis makes from values.schema.json: texts of every pattern, and words that YAML would take for something else.

The seed is MILLRACE_SEED (7 when it is not given), so that a failure comes again.
"""

import copy
import functools
import os

import jsonschema_rs
import values_space as space
from hypothesis import strategies as st

SEED = int(os.environ.get("MILLRACE_SEED", "7"))

# What a careless template or a loader of YAML turns into a number, a boolean, a date, null, or an error.
WORDS = ["null", "Null", "~", "true", "True", "yes", "on", "no", "off", "y", "n", "123", "0123", "0x1", "0o17", "1e3", "1E3", "1.5",
         "1_000", "+1", "-", "-1", ".5", ".inf", ".nan", "2001-01-01", "12:30:45", "=", "<<", "a..b", "a.-b", "a-", ".a", "-a", "A", "a_b",
         "a: b", "a #b", "- a", "#a", "'", '"', "\\", "{", "[a]", "*a", "&a", "!a", "%a", "@a", "`a", "|", ">", "? a", " ", " a", "a ",
         "{{ .x }}", "$(A)", "é", "\xa0", "\x85",
         "a\x85b", "a\u2028b", "\ufeff", "a\nb", "a\tb", "\x7f", "\x9f", "a" * 63, "a" * 64, "1" * 63, "1" * 253, "a" * 254, "a" * 513]

# Each shows other parts of the chart. `needed` may not be empty there.
BASES = [
    ({}, ()),
    ({"cells": {"backend": "statefulset", "nodes": 2, "stages": 2, "topologyKey": "rack", "priorityClassName": "p"},
      "model": {"path": "/models/m", "source": {"kind": "pvc", "claimName": "c", "subPath": "s"}},
      "auth": {"existingSecret": "k"}, "secrets": {"cell": {"existingSecret": "s"}, "nodeAgent": {"existingSecret": "a"}},
      "test": {"apiKey": {"existingSecret": "t"}}, "httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}], "timeout": "1h"},
      "inferencePool": {"enabled": True, "endpointPicker": {"name": "e"}}},
     ("model.source.claimName", "secrets.nodeAgent.existingSecret", "httpRoute.parentRefs", "inferencePool.endpointPicker.name")),
    ({"cells": {"backend": "lws", "topologyKey": "rack", "rdma": {"enabled": True}, "autoscaling": {"enabled": True}},
      "device": {"backend": "cuda"}, "model": {"path": "/models/m", "source": {"kind": "imageVolume", "imageReference": "r"}},
      "auth": {"keys": ["k"]}, "secrets": {"cell": {"value": "v" * 32}}, "monitoring": {"serviceMonitor": {"enabled": False},
                                                                                       "podMonitor": {"enabled": True}}},
     ("model.source.imageReference",)),
    ({"mode": "standalone", "model": {"path": "/models/m", "source": {"kind": "hostPath", "hostPath": "/h"}}}, ("model.source.hostPath",)),
]

# Ties to other values (model.path lies below model.source.mountPath), names that are cut or left out (nameOverride; chart_test.py
# has a case), what no schema describes, and forms that the binary judges.
LEFT_OUT = {"nameOverride", "model.path", "model.source.mountPath", "extraObjects", "networkPolicy.clients", "gateway.affinity",
            "cells.affinity", "cells.rdma.resource", "config.cell.network", "config.device.profile"}


def alone(schema: dict) -> jsonschema_rs.Draft7Validator:
    return jsonschema_rs.Draft7Validator({"definitions": space.SCHEMA["definitions"], **schema})


def strategy(schema: dict):
    """Every kind of schema that values.schema.json has."""
    _, plain = space.resolved(schema)
    if "const" in plain:
        return st.just(plain["const"])
    if "enum" in plain:
        return st.sampled_from(plain["enum"])
    for several in ("anyOf", "oneOf"):
        if several in plain:
            return st.one_of([strategy(option) for option in plain[several]]).filter(alone(schema).is_valid)
    kind = plain["type"][0] if isinstance(plain["type"], list) else plain["type"]
    if kind == "string":
        # Helm 3 refuses other control characters by itself, before it looks at the schema.
        plain = plain if "pattern" in plain else space.SCHEMA["definitions"]["text"]
        valid = alone(plain).is_valid
        words = [w for w in WORDS if valid(w) or "pattern" not in schema and "$ref" not in schema and "\x85" in w]
        free = st.from_regex(plain["pattern"], fullmatch=True).filter(valid)
        return st.one_of(st.sampled_from(words), free) if words else free
    if kind == "array":
        names = {"unique_by": lambda item: item["name"]} if "name" in plain["items"].get("properties", {}) else {}
        return st.lists(strategy(plain["items"]), max_size=3, **names).filter(alone(plain).is_valid)
    if kind == "object" and "properties" in plain:
        members = {name: strategy(member) for name, member in plain["properties"].items()}
        needed = plain.get("required", [])
        return st.fixed_dictionaries({n: members[n] for n in needed}, optional={n: s for n, s in members.items() if n not in needed}) \
            .filter(alone(plain).is_valid)
    if kind == "object":
        return st.dictionaries(strategy(plain["propertyNames"]), strategy(plain["additionalProperties"]), max_size=3)
    if kind == "integer":
        return st.integers(plain["minimum"], plain["maximum"])
    assert kind == "boolean", schema
    return st.booleans()


def has_texts(schema: dict) -> bool:
    _, plain = space.resolved(schema)
    below = [*plain.get("anyOf", []), *plain.get("oneOf", []), *plain.get("properties", {}).values()]
    below += [plain[k] for k in ("items", "additionalProperties", "propertyNames") if isinstance(plain.get(k), dict)]
    return plain.get("type") == "string" or any(map(has_texts, below))


@functools.cache
def text_leaves() -> list[tuple]:
    """(path, strategy) of the values in which texts are, but for quantities, whose units are all there is to them."""
    return [(path, strategy(schema)) for path, schema in space.leaves()
            if has_texts(schema) and ".".join(path) not in LEFT_OUT and space.resolved(schema)[0] not in ("quantities", "memory", "cpu")
            and not path[-1].endswith("_bytes")]


@st.composite
def trees(draw) -> dict:
    """Values for the whole chart."""
    base, needed = draw(st.sampled_from(BASES))
    tree = copy.deepcopy(base)
    for path, texts in draw(st.lists(st.sampled_from(text_leaves()), min_size=8, max_size=20, unique_by=lambda leaf: leaf[0])):
        space.put(tree, path, draw(texts.filter(bool) if ".".join(path) in needed else texts))
    return tree


# --- what must come out -----------------------------------------------------------------------------------------------

VALID = jsonschema_rs.Draft7Validator(space.SCHEMA)


def places(tree, path=()):
    """Paths of all texts of a tree, those that are keys as (path of the map, key)."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, (*path, key))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from places(value, (*path, number))
    elif isinstance(tree, str) and tree:
        yield path


def plain(tree: dict) -> tuple[dict, dict[str, str]]:
    """The tree with harmless texts in the place of those for which the schema allows it, and what they stand for."""
    tree, meaning = copy.deepcopy(tree), {}
    for path in [p for p in places(tree) if ".".join(map(str, p)) not in LEFT_OUT]:
        holder = functools.reduce(lambda t, k: t[k], path[:-1], tree)
        true = holder[path[-1]]
        word = f"zq{len(meaning)}zq"
        for mask in (word, f"/{word}", f"http://{word}", word * 8):
            holder[path[-1]] = mask
            if VALID.is_valid(tree):
                meaning[mask] = true
                break
        else:
            holder[path[-1]] = true
    return tree, meaning


def with_meaning(o, meaning: dict[str, str]):
    if isinstance(o, dict):
        return {with_meaning(k, meaning): with_meaning(v, meaning) for k, v in o.items()}
    if isinstance(o, list):
        return [with_meaning(v, meaning) for v in o]
    if isinstance(o, str) and "zq" in o:
        for mask in sorted(meaning, key=len, reverse=True):
            o = o.replace(mask, meaning[mask])
    return o
