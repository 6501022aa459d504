// Compare: two clips in step, frame by frame: wipe, side by side, difference; zoom, loop, sound of one.
import { html, useEffect, useRef, useState, useValue } from '../lib.js';
import { api, queryText } from '../api.js';
import { formatNumber, formatSize } from '../format.js';
import { go, place } from '../state.js';
import { Empty, IconButton, Segments, Skeleton, useData } from '../components/parts.js';
import { useSource } from '../components/clips.js';

const MODES = [['wipe', 'Wipe'], ['side', 'Side by side'], ['difference', 'Difference']];
const DRIFT_S = 0.02;

/** @param {string|null} text `RUN:CLIP` */
function parse(text) {
  if (!text) return null;
  const [run, clip = '1'] = text.split(':');
  return { run, clip: Number(clip) };
}

/** Choose a clip of the gallery. @param {any} props */
function Chooser({ label, onChoose }) {
  const found = useData('/runs?limit=60');
  if (!found.data) return html`<${Skeleton} rows=${2} />`;
  const clips = found.data.runs.flatMap((/** @type {any} */ run) => run.clips.filter((/** @type {any} */ c) => c.thumbnail_url).map((/** @type {any} */ clip) => ({ run, clip })));
  if (!clips.length) return html`<${Empty} icon="compare" title="Nothing to compare yet"><a class="button primary" href="#/make">Make a clip</a></${Empty}>`;
  return html`<h2>${label}</h2><div class="chooser">${clips.map((/** @type {any} */ { run, clip }) => html`<button type="button" key=${`${run.id}:${clip.number}`} onClick=${() => onChoose(`${run.id}:${clip.number}`)}>
    <img src=${clip.thumbnail_url} alt="" loading="lazy" /><span>${run.title}${run.clips.length > 1 ? ` ${clip.number}` : ''}</span><span class="muted">${formatSize(run)}</span></button>`)}</div>`;
}

/** @param {any} props */
function Stage({ a, b, comparison }) {
  const left = useRef(/** @type {any} */ (null));
  const right = useRef(/** @type {any} */ (null));
  const canvas = useRef(/** @type {any} */ (null));
  const [mode, setMode] = useState('wipe');
  const [wipe, setWipe] = useState(50);
  const [playing, setPlaying] = useState(false);
  const [frame, setFrame] = useState(0);
  const [sound, setSound] = useState('');
  const [zoom, setZoom] = useState({ scale: 1, x: 0, y: 0 });
  const frames = comparison?.frames ?? 1;
  const fps = comparison?.fps ?? 24;
  const sourceA = useSource(a, true);
  const sourceB = useSource(b, true);
  const draw = () => {
    const target = canvas.current;
    if (mode !== 'difference' || !target || !left.current?.videoWidth) return;
    const [w, h] = [right.current.videoWidth || left.current.videoWidth, right.current.videoHeight || left.current.videoHeight];
    if (target.width !== w) Object.assign(target, { width: w, height: h });
    const pen = target.getContext('2d');
    pen.globalCompositeOperation = 'source-over';
    pen.drawImage(left.current, 0, 0, w, h);
    pen.globalCompositeOperation = 'difference';
    pen.drawImage(right.current, 0, 0, w, h);
  };
  const seek = (/** @type {number} */ n) => {
    const wanted = ((n % frames) + frames) % frames;
    setPlaying(false);
    setFrame(wanted);
    for (const video of [left.current, right.current]) {
      if (!video) continue;
      video.pause();
      video.currentTime = (wanted + 0.5) / fps;
    }
  };
  useEffect(() => {
    const [one, two] = [left.current, right.current];
    if (!one || !two) return undefined;
    if (!playing) {
      one.pause();
      two.pause();
      return undefined;
    }
    let stopped = false;
    const follow = (/** @type {number} */ _, /** @type {any} */ facts) => {
      if (stopped) return;
      setFrame(Math.min(frames - 1, Math.floor(facts.mediaTime * fps + 0.01)));
      if (Math.abs(two.currentTime - one.currentTime) > DRIFT_S + 1 / fps) two.currentTime = one.currentTime;
      draw();
      one.requestVideoFrameCallback(follow);
    };
    two.currentTime = one.currentTime;
    Promise.all([one.play(), two.play()]).catch(() => setPlaying(false));
    one.requestVideoFrameCallback(follow);
    return () => { stopped = true; };
  }, [playing, mode]);
  useEffect(draw, [mode]);
  useEffect(() => {
    const press = (/** @type {KeyboardEvent} */ e) => {
      if (/** @type {HTMLElement} */ (e.target).closest('input, select, textarea')) return;
      const steps = /** @type {Record<string, number>} */ ({ ArrowRight: 1, ArrowLeft: -1, '.': 1, ',': -1 });
      if (e.key in steps) { e.preventDefault(); seek(frame + steps[e.key] * (e.shiftKey ? 8 : 1)); }
      if (e.key === ' ') { e.preventDefault(); setPlaying((p) => !p); }
      if (e.key === '0') setZoom({ scale: 1, x: 0, y: 0 });
    };
    addEventListener('keydown', press);
    return () => removeEventListener('keydown', press);
  }, [frame, frames]);
  const wheel = (/** @type {WheelEvent} */ e) => {
    e.preventDefault();
    const scale = Math.max(1, Math.min(16, zoom.scale * (e.deltaY < 0 ? 1.2 : 1 / 1.2)));
    setZoom(scale === 1 ? { scale: 1, x: 0, y: 0 } : { ...zoom, scale });
  };
  const drag = (/** @type {PointerEvent} */ e) => {
    const box = /** @type {HTMLElement} */ (e.currentTarget);
    if (zoom.scale > 1 && (e.shiftKey || mode !== 'wipe')) {
      if (e.buttons) setZoom({ ...zoom, x: zoom.x + e.movementX, y: zoom.y + e.movementY });
    } else if (mode === 'wipe' && (e.buttons || e.type === 'pointerdown')) {
      const area = box.getBoundingClientRect();
      setWipe(Math.max(0, Math.min(100, ((e.clientX - area.left) / area.width) * 100)));
    }
  };
  const move = { transform: `translate(${zoom.x}px, ${zoom.y}px) scale(${zoom.scale})` };
  const ratio = comparison ? `${comparison.width}/${comparison.height}` : '16/9';
  return html`<div class="row wrap"><${Segments} label="Way to compare" value=${mode} options=${MODES} onChange=${setMode} />
      <${Segments} label="Sound" value=${sound} options=${[['', 'No sound'], ['a', 'Sound A'], ['b', 'Sound B']]} onChange=${setSound} />
      ${zoom.scale > 1 ? html`<button type="button" onClick=${() => setZoom({ scale: 1, x: 0, y: 0 })}>${formatNumber(zoom.scale, 1)}× – whole picture</button>` : null}</div>
    <div class=${`stage-box ${mode}`} style=${{ '--ratio': ratio }} onWheel=${wheel} onPointerDown=${drag} onPointerMove=${drag}>
      <div class="pane" style=${{ aspectRatio: ratio }}><video ref=${left} src=${sourceA} muted=${sound !== 'a'} loop playsinline preload="auto" style=${move} onSeeked=${draw} onLoadedData=${draw} aria-label="clip A"></video><b class="side-name">A</b></div>
      <div class="pane second" style=${{ aspectRatio: ratio, clipPath: mode === 'wipe' ? `inset(0 0 0 ${wipe}%)` : 'none' }}><video ref=${right} src=${sourceB} muted=${sound !== 'b'} loop playsinline preload="auto" style=${move} onSeeked=${draw} onLoadedData=${draw} aria-label="clip B"></video><b class="side-name">B</b></div>
      ${mode === 'difference' ? html`<div class="pane over" style=${{ aspectRatio: ratio }}><canvas ref=${canvas} style=${move}></canvas></div>` : null}
      ${mode === 'wipe' ? html`<div class="wipe-line" style=${{ left: `${wipe}%` }}></div>` : null}</div>
    ${mode === 'wipe' ? html`<input class="full" type="range" min="0" max="100" value=${wipe} aria-label="Place of the wipe" onInput=${(/** @type {any} */ e) => setWipe(Number(e.target.value))} />` : null}
    <div class="transport"><${IconButton} icon="back" label="Frame back" onClick=${() => seek(frame - 1)} />
      <${IconButton} icon=${playing ? 'pause' : 'play'} label=${playing ? 'Stop' : 'Play'} onClick=${() => setPlaying(!playing)} />
      <${IconButton} icon="step" label="Frame on" onClick=${() => seek(frame + 1)} />
      <input class="full" type="range" min="0" max=${Math.max(frames - 1, 0)} value=${frame} aria-label="Frame" onInput=${(/** @type {any} */ e) => seek(Number(e.target.value))} />
      <output>${frame + 1} / ${frames}</output></div>
    <p class="muted small">Space plays, arrows step, with shift 8 frames. The wheel zooms, shift and drag moves, 0 shows all.</p>`;
}

export function Compare() {
  const { query } = useValue(place);
  const names = { a: query.get('a'), b: query.get('b') };
  const [a, b] = [parse(names.a), parse(names.b)];
  const one = useData(a ? `/runs/${a.run}` : null);
  const two = useData(b ? `/runs/${b.run}` : null);
  const [comparison, setComparison] = useState(/** @type {any} */ (null));
  const [error, setError] = useState(/** @type {any} */ (null));
  useEffect(() => {
    setComparison(null);
    setError(null);
    if (a && b) api.post('/compare', { a, b }).then(setComparison, setError);
  }, [names.a, names.b]);
  const choose = (/** @type {string} */ side) => (/** @type {string} */ value) => go(`compare${queryText({ ...names, [side]: value })}`);
  if (!a || !b) {
    return html`<header><h1>Compare</h1><p class="muted">Two clips in step, frame by frame.</p></header><${Chooser} label=${a ? 'Choose the second clip' : 'Choose the first clip'} onChoose=${choose(a ? 'b' : 'a')} />`;
  }
  const failure = one.error ?? two.error;
  if (failure) return html`<${Empty} icon="compare" title="A clip is gone"><p>${failure.message}</p><a class="button" href="#/compare">Choose again</a></${Empty}>`;
  if (!one.data || !two.data) return html`<${Skeleton} />`;
  const clipOf = (/** @type {any} */ run, /** @type {any} */ name) => run.clips.find((/** @type {any} */ c) => c.number === name.clip) ?? run.clips[0];
  const [first, second] = [clipOf(one.data, a), clipOf(two.data, b)];
  if (!first?.url || !second?.url) return html`<${Empty} icon="compare" title="A clip has no video"><a class="button" href="#/compare">Choose again</a></${Empty}>`;
  return html`<header class="split"><div><h1>Compare</h1><p class="muted">A: ${one.data.title} ${formatSize(comparison?.a ?? one.data)} · B: ${two.data.title} ${formatSize(comparison?.b ?? two.data)}</p></div>
      <div class="row"><button type="button" onClick=${() => go(`compare${queryText({ a: names.b, b: names.a })}`)}>Swap</button><a class="button" href="#/compare">Others</a></div></header>
    <${Stage} a=${first} b=${second} comparison=${comparison} />
    ${error ? html`<p class="muted">${error.message}</p>` : !comparison ? html`<p class="muted">measuring…</p>` : html`<dl class="metrics">${Object.entries(comparison.metrics ?? {}).filter(([name, value]) => Number.isFinite(value) && !['frames', 'fps', 'width', 'height'].includes(name)).map(([name, value]) => html`<div key=${name}><dt>${name.replaceAll('_', ' ')}</dt><dd>${formatNumber(/** @type {number} */ (value))}</dd></div>`)}</dl>${comparison.note ? html`<p class="muted">${comparison.note}</p>` : null}`}`;
}
