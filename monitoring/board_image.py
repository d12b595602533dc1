"""A dashboard as a picture, from answers of Prometheus. Needs matplotlib and Pillow; only scripts/draw_dashboards.py does."""

import datetime
import hashlib
import math
import pathlib
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.dates import AutoDateLocator, DateFormatter  # noqa: E402
from matplotlib.patches import Wedge  # noqa: E402
from PIL import Image  # noqa: E402
from PIL.PngImagePlugin import PngInfo  # noqa: E402

from panels import BAD, COLUMNS, OK, WATCH, Dashboard, Panel, Query, dashboard_json  # noqa: E402

UNIT = 0.30           # inches of a grid row
WIDTH = 15.0          # inches of 24 columns
DPI = 100
COLOURS = {OK: "#3c9a5f", WATCH: "#d9a520", BAD: "#d0433f", "blue": "#3b6fb6", "red": "#d0433f"}
BRIDGED = 3  # steps: a scrape for which a busy machine was too slow is no gap in the service
LINES = ["#3b6fb6", "#e08b2d", "#3c9a5f", "#b8443e", "#7d5fb2", "#8a6d5b", "#cf6fae", "#6d7680", "#a9a93c", "#39a7b5"]
TEXT, FAINT, PAGE, EDGE = "#24292f", "#6b7280", "#f3f4f6", "#d6d9de"


def amount(value: float, unit: str, decimals: int | None = None) -> str:
    if not math.isfinite(value):
        return "–"
    if unit == "percentunit":
        return f"{value * 100:.0f} %" if abs(value) >= 10 else f"{value * 100:.3g} %"
    if unit == "s":
        if abs(value) >= 60:
            return f"{value / 60:.3g} min"
        scale, word = (1, "s") if abs(value) >= 1 or value == 0 else (1e3, "ms") if abs(value) >= 1e-3 else (1e6, "µs")
        return f"{value * scale:.3g} {word}"
    if decimals is not None and abs(value) < 1000:
        text = f"{value:.{decimals}f}"
    else:
        scale, word = next(((s, w) for s, w in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= s), (1, ""))
        text = f"{value / scale:.3g}{word}"
    return text + (" /s" if unit == "reqps" else "")


def label(query: Query, metric: dict) -> str:
    if query.legend:
        return re.sub(r"\{\{(\w+)\}\}", lambda m: metric.get(m.group(1), ""), query.legend)
    return ", ".join(v for k, v in metric.items() if k not in ("__name__", "cluster", "namespace", "job", "pod")) or "value"


def number(text: str):
    """For sorting le, layers and lanes as numbers."""
    try:
        return (0, float(text), "")
    except ValueError:
        return (1, 0.0, text)


def colour_at(p: Panel, value: float) -> str:
    colour = OK
    for start, name in p.steps:
        if start is None or value >= start:
            colour = name
    return COLOURS[colour]


def grid(answers, series: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Times, and a row of values for each series, NaN where there is none."""
    times = answers.start + answers.step * np.arange(int((answers.end - answers.start) / answers.step + 1e-6) + 1)
    rows = np.full((len(series), len(times)), np.nan)
    for row, one in zip(rows, series):
        for at, value in one["values"]:
            index = round((at - answers.start) / answers.step)
            if 0 <= index < len(times):
                row[index] = float(value)
        known = np.flatnonzero(np.isfinite(row))
        for a, b in zip(known, known[1:]):
            if b - a <= BRIDGED + 1:
                row[a:b] = np.linspace(row[a], row[b], b - a, endpoint=False)
    return times, rows


def clock(times: np.ndarray):
    return [datetime.datetime.fromtimestamp(t, datetime.timezone.utc) for t in times]


def time_axis(axes):
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=3, maxticks=6))
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M:%S"))
    axes.tick_params(labelsize=6.5, colors=FAINT, length=2)


def draw_timeseries(axes, p: Panel, answers):
    lines = []
    for q in p.queries:
        lines += sorted(((label(q, s["metric"]), s) for s in answers.over_time(q.expr)), key=lambda line: [number(part) for part in line[0].split()])
    times, rows = grid(answers, [s for _, s in lines])
    names = [name for name, _ in lines]
    x = clock(times)
    colours = [LINES[i % len(LINES)] for i in range(len(names))]
    if p.stack and lines:
        axes.stackplot(x, np.nan_to_num(rows), colors=colours, alpha=0.75, linewidth=0)
        top = np.nanmax(np.nansum(rows, axis=0)) if len(rows) else 0
    else:
        for row, colour in zip(rows, colours):
            axes.plot(x, row, color=colour, linewidth=1.2)
        top = np.nanmax(rows) if rows.size and not np.all(np.isnan(rows)) else 0
    high = p.high if p.high is not None else (top * 1.12 if top > 0 else 1)
    for start, colour in p.steps:
        if start is not None and len(p.steps) > 1 and start <= max(high, top * 1.12):
            axes.axhline(start, color=COLOURS[colour], linewidth=0.9, linestyle=(0, (4, 3)))
    low = p.low if p.low is not None else (float(np.nanmin(rows)) if rows.size else 0)
    axes.set_ylim(low, high if high > low else low + 1)
    axes.set_xlim(x[0], x[-1])
    axes.yaxis.set_major_locator(plt.MaxNLocator(5))
    axes.yaxis.set_major_formatter(lambda v, _: amount(v, p.unit))
    axes.grid(axis="y", color=EDGE, linewidth=0.5)
    time_axis(axes)
    draw_legend(axes, names, colours)


def draw_legend(axes, names: list[str], colours: list[str]):
    shown = names[:8]
    handles = [plt.Line2D([], [], color=c, linewidth=3) for c in colours[:8]]
    if len(names) > 8:
        handles, shown = handles[:7], names[:7] + [f"and {len(names) - 7} more"]
        handles.append(plt.Line2D([], [], color="none"))
    longest = max((len(n) for n in shown), default=0)
    width = axes.get_position().width * WIDTH
    columns = max(1, min(len(shown), int(width / (0.3 + longest * 0.062))))
    axes.legend(handles, shown, loc="upper left", bbox_to_anchor=(-0.02, -0.13), ncols=columns, fontsize=6.5, frameon=False, handlelength=1,
                columnspacing=1, labelcolor=TEXT, borderpad=0, labelspacing=0.25)


def draw_heatmap(axes, p: Panel, answers):
    series = [(label(p.queries[0], s["metric"]), s) for s in answers.over_time(p.queries[0].expr)]
    series.sort(key=lambda one: number(one[0].replace("+Inf", "inf")))
    times, rows = grid(answers, [s for _, s in series])
    names = [name for name, _ in series]
    if p.queries[0].legend == "{{le}}":  # buckets count what is below as well
        rows = np.diff(np.vstack([np.zeros_like(rows[:1]), np.nan_to_num(rows)]), axis=0)
        used = [i for i in range(len(names)) if rows[i].max() > 1e-9]
        first, last = (max(0, used[0] - 1), used[-1] + 1) if used else (0, len(names) - 1)
        rows, names = rows[first:last + 1], names[first:last + 1]
        rows[rows < 1e-9] = np.nan
    x = matplotlib.dates.date2num(clock(times))
    if not len(names):
        return
    image = axes.imshow(rows, aspect="auto", origin="lower", cmap="YlOrRd", interpolation="nearest",
                        extent=(x[0], x[-1], -0.5, len(names) - 0.5))
    axes.xaxis_date()
    every = max(1, math.ceil(len(names) / 9))
    axes.set_yticks(range(0, len(names), every))
    wanted = names[::every]
    axes.set_yticklabels([amount(float(n), p.unit) if p.queries[0].legend == "{{le}}" and n != "+Inf" else n for n in wanted])
    time_axis(axes)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03)
    bar.ax.tick_params(labelsize=6, colors=FAINT, length=2)
    bar.outline.set_visible(False)


def draw_stat(axes, p: Panel, answers):
    series = answers.over_time(p.queries[0].expr)
    times, rows = grid(answers, series)
    row = rows[0] if len(rows) else np.array([np.nan])
    known = row[np.isfinite(row)]
    value = known[-1] if len(known) else math.nan
    colour = colour_at(p, value) if p.steps and math.isfinite(value) else COLOURS["blue"]
    axes.fill_between(range(len(row)), np.nan_to_num(row), color=colour, alpha=0.15, linewidth=0)
    top = known.max() if len(known) else 1
    axes.set_ylim(min(0, known.min() if len(known) else 0), max(top * 2.5, 1e-9))
    axes.set_xlim(0, max(1, len(row) - 1))
    axes.axis("off")
    axes.text(0.5, 0.55, amount(value, p.unit, p.decimals), transform=axes.transAxes, fontsize=19, color=colour, ha="center", va="center",
              fontweight="bold")


def draw_gauge(axes, p: Panel, answers):
    shown = [(label(p.queries[0], s["metric"]), float(s["value"][1])) for s in answers.now(p.queries[0].expr)]
    axes.axis("off")
    axes.set_aspect("equal")
    for i, (name, value) in enumerate(sorted(shown)[:4]):
        x = i * 2.6
        axes.add_patch(Wedge((x, 0), 1, 0, 180, width=0.28, color=EDGE))
        share = min(1.0, max(0.0, value / (p.high or 1)))
        axes.add_patch(Wedge((x, 0), 1, 180 - 180 * share, 180, width=0.28, color=colour_at(p, value)))
        axes.text(x, 0.12, amount(value, p.unit), ha="center", fontsize=10, color=TEXT, fontweight="bold")
        axes.text(x, -0.28, name, ha="center", fontsize=7, color=FAINT)
    axes.set_xlim(-1.3, max(0, len(shown[:4]) - 1) * 2.6 + 1.3)
    axes.set_ylim(-0.5, 1.15)


def draw_bargauge(axes, p: Panel, answers):
    shown = [(label(p.queries[0], s["metric"]), float(s["value"][1])) for s in answers.now(p.queries[0].expr)]
    if "topk" in p.queries[0].expr:
        shown.sort(key=lambda one: one[1])
    else:
        shown.sort(key=lambda one: [number(part) for part in one[0].split()], reverse=True)
    low = p.low or 0
    axes.barh(range(len(shown)), [v - low for _, v in shown], left=low, color=[colour_at(p, v) for _, v in shown], height=0.62)
    most = max((v for _, v in shown), default=1)
    for i, (_, value) in enumerate(shown):
        axes.text(value + (most - low) * 0.02, i, amount(value, p.unit, p.decimals), va="center", fontsize=6.5, color=TEXT)
    axes.set_yticks(range(len(shown)))
    axes.set_yticklabels([name for name, _ in shown])
    axes.set_xlim(low, low + max(most - low, 1e-9) * 1.3)
    axes.tick_params(labelsize=6.5, colors=FAINT, length=0)
    axes.set_xticks([])


def draw_matrix(axes, p: Panel, answers):
    row_label, column_label = p.matrix
    found = {(s["metric"][row_label], s["metric"][column_label]): float(s["value"][1]) for s in answers.now(p.queries[0].expr)}
    rows = sorted({r for r, _ in found}, key=number)
    columns = sorted({c for _, c in found}, key=number)
    values = np.array([[found.get((r, c), np.nan) for c in columns] for r in rows])
    if not values.size:
        return
    axes.imshow(values, aspect="auto", cmap="YlOrRd", vmin=0)
    for i, j in np.ndindex(values.shape):
        axes.text(j, i, amount(values[i, j], p.unit, p.decimals), ha="center", va="center", fontsize=7,
                  color="white" if values[i, j] > 0.7 * np.nanmax(values) else TEXT)
    axes.set_xticks(range(len(columns)), [f"{column_label} {c}" for c in columns])
    axes.set_yticks(range(len(rows)), [f"{row_label} {r}" for r in rows])
    axes.xaxis.tick_top()
    axes.tick_params(labelsize=7, colors=FAINT, length=0)


def draw_table(axes, p: Panel, answers):
    keys = list(p.columns)
    lines: dict[tuple, list] = {}
    for i, q in enumerate(p.queries):
        for s in answers.now(q.expr):
            key = tuple(s["metric"].get(k) for k in keys)
            same = next((k for k in lines if all(a is None or b is None or a == b for a, b in zip(k, key))), key)
            lines.setdefault(same, [""] * len(p.queries))[i] = amount(float(s["value"][1]), p.unit)
    body = [[*(k or "" for k in key), *cells] for key, cells in sorted(lines.items(), key=str)]
    axes.axis("off")
    table = axes.table(cellText=body or [[""] * (len(keys) + len(p.queries))], loc="upper left", cellLoc="left",
                       colLabels=[*p.columns.values(), *(q.legend for q in p.queries)], edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(7.5)
    table.scale(0.97, 1.25)
    for (row, _), cell in table.get_celld().items():
        cell.set_edgecolor(EDGE)
        cell.get_text().set_color(FAINT if row == 0 else TEXT)


DRAW = {"timeseries": draw_timeseries, "heatmap": draw_heatmap, "stat": draw_stat, "gauge": draw_gauge, "bargauge": draw_bargauge,
        "matrix": draw_matrix, "table": draw_table}


def layout(board: Dashboard):
    """(row title or panel, x, y) in grid units, as panels.py lays them out; and the height of all."""
    placed, y = [], 0.0
    for row in board.rows:
        placed.append((row.title, 0, y))
        y, x, high = y + 1, 0, 0
        for p in row.panels:
            if x + p.width > COLUMNS:
                y, x, high = y + high, 0, 0
            placed.append((p, x, y))
            x, high = x + p.width, max(high, p.height)
        y += high
    return placed, y


def draw(board: Dashboard, answers, path: pathlib.Path):
    placed, rows = layout(board)
    top = 1.6  # the title
    height = rows + top
    figure = plt.figure(figsize=(WIDTH, height * UNIT), dpi=DPI, facecolor=PAGE)
    marks = [(colour, float(at)) for _, colour, expr, _ in board.annotations for s in answers.over_time(expr) for at, _ in s["values"][:1]]

    def inches(x: float, y: float, w: float, h: float) -> list[float]:
        """A box in inches from the top left corner, as a share of the figure."""
        total = height * UNIT
        return [x / WIDTH, 1 - (y + h) / total, w / WIDTH, h / total]

    figure.text(0.008, 1 - 0.75 / height, board.title, fontsize=13, color=TEXT, fontweight="bold", va="center")
    figure.text(0.992, 1 - 0.75 / height, board.description.split(". ")[0], fontsize=8, color=FAINT, ha="right", va="center")
    column = WIDTH / COLUMNS
    for what, x, y in placed:
        left, above = x * column, (y + top) * UNIT
        if isinstance(what, str):
            figure.text((left + 0.12) / WIDTH, 1 - (above + 0.17) / (height * UNIT), what, fontsize=9.5, color=TEXT, fontweight="bold", va="center")
            continue
        w, h = what.width * column, what.height * UNIT
        frame = figure.add_axes(inches(left + 0.05, above + 0.04, w - 0.1, h - 0.08))
        frame.set_facecolor("white")
        frame.set_xticks([])
        frame.set_yticks([])
        for spine in frame.spines.values():
            spine.set_color(EDGE)
        figure.text((left + 0.14) / WIDTH, 1 - (above + 0.19) / (height * UNIT), what.title, fontsize=8, color=TEXT, fontweight="bold", va="center")
        pads = {"timeseries": (0.55, 0.38, 0.12, 0.62), "heatmap": (0.6, 0.38, 0.42, 0.3), "bargauge": (0.95, 0.35, 0.15, 0.12),
                "matrix": (0.65, 0.55, 0.12, 0.12), "table": (0.12, 0.4, 0.25, 0.1)}.get(what.kind, (0.1, 0.3, 0.1, 0.1))
        axes = figure.add_axes(inches(left + pads[0], above + pads[1], w - pads[0] - pads[2], h - pads[1] - pads[3]))
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_facecolor("white")
        DRAW[what.kind](axes, what, answers)
        if what.kind == "timeseries":
            for colour, at in marks:
                axes.axvline(datetime.datetime.fromtimestamp(at, datetime.timezone.utc), color=COLOURS[colour], linewidth=0.8, linestyle=":")
    figure.savefig(path, facecolor=PAGE)
    plt.close(figure)
    # Tests tell by it whether the picture is of the dashboard as it is now.
    note = PngInfo()
    note.add_text("dashboard-sha256", hashlib.sha256(dashboard_json(board).encode()).hexdigest())
    # A palette: a third of the bytes. Refined, or lines of like colours become one.
    image = Image.open(path).convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE)
    image.save(path, optimize=True, pnginfo=note)
