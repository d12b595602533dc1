// Asks for status.json once a second while the page is looked at, and says so when no answer comes.
import { showCells } from './cells.js';
import { setModel } from './chat.js';
import { byId, duration, setText } from './format.js';
import { authorization, forgetKey, hasKey, keepKey } from './key.js';
import { showReadings } from './readings.js';

const FORMAT = 'millrace-status/1';
const INTERVAL_MS = 1000;
const SLOWEST_MS = 5000; // between tries while the gateway is away
const PATIENCE_MS = 5000; // for one answer
const STANDSTILL_MS = 5000; // of the gateway's clock, before the page says so

let timer = 0;
let failures = 0;
let lastAnswer = null; // when the last good answer came, in local time
let clock = { told: null, changed: 0 }; // the gateway's own time, and when it last went on

function setHealth(state, text) {
  byId('health').dataset.state = state;
  setText(byId('health'), text);
}

function setNotice(text) {
  byId('notice').hidden = !text;
  setText(byId('notice'), text);
  byId('state').classList.toggle('stale', Boolean(text));
}

function showService(service) {
  setText(byId('model'), service.model);
  document.title = service.model ? `${service.model} · Millrace` : 'Millrace';
  setText(byId('uptime'), `${service.version}, up ${duration(service.uptime_s)}`);
  if (service.ready) setHealth('healthy', 'Ready');
  else setHealth(service.draining ? 'draining' : 'gone', service.draining ? 'Draining' : `Not ready: ${service.reason}`);
  setModel(service.model);
}

function show(status) {
  if (status.format !== FORMAT) {
    setNotice('This page and the gateway are of different versions. Reload the page.');
    return;
  }
  if (status.time_unix_s !== clock.told) clock = { told: status.time_unix_s, changed: Date.now() };
  const still = Date.now() - clock.changed;
  setNotice(still > STANDSTILL_MS ? `The gateway answers, but its figures have stood still for ${duration(still / 1000)}.` : '');
  showService(status.service);
  showReadings(status);
  showCells(status.cells);
}

function unreachable(reason) {
  failures += 1;
  setHealth('gone', 'Unreachable');
  const since = lastAnswer ? ` The figures below are from ${lastAnswer.toLocaleTimeString()}.` : '';
  setNotice(`The gateway cannot be reached (${reason}). Trying again.${since}`);
}

function askForKey() {
  setHealth('wait', 'Key needed');
  setText(byId('key-error'), hasKey() ? 'This key was refused.' : '');
  forgetKey();
  if (!byId('key-form').hidden) return;
  byId('key-form').hidden = false;
  byId('key-input').focus();
}

// The next answer's delay in ms, or null when somebody has to do something first.
async function ask() {
  const stop = new AbortController();
  const limit = setTimeout(() => stop.abort(), PATIENCE_MS);
  try {
    const answer = await fetch('status.json', { headers: authorization(), cache: 'no-store', signal: stop.signal });
    if (answer.status === 401) {
      askForKey();
      return null;
    }
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const status = await answer.json();
    failures = 0;
    lastAnswer = new Date();
    byId('key-form').hidden = true;
    show(status);
    return INTERVAL_MS;
  } catch (error) {
    unreachable(error.name === 'AbortError' ? `no answer in ${PATIENCE_MS / 1000} s` : error.message);
    return Math.min(SLOWEST_MS, INTERVAL_MS * failures);
  } finally {
    clearTimeout(limit);
  }
}

let asking = false;
async function poll() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  const delay = await ask();
  asking = false;
  if (delay !== null) timer = setTimeout(poll, delay);
}

document.addEventListener('visibilitychange', poll);
window.addEventListener('online', poll);
byId('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  keepKey(byId('key-input').value.trim());
  byId('key-input').value = '';
  poll();
});
poll();
