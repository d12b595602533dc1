"""The five dashboards as data; scripts/monitoring_files.py writes them to helm/millrace/dashboards.

Cells report to every gateway: what concerns a cell is joined over gateways with max, what a gateway counts of its own requests
with sum. Objectives come from the recording rules of rules.py, everything else from the exported series. Standard library only.
"""

from panels import BAD, COLUMNS, OK, WATCH, Dashboard, Panel, Query, Row, Variable
from rules import BURNS, PERIOD

TARGET = 'cluster=~"$cluster", namespace=~"$namespace", job=~"$job"'
CELLS = TARGET + ', cell=~"$cell"'
RATE = "$__rate_interval"
SERVICE = "namespace, job"
CELL = SERVICE + ", cell"

SERVICE_VARIABLES = [
    Variable("cluster", "Cluster", "label_values(millrace_build_info, cluster)", ".*"),
    Variable("namespace", "Namespace", 'label_values(millrace_build_info{cluster=~"$cluster"}, namespace)', ".*"),
    Variable("job", "Job", 'label_values(millrace_build_info{cluster=~"$cluster", namespace=~"$namespace"}, job)'),
]
CELL_VARIABLES = [*SERVICE_VARIABLES, Variable("cell", "Cell", f"label_values(millrace_cell_epoch{{{TARGET}}}, cell)", ".*")]

STARTS = ("Starts of cells", "blue", f"sum by (cell) (changes(millrace_cell_epoch{{{TARGET}}}[2m])) > 0", "{{cell}} started again")
LOSSES = ("Lost cells", "red", f"sum by (cell) (increase(millrace_cell_losses_total{{{TARGET}}}[2m])) > 0", "{{cell}} was lost")


def rate(counter: str, by: str, matchers: str = TARGET, how: str = "sum") -> str:
    return f"{how} by ({by}) (rate({counter}{{{matchers}}}[{RATE}]))" if by else f"{how}(rate({counter}{{{matchers}}}[{RATE}]))"


def cell_rate(counter: str, by: str = CELL) -> str:
    """The rate of a cell's counter, once, whichever gateways export it."""
    return rate(counter, by, CELLS, "max")


def cell_gauge(gauge: str, by: str = CELL) -> str:
    return f"max by ({by}) ({gauge}{{{CELLS}}})"


def quantiles(histogram: str, of=(0.5, 0.95, 0.99)) -> list[Query]:
    buckets = rate(histogram + "_bucket", "le")
    return [Query(f"histogram_quantile({q}, {buckets})", f"p{q * 100:g}") for q in of]


def latency(title: str, histogram: str, description: str, **more) -> Panel:
    return Panel(title, description, [*quantiles(histogram), *more.pop("beside", [])], unit="s", **more)


def spread(title: str, histogram: str, description: str, unit: str = "s", **more) -> Panel:
    """How observations fall into the histogram's buckets, over time."""
    return Panel(title, description, [Query(f"sum by (le) (increase({histogram}_bucket{{{TARGET}}}[{RATE}]))", "{{le}}")],
                 kind="heatmap", unit=unit, **more)


def stat(title: str, description: str, expr: str, unit: str = "short", steps=(), width: int = 4, **more) -> Panel:
    return Panel(title, description, [Query(expr)], kind="stat", unit=unit, width=width, height=4, steps=list(steps), low=None, **more)


ENDED = "vllm:request_success_total"
REFUSED = "millrace_admission_rejections_total"
FAILED = "millrace_sequences_failed_total"
TTFT = "vllm:time_to_first_token_seconds"
ITL = "vllm:inter_token_latency_seconds"
BAD_SHARE = (f'(sum(rate({FAILED}{{{TARGET}, reason!="slow_consumer"}}[{RATE}])) + {rate(REFUSED, "")})'
             f" / ({rate(ENDED, '')} + {rate(REFUSED, '')} > 0)")
BUDGET = [(None, BAD), (0, WATCH), (0.25, OK)]
PACES = [(None, OK), (1, WATCH), (float(BURNS[1][4]), BAD)]


def budget(title: str, description: str, what: str) -> Panel:
    return stat(title, description, f"min(millrace:{what}:budget_left_{PERIOD}{{{TARGET}}})", "percentunit", BUDGET, width=8)


def bound(what: str) -> Query:
    return Query(f"max(millrace:{what}:bound_seconds{{{TARGET}}})", "objective")


def burn(what: str) -> list[Query]:
    """How many times faster than allowed the budget goes, over the windows that alerts look at."""
    return [Query(f"max(millrace:{what}:bad_ratio_rate{window}{{{TARGET}}} / (1 - millrace:{what}:objective{{{TARGET}}}))", window)
            for window in ("5m", "1h", "6h", "3d")]


OVERVIEW = Dashboard("millrace-overview", "Millrace / Overview", "What clients get: rates, errors, latencies, objectives, queue.", [
    Row("Now", [
        stat("Ready cells", "Cells that take new work, as the gateway with most of them sees it.",
             f"max(millrace_cells_ready{{{TARGET}}})", steps=[(None, BAD), (1, OK)], decimals=0),
        stat("Sequences ended per second", "Choices that ended, for whatever reason.", rate(ENDED, ""), "reqps"),
        stat("Refused or failed", "Share of requests that were refused or ended in an error that is not the client's.", BAD_SHARE,
             "percentunit", [(None, OK), (0.001, WATCH), (0.01, BAD)]),
        stat("First token, p95", "From admission to the first token.",
             f"histogram_quantile(0.95, {rate(TTFT + '_bucket', 'le')})", "s"),
        stat("Between tokens, p95", "Gap between two consecutive tokens of a sequence.",
             f"histogram_quantile(0.95, {rate(ITL + '_bucket', 'le')})", "s"),
        stat("Waiting", "Sequences in the gateways' queues, or in a cell and not yet worked on.", f"sum(vllm:num_requests_waiting{{{TARGET}}})",
             decimals=0),
    ]),
    Row("Objectives", [
        budget("Budget of errors left", "Of the failures that the objective allows in 30 days, what is left.", "requests"),
        budget("Budget of late first tokens left", "Of the late ones that the objective allows in 30 days, what is left.", "first_token"),
        budget("Budget of long gaps left", "Of the gaps past the bound that the objective allows in 30 days, what is left.", "inter_token"),
        Panel("Burn of the error budget", "1: the budget lasts exactly 30 days. Alerts look at 1 h with 5 m, 6 h with 30 m, 3 d with 6 h.",
              burn("requests"), steps=PACES),
        Panel("Burn of the budget of late first tokens", "Late: past the bound of the objective. 1: the budget lasts exactly 30 days.",
              burn("first_token"), steps=PACES),
        Panel("Burn of the budget of long gaps", "Long: past the bound of the objective for gaps between tokens. 1: the budget lasts exactly 30 days.",
              burn("inter_token"), steps=PACES),
    ]),
    Row("Traffic", [
        Panel("Ends of sequences", "By reason: stop and length are answers, abort a client that left, error an explicit error event.",
              [Query(rate(ENDED, "finished_reason"), "{{finished_reason}}")], unit="reqps", stack=True),
        Panel("HTTP answers", "By route and status. 499: the client left; stream_error: an error event after its 200.",
              [Query(rate("millrace_http_requests_total", "route, status"), "{{status}} {{route}}")], unit="reqps"),
        Panel("Tokens", "Prompt tokens of sequences that got their first token, generated tokens passed on, and what preemptions made cells compute again.",
              [Query(rate("vllm:prompt_tokens_total", ""), "prompt"), Query(rate("vllm:generation_tokens_total", ""), "generated"),
               Query(rate("vllm:prompt_tokens_recomputed_total", ""), "computed again")]),
        Panel("Refused before any work", "By the limit or the state that refused: queue_full and token_budget are overload.",
              [Query(rate(REFUSED, "reason"), "{{reason}}")], unit="reqps", stack=True),
        Panel("Failed after admission", "Sequences that ended in an explicit error, by cause. slow_consumer is the client's.",
              [Query(rate(FAILED, "reason"), "{{reason}}")], unit="reqps", stack=True),
        Panel("Length of requests, p50 and p95", "Tokens of prompts and answers of finished sequences.",
              [Query(f"histogram_quantile({q}, {rate(f'vllm:request_{what}_tokens_bucket', 'le')})", f"{word} p{q * 100:g}")
               for what, word in (("prompt", "prompt"), ("generation", "answer")) for q in (0.5, 0.95)]),
    ]),
    Row("Latency", [
        latency("Time to first token", TTFT, "From admission to the first token, the wait in the queue included, and the bound of the objective.",
                beside=[bound("first_token")]),
        latency("Between tokens", ITL, "Gap between two consecutive tokens of a sequence, and the bound of the objective.", beside=[bound("inter_token")]),
        latency("Whole sequence", "vllm:e2e_request_latency_seconds", "From admission to the last token; grows with the answer's length."),
        spread("First tokens, spread", TTFT, "First tokens by the time they took: shows two populations that quantiles hide."),
        latency("Wait in the queue", "vllm:request_queue_time_seconds", "From admission to the first step: in the gateway's queue and in its cell's. Buckets begin at 0.3 s."),
        latency("Per output token", "vllm:request_time_per_output_token_seconds", "Mean gap of a finished sequence: what a reader feels as speed."),
        latency("Prefill", "vllm:request_prefill_time_seconds", "From the first step to the first token; grows with the prompt's length."),
        latency("Decode", "vllm:request_decode_time_seconds", "From the first token to the last; grows with the answer's length."),
        Panel("Prompt tokens computed", "Of a finished sequence: its prompt without what came from the prefix cache.",
              quantiles("vllm:request_prefill_kv_computed_tokens")),
    ]),
    Row("Queue and cells", [
        Panel("Sequences", "Running in cells, and waiting: in the gateways' queues or in a cell.",
              [Query(f"sum(vllm:num_requests_running{{{TARGET}}})", "running"), Query(f"sum(vllm:num_requests_waiting{{{TARGET}}})", "waiting")]),
        Panel("Queue used", "Waiting sequences over the queue's capacity, of the fullest gateway. Full: requests are refused.",
              [Query(f"max by (instance) (sum by (instance) (millrace_queued_sequences{{{TARGET}}})"
                     f" / sum by (instance) (millrace_queue_capacity{{{TARGET}}}))", "{{instance}}")],
              unit="percentunit", high=1, steps=[(None, OK), (0.5, WATCH), (0.9, BAD)]),
        Panel("Cells by state", "As the gateway that sees most of them counts. suspect: silent, or with work and without progress.",
              [Query(f"max by (state) (millrace_cells{{{TARGET}}})", "{{state}}")], stack=True),
    ]),
], SERVICE_VARIABLES, [STARTS, LOSSES])

ROWS = "millrace_expert_rows_total"
LANES = f"{CELL}, layer, lane"
IMBALANCE = [(None, OK), (1.5, WATCH), (2, BAD)]

EXPERTS = Dashboard("millrace-experts", "Millrace / Experts", "Which experts and lanes the routers choose, and what unevenness costs.", [
    Row("Now", [
        Panel("Rows per second by layer and lane", "(token, expert) pairs that the experts of a lane run. An even model has one colour.",
              [Query(f"sum by (layer, lane) ({cell_rate(ROWS, LANES)})")], kind="matrix", matrix=("layer", "lane"), unit="short",
              width=12, height=12, decimals=0),
        Panel("Busiest lane over the average one, by layer", "1 is even, the number of lanes is the worst. In each layer all lanes wait for the busiest.",
              [Query(f"max by (layer) ({cell_gauge('millrace_lane_imbalance_ratio', CELL + ', layer')})", "layer {{layer}}")],
              kind="bargauge", width=6, height=12, steps=IMBALANCE, low=1, decimals=2),
        Panel("Layers with the busiest experts", "The ten layers whose busiest expert is furthest above the average one.",
              [Query(f"topk(10, max by (layer) ({cell_gauge('millrace_expert_imbalance_ratio', CELL + ', layer')}))", "layer {{layer}}")],
              kind="bargauge", width=6, height=12, steps=[(None, OK), (4, WATCH), (8, BAD)], low=1, decimals=2),
    ]),
    Row("Over time", [
        Panel("Imbalance of lanes", "Busiest lane over the average one: the mean over all layers, which is what a step pays, and the worst layer.",
              [Query(f"avg by (cell) ({cell_gauge('millrace_lane_imbalance_ratio', CELL + ', layer')})", "{{cell}} mean"),
               Query(f"max by (cell) ({cell_gauge('millrace_lane_imbalance_ratio', CELL + ', layer')})", "{{cell}} worst layer")],
              low=1, steps=IMBALANCE, width=12),
        Panel("Imbalance of experts", "Busiest expert over the average one: the mean over all layers, and the worst layer.",
              [Query(f"avg by (cell) ({cell_gauge('millrace_expert_imbalance_ratio', CELL + ', layer')})", "{{cell}} mean"),
               Query(f"max by (cell) ({cell_gauge('millrace_expert_imbalance_ratio', CELL + ', layer')})", "{{cell}} worst layer")],
              low=1, width=12),
        Panel("Imbalance of experts by layer", "A row is a layer: which layers' routers are uneven, and since when.",
              [Query(f"max by (layer) ({cell_gauge('millrace_expert_imbalance_ratio', CELL + ', layer')})", "{{layer}}")],
              kind="heatmap", width=12, height=10),
        Panel("Share of rows by lane", "Of all rows of a cell. Even: one over the number of lanes.",
              [Query(f"sum by (cell, lane) ({cell_rate(ROWS, LANES)}) / ignoring (lane) group_left () (sum by (cell) ({cell_rate(ROWS, LANES)}) > 0)",
                     "{{cell}} lane {{lane}}")], unit="percentunit", high=1, width=12, height=10),
        Panel("Rows per second", "All layers together: tokens times experts per token times MoE layers.",
              [Query(f"sum by (cell) ({cell_rate(ROWS, LANES)})", "{{cell}}")], width=12),
        Panel("Rows of a step by layer", "Rows per finished step, mean over layers: how full the experts' products are.",
              [Query(f"avg by (cell) (sum by ({CELL}, layer) ({cell_rate(ROWS, LANES)}))"
                     f" / (sum by (cell) ({cell_rate('millrace_step_seconds_count')}) > 0)", "{{cell}}")], width=12),
    ]),
], CELL_VARIABLES, [STARTS])

WORKER = f"{CELL}, stage, lane"
EXCHANGE, STEP = "millrace_worker_exchange_seconds_total", "millrace_worker_step_seconds_total"
WAIT = "millrace_worker_pipeline_wait_seconds_total"
STEPS = f"(sum by ({CELL}) ({cell_rate('millrace_step_seconds_count')}) > 0)"


def share(part: str, legend: str, by: str = "") -> Query:
    """Of the time that workers spend in steps."""
    total = f"sum by ({by})" if by else "sum"
    return Query(f"{total} ({part}) / ({total} ({cell_rate(STEP, WORKER)}) > 0)", legend)


def per_step(part: str, by: str) -> str:
    """Seconds of a step, from seconds per second."""
    return f"avg by ({by}) ({part} / on ({CELL}) group_left () {STEPS})"


LANE_GAP = (f"max by (cell, stage) ({cell_rate(EXCHANGE, WORKER)} / on ({CELL}) group_left () {STEPS})"
            f" - min by (cell, stage) ({cell_rate(EXCHANGE, WORKER)} / on ({CELL}) group_left () {STEPS})")

EXCHANGE_BOARD = Dashboard(
    "millrace-exchange", "Millrace / Exchange and stages",
    "Where the time of a step goes: expert exchange, waits between pipeline stages, slow lanes. The exchange is timed on the CPU; device "
    "workers enqueue it with the rest of a step and report no times of its own.", [
        Row("Steps", [
            Panel("Step time", "From the plan to the last result, all cells.", quantiles("millrace_step_seconds"), unit="s"),
            spread("Step time, spread", "millrace_step_seconds", "Steps by their time: decode steps and prefill chunks show as two bands."),
            Panel("Tokens of a step", "Prefill and decode together. Few tokens in a slow step: something else than work takes the time.",
                  quantiles("vllm:iteration_tokens_total", (0.5, 0.95))),
            Panel("Where step time goes", "Share of the time in steps of all chosen workers: exchange, wait for the stage before, and the rest, which is computing.",
                  [share(cell_rate(EXCHANGE, WORKER), "exchange"), share(cell_rate(WAIT, WORKER), "stage wait"),
                   share(f"({cell_rate(STEP, WORKER)} - {cell_rate(EXCHANGE, WORKER)} - {cell_rate(WAIT, WORKER)})", "computing")],
                  unit="percentunit", stack=True, high=1),
            Panel("Busy share", "Share of time with a step under way. Near 1: the cell is the limit; far below with a queue: something before it is.",
                  [Query(cell_rate("millrace_cell_busy_seconds_total"), "{{cell}}")], unit="percentunit", high=1),
            Panel("Steps per second", "Finished steps of a cell.", [Query(cell_rate("millrace_cell_steps_total"), "{{cell}}")]),
        ]),
        Row("Exchange between lanes", [
            Panel("Exchange", "Time of a step in dispatch and combine, by lane, waits included. The lane with the least has the most work: others wait for it.",
                  [Query(per_step(cell_rate(EXCHANGE, WORKER), "cell, stage, lane"), "{{cell}} stage {{stage}} lane {{lane}}")], unit="s", width=12),
            Panel("Gap to the slowest lane", "Time of a step that the fastest lane of a stage waits for the slowest one: the longest exchange less the shortest.",
                  [Query(LANE_GAP, "{{cell}} stage {{stage}}")], unit="s", width=12),
            Panel("Share of the exchange", "Of the workers' time in steps, waits for slower lanes included.",
                  [share(cell_rate(EXCHANGE, WORKER), "{{cell}}", "cell")], unit="percentunit", high=1, width=12,
                  steps=[(None, OK), (0.3, WATCH), (0.5, BAD)]),
            Panel("Share of the exchange by lane", "Lanes of a stage side by side: the lowest is the one that others wait for.",
                  [Query(f"sum by (cell, stage, lane) ({cell_rate(EXCHANGE, WORKER)}) / (sum by (cell, stage, lane) ({cell_rate(STEP, WORKER)}) > 0)",
                         "{{cell}} stage {{stage}} lane {{lane}}")], unit="percentunit", high=1, width=12),
        ]),
        Row("Pipeline stages", [
            Panel("Bubble", "Share of the workers' time without work while their cell is busy, over some 5 seconds.",
                  [Query(cell_gauge("millrace_pipeline_bubble_ratio"), "{{cell}}")], unit="percentunit", high=1,
                  steps=[(None, OK), (0.3, WATCH), (0.5, BAD)]),
            Panel("Time of a stage", "Time of a step in each stage, without its wait for the stage before. Even stages are the aim.",
                  [Query(per_step(f"({cell_rate(STEP, WORKER)} - {cell_rate(WAIT, WORKER)})", "cell, stage"), "{{cell}} stage {{stage}}")], unit="s"),
            Panel("Wait for the stage before", "Time of a step that a stage waits inside it for its input.",
                  [Query(per_step(cell_rate(WAIT, WORKER), "cell, stage"), "{{cell}} stage {{stage}}")], unit="s"),
        ]),
    ], CELL_VARIABLES, [STARTS])

FULL = [(None, OK), (0.8, WATCH), (0.95, BAD)]


def use(used: str, room: str) -> Query:
    return Query(f"{cell_gauge(used)} / ({cell_gauge(room)} > 0)", "{{cell}}")


STATE = Dashboard("millrace-state", "Millrace / State", "What sequences occupy in cells: KV cache, slots of conv state, queues.", [
    Row("Room", [
        Panel("KV cache", "Used share of each cell's KV cache.", [use("millrace_cell_kv_tokens_used", "millrace_cell_kv_tokens")], kind="gauge",
              unit="percentunit", high=1, steps=FULL, height=6),
        Panel("Slots", "Used share of each cell's slots. A slot holds the conv state of one running sequence.",
              [use("millrace_cell_slots_used", "millrace_cell_slots")], kind="gauge", unit="percentunit", high=1, steps=FULL, height=6),
        Panel("All cells", "Used share of the KV cache over all cells, in vLLM's name for it.",
              [Query(f"max by ({SERVICE}) (vllm:kv_cache_usage_perc{{{TARGET}}})", "{{job}}")], kind="gauge", unit="percentunit", high=1,
              steps=FULL, height=6),
    ]),
    Row("KV cache", [
        Panel("Used share", "Above 0.95 sequences wait for blocks or are preempted.",
              [use("millrace_cell_kv_tokens_used", "millrace_cell_kv_tokens")], unit="percentunit", high=1, steps=FULL),
        Panel("Tokens", "Used by running sequences, kept for later ones that begin alike, and the room there is (0 while a cell is away).",
              [Query(cell_gauge("millrace_cell_kv_tokens_used"), "{{cell}} used"),
               Query(cell_gauge("millrace_cell_kv_tokens_cached"), "{{cell}} kept"), Query(cell_gauge("millrace_cell_kv_tokens"), "{{cell}} room")]),
        Panel("Prefix cache, hits", "Of the tokens that cells looked for in their prefix caches, the share that need not be computed.",
              [Query(f"max by ({SERVICE}) (rate(vllm:prefix_cache_hits_total{{{TARGET}}}[{RATE}]))\n"
                     f"/ max by ({SERVICE}) (rate(vllm:prefix_cache_queries_total{{{TARGET}}}[{RATE}]) > 0)", "{{job}}")],
              unit="percentunit", high=1),
        Panel("Prefix cache, computed again", "Of the tokens found, the share computed for the conv state behind them, of which no snapshot was "
              "left: more of them fit with a larger cache.state_snapshots.",
              [Query(f"max by ({SERVICE}) (rate(millrace_prefix_cache_rebuilt_tokens_total{{{TARGET}}}[{RATE}]))\n"
                     f"/ (max by ({SERVICE}) (rate(millrace_prefix_cache_rebuilt_tokens_total{{{TARGET}}}[{RATE}]))\n"
                     f"+ max by ({SERVICE}) (rate(vllm:prefix_cache_hits_total{{{TARGET}}}[{RATE}])) > 0)", "{{job}}")],
              unit="percentunit", high=1),
        Panel("Prompt tokens per second", "Of sequences whose prompt is done: all, and those from the prefix cache.",
              [Query(f"sum(rate(vllm:prompt_tokens_total{{{TARGET}}}[{RATE}]))", "all"),
               Query(f"sum(rate(vllm:prompt_tokens_cached_total{{{TARGET}}}[{RATE}]))", "cached")]),
        Panel("Preemptions per second", "Sequences taken out of their cell for want of blocks; their prefix is computed again later.",
              [Query(f"max by ({SERVICE}) (rate(vllm:num_preemptions_total{{{TARGET}}}[{RATE}]))", "{{job}}")]),
    ]),
    Row("Slots and queues", [
        Panel("Slots of conv state", "Sequences that run, and the slots there are.",
              [Query(cell_gauge("millrace_cell_slots_used"), "{{cell}} used"), Query(cell_gauge("millrace_cell_slots"), "{{cell}} slots")]),
        Panel("Waiting in cells", "Handed over by a gateway, waiting for a slot or for KV blocks.",
              [Query(cell_gauge("millrace_cell_waiting"), "{{cell}}")]),
        Panel("Prompt tokens in the gateways' queues", "Work that waits, by gateway.",
              [Query(f"sum by (instance) (millrace_queued_prompt_tokens{{{TARGET}}})", "{{instance}}")]),
    ]),
    Row("What is asked for", [
        spread("Lengths of prompts", "vllm:request_prompt_tokens", "Tokens of the prompts of finished sequences.", "short"),
        spread("Lengths of answers", "vllm:request_generation_tokens", "Generated tokens of finished sequences.", "short"),
        Panel("Limits asked for", "The max_tokens of admitted requests: what the scheduler must be ready for, beside what answers use.",
              quantiles("vllm:request_params_max_tokens", (0.5, 0.95))),
    ]),
], CELL_VARIABLES, [STARTS])

CELLS_BOARD = Dashboard("millrace-cells", "Millrace / Cells", "Health and history of cells and gateways.", [
    Row("Now", [
        Panel("Cells", "One line a cell. Workers is 0 while it is away; its heartbeat's age then goes on, until it says Goodbye.",
              [Query(f"max by (cell) (millrace_cell_workers{{{CELLS}}})", "Workers"), Query(f"time() - max by (cell) (millrace_cell_epoch{{{CELLS}}}) / 1000", "Up, s"),
               Query(f"max by (cell) (millrace_cell_heartbeat_age_seconds{{{CELLS}}})", "Heard, s ago"),
               Query(f"max by (cell) (millrace_cell_restarts_total{{{CELLS}}})", "Restarts"),
               Query(f"max by (cell) (millrace_cell_losses_total{{{CELLS}}})", "Losses"),
               Query(f"sum by (cell) (max by ({CELL}) (rate(millrace_cell_steps_total{{{CELLS}}}[{RATE}])))", "Steps/s")],
              kind="table", columns={"cell": "Cell"}, width=12),
        Panel("Start, phase by phase", "How long each phase of a cell's last start took: MPI, plan, load. Load should be size over the disk's speed.",
              [Query(f"max by (cell, phase) (millrace_cell_start_phase_seconds{{{CELLS}}})", "{{cell}} {{phase}}")], kind="bargauge", unit="s", width=12),
    ]),
    Row("Starts", [
        Panel("Weights loaded", "Of all ranks of a cell, during its present start. A flat line below 1 is a volume that does not deliver.",
              [Query(cell_gauge("millrace_cell_loaded_ratio"), "{{cell}}")], unit="percentunit", high=1),
        Panel("State of the start", "1 where a cell's start is. Backoff: its ranks ended, and are started again after a pause.",
              [Query(f"max by (cell, state) (millrace_cell_start_state{{{CELLS}}})")], kind="matrix", matrix=("cell", "state"), high=1, decimals=0),
        Panel("Starts within an hour", "Of a cell's ranks, those included that never became ready, of which no gateway hears.",
              [Query(f"max by (cell) (increase(millrace_cell_starts_total{{{CELLS}}}[1h]))", "{{cell}}")], steps=[(None, OK), (3.5, BAD)]),
        Panel("Transport", "Where a cell computes, and what carries rows between its workers. Staged: device memory by way of the host.",
              [Query(f"max by (cell, backend, transport) (millrace_cell_info{{{CELLS}}}) == 1", "Connected")], kind="table",
              columns={"cell": "Cell", "backend": "Backend", "transport": "Transport"}, width=24, height=5),
    ]),
    Row("Health", [
        Panel("Ready cells", "As each gateway sees them. Lines apart: a gateway that cells cannot reach.",
              [Query(f"max by (instance) (millrace_cells_ready{{{TARGET}}})", "{{instance}}")]),
        Panel("Age of the last heartbeat", "Cells speak every second; a lost one grows until it is back.",
              [Query(cell_gauge("millrace_cell_heartbeat_age_seconds"), "{{cell}}")], unit="s", steps=[(None, OK), (3, WATCH), (15, BAD)]),
        Panel("Workers", "Workers of connected cells: stages times lanes. A cell registers when all of its ranks are there.",
              [Query(cell_gauge("millrace_cell_workers"), "{{cell}}")]),
    ]),
    Row("History", [
        Panel("Time since the last start", "Of each cell, from its epoch, which is the time of its start in milliseconds.",
              [Query(f"time() - {cell_gauge('millrace_cell_epoch')} / 1000", "{{cell}}")], unit="s"),
        Panel("Restarts within an hour", "Times that a cell came back with a higher epoch.",
              [Query(f"max by (cell) (increase(millrace_cell_restarts_total{{{CELLS}}}[1h]))", "{{cell}}")], steps=[(None, OK), (2.5, BAD)]),
        Panel("Losses within an hour", "Times that a cell went away without a Goodbye.",
              [Query(f"max by (cell) (increase(millrace_cell_losses_total{{{CELLS}}}[1h]))", "{{cell}}")]),
        Panel("Dropped messages", "From cells: of an old epoch, repeated, or for an ended sequence. A few after a restart are right.",
              [Query(rate("millrace_messages_dropped_total", "reason"), "{{reason}}")]),
        Panel("Sequences that lost their cell", "Went on in another, or ended: cells were lost or answered with an error; of the latter, those whose logits were not finite.",
              [Query(rate("millrace_sequences_replayed_total", ""), "went on"),
               Query(f'sum by (reason) (rate({FAILED}{{{TARGET}, reason=~"cell_lost|cell_error|protocol"}}[{RATE}]))', "{{reason}}"),
               Query(rate("vllm:corrupted_requests_total", ""), "logits not finite")], unit="reqps"),
        Panel("Steps per second", "Finished steps of a cell; an idle one takes an empty step every five seconds.",
              [Query(cell_rate("millrace_cell_steps_total"), "{{cell}}")]),
    ]),
    Row("Gateways", [
        Panel("Gateways", "Version, and whether each takes requests or drains.",
              [Query(f"max by (instance, version) (millrace_build_info{{{TARGET}}})", "Up"), Query(f"max by (instance) (millrace_ready{{{TARGET}}})", "Ready"),
               Query(f"max by (instance) (millrace_draining{{{TARGET}}})", "Draining")], kind="table",
              columns={"instance": "Gateway", "version": "Version"}, width=12, height=5),
        Panel("KV cache of the cells", "Shapes of KV caches that cells registered with. More than one: cells differ.",
              [Query(f"max by (block_size, num_gpu_blocks, cache_dtype) (vllm:cache_config_info{{{TARGET}}})", "Seen")], kind="table",
              columns={"block_size": "Tokens of a block", "num_gpu_blocks": "Blocks", "cache_dtype": "Format"}, width=12, height=5),
    ]),
], CELL_VARIABLES, [STARTS, LOSSES])

DASHBOARDS = {"overview": OVERVIEW, "experts": EXPERTS, "exchange": EXCHANGE_BOARD, "state": STATE, "cells": CELLS_BOARD}

assert all(p.width <= COLUMNS for d in DASHBOARDS.values() for p in d.panels())
