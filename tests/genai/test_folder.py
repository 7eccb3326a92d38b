"""Folders for onnxruntime-genai: the real package says the same as plain ONNX Runtime."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tokenizers import Tokenizer

import catonnx
import models
from catonnx.errors import UsageError
from catonnx.genai.config import session_options
from catonnx.genai.decoder import Decoder, decoder_of
from catonnx.genai.folder import _add_library, prepare
from catonnx.graph.load import find
from catonnx.graph.load import read as read_model
from catonnx.ops.place import NAME, VARIABLE
from models.tokens import BOS
from tests.small_models import LEVEL, QUICK, catonnx_, edited, language_feeds
from tools.greedy import by_genai, end_ids, plain, until_end

RECIPE = catonnx.Recipe(samples=2, seq_len=16)
PROMPTS = ([BOS, 72, 105, 40, 2], [BOS, 7])
INPUTS = {"model_input_names": ["input_ids", "attention_mask"]}
TEXT = "hello 12 <s>wörld\n ä 漢字"


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def assert_same_tokens(folder: Path, tokens: int = 20, level: str = "4") -> None:
    """Check that onnxruntime-genai opens a folder as it is, and goes on as plain ONNX Runtime does."""
    pytest.importorskip("onnxruntime_genai", reason="pip install onnxruntime-genai")
    ends = end_ids(folder)
    wanted = [until_end(ids, ends) for ids in plain(folder, PROMPTS, tokens, {LEVEL: level})]
    assert [until_end(ids, ends) for ids in by_genai(folder, PROMPTS, tokens)] == wanted
    assert max(map(len, wanted)) > 4


def tokenizer_of(folder: Path) -> Any:
    genai = pytest.importorskip("onnxruntime_genai", reason="pip install onnxruntime-genai")
    return genai.Tokenizer(genai.Model(str(folder)))


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tiny-llama", "llama"),
        ("tiny-qwen2", "qwen2"),
        ("tiny-gemma2", "gemma2"),
        ("tiny-gpt2", "decoder"),
        ("tiny-opt", "decoder"),
        ("tiny-gpt-oss", "gptoss"),
    ],
)
def test_genai_writes_what_plain_onnx_runtime_writes(name: str, kind: str, tmp_path: Path) -> None:
    report = catonnx.optimize(models.path(name), tmp_path / "out", RECIPE, genai=True)
    config = read(tmp_path / "out" / "genai_config.json")
    assert config["model"]["type"] == kind
    assert config["search"]["past_present_share_buffer"] is False
    assert any("by names alone" in line for line in report.genai) == (kind == "decoder")
    assert_same_tokens(tmp_path / "out")


def test_genai_feeds_a_cache_that_became_float16(tiny_llama: Path, tmp_path: Path) -> None:
    catonnx.optimize(tiny_llama, tmp_path / "out", dataclasses.replace(RECIPE, dtype="float16"), genai=True)
    assert_same_tokens(tmp_path / "out")


def test_the_command_says_what_it_wrote(tiny_llama: Path, tmp_path: Path) -> None:
    result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", "--genai", *QUICK)
    assert result.exit_code == 0, result.output
    assert "onnxruntime_genai.Model(OUT) opens the folder" in result.stdout
    assert any("opens the folder" in line for line in read(tmp_path / "out" / "catonnx.json")["genai"])


def test_targets_ask_for_it_too(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('target = "genai-cpu"\n')
    result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", "--recipe", tmp_path / "recipe.toml", *QUICK)
    assert result.exit_code == 0, result.output
    assert read(tmp_path / "out" / "catonnx.json")["recipe"]["form"] == "nbits"
    assert_same_tokens(tmp_path / "out")


def test_what_a_target_asks_for_can_be_typed_off(tiny_llama: Path, tmp_path: Path) -> None:
    result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", "--target", "genai-cpu", "--no-genai", *QUICK)
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out" / "genai_config.json").exists()


def test_nothing_is_written_unasked(tiny_llama: Path, tmp_path: Path) -> None:
    report = catonnx.optimize(tiny_llama, tmp_path / "out", RECIPE)
    assert report.genai == ()
    assert not (tmp_path / "out" / "genai_config.json").exists()


def test_the_level_of_activations_can_be_set_there(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    catonnx.optimize(tiny_llama, out, RECIPE, genai=True)
    config = read(out / "genai_config.json")
    assert config["model"]["decoder"]["session_options"][LEVEL] == "4"
    assert_same_tokens(out)
    config["model"]["decoder"]["session_options"][LEVEL] = "0"
    (out / "genai_config.json").write_text(json.dumps(config))
    assert_same_tokens(out, level="0")
    with pytest.raises(AssertionError):
        assert_same_tokens(out, level="4")


def test_our_library_goes_into_the_folder(
    tiny_llama: Path, tmp_path: Path, ops_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    recipe = catonnx.Recipe(samples=2, seq_len=16, form="op", scheme="w4a8", activation_range="symmetric")
    monkeypatch.setenv(VARIABLE, str(ops_library))
    catonnx.optimize(tiny_llama, out, recipe, genai=True)
    options = read(out / "genai_config.json")["model"]["decoder"]["session_options"]
    assert options["custom_ops_library"] == NAME
    assert (out / NAME).read_bytes() == ops_library.read_bytes()
    assert_same_tokens(out)
    if pytest.importorskip("onnxruntime_genai"):
        (out / NAME).unlink()
        with pytest.raises(RuntimeError, match=NAME):  # it was that library that the folder was opened with
            tokenizer_of(out)


def test_without_the_library_the_functions_run(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    recipe = catonnx.Recipe(samples=2, seq_len=16, form="op")
    report = catonnx.optimize(tiny_llama, tmp_path / "out", recipe, genai=True)
    assert any("the library is not built" in line for line in report.genai)
    assert "custom_ops_library" not in (tmp_path / "out" / "genai_config.json").read_text()
    assert_same_tokens(tmp_path / "out")


def test_a_library_that_is_named_wrongly_is_told(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing.so"))
    decoder = decoder_of(read_model(tiny_llama / "model.onnx"))
    options = session_options({"model": {"decoder": {}}})
    assert "names a file that is not there" in _add_library(tmp_path, options, decoder)[0]
    assert "another library, mine.so" in _add_library(tmp_path, {"custom_ops_library": "mine.so"}, decoder)[0]


@pytest.mark.parametrize(
    ("provider", "kernels", "taken"), [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)]
)
def test_bfloat16_takes_the_library_only_where_its_kernels_run(
    provider: str, kernels: bool, taken: bool, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, stage = tmp_path / "built.so", tmp_path / "stage"
    built.write_bytes(b"")
    stage.mkdir()
    monkeypatch.setattr("catonnx.genai.folder.library", lambda: built)
    monkeypatch.setattr("catonnx.genai.folder.has_cuda", lambda path: kernels and path == built)
    decoder = decoder_of(read_model(tiny_llama / "model.onnx"))
    assert isinstance(decoder, Decoder)
    decoder = dataclasses.replace(decoder, dtype=ir.DataType.BFLOAT16)
    options: dict[str, Any] = {"provider_options": [{provider: {}}]}
    told = _add_library(stage, options, decoder)[0]
    assert ("no kernels for BFLOAT16" not in told) == ("custom_ops_library" in options) == taken
    assert any(stage.iterdir()) == taken


def test_a_genai_folder_stays_one(tiny_llama: Path, tmp_path: Path) -> None:
    catonnx.optimize(tiny_llama, tmp_path / "first", catonnx.Recipe(samples=2, seq_len=16, scheme="float"), genai=True)
    # As onnxruntime-genai's builder might have left it: another name, options of its own, a second model beside it.
    source = tmp_path / "source"
    source.mkdir()
    for file in (tmp_path / "first").iterdir():
        if file.suffix in (".json", ".onnx_data"):
            shutil.copyfile(file, source / file.name)
    model = onnx.load(tmp_path / "first" / "model.onnx", load_external_data=False)
    del model.metadata_props[:]
    onnx.save(model, source / "decoder.onnx")
    (source / "speculator.onnx").write_bytes((source / "decoder.onnx").read_bytes())
    config = read(source / "genai_config.json")
    config["model"]["decoder"]["filename"] = "decoder.onnx"
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = 1
    config["model"]["speculator"] = {"filename": "speculator.onnx"}
    config["search"]["top_p"] = 0.5
    (source / "genai_config.json").write_text(json.dumps(config))

    report = catonnx.optimize(source, tmp_path / "out", RECIPE)
    found = read(tmp_path / "out" / "genai_config.json")
    assert any("came along" in line for line in report.genai)
    assert found["model"]["decoder"]["filename"] == "model.onnx"
    assert found["model"].pop("speculator") == {"filename": "speculator.onnx"}
    assert found["model"]["decoder"]["session_options"]["intra_op_num_threads"] == 1
    assert found["search"]["top_p"] == 0.5
    (tmp_path / "out" / "genai_config.json").write_text(json.dumps(found))
    assert_same_tokens(tmp_path / "out")


def test_a_config_that_names_another_model_names_ours(tiny_llama: Path, tmp_path: Path) -> None:
    source = copied(tiny_llama, tmp_path / "source")
    prepare(source, find(source), catonnx.Recipe(), wanted=True)
    config = read(source / "genai_config.json")
    config["model"]["decoder"]["filename"] = "model_q4.onnx"
    (source / "genai_config.json").write_text(json.dumps(config))
    report = catonnx.optimize(source, tmp_path / "out", RECIPE)
    assert any("named model_q4.onnx" in line for line in report.genai)
    assert_same_tokens(tmp_path / "out")


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"bos_token_id": 256}}'])
def test_a_config_that_is_no_config_is_left(content: str, tiny_llama: Path, tmp_path: Path) -> None:
    source = copied(tiny_llama, tmp_path / "source")
    (source / "genai_config.json").write_text(content)
    feeds = tmp_path / "feeds.npz"
    np.savez(feeds, allow_pickle=False, **{f"0/{name}": array for name, array in language_feeds(source).items()})
    report = catonnx.optimize(source, tmp_path / "out", catonnx.Recipe(calibration=str(feeds)))
    assert (tmp_path / "out" / "genai_config.json").read_text() == content
    assert len(report.genai) == (content[0] != "{" or content == "{")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny-llama-dynamo", "it has no cache"),
        ("tiny-bert", "it is no language model"),
        ("tiny-vit", "it is no language model"),
    ],
)
def test_a_model_that_genai_cannot_feed_is_optimized_and_told_of(name: str, said: str, tmp_path: Path) -> None:
    source = copied(models.path(name), tmp_path / "source")
    if not (source / "tokenizer.json").exists():
        (source / "tokenizer.json").write_text("{}")
    options = ("--calibration", source / "feeds.npz") if name == "tiny-vit" else QUICK
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    options = (*options, "--calibration", text) if name == "tiny-bert" else options
    result = catonnx_("optimize", source, "-o", tmp_path / "out", "--genai", *options)
    assert result.exit_code == 0, result.output
    assert f"no genai_config.json was written: {said}" in " ".join(result.stdout.split())
    assert (tmp_path / "out" / "model.onnx").exists()
    assert not (tmp_path / "out" / "genai_config.json").exists()


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_folder_without_what_genai_is_told_is_refused_before_any_work(
    missing: str, tiny_llama: Path, tmp_path: Path
) -> None:
    source = copied(tiny_llama, tmp_path / "source")
    (source / missing).unlink()
    result = catonnx_("optimize", source, "-o", tmp_path / "out", "--genai", *QUICK)
    assert result.exit_code == 2
    assert f"onnxruntime-genai needs {missing}" in result.stderr
    assert not (tmp_path / "out").exists()
    (source / missing).write_text("[")
    result = catonnx_("optimize", source, "-o", tmp_path / "out", "--genai", *QUICK)
    assert result.exit_code == 3
    assert f"{missing} cannot be read" in result.stderr


@pytest.mark.parametrize("name", ["genai_config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{ broken", "[]"])
def test_a_broken_file_that_is_read_is_refused_before_any_work(
    name: str, content: str, tiny_llama: Path, tmp_path: Path
) -> None:
    source = copied(tiny_llama, tmp_path / "source")
    (source / name).write_text(content)
    result = catonnx_("optimize", source, "-o", tmp_path / "out", "--genai", *QUICK)
    assert result.exit_code == 3
    assert f"{name} {'cannot be read' if content[0] == '{' else 'is not a JSON object'}" in result.stderr
    assert str(source / name) in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder_for_genai(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give the folder"):
        catonnx.optimize(tiny_llama / "model.onnx", tmp_path / "out", RECIPE, genai=True)


def test_a_model_that_stays_as_it_is_opens_too(tiny_llama: Path, tmp_path: Path) -> None:
    catonnx.optimize(tiny_llama, tmp_path / "first", RECIPE)
    report = catonnx.optimize(tmp_path / "first", tmp_path / "out", RECIPE, genai=True, allow_unchanged=True)
    assert report.unchanged
    assert report.genai
    assert_same_tokens(tmp_path / "out")


def test_a_tokenizer_that_genai_reads_wrongly_is_mended(tiny_llama: Path, tmp_path: Path) -> None:
    source = copied(tiny_llama, tmp_path / "source")
    tokenizer = read(source / "tokenizer.json")
    # What transformers makes of a GGUF file.
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    parts = [{"type": "ByteFallback"}, {"type": "Fuse"}, replace, tokenizer["decoder"]]
    tokenizer["decoder"] = {"type": "Sequence", "decoders": parts}
    tokenizer["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<s>"}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MyTokenizer", "kept": 1}))

    report = catonnx.optimize(source, tmp_path / "out", RECIPE, genai=True)
    assert [line.partition(":")[0] for line in report.genai[1:]] == ["tokenizer.json", "tokenizer_config.json"]
    settings = read(tmp_path / "out" / "tokenizer_config.json")
    assert settings == {**INPUTS, "tokenizer_class": "PreTrainedTokenizerFast", "kept": 1}
    before, after = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (source, tmp_path / "out"))
    wanted = before.encode(TEXT).ids
    assert after.encode(TEXT).ids == wanted
    assert after.decode(wanted) == before.decode(wanted)
    genai = tokenizer_of(tmp_path / "out")
    assert genai.encode(TEXT).tolist() == wanted
    assert genai.decode(wanted) == after.decode(wanted, skip_special_tokens=True)
    # The package still needs it: else this mending is to go.
    shutil.copyfile(source / "tokenizer.json", tmp_path / "out" / "tokenizer.json")
    assert tokenizer_of(tmp_path / "out").encode(TEXT).tolist() != wanted


def test_a_tokenizer_without_settings_gets_some(tiny_llama: Path, tmp_path: Path) -> None:
    catonnx.optimize(tiny_llama, tmp_path / "out", RECIPE, genai=True)
    settings = read(tmp_path / "out" / "tokenizer_config.json")
    assert settings == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        **INPUTS,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    genai = tokenizer_of(tmp_path / "out")
    assert genai.encode(TEXT).tolist() == Tokenizer.from_file(str(tiny_llama / "tokenizer.json")).encode(TEXT).ids


def test_the_provider_goes_into_the_config(tiny_llama: Path, tmp_path: Path) -> None:
    stage = copied(tiny_llama, tmp_path / "stage")
    prepare(stage, find(tiny_llama), catonnx.Recipe(provider="cuda"), wanted=True)
    options = read(stage / "genai_config.json")["model"]["decoder"]["session_options"]
    assert options == {"log_id": "onnxruntime-genai", "provider_options": [{"cuda": {}}]}
    # A second time nothing is added.
    prepare(stage, find(tiny_llama), catonnx.Recipe(provider="cuda"), wanted=True)
    assert read(stage / "genai_config.json")["model"]["decoder"]["session_options"] == options


def test_inputs_that_genai_does_not_feed_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    def with_input(model: onnx.ModelProto) -> None:
        model.graph.input.append(onnx.helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1]))

    def without_output(model: onnx.ModelProto) -> None:
        (last,) = [value for value in model.graph.output if value.name == "present.1.key"]
        model.graph.output.remove(last)

    for edit, said in [(with_input, "feeds no use_cache_branch"), (without_output, "present.1.key")]:
        folder = edited(tiny_llama, tmp_path / edit.__name__, edit)
        told = decoder_of(read_model(folder / "model.onnx"))
        assert isinstance(told, str)
        assert said in told
