"""Preparation of a run: models chosen, stages planned, memory fitted, warnings collected.

Loads nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.duration_heads import find_duration_head
from latent_ladder.checkpoints.selection import Library, ModelSet, select_models
from latent_ladder.checkpoints.training import transformer_training, unknown_training_error
from latent_ladder.diagnostics.first_presets import first_preset
from latent_ladder.diagnostics.preset_readiness import check_preset, preset_notes
from latent_ladder.diagnostics.preset_recommendation import propose
from latent_ladder.diagnostics.request_warnings import advise
from latent_ladder.diagnostics.training_range import training_range, with_windows
from latent_ladder.memory.hardware import MemoryOptions, budget, read_rates
from latent_ladder.memory.planner import MemoryPlan, Policy, plan_memory
from latent_ladder.models.text_encoder.tokenizer import token_report
from latent_ladder.pipeline.events import Warned
from latent_ladder.pipeline.plan import RunPlan, make_plan, mark_stored
from latent_ladder.pipeline.unfinished_runs import find_unfinished
from latent_ladder.pipeline.video_decoder import with_decoder
from latent_ladder.request.model import Request
from latent_ladder.storage.artifact_store import DamagedArtefact, Store
from latent_ladder.storage.run_records import RunRecord

LONGEST_QUOTE, MOST_WORDS = 80, 12
"""Characters and words of a prompt that a warning quotes."""


@dataclass(frozen=True)
class Prepared:
    """A checked request with its plan, its store and the warnings to show before it runs.

    ``memory`` says how every stage fits into what ``options`` allow on ``device``. ``random_seed``
    is true where the seed was picked now, ``unfinished`` is the earlier run whose seed was taken
    over.
    """

    plan: RunPlan
    store: Store
    memory: MemoryPlan
    options: MemoryOptions
    warnings: tuple[Warned, ...]
    library: Library
    device: str = "auto"
    random_seed: bool = False
    unfinished: RunRecord | None = None

    @property
    def request(self) -> Request:
        """The resolved request."""
        return self.plan.request

    def report(self) -> dict[str, Any]:
        """The plan as plain data, for ``ladder plan``."""
        from latent_ladder.pipeline.plan_report import plan_report

        warnings = [{"code": w.code, "message": w.message} for w in self.warnings]
        machine = read_rates(self.memory.budget.rates_name)
        policy = policy_of(self.request, self.options)
        advice = propose(self.request, self.plan.models, self.memory.budget, policy, machine)
        report = plan_report(self.plan, self.memory, machine)
        return {**report, "advice": advice.to_dict(), "warnings": warnings}

    def headline(self, *, picked: bool = True) -> str:
        """One line about the clip: size, length, sound, seed, preset.

        A random seed is named only where it is ``picked`` for good, not in a plan.
        """
        from latent_ladder.pipeline.plan_report import headline

        seed = "a random seed" if self.random_seed and not picked else None
        return headline(self.plan, seed)


def prepare(
    request: Request,
    library: Library,
    store: Store,
    memory: MemoryOptions | None = None,
    device: str = "auto",
    kind: str = "clip",
) -> Prepared:
    """Choose the models, plan stages and memory, collect warnings. Loads nothing heavy.

    Seed -1 becomes that of an unfinished run of the same request and ``kind``, else a random one.
    Raises what :func:`latent_ladder.pipeline.plan.make_plan` and :func:`fit_memory` raise.
    """
    models = select_models(library, request.models.choices, request.preset)
    check_preset(request, models, library)
    limits = training_range(models)
    request = with_windows(request, limits)
    unfinished = find_unfinished(store.runs, request, kind) if request.seed == -1 else None
    random_seed = request.seed == -1 and unfinished is None
    if unfinished is not None:
        request = request.model_copy(update={"seed": unfinished.request["seed"]})
    request = request.pick_seed()
    warnings = [Warned(a.code, a.message) for a in advise(request, limits)]
    warnings += [Warned("models", note) for note in (*models.notes, *preset_notes(request, models))]
    if request.auto_duration is not None:
        warnings.append(_auto_warning(request, find_duration_head(models, library)))
    memory = memory or MemoryOptions()
    models = with_decoder(models, request, partial(budget, memory, device))
    plan = make_plan(request, models, library)
    warnings += [Warned("inputs", note) for note in plan.notes]
    plan = mark_stored(plan, store, lambda name, d: warnings.append(damage_warning(name, d)))
    warnings += _prompt_warnings(request.prompt, models.text_encoder)
    fitted = fit_memory(plan, memory, device)
    tile = fitted.of("decode").offload_plan.tile_px
    if tile is not None:
        text = f"the clip is decoded in tiles of {tile} px to fit into memory; it differs a little"
        warnings.append(Warned("smaller_tiles", text))
    return Prepared(
        plan, store, fitted, memory, tuple(warnings), library, device, random_seed, unfinished
    )


def _auto_warning(request: Request, head: Component) -> Warned:
    text = (
        f"the length is predicted from the prompt by {head.file.path.name} when the clip is made; "
        f"planned for the longest, {float(request.resolved.duration_s):.2f} s"
    )
    return Warned("auto_duration", text)


def request_warnings(request: Request, models: ModelSet) -> list[Warned]:
    """Warnings about the request and its prompt with these models, before anything is planned."""
    found = [Warned(a.code, a.message) for a in advise(request, training_range(models))]
    return [*found, *_prompt_warnings(request.prompt, models.text_encoder)]


def _prompt_warnings(prompt: str, text_encoder: Component) -> Iterator[Warned]:
    report = token_report(prompt, text_encoder)
    if report.cut_text:
        is_short = len(report.cut_text) <= LONGEST_QUOTE
        text = report.cut_text if is_short else report.cut_text[: LONGEST_QUOTE - 1] + "…"
        yield Warned(
            "prompt_cut",
            f"the prompt has {report.n_tokens} tokens and the text encoder reads "
            f"{report.limit}: cut at {text!r}",
        )
    if report.unknown_words:
        words = ", ".join(report.unknown_words[:MOST_WORDS])
        yield Warned("unknown_words", f"the text encoder was not trained on these words: {words}")


def damage_warning(name: str, damage: DamagedArtefact) -> Warned:
    """Warning about the damaged artefact of the stage ``name``."""
    return Warned(
        "damaged_artefact",
        f"the stored result of {name} was damaged ({damage.reason}); it is made again",
    )


def fit_memory(plan: RunPlan, options: MemoryOptions, device: str) -> MemoryPlan:
    """Memory plan of every stage. Raises :class:`MemoryBudgetError`."""
    from latent_ladder.pipeline.plan_report import model_sizes

    available = budget(options, device)
    sizes = model_sizes(plan, available.value_bytes)
    policy = policy_of(plan.request, options)
    made = {"decode"} | {s.kind if s.kind == "prompt" else s.name for s in plan.missing_stages()}
    return plan_memory(plan.request, sizes, available, policy, made)


def policy_of(request: Request, options: MemoryOptions) -> Policy:
    """The fallbacks that the user allows."""
    return Policy(options.offload, options.changes, request.models.precision, options.fast)


def default_preset(library: Library, checkpoint: str | None = None) -> str:
    """Preset for the checkpoint that would be used: the one its header names, else 8 + 3 steps.

    Whether a transformer is distilled decides its hash or its name. Of LTX-2.3 one that is not
    known counts as dev if a distilled LoRA is found. Raises :class:`CheckpointError` for one of
    LTX-2.5 that may be either.
    """
    models = select_models(library, {"checkpoint": checkpoint} if checkpoint else {})
    if models.preset is not None:
        return models.preset
    training = transformer_training(models.transformer)
    if training is None and models.family == "2.5":
        names = (first_preset("2.5", each, has_lora=True) for each in ("distilled", "dev"))
        raise unknown_training_error(models.transformer, *names)
    return first_preset(models.family, training, has_lora=models.has_distilled_lora)
