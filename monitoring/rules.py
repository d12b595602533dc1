"""Recording rules and alerts as data; scripts/monitoring_files.py writes them to helm/millrace/rules.

Cells report to every gateway, so what concerns a cell is exported once by each gateway: such series are joined with max, what a
gateway counts of its own requests with sum. Names under vllm: are other servers' too, so every selector says SERVICE; the chart
puts its release's pods in SERVICE's place, and the objectives of its values in that of the ones below. Standard library only.
"""

from dataclasses import dataclass, field

SERVICE = 'job=~".*millrace.*"'
RUNBOOK = "docs/alerts.md"

# What is promised, over 30 days. A bound in seconds is an edge of its histogram, or nothing could count by it.
AVAILABILITY = "0.999"
FIRST_TOKEN = "0.99"
FIRST_TOKEN_SECONDS = "2.5"
INTER_TOKEN = "0.99"
INTER_TOKEN_SECONDS = "0.2"  # five tokens a second: slower than people read
PERIOD = "30d"

BY = "cluster, namespace, job"
BY_CELL = BY + ", cell"


@dataclass
class Recording:
    name: str
    expr: str
    labels: set[str]  # of what it records, beside those of BY


@dataclass
class Alert:
    """Fires where every condition holds for the same labels: (value, comparison)."""
    name: str
    severity: str  # critical: wake somebody. warning: look today. info: worth a line in a report
    wait: str      # how long it must hold
    conditions: list[tuple[str, str]]
    summary: str
    description: str
    on: str = ""   # labels that the conditions share, where they have more
    extra: str = ""  # appended to the first condition, such as an upper bound

    def expr(self) -> str:
        first, *others = [f"{value} {comparison}".strip() for value, comparison in self.conditions]
        joined = f"({first}) {self.extra}" if self.extra else first
        return "\n".join([joined, *(f"and on ({self.on}) ({other})" if self.on else f"and ({other})" for other in others)])

    def anchor(self) -> str:
        return f"{RUNBOOK}#{self.name.lower()}"


@dataclass
class Group:
    name: str
    recordings: list[Recording] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)


def le(edge: str) -> str:
    """A matcher of the bucket up to `edge`, in the spelling of Prometheus 2 and of 3, which writes 1.0 for 1."""
    return f'le="{edge}"' if "." in edge else f'le=~"{edge}([.]0)?"'


# --- objectives ----------------------------------------------------------------------------------------------------

WINDOWS = ("5m", "30m", "1h", "6h", "3d")


def bad_requests(window: str) -> str:
    """Refused, or ended in an error that is not the client's. Client errors (4xx) and cancellations are no failures."""
    return (f'sum by ({BY}) (rate(millrace_sequences_failed_total{{{SERVICE}, reason!="slow_consumer"}}[{window}]))\n'
            f"+ sum by ({BY}) (rate(millrace_admission_rejections_total{{{SERVICE}}}[{window}]))")


def all_requests(window: str) -> str:
    return (f"sum by ({BY}) (rate(vllm:request_success_total{{{SERVICE}}}[{window}]))\n"
            f"+ sum by ({BY}) (rate(millrace_admission_rejections_total{{{SERVICE}}}[{window}]))")


def late(histogram: str, seconds: str):
    """Observations past the bound: all of them less the bucket up to it."""
    def over(window: str) -> str:
        return (f"sum by ({BY}) (rate({histogram}_count{{{SERVICE}}}[{window}]))\n"
                f"- sum by ({BY}) (rate({histogram}_bucket{{{SERVICE}, {le(seconds)}}}[{window}]))")
    return over


def observed(histogram: str):
    def over(window: str) -> str:
        return f"sum by ({BY}) (rate({histogram}_count{{{SERVICE}}}[{window}]))"
    return over


EACH_SERVICE = f"{{}} * group by ({BY}) (millrace_build_info{{{{{SERVICE}}}}})"  # a number, for each


def objective_recordings(what: str, objective: str, bad, every) -> list[Recording]:
    own = f"millrace:{what}"
    out = [Recording(f"{own}:objective", EACH_SERVICE.format(objective), set()),
           Recording(f"{own}:bad_rate5m", bad("5m"), set()),
           Recording(f"{own}:all_rate5m", every("5m"), set())]
    out += [Recording(f"{own}:bad_ratio_rate{w}", f"({bad(w)})\n/ ({every(w)})", set()) for w in WINDOWS]
    # Weighted by requests, and cheap: two series instead of all gateways' over 30 days.
    spent = f"sum_over_time({own}:bad_rate5m[{PERIOD}]) / sum_over_time({own}:all_rate5m[{PERIOD}])"
    out.append(Recording(f"{own}:budget_left_{PERIOD}", f"1 - {spent} / (1 - {own}:objective)", set()))
    return out


# (severity, long window, short window, budget per window, for): burn rates of the SRE workbook, chapter 5. The short window
# lets the alert go soon after the cause has.
BURNS = (("Fast", "critical", "1h", "5m", "14.4", "2m"), ("Quick", "critical", "6h", "30m", "6", "15m"),
         ("Slow", "warning", "3d", "6h", "1", "1h"))


def burn_alerts(name: str, what: str, promise: str) -> list[Alert]:
    out = []
    for pace, severity, long, short, factor, wait in BURNS:
        ratio = f"millrace:{what}:bad_ratio_rate"
        limit = f"> {factor} * (1 - millrace:{what}:objective)"
        out.append(Alert(
            f"Millrace{name}Budget{pace}", severity, wait, [(ratio + long, limit), (ratio + short, limit)],
            f"{promise} miss the objective {factor} times as often as the budget allows",
            f"Over {long}, {{{{ $value | humanizePercentage }}}} missed it for {{{{ $labels.job }}}}. At this pace a budget of 30 days "
            f"lasts {30 / float(factor):.3g} days."))
    return out


# (name in alerts, name in recordings, what it is of, histogram, objective, bound)
LATENCIES = (("FirstToken", "first_token", "First tokens", "vllm:time_to_first_token_seconds", FIRST_TOKEN, FIRST_TOKEN_SECONDS),
             ("InterToken", "inter_token", "Gaps between tokens", "vllm:inter_token_latency_seconds", INTER_TOKEN, INTER_TOKEN_SECONDS))

# The chart finds what it replaces by these recordings' names: a number at the beginning of objective and bound_seconds, and le.
OBJECTIVES = Group("millrace-objectives", objective_recordings("requests", AVAILABILITY, bad_requests, all_requests),
                   burn_alerts("Requests", "requests", "Requests"))
for _name, _what, _promise, _histogram, _objective, _seconds in LATENCIES:
    OBJECTIVES.recordings.append(Recording(f"millrace:{_what}:bound_seconds", EACH_SERVICE.format(_seconds), set()))
    OBJECTIVES.recordings += objective_recordings(_what, _objective, late(_histogram, _seconds), observed(_histogram))
    OBJECTIVES.alerts += burn_alerts(_name, _what, _promise)

# --- causes --------------------------------------------------------------------------------------------------------


def per_cell(metric: str, more: str = "") -> str:
    """A gauge or rate of a cell, once, whichever gateways say it."""
    labels = BY_CELL + (f", {more}" if more else "")
    return f"max by ({labels}) ({metric}{{{SERVICE}}})"


def cell_rate(metric: str, more: str = "") -> str:
    labels = BY_CELL + (f", {more}" if more else "")
    return f"max by ({labels}) (rate({metric}{{{SERVICE}}}[5m]))"


WORKER = "stage, lane"
RATIOS = Group("millrace-ratios", [
    Recording("millrace:cells_ready:max", f"max by ({BY}) (millrace_cells_ready{{{SERVICE}}})", set()),
    Recording("millrace:queue_use:max",
              f"max by ({BY}) (sum by ({BY}, instance) (millrace_queued_sequences{{{SERVICE}}})\n"
              f"/ sum by ({BY}, instance) (millrace_queue_capacity{{{SERVICE}}} > 0))", set()),
    Recording("millrace:refused:rate5m",
              f'sum by ({BY}) (rate(millrace_admission_rejections_total{{{SERVICE}, reason=~"queue_full|token_budget"}}[5m]))', set()),
    Recording("millrace:cell_busy:ratio_rate5m", cell_rate("millrace_cell_busy_seconds_total"), {"cell"}),
    Recording("millrace:cell_kv_use:ratio",
              f"{per_cell('millrace_cell_kv_tokens_used')}\n/ ({per_cell('millrace_cell_kv_tokens')} > 0)", {"cell"}),
    Recording("millrace:cell_slot_use:ratio",
              f"{per_cell('millrace_cell_slots_used')}\n/ ({per_cell('millrace_cell_slots')} > 0)", {"cell"}),
    Recording("millrace:cell_exchange_share:ratio_rate5m",
              f"sum by ({BY_CELL}) ({cell_rate('millrace_worker_exchange_seconds_total', WORKER)})\n"
              f"/ sum by ({BY_CELL}) ({cell_rate('millrace_worker_step_seconds_total', WORKER)})", {"cell"}),
    Recording("millrace:cell_lane_imbalance:avg",
              f"avg by ({BY_CELL}) ({per_cell('millrace_lane_imbalance_ratio', 'layer')})", {"cell"}),
    Recording("millrace:cell_expert_imbalance:max",
              f"max by ({BY_CELL}) (millrace_expert_imbalance_ratio{{{SERVICE}}})", {"cell"}),
])

BUSY = ("millrace:cell_busy:ratio_rate5m", "> 0.2")  # ratios of a cell with next to nothing to do say nothing
# Another start than an hour ago, or the first one.
EPOCH = f"max by ({BY_CELL}) (millrace_cell_epoch{{{SERVICE}}})"
EPOCH_BEFORE = f"max by ({BY_CELL}) (millrace_cell_epoch{{{SERVICE}}} offset 1h)"
LOADED = f"max by ({BY_CELL}) (millrace_cell_loaded_ratio{{{SERVICE}}})"
LOADED_BEFORE = f"max by ({BY_CELL}) (millrace_cell_loaded_ratio{{{SERVICE}}} offset 5m)"
CELL = "Cell {{ $labels.cell }} of {{ $labels.job }}"
# increase() extrapolates to the ends of its window: three starts may come out as 3.1.
COUNT = '{{ $value | printf "%.0f" }}'

CAUSES = Group("millrace-causes", alerts=[
    Alert("MillraceNotScraped", "critical", "5m", [(f"absent(millrace_build_info{{{SERVICE}}})", "")],
          "Prometheus sees no gateway of Millrace",
          "No series of a gateway for 5 minutes: it is down, or its scrape target is gone. All other alerts are blind meanwhile."),
    Alert("MillraceNoReadyCell", "critical", "2m", [("millrace:cells_ready:max", "== 0")],
          "No cell takes requests", "No gateway of {{ $labels.job }} has a ready cell; every request is refused with 503."),
    Alert("MillraceGatewayWithoutCells", "warning", "5m",
          [(f"millrace_cells_ready{{{SERVICE}}}", "== 0"), ("millrace:cells_ready:max", "> 0")],
          "A gateway has no ready cell although others have",
          "{{ $labels.instance }} refuses its requests; cells reach other gateways of {{ $labels.job }}.", on=BY),
    Alert("MillraceCellSilent", "critical", "1m", [(per_cell("millrace_cell_heartbeat_age_seconds"), "> 15")],
          "A cell was lost and has not come back",
          CELL + " was last heard {{ $value | humanizeDuration }} ago, without a Goodbye. Its supervisor should have started it again.",
          extra="< 21600"),
    Alert("MillraceCellSuspect", "warning", "30s",
          [(f"max by ({BY}) (millrace_cells{{{SERVICE}, state=\"suspect\"}})", "> 0")],
          "A connected cell is silent or makes no progress",
          "{{ $value }} cells of {{ $labels.job }} are suspect: connected, and silent, or with work and without a finished step. They get no requests."),
    Alert("MillraceCellRestarting", "warning", "0m",
          [(f"max by ({BY_CELL}) (increase(millrace_cell_restarts_total{{{SERVICE}}}[1h]))", "> 2.5")],
          "A cell keeps restarting", CELL + " came back " + COUNT + " times within an hour."),
    Alert("MillraceCellFailsToStart", "critical", "0m",
          [(f"max by ({BY_CELL}) (increase(millrace_cell_starts_total{{{SERVICE}}}[30m]))", "> 2.5"),
           (f'max by ({BY_CELL}) (max_over_time(millrace_cell_start_state{{{SERVICE}, state="ready"}}[30m]))', "== 0")],
          "A cell starts again and again and never becomes ready",
          CELL + " was started " + COUNT + " times within half an hour, and was not ready once."),
    Alert("MillraceLoadStalled", "warning", "5m",
          [(LOADED, f"== {LOADED_BEFORE}"),
           (f'max by ({BY_CELL}) (min_over_time(millrace_cell_start_state{{{SERVICE}, state="loading"}}[5m]))', "== 1")],
          "A cell that loads does not get on",
          CELL + " stands at {{ $value | humanizePercentage }} of its weights."),
    Alert("MillraceNoProgress", "critical", "3m",
          [(f"sum by ({BY}) (vllm:num_requests_running{{{SERVICE}}})", "> 0"),
           (f"sum by ({BY}) (rate(vllm:iteration_tokens_total_sum{{{SERVICE}}}[3m]))", "== 0")],
          "Requests run and no token is computed",
          "{{ $value }} sequences of {{ $labels.job }} are in cells that finished no step with a token for 3 minutes."),
    Alert("MillraceQueueFillingUp", "warning", "5m", [("millrace:queue_use:max", "> 0.5")],
          "A gateway's queue is more than half full",
          "The queue of {{ $labels.job }} is at {{ $value | humanizePercentage }} of its capacity; a full one refuses requests."),
    Alert("MillraceShedding", "warning", "5m", [("millrace:refused:rate5m", "> 0.01 * millrace:requests:all_rate5m")],
          "More than one request in a hundred is refused as overload",
          "{{ $labels.job }} refuses {{ $value | humanize }} requests per second because its queue is full."),
    Alert("MillraceQueueTimeouts", "warning", "0m",
          [(f'sum by ({BY}) (increase(millrace_sequences_failed_total{{{SERVICE}, reason="queue_timeout"}}[10m]))', "> 0")],
          "Requests wait longer than the queue allows",
          COUNT + " requests of {{ $labels.job }} ended within 10 minutes because no cell took them in time."),
    Alert("MillraceSequencesFailing", "warning", "0m",
          [(f'sum by ({BY}, reason) (increase(millrace_sequences_failed_total{{{SERVICE}, reason=~"cell_error|protocol"}}[10m]))',
            "> 0")],
          "A cell answers with errors",
          COUNT + " sequences of {{ $labels.job }} ended within 10 minutes for {{ $labels.reason }}: a fault of the model's "
          "side or of ours, not of load."),
    Alert("MillraceCellLostSequences", "warning", "0m",
          [(f'sum by ({BY}) (increase(millrace_sequences_failed_total{{{SERVICE}, reason="cell_lost"}}[10m]))', "> 0")],
          "Answers were cut off with their cell",
          COUNT + " sequences of {{ $labels.job }} ended within 10 minutes because the cell that computed them went away."),
    Alert("MillraceKvCacheFull", "warning", "10m", [("millrace:cell_kv_use:ratio", "> 0.95")],
          "A cell's KV cache is full", CELL + " uses {{ $value | humanizePercentage }} of its KV cache: requests wait for blocks."),
    Alert("MillracePreemptions", "warning", "10m",
          [(f"max by ({BY}) (rate(vllm:num_preemptions_total{{{SERVICE}}}[10m]))", "> 0.1")],
          "Running sequences are preempted",
          "{{ $labels.job }} takes {{ $value | humanize }} sequences a second out of their cells for want of KV blocks, and computes "
          "their prefixes again later."),
    Alert("MillraceLaneImbalance", "warning", "30m", [("millrace:cell_lane_imbalance:avg", "> 1.5"), BUSY],
          "One lane's experts get much more work than the others'",
          CELL + ": the busiest lane of a layer runs {{ $value | humanize }} times the average rows; the others wait for it in every layer."),
    Alert("MillraceExpertImbalance", "info", "30m", [("millrace:cell_expert_imbalance:max", "> 8"), BUSY],
          "One expert gets much more work than the others",
          CELL + ": in some layer the busiest expert runs {{ $value | humanize }} times the average rows."),
    Alert("MillraceExchangeShare", "warning", "15m", [("millrace:cell_exchange_share:ratio_rate5m", "> 0.5"), BUSY],
          "Workers spend more than half of their steps in the expert exchange",
          CELL + ": {{ $value | humanizePercentage }} of step time goes to dispatch and combine, waits for slower lanes included."),
    Alert("MillraceExchangeStaged", "warning", "10m",
          [(f'max by ({BY_CELL}, backend) (millrace_cell_info{{{SERVICE}, transport="staged"}})', "== 1")],
          "A cell on devices exchanges tokens by way of the host",
          CELL + ": {{ $labels.backend }} without NCCL, so every token crosses host memory in every layer."),
    Alert("MillraceStageBubble", "warning", "15m", [(per_cell("millrace_pipeline_bubble_ratio"), "> 0.5"), BUSY],
          "Workers are idle for more than half of the time that their cell is busy",
          CELL + ": {{ $value | humanizePercentage }} of its workers' time passes without work while requests are in it."),
    Alert("MillraceSlowLoad", "warning", "0m",
          [(f'max by ({BY_CELL}) (millrace_cell_start_phase_seconds{{{SERVICE}, phase="load"}})', "> 600"),
           (f"{EPOCH} unless {EPOCH} == {EPOCH_BEFORE}", "")],
          "A cell took more than ten minutes to load its weights",
          CELL + " loaded for {{ $value | humanizeDuration }} at its last start, within the last hour."),
    Alert("MillraceDrainStuck", "warning", "15m", [(f"millrace_draining{{{SERVICE}}}", "== 1")],
          "A gateway has been draining for a quarter of an hour",
          "{{ $labels.instance }} should have ended after deadlines.drain_ms."),
])

GROUPS = (OBJECTIVES, RATIOS, CAUSES)


def recorded() -> dict[str, set[str]]:
    """Name of each recording rule -> its labels beside the target's."""
    return {r.name: r.labels for g in GROUPS for r in g.recordings}


def alerts() -> list[Alert]:
    return [a for g in GROUPS for a in g.alerts]


# --- as a file -----------------------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def block(indent: int, text: str) -> str:
    if "\n" not in text:
        return f" {quoted(text)}\n"
    return " |-\n" + "".join(f"{' ' * indent}{line}\n" for line in text.splitlines())


def rules_yaml(groups=GROUPS) -> str:
    out = ("# Written by scripts/monitoring_files.py from monitoring/rules.py. For Prometheus without the chart: give the scrape job a name\n"
           "# with millrace in it. The chart replaces the selector and the objectives (templates/monitoring.yaml).\ngroups:\n")
    for group in groups:
        out += f"  - name: {group.name}\n    rules:\n"
        for rule in group.recordings:
            out += f"      - record: {rule.name}\n        expr:" + block(10, rule.expr)
        for alert in group.alerts:
            out += f"      - alert: {alert.name}\n        expr:" + block(10, alert.expr())
            out += f"        for: {alert.wait}\n        labels:\n          severity: {alert.severity}\n        annotations:\n"
            for key, text in (("summary", alert.summary), ("description", alert.description), ("runbook_url", alert.anchor())):
                out += f"          {key}: {quoted(text)}\n"
    return out
