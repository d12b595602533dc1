"""For each alert, series on which it fires with these words, and the nearest ones on which it does not: each condition of an alert
has one where it alone keeps the alert quiet (alerts_test takes the conditions out, one by one).

Series are promtool's: "name{labels}": "start+stepxtimes", one value a minute (or as `every` says). Labels of the target are added.
"""

from dataclasses import dataclass


@dataclass
class Case:
    fires: dict[str, str]
    quiet: list[dict[str, str]]
    at: str                # when the alert is looked at
    description: str       # as rendered
    labels: dict[str, str]  # beside the target's
    every: str = "1m"


@dataclass
class Objectives:
    """As in the chart's values."""
    availability: float = 0.999
    firstToken: float = 0.99
    firstTokenSeconds: float = 2.5
    interToken: float = 0.99
    interTokenSeconds: float = 0.2


UP = {'millrace_build_info{version="0.1.0"}': "1x9999"}
BUSY = {'millrace_cell_busy_seconds_total{cell="a"}': "0+50x99"}
IDLE = {'millrace_cell_busy_seconds_total{cell="a"}': "0+5x99"}
CELL = {"cell": "a"}


def counter(*parts: tuple[float, int]) -> str:
    """A counter that grows by so much a step for so many steps, and then by the next."""
    out, total = ["0"], 0.0
    for amount, steps in parts:
        out.append(f"{total + amount:.10g}+{amount:.10g}x{steps - 1}")
        total += amount * steps
    return " ".join(out)


def requests(*parts: tuple[float, int]) -> dict[str, str]:
    """1000 a step, of which a share is refused or failed, half of it each, for so many steps. Of the others, half are lost by clients that
    are too slow, which is no fault of ours."""
    def part(of):
        return counter(*((1000 * of(share), steps) for share, steps in parts))

    return UP | {'vllm:request_success_total{finished_reason="length"}': part(lambda bad: (1 - bad) / 2),
                 'vllm:request_success_total{finished_reason="error"}': part(lambda bad: (1 - bad) / 2 + bad / 2),
                 'millrace_admission_rejections_total{reason="queue_full"}': part(lambda bad: bad / 2),
                 'millrace_sequences_failed_total{reason="cell_lost"}': part(lambda bad: bad / 2),
                 'millrace_sequences_failed_total{reason="slow_consumer"}': part(lambda bad: (1 - bad) / 2)}


def observations(histogram: str, seconds: float):
    """1000 a step, of which a share is past the bound; the bucket below it has all of the others, the one above all."""
    def of(*parts: tuple[float, int]) -> dict[str, str]:
        return UP | {f"{histogram}_count": counter(*((1000, steps) for _, steps in parts)),
                     f'{histogram}_bucket{{le="{seconds:g}"}}': counter(*((1000 * (1 - late), steps) for late, steps in parts)),
                     f'{histogram}_bucket{{le="{2 * seconds:g}"}}': counter(*((1000, steps) for _, steps in parts)),
                     f'{histogram}_bucket{{le="{seconds / 2:g}"}}': counter(*((0, steps) for _, steps in parts))}
    return of


# Pace -> times the budget, minutes of a step, then in steps: the long window, the short one, how long both must hold (SRE workbook,
# chapter 5, and a wait that is shorter than the short window).
PACES = {"Fast": (14.4, "1h", 1, 60, 5, 2), "Quick": (6, "6h", 5, 72, 6, 3), "Slow": (1, "3d", 30, 144, 12, 2)}


def burns(name: str, objective: float, series) -> dict[str, Case]:
    """Cases of an objective's alerts; `series` makes (bad share, steps), ... into counters."""
    cases = {}
    for pace, (factor, window, minutes, long, short, wait) in PACES.items():
        limit = factor * (1 - objective)
        bad, good = 1.3 * limit, 0.9 * limit
        assert bad <= 1, f"{name}{pace} cannot fire at {objective}"
        steps, tail = long + short + 2 * wait, short + wait + 2
        cases[f"Millrace{name}Budget{pace}"] = Case(
            series((bad, steps)),
            [series((good, steps)),
             series((bad, steps - tail), (0, tail)),   # over: only the long window remembers it
             series((0, steps - tail), (bad, tail))],  # a moment: only the short window thinks that it is much
            f"{steps * minutes}m",
            f"Over {window}, {bad * 100:.4g}% missed it for millrace. At this pace a budget of 30 days lasts {30 / factor:.3g} days.",
            {}, every=f"{minutes}m")
    return cases


def workers(step: str, exchange: str) -> dict[str, str]:
    return {f'millrace_worker_{what}_seconds_total{{cell="a", stage="0", lane="{lane}"}}': f"0+{value}x99"
            for lane in (0, 1) for what, value in (("step", step), ("exchange", exchange))}


def twice(series: dict[str, str]) -> dict[str, str]:
    """As two gateways export it, of which the second was a scrape late."""
    out = {}
    for name, values in series.items():
        for gateway in ("gw-0", "gw-1"):
            labelled = name.replace("{", f'{{instance="{gateway}", ') if "{" in name else f'{name}{{instance="{gateway}"}}'
            out[labelled] = values
    return out


def objective_cases(o: Objectives) -> dict[str, Case]:
    return (burns("Requests", o.availability, requests)
            | burns("FirstToken", o.firstToken, observations("vllm:time_to_first_token_seconds", o.firstTokenSeconds))
            | burns("InterToken", o.interToken, observations("vllm:inter_token_latency_seconds", o.interTokenSeconds)))


# Of a pod whose name the chart's selector takes; alerts on what one gateway says name it.
POD = "demo-millrace-gateway-6d5f8c7b9-x2x4z"
SECOND = {"instance": "gw-1", "pod": POD}
FIRST = {"instance": "gw-0", "pod": POD}

CAUSE_CASES: dict[str, Case] = {
    "MillraceNotScraped": Case(
        {"up": "0x99"}, [UP], "6m",
        "No series of a gateway for 5 minutes: it is down, or its scrape target is gone. All other alerts are blind meanwhile.", {}),
    "MillraceNoReadyCell": Case(
        {'millrace_cells_ready{instance="gw-0"}': "1x5 0x20", 'millrace_cells_ready{instance="gw-1"}': "0x25"},
        [{'millrace_cells_ready{instance="gw-0"}': "1x25", 'millrace_cells_ready{instance="gw-1"}': "0x25"}], "10m",
        "No gateway of millrace has a ready cell; every request is refused with 503.", {}),
    "MillraceGatewayWithoutCells": Case(
        {'millrace_cells_ready{instance="gw-0"}': "1x25", 'millrace_cells_ready{instance="gw-1"}': "0x25"},
        [{'millrace_cells_ready{instance="gw-0"}': "0x25", 'millrace_cells_ready{instance="gw-1"}': "0x25"},
         {'millrace_cells_ready{instance="gw-0"}': "1x25", 'millrace_cells_ready{instance="gw-1"}': "1x25"}], "10m",
        "gw-1 refuses its requests; cells reach other gateways of millrace.", SECOND),
    "MillraceCellSilent": Case(
        {'millrace_cell_heartbeat_age_seconds{cell="a"}': "0 0 60+60x20"},
        # a comes back in time; c has been away for longer than anybody waits for it. (NaN, after a Goodbye, is no number here.)
        [{'millrace_cell_heartbeat_age_seconds{cell="a"}': "0 0 14x20",
          'millrace_cell_heartbeat_age_seconds{cell="c"}': "30000+60x20"}], "8m",
        "Cell a of millrace was last heard 7m 0s ago, without a Goodbye. Its supervisor should have started it again.", CELL),
    "MillraceCellSuspect": Case(
        {'millrace_cells{state="suspect"}': "1x10", 'millrace_cells{state="healthy"}': "1x10"},
        [{'millrace_cells{state="suspect"}': "0x10", 'millrace_cells{state="healthy"}': "1x10"}], "5m",
        "1 cells of millrace are suspect: connected, and silent, or with work and without a finished step. They get no requests.", {}),
    "MillraceCellRestarting": Case(
        twice({'millrace_cell_restarts_total{cell="a"}': "0x10 1x10 2x10 3x60"}),
        [twice({'millrace_cell_restarts_total{cell="a"}': "0x20 1x20 2x60"})], "60m",
        "Cell a of millrace came back 3 times within an hour.", CELL),
    "MillraceCellFailsToStart": Case(
        {'millrace_cell_starts_total{cell="a"}': "1x4 2x9 3x9 4x30", 'millrace_cell_start_state{cell="a", state="ready"}': "0x60",
         'millrace_cell_start_state{cell="a", state="backoff"}': "1x60"},
        # Ready for a while after its third start; and started twice only.
        [{'millrace_cell_starts_total{cell="a"}': "1x4 2x9 3x9 4x30", 'millrace_cell_start_state{cell="a", state="ready"}': "0x20 1x3 0x30"},
         {'millrace_cell_starts_total{cell="a"}': "1x4 2x9 3x40", 'millrace_cell_start_state{cell="a", state="ready"}': "0x60"}], "29m",
        "Cell a of millrace was started 3 times within half an hour, and was not ready once.", CELL),
    "MillraceLoadStalled": Case(
        {'millrace_cell_loaded_ratio{cell="a"}': "0 0.2 0.4x30", 'millrace_cell_start_state{cell="a", state="loading"}': "0 1x30"},
        # One that gets on, and one that is ready.
        [{'millrace_cell_loaded_ratio{cell="a"}': "0+0.02x40", 'millrace_cell_start_state{cell="a", state="loading"}': "0 1x40"},
         {'millrace_cell_loaded_ratio{cell="a"}': "1x40", 'millrace_cell_start_state{cell="a", state="loading"}': "0x40"}], "15m",
        "Cell a of millrace stands at 40% of its weights.", CELL),
    "MillraceNoProgress": Case(
        {"vllm:num_requests_running": "4x20", "vllm:iteration_tokens_total_sum": "0+10x8 80x12"},
        [{"vllm:num_requests_running": "0x20", "vllm:iteration_tokens_total_sum": "0+10x8 80x12"},
         {"vllm:num_requests_running": "4x20", "vllm:iteration_tokens_total_sum": "0+10x20"}], "17m",
        "4 sequences of millrace are in cells that finished no step with a token for 3 minutes.", {}),
    "MillraceQueueFillingUp": Case(
        {'millrace_queued_sequences{instance="gw-0"}': "60x20", 'millrace_queued_sequences{instance="gw-1"}': "0x20",
         'millrace_queue_capacity{instance="gw-0"}': "100x20", 'millrace_queue_capacity{instance="gw-1"}': "100x20"},
        [{'millrace_queued_sequences{instance="gw-0"}': "60x4 40x4 60x4", 'millrace_queue_capacity{instance="gw-0"}': "100x20"}], "10m",
        "The queue of millrace is at 60% of its capacity; a full one refuses requests.", {}),
    "MillraceShedding": Case(
        requests((0.024, 30)), [requests((0.018, 30))], "20m",  # half of them refused
        "millrace refuses 200m requests per second because its queue is full.", {}),
    "MillraceQueueTimeouts": Case(
        {'millrace_sequences_failed_total{reason="queue_timeout"}': "0x5 2x10"},
        [{'millrace_sequences_failed_total{reason="queue_timeout"}': "2x30"}], "10m",
        "2 requests of millrace ended within 10 minutes because no cell took them in time.", {}),
    "MillraceSequencesFailing": Case(
        {'millrace_sequences_failed_total{reason="protocol"}': "0x5 1x10"},
        [{'millrace_sequences_failed_total{reason="cell_lost"}': "0x5 1x10"}], "10m",
        "1 sequences of millrace ended within 10 minutes for protocol: a fault of the model's side or of ours, not of load.",
        {"reason": "protocol"}),
    "MillraceCellLostSequences": Case(
        {'millrace_sequences_failed_total{reason="cell_lost"}': "0x5 9x10"},
        [{'millrace_sequences_failed_total{reason="slow_consumer"}': "0x5 9x10"}], "10m",
        "9 sequences of millrace ended within 10 minutes because the cell that computed them went away.", {}),
    "MillraceKvCacheFull": Case(
        twice({'millrace_cell_kv_tokens{cell="a"}': "1000x30", 'millrace_cell_kv_tokens_used{cell="a"}': "970x30"}),
        # Full for a moment, and a cell that is away.
        [twice({'millrace_cell_kv_tokens{cell="a"}': "1000x30", 'millrace_cell_kv_tokens_used{cell="a"}': "970x15 900 970x14",
                'millrace_cell_kv_tokens{cell="b"}': "0x30", 'millrace_cell_kv_tokens_used{cell="b"}': "0x30"})], "20m",
        "Cell a of millrace uses 97% of its KV cache: requests wait for blocks.", CELL),
    "MillracePreemptions": Case(
        twice({"vllm:num_preemptions_total": "0+12x40"}), [twice({"vllm:num_preemptions_total": "0+5x40"})], "30m",
        "millrace takes 200m sequences a second out of their cells for want of KV blocks, and computes their prefixes again later.", {}),
    "MillraceLaneImbalance": Case(
        BUSY | {'millrace_lane_imbalance_ratio{cell="a", layer="2"}': "1.2x99", 'millrace_lane_imbalance_ratio{cell="a", layer="3"}': "2x99"},
        [IDLE | {'millrace_lane_imbalance_ratio{cell="a", layer="3"}': "2x99"},
         BUSY | {'millrace_lane_imbalance_ratio{cell="a", layer="2"}': "1.2x99", 'millrace_lane_imbalance_ratio{cell="a", layer="3"}': "1.7x99"}],
        "45m",
        "Cell a of millrace: the busiest lane of a layer runs 1.6 times the average rows; the others wait for it in every layer.", CELL),
    "MillraceExpertImbalance": Case(
        BUSY | {'millrace_expert_imbalance_ratio{cell="a", layer="2"}': "9x99", 'millrace_expert_imbalance_ratio{cell="a", layer="3"}': "1x99"},
        [BUSY | {'millrace_expert_imbalance_ratio{cell="a", layer="2"}': "7x99"}, IDLE | {'millrace_expert_imbalance_ratio{cell="a", layer="2"}': "9x99"}],
        "45m",
        "Cell a of millrace: in some layer the busiest expert runs 9 times the average rows.", CELL),
    "MillraceExchangeShare": Case(
        BUSY | workers("50", "30"), [BUSY | workers("50", "20"), IDLE | workers("5", "3")], "30m",
        "Cell a of millrace: 60% of step time goes to dispatch and combine, waits for slower lanes included.", CELL),
    "MillraceExchangeStaged": Case(
        twice({'millrace_cell_info{cell="a", backend="cuda", transport="staged"}': "1x30"}),
        # Away; and with NCCL since its last start.
        [{'millrace_cell_info{cell="a", backend="cuda", transport="staged"}': "0x30"},
         {'millrace_cell_info{cell="a", backend="cuda", transport="staged"}': "1x5 0x30",
          'millrace_cell_info{cell="a", backend="cuda", transport="nccl 2.28.9"}': "0x5 1x30"}], "20m",
        "Cell a of millrace: cuda without NCCL, so every token crosses host memory in every layer.", CELL | {"backend": "cuda"}),
    "MillraceStageBubble": Case(
        BUSY | {'millrace_pipeline_bubble_ratio{cell="a"}': "0.75x99"},
        [BUSY | {'millrace_pipeline_bubble_ratio{cell="a"}': "0.4x99"}, IDLE | {'millrace_pipeline_bubble_ratio{cell="a"}': "0.75x99"}], "30m",
        "Cell a of millrace: 75% of its workers' time passes without work while requests are in it.", CELL),
    "MillraceSlowLoad": Case(
        {'millrace_cell_start_phase_seconds{cell="a", phase="load"}': "900x99", 'millrace_cell_epoch{cell="a"}': "3x40 4x59"},
        # Loaded slowly, but long ago; and another phase.
        [{'millrace_cell_start_phase_seconds{cell="a", phase="load"}': "900x99", 'millrace_cell_epoch{cell="a"}': "3x5 4x94",
          'millrace_cell_start_phase_seconds{cell="b", phase="plan"}': "900x99", 'millrace_cell_epoch{cell="b"}': "3x40 4x59"}], "80m",
        "Cell a of millrace loaded for 15m 0s at its last start, within the last hour.", CELL),
    "MillraceDrainStuck": Case(
        {'millrace_draining{instance="gw-0"}': "0x5 1x30"}, [{'millrace_draining{instance="gw-0"}': "0x15 1x20"}], "25m",
        "gw-0 should have ended after deadlines.drain_ms.", FIRST),
}


def cases(objectives: Objectives) -> dict[str, Case]:
    return objective_cases(objectives) | CAUSE_CASES
