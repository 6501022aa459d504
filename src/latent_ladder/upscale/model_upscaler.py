"""Loader of upscaling networks: the compact architecture is built in, spandrel loads all others.

A file of torch.save is a pickle. It is read by torch.load with ``weights_only=True``, which creates
only tensors and plain containers and refuses everything else.
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

INSTALL_COMMAND = "pip install 'latent-ladder[upscale]'"
_STATE_DICT_KEYS = ("params_ema", "params", "state_dict", "model_state_dict")
"""Keys under which training programs store the weights, the preferred ones first."""


@dataclass(frozen=True)
class UpscalingNetwork:
    """A loaded network: ``run`` maps (n, 3, H, W) in 0..1 to (n, 3, H * scale, W * scale).

    H and W must be multiples of ``multiple`` and at least ``min_side``.
    """

    run: Callable[[Tensor], Tensor]
    scale: int
    architecture: str
    multiple: int = 1
    min_side: int = 1
    dtype: torch.dtype = torch.float32


def load_network(
    component: Component, *, device: torch.device, dtype: torch.dtype
) -> UpscalingNetwork:
    """Load the network in a file of ``upscale_models/``.

    Raises :class:`UnknownLayout` for a file that is not an upscaler, or that needs spandrel while
    it is not installed, and :class:`CorruptCheckpoint` for a damaged file.
    """
    state = _read_state_dict(component)
    compact = load_compact(state, dtype)
    if compact is not None:
        return UpscalingNetwork(compact.to(device), compact.scale, "Compact", dtype=dtype)
    return _load_with_spandrel(component, state, device, dtype)


def _read_state_dict(component: Component) -> dict[str, Tensor]:
    """The weights of a file on the CPU, without the outer keys of training programs."""
    file = component.file
    if file.container != "pickle":
        state: Mapping[str, Any] = {name: file.read(name) for name in file.tensors}
    else:
        try:
            state = torch.load(file.path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            raise UnknownLayout(
                f"{file.path.name} contains more than weights; such a pickle can run any code when "
                "it is loaded and is therefore never read",
                "use a .safetensors file of the same model",
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            raise CorruptCheckpoint(
                f"{file.path.name} cannot be read as weights", "download the file again"
            ) from error
    for name in _STATE_DICT_KEYS:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
            break
    found = {
        str(name).removeprefix("module."): value
        for name, value in (state.items() if isinstance(state, Mapping) else ())
        if isinstance(value, Tensor)
    }
    if not found:
        raise not_an_upscaler_error(component, "it contains no weights")
    return found


def not_an_upscaler_error(component: Component, why: str) -> CheckpointError:
    """The error for a file that is not an upscaling network; ``why`` completes the message."""
    return UnknownLayout(
        f"{component.file.path.name} is not an upscaler: {why}",
        "use lanczos, or an upscaling model such as realesr-animevideov3",
    )


# --- spandrel -----------------------------------------------------------------------------------


def _load_with_spandrel(
    component: Component, state: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> UpscalingNetwork:
    name = component.file.path.name
    spandrel = import_spandrel()
    if spandrel is None:
        raise UnknownLayout(
            f"{name} is not a compact network (SRVGGNetCompact), and all others need spandrel, "
            "which is not installed",
            INSTALL_COMMAND,
        )
    try:
        model = spandrel.ModelLoader(device=device).load_from_state_dict(dict(state))
    except spandrel.UnsupportedModelError as error:
        raise not_an_upscaler_error(component, "spandrel does not know its weights") from error
    except (RuntimeError, KeyError, ValueError) as error:
        raise CorruptCheckpoint(f"{name} is damaged: {error}", "download it again") from error
    if not isinstance(model, spandrel.ImageModelDescriptor) or model.input_channels != 3:
        raise not_an_upscaler_error(component, f"{model.architecture.id} does not map RGB to RGB")
    supported = {torch.float16: model.supports_half, torch.bfloat16: model.supports_bfloat16}
    chosen = dtype if supported.get(dtype, True) else torch.float32
    model = model.to(device=device, dtype=chosen).eval()
    needs = model.size_requirements
    return UpscalingNetwork(
        model,
        model.scale,
        str(model.architecture.id),
        multiple=max(needs.multiple_of, 1),
        min_side=max(needs.minimum, 1),
        dtype=chosen,
    )


def import_spandrel() -> Any | None:
    """The module spandrel, or ``None`` if it is not installed.

    It imports three functions of torchvision for architectures that do not upscale. If torchvision
    is missing, or fails because it was built for another torch, placeholder modules replace it
    during the import.
    """
    if "spandrel" in sys.modules:
        return sys.modules["spandrel"]
    try:
        with _importable_torchvision():
            import spandrel
    except ImportError:
        return None
    return spandrel


@contextmanager
def _importable_torchvision() -> Iterator[None]:
    """Make ``import torchvision`` work inside the block, with placeholders if it is missing."""
    try:
        import torchvision.transforms.functional  # noqa: F401
    except (ImportError, RuntimeError):
        _unload_torchvision()
    else:
        yield
        return
    sys.modules |= _placeholder_modules()
    try:
        yield
    finally:
        _unload_torchvision()


def _unload_torchvision() -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


def _placeholder_modules() -> dict[str, ModuleType]:
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
