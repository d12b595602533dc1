// The API key, for as long as this tab lives and no longer.
const NAME = 'millrace-api-key';
const store = window.sessionStorage;

export const hasKey = () => Boolean(store.getItem(NAME));
export const keepKey = (key) => store.setItem(NAME, key);
export const forgetKey = () => store.removeItem(NAME);

// Headers for a request; a key that no header can carry is left out, and so refused like any wrong one.
export function authorization() {
  const key = store.getItem(NAME) ?? '';
  return /^[\x20-\x7e]+$/.test(key) ? { Authorization: `Bearer ${key}` } : {};
}
