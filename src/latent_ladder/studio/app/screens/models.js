// Models: what runs now, what is missing for the rest, and downloads with their licences.
import { html, useState, useValue } from '../lib.js';
import { api } from '../api.js';
import { count, formatBytes, formatMemory } from '../format.js';
import { jobs } from '../events.js';
import { go, loadServer, noteError } from '../state.js';
import { Dialog, Icon, Segments, Skeleton, useData } from '../components/parts.js';

export function Models() {
  const [version, setVersion] = useState(0);
  const ended = [...useValue(jobs).values()].filter((job) => job.kind === 'download' && job.state === 'done').length;
  const found = useData(`/models${version ? '?fresh=1' : ''}`, `${version}/${ended}`);
  const [family, setFamily] = useState('2.5');
  const [chosen, setChosen] = useState(/** @type {string[]} */ ([]));
  const [asking, setAsking] = useState(false);
  if (found.error) return html`<div class="error-box"><strong>${found.error.message}</strong><p>${found.error.hint}</p></div>`;
  if (!found.data) return html`<header><h1>Models</h1></header><${Skeleton} rows=${5} />`;
  const { device, runs_now: runsNow, files, fits, catalog, damaged, warnings, disk, folders } = found.data;
  const families = [...new Set(catalog.map((/** @type {any} */ entry) => entry.family))];
  const shown = catalog.filter((/** @type {any} */ entry) => entry.family === family);
  const bytes = catalog.filter((/** @type {any} */ entry) => chosen.includes(entry.id)).reduce((/** @type {number} */ sum, /** @type {any} */ entry) => sum + entry.bytes, 0);
  const paths = [...new Map(files.map((/** @type {any} */ file) => [file.path, file])).values()];
  const gated = catalog.filter((/** @type {any} */ entry) => entry.gated && chosen.includes(entry.id));
  const licences = [...new Map(gated.map((/** @type {any} */ entry) => [entry.license_url, entry])).values()];
  const send = (/** @type {boolean} */ accepted) => api.post('/jobs', { kind: 'download', entries: chosen, ...(accepted ? { accept_licences: true } : {}) }).then(() => go('queue'), noteError);
  const download = () => (licences.length ? setAsking(true) : send(false));
  const toggle = (/** @type {string} */ id) => setChosen(chosen.includes(id) ? chosen.filter((each) => each !== id) : [...chosen, id]);
  return html`<header class="split"><div><h1>Models</h1><p class="muted">${device.name}, ${formatMemory(device.memory_bytes)}. ${runsNow.length ? `Runs now: ${runsNow.join(', ')}.` : 'Nothing runs yet.'}</p></div>
      <button type="button" onClick=${() => { setVersion(version + 1); loadServer(); }}><${Icon} name="again" /> Look again</button></header>
    ${warnings.map((/** @type {string} */ text, /** @type {number} */ i) => html`<p class="banner" key=${i}>${text}</p>`)}
    ${damaged.map((/** @type {any} */ file, /** @type {number} */ i) => html`<div class="error-box" key=${i}><strong>${file.path ?? file.name}</strong><p>${file.why ?? file.message}</p></div>`)}
    <h2>Presets</h2><div class="table-box"><table><thead><tr><th>preset</th><th>ready</th><th>memory</th><th>missing</th></tr></thead><tbody>${[...fits].sort((x, y) => Number(y.ready) - Number(x.ready)).map((/** @type {any} */ fit) => html`<tr key=${fit.preset}><td><strong>${fit.preset}</strong></td><td>${fit.ready ? html`<span class="good">ready</span>` : 'no'}</td>
      <td class=${fit.fits === false ? 'bad' : ''}>${fit.peak_bytes ? `${formatMemory(fit.peak_bytes)}${fit.budget_bytes ? ` of ${formatMemory(fit.budget_bytes)}` : ''}` : '–'}</td>
      <td>${fit.missing.map((/** @type {any} */ m) => html`<div key=${m.role}>${m.page ? html`<a href=${m.page} rel="noreferrer noopener" target="_blank">${m.file ?? m.role}</a>` : m.role} <span class="muted">${m.bytes ? formatBytes(m.bytes) : ''}</span></div>`)}</td></tr>`)}</tbody></table></div>
    <h2>Get models</h2><${Segments} label="Family" value=${family} options=${families.map((name) => [name, `LTX-${name}`])} onChange=${setFamily} />
    <div class="table-box"><table><thead><tr><th></th><th>file</th><th>for</th><th>size</th><th>licence</th></tr></thead><tbody>${shown.map((/** @type {any} */ entry) => html`<tr key=${entry.id}><td>${entry.have ? html`<span class="good">here</span>` : html`<input type="checkbox" aria-label=${`Get ${entry.title}`} checked=${chosen.includes(entry.id)} onChange=${() => toggle(entry.id)} />`}</td>
      <td>${entry.title}<br /><span class="muted">${entry.folder}, ${entry.precision}</span></td><td class="muted">${entry.roles.join(', ')}</td><td>${formatBytes(entry.bytes)}</td><td><a href=${entry.license_url} rel="noreferrer noopener" target="_blank">${entry.license}</a>${entry.gated ? html` <a href=${entry.page} class="flag" rel="noreferrer noopener" target="_blank">accept first</a>` : null}</td></tr>`)}</tbody></table></div>
    <div class="plan-bar"><div class="plan-words">${chosen.length ? html`<strong>${count(chosen.length, 'file')}, ${formatBytes(bytes)}</strong> <span class=${bytes > disk.free_bytes ? 'bad' : 'muted'}>${formatBytes(disk.free_bytes)} are free in ${disk.path ?? disk.folder}</span>` : html`<span class="muted">Tick files to download them; a stopped download goes on where it was.</span>`}</div>
      <div class="row"><button type="button" class="primary" disabled=${!chosen.length || bytes > disk.free_bytes} onClick=${download}><${Icon} name="download" /> Download</button></div></div>
    ${asking ? html`<${Dialog} title="Do you accept the licence?" action="Accept and download" onAccept=${() => { setAsking(false); send(true); }} onClose=${() => setAsking(false)}>
      ${licences.map((/** @type {any} */ entry) => html`<p key=${entry.license_url}><a href=${entry.license_url} rel="noreferrer noopener" target="_blank">${entry.license}</a>: read it there. Its files need an account that accepted it on <a href=${entry.page} rel="noreferrer noopener" target="_blank">their page</a>, and HF_TOKEN where the server runs.</p>`)}</${Dialog}>` : null}
    <h2>Files here</h2><p class="muted">${folders.map((/** @type {any} */ folder) => (folder.source === 'embedded' ? 'built in' : folder.path)).join(', ')}</p><div class="table-box"><table><thead><tr><th>file</th><th>holds</th><th>precision</th><th>size</th></tr></thead><tbody>${paths.map((/** @type {any} */ file) => html`<tr key=${file.path}><td title=${file.embedded ? 'built in' : file.path}>${file.name}${file.problems.map((/** @type {string} */ text, /** @type {number} */ i) => html`<div class="bad" key=${i}>${text}</div>`)}</td>
      <td class="muted">${files.filter((/** @type {any} */ each) => each.path === file.path).map((/** @type {any} */ each) => each.role).join(', ')}</td><td>${file.precision}</td><td>${formatBytes(files.filter((/** @type {any} */ each) => each.path === file.path).reduce((/** @type {number} */ sum, /** @type {any} */ each) => sum + each.bytes, 0))}</td></tr>`)}</tbody></table></div>`;
}
