"""Grafana's JSON for dashboards, from few words: panels are laid out in rows from left to right. Standard library only.

Every panel takes its data source from the variable of that name, and says what it shows in `description`.
"""

import json
from dataclasses import dataclass, field

COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Green, yellow, red from a value on. Reversed where more is better.
OK, WATCH, BAD = "green", "yellow", "red"


@dataclass
class Query:
    expr: str
    legend: str = ""
    instant: bool = False


@dataclass
class Panel:
    title: str
    description: str
    queries: list[Query]
    kind: str = "timeseries"  # timeseries, stat, gauge, heatmap, matrix, table, bargauge
    unit: str = "short"
    width: int = 8
    height: int = 8
    stack: bool = False
    steps: list[tuple[float | None, str]] = field(default_factory=list)  # thresholds: from a value on, a colour
    low: float | None = 0
    high: float | None = None
    decimals: int | None = None
    matrix: tuple[str, str] = ("", "")                     # rows, columns
    columns: dict[str, str] = field(default_factory=dict)  # of a table: label or query -> heading


@dataclass
class Row:
    title: str
    panels: list[Panel]


@dataclass
class Variable:
    name: str
    label: str
    query: str
    every: str | None = None  # what All stands for; None: the values that there are


@dataclass
class Dashboard:
    uid: str
    title: str
    description: str
    rows: list[Row]
    variables: list[Variable]
    annotations: list[tuple[str, str, str, str]] = field(default_factory=list)  # name, colour, expression, text

    def panels(self) -> list[Panel]:
        return [p for row in self.rows for p in row.panels]


def _field(p: Panel) -> dict:
    defaults: dict = {"unit": p.unit, "color": {"mode": "palette-classic"}}
    if p.low is not None:
        defaults["min"] = p.low
    if p.high is not None:
        defaults["max"] = p.high
    if p.decimals is not None:
        defaults["decimals"] = p.decimals
    steps = [{"value": value, "color": colour} for value, colour in p.steps] or [{"value": None, "color": OK}]
    defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if p.kind == "timeseries":
        custom = {"drawStyle": "line", "lineInterpolation": "linear", "lineWidth": 1, "showPoints": "never", "spanNulls": False,
                  "fillOpacity": 30 if p.stack else 8, "stacking": {"mode": "normal" if p.stack else "none", "group": "A"}}
        if len(p.steps) > 1:
            custom["thresholdsStyle"] = {"mode": "dashed"}
        defaults["custom"] = custom
    elif p.kind == "matrix":
        defaults["color"] = {"mode": "continuous-YlRd"}
        defaults["custom"] = {"cellOptions": {"type": "color-background", "mode": "basic"}, "align": "center"}
    elif p.kind == "table":
        defaults["custom"] = {"align": "left"}
    elif p.kind != "heatmap":
        defaults["color"] = {"mode": "thresholds"}
    return {"defaults": defaults, "overrides": []}


def _options(p: Panel) -> dict:
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if p.kind == "timeseries":
        return {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                "tooltip": {"mode": "multi", "sort": "desc"}}
    if p.kind == "stat":
        return {"reduceOptions": reduce, "colorMode": "value", "graphMode": "area", "textMode": "auto"}
    if p.kind == "gauge":
        return {"reduceOptions": reduce, "showThresholdMarkers": True}
    if p.kind == "bargauge":
        return {"reduceOptions": reduce, "orientation": "horizontal", "displayMode": "gradient"}
    if p.kind == "heatmap":
        return {"calculate": False, "cellGap": 1, "color": {"mode": "scheme", "scheme": "YlOrRd", "steps": 64},
                "yAxis": {"unit": p.unit, "axisPlacement": "left"}, "legend": {"show": True},
                "tooltip": {"mode": "single", "yHistogram": False}, "filterValues": {"le": 1e-9}}
    return {"showHeader": True, "cellHeight": "sm"}


def _transformations(p: Panel) -> list[dict]:
    if p.kind == "matrix":
        row, column = p.matrix
        return [{"id": "groupingToMatrix", "options": {"rowField": row, "columnField": column, "valueField": "Value"}},
                {"id": "sortBy", "options": {"sort": [{"field": f"{row}\\{column}"}]}}]
    if p.kind == "table":
        names = {"Value" if len(p.queries) == 1 else f"Value #{chr(65 + i)}": q.legend for i, q in enumerate(p.queries)}
        hidden = {name: True for name in ("Time", "__name__", "cluster", "namespace", "job", "instance", "pod", "endpoint",
                                          "service", "container") if name not in p.columns}
        return [{"id": "merge", "options": {}},
                {"id": "organize", "options": {"excludeByName": hidden, "renameByName": names | p.columns}}]
    return []


def _target(p: Panel, index: int, q: Query) -> dict:
    table = p.kind in ("matrix", "table")
    buckets = p.kind == "heatmap" and q.legend == "{{le}}"  # each counts what is below as well, which Grafana undoes
    instant = q.instant or table or p.kind in ("gauge", "bargauge")
    return {"refId": chr(65 + index), "datasource": SOURCE, "editorMode": "code", "expr": q.expr, "instant": instant, "range": not instant,
            "legendFormat": q.legend or "__auto", "format": "table" if table else "heatmap" if buckets else "time_series"}


def _panel(p: Panel, number: int, x: int, y: int) -> dict:
    kind = "table" if p.kind == "matrix" else p.kind
    out = {"id": number, "type": kind, "title": p.title, "description": p.description, "datasource": SOURCE,
           "gridPos": {"x": x, "y": y, "w": p.width, "h": p.height}, "fieldConfig": _field(p), "options": _options(p),
           "targets": [_target(p, i, q) for i, q in enumerate(p.queries)]}
    if steps := _transformations(p):
        out["transformations"] = steps
    return out


def _variable(v: Variable) -> dict:
    out = {"name": v.name, "label": v.label, "type": "query", "datasource": SOURCE, "definition": v.query,
           "query": {"query": v.query, "refId": "variable"}, "refresh": 2, "sort": 1, "multi": True, "includeAll": True,
           "current": {"text": ["All"], "value": ["$__all"]}}
    if v.every is not None:
        out["allValue"] = v.every
    return out


def dashboard_json(d: Dashboard) -> str:
    panels, number, y = [], 0, 0
    for row in d.rows:
        number += 1
        panels.append({"id": number, "type": "row", "title": row.title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}})
        y, x, high = y + 1, 0, 0
        for p in row.panels:
            if x + p.width > COLUMNS:
                y, x, high = y + high, 0, 0
            number += 1
            panels.append(_panel(p, number, x, y))
            x, high = x + p.width, max(high, p.height)
        y += high
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1,
              "current": {}, "hide": 0}
    annotations = [{"name": name, "datasource": SOURCE, "enable": True, "iconColor": colour, "expr": expr, "titleFormat": text, "step": "30s"}
                   for name, colour, expr, text in d.annotations]
    return json.dumps({
        "uid": d.uid, "title": d.title, "description": d.description, "tags": ["millrace"], "schemaVersion": 39, "version": 1,
        "editable": True, "graphTooltip": 1, "refresh": "30s", "time": {"from": "now-1h", "to": "now"}, "timezone": "browser",
        "annotations": {"list": annotations},
        "links": [{"type": "dashboards", "title": "Millrace", "tags": ["millrace"], "asDropdown": True, "includeVars": True,
                   "keepTime": True}],
        "templating": {"list": [source, *map(_variable, d.variables)]}, "panels": panels}, indent=1) + "\n"
