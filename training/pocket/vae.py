"""The video VAE of the pocket model: a block transform as encoder, a small network as decoder.

The encoder is solved in closed form: the centre tap of every down-convolution has the principal
components of its input, so a latent depends only on its own block of 8 frames x 32 x 32 pixels. The
encoder therefore never changes, latents can be cached from the start, and encoding a window of a
picture gives a window of the picture's latents. The decoder is initialised with the inverse
transform and trained by gradient descent. Latents (B, C, F, H, W) are raw encoder outputs;
`normalize` converts them for the transformer.
"""

from __future__ import annotations

import dataclasses
import random
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from world import Scene, random_scene, render

if TYPE_CHECKING:
    from diffusers import AutoencoderKLLTX2Video

LATENT_CHANNELS = 64
ENCODER_CHANNELS = (128, 128, 256, 256)
ENCODER_LAYERS = (0, 0, 1, 0, 0)
DECODER_CHANNELS = (40, 80, 80, 160)
DECODER_LAYERS = (1, 1, 1, 1, 1)
ENCODER_CONSTANT = 300.0  # relative size of the constant channels, for a nearly linear RMS norm
CONSTANT = 3.0  # the same in the decoder, which trains and needs more nonlinearity


def build() -> AutoencoderKLLTX2Video:
    """The video VAE of LTX-2.3 at pocket width, with random weights."""
    from diffusers import AutoencoderKLLTX2Video  # optional: cache.py and others run without it

    return AutoencoderKLLTX2Video(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=ENCODER_CHANNELS,
        decoder_block_out_channels=DECODER_CHANNELS,
        layers_per_block=ENCODER_LAYERS,
        decoder_layers_per_block=DECODER_LAYERS,
        spatio_temporal_scaling=(True,) * 4,
        decoder_spatio_temporal_scaling=(True,) * 4,
        decoder_inject_noise=(False,) * 5,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        upsample_type=("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        upsample_residual=(False,) * 4,
        upsample_factor=(2, 2, 1, 2),
        timestep_conditioning=False,
        encoder_causal=True,
        decoder_causal=False,
        encoder_spatial_padding_mode="zeros",
        decoder_spatial_padding_mode="zeros",
    )


def config() -> dict[str, Any]:
    """The `vae` section of the header config (original layout)."""
    return {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": LATENT_CHANNELS,
        "encoder_blocks": [
            ["res_x", {"num_layers": ENCODER_LAYERS[0]}],
            ["compress_space_res", {"multiplier": 2}],
            ["res_x", {"num_layers": ENCODER_LAYERS[1]}],
            ["compress_time_res", {"multiplier": 1}],
            ["res_x", {"num_layers": ENCODER_LAYERS[2]}],
            ["compress_all_res", {"multiplier": 2}],
            ["res_x", {"num_layers": ENCODER_LAYERS[3]}],
            ["compress_all_res", {"multiplier": 1}],
            ["res_x", {"num_layers": ENCODER_LAYERS[4]}],
        ],
        "decoder_blocks": [
            ["res_x", {"num_layers": DECODER_LAYERS[0]}],
            ["compress_space", {"multiplier": 2}],
            ["res_x", {"num_layers": DECODER_LAYERS[1]}],
            ["compress_time", {"multiplier": 2}],
            ["res_x", {"num_layers": DECODER_LAYERS[2]}],
            ["compress_all", {"multiplier": 1}],
            ["res_x", {"num_layers": DECODER_LAYERS[3]}],
            ["compress_all", {"multiplier": 2}],
            ["res_x", {"num_layers": DECODER_LAYERS[4]}],
        ],
        "scaling_factor": 1.0,
        "norm_layer": "pixel_norm",
        "patch_size": 4,
        "latent_log_var": "uniform",
        "use_quant_conv": False,
        "causal_decoder": False,
        "timestep_conditioning": False,
        "normalize_latent_channels": False,
        "encoder_base_channels": LATENT_CHANNELS,
        "decoder_base_channels": DECODER_CHANNELS[0] // 2,
        "spatial_padding_mode": "zeros",
    }


STATISTICS = {"latents_mean": "mean-of-means", "latents_std": "std-of-means"}


def _double(found: re.Match[str]) -> str:
    return str(2 * int(found[1]))


def _double_plus_one(found: re.Match[str]) -> str:
    return str(2 * int(found[1]) + 1)


def _double_plus_two(found: re.Match[str]) -> str:
    return str(2 * int(found[1]) + 2)


def original_name(name: str) -> str:
    """Original name of a tensor of the diffusers video VAE."""
    if name in STATISTICS:
        return f"vae.per_channel_statistics.{STATISTICS[name]}"
    name = name.replace("resnets.", "res_blocks.")
    name = re.sub(r"(?<=encoder\.down_blocks\.)(\d+)\.downsamplers\.0", _double_plus_one, name)
    name = re.sub(r"(?<=encoder\.down_blocks\.)(\d+)(?=\.res_blocks)", _double, name)
    name = re.sub(r"(?<=decoder\.up_blocks\.)(\d+)\.upsamplers\.0", _double_plus_one, name)
    name = re.sub(r"(?<=decoder\.up_blocks\.)(\d+)(?=\.res_blocks)", _double_plus_two, name)
    name = name.replace("encoder.mid_block.", "encoder.down_blocks.8.")
    return "vae." + name.replace("decoder.mid_block.", "decoder.up_blocks.0.")


def from_original(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `build()` from a checkpoint's tensors, as float32."""
    return {n: tensors[original_name(n)].float() for n in build().state_dict()}


# ------------------------------------------------------------------------- encoding and decoding


def to_signal(pixels: Tensor) -> Tensor:
    """Pixels, uint8 (B, F, H, W, 3) -> signal, float (B, 3, F, H, W) in [-1, 1]."""
    return pixels.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)


def patches(video: Tensor) -> Tensor:
    """Signal (B, 3, F, H, W) -> 4 x 4 patches (B, 48, F, H/4, W/4) in the original order."""
    b, c, f, h, w = video.shape
    video = video.reshape(b, c, f, h // 4, 4, w // 4, 4)
    return video.permute(0, 1, 6, 4, 2, 3, 5).reshape(b, c * 16, f, h // 4, w // 4)


def _centre_tap_conv(conv: nn.Module, x: Tensor, causal: bool) -> Tensor:
    """Apply a convolution of which only the centre tap is not zero, as a matrix product."""
    weight = conv.conv.weight[:, :, 2 if causal else 1, 1, 1]
    out = torch.matmul(weight, x.flatten(2)) + conv.conv.bias[None, :, None]
    return out.reshape(x.shape[0], -1, *x.shape[2:])


def space_to_depth(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """(B, C, F, H, W) -> (B, C * stride product, ...), channel-major, then time, row, column."""
    x = x.unflatten(4, (-1, stride[2])).unflatten(3, (-1, stride[1])).unflatten(2, (-1, stride[0]))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def _down(block: nn.Module, x: Tensor) -> Tensor:
    """Apply a down-sampler whose convolution has only a centre tap."""
    x = torch.cat([x[:, :, : block.stride[0] - 1], x], dim=2)
    residual = space_to_depth(x, block.stride).unflatten(1, (-1, block.group_size)).mean(dim=2)
    return space_to_depth(_centre_tap_conv(block.conv, x, causal=True), block.stride) + residual


@dataclasses.dataclass(frozen=True)
class Transform:
    """The encoder as an affine map of blocks (3, 8, 32, 32).

    `weight` is (C, 3, 8, 32, 32), `bias` (C,).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, video: Tensor) -> Tensor:
        """Latents (B, C, F', H/32, W/32) of video (B, 3, F, H, W), F = 8k+1."""
        channels = self.weight.shape[0]
        flat = self.weight.reshape(channels, -1)
        first = self.weight.sum(2).reshape(channels, -1)
        head = space_to_depth(video[:, :, :1], (1, 32, 32))
        out = [torch.einsum("kc,bcfhw->bkfhw", first, head)]
        if video.shape[2] > 1:
            rest = space_to_depth(video[:, :, 1:], (8, 32, 32))
            out.append(torch.einsum("kc,bcfhw->bkfhw", flat, rest))
        return torch.cat(out, dim=2) + self.bias.view(1, -1, 1, 1, 1)


def transform(vae: AutoencoderKLLTX2Video, normalized: bool = False) -> Transform:
    """The encoder linearised around grey, for raw or `normalized` latents.

    The error is about a percent of the largest latent, since a large constant channel keeps the
    encoder's last normalisation and activation nearly linear.
    """
    count = LATENT_CHANNELS
    video = torch.zeros(count, 3, 9, 32, 32, requires_grad=True)
    latents = _encode(vae, video)[:, :, 1, 0, 0]
    (weight,) = torch.autograd.grad(latents.diagonal().sum(), video)
    weight, bias = weight[:, :, 1:].contiguous(), latents[0].detach()
    if normalized:
        bias = (bias - vae.latents_mean) / vae.latents_std
        weight = weight / vae.latents_std.view(-1, 1, 1, 1, 1)
    return Transform(weight, bias)


def _encode(vae: AutoencoderKLLTX2Video, video: Tensor) -> Tensor:
    """Latent means (B, C, F', H/32, W/32) of video, at a twentieth of the cost of `vae.encoder`.

    Equal to it as long as its residual blocks are inactive and its convolutions have only a centre
    tap.
    """
    encoder = vae.encoder
    x = _centre_tap_conv(encoder.conv_in, patches(video), causal=True)
    for block in encoder.down_blocks:
        x = _down(block.downsamplers[0], x)
    x = _centre_tap_conv(encoder.conv_out, encoder.conv_act(encoder.norm_out(x)), causal=True)
    return x[:, :LATENT_CHANNELS]


def normalize(vae: AutoencoderKLLTX2Video, latents: Tensor) -> Tensor:
    """Raw latents -> normalised latents, as the transformer uses them."""
    shape = (1, -1, 1, 1, 1)
    return (latents - vae.latents_mean.view(shape)) / vae.latents_std.view(shape)


def denormalize(vae: AutoencoderKLLTX2Video, latents: Tensor) -> Tensor:
    """Normalised latents -> raw latents."""
    shape = (1, -1, 1, 1, 1)
    return latents * vae.latents_std.view(shape) + vae.latents_mean.view(shape)


def decode(vae: AutoencoderKLLTX2Video, latents: Tensor) -> Tensor:
    """Raw latents -> uint8 frames (B, F, H, W, 3)."""
    video = vae.decoder(latents)
    return video.add(1).mul(127.5).add(0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)


# -------------------------------------------------------------------------- closed-form solution


def _rows(x: Tensor, limit: int = 60_000) -> Tensor:
    """(B, C, F, H, W) -> rows (N, C), at most about `limit` of them."""
    rows = x.movedim(1, -1).reshape(-1, x.shape[1])
    step = max(1, len(rows) // limit)
    return rows[::step]


def _pca(rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Principal components (count, C) of rows, their mean (C,) and variances, largest first."""
    mean = rows.mean(0)
    covariance = torch.cov((rows - mean).T.double())
    values, vectors = torch.linalg.eigh(covariance)
    order = values.argsort(descending=True)[:count]
    return vectors[:, order].T.float(), mean, values[order].clamp(min=0).float()


def _zero(conv: nn.Module) -> None:
    nn.init.zeros_(conv.conv.weight)
    nn.init.zeros_(conv.conv.bias)


def _disable_residual_blocks(model: nn.Module, scale: float = 0.5) -> None:
    """Set residual blocks to add nothing: their second convolution is zero."""
    for name, module in model.named_modules():
        if name.endswith("conv1"):
            fan_in = module.conv.weight[0].numel()
            nn.init.normal_(module.conv.weight, std=scale * fan_in**-0.5)
            nn.init.zeros_(module.conv.bias)
        if name.endswith("conv2"):
            _zero(module)


def _ridge(x: Tensor, y: Tensor, strength: float = 1e-4) -> Tensor:
    """Ridge regression weights (K, D) from rows x (N, K) to rows y (N, D)."""
    gram = (x.T @ x).double()
    gram += strength * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.double)
    return torch.linalg.solve(gram, (x.T @ y).double()).float()


@torch.no_grad()
def solve_encoder(vae: AutoencoderKLLTX2Video, clips: list[Tensor]) -> None:
    """Set all encoder weights and the latent statistics from clips (B, 3, F, H, W)."""
    encoder = vae.encoder
    _disable_residual_blocks(encoder)
    _zero(encoder.conv_in)
    encoder.conv_in.conv.weight[:48, :, 2, 1, 1] = torch.eye(48)
    xs = [_centre_tap_conv(encoder.conv_in, patches(v), causal=True) for v in clips]
    for i, block in enumerate(encoder.down_blocks):
        down = block.downsamplers[0]
        count = down.conv.conv.out_channels
        last = i == len(encoder.down_blocks) - 1
        rows = torch.cat([_rows(x, 40_000) for x in xs])
        basis, mean, variances = _pca(rows, count - 1 if last else count)
        _zero(down.conv)
        gain = 4.0  # makes the convolution outweigh the down-sampler's averaging path
        down.conv.conv.weight[: len(basis), :, 2, 1, 1] = gain * basis
        down.conv.conv.bias[: len(basis)] = -gain * basis @ mean
        if last:
            down.conv.conv.bias[-1] = ENCODER_CONSTANT * gain * float(variances.sum()) ** 0.5
        xs = [_down(down, x) for x in xs]
    _solve_latents(vae, xs, clips)


def _solve_latents(vae: AutoencoderKLLTX2Video, xs: list[Tensor], clips: list[Tensor]) -> None:
    """Set conv_out by reduced-rank regression of a block's pixels, and the latent statistics.

    Latents are in order of importance. A raw latent's variance is its share of the pixels' variance
    to the power 1/2, a normalised latent's to the power 1/4: this compresses the differences but
    keeps the order.
    """
    encoder, later = vae.encoder, slice(1, None)
    active = [encoder.conv_act(encoder.norm_out(x))[:, :-8, later] for x in xs]
    # the last eight channels carry the constant
    features = torch.cat([x.movedim(1, -1).flatten(0, -2) for x in active])
    blocks = [space_to_depth(v[:, :, later], (8, 32, 32)) for v in clips]
    pixels = torch.cat([b.movedim(1, -1).flatten(0, -2) for b in blocks])
    mean = features.mean(0)
    solution = _ridge(features - mean, pixels - pixels.mean(0), 1e-5)
    predicted = solution.double() @ solution.T.double()
    covariance = torch.cov((features - mean).T.double())
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    inverse = vectors * values.clamp(min=values.max() * 1e-10).rsqrt() @ vectors.T
    shares, directions = torch.linalg.eigh(root @ predicted @ root)
    order = shares.argsort(descending=True)[:LATENT_CHANNELS]
    whitened = (inverse @ directions[:, order]).T.float()  # unit variance
    scale = (shares[order] / shares[order].sum()).float().clamp(min=1e-6).sqrt().sqrt()
    _zero(encoder.conv_out)
    weight = nn.functional.pad(scale[:, None] * whitened, (0, 8))
    encoder.conv_out.conv.weight[:LATENT_CHANNELS, :, 2, 1, 1] = weight
    encoder.conv_out.conv.bias[:LATENT_CHANNELS] = -scale * (whitened @ mean)
    encoder.conv_out.conv.bias[-1] = -10.0
    vae.latents_mean.zero_()
    vae.latents_std.copy_(scale.sqrt() * (LATENT_CHANNELS**-0.25) ** 0.5)


@torch.no_grad()
def solve_decoder(vae: AutoencoderKLLTX2Video, clips: list[Tensor]) -> None:
    """Set the decoder to the inverse transform, from the finest level to the coarsest."""
    decoder = vae.decoder
    _disable_residual_blocks(decoder, scale=1.0)
    _zero(decoder.conv_in)
    targets = [patches(v) for v in clips]
    chain = [decoder.conv_out, *(b.upsamplers[0] for b in reversed(decoder.up_blocks))]
    for layer in chain[1:]:
        count = chain[0].conv.in_channels if layer is chain[1] else None
        targets = _solve_upsampler(layer, targets, count)
    with torch.enable_grad():
        encode = transform(vae)
    latents = [encode(v) for v in clips]
    _solve_conv_in(decoder.conv_in, latents, targets)
    _solve_conv_out(decoder, latents, clips)


def _solve_upsampler(
    layer: nn.Module, finer: list[Tensor], patch_count: int | None
) -> list[Tensor]:
    """Set one up-sampler to the inverse PCA of its targets; returns the targets of its input.

    The finest level first reduces the 48 numbers of a 4 x 4 patch to the width before conv_out
    (`patch_count`). The last input channel is a constant that every level passes on.
    """
    if patch_count is not None:
        basis, mean, _ = _pca(torch.cat([_rows(x) for x in finer]), patch_count - 1)
        finer = [_project_to_basis(x, basis, mean) for x in finer]
        finer = [_append_constant(x) for x in finer]
    stride = layer.stride
    coarse = [space_to_depth(torch.cat([x[:, :, : stride[0] - 1], x], 2), stride) for x in finer]
    count = layer.conv.conv.in_channels - 1
    rows = torch.cat([_rows(x) for x in coarse])
    basis, mean, variances = _pca(rows, count)
    size = variances.mean().sqrt()
    features = [_append_constant(_project_to_basis(x, basis, mean) / size) for x in coarse]
    constant = float(features[0][0, -1, 0, 0, 0])
    _zero(layer.conv)
    layer.conv.conv.weight[:, :-1, 1, 1, 1] = basis.T * size
    layer.conv.conv.weight[:, -1, 1, 1, 1] = mean / constant
    return features


def _project_to_basis(x: Tensor, basis: Tensor, mean: Tensor) -> Tensor:
    return torch.einsum("kc,bcfhw->bkfhw", basis, x - mean.view(1, -1, 1, 1, 1))


def _append_constant(x: Tensor) -> Tensor:
    """Append a channel that dominates the RMS over channels."""
    return torch.cat([x, torch.full_like(x[:, :1], CONSTANT * x.shape[1] ** 0.5)], dim=1)


def _windows(x: Tensor) -> Tensor:
    """3 x 3 x 3 neighbourhoods and a one, rows (N, C * 27 + 1), with non-causal padding."""
    x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)
    x = nn.functional.pad(x, (1, 1, 1, 1))
    x = x.unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1)
    rows = x.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(0, 3)
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)


def _set_convolution(conv: nn.Module, solution: Tensor) -> None:
    conv.conv.weight.copy_(solution[:-1].T.reshape(conv.conv.weight.shape))
    conv.conv.bias.copy_(solution[-1])


def _solve_conv_in(conv: nn.Module, latents: list[Tensor], targets: list[Tensor]) -> None:
    x = torch.cat([_windows(z) for z in latents])
    y = torch.cat([t.movedim(1, -1).flatten(0, -2) for t in targets])
    _set_convolution(conv, _ridge(x, y))


def _solve_conv_out(decoder: nn.Module, latents: list[Tensor], clips: list[Tensor]) -> None:
    """Set conv_out to a ridge regression from the decoder's actual activations."""
    seen: list[Tensor] = []
    hook = decoder.conv_act.register_forward_hook(lambda _m, _i, out: seen.append(out))
    gram, cross = 0.0, 0.0
    for z, clip in zip(latents, clips, strict=True):
        for i in range(0, len(z), 4):
            decoder(z[i : i + 4])
            for act, target in zip(seen.pop(), patches(clip[i : i + 4]), strict=True):
                act, target = act[None, :, 4:12], target[None, :, 4:12]
                top = random.Random(i).randrange(0, act.shape[3] - 15)
                x = _windows(act[..., top : top + 16, :])
                y = target[..., top : top + 16, :].movedim(1, -1).flatten(0, -2)
                x, y = x.double(), y.double()  # the constants would hide small directions
                gram, cross = gram + x.T @ x, cross + x.T @ y
    hook.remove()
    gram = gram.double() + 1e-5 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.double)
    _set_convolution(decoder.conv_out, torch.linalg.solve(gram, cross.double()).float())


def sample_clips(rng: random.Random, counts: dict[int, int], frames: int = 17) -> list[Tensor]:
    """Signals (B, 3, frames, 128, 128): random windows of `counts[size]` clips of `size` px."""
    batches = []
    for size, count in counts.items():
        crops = []
        for _ in range(count):
            top, left = (32 * rng.randrange(size // 32 - 3) for _ in range(2))
            crops.append(render([random_scene(rng)], frames, size, crop=(top, left, 128, 128)))
        batches.append(to_signal(torch.cat(crops)))
    return batches


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of two uint8 tensors."""
    error = (a.float() - b.float()).square().mean()
    return float(10 * torch.log10(255.0**2 / error))


def reconstruction_loss(out: Tensor, video: Tensor, only_mse: bool) -> Tensor:
    """L1 + MSE / 2 + 0.7 x L1 of the gradients along x, y and t; the MSE alone to begin with."""
    error = out - video
    mse = error.square().mean()
    if only_mse:
        return mse
    gradients = sum(error.diff(dim=d).abs().mean() for d in (2, 3, 4))
    return error.abs().mean() + 0.5 * mse + 0.7 * gradients


@torch.no_grad()
def score(vae: AutoencoderKLLTX2Video, scenes: list[Scene], size: int, frames: int = 25) -> float:
    """Mean PSNR in dB of scenes encoded and decoded at `size` px."""
    values = []
    for scene in scenes:
        pixels = render([scene], frames, size)
        latents = _encode(vae, to_signal(pixels))
        values.append(psnr(decode(vae, latents), pixels))
    return sum(values) / len(values)
