"""The vocabulary of a GGUF file tokenizes like the SentencePiece model it was made from."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from helpers.gemma_files import gguf_gemma, golden_tensors, load
from helpers.goldens import Goldens
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from latent_ladder.errors import CorruptCheckpoint
from latent_ladder.models.text_encoder import tokenizer
from latent_ladder.models.text_encoder.gguf_vocabulary import sentencepiece_model
from latent_ladder.models.text_encoder.tokenizer import load_tokenizer
from latent_ladder.storage import atomic_write as disk

TRICKY = (
    "a fox",
    "  double  spaces   and more    ",
    "lines\n\nand\ttabs\r\n",
    "café, naïve, 日本語, 🦊🦊, e\u0301",
    "no\u00a0break \u3000wide \u2581 mark",
    "control \x00 \x01 \x7f",
    "<0x41> <start_of_nothing>",
    "",
    " ",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(golden: Goldens) -> Path:
    path: Path = golden.path("text_encoders/tiny-gemma-3.safetensors")
    return path


@pytest.fixture
def gguf_encoder(source: Path, tmp_path: Path) -> Any:
    path, _ = gguf_gemma(source, tmp_path, gguf.GGMLQuantizationType.F16)
    return load(path)


def metadata(processor: SentencePieceProcessor) -> dict[str, Any]:
    """GGUF metadata of a SentencePiece model as converters write it (spaces in user pieces)."""
    ids = range(processor.get_piece_size())
    tests = ((2, processor.is_unknown), (3, processor.is_control), (6, processor.is_byte))
    types = [next((t for t, test in tests if test(i)), 1) for i in ids]
    pieces = [processor.id_to_piece(i) for i in ids]
    for i in ids:
        if types[i] == 1 and set(pieces[i]) <= {"\u2581", "\n"} and len(pieces[i]) > 1:
            types[i], pieces[i] = 4, pieces[i].replace("\u2581", " ")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [processor.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": types,
    }


def control_tokens(encoder: Any) -> list[str]:
    """Padding, end, begin and unknown token of the tiny vocabulary, by id."""
    return list(encoder.file.kv["tokenizer.ggml.tokens"][:4])


def test_control_tokens_in_a_text_are_one_token(source: Path, gguf_encoder: Any) -> None:
    original, rebuilt = load_tokenizer(load(source)), load_tokenizer(gguf_encoder)
    for number, token in enumerate(control_tokens(gguf_encoder)):
        assert rebuilt.encode(f"a{token}fox") == [
            *original.encode("a"), number, *original.encode("fox")
        ]  # fmt: skip
    _, _, bos, unknown = control_tokens(gguf_encoder)
    assert rebuilt.encode(f"{bos}{unknown}{unknown}") == [2, 3, 3]


def test_decoding_gives_back_every_text(gguf_encoder: Any) -> None:
    """Except for U+2581, which SentencePiece reads as a space."""
    rng, tokens = random.Random(5), load_tokenizer(gguf_encoder)
    alphabet = [
        *map(chr, range(128)),
        *"  \n\n\t\u00e9\u65e5\U0001f98a\u2581",
        *control_tokens(gguf_encoder),
    ]
    for _ in range(500):
        text = "".join(rng.choices(alphabet, k=rng.randrange(12)))
        assert tokens.decode(tokens.encode(text)) == text.replace("\u2581", " "), ascii(text)


def test_reference_vocabulary(source: Path, gguf_encoder: Any) -> None:
    original, rebuilt = load_tokenizer(load(source)), load_tokenizer(gguf_encoder)
    assert (rebuilt.bos, rebuilt.pad) == (original.bos, original.pad) == (2, 0)
    for text in TRICKY:
        assert rebuilt.encode(text) == original.encode(text), text
        assert rebuilt.decode(rebuilt.encode(text)) == original.decode(original.encode(text))


def test_user_defined_pieces_of_spaces_and_lines() -> None:
    """As in Gemma's vocabulary, where sequences of spaces and of line breaks are pieces."""
    trained, text = io.BytesIO(), "the red fox runs. a fox jumps over the lazy dog"
    SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 20),
        model_writer=trained,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=["\u2581\u2581", "\u2581\u2581\u2581", "\n\n", "<start_of_turn>"],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    original = SentencePieceProcessor(model_proto=trained.getvalue())
    kv = metadata(original)
    types = dict(zip(kv["tokenizer.ggml.tokens"], kv["tokenizer.ggml.token_type"], strict=True))
    kv["tokenizer.ggml.token_type"] = [
        4 if piece == "<start_of_turn>" else kind for piece, kind in types.items()
    ]
    assert types["  "] == 4
    rebuilt = SentencePieceProcessor(model_proto=sentencepiece_model(kv))
    for each in TRICKY:
        assert rebuilt.encode(each) == original.encode(each), each


def test_cached_vocabulary_is_not_built_again(
    gguf_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_tokenizer(gguf_encoder).encode("a red fox")

    def never(_: object) -> bytes:
        raise AssertionError("built again")

    monkeypatch.setattr(tokenizer, "sentencepiece_model", never)
    assert load_tokenizer(load(gguf_encoder.file.path)).encode("a red fox") == first


def test_damaged_or_unwritable_cache_is_ignored(
    gguf_encoder: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = load_tokenizer(gguf_encoder).encode("a red fox")
    (kept,) = (cache / "tokenizers").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9] + b"\0" * 9)
    assert load_tokenizer(gguf_encoder).encode("a red fox") == want
    monkeypatch.setenv("LADDER_CACHE", str(gguf_encoder.file.path / "no" / "folder"))
    assert load_tokenizer(gguf_encoder).encode("a red fox") == want


def test_default_cache_is_the_systems_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LADDER_CACHE")
    assert disk.cache_folder().name == "latent-ladder"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "gpt2"}, "kind 'gpt2'"),
        ({"scores": [0.0]}, "1 scores"),
        ({"bos_token_id": 10**6}, "bos_token_id is 1000000"),
        ({"padding_token_id": "no"}, "padding_token_id is 'no'"),
    ],
)
def test_contradicting_metadata_are_rejected(
    source: Path, changes: dict[str, Any], words: str
) -> None:
    raw = golden_tensors(source)[0]["spiece_model"].numpy().tobytes()
    kv = metadata(SentencePieceProcessor(model_proto=raw))
    with pytest.raises(ValueError, match=words):
        sentencepiece_model(kv | {f"tokenizer.ggml.{k}": v for k, v in changes.items()})


def test_vocabulary_of_another_kind_is_reported(source: Path, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "gemma3")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    for name in ("ffn_norm", "post_ffw_norm", "attn_q_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", torch.ones(4).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CorruptCheckpoint, match="kind 'gpt2'"):
        load_tokenizer(load(tmp_path / "x.gguf"))


def test_tokenizer_in_the_file_comes_before_one_next_to_it(source: Path, tmp_path: Path) -> None:
    """A folder of text encoders may contain the tokenizer of another model."""
    tensors, header = golden_tensors(source)
    raw = tensors.pop("spiece_model").numpy().tobytes()
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"<bos>": 0, "fox": 1, "<unk>": 2}, unk_token="<unk>"))
    packed = torch.tensor(list(words.to_str().encode()), dtype=torch.uint8)
    save_file(tensors | {"tokenizer_json": packed}, tmp_path / "g.safetensors", header)
    (tmp_path / "tokenizer.model").write_bytes(raw)
    assert load_tokenizer(load(tmp_path / "g.safetensors")).encode("fox") == [1]
