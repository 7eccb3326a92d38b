"""`compare`: the same figures as `evaluate` gives, for any number of models, and honest where tokens differ."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from catonnx.errors import CalibrationError, UsageError
from catonnx.judging.comparing import Comparison, Prompts, compare_on_text, leading_same
from catonnx.judging.evaluation import evaluate_on_text
from catonnx.reporting.measured import load_measured
from catonnx.runtime.divergence import log_softmax
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.sessions import open_session, run
from catonnx.runtime.text import TokenStream, passages
from tests.small_models import QUICK, catonnx_, edited, set_weight

SAMPLES, SEQ_LEN = 3, 24


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("Der Fuchs springt \u00fcber the lazy dog, and the t\u00e4nzer sleeps. " * 40, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def noisy(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the small Llama with noise in its largest weight."""
    largest = max(onnx.load(tiny_llama / "model.onnx").graph.initializer, key=lambda tensor: len(tensor.raw_data)).name
    random = np.random.default_rng(0)

    def shake(array: np.ndarray) -> np.ndarray:
        noise = 0.2 * array.std() * random.standard_normal(array.shape)
        return np.asarray(array + noise, array.dtype)

    return edited(tiny_llama, tmp_path_factory.mktemp("noisy") / "noisy", set_weight(largest, shake))


@pytest.fixture(scope="module")
def merging(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the small GPT-2 with a tokenizer of its own: a space and a t are one token."""
    folder = tmp_path_factory.mktemp("merging") / "merging"
    shutil.copytree(tiny_gpt2, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["\u0120t"] = 259
    tokenizer["model"]["merges"] = [["\u0120", "t"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def result(tiny_llama: Path, noisy: Path, merging: Path, text: Path) -> Comparison:
    prompts = Prompts(("The quick", "Der"), tokens=6)
    models = [tiny_llama, noisy, merging]
    return compare_on_text(models, text, prompts=prompts, samples=SAMPLES, seq_len=SEQ_LEN)


def nats(folder: Path, ids: np.ndarray) -> float:
    session = open_session(folder / "model.onnx")
    logits = run(session, ["logits"], InputSpec.from_session(session).first_feeds(ids[np.newaxis]))[0][0]
    return -float(log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]].sum())


def test_figures_are_those_of_evaluate(result: Comparison, tiny_llama: Path, noisy: Path, text: Path) -> None:
    alone = evaluate_on_text(noisy, text, against=tiny_llama, samples=SAMPLES, seq_len=SEQ_LEN)
    source, other = result.models[:2]
    assert alone.against is not None
    assert source.figures.perplexity == alone.against.perplexity
    for name in ("rows", "perplexity", "against_perplexity", "kl_nats", "top1_agreement", "disk_bytes"):
        assert getattr(other.figures, name) == getattr(alone.model, name)
    assert (source.figures.kl_nats, source.why, other.why) == (None, "", "")
    assert all(row.figures.decode_tokens_per_second and row.figures.prefill_tokens_per_second for row in result.models)
    assert result.reference == str(tiny_llama)
    assert (result.rows, result.tokens) == (SAMPLES, SEQ_LEN)


def test_bits_per_byte_are_what_the_same_text_costs_everybody(
    result: Comparison, tiny_llama: Path, noisy: Path, merging: Path, text: Path
) -> None:
    content = text.read_text(encoding="utf-8")
    parts = passages(content, TokenStream.load(tiny_llama), seq_len=SEQ_LEN, samples=SAMPLES)
    size = sum(len(part.encode()) for part in parts)
    # A token of the small models is a byte; a letter of two bytes that a passage cuts counts in one of them.
    assert abs(size - SAMPLES * (SEQ_LEN - 1)) <= SAMPLES
    assert result.text_bytes == size
    for row, folder in zip(result.models, (tiny_llama, noisy, merging), strict=True):
        stream = TokenStream.load(folder)
        texts = [np.concatenate([stream.prefix, stream.encode(part)]).astype(np.int64) for part in parts]
        wanted = sum(nats(folder, ids) for ids in texts) / math.log(2) / size
        assert row.bits_per_byte == pytest.approx(wanted, rel=1e-5)
        tokens = sum(len(ids) - 1 for ids in texts)
        assert row.figures.perplexity == pytest.approx(math.exp(wanted * math.log(2) * size / tokens), rel=1e-4)


def test_another_tokenizer_is_not_compared_token_by_token(result: Comparison) -> None:
    other = result.models[2]
    assert "another tokenizer" in other.why
    assert (other.figures.kl_nats, other.figures.top1_agreement) == (None, None)
    assert [written.same for written in other.texts] == [None, None]


def test_texts_tell_how_long_they_are_the_references(result: Comparison, tiny_llama: Path) -> None:
    source, other = result.models[0].texts, result.models[1].texts
    assert [written.prompt for written in source] == ["The quick", "Der"]
    for own, written in zip(other, source, strict=True):
        assert own.same is not None
        assert own.ids[: own.same] == written.ids[: own.same]
        assert own.ids[own.same : own.same + 1] != written.ids[own.same : own.same + 1] or own.same == 6
        assert len(own.ids) == 6
        assert own.text == TokenStream.load(tiny_llama).tokenizer.decode(list(own.ids))
    assert [written.same for written in source] == [None, None]


@pytest.mark.parametrize(
    ("ids", "others", "same"),
    [((1, 2, 3), (1, 2, 3), 3), ((1, 9, 3), (1, 2, 3), 1), ((1, 2), (1, 2, 3), 2), ((4,), (1, 4), 0), ((), (1,), 0)],
)
def test_what_is_the_same_again_after_a_difference_does_not_count(
    ids: tuple[int, ...], others: tuple[int, ...], same: int
) -> None:
    assert leading_same(ids, others) == same


def test_a_model_is_like_itself(tiny_llama: Path, text: Path) -> None:
    prompts = Prompts(("The",), tokens=5, temperature=1.0, seed=3)
    found = compare_on_text(
        [tiny_llama], text, against=tiny_llama / "model.onnx", prompts=prompts, samples=2, seq_len=16
    )
    own, against = found.models
    assert (found.reference, against.model) == (str(tiny_llama / "model.onnx"), found.reference)
    assert own.figures.kl_nats == pytest.approx(0, abs=1e-12)
    assert (own.figures.top1_agreement, own.texts[0].same) == (1, 5)
    assert own.bits_per_byte == pytest.approx(against.bits_per_byte)


def test_outputs_that_do_not_fit_are_said_to(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    def wider(model: onnx.ModelProto) -> None:
        graph = model.graph
        graph.node.append(onnx.helper.make_node("Concat", ["logits", "logits"], ["doubled"], axis=-1))
        for node in graph.node[:-1]:
            node.output[:] = ["inner" if name == "logits" else name for name in node.output]
        graph.node[-1].input[:] = ["inner", "inner"]
        graph.node[-1].output[:] = ["logits"]
        next(value for value in graph.output if value.name == "logits").type.tensor_type.shape.dim[-1].dim_value = 520

    other = edited(tiny_llama, tmp_path / "wider", wider)
    found = compare_on_text([tiny_llama, other], text, samples=2, seq_len=16).models[1]
    assert "different shapes" in found.why
    assert found.figures.kl_nats is None
    assert found.bits_per_byte is not None


def test_encoders_are_compared_by_cosine(tiny_bert: Path, text: Path) -> None:
    found = compare_on_text([tiny_bert, tiny_bert / "model.onnx"], text, samples=2, seq_len=16).models[1]
    assert found.figures.cosine is not None
    assert found.figures.cosine["last_hidden_state"] == pytest.approx(1)
    assert found.bits_per_byte is None
    with pytest.raises(CalibrationError, match="no logits"):
        compare_on_text([tiny_bert], text, prompts=Prompts(("The",)), samples=2, seq_len=16)


def test_no_model_is_refused(text: Path) -> None:
    with pytest.raises(UsageError, match="no model"):
        compare_on_text([], text)


def test_progress_counts_every_row_of_every_model(tiny_llama: Path, noisy: Path, text: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    compare_on_text([tiny_llama, noisy], text, samples=2, seq_len=16, progress=lambda *step: steps.append(step))
    assert steps == [("compare", done, 4) for done in (1, 2, 3, 4)]


def test_the_command_shows_a_model_a_row_and_texts_side_by_side(
    tiny_llama: Path, noisy: Path, text: Path, tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    options = ("--text", text, *QUICK, "--prompt", "The", "--tokens", 4, "--json", file)
    done = catonnx_("compare", tiny_llama, noisy, *options)
    assert done.exit_code == 0, done.output
    for part in ("4 x 32 tokens", "a byte", "top-1", "reference", "decode", "prompt  The", "of 4 tokens are the"):
        assert part in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    data = json.loads(file.read_text())
    assert [row["model"] for row in data["models"]] == [str(tiny_llama), str(noisy)]
    assert data["models"][1]["texts"][0]["same"] is not None
    assert data["models"][1]["kl_nats"] > 0
    assert f"{data['models'][1]['perplexity']:.3f}" in done.stdout
    assert load_measured(file)[1].perplexity == data["models"][1]["perplexity"]


def test_many_models_have_their_texts_below_each_other(tiny_llama: Path, noisy: Path, text: Path) -> None:
    files = [folder / "model.onnx" for folder in (tiny_llama, noisy)]
    done = catonnx_("compare", tiny_llama, noisy, *files, "--text", text, *QUICK, "--prompt", "The", "--tokens", 2)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("are the reference's") == 3


@pytest.mark.parametrize(
    ("code", "said", "options"),
    [
        (3, "no such model", ("{llama}/nothing", "--text", "{text}")),
        (3, "no such model", ("{llama}", "--against", "{llama}/nothing", "--text", "{text}")),
        (5, "cannot be read", ("{llama}", "--text", "{llama}/nothing.txt")),
        (5, "the text has", ("{llama}", "--text", "{text}", "--seq-len", "9000")),
        (6, "does not exist", ("{llama}", "--text", "{text}", "--json", "{llama}/a/b.json")),
        (2, "Usage", ("{llama}", "--text", "{text}", "--temperature", "-1")),
        (2, "Usage", ("--text", "{text}")),
    ],
)
def test_failures_end_with_their_code(
    code: int, said: str, options: tuple[str, ...], tiny_llama: Path, text: Path
) -> None:
    done = catonnx_("compare", *(part.format(llama=tiny_llama, text=text) for part in options))
    assert done.exit_code == code, done.output
    assert said in done.stderr
    assert not done.stdout
