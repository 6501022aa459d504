// Timeline: pictures at their frames, the sound with its waveform, the part of a video to make again.
import { html, useRef, useValue } from '../lib.js';
import { formatNumber, formatSeconds } from '../format.js';
import { changeForm, form, presets, requestOf } from '../state.js';
import { Empty, Segments, useData } from '../components/parts.js';
import { PlanBar, usePlan } from '../components/plan_bar.js';
import { Inputs, VIDEO_MODES } from './make.js';

const POINTS = 400;

/** @param {any} props */
function Waveform({ sound, length }) {
  const found = useData(`/uploads/${sound.id}/waveform?points=${POINTS}`);
  const peaks = found.data?.peaks ?? [];
  const path = peaks.map((/** @type {number[]} */ [low, high], /** @type {number} */ i) => `M${i} ${50 - high * 48}V${50 - low * 48}`).join('');
  return html`<svg class="wave" viewBox=${`0 0 ${POINTS} 100`} preserveAspectRatio="none" style=${{ width: `${Math.min(100, ((sound.seconds ?? length) / length) * 100)}%` }} role="img" aria-label=${`waveform of ${sound.name}`}><path d=${path} /></svg>`;
}

export function Timeline() {
  const values = useValue(form);
  const known = useValue(presets);
  const track = useRef(/** @type {any} */ (null));
  const preset = known?.find((each) => each.name === values.preset);
  const { request, sets } = requestOf(values);
  const plan = usePlan(values.prompt.trim() && known ? { kind: 'make', request, sets } : null);
  const frames = plan.plan?.request.frames ?? preset?.frames ?? 121;
  const fps = Number(plan.plan?.request.fps?.split?.('/')[0] ?? preset?.fps ?? 24) / Number(plan.plan?.request.fps?.split?.('/')[1] ?? 1);
  const length = frames / fps;
  const windows = plan.plan?.request.windows;
  const { images, sound, video } = values;
  const timeAt = (/** @type {PointerEvent} */ e) => {
    const area = track.current.getBoundingClientRect();
    return Math.max(0, Math.min(length, ((e.clientX - area.left) / area.width) * length));
  };
  const setImage = (/** @type {number} */ i, /** @type {any} */ changes) => changeForm({ images: images.map((/** @type {any} */ image, /** @type {number} */ at) => (at === i ? { ...image, ...changes } : image)) });
  const dragImage = (/** @type {number} */ i) => (/** @type {PointerEvent} */ e) => {
    const box = /** @type {HTMLElement} */ (e.currentTarget);
    if (e.type === 'pointerdown') box.setPointerCapture(e.pointerId);
    if (e.buttons) setImage(i, { frame: Math.min(frames - 1, Math.round(timeAt(e) * fps)) });
  };
  const keyImage = (/** @type {number} */ i, /** @type {number} */ frame) => (/** @type {KeyboardEvent} */ e) => {
    const step = e.key === 'ArrowRight' ? 1 : e.key === 'ArrowLeft' ? -1 : 0;
    if (step) { e.preventDefault(); setImage(i, { frame: Math.max(0, Math.min(frames - 1, frame + step * (e.shiftKey ? 8 : 1))) }); }
  };
  const dragRegion = (/** @type {PointerEvent} */ e) => {
    if (!video || video.mode !== 'retake') return;
    const t = Number(timeAt(e).toFixed(2));
    if (e.type === 'pointerdown') {
      /** @type {HTMLElement} */ (e.currentTarget).setPointerCapture(e.pointerId);
      changeForm({ video: { ...video, anchor: t, start: t, end: Math.min(length, t + 0.1) } });
    } else if (e.buttons) {
      changeForm({ video: { ...video, start: Math.min(video.anchor ?? t, t), end: Math.max(video.anchor ?? t, t) } });
    }
  };
  const ticks = Array.from({ length: Math.floor(length) + 1 }, (_, i) => i);
  return html`<header><h1>Timeline</h1><p class="muted">${formatSeconds(length)}, ${frames} frames at ${formatNumber(fps)} fps. What is set here belongs to the clip on the <a href="#/make">Make</a> page.</p></header>
    <${Inputs} />
    ${!images.length && !sound && !video ? html`<${Empty} icon="timeline" title="Nothing on the timeline"><p>Add pictures to set what is seen at a moment, a sound that the picture follows, or a video of which a part is made again.</p></${Empty}>` : html`
    <div class="timeline"><div class="ruler">${ticks.map((t) => html`<span key=${t} style=${{ left: `${(t / length) * 100}%` }}>${t} s</span>`)}</div>
      <div class="track" ref=${track}><span class="track-name">Pictures</span>${images.map((/** @type {any} */ image, /** @type {number} */ i) => {
    const frame = image.frame < 0 ? frames - 1 : image.frame;
    return html`<button type="button" class="key-image" key=${image.id} style=${{ left: `calc((100% - 82px) * ${frame / Math.max(frames - 1, 1)})`, opacity: 0.4 + 0.6 * image.strength }} aria-label=${`${image.name} at frame ${frame}; arrows move it`}
      onPointerDown=${dragImage(i)} onPointerMove=${dragImage(i)} onKeyDown=${keyImage(i, frame)}><img src=${image.thumbnail_url} alt="" draggable=${false} /><span>${frame}</span></button>`;
  })}</div>
      ${video ? html`<div class="track region-track" onPointerDown=${dragRegion} onPointerMove=${dragRegion}><span class="track-name">Video</span><div class="video-bar" style=${{ width: `${Math.min(100, ((video.seconds ?? length) / length) * 100)}%` }}></div>
        ${video.mode === 'retake' ? html`<div class="region" style=${{ left: `${(video.start / length) * 100}%`, width: `${((video.end - video.start) / length) * 100}%` }}><span>made again</span></div>` : null}</div>
        <div class="row wrap"><${Segments} label="Use of the video" value=${video.mode} options=${VIDEO_MODES} onChange=${(/** @type {string} */ mode) => changeForm({ video: { ...video, mode } })} />
          ${video.mode === 'retake' ? html`<label>from <input class="short" type="number" step="0.1" min="0" value=${video.start} onChange=${(/** @type {any} */ e) => changeForm({ video: { ...video, start: Number(e.target.value) } })} /> s</label><label>to <input class="short" type="number" step="0.1" value=${video.end} onChange=${(/** @type {any} */ e) => changeForm({ video: { ...video, end: Number(e.target.value) } })} /> s</label>` : null}</div>` : null}
      ${sound ? html`<div class="track"><span class="track-name">Sound</span><${Waveform} sound=${sound} length=${length} /></div>` : null}
      ${windows && typeof windows === 'object' ? html`<p class="muted">Made in windows of ${windows.frames} frames that overlap by ${windows.overlap_frames}.</p>` : length > 20 && windows === 'auto' ? html`<p class="muted">Longer than 20 s: made window by window.</p>` : null}</div>`}
    <${PlanBar} found=${plan} idle="Write a prompt on the Make page."><a class="button primary" href="#/make">Go on</a></${PlanBar}>`;
}
