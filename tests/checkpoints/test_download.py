"""Downloads from a server with the routes of the hub, complete and with every fault."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.hub_server import COMMIT, HubServer, hub_server
from typer.testing import CliRunner

from latent_ladder.checkpoints import download
from latent_ladder.checkpoints.catalog import CatalogFile, select_file_set
from latent_ladder.checkpoints.download import (
    ATTEMPTS,
    DownloadItem,
    DownloadPlan,
    Hub,
    ProgressCallback,
    download_files,
    plan_download,
)
from latent_ladder.cli.app import build_app
from latent_ladder.cli.commands import models
from latent_ladder.errors import (
    CheckpointError,
    CheckpointNotFound,
    CorruptCheckpoint,
    RequestError,
)
from latent_ladder.jobs import downloading
from latent_ladder.storage import file_hashes

BIG = CatalogFile("deep/inside/big.safetensors", "org/models", "checkpoints", 0, ("transformer",))
LORA = CatalogFile("lora.safetensors", "org/other", "loras", 0, ("distilled_lora",))
CHUNK = 2**16


@pytest.fixture
def server() -> Iterator[HubServer]:
    with hub_server() as running:
        running.files["org/models", BIG.path] = random.Random(1).randbytes(20 * CHUNK + 5)
        running.files["org/other", LORA.path] = random.Random(2).randbytes(3 * CHUNK)
        yield running


@pytest.fixture
def hub(server: HubServer) -> Hub:
    return Hub(server.endpoint, "hf_secret")


@pytest.fixture(autouse=True)
def private_cache_and_no_pauses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(file_hashes, "cache_file", lambda: tmp_path / "cache" / "hashes.json")
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", CHUNK)
    # The pauses of the HTTP client between attempts.
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


def run_download(
    hub: Hub,
    folder: Path,
    files: Sequence[CatalogFile] = (BIG, LORA),
    report: ProgressCallback = lambda *_: None,
) -> DownloadPlan:
    plan = plan_download(files, folder, hub)
    download_files(plan, report, hub)
    return plan


def contents(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_a_set_is_downloaded_into_the_folders_of_comfyui(
    server: HubServer, hub: Hub, folder: Path
) -> None:
    seen = []
    plan = run_download(hub, folder, report=lambda item, done: seen.append((item.file.name, done)))
    assert contents(folder) == {"checkpoints/big.safetensors", "loras/lora.safetensors"}
    big = folder / "checkpoints/big.safetensors"
    assert big.read_bytes() == server.files["org/models", BIG.path]
    assert [item.state for item in plan.items] == ["missing", "missing"]
    assert plan.items[0].revision == COMMIT
    assert seen[-1] == ("lora.safetensors", 3 * CHUNK)


@pytest.mark.slow
def test_the_token_is_sent_to_the_hub_and_not_to_the_host_it_redirects_to(
    server: HubServer, hub: Hub, folder: Path
) -> None:
    run_download(hub, folder)
    for method, path, _, authorization in server.requests:
        assert authorization == (None if "/cdn/" in path else "Bearer hf_secret"), (method, path)


def test_a_second_run_downloads_nothing_and_reads_no_file_again(
    server: HubServer, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_download(hub, folder)
    server.requests.clear()
    monkeypatch.setattr(file_hashes, "_new_digest", None)
    plan = run_download(hub, folder)
    assert [item.state for item in plan.items] == ["present", "present"]
    assert server.transfers() == [] and plan.remaining_bytes == 0


def test_a_file_of_another_program_is_hashed_once(
    server: HubServer, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder / "loras" / LORA.name
    target.parent.mkdir(parents=True)
    target.write_bytes(server.files["org/other", LORA.path])
    assert run_download(hub, folder, [LORA]).items[0].state == "present"
    monkeypatch.setattr(file_hashes, "_new_digest", None)
    assert run_download(hub, folder, [LORA]).items[0].state == "present"


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: bytes([d[0] ^ 1]) + d[1:]])
def test_another_file_of_the_same_name_is_never_overwritten(
    server: HubServer, hub: Hub, folder: Path, change: Callable[[bytes], bytes]
) -> None:
    target = folder / "loras" / LORA.name
    target.parent.mkdir(parents=True)
    target.write_bytes(change(server.files["org/other", LORA.path]))
    before = target.read_bytes()
    with pytest.raises(CheckpointError, match="differs from the file in org/other"):
        run_download(hub, folder)
    assert target.read_bytes() == before and server.transfers() == []


def test_a_broken_connection_is_resumed(server: HubServer, hub: Hub, folder: Path) -> None:
    server.cuts = [5 * CHUNK, 7 * CHUNK + 100]
    run_download(hub, folder, [BIG])
    assert (folder / "checkpoints" / BIG.name).read_bytes() == server.files["org/models", BIG.path]
    ranges = [requested for _, requested in server.transfers()]
    assert ranges == [None, f"bytes={5 * CHUNK}-", f"bytes={12 * CHUNK}-"]


def test_a_server_without_ranges_sends_the_whole_file_again(
    server: HubServer, hub: Hub, folder: Path
) -> None:
    server.cuts, server.ranges = [5 * CHUNK], False
    run_download(hub, folder, [BIG])
    assert (folder / "checkpoints" / BIG.name).read_bytes() == server.files["org/models", BIG.path]


def test_a_temporary_server_error_is_tried_again(server: HubServer, hub: Hub, folder: Path) -> None:
    server.failures = [503, 502]
    run_download(hub, folder, [LORA])
    assert len(server.transfers()) == 3


def test_a_server_that_stays_down_is_an_error(server: HubServer, hub: Hub, folder: Path) -> None:
    server.failures = [503] * 50
    with pytest.raises(CheckpointError, match="the hub answered 503"):
        run_download(hub, folder, [LORA])
    assert len(server.transfers()) == ATTEMPTS


def test_an_interrupted_download_is_resumed_by_the_next_run(
    server: HubServer, hub: Hub, folder: Path
) -> None:
    class Stopped(Exception):
        pass

    def stop(_: DownloadItem, done: int) -> None:
        if done > 9 * CHUNK:
            raise Stopped

    with pytest.raises(Stopped):
        run_download(hub, folder, [BIG], stop)
    (part,) = contents(folder)
    assert part.startswith("checkpoints/big.safetensors.") and part.endswith(".part")
    partial = (folder / part).stat().st_size
    assert partial > 9 * CHUNK
    server.requests.clear()
    plan = run_download(hub, folder, [BIG])
    assert (plan.items[0].state, plan.items[0].present_bytes) == ("partial", partial)
    assert server.transfers()[0][1] == f"bytes={partial}-"
    assert contents(folder) == {"checkpoints/big.safetensors"}


def test_a_new_revision_does_not_continue_an_old_part(
    server: HubServer, hub: Hub, folder: Path
) -> None:
    old = plan_download([BIG], folder, hub).items[0].part
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old" * 1000)
    server.files["org/models", BIG.path] = random.Random(3).randbytes(4 * CHUNK)
    assert run_download(hub, folder, [BIG]).items[0].state == "missing"
    assert server.transfers()[0][1] is None
    assert contents(folder) == {"checkpoints/big.safetensors"}


def test_wrong_bytes_are_detected_and_removed(server: HubServer, hub: Hub, folder: Path) -> None:
    server.corrupt = True
    with pytest.raises(CorruptCheckpoint, match=r"expected [0-9a-f]{64}") as raised:
        run_download(hub, folder)
    assert "big.safetensors from org/models" in str(raised.value)
    assert contents(folder) == set()


def test_small_files_are_checked_by_gits_hash(server: HubServer, hub: Hub, folder: Path) -> None:
    server.small = {LORA.path}
    found = run_download(hub, folder, [LORA]).items[0].hash
    assert found is not None
    assert found.kind == "git-sha1"
    (folder / "loras" / LORA.name).unlink()
    server.corrupt = True
    with pytest.raises(CorruptCheckpoint, match="git-sha1"):
        run_download(hub, folder, [LORA])


@pytest.mark.parametrize(
    ("status", "code", "kind", "message", "hint"),
    [
        (401, "GatedRepo", CheckpointError, "does not know the token", "huggingface.co/org/other"),
        (403, "GatedRepo", CheckpointError, "has not accepted it", "huggingface.co/org/other"),
        (403, "", CheckpointError, "has not accepted it", "huggingface.co/org/other"),
        (401, "", CheckpointNotFound, "does not exist, is private", "HF_TOKEN"),
        (404, "RepoNotFound", CheckpointNotFound, "has no file lora.safetensors", "org/other"),
        (500, "", CheckpointError, "the hub answered 500", "later"),
    ],
)
def test_errors_of_the_hub_are_raised_before_the_first_byte(
    server: HubServer,
    hub: Hub,
    folder: Path,
    status: int,
    code: str,
    kind: type[CheckpointError],
    message: str,
    hint: str,
) -> None:
    server.status["org/other"] = (status, code)
    with pytest.raises(kind, match=message) as raised:
        run_download(hub, folder)
    assert hint in (raised.value.hint or "")
    assert raised.value.code in ("checkpoint_error", "checkpoint_not_found")
    assert server.transfers() == [] and not folder.exists()


@pytest.mark.parametrize(
    ("token", "message", "hint"),
    [
        (
            False,
            "there is no token \\(401\\)",
            "accept the LTX-2.x Community License on https://hugg",
        ),
        ("hf_wrong", "does not know the token of HF_TOKEN \\(401\\)", "make a new token"),
        ("hf_new", "has not accepted it \\(403\\)", "huggingface.co/Lightricks/LTX-2.5"),
        ("hf_narrow", "may not read gated repositories \\(403\\)", "of type Read"),
    ],
)
def test_a_gated_repository_says_what_is_missing(
    server: HubServer, folder: Path, token: str | bool, message: str, hint: str
) -> None:
    file = select_file_set("int8", "distilled", "2.5")[0]
    server.files[file.repository, file.path] = b"weights"
    server.gates[file.repository], server.no_scope = {"hf_accepted"}, {"hf_narrow"}
    with pytest.raises(CheckpointError, match=message) as raised:
        plan_download([file], folder, Hub(server.endpoint, token))
    assert hint in (raised.value.hint or "")
    assert not folder.exists()
    assert plan_download([file], folder, Hub(server.endpoint, "hf_accepted")).items[0].nbytes == 7


def test_a_file_that_is_not_published_is_named(server: HubServer, hub: Hub, folder: Path) -> None:
    del server.files["org/other", LORA.path]
    with pytest.raises(CheckpointNotFound, match="org/other has no file lora"):
        run_download(hub, folder)


def test_no_server_at_all(folder: Path, server: HubServer) -> None:
    with pytest.raises(CheckpointError, match="connection to the hub failed"):
        run_download(Hub("http://127.0.0.1:9", "t"), folder)


def test_a_disk_without_room_for_all_and_5_percent_is_refused(
    server: HubServer, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = int((23 * CHUNK + 5) * 1.05)
    usage = shutil.disk_usage(folder.parent)
    free = [needed - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free[0]))
    with pytest.raises(CheckpointError, match=r"are free in .*models"):
        run_download(hub, folder)
    assert server.transfers() == []
    free[0] = needed
    run_download(hub, folder)


def test_two_downloads_do_not_write_the_same_file(
    server: HubServer, hub: Hub, folder: Path
) -> None:
    plan = plan_download([BIG], folder, hub)

    def second(_item: DownloadItem, done: int) -> None:
        if done > CHUNK:
            in_use = pytest.raises(Exception, match="still in use by process")
            with in_use:
                download_files(plan, hub=hub)
            raise StopIteration

    with pytest.raises(StopIteration):
        download_files(plan, second, hub)
    run_download(hub, folder, [BIG])


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def published_sets(server: HubServer) -> HubServer:
    """A server with two published sets, each file 100,000 bytes long."""
    for precision, variant in (("fp8", "dev"), ("gguf-q4_k_m", "distilled-1.1")):
        for file in select_file_set(precision, variant):
            data = random.Random(file.name).randbytes(100_000)
            server.files[file.repository, file.path] = data
    return server


def ladder(server: HubServer, *words: object, **more: Any) -> subprocess.Popen[str]:
    environ = os.environ | {
        "HF_ENDPOINT": server.endpoint,
        "HF_TOKEN": "hf_secret",
        "XDG_CACHE_HOME": str(more.pop("cache")),
    }
    command = [sys.executable, "-m", "latent_ladder", "models", "get", *map(str, words)]
    return subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.slow
def test_the_command_downloads_a_set(
    published_sets: HubServer, folder: Path, tmp_path: Path
) -> None:
    words = ("ltx-2.3", "--precision", "fp8", "--to", folder, "--json", "--yes")
    code, out, err = finish(ladder(published_sets, *words, cache=tmp_path))
    assert code == 0, err
    assert {f["state"] for f in json.loads(out)["files"]} == {"downloaded"}
    assert contents(folder) == {f"{f.folder}/{f.name}" for f in select_file_set("fp8", "dev")}
    assert all(a in (None, "Bearer hf_secret") for _, _, _, a in published_sets.requests)


def test_a_dry_run_downloads_nothing(
    published_sets: HubServer, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = functools.partial(plan_download, hub=hub)
    monkeypatch.setattr(download, "plan_download", plan)
    words = ["--precision", "gguf-Q4_K_M", "--distilled", "--to", str(folder), "--dry-run"]
    done = CliRunner().invoke(build_app(), ["models", "get", "LTX-2.3", *words])
    assert done.exit_code == 0, done.output
    assert "ltx-2.3-22b-distilled-1.1-Q4_K_M.gguf" in done.stdout
    assert "diffusion_models" in done.stdout
    assert "to download to" in done.stderr
    assert published_sets.transfers() == [] and not folder.exists()


@pytest.mark.slow
def test_ctrl_c_keeps_the_partial_file_and_exits_with_130(
    server: HubServer, folder: Path, tmp_path: Path
) -> None:
    for file in select_file_set("fp8", "dev"):
        server.files[file.repository, file.path] = bytes(12 * 10**6)
    # The HTTP client passes on 10 MB at a time.
    server.pause_after = 11 * 2**20
    words = ("ltx-2.3", "--precision", "fp8", "--to", folder, "--yes")
    process = ladder(server, *words, cache=tmp_path)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        parts = list(folder.rglob("*.part"))
        if parts and parts[0].stat().st_size >= 10**7:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130, err
    assert "the same command resumes the download" in err
    (part,) = contents(folder)
    assert (folder / part).stat().st_size >= 10**7


def test_a_large_download_needs_a_confirmation(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    plan = DownloadPlan(
        folder, (DownloadItem(BIG, 60 * 10**9, None, COMMIT, folder, "missing", 0),)
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(RequestError, match="there is no terminal to ask"):
        models._confirm(plan, yes=False)
    models._confirm(plan, yes=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ltx-9", "bf16", False), "model ltx-9 is not known"),
        (("ltx-2.3", "q7", False), "precision=q7 is not known for ltx-2.3"),
        (("ltx-2.3", "nvfp4", True), "ltx-2.3 distilled is not published in nvfp4"),
        (("ltx-2.5", "fp8", True), "precision=fp8 is not published for ltx-2.5"),
        (("ltx-2.5", "nvfp4", False), "ltx-2.5 dev is not published in nvfp4"),
    ],
)
def test_unknown_sets_are_refused(words: tuple[str, str, bool], message: str) -> None:
    with pytest.raises(RequestError, match=message) as raised:
        models.select_files(*words)
    assert raised.value.hint


def test_optional_files_are_known_by_family() -> None:
    with pytest.raises(RequestError, match=r"with=diffusion-decoder is no file of ltx-2\.3"):
        models.select_files("ltx-2.3", None, None, ["diffusion-decoder"])
    names = [f.name for f in models.select_files("ltx-2.5", None, None, ["diffusion-decoder"])]
    assert names[-1] == "ltx-2.5-video-vae-bf16.safetensors"


@pytest.mark.parametrize(("precision", "gb"), [("bf16", 71.1), ("int8", 39.7), (None, 39.7)])
def test_the_smallest_set_of_ltx_2_5(precision: str | None, gb: float) -> None:
    files = models.select_files("ltx-2.5", precision)
    assert sum(file.bytes for file in files) / 1e9 == pytest.approx(gb, abs=0.05)
    assert "distilled" in files[0].name
    roles = [role for file in files for role in file.roles]
    assert len(roles) == len(set(roles))
    assert all(file.gated and file.family == "2.5" for file in files)
    dev = models.select_files("ltx-2.5", precision, distilled=False)
    assert "distilled_lora" in dev[-1].roles and "dev" in dev[0].name


def test_the_licence_is_named_before_a_download(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.gates["Lightricks/LTX-2.5"] = {"hf_accepted"}
    plan = functools.partial(plan_download, hub=Hub(server.endpoint, "hf_new"))
    monkeypatch.setattr(download, "plan_download", plan)
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(build_app(), ["models", "get", "ltx-2.5", "--to", str(folder)])
    assert done.exit_code != 0
    licence = (
        "is under the LTX-2.x Community License: read and accept it on https://huggingface.co/"
    )
    assert licence in done.stderr
    assert server.transfers() == []


LICENCE = "Terms of use \u2013 \x1b[31m1. You may ...\n" * 50


@pytest.fixture
def gated(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with all files of LTX-2.5 for an account that accepted the licence there."""
    files = models.select_files("ltx-2.5")
    server.gates["Lightricks/LTX-2.5"] = {"hf_accepted"}
    for file in files:
        server.files[file.repository, file.path] = file.name.encode()
    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    for name in ("plan_download", "fetch_licence", "download_files"):
        whole = functools.partial(getattr(download, name), hub=Hub(server.endpoint, "hf_accepted"))
        monkeypatch.setattr(download, name, whole)
    monkeypatch.setenv("COLUMNS", "200")
    return Hub(server.endpoint, "hf_accepted")


def get_2_5(folder: Path, *words: str, answer: str = "") -> Any:
    command = ["models", "get", "ltx-2.5", "--to", str(folder), *words]
    return CliRunner().invoke(build_app(), command, input=answer)


@pytest.mark.usefixtures("gated")
@pytest.mark.parametrize("name", ["LICENSE", "LICENSE.md"])
def test_the_text_of_a_licence_is_stored_once_accepted(
    server: HubServer, folder: Path, name: str
) -> None:
    server.files["Lightricks/LTX-2.5", name] = LICENCE.encode()
    refused = get_2_5(folder)
    assert isinstance(refused.exception, RequestError)
    assert "add --yes to accept it" in str(refused.exception.hint)
    assert not [path for path, _ in server.transfers() if "LICENSE" not in path]
    assert not folder.exists()
    assert get_2_5(folder, "--yes").exit_code == 0
    stored = folder / "LICENSE-Lightricks-LTX-2.5.txt"
    assert stored.read_text("utf-8") == LICENCE
    assert len(list(folder.rglob("*.safetensors"))) == len(models.select_files("ltx-2.5"))


@pytest.mark.usefixtures("gated")
@pytest.mark.parametrize(("answer", "downloads"), [("n\n", False), ("y\n", True)])
def test_at_a_terminal_it_is_shown_and_asked_for(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str, downloads: bool
) -> None:
    shown: list[str] = []
    server.files["Lightricks/LTX-2.5", "LICENSE"] = LICENCE.encode()
    monkeypatch.setattr("pydoc.pager", shown.append)
    monkeypatch.setattr(models, "is_terminal", lambda: True)
    done = get_2_5(folder, answer=answer)
    assert (done.exit_code == 0) is downloads
    count = len(models.select_files("ltx-2.5")) if downloads else 0
    assert len(list(folder.rglob("*.safetensors"))) == count
    assert "1. You may" in shown[0]
    assert "\x1b" not in shown[0]
    if downloads:
        next(folder.rglob("*.safetensors")).unlink()
        assert get_2_5(folder).exit_code == 0, "it was accepted before"
        assert len(shown) == 1


@pytest.mark.usefixtures("gated")
@pytest.mark.parametrize("text", [None, b"", b"x" * (2**20 + 1)])
def test_without_a_text_its_page_is_named(
    server: HubServer, folder: Path, text: bytes | None
) -> None:
    if text is not None:
        server.files["Lightricks/LTX-2.5", "LICENSE"] = text
    done = get_2_5(folder, "--yes")
    assert done.exit_code == 0
    assert "is on https://huggingface.co/Lightricks/LTX-2.5" in done.stderr
    assert not list(folder.glob("LICENSE*"))


@pytest.mark.parametrize("precision", ["bf16", "fp8", "nvfp4", "gguf-q4_k_m"])
def test_a_set_has_every_role(precision: str) -> None:
    roles = {
        role for file in models.select_files("ltx-2.3", precision, False) for role in file.roles
    }
    wanted = "transformer connectors text_projection video_vae audio_vae vocoder text_encoder"
    assert set(wanted.split()) | {"latent_upsampler", "distilled_lora"} <= roles


def test_the_default_folder_is_the_first_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LADDER_MODELS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert downloading.default_target() == Path("models")
    (tmp_path / "ComfyUI" / "models").mkdir(parents=True)
    assert downloading.default_target() == (tmp_path / "ComfyUI" / "models").resolve()
