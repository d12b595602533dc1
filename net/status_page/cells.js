// The map of the cluster: cells, and in each its workers by stage and lane.
import { age, byId, count, make, makeSvg, percent, rate, setText } from './format.js';

const OPEN_CELLS = 6; // more than these start closed, but for those in trouble
const BAR = { width: 5, gap: 1, height: 24 };
const STATES = { joining: 'Joining', healthy: 'Healthy', suspect: 'Suspect', draining: 'Draining', gone: 'Gone' };

const cards = new Map(); // cell id -> its card's parts

// A bar for each MoE layer: half the height is an even share, the whole twice that.
function makeBars(layers) {
  const width = Math.max(1, layers * (BAR.width + BAR.gap) - BAR.gap);
  const svg = makeSvg('svg', { class: 'bars', role: 'img', viewBox: `0 0 ${width} ${BAR.height}`, preserveAspectRatio: 'none' });
  for (let i = 0; i < layers; i += 1) {
    svg.append(makeSvg('rect', { x: i * (BAR.width + BAR.gap), width: BAR.width, y: BAR.height, height: 0 }));
  }
  svg.append(makeSvg('line', { x1: 0, x2: width, y1: BAR.height / 2, y2: BAR.height / 2 }));
  return svg;
}

function drawBars(svg, worker) {
  let highest = null;
  worker.layer_load_ratio.forEach((ratio, i) => {
    const height = Math.min(2, ratio ?? 0) * (BAR.height / 2);
    const bar = svg.children[i];
    bar.setAttribute('y', (BAR.height - height).toFixed(1));
    bar.setAttribute('height', height.toFixed(1));
    bar.setAttribute('class', ratio >= 1.5 ? 'high' : ratio >= 1.25 ? 'raised' : '');
    if (ratio !== null && (highest === null || ratio > highest.ratio)) {
      highest = { ratio, layer: worker.first_moe_layer + i };
    }
  });
  svg.setAttribute('aria-label', highest === null ? 'Expert load by layer: no tokens lately'
      : `Expert load by layer: at most ${highest.ratio.toFixed(2)} times an even share, in layer ${highest.layer}`);
}

function makeTile(stage, lane) {
  const tile = make('td', 'tile');
  tile.dataset.stage = stage;
  tile.dataset.lane = lane;
  const parts = { tile, busy: make('p', 'busy'), split: make('div', 'split'), load: make('p', 'load'), bars: null };
  parts.split.append(make('i', 'compute'), make('i', 'exchange'), make('i', 'wait'));
  parts.split.setAttribute('role', 'img');
  tile.append(parts.busy, parts.split, parts.load);
  return parts;
}

function drawTile(parts, worker) {
  if (!worker) {
    setText(parts.busy, 'no report');
    setText(parts.load, '');
    for (const piece of parts.split.children) piece.style.width = '0';
    if (parts.bars) parts.bars.remove();
    parts.bars = null;
    return;
  }
  const compute = Math.max(0, worker.busy_ratio - worker.exchange_ratio - worker.pipeline_wait_ratio);
  setText(parts.busy, `${percent(worker.busy_ratio)} % busy`);
  [compute, worker.exchange_ratio, worker.pipeline_wait_ratio].forEach((share, i) => {
    parts.split.children[i].style.width = `${share * 100}%`;
  });
  parts.split.setAttribute('aria-label', `Computes ${percent(compute)} %, exchanges ${percent(worker.exchange_ratio)} %, `
      + `waits ${percent(worker.pipeline_wait_ratio)} % of the time`);
  setText(parts.load, worker.expert_load_ratio === null ? 'no tokens lately'
      : `load ${worker.expert_load_ratio.toFixed(2)}×`);
  const layers = worker.layer_load_ratio.length;
  if (parts.bars && parts.bars.children.length !== layers + 1) {
    parts.bars.remove();
    parts.bars = null;
  }
  if (layers === 0) return;
  if (!parts.bars) {
    parts.bars = makeBars(layers);
    parts.tile.append(parts.bars);
  }
  drawBars(parts.bars, worker);
}

function makeMap(cell) {
  const table = make('table', 'map');
  const head = make('tr');
  head.append(make('td'));
  for (let lane = 0; lane < cell.lanes; lane += 1) {
    const title = make('th', '', `Lane ${lane}`);
    title.scope = 'col';
    head.append(title);
  }
  table.createTHead().append(head);
  const body = table.createTBody();
  const tiles = new Map();
  for (let stage = 0; stage < cell.stages; stage += 1) {
    const row = make('tr');
    const title = make('th', '', `Stage ${stage}`);
    title.scope = 'row';
    row.append(title);
    for (let lane = 0; lane < cell.lanes; lane += 1) {
      const parts = makeTile(stage, lane);
      tiles.set(`${stage}.${lane}`, parts);
      row.append(parts.tile);
    }
    body.append(row);
  }
  return { table, tiles };
}

function makeCard(cell, open) {
  const card = { root: make('details', 'cell panel'), state: make('span', 'pill'), name: make('span', 'name'),
    beat: make('span', 'quiet'), reason: make('p', 'reason'), facts: make('p', 'facts'),
    shape: `${cell.stages}x${cell.lanes}` };
  card.root.open = open;
  card.root.dataset.cell = cell.id;
  const summary = make('summary');
  summary.append(card.name, card.state, card.beat);
  const scroll = make('div', 'scroll');
  scroll.tabIndex = 0;
  scroll.setAttribute('role', 'region');
  scroll.setAttribute('aria-label', `Workers of ${cell.id}`);
  card.map = scroll;
  const { table, tiles } = makeMap(cell);
  card.tiles = tiles;
  scroll.append(table);
  card.root.append(summary, card.reason, card.facts, scroll);
  return card;
}

function facts(cell) {
  const kv = cell.kv_tokens > 0 ? cell.kv_tokens_used / cell.kv_tokens : null;
  const words = [`${rate(cell.generated_tokens_per_s)} tokens/s out`, `${rate(cell.prompt_tokens_per_s)} in`,
    `${rate(cell.steps_per_s)} steps/s`, `${count(cell.running)} of ${count(cell.max_sequences)} running`,
    `KV ${percent(kv)} %`, `busy ${percent(cell.busy_ratio)} %`, `bubble ${percent(cell.pipeline_bubble_ratio)} %`];
  if (cell.restarts > 0) words.push(`${count(cell.restarts)} ${cell.restarts === 1 ? 'restart' : 'restarts'}`);
  if (cell.preemptions > 0) words.push(`${count(cell.preemptions)} preempted`);
  return words;
}

function drawCard(card, cell) {
  card.root.dataset.state = cell.state;
  card.state.dataset.state = cell.state;
  setText(card.name, cell.id);
  setText(card.state, STATES[cell.state] ?? cell.state);
  const ago = age(cell.heartbeat_age_s);
  setText(card.beat, `epoch ${cell.epoch}, ${cell.state === 'gone' ? 'left' : 'heard'} ${ago} ago`);
  card.reason.hidden = !cell.reason;
  setText(card.reason, cell.reason);
  if (!card.root.open) return;
  card.facts.hidden = card.map.hidden = cell.state === 'gone';
  if (cell.state === 'gone') return;
  const words = facts(cell);
  while (card.facts.children.length > words.length) card.facts.lastChild.remove();
  while (card.facts.children.length < words.length) card.facts.append(make('span'));
  words.forEach((word, i) => setText(card.facts.children[i], word));
  const workers = new Map(cell.workers.map((w) => [`${w.stage}.${w.lane}`, w]));
  for (const [place, parts] of card.tiles) drawTile(parts, workers.get(place));
}

export function showCells(cells) {
  const box = byId('cells');
  byId('legend').hidden = cells.length === 0;
  const healthy = cells.filter((cell) => cell.state === 'healthy').length;
  setText(byId('cells-count'), cells.length === 0 ? 'none has joined yet' : `${healthy} of ${cells.length} healthy`);
  for (const [id, card] of cards) {
    const cell = cells.find((c) => c.id === id);
    if (cell && card.shape === `${cell.stages}x${cell.lanes}`) continue;
    card.root.remove();
    cards.delete(id);
  }
  cells.forEach((cell, i) => {
    if (!cards.has(cell.id)) cards.set(cell.id, makeCard(cell, i < OPEN_CELLS || cell.state !== 'healthy'));
    const card = cards.get(cell.id);
    if (box.children[i] !== card.root) box.insertBefore(card.root, box.children[i] ?? null);
    drawCard(card, cell);
  });
}
