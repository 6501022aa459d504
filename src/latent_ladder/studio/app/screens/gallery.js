// Gallery: everything that was made, as a list that only draws what is near the window; and one clip.
import { html, useEffect, useLayoutEffect, useRef, useState, useValue } from '../lib.js';
import { api, queryText } from '../api.js';
import { count, formatBytes, formatDate, formatMemory, formatNumber, formatSeconds, formatSize } from '../format.js';
import { galleryVersion } from '../events.js';
import { changeForm, EMPTY_FORM, go, noteError, place, presets } from '../state.js';
import { Clip } from '../components/clips.js';
import { copyText, Dialog, Empty, Icon, IconButton, Skeleton, useData } from '../components/parts.js';

const PAGE = 60;
const LEAST_WIDTH = 220;
const GAP = 16;
const CAPTION = 58;
const KINDS = [['', 'Everything'], ['make', 'Clips'], ['drafts', 'Drafts'], ['refine', 'Refined'], ['sweep', 'Sweeps'], ['upscale', 'Enlarged'], ['sound', 'Sound'], ['workflow', 'Graphs']];

/** The way to a run's own screen. @param {any} run */
const placeOf = (run) => (run.kind === 'drafts' ? `#/drafts/${run.id}` : run.kind === 'sweep' ? `#/sweep/${run.id}` : `#/run/${run.id}`);

/** @param {any} props */
function Card({ run, style, onStar }) {
  const clip = run.clips.find((/** @type {any} */ c) => c.thumbnail_url) ?? run.clips[0];
  return html`<article class="card" style=${style}><a href=${placeOf(run)} aria-label=${run.title}>
      ${clip ? html`<${Clip} clip=${clip} ratio="16/10" label=${run.title} />` : html`<div class="clip" style=${{ aspectRatio: '16/10' }}><span class="no-picture">${run.kind}</span></div>`}</a>
    <div class="caption"><a href=${placeOf(run)}>${run.title || run.prompt}</a>
      <span class="muted">${run.clips.length > 1 ? count(run.clips.length, run.kind === 'drafts' ? 'draft' : 'clip') : formatSeconds(run.seconds)} · ${formatDate(run.created)}${run.status === 'finished' || run.status === 'done' ? '' : ` · ${run.status}`}</span></div>
    <${IconButton} icon="star" filled=${run.starred} pressed=${run.starred} label="Star" onClick=${onStar} /></article>`;
}

export function Gallery() {
  const version = useValue(galleryVersion);
  const known = useValue(presets) ?? [];
  const { query } = useValue(place);
  const filter = Object.fromEntries(['text', 'kind', 'preset', 'seed', 'since', 'until', 'starred'].map((name) => [name, query.get(name) ?? '']));
  const [runs, setRuns] = useState(/** @type {any[]|null} */ (null));
  const [total, setTotal] = useState(0);
  const [error, setError] = useState(/** @type {any} */ (null));
  const next = useRef(/** @type {string|null} */ (null));
  const asking = useRef(false);
  const box = useRef(/** @type {any} */ (null));
  const [view, setView] = useState({ width: 0, top: 0, height: 0 });
  const text = queryText(filter);
  const load = async (/** @type {boolean} */ again) => {
    if (asking.current) return;
    asking.current = true;
    try {
      const wanted = again ? Math.max(PAGE, runs?.length ?? 0) : PAGE;
      const page = await api.get(`/runs${queryText({ ...filter, limit: Math.min(wanted, 500), cursor: again ? '' : next.current })}`);
      next.current = page.next;
      setTotal(page.total);
      setRuns((before) => (again ? page.runs : [...(before ?? []), ...page.runs]));
      setError(null);
    } catch (failure) {
      setError(failure);
    }
    asking.current = false;
  };
  useEffect(() => { load(true); }, [text, version]);
  useLayoutEffect(() => {
    const main = document.getElementById('main');
    const measure = () => box.current && main && setView({ width: box.current.clientWidth, top: main.scrollTop - box.current.offsetTop, height: main.clientHeight });
    measure();
    main?.addEventListener('scroll', measure, { passive: true });
    addEventListener('resize', measure);
    return () => { main?.removeEventListener('scroll', measure); removeEventListener('resize', measure); };
  }, [runs === null]);
  const columns = Math.max(1, Math.floor((view.width + GAP) / (LEAST_WIDTH + GAP)));
  const width = (view.width - GAP * (columns - 1)) / columns;
  const height = width * 10 / 16 + CAPTION + GAP;
  const rows = Math.ceil((runs?.length ?? 0) / columns);
  const first = Math.max(0, Math.floor(view.top / height) - 2);
  const last = Math.min(rows, Math.ceil((view.top + view.height) / height) + 2);
  useEffect(() => { if (runs && next.current && last >= rows - 1) load(false); }, [last, rows]);
  const change = (/** @type {string} */ name, /** @type {string} */ value) => go(`gallery${queryText({ ...filter, [name]: value })}`);
  const star = (/** @type {any} */ run) => api.post(`/runs/${run.id}/star`, { starred: !run.starred }).then((now) => setRuns((all) => (all ?? []).map((each) => (each.id === run.id ? { ...each, starred: now.starred } : each))), noteError);
  const filtered = Object.values(filter).some(Boolean);
  return html`<header><h1>Gallery</h1><p class="muted">${runs ? `${count(total, 'run')}${filtered ? ' found' : ', also those of the command line'}` : ' '}</p></header>
    <div class="filters" role="search"><input type="search" placeholder="Words of the prompt" aria-label="Words of the prompt" value=${filter.text} onChange=${(/** @type {any} */ e) => change('text', e.target.value)} />
      <select aria-label="Kind" value=${filter.kind} onChange=${(/** @type {any} */ e) => change('kind', e.target.value)}>${KINDS.map(([key, name]) => html`<option key=${key} value=${key}>${name}</option>`)}</select>
      <select aria-label="Preset" value=${filter.preset} onChange=${(/** @type {any} */ e) => change('preset', e.target.value)}><option value="">Every preset</option>${known.map((/** @type {any} */ p) => html`<option key=${p.name} value=${p.name}>${p.title}</option>`)}</select>
      <input class="short" inputmode="numeric" placeholder="Seed" aria-label="Seed" value=${filter.seed} onChange=${(/** @type {any} */ e) => change('seed', e.target.value)} />
      <input type="date" aria-label="From" value=${filter.since} onChange=${(/** @type {any} */ e) => change('since', e.target.value)} />
      <label class="check"><input type="checkbox" checked=${filter.starred === '1'} onChange=${(/** @type {any} */ e) => change('starred', e.target.checked ? '1' : '')} /> with a star</label></div>
    ${error ? html`<div class="error-box"><strong>${error.message}</strong><p>${error.hint}</p></div>` : null}
    ${runs === null ? html`<${Skeleton} />` : runs.length === 0 ? html`<${Empty} icon="gallery" title=${filtered ? 'Nothing fits' : 'Nothing here yet'}><p>${filtered ? 'Take a filter away.' : 'Clips that you make appear here, also those of the command line.'}</p>
      ${filtered ? html`<a class="button" href="#/gallery">All runs</a>` : html`<a class="button primary" href="#/make">Make a clip</a>`}</${Empty}>`
    : html`<div class="cards" ref=${box} style=${{ height: `${rows * height}px` }}>${view.width ? runs.slice(first * columns, last * columns).map((run, i) => {
      const at = first * columns + i;
      return html`<${Card} key=${run.id} run=${run} onStar=${() => star(run)} style=${{ width: `${width}px`, transform: `translate(${(at % columns) * (width + GAP)}px, ${Math.floor(at / columns) * height}px)` }} />`;
    }) : null}</div>`}`;
}

/** The stages of a run, each with what it was made of. @param {any} props */
function Provenance({ stages }) {
  const names = new Map(stages.map((/** @type {any} */ s) => [s.key, s.name]));
  return html`<ol class="provenance">${stages.map((/** @type {any} */ stage, /** @type {number} */ i) => html`<li key=${i}><details><summary><strong>${stage.name}</strong> ${' '}
      <span class="muted">${stage.reused ? 'reused' : formatSeconds(stage.seconds)}${stage.peak_bytes ? `, ${formatMemory(stage.peak_bytes)}` : ''}${stage.stored ? '' : ', no longer stored'}</span></summary>
    <dl>${stage.inputs.length ? html`<dt>made of</dt><dd>${stage.inputs.map((/** @type {string} */ key) => names.get(key) ?? key.slice(0, 8)).join(', ')}</dd>` : null}
      ${stage.checkpoints.length ? html`<dt>models</dt><dd>${stage.checkpoints.join(', ')}</dd>` : null}
      ${Object.entries(stage.settings).map(([name, value]) => html`<dt key=${name}>${name}</dt><dd><code>${typeof value === 'string' ? value : JSON.stringify(value)}</code></dd>`)}
      <dt>key</dt><dd><code>${stage.key.slice(0, 16)}</code></dd></dl></details></li>`)}</ol>`;
}

/** Ask before a run is deleted, with what it frees. @param {any} props */
function DeleteRun({ run, onClose }) {
  const found = useData(`/runs/${run.id}/deletion`);
  const erase = () => api.remove(`/runs/${run.id}`).then(() => go('gallery'), noteError);
  return html`<${Dialog} title="Delete this run?" action="Delete" danger onAccept=${erase} onClose=${onClose}>
    ${found.data ? html`<p>It frees ${formatBytes(found.data.frees_bytes)}: ${count(found.data.artifacts, 'stored stage')}${found.data.files.length ? ` and ${found.data.files.join(', ')}` : ''}.</p>
      ${found.data.kept_files.length ? html`<p class="muted">These files are elsewhere and stay: ${found.data.kept_files.join(', ')}</p>` : null}
      ${found.data.kept_by.length ? html`<p class="muted">Other runs use some of its stages; those stay.</p>` : null}` : html`<${Skeleton} rows=${1} />`}</${Dialog}>`;
}

const METRICS = [['detail_db', 'Detail', ' dB'], ['motion', 'Motion', ''], ['flicker', 'Flicker', ''], ['sharpness', 'Sharpness', ''], ['seams', 'Seams', '']];

/** @param {{id?: string}} props */
export function RunPage({ id }) {
  const version = useValue(galleryVersion);
  const found = useData(id ? `/runs/${id}` : null, version);
  const [deleting, setDeleting] = useState(false);
  const [at, setAt] = useState(0);
  if (found.error || !id) return html`<${Empty} icon="gallery" title="This run is gone"><p>${found.error?.message ?? ''}</p><a class="button" href="#/gallery">Gallery</a></${Empty}>`;
  if (!found.data) return html`<${Skeleton} rows=${4} />`;
  const run = found.data;
  const clip = run.clips[at] ?? run.clips[0];
  const again = () => {
    const { images: _i, video: _v, audio_in: _a, ...request } = run.request;
    changeForm({ ...EMPTY_FORM, prompt: run.prompt, preset: run.preset ?? '', negative: request.negative_prompt ?? '', width: run.width, height: run.height, seconds: run.frames > 1 ? Number((run.frames / run.fps).toFixed(3)) : null });
    go('make');
  };
  const newSeed = () => api.post('/jobs', { kind: 'make', request: { ...run.request, seed: -1, like: run.id } }).then(({ job }) => go(`queue?job=${job.id}`), noteError);
  const metrics = METRICS.filter(([key]) => Number.isFinite((clip?.metrics ?? run.metrics ?? {})[key]));
  return html`<header class="split"><div><h1>${run.title}</h1><p class="muted">${[formatSize(run), formatSeconds(run.seconds), run.preset, run.seed === null ? '' : `seed ${run.seed}`, formatDate(run.created)].filter(Boolean).join(' · ')}</p></div>
      <${IconButton} icon="star" filled=${run.starred} pressed=${run.starred} label="Star" onClick=${() => api.post(`/runs/${run.id}/star`, { starred: !run.starred }).then(() => { galleryVersion.value += 1; }, noteError)} /></header>
    ${run.error ? html`<div class="error-box"><strong>${run.error}</strong></div>` : null}
    <div class="run-columns"><div>
      ${clip ? html`<${Clip} key=${clip.number} clip=${clip} ratio=${`${run.width || 16}/${run.height || 9}`} controls label=${run.title} />` : html`<p class="muted">${run.missing ? 'The file of this clip is no longer where it was.' : 'There is no picture.'}</p>`}
      ${run.clips.length > 1 ? html`<div class="strip pickable">${run.clips.map((/** @type {any} */ c, /** @type {number} */ i) => html`<button type="button" key=${c.number} aria-pressed=${String(i === at)} onClick=${() => setAt(i)}><img src=${c.thumbnail_url} alt=${`clip ${c.number}`} /></button>`)}</div>` : null}
      <p>${clip?.prompt || run.prompt}</p>
      ${metrics.length ? html`<dl class="metrics">${metrics.map(([key, name, unit]) => html`<div key=${key}><dt>${name}</dt><dd>${formatNumber((clip?.metrics ?? run.metrics)[key])}${unit}</dd></div>`)}</dl>` : null}
    </div><aside>
      <div class="actions"><button type="button" class="primary" onClick=${newSeed}><${Icon} name="again" /> Again with a new seed</button>
        <button type="button" onClick=${again}>Change and make again</button>
        ${run.can_refine ? html`<a class="button" href=${`#/refine/${run.id}`}>Refine again</a>` : null}
        <a class="button" href=${`#/compare?a=${run.id}:${clip?.number ?? 1}`}>Compare</a>
        <a class="button" href=${`#/sweep?run=${run.id}`}>Sweep a setting</a>
        ${run.outputs.map((/** @type {any} */ file) => html`<a class="button" key=${file.name} href=${`${file.url}${file.url.includes('?') ? '&' : '?'}download=1`} download><${Icon} name="download" /> ${file.name} <span class="muted">${formatBytes(file.bytes)}</span></a>`)}
        <a class="button" href=${`/ladder/runs/${run.id}/export?as=comfyui`} download>Export as ComfyUI graph</a>
        <button type="button" onClick=${() => copyText(run.command)}>Copy the command</button>
        <button type="button" class="danger" onClick=${() => setDeleting(true)}><${Icon} name="trash" /> Delete</button></div>
      <h2>How it was made</h2>${run.parent ? html`<p><a href=${`#/run/${run.parent}`}>From an earlier run</a></p>` : null}<${Provenance} stages=${run.stages} />
      ${run.warnings.map((/** @type {string} */ w, /** @type {number} */ i) => html`<p class="muted remark" key=${i}>${w}</p>`)}</aside></div>
    ${deleting ? html`<${DeleteRun} run=${run} onClose=${() => setDeleting(false)} />` : null}`;
}
