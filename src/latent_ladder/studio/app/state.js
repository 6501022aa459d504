// State of the page itself: where it is, what was typed, notes, theme. Jobs and clips are the server's.
import { api } from './api.js';
import { effect, signal } from './lib.js';

const FORM_KEY = 'ladder-studio-form';
const THEME_KEY = 'ladder-studio-theme';

/** @param {string} key @param {any} otherwise */
function stored(key, otherwise) {
  try {
    return { ...otherwise, ...JSON.parse(localStorage.getItem(key) ?? '{}') };
  } catch {
    return otherwise;
  }
}

/** What the Make screen starts with. */
export const EMPTY_FORM = {
  prompt: '', negative: '', preset: '', shape: '', quality: '', width: null, height: null,
  seconds: null, seed: '', count: 8,
  images: /** @type {any[]} */ ([]), sound: /** @type {any} */ (null), video: /** @type {any} */ (null),
  sets: /** @type {Record<string, any>} */ ({}),
};

export const form = signal(stored(FORM_KEY, EMPTY_FORM));
effect(() => {
  try {
    localStorage.setItem(FORM_KEY, JSON.stringify(form.value));
  } catch { /* a full or forbidden storage: the form lives until the page is closed */ }
});

/** @param {Record<string, any>} changes */
export function changeForm(changes) {
  form.value = { ...form.peek(), ...changes };
}

export const theme = signal(stored(THEME_KEY, { name: 'auto' }).name);
effect(() => {
  document.documentElement.dataset.theme = theme.value;
  try {
    localStorage.setItem(THEME_KEY, JSON.stringify({ name: theme.value }));
  } catch { /* as above */ }
});

/** Facts of the server, and its presets; null until they came. */
export const server = signal(/** @type {any} */ (null));
export const presets = signal(/** @type {any[]|null} */ (null));

const AGAIN_MS = 1000;

/** Ask for the state until the model files were read. */
export async function loadServer() {
  try {
    server.value = await api.get('/state');
    if (server.value.models_found === null) {
      setTimeout(loadServer, AGAIN_MS);
      return;
    }
    presets.value = await api.get('/presets');
  } catch {
    setTimeout(loadServer, AGAIN_MS * 3);
  }
}

/** Notes at the edge of the page. */
export const notes = signal(/** @type {{id: number, kind: string, text: string, hint: string}[]} */ ([]));
let nextNote = 1;
const NOTE_MS = 7000;

/** @param {string} text @param {string} [hint] @param {string} [kind] */
export function note(text, hint = '', kind = 'info') {
  const id = nextNote;
  nextNote += 1;
  notes.value = [...notes.peek().slice(-3), { id, kind, text, hint }];
  if (kind !== 'error') setTimeout(() => closeNote(id), NOTE_MS);
}

/** @param {number} id */
export function closeNote(id) {
  notes.value = notes.peek().filter((each) => each.id !== id);
}

/** @param {any} error */
export function noteError(error) {
  if (error.name === 'AbortError') return;
  note(error.message, error.hint ?? '', 'error');
}

/** The part of the address after `#/`: path parts, and its query. */
function readPlace() {
  const [path, query = ''] = location.hash.replace(/^#\/?/, '').split('?');
  return { parts: path.split('/').filter(Boolean).map(decodeURIComponent), query: new URLSearchParams(query) };
}

export const place = signal(readPlace());
addEventListener('hashchange', () => {
  place.value = readPlace();
});

/** @param {string} path */
export function go(path) {
  location.hash = `#/${path}`;
}

/** The request of the form, as /ladder/jobs takes it: fields, and values inside stages. */
export function requestOf(/** @type {any} */ values) {
  /** @type {Record<string, any>} */
  const request = { prompt: values.prompt };
  if (values.preset) request.preset = values.preset;
  if (values.negative) request.negative_prompt = values.negative;
  if (values.width && values.height) Object.assign(request, { width: values.width, height: values.height });
  if (values.seconds) request.duration_s = values.seconds;
  if (values.seed !== '' && values.seed !== null) request.seed = Number(values.seed);
  if (values.images.length) {
    request.images = values.images.map((/** @type {any} */ image) => ({
      file: `upload:${image.id}`, frame: image.frame, strength: image.strength,
    }));
  }
  if (values.sound) request.audio_in = `upload:${values.sound.id}`;
  if (values.video) {
    const { id, mode, denoise, start, end, extend } = values.video;
    request.video = { file: `upload:${id}`, mode };
    if (mode === 'v2v') request.video.denoise = denoise;
    if (mode === 'retake') request.video.region = [start, end];
    if (mode === 'extend') request.video.extend = extend;
  }
  if (values.like) request.like = values.like;
  const sets = Object.entries(values.sets).filter(([, value]) => value !== '' && value !== null)
    .map(([path, value]) => `${path}=${value}`);
  return { request, sets };
}
