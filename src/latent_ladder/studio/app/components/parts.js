// Small parts that all screens share.
import { html, useEffect, useRef, useState, useValue } from '../lib.js';
import { closeNote, note, noteError, notes } from '../state.js';
import { api } from '../api.js';

const PATHS = {
  make: 'M12 5v14M5 12h14',
  drafts: 'M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z',
  gallery: 'M4 5h16v14H4zM4 15l5-5 4 4 3-3 4 4',
  compare: 'M12 4v16M4 6h6v12H4zM14 6h6v12h-6z',
  sweep: 'M4 19V5M4 19h16M8 15l4-6 3 3 4-7',
  queue: 'M5 7h14M5 12h14M5 17h9',
  models: 'M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9',
  timeline: 'M4 8h16M4 16h16M8 5v6M15 13v6',
  app: 'M4 5h7v5H4zM13 14h7v5h-7zM11 7.5h3a2 2 0 0 1 2 2V14',
  refine: 'M5 19l9-9M14 10l2-2 2 2-2 2zM6 5v4M4 7h4M18 15v4M16 17h4',
  star: 'M12 3.5l2.6 5.4 5.9.8-4.3 4.1 1.1 5.8-5.3-2.8-5.3 2.8 1.1-5.8L3.5 9.7l5.9-.8z',
  play: 'M8 5l11 7-11 7z', pause: 'M8 5v14M16 5v14', close: 'M6 6l12 12M18 6L6 18',
  up: 'M12 19V5M6 11l6-6 6 6', down: 'M12 5v14M6 13l6 6 6-6', trash: 'M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13',
  download: 'M12 4v11M7 11l5 5 5-5M5 20h14', again: 'M19 12a7 7 0 1 1-2-5M19 3v5h-5', upload: 'M12 20V9M7 13l5-5 5 5M5 4h14',
  sun: 'M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2v3M12 19v3M2 12h3M19 12h3M5 5l2 2M17 17l2 2M5 19l2-2M17 7l2-2', step: 'M7 5l9 7-9 7zM18 5v14', back: 'M17 5l-9 7 9 7zM6 5v14', more: 'M6 12h.01M12 12h.01M18 12h.01',
};

/** @param {{name: keyof typeof PATHS, filled?: boolean}} props */
export function Icon({ name, filled = false }) {
  return html`<svg class=${filled ? 'icon filled' : 'icon'} viewBox="0 0 24 24" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;
}

/** A button whose only content is an icon. @param {any} props */
export function IconButton({ icon, label, onClick, pressed, disabled, filled }) {
  return html`<button type="button" class="icon-button" title=${label} aria-label=${label}
    aria-pressed=${pressed === undefined ? undefined : String(pressed)} disabled=${disabled} onClick=${onClick}>
    <${Icon} name=${icon} filled=${filled} /></button>`;
}

/** A screen without content: what it is for, and the next step. @param {any} props */
export function Empty({ icon, title, children }) {
  return html`<div class="empty"><span class="empty-icon"><${Icon} name=${icon} /></span><h2>${title}</h2>${children}</div>`;
}

/** Grey shapes in place of what is on its way. @param {{rows?: number}} props */
export function Skeleton({ rows = 3 }) {
  return html`<div class="skeletons" aria-busy="true" aria-label="loading">
    ${Array.from({ length: rows }, (_, i) => html`<div class="skeleton" key=${i}></div>`)}</div>`;
}

/** @param {any} props */
export function Field({ label, hint, children, wide }) {
  return html`<label class=${wide ? 'field wide' : 'field'}><span class="label">${label}</span>${children}
    ${hint ? html`<span class="hint">${hint}</span>` : null}</label>`;
}

/** A choice of few values as buttons. @param {any} props */
export function Segments({ label, value, options, onChange }) {
  return html`<div class="segments" role="group" aria-label=${label}>${options.map((/** @type {any} */ [key, text]) => html`
    <button type="button" key=${key} aria-pressed=${String(key === value)} onClick=${() => onChange(key)}>${text}</button>`)}</div>`;
}

/** @param {any} props */
export function ErrorBox({ error }) {
  if (!error) return null;
  return html`<div class="error-box" role="alert"><strong>${error.message}</strong>
    ${error.problems?.length > 1 ? html`<ul>${error.problems.map((/** @type {any} */ p, /** @type {number} */ i) => html`
      <li key=${i}>${p.message}${p.hint ? html` <em>${p.hint}</em>` : null}</li>`)}</ul>` : null}
    ${error.hint ? html`<p>${error.hint}</p>` : null}</div>`;
}

/** Notes at the edge of the page. */
export function Notes() {
  const shown = useValue(notes);
  return html`<div class="notes" role="status" aria-live="polite">${shown.map((each) => html`
    <div class=${`note ${each.kind}`} key=${each.id}><div><strong>${each.text}</strong>${each.hint ? html`<p>${each.hint}</p>` : null}</div>
      <${IconButton} icon="close" label="Close" onClick=${() => closeNote(each.id)} /></div>`)}</div>`;
}

/** Data of a route, read again when `path` or `version` changes. */
export function useData(/** @type {string|null} */ path, /** @type {any} */ version = 0) {
  const [found, setFound] = useState(/** @type {any} */ ({ path: null, data: null, error: null }));
  useEffect(() => {
    if (path === null) return undefined;
    const stop = new AbortController();
    api.get(path, { signal: stop.signal }).then(
      (data) => setFound({ path, data, error: null }),
      (error) => error.name !== 'AbortError' && setFound({ path, data: null, error }),
    );
    return () => stop.abort();
  }, [path, version]);
  return found.path === path ? found : { data: null, error: null };
}

/** A place to drop files on, or to choose one. @param {any} props */
export function DropZone({ accept, label, hint, onUpload }) {
  const [share, setShare] = useState(/** @type {number|null} */ (null));
  const [over, setOver] = useState(false);
  const input = useRef(/** @type {any} */ (null));
  const send = async (/** @type {FileList|null|undefined} */ files) => {
    for (const file of files ?? []) {
      setShare(0);
      try {
        onUpload(await api.upload(file, setShare));
      } catch (error) {
        noteError(error);
      }
      setShare(null);
    }
  };
  return html`<div class=${over ? 'drop over' : 'drop'}
      onDragOver=${(/** @type {DragEvent} */ e) => { e.preventDefault(); setOver(true); }}
      onDragLeave=${() => setOver(false)}
      onDrop=${(/** @type {DragEvent} */ e) => { e.preventDefault(); setOver(false); send(e.dataTransfer?.files); }}>
    <button type="button" onClick=${() => input.current.click()}><${Icon} name="upload" /> ${share === null ? label : `Sending ${Math.round(share * 100)} %`}</button>
    <span class="hint">${hint}</span>
    <input ref=${input} type="file" accept=${accept} class="hidden" tabindex="-1" aria-label=${label}
      onChange=${(/** @type {any} */ e) => { send(e.target.files); e.target.value = ''; }} /></div>`;
}

/** Ask before something is lost. @param {any} props */
export function Dialog({ title, children, action, danger, onAccept, onClose }) {
  const dialog = useRef(/** @type {any} */ (null));
  useEffect(() => dialog.current.showModal(), []);
  return html`<dialog ref=${dialog} onClose=${onClose} aria-label=${title}><h2>${title}</h2>${children}
    <div class="row end"><button type="button" onClick=${onClose}>Keep</button>
      <button type="button" class=${danger ? 'danger' : 'primary'} onClick=${onAccept}>${action}</button></div></dialog>`;
}

/** Copy a text, and say so. @param {string} text */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    note('Copied.');
  } catch {
    note('The browser does not allow copying here.', text);
  }
}

/** Post to a route and go on, or show what went wrong. */
export function useAction() {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(/** @type {any} */ (null));
  const run = async (/** @type {() => Promise<any>} */ work) => {
    setBusy(true);
    setError(null);
    try {
      return await work();
    } catch (failure) {
      setError(failure);
      return null;
    } finally {
      setBusy(false);
    }
  };
  return { busy, error, run };
}
