"""Rendering the chart with both Helms, and checking what comes out. Needs the venv of scripts/test-helm-venv."""

import concurrent.futures
import functools
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "helm" / "millrace"
VENV = ROOT / "build" / "helm-venv"
SKIPPED = 77


def enter_venv():
    """Goes on in the venv's Python; without it, says so and counts as skipped."""
    if not (VENV / "installed.txt").exists():
        print("SKIPPED: no build/helm-venv; run scripts/test-helm-venv where PyPI can be reached")
        sys.exit(SKIPPED)
    if pathlib.Path(sys.prefix) != VENV:
        python = str(VENV / "bin" / "python")
        os.execv(python, [python, *sys.argv])


enter_venv()

import jsonschema_rs  # noqa: E402
import yaml  # noqa: E402

HELMS = ("helm3", "helm4")
KUBERNETES = ("1.28", "1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")  # what the chart's objects are checked for
APIS = ("leaderworkerset.x-k8s.io/v1", "monitoring.coreos.com/v1", "keda.sh/v1alpha1", "gateway.networking.k8s.io/v1",
        "inference.networking.k8s.io/v1")
CI_FILES = sorted((CHART / "ci").glob("*-values.yaml"))


def parallel(function, items) -> list:
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


_home = tempfile.TemporaryDirectory()  # Helm must not see the plugins and repositories of who runs this


def run_helm(helm: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {"PATH": os.environ["PATH"], "HOME": _home.name, "GOGC": "off"}  # ends before it would pay to collect
    return subprocess.run([VENV / "bin" / helm, *arguments], capture_output=True, text=True, env=environment)


class Refused(Exception):
    pass


def load_yaml(text: str):
    """By libyaml: PyYAML's own parser takes longer than Helm."""
    return yaml.load(text, yaml.CSafeLoader)


def load_objects(text: str) -> list[dict]:
    return [o for o in yaml.load_all(text, yaml.CSafeLoader) if o]


def as_yaml(values) -> str:
    """JSON, which is YAML but for characters that YAML takes for line breaks or refuses, and for pairs of surrogates."""
    return re.sub(r"[^ -~]", lambda c: f"\\U{ord(c.group()):08x}", json.dumps(values, ensure_ascii=False))


def render(helm: str, values, kube: str = "1.34", apis=(), chart=CHART, release: str = "demo") -> list[dict]:
    """The objects, in Helm's order. `values`: a values file, or a tree of values."""
    arguments = ["template", release, str(chart), "--namespace", "serving", "--kube-version", kube]
    for api in apis:
        arguments += ["--api-versions", api]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        if not isinstance(values, pathlib.Path):
            file.write(as_yaml(values))
            file.flush()
            values = pathlib.Path(file.name)
        result = run_helm(helm, *arguments, "--values", str(values))
    if result.returncode != 0:
        raise Refused(result.stderr)
    return load_objects(result.stdout)


def refusal(helm: str, values, **more) -> str:
    """What Helm says; empty when it renders."""
    try:
        render(helm, values, **more)
    except Refused as e:
        return str(e)
    return ""


def name_of(o: dict) -> str:
    return f"{o['kind']}/{o['metadata']['name']}"


def indexed(objects: list[dict]) -> dict[str, dict]:
    found: dict[str, dict] = {}
    for o in objects:
        assert name_of(o) not in found, f"{name_of(o)} is rendered twice"
        found[name_of(o)] = o
    return found


def pod_templates(objects: list[dict]):
    """(name of the object, pod template) of everything that makes pods."""
    for o in objects:
        if o["kind"] in ("Deployment", "StatefulSet"):
            yield name_of(o), o["spec"]["template"]
        elif o["kind"] == "Pod":
            yield name_of(o), {"metadata": o["metadata"], "spec": o["spec"]}
        elif o["kind"] == "LeaderWorkerSet":
            for role in ("leaderTemplate", "workerTemplate"):
                if role in o["spec"]["leaderWorkerTemplate"]:
                    yield f"{name_of(o)} {role}", o["spec"]["leaderWorkerTemplate"][role]


# --- schemas -------------------------------------------------------------------------------------------------------

CUSTOM = json.loads((pathlib.Path(__file__).parent / "custom_resources.json").read_text())


@functools.cache
def _folder(version: str) -> pathlib.Path:
    found = list(VENV.glob(f"lib/*/site-packages/kubernetes_validate/kubernetes-json-schema/v{version}.0-local-strict"))
    assert len(found) == 1, found
    return found[0]


@functools.cache
def _registry(version: str):
    definitions = json.loads((_folder(version) / "_definitions.json").read_text())
    return jsonschema_rs.Registry([("_definitions.json", definitions)])


@functools.cache
def _validator(version: str, api_version: str, kind: str):
    if kind in CUSTOM:
        return jsonschema_rs.Draft7Validator(CUSTOM[kind])
    group, _, plain = api_version.rpartition("/")
    prefix = f"{kind}-{group.split('.')[0]}-{plain}" if group else f"{kind}-{plain}"
    schema = json.loads((_folder(version) / f"{prefix.lower()}.json").read_text())
    return jsonschema_rs.Draft7Validator(schema, registry=_registry(version))


_known_good: set[tuple[str, str]] = set()


def schema_errors(o: dict, version: str) -> list[str]:
    """What the API server of this Kubernetes would not take: unknown fields, wrong types, missing fields. Custom
    resources against custom_resources.json, their pod templates against Kubernetes's."""
    digest = (version, hashlib.sha256(json.dumps(o, sort_keys=True).encode()).hexdigest())
    if digest in _known_good:
        return []
    errors = [f"{name_of(o)} {version}: {'/'.join(map(str, e.instance_path))}: {e.message[:300]}"
              for e in _validator(version, o["apiVersion"], o["kind"]).iter_errors(o)]
    if o["kind"] == "LeaderWorkerSet":
        for role, template in pod_templates([o]):
            pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
            errors += [f"{role}: {e}" for e in schema_errors(pod, version)]
    if not errors:
        _known_good.add(digest)
    return errors
