// Drafts: a grid that plays in step; kill, star, choose, refine.
import { html, useEffect, useMemo, useState, useValue } from '../lib.js';
import { api } from '../api.js';
import { count, formatSize } from '../format.js';
import { galleryVersion, jobs, known, previews, progress } from '../events.js';
import { go, noteError } from '../state.js';
import { Clip, describeProgress, Preview, ProgressBar, useConductor } from '../components/clips.js';
import { Empty, Icon, IconButton, Skeleton, useData } from '../components/parts.js';

const RUN_ID_LENGTH = 8;
const KEYS = '123456789';

/** @param {any} props */
function Cell({ clip, live, url, ratio, conductor, chosen, onChoose, onStar, onKill }) {
  const state = clip.state;
  return html`<figure class=${`draft ${state}${chosen ? ' chosen' : ''}`}>
    ${state === 'done' && clip.thumbnail_url ? html`<button type="button" class="pick" aria-pressed=${String(chosen)} aria-label=${`Choose draft ${clip.number}`} onClick=${onChoose}>
        <${Clip} clip=${clip} ratio=${ratio} conductor=${conductor} label=${`draft ${clip.number}`} /></button>`
    : html`<${Preview} url=${url} ratio=${ratio} />`}
    <figcaption><span class="number">${clip.number}</span>
      <span class="grow">${state === 'done' ? html`<span class="muted">seed ${clip.seed}</span>` : html`<span class="muted">${state === 'running' ? live : state === 'queued' ? 'waits' : state === 'killed' ? 'stopped' : clip.error ?? 'failed'}</span>`}
        ${clip.flags?.map((/** @type {string} */ flag) => html` <b class="flag" key=${flag}>${flag}</b>`)}</span>
      ${state === 'done' ? html`<${IconButton} icon="star" filled=${clip.starred} pressed=${clip.starred} label=${`Star draft ${clip.number}`} onClick=${onStar} />` : null}
      ${state === 'running' || state === 'queued' ? html`<${IconButton} icon="close" label=${`Stop draft ${clip.number}`} onClick=${onKill} />` : null}</figcaption></figure>`;
}

/** Sessions of drafts, the newest first. */
function Sessions() {
  const found = useData('/runs?kind=drafts&limit=24', useValue(galleryVersion));
  const live = [...useValue(jobs).values()].filter((job) => job.kind === 'drafts' && ['queued', 'running', 'paused'].includes(job.state));
  if (!found.data && !found.error) return html`<${Skeleton} />`;
  const runs = found.data?.runs ?? [];
  if (!runs.length && !live.length) {
    return html`<${Empty} icon="drafts" title="No drafts yet"><p>A draft is the small first stage of a clip. Make eight, stop the bad ones, refine the best.</p><a class="button primary" href="#/make">Draft something</a></${Empty}>`;
  }
  return html`<ul class="sessions">${live.map((job) => html`<li key=${job.id}><a class="session" href=${`#/drafts/${job.id}`}><strong>${job.title || job.prompt}</strong><span class="muted">being made, ${count(job.clips.length, 'draft')}</span></a></li>`)}
    ${runs.map((/** @type {any} */ run) => html`<li key=${run.id}><a class="session" href=${`#/drafts/${run.id}`}><strong>${run.title}</strong>
      <span class="strip">${run.clips.slice(0, 6).map((/** @type {any} */ clip) => (clip.thumbnail_url ? html`<img key=${clip.number} src=${clip.thumbnail_url} alt="" loading="lazy" />` : null))}</span>
      <span class="muted">${count(run.clips.length, 'draft')}</span></a></li>`)}</ul>`;
}

/** @param {{id?: string}} props a job or a run */
export function Drafts({ id }) {
  const job = useValue(jobs).get(id ?? '');
  const jobsKnown = useValue(known);
  const isRun = (id ?? '').length === RUN_ID_LENGTH;
  const runId = job ? job.run : isRun ? id : null;
  const version = useValue(galleryVersion);
  const found = useData(id && runId ? `/runs/${runId}` : null, `${version}/${job?.state}/${job?.clips.filter((/** @type {any} */ c) => c.state === 'done').length}`);
  const [last, setLast] = useState(/** @type {any} */ (null));
  useEffect(() => { if (found.data) setLast(found.data); }, [found.data]);
  const conductor = useConductor();
  const [playing, setPlaying] = useState(!matchMedia('(prefers-reduced-motion: reduce)').matches);
  const [chosen, setChosen] = useState(/** @type {number[]} */ ([]));
  const event = useValue(progress).get(job?.id ?? '');
  const urls = useValue(previews);
  useEffect(() => (playing ? conductor.play() : conductor.pause()), [playing]);
  const run = found.data ?? last;
  const clips = useMemo(() => {
    const made = new Map((run?.clips ?? []).map((/** @type {any} */ clip) => [clip.number, clip]));
    const base = job?.clips.length ? job.clips : run?.clips ?? [];
    return base.map((/** @type {any} */ clip) => ({ ...clip, ...made.get(clip.number), state: made.get(clip.number)?.url ? 'done' : clip.state, flags: made.get(clip.number)?.flags ?? clip.flags }));
  }, [run, job]);
  const star = (/** @type {any} */ clip) => api.post(`/runs/${runId}/star`, { starred: !clip.starred, clip: clip.number }).then(setLast, noteError);
  const toggle = (/** @type {number} */ n) => setChosen((before) => (before.includes(n) ? before.filter((x) => x !== n) : [...before, n]));
  useEffect(() => {
    const press = (/** @type {KeyboardEvent} */ e) => {
      if (/** @type {HTMLElement} */ (e.target).closest('input, textarea, select') || e.ctrlKey || e.metaKey || e.altKey) return;
      const clip = KEYS.includes(e.key) ? clips.find((/** @type {any} */ c) => c.number === Number(e.key)) : null;
      if (clip?.state === 'done') star(clip);
      if (e.key === ' ' && e.target === document.body) { e.preventDefault(); setPlaying((p) => !p); }
    };
    addEventListener('keydown', press);
    return () => removeEventListener('keydown', press);
  }, [clips]);
  if (!id) return html`<header><h1>Drafts</h1></header><${Sessions} />`;
  if (!job && (found.error || (!isRun && jobsKnown))) return html`<${Empty} icon="drafts" title="These drafts are gone"><p>${found.error?.message ?? 'The job is no longer in the list.'}</p><a class="button" href="#/drafts">All drafts</a></${Empty}>`;
  if (!clips.length) return html`<header><h1>Drafts</h1></header><${Skeleton} />`;
  const size = run?.width ? run : job?.request ?? { width: 1, height: 1 };
  const ratio = `${size.width ?? 1}/${size.height ?? 1}`;
  const live = job && job.state === 'running' ? describeProgress(event) : null;
  const ready = clips.filter((/** @type {any} */ c) => c.state === 'done');
  const picks = chosen.length ? chosen : ready.filter((/** @type {any} */ c) => c.starred).map((/** @type {any} */ c) => c.number);
  return html`<header class="split"><div><h1>${job?.prompt || run?.prompt || 'Drafts'}</h1>
      <p class="muted">${count(ready.length, 'draft')} ready${ready.length < clips.length ? ` of ${clips.length}` : ''}${run ? `, ${formatSize(run)}, ${run.preset ?? ''}` : ''}. Keys 1 to 9 star, space plays and stops.</p></div>
      <button type="button" onClick=${() => setPlaying(!playing)}><${Icon} name=${playing ? 'pause' : 'play'} /> ${playing ? 'Stop' : 'Play'}</button></header>
    ${live ? html`<${ProgressBar} ...${live} />` : null}
    ${live && ready.length === 0 ? html`<p class="muted small">Moving previews appear while each draft is computed, its clip when all are.</p>` : null}
    ${job?.error ? html`<div class="error-box"><strong>${job.error.message}</strong><p>${job.error.hint}</p></div>` : null}
    <div class="drafts-grid">${clips.map((/** @type {any} */ clip) => html`<${Cell} key=${clip.number} clip=${clip} ratio=${ratio} conductor=${conductor} live=${live?.text} url=${urls.get(`${job?.id}/${clip.number}`)}
      chosen=${chosen.includes(clip.number)} onChoose=${() => toggle(clip.number)} onStar=${() => star(clip)}
      onKill=${() => api.post(`/jobs/${job.id}/clips/${clip.number}/cancel`).catch(noteError)} />`)}</div>
    <div class="plan-bar"><div class="plan-words"><span class="muted">${picks.length ? `${count(picks.length, 'draft')} chosen: ${picks.join(', ')}` : 'Choose drafts by clicking them, or star them.'}</span></div><div class="row">
      <button type="button" disabled=${picks.length !== 2} onClick=${() => go(`compare?a=${runId}:${picks[0]}&b=${runId}:${picks[1]}`)}>Compare two</button>
      <button type="button" class="primary" disabled=${!picks.length || !runId} onClick=${() => go(`refine/${runId}?drafts=${picks.join(',')}`)}><${Icon} name="refine" /> Refine chosen</button></div></div>`;
}
