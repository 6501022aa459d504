// Make: prompt, files, preset, size and length; a plan that follows; drafts or the whole clip.
import { html, useEffect, useMemo, useState, useValue } from '../lib.js';
import { api } from '../api.js';
import { formatSeconds } from '../format.js';
import { changeForm, EMPTY_FORM, form, go, note, noteError, presets, requestOf } from '../state.js';
import { DropZone, ErrorBox, Field, Icon, IconButton, Segments, Skeleton, useAction, useData } from '../components/parts.js';
import { PlanBar, usePlan } from '../components/plan_bar.js';
import { StageEditor } from '../components/stage_editor.js';

const SHAPES = /** @type {Record<string, number>} */ ({ landscape: 16 / 9, square: 1, portrait: 9 / 16 });
const GRID = 64;

/** Sides of about as many pixels as the preset's, in another shape. */
export function sizeOf(/** @type {any} */ preset, /** @type {string} */ shape) {
  if (!shape || !preset?.width) return { width: null, height: null };
  const pixels = preset.width * preset.height;
  const side = (/** @type {number} */ value) => Math.max(GRID, Math.round(value / GRID) * GRID);
  const ratio = SHAPES[shape];
  return { width: side(Math.sqrt(pixels * ratio)), height: side(Math.sqrt(pixels / ratio)) };
}

/** A dropped file takes the place that its kind has. @param {any} upload */
export function takeUpload(upload) {
  upload.notes.forEach((/** @type {string} */ text) => note(`${upload.name} ${text}`));
  const { images } = form.peek();
  if (upload.kind === 'image') {
    const frame = images.length === 0 ? 0 : -1;
    changeForm({ images: [...images, { ...upload, frame, strength: 1 }] });
  } else if (upload.kind === 'audio') changeForm({ sound: upload });
  else {
    const end = Math.max(0.1, Math.min(upload.seconds ?? 1, 1));
    changeForm({ video: { ...upload, mode: 'v2v', denoise: 0.6, start: 0, end, extend: 1 } });
  }
}

export const VIDEO_MODES = [['v2v', 'Change all of it'], ['retake', 'Make a part again'], ['extend', 'Make it longer']];

export function Inputs() {
  const { images, sound, video } = useValue(form);
  const setImage = (/** @type {number} */ i, /** @type {any} */ changes) => changeForm({ images: images.map((/** @type {any} */ image, /** @type {number} */ at) => (at === i ? { ...image, ...changes } : image)) });
  return html`<div class="inputs">
    ${images.map((/** @type {any} */ image, /** @type {number} */ i) => html`<div class="input" key=${image.id}><img src=${image.thumbnail_url} alt="" />
      <div><strong>${image.name}</strong><div class="row">
        <label>at frame <input type="number" class="short" value=${image.frame} aria-label="Frame, -1 for the last" onChange=${(/** @type {any} */ e) => setImage(i, { frame: Number(e.target.value) })} /></label>
        <label>strength <input type="number" class="short" min="0" max="1" step="0.05" value=${image.strength} onChange=${(/** @type {any} */ e) => setImage(i, { strength: Number(e.target.value) })} /></label></div></div>
      <${IconButton} icon="close" label=${`Remove ${image.name}`} onClick=${() => changeForm({ images: images.filter((/** @type {any} */ _, /** @type {number} */ at) => at !== i) })} /></div>`)}
    ${sound ? html`<div class="input"><span class="input-icon">♪</span><div><strong>${sound.name}</strong><p class="muted">${formatSeconds(sound.seconds)}; the picture follows it</p></div>
      <${IconButton} icon="close" label=${`Remove ${sound.name}`} onClick=${() => changeForm({ sound: null })} /></div>` : null}
    ${video ? html`<div class="input"><img src=${video.thumbnail_url} alt="" /><div><strong>${video.name}</strong> <span class="muted">${formatSeconds(video.seconds)}</span>
      <${Segments} label="Use of the video" value=${video.mode} options=${VIDEO_MODES} onChange=${(/** @type {string} */ mode) => changeForm({ video: { ...video, mode } })} />
      ${video.mode === 'v2v' ? html`<label class="range">change <input type="range" min="0.1" max="1" step="0.05" value=${video.denoise} onInput=${(/** @type {any} */ e) => changeForm({ video: { ...video, denoise: Number(e.target.value) } })} /> ${video.denoise}</label>` : null}
      ${video.mode === 'retake' ? html`<p class="muted">${formatSeconds(video.start)} to ${formatSeconds(video.end)}: choose it on the <a href="#/timeline">timeline</a></p>` : null}
      ${video.mode === 'extend' ? html`<label>by <input type="number" class="short" step="0.5" value=${video.extend} onChange=${(/** @type {any} */ e) => changeForm({ video: { ...video, extend: Number(e.target.value) } })} /> s</label>` : null}</div>
      <${IconButton} icon="close" label=${`Remove ${video.name}`} onClick=${() => changeForm({ video: null })} /></div>` : null}
    <${DropZone} accept="image/*,video/*,audio/*" label="Add a picture, sound or video" hint="or drop files here" onUpload=${takeUpload} /></div>`;
}

export function Make() {
  const values = useValue(form);
  const known = useValue(presets);
  const { busy, error, run } = useAction();
  const preset = known?.find((each) => each.name === values.preset) ?? null;
  const [advanced, setAdvanced] = useState(Object.keys(values.sets).length > 0);
  const detail = useData(values.preset && advanced ? `/presets/${encodeURIComponent(values.preset)}` : null);
  const { request, sets } = requestOf(values);
  const ready = values.prompt.trim() !== '';
  const plan = usePlan(ready && known ? { kind: 'make', request, sets } : null);
  const [start] = useMemo(() => [(/** @type {string} */ kind) => run(async () => {
    const now = requestOf(form.peek());
    const body = { kind, request: now.request, sets: now.sets, ...(kind === 'drafts' ? { count: form.peek().count } : {}) };
    const { job } = await api.post('/jobs', body);
    go(kind === 'drafts' ? `drafts/${job.id}` : 'queue');
  })], []);
  useEffect(() => {
    if (known && !values.preset) {
      const first = known.find((each) => each.ready && !each.own) ?? known[0];
      if (first) changeForm({ preset: first.name });
    }
  }, [known]);
  useEffect(() => {
    const drop = (/** @type {DragEvent} */ e) => e.preventDefault();
    const dropped = async (/** @type {DragEvent} */ e) => {
      e.preventDefault();
      for (const file of e.dataTransfer?.files ?? []) await api.upload(file, () => {}).then(takeUpload, noteError);
    };
    addEventListener('dragover', drop);
    addEventListener('drop', dropped);
    return () => { removeEventListener('dragover', drop); removeEventListener('drop', dropped); };
  }, []);
  if (!known) return html`<header><h1>Make a clip</h1></header><${Skeleton} rows=${4} />`;
  const order = [...known].sort((a, b) => Number(b.ready ?? b.own) - Number(a.ready ?? a.own));
  const examples = preset?.world?.examples ?? [];
  return html`<header><h1>Make a clip</h1><p class="muted">Say what is seen, how it moves and how it sounds. Draft a few, then refine the best.</p></header>
    <form class="make-form" onSubmit=${(/** @type {Event} */ e) => e.preventDefault()}>
      <${Field} label="Prompt" wide><textarea rows="4" autofocus value=${values.prompt} placeholder=${examples[0] ?? 'A potter shapes a bowl on a wheel in warm evening light, clay on her hands, the wheel hums'}
        onInput=${(/** @type {any} */ e) => changeForm({ prompt: e.target.value })}
        onKeyDown=${(/** @type {KeyboardEvent} */ e) => { if (e.key === 'Enter' && (e.ctrlKey || e.metaKey) && ready) start('drafts'); }}></textarea></${Field}>
      <${Inputs} />
      <div class="grid">
        <${Field} label="Preset" hint=${preset ? preset.description : ''}><select value=${values.preset} onChange=${(/** @type {any} */ e) => { const chosen = known.find((p) => p.name === e.target.value); changeForm({ preset: e.target.value, sets: {}, ...sizeOf(chosen, values.shape) }); }}>
          ${order.map((each) => html`<option key=${each.name} value=${each.name} disabled=${each.ready === false}>${each.title}${each.ready === false ? ' (files missing)' : ''}</option>`)}</select></${Field}>
        <div class="field two"><span class="label">Shape</span><${Segments} label="Shape" value=${values.shape} options=${[['', preset?.width ? `${preset.width}×${preset.height}` : 'Preset'], ['landscape', 'Landscape'], ['square', 'Square'], ['portrait', 'Portrait']]}
          onChange=${(/** @type {string} */ shape) => changeForm({ shape, ...sizeOf(preset, shape) })} /></div>
        <${Field} label="Length" hint=${preset?.frames ? `The preset has ${formatSeconds(preset.frames / preset.fps)}.` : ''}><span class="with-unit"><input type="number" min="0.3" max="3600" step="0.1" value=${values.seconds ?? ''}
          placeholder=${preset?.frames ? (preset.frames / preset.fps).toFixed(1) : ''} onInput=${(/** @type {any} */ e) => changeForm({ seconds: e.target.value === '' ? null : Number(e.target.value) })} /> s</span></${Field}>
        <${Field} label="Seed" hint="Empty: a random one each time."><input type="text" inputmode="numeric" pattern="[0-9]*" value=${values.seed} placeholder="random" onInput=${(/** @type {any} */ e) => changeForm({ seed: e.target.value.replace(/\D/g, '') })} /></${Field}>
      </div>
      <details open=${advanced} onToggle=${(/** @type {any} */ e) => setAdvanced(e.target.open)}><summary>More, stage by stage</summary>
        <${Field} label="Not wanted" hint="Has an effect with guidance only." wide><input type="text" value=${values.negative} onInput=${(/** @type {any} */ e) => changeForm({ negative: e.target.value })} /></${Field}>
        ${detail.data ? html`<${StageEditor} stages=${detail.data.request.stages ?? []} values=${values.sets} onChange=${(/** @type {string} */ path, /** @type {string} */ value) => changeForm({ sets: { ...values.sets, [path]: value } })} />` : null}
        <p><button type="button" class="link" onClick=${() => { form.value = { ...EMPTY_FORM, preset: values.preset }; }}>Start over with an empty form</button></p></details>
      <${ErrorBox} error=${error} />
    </form>
    <${PlanBar} found=${plan} idle="The plan appears here while you type.">
      <label class="count">drafts <input type="number" class="short" min="1" max="64" value=${values.count} aria-label="Number of drafts" onInput=${(/** @type {any} */ e) => changeForm({ count: Math.max(1, Math.min(64, Number(e.target.value) || 1)) })} /></label>
      <button type="button" disabled=${!ready || busy} onClick=${() => start('make')}>Make clip</button>
      <button type="button" class="primary" disabled=${!ready || busy} onClick=${() => start('drafts')}><${Icon} name="drafts" /> Draft ${values.count}</button></${PlanBar}>`;
}
