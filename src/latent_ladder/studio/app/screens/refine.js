// Refine: the later stages of chosen drafts, with what each setting does.
import { html, useState, useValue } from '../lib.js';
import { api } from '../api.js';
import { count, formatSize } from '../format.js';
import { go, place } from '../state.js';
import { Clip } from '../components/clips.js';
import { Empty, ErrorBox, Icon, Skeleton, useAction, useData } from '../components/parts.js';
import { PlanBar, usePlan } from '../components/plan_bar.js';
import { StageEditor } from '../components/stage_editor.js';

/** @param {{id?: string}} props */
export function Refine({ id }) {
  const { query } = useValue(place);
  const found = useData(id ? `/runs/${id}` : null);
  const numbers = (query.get('drafts') ?? '').split(',').filter(Boolean).map(Number);
  const [values, setValues] = useState(/** @type {Record<string, string>} */ ({}));
  const { busy, error, run: act } = useAction();
  const sets = Object.entries(values).filter(([, value]) => value !== '').map(([path, value]) => `${path}=${value}`);
  const plan = usePlan(id && found.data ? { kind: 'refine', run: id, drafts: numbers, sets } : null);
  if (!id || found.error) return html`<${Empty} icon="refine" title="Nothing to refine"><p>${found.error?.message ?? 'Choose drafts first.'}</p><a class="button" href="#/drafts">Drafts</a></${Empty}>`;
  if (!found.data) return html`<${Skeleton} />`;
  const run = found.data;
  const clips = run.clips.filter((/** @type {any} */ clip) => !numbers.length || numbers.includes(clip.number));
  const start = () => act(async () => {
    const { job } = await api.post('/jobs', { kind: 'refine', run: id, drafts: numbers, sets });
    go(`queue?job=${job.id}`);
  });
  return html`<header><h1>Refine ${run.kind === 'drafts' ? count(clips.length, 'draft') : 'this clip'}</h1><p class="muted">${run.prompt}. What was made of ${run.kind === 'drafts' ? 'the drafts' : 'it'} before is reused.</p></header>
    <div class="strip large">${clips.map((/** @type {any} */ clip) => html`<div key=${clip.number}><${Clip} clip=${clip} ratio=${`${run.width}/${run.height}`} label=${`draft ${clip.number}`} /><span class="muted">${clip.number}, seed ${clip.seed}</span></div>`)}</div>
    <${StageEditor} stages=${run.request.stages ?? []} kinds=${['upsample', 'refine']} values=${values} onChange=${(/** @type {string} */ path, /** @type {string} */ value) => setValues({ ...values, [path]: value })} />
    <${ErrorBox} error=${error} />
    <${PlanBar} found=${plan} idle=${formatSize(run)}><button type="button" class="primary" disabled=${busy || Boolean(plan.error)} onClick=${start}><${Icon} name="refine" /> Refine</button></${PlanBar}>`;
}
