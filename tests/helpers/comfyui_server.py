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
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil

from helpers.waiting import PATIENCE_S, wait_until

ENDLESS = 10_000
"""Sampling steps of a job that has to be stopped: more than a busy machine does before that."""
_URL = re.compile(r"http://[\d.:\[\]]+")


class ComfyUiServer:
    """A server that runs until the block ends; ``stderr_lines`` is its output so far."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        before: tuple[str, ...] = (),
        command: tuple[str, ...] = ("serve", "--comfyui"),
        **environment: str,
    ) -> None:
        """``flags`` follow the ``command``, ``before`` are global options before it."""
        self.folder = folder
        self.stderr_lines: list[str] = []
        self._has_url = threading.Event()
        self.url = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "latent_ladder", *before, *command, "--port", "0",
             "--device", "cpu", *flags],
            cwd=folder,
            env=os.environ
            | {"LADDER_STORE": str(folder / "store"), "LADDER_MODELS": ""}
            | environment,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read_stderr)
        self._reader.start()
        self._has_url.wait(PATIENCE_S)
        assert self.url, "".join(self.stderr_lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        """Stop the server with a signal and return its exit code.

        Children that outlive it are killed: they would keep its stderr open.
        """
        children = []
        if self.process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                children = psutil.Process(self.process.pid).children(recursive=True)
            self.process.send_signal(how)
        code = self.process.wait(PATIENCE_S)
        self._reader.join(0.5)
        for child in children if self._reader.is_alive() else ():
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self._reader.join(PATIENCE_S)
        if self.process.stderr is not None:
            self.process.stderr.close()
        return code

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr_lines.append(line)
            if not self.url and (found := _URL.search(line)):
                self.url = found[0].replace("0.0.0.0", "127.0.0.1")
                self._has_url.set()
        self._has_url.set()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body of a GET."""
        return _send(Request(self.url + path, headers=dict(headers or {})))

    def wait_for_history(self, job_id: str) -> dict[str, Any]:
        """The history of a job, by its id, once the job has ended."""
        path = f"/history/{job_id}"
        wait_until(lambda: bool(self.get_json(path)), f"{job_id}: {self.stderr_lines[-5:]}")
        history: dict[str, Any] = self.get_json(path)
        return history

    def get_json(self, path: str) -> Any:
        """The JSON at a path, which has to be there."""
        status, body = self.get(path)
        assert status == 200, body
        return json.loads(body)

    def post(
        self, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON of the answer to a POST; ``bytes`` are sent unchanged."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = Request(self.url + path, data, dict(headers or {}), method="POST")
        status, answer = _send(request)
        return status, json.loads(answer) if answer.startswith((b"{", b"[")) else answer

    def upload(
        self, name: str, data: bytes, path: str = "/upload/image", **fields: str
    ) -> tuple[int, Any]:
        """Send a file in a form, as a browser does."""
        boundary = "----boundary"
        parts = [
            f"--{boundary}\r\nContent-Disposition: form-data; "
            f'name="{key}"\r\n\r\n{value}\r\n'.encode()
            for key, value in fields.items()
        ]
        file = f'form-data; name="image"; filename="{name}"'
        head = f"--{boundary}\r\nContent-Disposition: {file}\r\n\r\n"
        body = b"".join([*parts, head.encode(), data, f"\r\n--{boundary}--\r\n".encode()])
        return self.post(path, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})


def _send(request: Request) -> tuple[int, bytes]:
    try:
        with urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


def number_graph(value: object = 5) -> dict[str, Any]:
    """A graph that shows a number: no model, no waiting."""
    return {
        "1": {"class_type": "PrimitiveInt", "inputs": {"value": value}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


def picture_graph(prefix: str = "plain") -> dict[str, Any]:
    """A graph that saves a picture of one colour."""
    size = {"width": 64, "height": 32, "batch_size": 1, "color": 255}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": prefix},
        },
    }


def clip_graph(steps: int = 2, seed: int = 0) -> dict[str, Any]:
    """A graph for a small silent clip of the pocket model; ``steps`` set its duration."""
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
