"""The log: silent by default, levels, a file, and no secrets in it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.comfyui_server import ComfyUiServer, picture_graph
from helpers.command_line import SMALL, TINY, environment
from helpers.hub_server import hub_server

from latent_ladder.checkpoints import download
from latent_ladder.checkpoints.catalog import select_file_set
from latent_ladder.cli.logging_setup import configure_logging, mask_secrets
from latent_ladder.cli.run_log import log_event, log_events
from latent_ladder.errors import RequestError
from latent_ladder.pipeline.events import (
    DraftStarted,
    Event,
    PointDone,
    PointStarted,
    Preview,
    StageDone,
    StageStarted,
    StepDone,
    Waiting,
    Warned,
)


@pytest.fixture(autouse=True)
def restore_logger() -> Iterator[None]:
    """Leave the logger of the package as it was."""
    logger = logging.getLogger("latent_ladder")
    handlers, level = list(logger.handlers), logger.level
    yield
    for handler in logger.handlers:
        if handler not in handlers:
            handler.close()
    logger.handlers, logger.level = handlers, level


def run_ladder(tmp_path: Path, *words: str, code: int = 0, **variables: str) -> tuple[str, str]:
    """Stdout and stderr of ``ladder`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "latent_ladder", *words],
        cwd=tmp_path,
        env={**environment(tmp_path), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


# --- which lines, where ---------------------------------------------------------------------------


def test_the_log_is_silent_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import logging, latent_ladder\n"
        "logging.getLogger('latent_ladder.cli.run_log').warning('out of memory')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, []),
        ({"verbose": True}, ["info", "warning"]),
        ({"debug": True}, ["debug", "info", "warning"]),
    ],
)
def test_levels_on_stderr(
    options: dict[str, Any], shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(**options)
    logger = logging.getLogger("latent_ladder.pipeline.some_module")
    logger.debug("debug")
    logger.info("info")
    logger.warning("warning")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split()[-1] for line in err.splitlines()] == shown


def test_a_file_gets_all_lines_and_is_appended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs" / "ladder.log"
    for text in ("first", "second"):
        configure_logging(file=path)
        logging.getLogger("latent_ladder.server").debug(text)
    lines = path.read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["first", "second"]
    assert all("DEBUG latent_ladder.server:" in line for line in lines)
    assert capsys.readouterr().err == ""


def test_other_packages_are_not_logged(tmp_path: Path) -> None:
    path = tmp_path / "ladder.log"
    configure_logging(debug=True, file=path)
    logging.getLogger("httpx").warning("a request")
    assert path.read_text() == ""


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be written") as raised:
        configure_logging(file=tmp_path)
    assert "--log" in (raised.value.hint or "")


# --- secrets --------------------------------------------------------------------------------------

TOKEN = "hf_abcdefGHIJKLmnop1234"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {TOKEN}",
        "authorization: Bearer opaque-token-value",
        "{'Authorization': 'Basic dXNlcjpwYXNz', 'Range': 'bytes=0-'}",
        '{"authorization": "opaque-token-value"}',
        "Cookie: session=opaque-token-value; theme=dark",
        "sent with Bearer opaque-token-value",
        f"the token {TOKEN} is invalid",
        "https://user:opaque-token-value@hub.example/file",
        "https://hub.example/file?download=1&token=opaque-token-value&x=1",
        "https://cdn.example/f?X-Amz-Signature=opaque-token-value&X-Amz-Date=1",
        "https://cdn.example/f?Policy=1&sig=opaque-token-value",
        "HF_TOKEN=opaque-token-value ladder models get ltx-2.3",
        '{"api_key": "opaque-token-value", "size": 4}',
        "ladder x --api-key opaque-token-value --size 64x64",
        "password = 'opaque-token-value'",
        "the value env-secret-value of the environment",
    ],
)
def test_secrets_are_masked(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "env-secret-value")
    masked = mask_secrets(text)
    assert "***" in masked
    for secret in (TOKEN, "opaque-token-value", "dXNlcjpwYXNz", "env-secret-value"):
        assert secret not in masked


@pytest.mark.parametrize(
    "text",
    [
        "the prompt has 1024 tokens and the text encoder reads 256: cut at 'a red ball'",
        "stage base: 4096 tokens, max_tokens=4096",
        "model: text_encoder (bf16): /models/text_encoders/gemma.safetensors",
        "https://huggingface.co/Lightricks/LTX-2.3/resolve/main/x.safetensors?download=1",
        "a basic scene; sign up: yes",
    ],
)
def test_other_text_is_not_masked(text: str) -> None:
    assert mask_secrets(text) == text


def test_messages_and_tracebacks_are_masked_on_all_handlers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ladder.log"
    configure_logging(debug=True, file=path)
    logger = logging.getLogger("latent_ladder.checkpoints")
    logger.info("headers %s", {"Authorization": f"Bearer {TOKEN}"})
    try:
        raise ValueError(f"token {TOKEN} refused")
    except ValueError:
        logger.exception("failed")
    for text in (path.read_text(), capsys.readouterr().err):
        assert "Authorization" in text
        assert "Traceback" in text
        assert TOKEN not in text


# --- main places ----------------------------------------------------------------------------------


def test_events_of_a_run_are_logged_and_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "latent_ladder")
    events: list[Event] = [
        StageStarted("base", 1, 3, 8),
        StepDone("base", 2, 8),
        Preview("base", 2, "a.png"),
        StageDone("base", "b2-0", False, 1.25, 3 * 2**30),
        StageDone("prompt", "b2-1", True, 0.0, 0),
        Warned("oom", "smaller tiles"),
        Waiting(42),
        DraftStarted(2, 8, "x", 11),
        PointStarted(1, 4, "refine.denoise=0.2"),
        PointDone(1, 4, False, "no memory"),
    ]
    passed_on: list[Event] = []
    for event in events:
        log_events(passed_on.append)(event)
    assert passed_on == events
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert ("INFO", "stage base started (1 of 3)") in lines
    assert ("INFO", "stage base done in 1.25 s, peak 3.0 GiB") in lines
    assert ("INFO", "stage prompt reused: b2-1") in lines
    assert ("WARNING", "oom: smaller tiles") in lines
    assert ("DEBUG", "stage base: 2 of 8 steps") in lines
    assert ("INFO", "point 1 of 4: no memory") in lines
    assert len(lines) == len(events) + 1  # the artefact key of a stage is a line of its own


def test_every_event_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A new kind of event needs a line of its own in the log."""
    import typing

    from latent_ladder.pipeline import events

    samples = {int: 1, str: "x", bool: False, float: 0.5}
    caplog.set_level(logging.DEBUG, "latent_ladder")
    for kind in typing.get_args(events.Event):
        hints = typing.get_type_hints(kind)
        caplog.clear()
        log_event(kind(**{name: samples.get(hint) for name, hint in hints.items()}))
        assert caplog.records, kind.__name__


@pytest.mark.slow
def test_a_run_is_logged_to_a_file_while_stdout_is_json(tmp_path: Path) -> None:
    words = ["make", "a red ball", "-o", "a.mp4", "--json", *TINY, *SMALL]
    out, err = run_ladder(tmp_path, "--log", "run.log", *words)
    result = json.loads(out)
    assert "INFO" not in err
    log = (tmp_path / "run.log").read_text()
    assert "ladder make" in log.partition("\n")[0] or "make 'a red ball'" in log
    assert "tiny-ltx-2.3.safetensors" in log
    for stage in result["stages"]:
        assert f"stage {stage['stage']} " in log
    assert "peak" in log
    assert "DEBUG" in log


@pytest.mark.slow
def test_verbose_goes_to_stderr_and_not_to_stdout(tmp_path: Path) -> None:
    out, err = run_ladder(tmp_path, "--verbose", "plan", "a red ball", "--json", *TINY, *SMALL)
    json.loads(out)
    assert "model: transformer" in err
    assert "DEBUG" not in err


def test_the_environment_names_a_file(tmp_path: Path) -> None:
    run_ladder(tmp_path, "presets", "list", LADDER_LOG="env.log")
    assert "presets list" in (tmp_path / "env.log").read_text()


def test_an_error_is_logged_with_its_traceback(tmp_path: Path) -> None:
    run_ladder(tmp_path, "--log", "e.log", "show", "nothing.mp4", code=5)
    log = (tmp_path / "e.log").read_text()
    assert "media_error" in log
    assert "Traceback" in log


def test_a_download_is_logged_without_its_token(tmp_path: Path) -> None:
    file = select_file_set("bf16", "dev")[0]
    with hub_server() as server:
        server.files[file.repository, file.path] = b"x" * 5000
        configure_logging(file=tmp_path / "d.log")
        hub = download.Hub(server.endpoint, TOKEN)
        download.download_files(download.plan_download([file], tmp_path / "m", hub), hub=hub)
        assert any(TOKEN in str(request) for request in server.requests)
    log = (tmp_path / "d.log").read_text()
    assert "from byte 0 of 5000" in log
    assert "downloaded" in log
    assert TOKEN not in log


@pytest.mark.slow
def test_requests_and_jobs_of_a_server_are_logged(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with ComfyUiServer(tmp_path, before=("--log", str(log))) as server:
        server.get("/queue?token=opaque-token-value")
        status, answer = server.post("/prompt", {"prompt": picture_graph("logged")})
        assert status == 200
        server.wait_for_history(answer["prompt_id"])
        assert server.post("/prompt", {"prompt": {}})[0] == 400
    lines = log.read_text()
    assert "GET /queue: 200" in lines
    assert "POST /prompt: 400" in lines
    assert f"{answer['prompt_id']} finished after" in lines
    assert "latent_ladder.server.worker_main: node" in lines  # forwarded by the worker
    assert "opaque-token-value" not in lines
