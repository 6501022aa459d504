"""`ladder doctor`: files found and missing, presets that can run, JSON and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import model_folders, true_size
from typer.testing import CliRunner, Result

from latent_ladder.checkpoints.catalog import FILES
from latent_ladder.cli.app import build_app
from latent_ladder.diagnostics.doctor import examine, report
from latent_ladder.request.presets import preset_names


@pytest.fixture(autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model folder, config file or store of the machine that runs the tests."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.chdir(home)
    monkeypatch.delenv("LADDER_MODELS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setenv("LADDER_STORE", str(home / "store"))


def doctor(*words: object) -> Result:
    done = CliRunner().invoke(build_app(), ["doctor", "--vram", "64", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def as_json(*words: object) -> tuple[Any, int]:
    done = doctor("--json", *words)
    return json.loads(done.stdout), done.exit_code


def presets(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in body["presets"]}


def test_a_complete_folder_runs_every_preset_with_its_upsamplers(tmp_path: Path) -> None:
    body, code = as_json("--models", model_folders.single(tmp_path))
    assert (code, body["runnable"], body["only_pocket"], body["error"]) == (0, True, False, None)
    assert set(presets(body)) == set(preset_names())
    waiting = {row["name"] for row in body["presets"] if not row["ready"]}
    newest = {name for name in preset_names() if name.startswith("ltx-2.5-")}
    assert waiting == {"distilled-x1.5", "temporal"} | newest
    assert body["misplaced"] == body["damaged"] == []


def test_every_role_has_path_precision_family_size_and_choice(tmp_path: Path) -> None:
    model_folders.single(tmp_path)
    model_folders.copy(tmp_path, "unet/q8.gguf", "quantized/tiny-ltx-2.3-Q8_0.gguf")
    body, _ = as_json("--models", tmp_path)
    rows = {(r["role"], r["name"]): r for r in body["models"]}
    bf16 = rows["transformer", "checkpoints/tiny-dev.safetensors"]
    q8 = rows["transformer", "unet/q8.gguf"]
    assert (bf16["precision"], bf16["family"], bf16["chosen"]) == ("bf16", "2.3", True)
    assert (q8["precision"], q8["container"], q8["chosen"]) == ("q8_0", "gguf", False)
    assert 100_000 < q8["bytes"] < bf16["bytes"]
    chosen = {r["role"] for r in body["models"] if r["chosen"]}
    # a pixel upscaler is used by name only
    assert chosen == {r["role"] for r in body["models"]} - {"pixel_upscaler"}
    assert not any(r["chosen"] for r in body["models"] if r["embedded"])


def test_stages_are_fitted_to_the_memory(tmp_path: Path) -> None:
    body, _ = as_json("--models", model_folders.single(tmp_path))
    stages = presets(body)["distilled-lora"]["stages"]
    assert stages[0]["name"] == "prompt"
    assert all(s["peak_bytes"] > 0 for s in stages)
    assert body["budget"]["bytes"] == 64 * 2**30
    small, _ = as_json("--models", tmp_path, "--vram", "0.05")
    assert "needs" in presets(small)["distilled-lora"]["too_big"]


WANTED = {
    "latent_upscale_models/x2.safetensors": "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
    "loras/tiny-distilled-lora.safetensors": "ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
    "text_encoders/tiny-gemma.safetensors": "gemma_3_12B_it.safetensors",
    "vae/tiny-video-vae.safetensors": "LTX23_video_vae_bf16.safetensors",
    "vae/tiny-audio-vae.safetensors": "LTX23_audio_vae_bf16.safetensors",
}


@pytest.mark.parametrize("removed", WANTED)
def test_a_missing_file_is_named_with_folder_page_and_bytes(tmp_path: Path, removed: str) -> None:
    (model_folders.split(tmp_path) / removed).unlink()
    body, code = as_json("--models", tmp_path)
    row = presets(body)["distilled-lora"]
    assert not row["ready"]
    (missing,) = row["missing"]
    published = next(f for f in FILES if f.name == WANTED[removed])
    assert missing["get"] == {
        "file": published.name,
        "folder": published.folder,
        "page": f"https://{published.page}",
        "bytes": published.bytes,
        "exact": published.exact,
    }
    optional = removed.startswith(("latent", "loras", "vae/tiny-audio"))
    assert code == (0 if optional else 3)


def test_presets_that_need_less_stay_ready(tmp_path: Path) -> None:
    (model_folders.single(tmp_path) / "latent_upscale_models/x2.safetensors").unlink()
    body, _ = as_json("--models", tmp_path)
    ready = {name for name, row in presets(body).items() if row["ready"]}
    assert ready == {"distilled-lora-single", "distilled-single", "pocket"}


def test_a_preset_for_distilled_models_with_a_dev_model_has_a_note(tmp_path: Path) -> None:
    body, _ = as_json("--models", model_folders.single(tmp_path))
    (advice,) = presets(body)["three-stage"]["advice"]
    assert advice == "the preset is for a distilled model, tiny-dev.safetensors is a dev model"
    assert presets(body)["distilled-lora"]["advice"] == []


def test_the_pocket_counts_unless_a_folder_is_named(tmp_path: Path) -> None:
    body, code = as_json()
    assert (code, body["runnable"], body["only_pocket"]) == (0, True, True)
    assert [name for name, row in presets(body).items() if row["ready"]] == ["pocket"]
    (missing,) = presets(body)["hq"]["missing"][:1]
    assert missing["get"]["file"] == "ltx-2.3-22b-dev-fp8.safetensors"
    body, code = as_json("--models", tmp_path)
    assert (code, body["runnable"], body["only_pocket"]) == (3, False, True)


def test_an_incomplete_set_cannot_run_and_has_a_reason(tmp_path: Path) -> None:
    (model_folders.single(tmp_path) / "text_encoders/tiny-gemma.safetensors").unlink()
    body, code = as_json("--models", tmp_path)
    assert (code, body["error"]["code"]) == (3, "checkpoint_not_found")
    assert "gemma_3_12B_it.safetensors (24.4 GB" in body["error"]["hint"]
    done = doctor("--models", tmp_path)
    assert done.exit_code == 3
    assert "error: no text encoder found" in done.stderr


def test_misplaced_and_damaged_files_and_those_of_other_models(tmp_path: Path) -> None:
    model_folders.single(tmp_path)
    model_folders.copy(tmp_path, "checkpoints/q.gguf", "quantized/tiny-ltx-2.3-Q8_0.gguf")
    model_folders.unrelated(tmp_path / "checkpoints/sd15.safetensors")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/page.safetensors").write_text("<!DOCTYPE html><html></html>")
    body, code = as_json("--models", tmp_path)
    assert code == 0
    assert [(m["category"], m["expected"]) for m in body["misplaced"]] == [
        ("checkpoints", "diffusion_models")
    ]
    assert [d["path"].rpartition("/")[2] for d in body["damaged"]] == ["page.safetensors"]
    assert body["other_files"] == 1
    done = doctor("--models", tmp_path)
    assert "ComfyUI looks for it in diffusion_models/" in done.stderr
    assert "sd15" not in done.stdout + done.stderr


def test_a_table_for_people(tmp_path: Path) -> None:
    (model_folders.single(tmp_path) / "latent_upscale_models/x2.safetensors").unlink()
    text = doctor("--models", tmp_path).stdout
    for words in ("tiny-dev.safetensors", "latent_upscale_models/", "0.996 GB", "incomplete"):
        assert words in text
    assert "pocket-ltx" not in text


@pytest.mark.slow
def test_a_folder_that_does_not_exist_is_an_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "latent_ladder", "doctor", "--models", "/nowhere", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["code"] == "checkpoint_not_found"


def test_the_real_model_is_detected_from_its_headers(tmp_path: Path) -> None:
    true_size.checkpoint(tmp_path, "fp8")
    true_size.companions(tmp_path, "fp8")
    body = report(examine([tmp_path]))
    rows = {r["role"]: r for r in body["models"] if not r["embedded"]}
    assert rows["transformer"]["precision"] == rows["text_encoder"]["precision"] == "fp8"
    assert 19e9 < rows["transformer"]["bytes"] < 25e9
    missing = {row["name"] for row in body["presets"] if row["missing"]}
    assert missing == {name for name in preset_names() if name.startswith("ltx-2.5-")}
    sized = [row["stages"] for row in body["presets"] if row["ready"]]
    assert sized
    assert all(sized)


@pytest.mark.slow
def test_doctor_does_not_import_torch(tmp_path: Path) -> None:
    model_folders.single(tmp_path)
    code = (
        "import sys\nimport latent_ladder.cli.app\n"
        "from latent_ladder.diagnostics.doctor import examine, report\n"
        f"report(examine([{str(tmp_path)!r}]))\n"
        "print({'torch', 'diffusers', 'transformers', 'av'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_torch_is_queried_on_request(tmp_path: Path) -> None:
    body, _ = as_json("--gpu", "--models", model_folders.single(tmp_path))
    assert body["torch"]["version"]
    assert isinstance(body["torch"]["cuda"], list)
