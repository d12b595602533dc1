// Figures as people read them, and the few helpers that all parts of the page use.

export const byId = (id) => document.getElementById(id);

// Puts text in only where it differs, so that the page stays still for eyes and screen readers.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function make(tag, className = '', text = '') {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

export function makeSvg(tag, attributes = {}) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const whole = new Intl.NumberFormat('en-US', { maximumFractionDigits: 0 });
const one = new Intl.NumberFormat('en-US', { maximumFractionDigits: 1, minimumFractionDigits: 1 });

export const count = (n) => (n === null || n === undefined ? '–' : whole.format(n));

export function rate(n) {
  if (n === null || n === undefined) return '–';
  return n > 0 && n < 100 ? one.format(n) : whole.format(n);
}

export const percent = (ratio) => (ratio === null || ratio === undefined ? '–' : whole.format(ratio * 100));

export function milliseconds(ms) {
  if (ms === null || ms === undefined) return '–';
  if (ms >= 1000) return `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
  return `${ms < 100 ? one.format(ms) : whole.format(ms)} ms`;
}

export function duration(seconds) {
  if (seconds < 60) return `${whole.format(Math.floor(seconds))} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

export const age = (seconds) => (seconds < 10 ? `${one.format(seconds)} s` : duration(seconds));

// A meter's share, 0 to 1, and the words for it.
export function setMeter(element, ratio, words) {
  element.setAttribute('role', 'meter');
  element.setAttribute('aria-valuemin', '0');
  element.setAttribute('aria-valuemax', '100');
  element.setAttribute('aria-valuenow', String(Math.round(ratio * 100)));
  element.setAttribute('aria-label', words);
  element.firstElementChild.style.width = `${Math.min(100, ratio * 100)}%`;
  element.dataset.level = ratio >= 0.9 ? 'high' : ratio >= 0.7 ? 'raised' : '';
}
