// The one connection for events. It comes back by itself; the server then sends the whole state.
import { batch, signal } from './lib.js';

/** @typedef {any} Job */

/** Jobs by id. @type {{value: Map<string, Job>, peek: () => Map<string, Job>}} */
export const jobs = signal(new Map());
/** Progress by job id: the latest event. */
export const progress = signal(new Map());
/** Addresses of live previews by `job/clip`. */
export const previews = signal(new Map());
export const queue = signal({ paused: false, jobs: 0, running: null, workers: [] });
/** True once the server has sent its jobs. */
export const known = signal(false);
/** False while there is no connection. */
export const online = signal(true);
/** Counts up when the gallery changed. */
export const galleryVersion = signal(0);

const FIRST_WAIT_MS = 400;
const LONGEST_WAIT_MS = 8000;
let waitMs = FIRST_WAIT_MS;

/** @param {any} message */
function take(message) {
  switch (message.type) {
    case 'state':
      batch(() => {
        jobs.value = new Map(message.jobs.map((/** @type {Job} */ job) => [job.id, job]));
        queue.value = message.queue;
        known.value = true;
        galleryVersion.value += 1;
      });
      break;
    case 'job':
      jobs.value = new Map(jobs.peek()).set(message.job.id, message.job);
      if (message.job.state !== 'running') drop(message.job.id);
      break;
    case 'job_removed': {
      const left = new Map(jobs.peek());
      left.delete(message.job);
      jobs.value = left;
      break;
    }
    case 'progress':
      progress.value = new Map(progress.peek()).set(message.job, message);
      break;
    case 'preview':
      previews.value = new Map(previews.peek()).set(`${message.job}/${message.clip ?? 0}`, message.url);
      break;
    case 'queue':
      queue.value = message.queue;
      break;
    case 'runs':
      galleryVersion.value += 1;
      break;
    default:
  }
}

/** @param {string} id */
function drop(id) {
  if (!progress.peek().has(id)) return;
  const left = new Map(progress.peek());
  left.delete(id);
  progress.value = left;
}

/** Connect, and connect again whenever the connection ends. */
export function connect() {
  const socket = new WebSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/ladder/events`);
  socket.onopen = () => {
    waitMs = FIRST_WAIT_MS;
    online.value = true;
  };
  socket.onmessage = (event) => take(JSON.parse(event.data));
  socket.onclose = () => {
    online.value = false;
    setTimeout(connect, waitMs);
    waitMs = Math.min(waitMs * 2, LONGEST_WAIT_MS);
  };
}
