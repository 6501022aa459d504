"""A real ``ladder serve --comfyui`` in a process of its own, and graphs for it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

_URL = re.compile(r"http://[\d.:\[\]]+")


class Served:
    """A server that runs until the block ends; ``said`` is its stderr so far."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.said: list[str] = []
        self._ready = threading.Event()
        self.url = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "latent_ladder", "serve", "--comfyui", "--port", "0",
             "--device", "cpu", *flags],
            cwd=folder,
            env=os.environ | {"LADDER_STORE": str(folder / "store"), "LADDER_MODELS": ""},
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self._listening = threading.Thread(target=self._listen)
        self._listening.start()
        self._ready.wait(90)
        assert self.url, "".join(self.said)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        """End it; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(20)
        self._listening.join(20)
        if self.process.stderr is not None:
            self.process.stderr.close()
        return code

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if found := _URL.search(line):
                self.url = found[0]
                self._ready.set()
        self._ready.set()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body."""
        return _fetched(Request(self.url + path, headers=dict(headers or {})))

    def read(self, path: str) -> Any:
        """The JSON at a path."""
        status, body = self.get(path)
        assert status == 200, body
        return json.loads(body)

    def post(
        self, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON of the answer; ``bytes`` are sent as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        asked = Request(self.url + path, data, dict(headers or {}), method="POST")
        status, answer = _fetched(asked)
        return status, json.loads(answer) if answer.startswith((b"{", b"[")) else answer

    def upload(
        self, name: str, data: bytes, path: str = "/upload/image", **fields: str
    ) -> tuple[int, Any]:
        """Send a file as a browser's form does."""
        edge = "----edge"
        parts = [
            f'--{edge}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
            for key, value in fields.items()
        ]
        file = f'form-data; name="image"; filename="{name}"'
        head = f"--{edge}\r\nContent-Disposition: {file}\r\n\r\n"
        body = b"".join([*parts, head.encode(), data, f"\r\n--{edge}--\r\n".encode()])
        return self.post(path, body, {"Content-Type": f"multipart/form-data; boundary={edge}"})


def _fetched(asked: Request) -> tuple[int, bytes]:
    try:
        with urlopen(asked, timeout=90) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


def number_graph(value: object = 5) -> dict[str, Any]:
    """Shows a number: no model, no time."""
    return {
        "1": {"class_type": "PrimitiveInt", "inputs": {"value": value}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


def picture_graph(prefix: str = "plain") -> dict[str, Any]:
    """Saves a picture of one colour."""
    size = {"width": 64, "height": 32, "batch_size": 1, "color": 255}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": prefix},
        },
    }


def clip_graph(steps: int = 2, seed: int = 0) -> dict[str, Any]:
    """A small silent clip of the pocket; ``steps`` decide how long it takes."""
    text = {"clip": ["2", 0]}
    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "pocket-ltx-2.3.safetensors"}),
        "2": (
            "LTXAVTextEncoderLoader",
            {
                "text_encoder": "pocket-gemma-3.safetensors",
                "ckpt_name": "pocket-ltx-2.3.safetensors",
                "device": "default",
            },
        ),
        "3": ("CLIPTextEncode", {**text, "text": "a red ball rolls to the right"}),
        "4": ("CLIPTextEncode", {**text, "text": ""}),
        "5": ("EmptyLTXVLatentVideo", {"width": 64, "height": 64, "length": 9, "batch_size": 1}),
        "6": (
            "KSampler",
            {
                "model": ["1", 0],
                "positive": ["3", 0],
                "negative": ["4", 0],
                "latent_image": ["5", 0],
                "seed": seed,
                "steps": steps,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        ),
        "7": ("VAEDecode", {"samples": ["6", 0], "vae": ["1", 2]}),
        "8": ("CreateVideo", {"images": ["7", 0], "fps": 24.0}),
        "9": (
            "SaveVideo",
            {"video": ["8", 0], "filename_prefix": "video/ball", "format": "auto", "codec": "auto"},
        ),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}
