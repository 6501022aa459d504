// The frame of the page: navigation, the connection bar, and the screen of the address.
import { html, render, useEffect, useValue } from './lib.js';
import { connect, jobs, online, queue } from './events.js';
import { loadServer, place, server, theme } from './state.js';
import { Icon, Notes } from './components/parts.js';
import { Make } from './screens/make.js';
import { Timeline } from './screens/timeline.js';
import { Drafts } from './screens/drafts.js';
import { Refine } from './screens/refine.js';
import { Compare } from './screens/compare.js';
import { Sweep } from './screens/sweep.js';
import { Gallery, RunPage } from './screens/gallery.js';
import { Queue } from './screens/queue.js';
import { Models } from './screens/models.js';
import { GraphApp } from './screens/app.js';

/** Address -> screen, name in the navigation (none: reached from others), icon. */
const SCREENS = /** @type {Record<string, {view: any, name: string, icon: string, more?: boolean}>} */ ({
  make: { view: Make, name: 'Make', icon: 'make' },
  drafts: { view: Drafts, name: 'Drafts', icon: 'drafts' },
  gallery: { view: Gallery, name: 'Gallery', icon: 'gallery' },
  queue: { view: Queue, name: 'Queue', icon: 'queue' },
  timeline: { view: Timeline, name: 'Timeline', icon: 'timeline', more: true },
  compare: { view: Compare, name: 'Compare', icon: 'compare', more: true },
  sweep: { view: Sweep, name: 'Sweep', icon: 'sweep', more: true },
  models: { view: Models, name: 'Models', icon: 'models', more: true },
  app: { view: GraphApp, name: 'App', icon: 'app', more: true },
  refine: { view: Refine, name: '', icon: 'refine' },
  run: { view: RunPage, name: '', icon: 'gallery' },
});
const NEXT_THEME = /** @type {Record<string, string>} */ ({ auto: 'light', light: 'dark', dark: 'auto' });

/** @param {{current: string}} props */
function Navigation({ current }) {
  const waiting = useValue(queue).jobs;
  const shown = useValue(theme);
  const links = Object.entries(SCREENS).filter(([, screen]) => screen.name);
  return html`<nav aria-label="Screens"><a class="brand" href="#/make"><img src="icon.svg" alt="" width="28" height="28" /><span>Ladder Studio</span></a>
    <ul>${links.map(([key, screen]) => html`<li key=${key} class=${screen.more ? 'more' : ''}><a href=${`#/${key}`} aria-current=${key === current ? 'page' : undefined}>
      <${Icon} name=${screen.icon} /><span>${screen.name}</span>${key === 'queue' && waiting ? html`<b class="badge">${waiting}</b>` : null}</a></li>`)}</ul>
    <button type="button" class="theme" onClick=${() => { theme.value = NEXT_THEME[shown] ?? 'auto'; }}><${Icon} name="sun" /><span>${shown === 'auto' ? 'System colours' : shown === 'light' ? 'Light' : 'Dark'}</span></button></nav>`;
}

function ConnectionBar() {
  if (useValue(online)) return null;
  return html`<div class="offline" role="alert">The connection to the server is lost. What you typed is kept; the page connects again by itself.</div>`;
}

function App() {
  const { parts } = useValue(place);
  const key = parts[0] in SCREENS ? parts[0] : 'make';
  const { view, name } = SCREENS[key];
  useEffect(() => {
    const running = [...jobs.peek().values()].some((job) => job.state === 'running');
    document.title = `${running ? '● ' : ''}${name || 'Clip'} – Ladder Studio`;
    document.querySelector('main')?.scrollTo(0, 0);
  }, [key, parts[1]]);
  const facts = useValue(server);
  return html`<${Navigation} current=${key} /><div class="page"><${ConnectionBar} />
    <main id="main" class=${`screen ${key}`} tabindex="-1"><${view} key=${`${key}/${parts[1] ?? ''}`} id=${parts[1]} /></main>
    ${facts?.pocket_only ? html`<p class="pocket-note">You are using the small built-in model: simple shapes, a few colours. <a href="#/models">Get LTX-2.3 or 2.5</a> for real scenes.</p>` : null}</div><${Notes} />`;
}

connect();
loadServer();
render(html`<${App} />`, /** @type {any} */ (document.getElementById('app')));
