"""Small ComfyUI graphs for tests: a builder for the UI format and a two-stage API graph."""

from __future__ import annotations

from typing import Any

UUID = "11111111-2222-3333-4444-555555555555"
OTHER_UUID = "66666666-2222-3333-4444-555555555555"


class UiGraph:
    """Builder of a UI document: nodes and links are added one by one."""

    def __init__(self, objects: bool = False) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.links: list[Any] = []
        self._objects = objects

    def add(
        self, kind: str, widgets: Any = None, key: int | None = None, **more: Any
    ) -> dict[str, Any]:
        """Add a node; ``outs`` are the types of its outputs."""
        outs = more.pop("outs", ())
        node = {
            "id": key if key is not None else len(self.nodes) + 1,
            "type": kind,
            "mode": 0,
            "inputs": [],
            "outputs": [{"name": t, "type": t, "links": []} for t in outs],
            "properties": {"cnr_id": "comfy-core"},
            **more,
        }
        if widgets is not None:
            node["widgets_values"] = widgets
        self.nodes.append(node)
        return node

    def link(
        self,
        source: Any,
        slot: int,
        node: dict[str, Any],
        name: str,
        kind: str,
        widget: bool = False,
    ) -> None:
        """Add an input and its link; ``source`` is a node or -10."""
        key = len(self.links) + 1
        origin = source["id"] if isinstance(source, dict) else source
        socket: dict[str, Any] = {"name": name, "type": kind, "link": key}
        if widget:
            socket["widget"] = {"name": name}
        node["inputs"].append(socket)
        self._add_link(key, origin, slot, node["id"], len(node["inputs"]) - 1, kind)

    def output(self, source: dict[str, Any], slot: int, target_slot: int, kind: str) -> None:
        """Add a link to an output of the subgraph."""
        self._add_link(len(self.links) + 1, source["id"], slot, -20, target_slot, kind)

    def _add_link(
        self, key: int, origin: Any, slot: int, target: Any, into: int, kind: str
    ) -> None:
        if self._objects:
            names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
            values = (key, origin, slot, target, into, kind)
            self.links.append(dict(zip(names, values, strict=True)))
        else:
            self.links.append([key, origin, slot, target, into, kind])

    def document(self, **more: Any) -> dict[str, Any]:
        """Return the graph as a document."""
        version = 1 if self._objects else 0.4
        return {"nodes": self.nodes, "links": self.links, "version": version, **more}

    def definition(self, key: str, inputs: list[tuple[str, str]], **more: Any) -> dict[str, Any]:
        """Return the graph as a subgraph definition."""
        return {
            "id": key,
            "name": "Inner",
            "inputs": [{"name": name, "type": kind} for name, kind in inputs],
            "outputs": [{"name": "out", "type": "*"}],
            "nodes": self.nodes,
            "links": self.links,
            **more,
        }


def numbers(*chain: str, mode: int = 0) -> dict[str, Any]:
    """Return a graph: ``PrimitiveInt 7`` linked to ``length`` of a latent through ``chain``."""
    graph = UiGraph()
    source = graph.add("PrimitiveInt", [7, "fixed"], outs=["INT"])
    for kind in chain:
        node = graph.add(kind, outs=["INT"], mode=mode)
        graph.link(source, 0, node, "", "*")
        source = node
    latent = graph.add("EmptyLTXVLatentVideo", [640, 352, 97, 1], outs=["LATENT"])
    graph.link(source, 0, latent, "length", "INT", widget=True)
    save = graph.add("SaveLatent", ["latents/x"])
    graph.link(latent, 0, save, "samples", "LATENT")
    return graph.document()


def two_stage(width: int = 640, height: int = 352, length: int = 121) -> dict[str, Any]:
    """Return a text-to-video graph in API format: two stages, audio, tiled decode, one clip."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs, "_meta": {"title": f"my {kind}"}}

    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="dev.safetensors"),
        "2": node("LTXAVTextEncoderLoader", text_encoder="gemma.safetensors",
                  ckpt_name="dev.safetensors", device="default"),
        "3": node("LTXVAudioVAELoader", ckpt_name="dev.safetensors"),
        "4": node("LoraLoaderModelOnly", model=["1", 0], lora_name="distilled.safetensors",
                  strength_model=0.5),
        "5": node("CLIPTextEncode", text="a red square", clip=["2", 0]),
        "6": node("CLIPTextEncode", text="noise", clip=["2", 0]),
        "7": node("LTXVConditioning", positive=["5", 0], negative=["6", 0], frame_rate=25.0),
        "8": node("EmptyLTXVLatentVideo", width=width, height=height, length=length, batch_size=1),
        "9": node("LTXVEmptyLatentAudio", frames_number=length, frame_rate=25, batch_size=1,
                  audio_vae=["3", 0]),
        "10": node("LTXVConcatAVLatent", video_latent=["8", 0], audio_latent=["9", 0]),
        "11": node("RandomNoise", noise_seed=43),
        "12": node("CFGGuider", model=["4", 0], positive=["7", 0], negative=["7", 1], cfg=1.0),
        "13": node("KSamplerSelect", sampler_name="euler"),
        "14": node("ManualSigmas", sigmas="1.0, 0.9, 0.5, 0.0"),
        "15": node("SamplerCustomAdvanced", noise=["11", 0], guider=["12", 0], sampler=["13", 0],
                   sigmas=["14", 0], latent_image=["10", 0]),
        "16": node("LTXVSeparateAVLatent", av_latent=["15", 0]),
        "17": node("LatentUpscaleModelLoader", model_name="upscaler-x2.safetensors"),
        "18": node("LTXVLatentUpsampler", samples=["16", 0], upscale_model=["17", 0],
                   vae=["1", 2]),
        "19": node("LTXVConcatAVLatent", video_latent=["18", 0], audio_latent=["16", 1]),
        "20": node("ManualSigmas", sigmas="0.85, 0.7250, 0.4219, 0.0"),
        "21": node("SamplerCustomAdvanced", noise=["11", 0], guider=["12", 0], sampler=["13", 0],
                   sigmas=["20", 0], latent_image=["19", 0]),
        "22": node("LTXVSeparateAVLatent", av_latent=["21", 0]),
        "23": node("LTXVTiledVAEDecode", vae=["1", 2], latents=["22", 0], horizontal_tiles=2,
                   vertical_tiles=2, overlap=6, last_frame_fix=False),
        "24": node("LTXVAudioVAEDecode", samples=["22", 1], audio_vae=["3", 0]),
        "25": node("CreateVideo", images=["23", 0], audio=["24", 0], fps=25.0),
        "26": node("SaveVideo", video=["25", 0], filename_prefix="video/clip", format="auto",
                   codec="auto"),
    }  # fmt: skip


def nested_subgraphs(
    values: dict[str, Any], link: bool = False, objects: bool = False
) -> dict[str, Any]:
    """Return a latent in a nested subgraph whose length is an input of both subgraphs."""
    core = UiGraph(objects)
    size = core.add("EmptyLTXVLatentVideo", [64, 64, 97, 1], outs=["LATENT"])
    core.link(-10, 0, size, "length", "INT", widget=True)
    core.output(size, 0, 0, "LATENT")
    middle = UiGraph(objects)
    instance = middle.add(OTHER_UUID, outs=["LATENT"])
    middle.link(-10, 0, instance, "length", "INT", widget=True)
    middle.output(instance, 0, 0, "LATENT")
    top = UiGraph(objects)
    outer = top.add(UUID, key=5, outs=["LATENT"], title="my part", **values)
    if link:
        one = top.add("PrimitiveInt", [7, "fixed"], key=6, outs=["INT"])
        top.link(one, 0, outer, "n", "INT", widget=True)
    save = top.add("SaveLatent", ["x"], key=8)
    top.link(outer, 0, save, "samples", "LATENT")
    inner = core.definition(OTHER_UUID, [("length", "INT")])
    around = middle.definition(UUID, [("n", "INT")], definitions={"subgraphs": [inner]})
    return top.document(definitions={"subgraphs": [around]})
