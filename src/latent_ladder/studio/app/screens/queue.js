// Queue: what runs, what waits, what ended; order, pause, stop, again.
import { html, useValue } from '../lib.js';
import { api } from '../api.js';
import { count, formatDate, formatSeconds } from '../format.js';
import { jobs, previews, progress, queue } from '../events.js';
import { noteError } from '../state.js';
import { Empty, IconButton } from '../components/parts.js';
import { describeProgress, Preview, ProgressBar } from '../components/clips.js';

const ENDED = ['done', 'failed', 'cancelled'];
const WORDS = /** @type {Record<string, string>} */ ({ queued: 'waits', running: 'runs', paused: 'paused', done: 'done', failed: 'failed', cancelled: 'stopped' });
const KINDS = /** @type {Record<string, string>} */ ({ make: 'Clip', drafts: 'Drafts', refine: 'Refining', sweep: 'Sweep', upscale: 'Enlarging', download: 'Download', graph: 'Graph' });

/** Where the result of a job is shown. @param {any} job */
export function placeOf(job) {
  if (job.kind === 'drafts') return `#/drafts/${job.id}`;
  if (job.kind === 'sweep' && job.run) return `#/sweep/${job.run}`;
  return job.run ? `#/run/${job.run}` : null;
}

/** @param {any} props */
function JobRow({ job, first, last }) {
  const event = useValue(progress).get(job.id) ?? (job.progress && { ...job.progress, clip: null });
  const url = useValue(previews).get(`${job.id}/0`);
  const act = (/** @type {string} */ what, /** @type {any} */ body = {}) => api.post(`/jobs/${job.id}/${what}`, body).catch(noteError);
  const waits = job.state === 'queued' || job.state === 'paused';
  const ended = ENDED.includes(job.state);
  const where = placeOf(job);
  const done = job.clips.filter((/** @type {any} */ clip) => clip.state === 'done').length;
  const size = job.request ? `${job.request.width ?? 1}/${job.request.height ?? 1}` : '1/1';
  return html`<li class=${`job ${job.state}`}><div class="job-head"><span class=${`state ${job.state}`}>${WORDS[job.state]}</span>
      <div class="job-words"><strong>${where ? html`<a href=${where}>${job.title || job.prompt || KINDS[job.kind]}</a>` : job.title || job.prompt}</strong>
        <span class="muted">${KINDS[job.kind] ?? job.kind}${job.clips.length > 1 ? `, ${done} of ${count(job.clips.length, 'clip')}` : ''}${job.preset ? `, ${job.preset}` : ''}${job.seed !== null ? `, seed ${job.seed}` : ''}
          ${ended && job.started ? `, ${formatSeconds((Date.parse(job.ended) - Date.parse(job.started)) / 1000)}` : ''}, ${formatDate(job.ended ?? job.started ?? job.created)}${job.worker && job.state === 'running' ? `, on ${job.worker}` : ''}</span></div>
      <div class="row">
        ${waits ? html`<${IconButton} icon="up" label="Earlier" disabled=${first} onClick=${() => act('move', { before: first ? null : job.previous })} />
          <${IconButton} icon="down" label="Later" disabled=${last} onClick=${() => act('move', { before: job.afterNext })} />` : null}
        ${job.state === 'paused' ? html`<${IconButton} icon="play" label="Go on" onClick=${() => act('resume')} />` : null}
        ${job.state === 'queued' || job.state === 'running' ? html`<${IconButton} icon="pause" label="Pause" onClick=${() => act('pause')} />` : null}
        ${ended ? null : html`<${IconButton} icon="close" label="Stop this job" onClick=${() => act('cancel')} />`}
        ${job.state === 'failed' || job.state === 'cancelled' ? html`<${IconButton} icon="again" label="Try again" onClick=${() => act('retry')} />` : null}
        ${ended ? html`<${IconButton} icon="trash" label="Remove from the list" onClick=${() => api.remove(`/jobs/${job.id}`).catch(noteError)} />` : null}</div></div>
    ${job.state === 'running' ? html`<div class="job-live">${job.kind === 'make' || job.kind === 'refine' ? html`<${Preview} url=${url} ratio=${size} />` : null}<div class="grow"><${ProgressBar} ...${describeProgress(event)} /></div></div>` : null}
    ${job.error && job.state === 'failed' ? html`<div class="error-box"><strong>${job.error.message}</strong>${job.error.hint ? html`<p>${job.error.hint}</p>` : null}</div>` : null}
    ${job.warnings.map((/** @type {any} */ w, /** @type {number} */ i) => html`<p class="muted remark" key=${i}>${w.message}</p>`)}</li>`;
}

export function Queue() {
  const all = [...useValue(jobs).values()];
  const { paused } = useValue(queue);
  const byPosition = (/** @type {any} */ a, /** @type {any} */ b) => (a.position ?? 0) - (b.position ?? 0);
  const open = all.filter((job) => !ENDED.includes(job.state));
  const running = open.filter((job) => job.state === 'running');
  const waiting = open.filter((job) => job.state !== 'running').sort(byPosition);
  const ended = all.filter((job) => ENDED.includes(job.state)).sort((a, b) => String(b.ended).localeCompare(String(a.ended)));
  if (!all.length) {
    return html`<header><h1>Queue</h1></header><${Empty} icon="queue" title="Nothing to do"><p>Jobs wait and run here, also while this page is closed.</p><a class="button primary" href="#/make">Make a clip</a></${Empty}>`;
  }
  return html`<header class="split"><div><h1>Queue</h1><p class="muted">The queue is kept on disk: it survives a closed page and a stopped server.</p></div>
      <button type="button" onClick=${() => api.post(`/queue/${paused ? 'resume' : 'pause'}`).catch(noteError)}>${paused ? 'Go on' : 'Pause the queue'}</button></header>
    ${paused ? html`<p class="banner">The queue is paused: the running job ends, no other begins.</p>` : null}
    <ul class="jobs">${running.map((job) => html`<${JobRow} key=${job.id} job=${job} />`)}
      ${waiting.map((job, i) => html`<${JobRow} key=${job.id} job=${{ ...job, previous: waiting[i - 1]?.id ?? null, afterNext: waiting[i + 2]?.id ?? null }} first=${i === 0} last=${i === waiting.length - 1} />`)}</ul>
    ${ended.length ? html`<h2>Ended</h2><ul class="jobs">${ended.map((job) => html`<${JobRow} key=${job.id} job=${job} />`)}</ul>` : null}`;
}
