"""Selection of an earlier clip or draft, named ``RUN`` or ``RUN:3``, to continue from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latent_ladder.checkpoints.selection import EMBEDDED
from latent_ladder.drafts.seeds import DraftChoice, draft_request
from latent_ladder.errors import RequestError, StoreError
from latent_ladder.pipeline.events import Warned
from latent_ladder.pipeline.plan import RunPlan
from latent_ladder.pipeline.run import Prepared
from latent_ladder.request.model import Request, override
from latent_ladder.request.overrides import apply_sets
from latent_ladder.storage.artifact_store import Store
from latent_ladder.storage.run_records import DraftRecord, RunRecord


@dataclass(frozen=True)
class Chosen:
    """One clip of the store: ``draft`` is ``None`` for a run that made a whole clip."""

    record: RunRecord
    draft: DraftRecord | None
    request: Request

    @property
    def name(self) -> str:
        """Name for the command line: ``RUN`` or ``RUN:3``."""
        return self.record.id if self.draft is None else f"{self.record.id}:{self.draft.number}"

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the artefacts it was made from."""
        return self.record.keys if self.draft is None else frozenset(self.draft.keys)


def choose(store: Store, name: str) -> Chosen:
    """Find ``RUN`` or ``RUN:3``. RUN is an id, the unique start of one, or ``last``.

    ``last:3`` is draft 3 of the newest session of drafts or sweep. Raises :class:`StoreError` for
    an unknown run, :class:`RequestError` for a draft that does not exist or failed.
    """
    run, colon, number = name.partition(":")
    record = _newest_drafts(store) if colon and run == "last" else store.runs.find(run)
    request = Request.from_dict(record.request)
    if not record.drafts:
        if colon:
            raise RequestError(f"run {record.id} is one clip, it has no drafts", f"use {record.id}")
        return Chosen(record, None, request)
    draft = _draft(record, number if colon else "")
    if draft.status == "failed":
        raise RequestError(
            f"draft {draft.number} of run {record.id} failed: {draft.error}",
            "choose another one, or make it again with `ladder draft`",
        )
    if record.kind == "sweep":
        return Chosen(record, draft, Request.from_dict(apply_sets(request.to_dict(), draft.sets)))
    return Chosen(record, draft, draft_request(request, DraftChoice(draft.prompt, draft.seed)))


def _newest_drafts(store: Store) -> RunRecord:
    records, _ = store.runs.list()
    found = next((r for r in records if r.drafts), None)
    if found is None:
        raise StoreError(
            f"there are no drafts in {store.root}", 'make some: ladder draft "..." --seeds 8'
        )
    return found


def _draft(record: RunRecord, number: str) -> DraftRecord:
    count = len(record.drafts)
    if not number and count == 1:
        return record.drafts[0]
    known = {str(draft.number): draft for draft in record.drafts}
    if number in known:
        return known[number]
    problem = f"{number!r} is none of them" if number else "say which"
    hint = f"use {record.id}:1" if count == 1 else f"use {record.id}:1 to {record.id}:{count}"
    raise RequestError(f"run {record.id} has {count} drafts, {problem}", hint)


def searched_folders(chosen: Chosen) -> list[Path]:
    """The model folders that the clip's run searched, if they still exist."""
    recorded = (Path(folder) for folder in chosen.record.folders)
    return [folder for folder in recorded if folder != EMBEDDED and folder.is_dir()]


def with_changes(chosen: Chosen, sets: Sequence[str] = (), audio: str | None = None) -> Request:
    """The clip's request with fields of its later stages changed. Raises RequestError."""
    fields: dict[str, Any] = chosen.request.to_dict()
    if audio is not None:
        fields = override(fields, {"audio": audio})
    return Request.from_dict(apply_sets(fields, tuple(sets)))


def from_stage_1(chosen: Chosen, prepared: Prepared) -> Prepared:
    """Check that ``prepared`` continues from the chosen clip's stage 1.

    A warning is added if stage 1 has to be made again.

    Raises :class:`RequestError` if its request or its models would make another stage 1.
    """
    base = next((s for s in prepared.plan.stages if s.kind == "base"), None)
    if base is None:
        raise RequestError(
            f"{chosen.name} has no stage 1: it enlarged a video, or started from one",
            "run its own command again; `ladder runs show` prints it",
        )
    if base.key not in chosen.keys:
        raise _stage_1_error(chosen, prepared.plan)
    if base.stored or base not in prepared.plan.missing_stages():
        return prepared
    gone = Warned(
        "pruned_draft",
        f"the latents of {chosen.name} were removed from the store; stage 1 runs again",
    )
    return replace(prepared, warnings=(*prepared.warnings, gone))


def _stage_1_error(chosen: Chosen, plan: RunPlan) -> RequestError:
    """Error that says why stage 1 would differ from the chosen one."""
    before, after = _stage_1(chosen.request), _stage_1(plan.request)
    fields = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    if not fields:
        folders = ", ".join(chosen.record.folders) or "other folders"
        return RequestError(
            f"{chosen.name} was made with other models than the ones found now",
            f"name the folder that holds them with --models; it was made from {folders}",
        )
    return RequestError(
        f"{chosen.name} cannot be refined with another {', '.join(fields)}: that changes stage 1",
        "use `ladder draft` or `ladder make` for another stage 1",
    )


def _stage_1(request: Request) -> dict[str, Any]:
    return request.prompt_fields() | request.stage_fields(0)


def output_names(chosen: Sequence[Chosen], output: Path | None) -> list[Path]:
    """Paths of the clips: one file for one clip, else a folder (the working folder if none).

    A missing folder is created when the first clip is written. Raises :class:`RequestError` for
    one file and several clips.
    """
    is_file = output is not None and bool(output.suffix) and not output.is_dir()
    if output is not None and is_file:
        if len(chosen) > 1:
            raise RequestError(
                f"output {output} is one file for {len(chosen)} clips", "name a folder with -o"
            )
        return [output]
    folder = output or Path()
    return [folder / f"{c.name.replace(':', '-')}-seed{c.request.seed}.mp4" for c in chosen]
