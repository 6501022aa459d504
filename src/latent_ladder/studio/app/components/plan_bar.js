// What a job would do: it follows what is typed, and never stands in the way of it.
import { html, useEffect, useRef, useState } from '../lib.js';
import { api } from '../api.js';
import { count, formatMemory, formatSeconds } from '../format.js';

const DELAY_MS = 350;

/** The plan of a body; the last one stays while a new one is asked for. @param {any} body null: no plan */
export function usePlan(body) {
  const [found, setFound] = useState(/** @type {any} */ ({ plan: null, error: null, asking: false }));
  const text = body === null ? '' : JSON.stringify(body);
  const stop = useRef(/** @type {AbortController|null} */ (null));
  useEffect(() => {
    stop.current?.abort();
    if (!text) {
      setFound({ plan: null, error: null, asking: false });
      return undefined;
    }
    setFound((/** @type {any} */ before) => ({ ...before, asking: true }));
    const timer = setTimeout(async () => {
      const controller = new AbortController();
      stop.current = controller;
      try {
        const plan = await api.post('/plan', JSON.parse(text), { signal: controller.signal });
        setFound({ plan, error: null, asking: false });
      } catch (error) {
        if (/** @type {Error} */ (error).name !== 'AbortError') setFound({ plan: null, error, asking: false });
      }
    }, DELAY_MS);
    return () => clearTimeout(timer);
  }, [text]);
  return found;
}

/** @param {any} props */
export function PlanBar({ found, idle, children }) {
  const { plan, error, asking } = found;
  const [open, setOpen] = useState(false);
  let words = html`<span class="muted">${idle}</span>`;
  if (error) words = html`<span class="bad">${error.message}</span> ${error.hint ? html`<span class="muted">${error.hint}</span>` : null}`;
  else if (plan) {
    const tooBig = plan.budget_bytes && plan.peak_bytes > plan.budget_bytes;
    words = html`<strong>${plan.headline}</strong>
      <span class="facts">${plan.seconds ? html`<span>about ${formatSeconds(plan.seconds)}</span>` : null}
        <span class=${tooBig ? 'bad' : ''}>${formatMemory(plan.peak_bytes)}${plan.budget_bytes ? ` of ${formatMemory(plan.budget_bytes)}` : ''} on ${plan.device}</span>
        ${plan.artifacts_reused ? html`<span class="good">${count(plan.artifacts_reused, 'stage')} reused</span>` : null}
        ${plan.warnings.length ? html`<button type="button" class="link" aria-expanded=${String(open)} onClick=${() => setOpen(!open)}>${count(plan.warnings.length, 'remark')}</button>` : null}</span>`;
  }
  return html`<div class=${asking ? 'plan-bar asking' : 'plan-bar'}>
    <div class="plan-words" aria-live="polite">${words}</div><div class="row">${children}</div>
    ${open && plan?.warnings.length ? html`<ul class="remarks">${plan.warnings.map((/** @type {any} */ w, /** @type {number} */ i) => html`<li key=${i}>${w.message}</li>`)}</ul>` : null}</div>`;
}
