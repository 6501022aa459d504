// Clips: one that loads when it is seen, and groups that play in step.
import { html, useEffect, useRef, useState } from '../lib.js';
import { formatSeconds } from '../format.js';

const TOLERANCE_S = 0.04;
const JUMP_S = 0.25;
const CORRECTION_MS = 250;

/**
 * One clock for a group of videos: each plays the same moment of its own loop.
 * Corrections run only while videos play.
 */
export class Conductor {
  constructor() {
    /** @type {Set<HTMLVideoElement>} */
    this.videos = new Set();
    this.playing = false;
    this.startedAt = 0;
    this.timer = 0;
    this.onVisibility = () => (document.hidden ? this.stopTimer() : this.resume());
    document.addEventListener('visibilitychange', this.onVisibility);
  }

  /** @param {HTMLVideoElement} video */
  add(video) {
    this.videos.add(video);
    if (this.playing) this.correct();
    return () => this.videos.delete(video);
  }

  play() {
    this.playing = true;
    this.startedAt = performance.now();
    this.resume();
  }

  pause() {
    this.playing = false;
    this.stopTimer();
    for (const video of this.videos) video.pause();
  }

  resume() {
    if (!this.playing || this.timer) return;
    this.correct();
    this.timer = window.setInterval(() => this.correct(), CORRECTION_MS);
  }

  stopTimer() {
    clearInterval(this.timer);
    this.timer = 0;
  }

  correct() {
    const now = (performance.now() - this.startedAt) / 1000;
    for (const video of this.videos) {
      if (!video.duration || video.readyState < 2) continue;
      const wanted = now % video.duration;
      let off = video.currentTime - wanted;
      if (off > video.duration / 2) off -= video.duration;
      if (off < -video.duration / 2) off += video.duration;
      if (Math.abs(off) > JUMP_S) video.currentTime = wanted;
      video.playbackRate = Math.abs(off) < TOLERANCE_S ? 1 : Math.min(1.15, Math.max(0.85, 1 - off));
      if (video.paused) video.play().catch(() => {});
    }
  }

  close() {
    this.pause();
    document.removeEventListener('visibilitychange', this.onVisibility);
  }
}

/** @returns {Conductor} */
export function useConductor() {
  const conductor = useRef(/** @type {any} */ (null));
  if (conductor.current === null) conductor.current = new Conductor();
  useEffect(() => () => conductor.current.close(), []);
  return conductor.current;
}

/** True once the element came near the visible part of the page. */
function useSeen(/** @type {any} */ element) {
  const [seen, setSeen] = useState(false);
  useEffect(() => {
    const watch = new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) {
        setSeen(true);
        watch.disconnect();
      }
    }, { rootMargin: '200px' });
    watch.observe(element.current);
    return () => watch.disconnect();
  }, []);
  return seen;
}

const WAIT_MS = 700;

/** The address that the browser can play; of others an H.264 copy, once it is made. */
export function useSource(/** @type {{url: string|null, playable?: boolean, proxy_url?: string|null}} */ clip, /** @type {boolean} */ wanted) {
  const direct = clip.playable === false ? null : clip.url;
  const [source, setSource] = useState(direct);
  useEffect(() => {
    if (!wanted || clip.playable !== false || !clip.proxy_url) {
      setSource(direct);
      return undefined;
    }
    let stopped = false;
    const ask = async () => {
      const answer = await fetch(/** @type {string} */ (clip.proxy_url), { headers: { Range: 'bytes=0-0' } }).catch(() => null);
      if (stopped) return;
      if (answer && answer.status === 202) setTimeout(ask, WAIT_MS);
      else if (answer?.ok) setSource(/** @type {string} */ (clip.proxy_url));
    };
    ask();
    return () => { stopped = true; };
  }, [clip.url, clip.proxy_url, wanted]);
  return source;
}

/**
 * A clip: its picture, and its video once it is seen. In a group it plays with the others, else
 * while the pointer is on it or it has the focus.
 * @param {any} props
 */
export function Clip({ clip, ratio, conductor, controls, label }) {
  const box = useRef(/** @type {any} */ (null));
  const video = useRef(/** @type {any} */ (null));
  const seen = useSeen(box);
  const [active, setActive] = useState(Boolean(controls || conductor));
  const source = useSource(clip, seen && active);
  useEffect(() => (conductor && video.current ? conductor.add(video.current) : undefined), [conductor, source, seen, active]);
  const hold = conductor || controls ? {} : {
    onPointerEnter: () => { setActive(true); video.current?.play().catch(() => {}); },
    onPointerLeave: () => video.current?.pause(),
  };
  useEffect(() => {
    if (active && source && !conductor && !controls) video.current?.play().catch(() => {});
  }, [active, source]);
  return html`<div class="clip" ref=${box} style=${{ aspectRatio: ratio }} ...${hold}>
    ${clip.thumbnail_url ? html`<img src=${seen ? clip.thumbnail_url : undefined} alt=${label ?? ''} loading="lazy" />` : null}
    ${seen && active && source ? html`<video ref=${video} src=${source} muted=${!controls} loop playsinline preload="auto"
      controls=${controls} aria-label=${label} onLoadedData=${() => conductor?.playing && conductor.correct()}></video>` : null}
  </div>`;
}

/** A live preview: a strip of frames side by side, shown frame by frame by CSS. @param {any} props */
export function Preview({ url, ratio }) {
  const [frames, setFrames] = useState(1);
  if (!url) return html`<div class="clip waiting" style=${{ aspectRatio: ratio }}></div>`;
  const [width, height] = ratio.split('/').map(Number);
  return html`<div class="clip preview" style=${{ aspectRatio: ratio }}><img src=${url} alt="live preview"
    style=${{ width: `${frames * 100}%`, '--frames': frames, animationDuration: `${frames / 8}s`, animationTimingFunction: `steps(${frames})` }}
    onLoad=${(/** @type {any} */ e) => setFrames(Math.max(1, Math.round((e.target.naturalWidth / e.target.naturalHeight) / (width / height))))} /></div>`;
}

/** The bar of a running job. @param {any} props */
export function ProgressBar({ value, text, left }) {
  const share = Math.max(0, Math.min(1, value));
  return html`<div class="progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow=${Math.round(share * 100)} aria-label=${text}>
    <div style=${{ width: `${share * 100}%` }}></div></div>
    <p class="progress-text"><span>${text}</span><span>${left ? `${formatSeconds(left)} left in this stage` : ''}</span></p>`;
}

/** Share and words of a progress event. */
export function describeProgress(/** @type {any} */ event) {
  if (!event) return { value: 0, text: 'starting' };
  const inside = event.steps ? event.done / event.steps : 0;
  const clip = event.clip ? `clip ${event.clip}: ` : '';
  return { value: (event.position - 1 + inside) / Math.max(event.of, 1), text: `${clip}${event.stage}${event.steps ? ` ${event.done}/${event.steps}` : ''}`, left: event.seconds_left };
}
