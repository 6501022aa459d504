"""Upscaling networks from files: the compact one by ourselves, all others through spandrel.

A file as torch.save writes it is a pickle. It is read by torch.load with ``weights_only=True``,
which makes nothing but tensors and plain containers and refuses everything else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import CheckpointError, CorruptCheckpoint, UnknownLayout
from latent_ladder.upscale.srvgg import load_compact

EXTRA = "pip install 'latent-ladder[upscale]'"
_WRAPPED = ("params_ema", "params", "state_dict", "model_state_dict")
"""Names under which training programs keep the weights, the better ones first."""


@dataclass(frozen=True)
class UpscalingNetwork:
    """A loaded network: ``run`` makes (n, 3, H, W) 0..1 into (n, 3, H * scale, W * scale).

    Sides of what goes in must be multiples of ``multiple`` and at least ``least``.
    """

    run: Callable[[Tensor], Tensor]
    scale: int
    architecture: str
    multiple: int = 1
    least: int = 1
    dtype: torch.dtype = torch.float32


def load_network(
    component: Component, *, device: torch.device, dtype: torch.dtype
) -> UpscalingNetwork:
    """The network in a file of ``upscale_models/``.

    Raises :class:`UnknownLayout` for what is no upscaler, or one whose form needs spandrel where
    that is not installed, and :class:`CorruptCheckpoint` for damaged files.
    """
    state = _state(component)
    compact = load_compact(state, dtype)
    if compact is not None:
        return UpscalingNetwork(compact.to(device), compact.scale, "Compact", dtype=dtype)
    return _through_spandrel(component, state, device, dtype)


def _state(component: Component) -> dict[str, Tensor]:
    """The weights of a file, on the CPU, without the wrappings of training programs."""
    file = component.file
    if file.container != "pickle":
        state: Mapping[str, Any] = {name: file.read(name) for name in file.tensors}
    else:
        try:
            state = torch.load(file.path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            raise UnknownLayout(
                f"{file.path.name} holds more than weights, and such a pickle can run any code: "
                "it is not read",
                "use a .safetensors file of the same model",
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            raise CorruptCheckpoint(
                f"{file.path.name} cannot be read as weights", "download the file again"
            ) from error
    for name in _WRAPPED:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
            break
    found = {
        str(name).removeprefix("module."): value
        for name, value in (state.items() if isinstance(state, Mapping) else ())
        if isinstance(value, Tensor)
    }
    if not found:
        raise not_an_upscaler(component, "it holds no weights")
    return found


def not_an_upscaler(component: Component, why: str) -> CheckpointError:
    """The error for a file of anything else."""
    return UnknownLayout(
        f"{component.file.path.name} is not an upscaler: {why}",
        "use lanczos, or an upscaling model such as realesr-animevideov3",
    )


# --- spandrel -----------------------------------------------------------------------------------


def _through_spandrel(
    component: Component, state: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> UpscalingNetwork:
    name = component.file.path.name
    spandrel = import_spandrel()
    if spandrel is None:
        raise UnknownLayout(
            f"{name} is not of the compact form, and all others need spandrel", EXTRA
        )
    try:
        model = spandrel.ModelLoader(device=device).load_from_state_dict(dict(state))
    except spandrel.UnsupportedModelError as error:
        raise not_an_upscaler(component, "spandrel does not know its weights") from error
    except (RuntimeError, KeyError, ValueError) as error:
        raise CorruptCheckpoint(f"{name} is damaged: {error}", "download it again") from error
    if not isinstance(model, spandrel.ImageModelDescriptor) or model.input_channels != 3:
        raise not_an_upscaler(component, f"{model.architecture.id} does not turn RGB into RGB")
    supported = {torch.float16: model.supports_half, torch.bfloat16: model.supports_bfloat16}
    chosen = dtype if supported.get(dtype, True) else torch.float32
    model = model.to(device=device, dtype=chosen).eval()
    needs = model.size_requirements
    return UpscalingNetwork(
        model,
        model.scale,
        str(model.architecture.id),
        multiple=max(needs.multiple_of, 1),
        least=max(needs.minimum, 1),
        dtype=chosen,
    )


def import_spandrel() -> Any | None:
    """The module, or ``None`` where it is not installed.

    It needs three functions of torchvision for architectures that do not upscale. Where
    torchvision is missing, or was built for another torch and fails, empty ones stand in for the
    import only.
    """
    if "spandrel" in sys.modules:
        return sys.modules["spandrel"]
    try:
        with _torchvision():
            import spandrel
    except ImportError:
        return None
    return spandrel


@contextmanager
def _torchvision() -> Iterator[None]:
    """torchvision where it works, else stand-ins that are gone after the block."""
    try:
        import torchvision.transforms.functional  # noqa: F401
    except (ImportError, RuntimeError):
        _forget_torchvision()
    else:
        yield
        return
    sys.modules |= _stand_ins()
    try:
        yield
    finally:
        _forget_torchvision()


def _forget_torchvision() -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


def _stand_ins() -> dict[str, ModuleType]:
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    modules = {name: ModuleType(name) for name in names}

    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("this architecture needs a working torchvision")

    last = modules[names[-1]]
    for name in ("rotate", "normalize"):
        setattr(last, name, missing)
    last.InterpolationMode = type("InterpolationMode", (), {"NEAREST": 0, "BILINEAR": 2})  # type: ignore[attr-defined]
    for name in names[1:]:
        parent, _, own = name.rpartition(".")
        setattr(modules[parent], own, modules[name])
    return modules
