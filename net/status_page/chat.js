// A conversation with the model over /v1/chat/completions. What it says goes into the page as text only.
import { byId, make, milliseconds, rate, setText } from './format.js';
import { authorization } from './key.js';
import { events } from './sse.js';

let model = '';
let conversation = []; // what both sides have said, as the API wants it
let running = null; // the AbortController of the answer under way

export const setModel = (name) => { model = name; };

function addTurn(className, who) {
  const log = byId('chat-log');
  const turn = make('article', `turn ${className}`);
  turn.append(make('h3', '', who), make('p', 'text'));
  log.append(turn);
  return turn;
}

const textOf = (turn) => turn.querySelector('.text');

// Follows the text unless its reader has scrolled up.
function append(turn, text) {
  const log = byId('chat-log');
  const following = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  textOf(turn).append(text);
  if (following) log.scrollTop = log.scrollHeight;
}

function addNote(turn, className, text) {
  turn.append(make('p', className, text));
  byId('chat-log').scrollTop = byId('chat-log').scrollHeight;
}

function setRunning(controller) {
  running = controller;
  const busy = controller !== null;
  byId('chat-send').hidden = busy;
  byId('chat-stop').hidden = !busy;
  byId('chat-log').setAttribute('aria-busy', String(busy));
  byId('chat-clear').disabled = busy || byId('chat-log').children.length === 0;
}

function requestBody() {
  const body = { model, messages: conversation, stream: true, stream_options: { include_usage: true },
    max_tokens: byId('chat-max').valueAsNumber };
  const temperature = byId('chat-temperature').valueAsNumber;
  if (Number.isFinite(temperature)) body.temperature = temperature;
  return JSON.stringify(body);
}

// The sentence of an error answer, whatever its form.
async function refusal(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return text.slice(0, 300) || `status ${answer.status}`;
  }
}

// Streams one answer into `turn`; gives its text and figures. Throws with a sentence for people.
async function stream(turn, signal) {
  const begin = performance.now();
  const answer = await fetch('v1/chat/completions', { method: 'POST', signal, body: requestBody(),
    headers: { 'Content-Type': 'application/json', ...authorization() } });
  if (!answer.ok) throw new Error(await refusal(answer));
  const result = { text: '', finish: null, tokens: null, first: null, last: null };
  for await (const data of events(answer.body)) {
    if (data === '[DONE]') return result;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) result.tokens = chunk.usage.completion_tokens;
    const choice = chunk.choices[0];
    if (!choice) continue;
    if (choice.finish_reason) result.finish = choice.finish_reason;
    const text = choice.delta.content;
    if (!text) continue;
    result.last = performance.now() - begin;
    result.first ??= result.last;
    result.text += text;
    append(turn, text);
  }
  throw new Error('the answer broke off');
}

function figures(result) {
  const words = [];
  if (result.first !== null) words.push(`first text after ${milliseconds(result.first)}`);
  if (result.tokens !== null) words.push(`${result.tokens} tokens`);
  const seconds = (result.last - result.first) / 1000;
  if (result.tokens > 1 && seconds > 0) words.push(`${rate((result.tokens - 1) / seconds)} tokens/s`);
  if (result.finish === 'length') words.push('cut at the limit of tokens');
  return words.join(', ');
}

async function send(text) {
  textOf(addTurn('user', 'You')).textContent = text;
  const turn = addTurn('assistant', model || 'Model');
  conversation.push({ role: 'user', content: text });
  setRunning(new AbortController());
  try {
    const result = await stream(turn, running.signal);
    conversation.push({ role: 'assistant', content: result.text });
    addNote(turn, 'quiet', figures(result));
  } catch (error) {
    const said = textOf(turn).textContent;
    if (error.name === 'AbortError') {
      addNote(turn, 'quiet', 'stopped');
    } else {
      addNote(turn, 'error', error.name === 'TypeError' ? 'The gateway cannot be reached.' : error.message);
    }
    // What was said stays said; a question without any answer is not asked again with the next one.
    if (said) conversation.push({ role: 'assistant', content: said });
    else conversation.pop();
  }
  setRunning(null);
}

byId('chat-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = byId('chat-input').value.trim();
  if (!text || running) return;
  byId('chat-input').value = '';
  send(text);
});

// Return sends, with Shift it is a new line; not while an input method composes.
byId('chat-input').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId('chat-form').requestSubmit();
});

byId('chat-stop').addEventListener('click', () => {
  running?.abort();
  byId('chat-input').focus();
});

byId('chat-clear').addEventListener('click', () => {
  conversation = [];
  byId('chat-log').replaceChildren();
  setRunning(null);
  setText(byId('chat-input'), '');
  byId('chat-input').focus();
});
