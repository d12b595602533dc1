// The service as a whole: rates, queue, cache, errors, latencies.
import { byId, count, make, makeSvg, milliseconds, percent, rate, setMeter, setText } from './format.js';

const SECONDS = 60; // of a sparkline, whose box is 120 x 28

// One line over the last minute, newest at the right.
function drawLine(svg, index, values, peak) {
  while (svg.children.length <= index) {
    svg.append(makeSvg('polyline', { class: `line${svg.children.length}`, 'vector-effect': 'non-scaling-stroke' }));
  }
  const step = 120 / (SECONDS - 1);
  const recent = values.slice(-SECONDS);
  const left = 120 - step * (recent.length - 1);
  const points = recent.map((v, i) => `${(left + i * step).toFixed(1)},${(26.5 - (25 * v) / peak).toFixed(1)}`);
  svg.children[index].setAttribute('points', points.join(' '));
}

function drawHistory(history) {
  const tokens = history.generated_tokens_per_s;
  const peak = Math.max(1, ...tokens);
  drawLine(byId('output-spark'), 0, tokens, peak);
  byId('output-spark').setAttribute('aria-label', `Output in the last minute, at most ${rate(peak)} tokens a second`);
  const most = Math.max(1, ...history.running, ...history.waiting);
  drawLine(byId('running-spark'), 0, history.running, most);
  drawLine(byId('running-spark'), 1, history.waiting, most);
  byId('running-spark').setAttribute('aria-label', `Running and waiting in the last minute, at most ${most}`);
}

const REASONS = {
  cell_lost: 'cell lost', cell_error: 'cell error', protocol: 'protocol error', queue_timeout: 'queue timeout',
  slow_consumer: 'slow reader', shutdown: 'shutdown', queue_full: 'queue full', token_budget: 'token budget full',
  no_cell: 'no cell', draining: 'draining',
};

function showErrors(errors) {
  setText(byId('errors'), count(errors.failed + errors.rejected));
  byId('errors-reading').dataset.level = errors.failed > 0 ? 'high' : errors.rejected > 0 ? 'raised' : '';
  const totals = Object.entries({ ...errors.failed_total, ...errors.rejected_total }).filter(([, n]) => n > 0);
  const words = totals.map(([name, n]) => `${count(n)} ${REASONS[name] ?? name}`);
  setText(byId('errors-detail'), words.length > 0 ? `since the start: ${words.join(', ')}` : 'none since the start');
}

const PARTS = [['ttft', 'First token'], ['itl', 'Between tokens'], ['e2e', 'Whole answer'], ['queue', 'In the queue']];

function showLatency(latency) {
  const body = byId('latency');
  for (const [name, label] of PARTS) {
    let row = body.querySelector(`[data-part=${name}]`);
    if (!row) {
      row = make('tr');
      row.dataset.part = name;
      const head = make('th', '', label);
      head.scope = 'row';
      row.append(head, make('td'), make('td'), make('td'), make('td', 'quiet'));
      body.append(row);
    }
    const part = latency[name];
    const texts = [part.p50_ms, part.p90_ms, part.p99_ms].map(milliseconds).concat(count(part.count));
    texts.forEach((text, i) => setText(row.children[i + 1], text));
  }
  setText(byId('latency-span'), `last ${Math.max(1, Math.round(latency.window_s))} s`);
}

export function showReadings(status) {
  const { queue, load, rates } = status;
  setText(byId('output-rate'), rate(rates.generated_tokens_per_s));
  setText(byId('input-rate'), rate(rates.prompt_tokens_per_s));
  setText(byId('finished-rate'), `${rate(rates.finished_per_s)} answers/s`);

  const slots = status.cells.reduce((sum, cell) => sum + (cell.state === 'gone' ? 0 : cell.max_sequences), 0);
  setText(byId('running'), count(load.running));
  setText(byId('running-unit'), slots > 0 ? `of ${count(slots)}` : '');

  setText(byId('waiting'), count(queue.waiting + load.waiting_in_cells));
  setText(byId('waiting-unit'), 'waiting');
  const fullness = Math.max(queue.waiting / queue.waiting_limit, queue.prompt_tokens / queue.prompt_tokens_limit);
  setMeter(byId('queue-meter'), fullness, `Queue ${percent(fullness)} % full`);
  setText(byId('queue-detail'), `${count(queue.waiting)} of ${count(queue.waiting_limit)} here, `
      + `${count(load.waiting_in_cells)} in cells`);

  const kv = load.kv_tokens > 0 ? load.kv_tokens_used / load.kv_tokens : 0;
  setText(byId('kv'), load.kv_tokens > 0 ? percent(kv) : '–');
  setMeter(byId('kv-meter'), kv, `KV cache ${percent(kv)} % used`);
  setText(byId('kv-detail'), `${count(load.kv_tokens_used)} of ${count(load.kv_tokens)} tokens`);

  showErrors(status.errors);
  showLatency(status.latency);
  drawHistory(status.history);
}
