"""The metric catalogue for Python, read from metrics.md (which the build's tests hold equal to catalogue.h), and what a
PromQL expression names of it. Standard library only."""

import pathlib
import re
from dataclasses import dataclass, field

MONITORING = pathlib.Path(__file__).resolve().parent

# What Prometheus, or who runs it, adds to every series.
TARGET_LABELS = {"cluster", "namespace", "job", "instance", "pod"}
VLLM_LABELS = {"model_name", "engine"}


@dataclass
class Metric:
    name: str
    type: str
    unit: str
    labels: dict[str, list[str]]  # name -> all its values; empty: open
    buckets: list[str] = field(default_factory=list)

    def series(self) -> list[str]:
        """Names of its samples."""
        if self.type != "histogram":
            return [self.name]
        return [self.name + suffix for suffix in ("_bucket", "_sum", "_count")]


def catalogue(text: str | None = None) -> dict[str, Metric]:
    """Every metric by its name."""
    text = text if text is not None else (MONITORING / "metrics.md").read_text()
    found: dict[str, Metric] = {}
    for name, kind, unit, labels in re.findall(r"^\| `([\w:]+)` \| (\w+) \| (\w+) \| ([^|]*) \|", text, re.M):
        values = {label: re.split(r", ", listed) if listed else []
                  for label, listed in re.findall(r"`(\w+)`(?: \(([^)]*)\))?", labels)}
        found[name] = Metric(name, kind, unit, values)
    for name, bounds in re.findall(r"^\| `([\w:]+)` \| ([\d.e+ -]+) \|$", text, re.M):
        found[name].buckets = bounds.split()
    return found


def by_series(metrics: dict[str, Metric]) -> dict[str, Metric]:
    return {series: metric for metric in metrics.values() for series in metric.series()}


# --- what an expression names --------------------------------------------------------------------------------------

_STRING = r'"(?:[^"\\]|\\.)*"'
_NOT_METRICS = set("""and or unless by without on ignoring group_left group_right bool offset inf nan sum avg min max count group
topk bottomk quantile stddev""".split())
_MATCHER = re.compile(r'\s*(\w+)\s*(=~|!~|!=|=)\s*(' + _STRING + r')\s*,?')


@dataclass
class Selector:
    metric: str
    matchers: list[tuple[str, str, str]]  # label, operator, value


def selectors(expr: str) -> list[Selector]:
    """The vector selectors of a PromQL expression, in order."""
    found = []
    without_groups = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", expr)
    token = re.compile(_STRING + r"|\[[^\]]*\]|\b\d[\w.]*|([a-zA-Z_:][\w:]*)(\s*\()?(\s*\{)?")
    at = 0
    while match := token.search(without_groups, at):
        at = match.end()
        name, call, braces = match.groups()
        if not name or call or name.lower() in _NOT_METRICS:
            continue
        matchers = []
        if braces:
            while not re.compile(r"\s*\}").match(without_groups, at):
                part = _MATCHER.match(without_groups, at)
                if not part:
                    raise ValueError(f"cannot read the labels of {name} in: {expr}")
                matchers.append((part.group(1), part.group(2), part.group(3)[1:-1].replace("\\\\", "\\")))
                at = part.end()
        found.append(Selector(name, matchers))
    return found


def grouped_labels(expr: str) -> set[str]:
    """Labels in by (...), on (...) and the like."""
    lists = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", expr)
    return {label.strip() for text in lists for label in text.split(",") if label.strip()}


def problems(expr: str, metrics: dict[str, Metric], recorded: dict[str, set[str]]) -> list[str]:
    """What the expression names that is neither exported nor recorded: metrics, labels, values of labels with a closed
    list, bucket edges. `recorded`: name of a recording rule -> its labels."""
    series = by_series(metrics)
    found, allowed = [], set(TARGET_LABELS)
    for selector in selectors(expr):
        metric = series.get(selector.metric)
        if metric is None and selector.metric not in recorded:
            found.append(f"{selector.metric} is not exported")
            continue
        labels = set(recorded.get(selector.metric, ()))
        if metric:
            labels |= set(metric.labels) | (VLLM_LABELS if metric.name.startswith("vllm:") else set())
            labels |= {"le"} if selector.metric.endswith("_bucket") else set()
        allowed |= labels
        for label, operator, value in selector.matchers:
            if "$" in value:
                continue
            if label not in labels | TARGET_LABELS:
                found.append(f"{selector.metric} has no label {label}")
            elif metric and label == "le":
                if not [edge for edge in [*metric.buckets, "+Inf"] if _matches(operator, value, edge)]:
                    found.append(f"{selector.metric} has no bucket up to {value}")
            elif metric and metric.labels.get(label):
                values = metric.labels[label]
                wanted = re.split(r"\|", value) if operator in ("=~", "!~") else [value]
                found += [f"{selector.metric} has no {label}={v}" for v in wanted if v not in values and re.fullmatch(r"\w+", v)]
    found += [f"no label {label} to group by in: {expr}" for label in grouped_labels(expr) - allowed]
    return found


def _matches(operator: str, value: str, edge: str) -> bool:
    return re.fullmatch(value, edge) is not None if operator == "=~" else value == edge
