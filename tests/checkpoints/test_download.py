"""Downloads against a server that speaks the hub's routes, whole and with every fault."""

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
from pathlib import Path

import pytest
from helpers.hub_server import COMMIT, hub_server
from typer.testing import CliRunner

from latent_ladder.checkpoints import download as hub
from latent_ladder.checkpoints.catalog import Published, published_set
from latent_ladder.cli.app import application
from latent_ladder.cli.commands import models
from latent_ladder.errors import (
    CheckpointError,
    CheckpointNotFound,
    CorruptCheckpoint,
    RequestError,
)
from latent_ladder.storage import file_hashes as hub_hashes

BIG = Published("deep/inside/big.safetensors", "org/models", "checkpoints", 0, ("transformer",))
LORA = Published("lora.safetensors", "org/other", "loras", 0, ("distilled_lora",))
CHUNK = 2**16


@pytest.fixture
def server():
    with hub_server() as running:
        running.files["org/models", BIG.path] = random.Random(1).randbytes(20 * CHUNK + 5)
        running.files["org/other", LORA.path] = random.Random(2).randbytes(3 * CHUNK)
        yield running


@pytest.fixture
def asked(server):
    return hub.Hub(server.endpoint, "hf_secret")


@pytest.fixture(autouse=True)
def quick_and_private(monkeypatch, tmp_path):
    monkeypatch.setattr(hub_hashes, "cache_file", lambda: tmp_path / "cache" / "hashes.json")
    monkeypatch.setattr(hub, "PAUSE_S", 0.0)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", CHUNK)
    # The client's own pauses between attempts.
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models"


def get(asked, folder, files=(BIG, LORA), report=lambda *_: None):
    plan = hub.plan(files, folder, asked)
    hub.download(plan, report, asked)
    return plan


def contents(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_a_set_lands_in_the_folder_layout(server, asked, folder):
    seen = []
    plan = get(asked, folder, report=lambda item, done: seen.append((item.file.name, done)))
    assert contents(folder) == {"checkpoints/big.safetensors", "loras/lora.safetensors"}
    big = folder / "checkpoints/big.safetensors"
    assert big.read_bytes() == server.files["org/models", BIG.path]
    assert [item.state for item in plan.items] == ["missing", "missing"]
    assert plan.items[0].revision == COMMIT
    assert seen[-1] == ("lora.safetensors", 3 * CHUNK)


def test_the_token_goes_to_the_hub_and_not_to_the_host_it_redirects_to(server, asked, folder):
    get(asked, folder)
    for method, path, _, authorization in server.requests:
        assert authorization == (None if "/cdn/" in path else "Bearer hf_secret"), (method, path)


def test_a_second_run_downloads_nothing_and_reads_no_file_again(server, asked, folder, monkeypatch):
    get(asked, folder)
    server.requests.clear()
    monkeypatch.setattr(hub_hashes, "_start", None)
    plan = get(asked, folder)
    assert [item.state for item in plan.items] == ["present", "present"]
    assert server.transfers() == [] and plan.remaining == 0


def test_what_someone_else_downloaded_is_hashed_once(server, asked, folder, monkeypatch):
    target = folder / "loras" / LORA.name
    target.parent.mkdir(parents=True)
    target.write_bytes(server.files["org/other", LORA.path])
    assert get(asked, folder, [LORA]).items[0].state == "present"
    monkeypatch.setattr(hub_hashes, "_start", None)
    assert get(asked, folder, [LORA]).items[0].state == "present"


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: bytes([d[0] ^ 1]) + d[1:]])
def test_a_users_own_file_of_that_name_is_never_overwritten(server, asked, folder, change):
    target = folder / "loras" / LORA.name
    target.parent.mkdir(parents=True)
    target.write_bytes(change(server.files["org/other", LORA.path]))
    before = target.read_bytes()
    with pytest.raises(CheckpointError, match="is not the file that org/other publishes"):
        get(asked, folder)
    assert target.read_bytes() == before and server.transfers() == []


def test_a_cut_connection_is_resumed_where_it_broke(server, asked, folder):
    server.cuts = [5 * CHUNK, 7 * CHUNK + 100]
    get(asked, folder, [BIG])
    assert (folder / "checkpoints" / BIG.name).read_bytes() == server.files["org/models", BIG.path]
    ranges = [given for _, given in server.transfers()]
    assert ranges == [None, f"bytes={5 * CHUNK}-", f"bytes={12 * CHUNK}-"]


def test_a_server_without_ranges_sends_all_again_and_the_file_is_right(server, asked, folder):
    server.cuts, server.ranges = [5 * CHUNK], False
    get(asked, folder, [BIG])
    assert (folder / "checkpoints" / BIG.name).read_bytes() == server.files["org/models", BIG.path]


def test_an_error_of_the_server_in_passing_is_tried_again(server, asked, folder):
    server.failures = [503, 502]
    get(asked, folder, [LORA])
    assert len(server.transfers()) == 3


def test_a_server_that_stays_down_is_given_up(server, asked, folder):
    server.failures = [503] * 50
    with pytest.raises(CheckpointError, match="the hub answered 503"):
        get(asked, folder, [LORA])
    assert len(server.transfers()) == hub.ATTEMPTS


def test_interrupted_it_keeps_the_part_and_the_next_run_goes_on(server, asked, folder):
    class Stopped(Exception):
        pass

    def stop(_, done):
        if done > 9 * CHUNK:
            raise Stopped

    with pytest.raises(Stopped):
        get(asked, folder, [BIG], stop)
    (part,) = contents(folder)
    assert part.startswith("checkpoints/big.safetensors.") and part.endswith(".part")
    kept = (folder / part).stat().st_size
    assert kept > 9 * CHUNK
    server.requests.clear()
    plan = get(asked, folder, [BIG])
    assert (plan.items[0].state, plan.items[0].have) == ("partial", kept)
    assert server.transfers()[0][1] == f"bytes={kept}-"
    assert contents(folder) == {"checkpoints/big.safetensors"}


def test_a_new_revision_does_not_continue_an_old_part(server, asked, folder):
    old = hub.plan([BIG], folder, asked).items[0].part
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old" * 1000)
    server.files["org/models", BIG.path] = random.Random(3).randbytes(4 * CHUNK)
    assert get(asked, folder, [BIG]).items[0].state == "missing"
    assert server.transfers()[0][1] is None
    assert contents(folder) == {"checkpoints/big.safetensors"}


def test_wrong_bytes_are_detected_and_removed(server, asked, folder):
    server.corrupt = True
    with pytest.raises(CorruptCheckpoint, match="the hub announces") as raised:
        get(asked, folder)
    assert "big.safetensors from org/models" in str(raised.value)
    assert contents(folder) == set()


def test_small_files_are_checked_by_gits_hash(server, asked, folder):
    server.small = {LORA.path}
    assert get(asked, folder, [LORA]).items[0].hash.kind == "git-sha1"
    (folder / "loras" / LORA.name).unlink()
    server.corrupt = True
    with pytest.raises(CorruptCheckpoint, match="git-sha1"):
        get(asked, folder, [LORA])


@pytest.mark.parametrize(
    ("status", "code", "kind", "message", "hint"),
    [
        (401, "GatedRepo", CheckpointError, "accepted its licence", "huggingface.co/org/other"),
        (403, "GatedRepo", CheckpointError, "accepted its licence", "HF_TOKEN"),
        (403, "", CheckpointError, "accepted its licence", "huggingface.co/org/other"),
        (401, "", CheckpointNotFound, "does not exist, or is private", "HF_TOKEN"),
        (404, "RepoNotFound", CheckpointNotFound, "has no file lora.safetensors", "org/other"),
        (500, "", CheckpointError, "the hub answered 500", "later"),
    ],
)
def test_refusals_come_before_the_first_byte(
    server, asked, folder, status, code, kind, message, hint
):
    server.status["org/other"] = (status, code)
    with pytest.raises(kind, match=message) as raised:
        get(asked, folder)
    assert hint in raised.value.hint
    assert raised.value.code in ("checkpoint_error", "checkpoint_not_found")
    assert server.transfers() == [] and not folder.exists()


def test_a_file_that_is_not_published_is_named(server, asked, folder):
    del server.files["org/other", LORA.path]
    with pytest.raises(CheckpointNotFound, match="org/other has no file lora"):
        get(asked, folder)


def test_no_server_at_all(folder, server):
    with pytest.raises(CheckpointError, match="connection to the hub failed"):
        get(hub.Hub("http://127.0.0.1:9", "t"), folder)


def test_a_disk_without_room_for_all_and_5_percent_is_refused(server, asked, folder, monkeypatch):
    needed = int((23 * CHUNK + 5) * 1.05)
    usage = shutil.disk_usage(folder.parent)
    free = [needed - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free[0]))
    with pytest.raises(CheckpointError, match=r"are free in .*models"):
        get(asked, folder)
    assert server.transfers() == []
    free[0] = needed
    get(asked, folder)


def test_two_at_once_do_not_write_one_file(server, asked, folder):
    plan = hub.plan([BIG], folder, asked)

    def second(_item, done):
        if done > CHUNK:
            monkey = pytest.raises(Exception, match="still in use by process")
            with monkey:
                hub.download(plan, hub=asked)
            raise StopIteration

    with pytest.raises(StopIteration):
        hub.download(plan, second, asked)
    get(asked, folder, [BIG])


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def real_names(server):
    """The server has the published sets, each file some 100 KiB."""
    for precision, variant in (("fp8", "dev"), ("gguf-q4_k_m", "distilled-1.1")):
        for file in published_set(precision, variant):
            data = random.Random(file.name).randbytes(100_000)
            server.files[file.repository, file.path] = data
    return server


def ladder(server, *words, **more):
    environ = os.environ | {
        "HF_ENDPOINT": server.endpoint,
        "HF_TOKEN": "hf_secret",
        "XDG_CACHE_HOME": str(more.pop("cache")),
    }
    command = [sys.executable, "-m", "latent_ladder", "models", "get", *map(str, words)]
    return subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_the_command_gets_a_set(real_names, folder, tmp_path):
    words = ("ltx-2.3", "--precision", "fp8", "--to", folder, "--json", "--yes")
    code, out, err = finish(ladder(real_names, *words, cache=tmp_path))
    assert code == 0, err
    assert {f["state"] for f in json.loads(out)["files"]} == {"downloaded"}
    assert contents(folder) == {f"{f.folder}/{f.name}" for f in published_set("fp8", "dev")}
    assert all(a in (None, "Bearer hf_secret") for _, _, _, a in real_names.requests)


def test_a_dry_run_downloads_nothing(real_names, asked, folder, monkeypatch):
    monkeypatch.setattr(hub, "plan", functools.partial(hub.plan, hub=asked))
    words = ["--precision", "gguf-Q4_K_M", "--distilled", "--to", str(folder), "--dry-run"]
    done = CliRunner().invoke(application(), ["models", "get", "LTX-2.3", *words])
    assert done.exit_code == 0, done.output
    assert "ltx-2.3-22b-distilled-1.1-Q4_K_M.gguf" in done.stdout
    assert "diffusion_models" in done.stdout
    assert "to download to" in done.stderr
    assert real_names.transfers() == [] and not folder.exists()


def test_ctrl_c_keeps_the_part_and_exits_with_130(server, folder, tmp_path):
    for file in published_set("fp8", "dev"):
        server.files[file.repository, file.path] = bytes(12 * 10**6)
    # The client hands over 10 MB at a time.
    server.hold_after = 11 * 2**20
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
    assert "the same command goes on from there" in err
    (part,) = contents(folder)
    assert (folder / part).stat().st_size >= 10**7


def test_a_big_download_needs_a_yes(server, monkeypatch, folder):
    plan = hub.Plan(folder, (hub.Item(BIG, 60 * 10**9, None, COMMIT, folder, "missing", 0),))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(RequestError, match="nobody can be asked"):
        models._ask(plan, yes=False)
    models._ask(plan, yes=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ltx-9", "bf16", False), "ltx-9 is no model to get"),
        (("ltx-2.3", "q7", False), "precision=q7 is not known"),
        (("ltx-2.3", "nvfp4", True), "nobody publishes ltx-2.3 distilled in nvfp4"),
    ],
)
def test_unknown_sets_are_refused(words, message):
    with pytest.raises(RequestError, match=message) as raised:
        models.chosen_set(*words)
    assert raised.value.hint


@pytest.mark.parametrize("precision", ["bf16", "fp8", "nvfp4", "gguf-q4_k_m"])
def test_a_set_has_every_role(precision):
    roles = {role for file in models.chosen_set("ltx-2.3", precision, False) for role in file.roles}
    wanted = "transformer connectors text_projection video_vae audio_vae vocoder text_encoder"
    assert set(wanted.split()) | {"latent_upsampler", "distilled_lora"} <= roles


def test_the_folder_is_the_first_of_the_users(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LADDER_MODELS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert models.target_folder() == Path("models")
    (tmp_path / "ComfyUI" / "models").mkdir(parents=True)
    assert models.target_folder() == (tmp_path / "ComfyUI" / "models").resolve()
