// Numbers, sizes and times as people read them.

/** @param {number|null|undefined} bytes */
export function formatBytes(bytes) {
  if (bytes === null || bytes === undefined) return '–';
  if (bytes < 1000) return `${bytes} B`;
  const units = ['kB', 'MB', 'GB', 'TB'];
  let value = bytes / 1000;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** Memory in GiB, as cards are sold. @param {number|null|undefined} bytes */
export function formatMemory(bytes) {
  if (bytes === null || bytes === undefined) return '–';
  const gib = bytes / 2 ** 30;
  return gib < 1 ? `${Math.max(1, Math.round(bytes / 2 ** 20))} MiB` : `${gib.toFixed(1)} GiB`;
}

/** @param {number|null|undefined} seconds */
export function formatSeconds(seconds) {
  if (seconds === null || seconds === undefined) return '–';
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

const DAY_MS = 86_400_000;

/** @param {string|null|undefined} iso */
export function formatDate(iso) {
  if (!iso) return '';
  const date = new Date(iso);
  const now = new Date();
  const time = date.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });
  if (date.toDateString() === now.toDateString()) return time;
  if (new Date(now.getTime() - DAY_MS).toDateString() === date.toDateString()) return `yesterday ${time}`;
  return `${date.toLocaleDateString([], { day: 'numeric', month: 'short' })} ${time}`;
}

/** @param {number} n @param {string} one @param {string} [many] */
export const count = (n, one, many) => `${n} ${n === 1 ? one : many ?? `${one}s`}`;

/** @param {{width?: number|null, height?: number|null}} clip */
export const formatSize = (clip) => (clip.width ? `${clip.width} × ${clip.height}` : '');

/** @param {number|null|undefined} value @param {number} [digits] */
export function formatNumber(value, digits = 2) {
  return value === null || value === undefined || !Number.isFinite(value) ? '–' : Number(value.toFixed(digits)).toString();
}
