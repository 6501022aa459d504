// App: any ComfyUI workflow as a form of its inputs, run and watched node by node.
import { html, signal, useState, useValue } from '../lib.js';
import { api } from '../api.js';
import { jobs, previews, progress } from '../events.js';
import { noteError } from '../state.js';
import { describeProgress, Preview, ProgressBar } from '../components/clips.js';
import { Empty, ErrorBox, Field, Icon, useAction, useData } from '../components/parts.js';

const LARGEST = 20_000_000;
/** The graph on the screen; it stays while other screens are open. */
const current = signal(/** @type {any} */ (null));

/** @param {any} props */
function Input({ input, value, onChange }) {
  const label = `${input.title}: ${input.name}`;
  if (input.choices.length) return html`<${Field} label=${label}><select value=${value} onChange=${(/** @type {any} */ e) => onChange(e.target.value)}>${input.choices.map((/** @type {any} */ c) => html`<option key=${c} value=${c}>${c}</option>`)}</select></${Field}>`;
  if (typeof input.value === 'boolean') return html`<label class="check"><input type="checkbox" checked=${value} onChange=${(/** @type {any} */ e) => onChange(e.target.checked)} /> ${label}</label>`;
  if (typeof input.value === 'number') return html`<${Field} label=${label}><input type="number" step="any" min=${input.min ?? undefined} max=${input.max ?? undefined} value=${value} onInput=${(/** @type {any} */ e) => onChange(Number(e.target.value))} /></${Field}>`;
  const long = String(input.value ?? '').length > 60 || input.name === 'text';
  return html`<${Field} label=${label} wide=${long}>${long ? html`<textarea rows="3" value=${value} onInput=${(/** @type {any} */ e) => onChange(e.target.value)}></textarea>` : html`<input value=${value ?? ''} onInput=${(/** @type {any} */ e) => onChange(e.target.value)} />`}</${Field}>`;
}

export function GraphApp() {
  const loaded = useValue(current);
  const saved = useData('/graphs');
  const [values, setValues] = useState(/** @type {Record<string, any>} */ ({}));
  const [jobId, setJobId] = useState('');
  const { busy, error, run } = useAction();
  const job = useValue(jobs).get(jobId);
  const event = useValue(progress).get(jobId);
  const url = useValue(previews).get(`${jobId}/0`);
  const open = (/** @type {string} */ name, /** @type {any} */ graph) => run(async () => {
    current.value = { name, graph, report: await api.post('/graphs/inspect', { graph }) };
    setValues({});
    setJobId('');
  });
  const choose = async (/** @type {File|undefined} */ file) => {
    if (!file) return;
    if (file.size > LARGEST) { noteError(new Error(`${file.name} is too large for a workflow.`)); return; }
    let graph;
    try {
      graph = JSON.parse(await file.text());
    } catch {
      noteError(Object.assign(new Error(`${file.name} is not a workflow.`), { hint: 'Save it from ComfyUI as JSON.' }));
      return;
    }
    open(file.name, graph);
  };
  const report = loaded?.report;
  const start = () => run(async () => {
    const answer = await api.post('/jobs', { kind: 'graph', graph: loaded.graph, inputs: values });
    setJobId(answer.job.id);
  });
  const groups = report ? [...new Set(report.inputs.map((/** @type {any} */ i) => i.group))] : [];
  return html`<header class="split"><div><h1>${loaded ? loaded.name : 'App'}</h1><p class="muted">A ComfyUI workflow as a form: change its values, run it, watch it.</p></div>
      <label class="button"><${Icon} name="upload" /> Open a workflow<input type="file" accept=".json,application/json" class="hidden" onChange=${(/** @type {any} */ e) => { choose(e.target.files[0]); e.target.value = ''; }} /></label></header>
    <${ErrorBox} error=${error} />
    ${!loaded ? html`<${Empty} icon="app" title="Open a workflow"><p>Both JSON formats of ComfyUI are read. What this program cannot run is named before anything starts.</p>
      ${saved.data?.length ? html`<ul class="sessions">${saved.data.map((/** @type {any} */ each) => html`<li key=${each.name}><button type="button" class="session" onClick=${() => fetch(each.url).then((r) => r.json()).then((graph) => open(each.name, graph), noteError)}><strong>${each.name}</strong></button></li>`)}</ul>` : null}</${Empty}>` : null}
    ${report?.unsupported.length ? html`<div class="error-box"><strong>These nodes cannot run here:</strong><ul>${report.unsupported.map((/** @type {any} */ node) => html`<li key=${node.node}>${node.type}: ${node.why}</li>`)}</ul></div>` : null}
    ${report?.problems.map((/** @type {any} */ p, /** @type {number} */ i) => html`<p class="bad" key=${i}>${p.message} <span class="muted">${p.hint ?? ''}</span></p>`)}
    ${report?.warnings.map((/** @type {string} */ text, /** @type {number} */ i) => html`<p class="muted remark" key=${i}>${text}</p>`)}
    ${groups.map((group) => html`<fieldset class="stage" key=${group}><legend>${group}</legend><div class="grid">${report.inputs.filter((/** @type {any} */ i) => i.group === group).map((/** @type {any} */ input) => {
      const key = `${input.node}.${input.name}`;
      return html`<${Input} key=${key} input=${input} value=${values[key] ?? input.value} onChange=${(/** @type {any} */ value) => setValues({ ...values, [key]: value })} />`;
    })}</div></fieldset>`)}
    ${report ? html`<div class="plan-bar"><div class="plan-words">${job?.state === 'running' ? html`<${ProgressBar} ...${describeProgress(event)} />` : html`<span class="muted">${job ? (job.state === 'failed' ? job.error?.message : job.state) : report.outputs.map((/** @type {any} */ o) => `${o.title}${o.size ? ` ${o.size.join(' × ')}` : ''}`).join(', ')}</span>`}</div>
      <div class="row"><button type="button" class="primary" disabled=${busy || !report.can_run} onClick=${start}><${Icon} name="play" /> Run</button></div></div>` : null}
    ${job?.state === 'running' && url ? html`<${Preview} url=${url} ratio="1/1" />` : null}
    ${job?.outputs.map((/** @type {any} */ file) => html`<figure key=${file.name}>${file.mime.startsWith('image') ? html`<img class="result" src=${file.url} alt=${file.name} />` : html`<video class="result" src=${file.playable ? file.url : file.proxy_url} controls loop></video>`}<figcaption><a href=${file.url} download>${file.name}</a></figcaption></figure>`)}`;
}
