"""Requests exported as ComfyUI graphs are valid files and import without a loss."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from latent_ladder.comfyui.conversion import Format, export_workflow, import_workflow
from latent_ladder.comfyui.exporter.exporter import build_graph
from latent_ladder.comfyui.exporter.file_names import file_names_for, published_names
from latent_ladder.comfyui.formats.read import workflow_from_document
from latent_ladder.comfyui.graph import Graph
from latent_ladder.comfyui.importer.importer import import_graph
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.errors import RequestError
from latent_ladder.request.model import Request
from latent_ladder.request.output import Decode
from latent_ladder.request.presets import preset_names
from latent_ladder.request.stages import BaseStage, RefineStage, UpsampleStage

PROMPT = "A red ball rolls across a wooden table."


def preset(name: str, **changes: Any) -> Request:
    return Request.from_preset(name, prompt=PROMPT, **changes)


def export(request: Request, form: Format = "ui") -> Any:
    """Return the exported document after a round trip through JSON."""
    return json.loads(json.dumps(export_workflow(request, published_names(request), form)))


def with_inputs() -> Request:
    """Return a request with images, audio, a rational frame rate and tiled decoding."""
    return preset(
        "three-stage",
        fps="24000/1001",
        frames=49,
        images=[
            {"file": "/somewhere/first.png", "strength": 0.7},
            {"file": "middle.png", "frame": 20, "strength": 0.5, "crf": 0},
            {"file": "last.png", "frame": -1, "fit": "letterbox"},
        ],
        audio_in="speech.wav",
        decode={"tile_px": 512, "overlap_px": 64, "tile_frames": 32},
    )


# -- validity, checked independently of the exporter ----------------------------------------------


def find_flaws(ui: Mapping[str, Any]) -> Iterator[str]:
    """Yield the violations of the UI format's rules in a document."""
    nodes = {node["id"]: node for node in ui["nodes"]}
    if len(nodes) != len(ui["nodes"]):
        yield "an id occurs twice"
    if ui["last_node_id"] < max(nodes) or ui["version"] != 0.4:
        yield "last_node_id or version"
    if sorted(n["order"] for n in nodes.values()) != list(range(len(nodes))):
        yield "the orders are not 0, 1, 2, ..."
    seen: dict[int, list[Any]] = {}
    for link in ui["links"]:
        number, source, source_slot, target, target_slot, kind = link
        seen[number] = link
        origin = nodes[source]["outputs"][source_slot]
        end = nodes[target]["inputs"][target_slot]
        if number not in (origin["links"] or []):
            yield f"link {number} is not in its output"
        if end["link"] != number:
            yield f"link {number} is not in its input"
        if kind != origin["type"] or end["type"] not in (kind, "*"):
            numbers = {"INT", "FLOAT"}
            if not {kind, end["type"]} <= numbers and "," not in end["type"]:
                yield f"link {number} joins {kind} and {end['type']}"
        if nodes[source]["order"] >= nodes[target]["order"]:
            yield f"link {number} runs backwards"
    if len(seen) != len(ui["links"]) or ui["last_link_id"] < max(seen):
        yield "link ids"
    for node in nodes.values():
        yield from find_node_flaws(node, seen)


def find_node_flaws(node: Mapping[str, Any], links: Mapping[int, Any]) -> Iterator[str]:
    where = f"node {node['id']} ({node['type']})"
    if node["mode"] != 0 or not isinstance(node["flags"], dict):
        yield f"{where}: mode or flags"
    for entry in node["inputs"]:
        if entry["link"] is not None and entry["link"] not in links:
            yield f"{where}: a link that is not in the table"
    for entry in node["outputs"]:
        if not all(number in links for number in entry["links"] or []):
            yield f"{where}: a link that is not in the table"
    if node["type"] == "MarkdownNote":
        return
    kind = NODE_TYPES[node["type"]]
    if [(o["name"], o["type"]) for o in node["outputs"]] != [
        (o.name, o.type) for o in kind.outputs
    ]:
        yield f"{where}: outputs"
    values = list(node["widgets_values"])
    named: dict[str, Any] = {}
    for one in kind.inputs:
        if not one.is_widget:
            continue
        if not values and not one.required:  # its default, which ComfyUI adds
            named[one.name] = one.default
            continue
        named[one.name] = values.pop(0)
        for extra in one.extra_widgets:
            value = values.pop(0)
            if extra == "control_after_generate" and value not in ("fixed", "randomize"):
                yield f"{where}: {value!r} is no value of control_after_generate"
        for sub in one.option_inputs.get(str(named[one.name]), ()):
            named[sub.name] = values.pop(0) if values or sub.required else sub.default
    if values:
        yield f"{where}: {len(values)} values too many"
    for one in kind.inputs:
        if one.required and not one.is_widget and one.name not in linked_inputs(node):
            yield f"{where}: {one.name} is not connected"
        value = named.get(one.name)
        numeric: dict[str, type | tuple[type, ...]] = {
            "INT": int,
            "FLOAT": (int, float),
            "STRING": str,
            "BOOLEAN": bool,
        }
        if one.is_widget and one.type in numeric and not isinstance(value, numeric[one.type]):
            yield f"{where}: {one.name}={value!r}"
        if one.options and value not in one.options:
            yield f"{where}: {one.name}={value!r} is not one of its options"


def linked_inputs(node: Mapping[str, Any]) -> set[str]:
    return {entry["name"] for entry in node["inputs"] if entry["link"] is not None}


def find_overlaps(ui: Mapping[str, Any]) -> Iterator[str]:
    """Yield overlapping nodes (title bars included) and nodes that are not in exactly one group."""
    boxes = [
        (n["id"], n["pos"][0], n["pos"][1] - 30, n["size"][0], n["size"][1] + 30)
        for n in ui["nodes"]
    ]
    for i, (a, ax, ay, aw, ah) in enumerate(boxes):
        for b, bx, by, bw, bh in boxes[i + 1 :]:
            if ax < bx + bw and bx < ax + aw and ay < by + bh and by < ay + ah:
                yield f"nodes {a} and {b} overlap"
        inside = [
            g["title"]
            for g in ui["groups"]
            if g["bounding"][0] <= ax
            and g["bounding"][1] <= ay
            and ax + aw <= g["bounding"][0] + g["bounding"][2]
            and ay + ah <= g["bounding"][1] + g["bounding"][3]
        ]
        if len(inside) != 1:
            yield f"node {a} is in {inside}"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_valid_file(name: str) -> None:
    ui = export(preset(name))
    assert list(find_flaws(ui)) == []
    assert list(find_overlaps(ui)) == []
    assert workflow_from_document(ui).graph.to_api().keys() == export(preset(name), "api").keys()


def test_a_graph_with_everything_is_a_valid_file() -> None:
    ui = export(with_inputs())
    assert list(find_flaws(ui)) == []
    assert list(find_overlaps(ui)) == []


def test_the_validator_finds_errors() -> None:
    ui = export(preset("distilled"))
    ui["links"][3][4] += 1
    assert any("is not in its input" in flaw for flaw in find_flaws(ui))
    ui = export(preset("distilled"))
    noise = next(n for n in ui["nodes"] if n["type"] == "RandomNoise")
    noise["widgets_values"].pop()
    with pytest.raises(IndexError):
        list(find_flaws(ui))


@pytest.mark.parametrize("name", preset_names())
def test_links_go_from_left_to_right(name: str) -> None:
    ui = export(preset(name))
    nodes = {node["id"]: node for node in ui["nodes"]}
    for _, source, _, target, _, _ in ui["links"]:
        assert nodes[source]["pos"][0] < nodes[target]["pos"][0]


def test_model_files_have_download_urls() -> None:
    ui = export(preset("lightricks-workflow"))
    (loader,) = (n for n in ui["nodes"] if n["type"] == "CheckpointLoaderSimple")
    (model,) = loader["properties"]["models"]
    assert model["name"] == loader["widgets_values"][0] == "ltx-2.3-22b-dev-fp8.safetensors"
    assert model["url"].endswith(f"/resolve/main/{model['name']}")
    assert model["directory"] == "checkpoints"


def test_a_random_seed_is_randomized_by_comfyui_too() -> None:
    ui = export(preset("distilled", seed=-1))
    noises = [n for n in ui["nodes"] if n["type"] == "RandomNoise"]
    assert [n["widgets_values"][1] for n in noises] == ["randomize", "randomize"]


def test_the_embedded_models_preset_names_its_files() -> None:
    files = file_names_for(preset("pocket"))
    assert files.checkpoint == "pocket-ltx-2.3.safetensors"
    assert file_names_for(preset("distilled")).checkpoint == "ltx-2.3-22b-distilled-fp8.safetensors"


# -- the identity ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["ui", "api"])
@pytest.mark.parametrize("name", preset_names())
def test_importing_an_export_returns_the_request(name: str, form: Format) -> None:
    request = preset(name)
    found = import_workflow(workflow_from_document(export(request, form)))
    assert found.request == request
    assert found.preset_match.preset == name
    assert found.preset_match.equal


SIZES = st.integers(48, 600).map(lambda half: 2 * half)
SIGMAS = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=6, unique=True).map(
    lambda found: [*sorted(found, reverse=True), 0.0]
)
STRENGTHS = st.floats(0.01, 1.0)


@st.composite
def guidances(draw: st.DrawFn) -> dict[str, Any]:
    stream = st.fixed_dictionaries(
        {},
        optional={
            "cfg": st.floats(0, 20),
            "modality": st.floats(0, 9),
            "rescale": STRENGTHS,
            "skip_step": st.integers(0, 3),
            "sigma_high": st.floats(0.5, 1),
        },
    )
    found: dict[str, Any] = {"video": draw(stream), "audio": draw(stream)}
    if draw(st.booleans()):
        found["video"] |= {"stg": draw(st.floats(0.1, 3)), "stg_blocks": [28]}
    if draw(st.booleans()):
        found["audio"] |= {"stg": draw(st.floats(0.1, 3)), "stg_blocks": [14, 19]}
    return found


@st.composite
def schedules(draw: st.DrawFn, refine: bool) -> dict[str, Any]:
    name = draw(st.sampled_from(["ltx", "simple", "karras", "linear_quadratic", "distilled", None]))
    if name is None:
        return {"sigmas": draw(SIGMAS)}
    if name == "distilled":
        return {"schedule": {"name": name}}
    table: dict[str, Any] = {"name": name, "steps": draw(st.integers(2, 12))}
    if name == "ltx" and draw(st.booleans()):
        table["tokens"] = draw(st.sampled_from(["actual", 4096, 1234]))
    if name == "simple" and draw(st.booleans()):
        table["shift"] = draw(st.floats(0.5, 4))
    denoise = {"denoise": draw(STRENGTHS)} if refine and draw(st.booleans()) else {}
    return {"schedule": table, **denoise}


DECODES = st.one_of(
    st.fixed_dictionaries(
        {"tile_px": st.integers(4, 20).map(lambda n: 32 * n), "tile_frames": st.just(32)}
    ),
    st.fixed_dictionaries(
        {"grid": st.lists(st.integers(1, 6), min_size=2, max_size=2)},
        optional={"overlap_px": st.integers(1, 8).map(lambda n: 32 * n)},
    ),
)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a preset with replaced fields; the result is not always a valid request."""
    table = preset(draw(st.sampled_from(preset_names()))).to_dict()
    table |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "seed": st.one_of(st.just(-1), st.integers(0, 2**64 - 1)),
                "negative_prompt": st.text(max_size=20),
                "audio": st.sampled_from(["refine", "keep", "none"]),
                "noise_order": st.sampled_from(["comfyui", "ltx"]),
                "mask_convention": st.sampled_from(["comfyui", "ltx"]),
                "image_resize": st.sampled_from(["antialiased", "comfyui", "ltx"]),
                "fps": st.sampled_from(["24", "25", "30000/1001", "24000/1001", "12.5", "60"]),
                "audio_in": st.just("sounds/speech.wav"),
                "video": st.one_of(
                    st.fixed_dictionaries({"file": st.just("v.mp4"), "denoise": STRENGTHS}),
                    st.fixed_dictionaries(
                        {
                            "file": st.just("in/v.mp4"),
                            "mode": st.just("reference"),
                            "strength": STRENGTHS,
                        }
                    ),
                ),
            },
        )
    )
    table["width"], table["height"] = draw(SIZES), draw(SIZES)
    table["frames"] = 16 * draw(st.integers(1, 9)) + 1
    table["images"] = draw(
        st.lists(
            st.fixed_dictionaries(
                {"file": st.sampled_from(["a.png", "in/b.jpg"]), "frame": st.integers(-1, 16)},
                optional={"strength": STRENGTHS, "crf": st.integers(0, 51)},
            ),
            max_size=2,
        )
    )
    if draw(st.booleans()):
        table["output"] = {"codec": "h265", "crf": draw(st.integers(0, 51))}
    if draw(st.booleans()):
        table["decode"] = draw(DECODES)
    if draw(st.booleans()):
        table["models"] = {"checkpoint": "some/own.safetensors", "precision": "fp8"}
    for stage in table["stages"]:
        if stage["kind"] in ("base", "refine") and draw(st.booleans()):
            for name in ("sigmas", "schedule", "denoise"):
                stage.pop(name, None)
            stage |= draw(schedules(stage["kind"] == "refine"))
            stage["guidance"] = draw(guidances())
            stage["seed"] = draw(st.one_of(st.just("same"), st.integers(0, 9)))
            names = ["euler", "dpmpp_2m_rf", "res_2s", "euler_ancestral", "lcm"]
            stage["sampler"] = draw(st.sampled_from(names))
            stage["options"] = draw(st.sampled_from([{}, {"eta": 0.25}, {"s_noise": 0.9}]))
            loras = [{"role": "distilled", "strength": 0.25}, {"name": "x/style.safetensors"}]
            stage["loras"] = draw(st.sampled_from([[], loras[:1], loras]))
    if draw(st.booleans()):
        name = draw(st.sampled_from(["lanczos", "rtx", "RealESRGAN_x4plus.pth"]))
        table["stages"].append({"kind": "upscale", "name": name, "factor": 2.0})
    return table


def valid_request(table: dict[str, Any]) -> Request:
    try:
        return Request.from_dict(table)
    except RequestError:
        assume(False)
        raise


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(tables(), st.sampled_from(["ui", "api"]))
def test_importing_an_export_returns_any_request(table: dict[str, Any], form: Format) -> None:
    request = valid_request(table)
    document = export(request, form)
    if form == "ui":
        assert list(find_flaws(document)) == []
        assert list(find_overlaps(document)) == []
    assert import_workflow(workflow_from_document(document)).request == request


# -- the nodes without the embedded request --------------------------------------------------------


def expected_nodes(request: Request) -> dict[str, Any]:
    """Return the values that the nodes of the exported graph must express."""
    sampled = [s for _, s in request.sampling_stages()]
    return {
        "prompts": (request.prompt, request.negative_prompt),
        "size": (request.width, request.height, request.frames, request.fps),
        "final": request.resolved.final_size,
        "resolutions": request.resolutions[
            : len(request.resolutions) - (request.upscale is not None)
        ],
        "sigmas": [request.resolved.stages[i].sigmas for i, _ in request.sampling_stages()],
        "seeds": [request.stage_seed(i) for i, _ in request.sampling_stages()],
        "samplers": [{"dpmpp_2m_rf": "dpmpp_2m"}.get(s.sampler, s.sampler) for s in sampled],
        "cfg": [(s.guidance.video.cfg, s.guidance.audio.cfg) for s in sampled],
        "loras": [[(x.role, x.name, x.strength) for x in s.loras] for s in sampled],
        "factors": request.factors,
        "audio": "given" if request.audio_in is not None else expected_audio(request),
        "images": [(i.index(request.frames), i.strength) for i in request.active_images],
        "grid": grid(request.decode),
    }


def grid(decode: Decode) -> tuple[Any, int] | None:
    """Return the tile grid and its overlap that a graph states; None for a single tile."""
    return None if decode.grid in ("auto", (1, 1)) else (decode.grid, decode.grid_overlap_px)


def expected_audio(request: Request) -> str:
    """Return the audio mode; with a single stage, ``keep`` and ``refine`` are the same graph."""
    only_one = len(list(request.sampling_stages())) == 1
    return "refine" if only_one and request.audio == "keep" else request.audio


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(tables())
def test_the_nodes_alone_express_the_request(table: dict[str, Any]) -> None:
    for name in ("duration_s", "video"):
        table.pop(name, None)
    table["seed"] = max(table["seed"], 0)
    request = valid_request(table)
    # at half the frame rate, an image can lie between two frames of a stage
    assume(not (request.images and "temporal" in str(table["stages"])))
    found = import_graph(build_graph(request, published_names(request)).graph).request
    want, got = expected_nodes(request), expected_nodes(found)
    assert {k: v for k, v in got.items() if v != want[k]} == {}


def test_guidance_is_exported_completely() -> None:
    request = preset("ltx-pipelines")
    found = import_graph(build_graph(request, published_names(request)).graph).request
    for ours, theirs in zip(request.stages, found.stages, strict=True):
        if isinstance(ours, BaseStage | RefineStage):
            assert isinstance(theirs, BaseStage | RefineStage)
            assert ours.guidance == theirs.guidance


def test_separate_files_have_separate_loaders() -> None:
    request = preset("distilled", models={"transformer": "ltx-2.3-q4.gguf"})
    graph = build_graph(request, published_names(request)).graph
    classes = {node.class_type for node in graph.nodes.values()}
    assert {"UnetLoaderGGUF", "DualCLIPLoader", "VAELoader"} <= classes
    assert "CheckpointLoaderSimple" not in classes
    found = import_graph(graph).request
    assert found.models.transformer == "ltx-2.3-q4.gguf"
    assert found.models.video_vae == "LTX23_video_vae_bf16.safetensors"


def test_presets_of_ltx_2_5_name_its_split_files() -> None:
    """Its text encoder holds the projection, and its sound has a file in ``vae/``."""
    names = published_names(preset("ltx-2.5-distilled"))
    graph = build_graph(preset("ltx-2.5-distilled"), names).graph
    loaders = {
        (node.class_type, value)
        for node in graph.nodes.values()
        for value in node.inputs.values()
        if isinstance(value, str) and value.endswith(".safetensors")
    }
    encoder = "gemma4-12b-with-proj-ltx-2.5-comfy-int8-convrot.safetensors"
    upscaler = "ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0.safetensors"
    assert loaders == {
        ("UNETLoader", "ltx-2.5-22b-distilled-transformer-comfy-int8-convrot.safetensors"),
        ("CLIPLoader", encoder),
        ("VAELoader", "ltx-2.5-video-vae-conv-bf16.safetensors"),
        ("VAELoader", "ltx-2.5-audio-vae-bf16.safetensors"),
        ("LatentUpscaleModelLoader", upscaler),
    }
    dev = published_names(preset("ltx-2.5-hq"))
    assert (dev.transformer or "").startswith("ltx-2.5-22b-dev-")
    assert dev.distilled_lora == "ltx-2.5-22b-distilled-lora-450-bf16.safetensors"


def test_a_reference_video_is_exported_with_its_lora() -> None:
    table = preset("distilled", video={"file": "pose.mp4", "mode": "reference"}).to_dict()
    table["stages"][0]["loras"] = [{"name": "ic-lora.safetensors", "strength": 0.8}]
    request = Request.from_dict(table)
    graph = build_graph(request, published_names(request)).graph
    (loader,) = (n for n in graph.nodes.values() if n.class_type == "LTXICLoRALoaderModelOnly")
    (guide,) = (n for n in graph.nodes.values() if n.class_type == "LTXAddVideoICLoRAGuide")
    assert guide.inputs["latent_downscale_factor"] == (loader.id, 1)
    found = import_graph(graph).request
    assert found.video == request.video
    base = found.stages[0]
    assert isinstance(base, BaseStage)
    assert [(x.name, x.strength) for x in base.loras] == [("ic-lora.safetensors", 0.8)]


def test_sigmas_are_written_without_exponents() -> None:
    request = preset("distilled-single")
    table = request.to_dict()
    table["stages"][0]["sigmas"] = [1.0, 1e-05, 0.0]
    graph = build_graph(Request.from_dict(table), published_names(request)).graph
    (node,) = (n for n in graph.nodes.values() if n.class_type == "ManualSigmas")
    assert node.inputs["sigmas"] == "1.0, 0.00001, 0.0"


def test_requests_that_no_node_can_express_are_errors() -> None:
    video = {"file": "a.mp4", "mode": "retake", "region": [0.0, 1.0]}
    request = preset("distilled", video=video)
    with pytest.raises(RequestError, match=r"no ComfyUI node does video\.mode=retake"):
        build_graph(request, published_names(request))


def test_upsample_stages_name_the_file_for_their_factor() -> None:
    for name, file in (("distilled-x1.5", "x1.5-1.0"), ("temporal", "temporal-upscaler-x2")):
        request = preset(name)
        graph: Graph = build_graph(request, published_names(request)).graph
        files = [str(n.inputs.get("model_name", "")) for n in graph.nodes.values()]
        assert any(file in one for one in files)
        stages = import_graph(graph).request.stages
        ups = [s for s in stages if isinstance(s, UpsampleStage)]
        assert [(u.axis, u.factor) for u in ups] == [
            (u.axis, u.factor) for u in request.stages if isinstance(u, UpsampleStage)
        ]
