// Values inside stages, by stage: what a preset has is shown in grey, what is typed replaces it.
import { html } from '../lib.js';
import { Field } from './parts.js';

const ROWS = /** @type {Record<string, {path: string, label: string, hint: string, read: (stage: any) => any}[]>} */ ({
  base: [
    { path: 'steps', label: 'Steps', hint: 'More steps take longer; distilled models need 8.', read: (s) => s.schedule?.steps ?? (s.sigmas ? s.sigmas.length - 1 : '') },
    { path: 'guidance.video.cfg', label: 'Guidance (CFG)', hint: '1 is none; distilled models need none.', read: (s) => s.guidance?.video?.cfg },
    { path: 'sampler', label: 'Sampler', hint: 'Such as euler or euler_ancestral.', read: (s) => s.sampler },
  ],
  refine: [
    { path: 'denoise', label: 'Denoise', hint: 'How much of the picture is made anew: .2 keeps it, .6 changes much.', read: (s) => s.denoise ?? (s.sigmas ? s.sigmas[0] : '') },
    { path: 'steps', label: 'Steps', hint: '', read: (s) => s.schedule?.steps ?? (s.sigmas ? s.sigmas.length - 1 : '') },
    { path: 'guidance.video.cfg', label: 'Guidance (CFG)', hint: '', read: (s) => s.guidance?.video?.cfg },
  ],
  upsample: [{ path: 'factor', label: 'Factor', hint: '1.5 or 2.', read: (s) => s.factor }],
});
const TITLES = /** @type {Record<string, string>} */ ({ base: 'First stage', upsample: 'Doubling the latents', refine: 'Second stage' });

/** @param {{stages: any[], kinds?: string[], values: Record<string, any>, onChange: (path: string, value: string) => void}} props */
export function StageEditor({ stages, kinds = ['base', 'upsample', 'refine'], values, onChange }) {
  const seen = /** @type {Record<string, number>} */ ({});
  return stages.map((stage, i) => {
    seen[stage.kind] = (seen[stage.kind] ?? 0) + 1;
    const name = seen[stage.kind] > 1 ? `${stage.kind}${seen[stage.kind]}` : stage.kind;
    if (!kinds.includes(stage.kind) || !ROWS[stage.kind]) return null;
    const strength = stage.loras?.[0]?.strength;
    return html`<fieldset class="stage" key=${i}><legend>${TITLES[stage.kind]}${seen[stage.kind] > 1 ? ` ${seen[stage.kind]}` : ''}</legend>
      <div class="grid">${ROWS[stage.kind].map((row) => html`<${Field} key=${row.path} label=${row.label} hint=${row.hint}>
        <input type="text" inputmode="decimal" placeholder=${String(row.read(stage) ?? '')} value=${values[`${name}.${row.path}`] ?? ''}
          onInput=${(/** @type {any} */ e) => onChange(`${name}.${row.path}`, e.target.value)} /></${Field}>`)}
      ${strength === undefined ? null : html`<${Field} label="Strength of the LoRA" hint="0 leaves it out.">
        <input type="text" inputmode="decimal" placeholder=${String(strength)} value=${values[`${name}.loras[0].strength`] ?? ''}
          onInput=${(/** @type {any} */ e) => onChange(`${name}.loras[0].strength`, e.target.value)} /></${Field}>`}</div></fieldset>`;
  });
}
