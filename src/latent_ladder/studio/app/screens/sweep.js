// Sweep: try several values of a setting, see what each does, and take the best one over.
import { html, useState, useValue } from '../lib.js';
import { api } from '../api.js';
import { formatNumber } from '../format.js';
import { galleryVersion, jobs, progress } from '../events.js';
import { changeForm, form, go, noteError, place, requestOf } from '../state.js';
import { Clip, describeProgress, ProgressBar, useConductor } from '../components/clips.js';
import { Empty, ErrorBox, Field, Icon, Skeleton, useAction, useData } from '../components/parts.js';
import { PlanBar, usePlan } from '../components/plan_bar.js';

const FACTS = ['frames', 'fps', 'width', 'height', 'seconds'];
/** Gain of detail in dB. @param {any} point */
const detail = (point) => point.metrics.detail_added_db ?? point.metrics.detail_db;
const AXES = [['refine.denoise', 'Denoise of the second stage', '0.2:0.8:0.2'], ['refine.loras[0].strength', 'Strength of its LoRA', '0,0.5,1'], ['base.guidance.video.cfg', 'Guidance of the first stage', '1,2,3'], ['base.steps', 'Steps of the first stage', '8,16,24']];

/** Detail against motion: one dot for each point. @param {any} props */
function Plot({ points, chosen, onChoose }) {
  const dots = points.filter((/** @type {any} */ p) => Number.isFinite(detail(p)) && Number.isFinite(p.metrics.motion_kept ?? p.metrics.motion));
  if (dots.length < 2) return null;
  const motion = (/** @type {any} */ p) => p.metrics.motion_kept ?? p.metrics.motion;
  const span = (/** @type {number[]} */ values) => { const [low, high] = [Math.min(...values), Math.max(...values)]; return [low, Math.max(high - low, 1e-6)]; };
  const [x0, w] = span(dots.map(motion));
  const [y0, h] = span(dots.map(detail));
  return html`<svg class="plot" viewBox="0 0 340 220" role="img" aria-label="Detail against motion"><path d="M40 10V190H330" class="axis" /><text x="185" y="214">motion kept</text><text x="14" y="100" transform="rotate(-90 14 100)">detail, dB</text>
    ${dots.map((/** @type {any} */ p) => html`<g key=${p.number} onClick=${() => onChoose(p.number)}><circle class=${`dot${p.recommended ? ' best' : ''}${p.number === chosen ? ' chosen' : ''}`} r="7" cx=${52 + ((motion(p) - x0) / w) * 262} cy=${178 - ((detail(p) - y0) / h) * 152}><title>${Object.entries(p.settings).map(([k, v]) => `${k} ${v}`).join(', ')}</title></circle></g>`)}</svg>`;
}

/** @param {any} props */
function Report({ id }) {
  const version = useValue(galleryVersion);
  const found = useData(`/runs/${id}/sweep`, version);
  const run = useData(`/runs/${id}`, version);
  const job = [...useValue(jobs).values()].find((each) => each.run === id && each.state === 'running');
  const event = useValue(progress).get(job?.id ?? '');
  const [chosen, setChosen] = useState(0);
  const conductor = useConductor();
  if (found.error) return html`<${Empty} icon="sweep" title="This sweep cannot be read"><p>${found.error.message}</p><a class="button" href="#/sweep">Sweeps</a></${Empty}>`;
  if (!found.data || !run.data) return html`<${Skeleton} />`;
  const { points, recommendation, axes } = found.data;
  const point = chosen || recommendation.point || 0;
  const names = [...new Set(points.flatMap((/** @type {any} */ p) => Object.keys(p.metrics).filter((key) => Number.isFinite(p.metrics[key]) && !FACTS.includes(key))))].slice(0, 6);
  const apply = () => api.post(`/runs/${id}/sweep/apply`, { point }).then(({ request }) => {
    const settings = points.find((/** @type {any} */ p) => p.number === point)?.settings ?? {};
    changeForm({ prompt: request.prompt, preset: request.preset ?? form.peek().preset, seed: String(request.seed ?? ''), sets: { ...form.peek().sets, ...settings } });
    go('make');
  }, noteError);
  return html`<header class="split"><div><h1>Sweep</h1><p class="muted">${run.data.prompt}. ${axes.map((/** @type {any} */ axis) => `${axis.path}: ${axis.values.join(', ')}`).join('; ')}</p></div>
      <button type="button" onClick=${() => (conductor.playing ? conductor.pause() : conductor.play())}><${Icon} name="play" /> Play all</button></header>
    ${job ? html`<${ProgressBar} ...${describeProgress(event)} />` : null}
    <p class="banner">${recommendation.why || recommendation.outcome}</p>
    <div class="run-columns"><div class="table-box"><table><thead><tr><th>point</th>${axes.map((/** @type {any} */ axis) => html`<th key=${axis.path}>${axis.path}</th>`)}${names.map((name) => html`<th key=${name}>${name.replaceAll('_', ' ')}</th>`)}</tr></thead>
      <tbody>${points.map((/** @type {any} */ p) => html`<tr key=${p.number} class=${p.number === point ? 'chosen' : ''} onClick=${() => setChosen(p.number)}><td><button type="button" class="link" aria-pressed=${String(p.number === point)}>${p.number}${p.recommended ? ' ★' : ''}</button></td>
        ${axes.map((/** @type {any} */ axis) => html`<td key=${axis.path}>${p.settings[axis.path]}</td>`)}${p.error ? html`<td colspan=${names.length} class="bad">${p.error}</td>` : names.map((name) => html`<td key=${name}>${formatNumber(p.metrics[name])}</td>`)}</tr>`)}</tbody></table></div>
      <aside><${Plot} points=${points} chosen=${point} onChoose=${setChosen} /></aside></div>
    <div class="drafts-grid">${points.filter((/** @type {any} */ p) => p.video_url).map((/** @type {any} */ p) => html`<figure class=${`draft done${p.number === point ? ' chosen' : ''}`} key=${p.number}><button type="button" class="pick" aria-label=${`Point ${p.number}`} onClick=${() => setChosen(p.number)}>
      <${Clip} clip=${{ url: p.video_url, thumbnail_url: p.thumbnail_url }} ratio=${`${run.data.width || 1}/${run.data.height || 1}`} conductor=${conductor} label=${`point ${p.number}`} /></button><figcaption><span class="number">${p.number}</span><span class="muted">${Object.values(p.settings).join(', ')}</span></figcaption></figure>`)}</div>
    <div class="plan-bar"><div class="plan-words"><span class="muted">${point ? `Point ${point}: ${Object.entries(points.find((/** @type {any} */ p) => p.number === point)?.settings ?? {}).map(([k, v]) => `${k}=${v}`).join(', ')}` : 'Choose a point.'}</span></div>
      <div class="row"><button type="button" class="primary" disabled=${!point} onClick=${apply}>Apply these values</button></div></div>`;
}

/** @param {{id?: string}} props */
export function Sweep({ id }) {
  const { query } = useValue(place);
  const values = useValue(form);
  const [axis, setAxis] = useState(AXES[0][0]);
  const [range, setRange] = useState(AXES[0][2]);
  const { busy, error, run: act } = useAction();
  const old = useData(id ? null : '/runs?kind=sweep&limit=20', useValue(galleryVersion));
  const from = query.get('run');
  const base = useData(from ? `/runs/${from}` : null);
  const { request, sets } = requestOf(values);
  const body = { kind: 'sweep', axes: [`${axis}=${range}`], ...(from ? { run: from } : { request, sets }) };
  const plan = usePlan(!id && range && (from || values.prompt.trim()) ? body : null);
  if (id) return html`<${Report} id=${id} />`;
  const start = () => act(async () => {
    const { job } = await api.post('/jobs', body);
    go(`queue?job=${job.id}`);
  });
  return html`<header><h1>Sweep a setting</h1><p class="muted">Several clips that differ in one value, measured against each other: where detail is gained and motion is kept.</p></header>
    <p>${from ? html`Of: <strong>${base.data?.title ?? '…'}</strong>` : values.prompt.trim() ? html`Of the clip on the <a href="#/make">Make</a> page: <strong>${values.prompt}</strong>` : html`Write a prompt on the <a href="#/make">Make</a> page first, or start from a clip in the <a href="#/gallery">gallery</a>.`}</p>
    <div class="grid"><${Field} label="Setting"><select value=${axis} onChange=${(/** @type {any} */ e) => { setAxis(e.target.value); setRange(AXES.find(([key]) => key === e.target.value)?.[2] ?? ''); }}>${AXES.map(([key, name]) => html`<option key=${key} value=${key}>${name}</option>`)}</select></${Field}>
      <${Field} label="Values" hint="From, to and step, 0.2:0.8:0.1, or a list, 1,2,4."><input value=${range} onInput=${(/** @type {any} */ e) => setRange(e.target.value)} /></${Field}></div>
    <${ErrorBox} error=${error} />
    <${PlanBar} found=${plan} idle="The plan appears here."><button type="button" class="primary" disabled=${busy || !plan.plan} onClick=${start}><${Icon} name="sweep" /> Sweep</button></${PlanBar}>
    ${old.data?.runs.length ? html`<h2>Earlier sweeps</h2><ul class="sessions">${old.data.runs.map((/** @type {any} */ run) => html`<li key=${run.id}><a class="session" href=${`#/sweep/${run.id}`}><strong>${run.title}</strong><span class="muted">${run.clips.length} points</span></a></li>`)}</ul>` : null}`;
}
