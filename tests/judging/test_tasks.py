"""`evaluate --tasks`: lm-eval asks our models the questions of a task whose data lie in a file."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from catonnx.errors import CalibrationError, UsageError
from catonnx.judging.tasks import Tasks, evaluate_on_tasks
from catonnx.runtime.scoring import Scorer
from catonnx.runtime.sessions import open_session
from catonnx.runtime.text import TokenStream
from tests.small_models import catonnx_

needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
# What lm-eval and its data library do on their own is no defect of ours.
quiet = pytest.mark.filterwarnings("ignore")

QUESTIONS: list[dict[str, Any]] = [
    {"question": "The fox jumps over the", "choices": ["dog", "moon", "fence"], "answer": 0},
    {"question": "Two and two are", "choices": ["four", "nine"], "answer": 0},
    {"question": "A year has twelve", "choices": ["days", "months", "hours"], "answer": 1},
]
COMMON = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
"""
CHOICE = """task: own_choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
READ = """task: own_read
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - metric: bits_per_byte
"""
WRITE = """task: own_write
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  until: ["zzz"]
  max_gen_toks: 3
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with three tasks and their questions."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "tasks"
    place.mkdir()
    data = place / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, text in (("choice", CHOICE), ("read", READ), ("write", WRITE)):
        (place / f"{name}.yaml").write_text(text + COMMON.format(file=data))
    return place


@pytest.fixture(scope="module")
def scorer(tiny_llama: Path) -> Scorer:
    return Scorer(open_session(tiny_llama / "model.onnx"), TokenStream.load(tiny_llama), frozenset({257}), 512)


@needs_lm_eval
@quiet
def test_figures_are_what_the_models_own_answers_give(tiny_llama: Path, scorer: Scorer, folder: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    found = evaluate_on_tasks(tiny_llama, Tasks(("own_*",), (folder,)), progress=lambda *step: steps.append(step))
    told = {(row.task, row.metric): row for row in found}
    right = 0
    for question in QUESTIONS:
        thought = [scorer.continuation(question["question"], f" {words}")[0] for words in question["choices"]]
        right += thought.index(max(thought)) == question["answer"]
    assert told["own_choice", "acc"].value == pytest.approx(right / 3)
    texts = [question["question"] for question in QUESTIONS]
    bits = -sum(map(scorer.text, texts)) / 0.6931471805599453 / sum(len(text.encode()) for text in texts)
    assert told["own_read", "bits_per_byte"].value == pytest.approx(bits, rel=1e-6)
    assert told["own_write", "exact_match"].value == 0  # a small random model knows nothing
    assert {row.samples for row in found} == {3}
    assert ("ask", 8, 8) in steps
    assert ("read", 3, 3) in steps
    assert ("write", 3, 3) in steps


def test_a_space_before_words_is_theirs(scorer: Scorer) -> None:
    apart, joined = scorer.continuation("The fox ", "dog"), scorer.continuation("The fox", " dog")
    assert apart == joined


@needs_lm_eval
@quiet
def test_fewer_questions_and_solved_examples(tiny_llama: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts: list[str] = []

    def recorded(_: Scorer, context: str, words: str) -> tuple[float, bool]:
        contexts.append(context)
        return float(-len(words)), False

    monkeypatch.setattr(Scorer, "continuation", recorded)
    (folder / "choice.yaml").write_text((folder / "choice.yaml").read_text() + "fewshot_split: test\n")
    found = [evaluate_on_tasks(tiny_llama, Tasks(("own_choice",), (folder,), shots, 2))[0] for shots in (0, 1)]
    assert [row.samples for row in found] == [2, 2]
    plain, shown = contexts[:5], contexts[5:]
    assert plain == [QUESTIONS[0]["question"]] * 3 + [QUESTIONS[1]["question"]] * 2
    assert all(long.endswith(short) and len(long) > len(short) for long, short in zip(shown, plain, strict=True))
    with pytest.raises(UsageError, match="no task 'nothing'"):
        evaluate_on_tasks(tiny_llama, Tasks(("own_choice", "nothing"), (folder,)))
    with pytest.raises(UsageError, match="no such folder of tasks"):
        evaluate_on_tasks(tiny_llama, Tasks(("own_choice",), (folder / "questions.jsonl",)))


@needs_lm_eval
@quiet
def test_a_task_whose_data_are_missing_is_refused(tiny_llama: Path, folder: Path) -> None:
    (folder / "questions.jsonl").unlink()
    with pytest.raises(CalibrationError, match="a task cannot be asked"):
        evaluate_on_tasks(tiny_llama, Tasks(("own_choice",), (folder,)))


@needs_lm_eval
@quiet
def test_text_drawn_in_a_way_that_we_do_not_know_is_refused(tiny_llama: Path, folder: Path) -> None:
    file = folder / "write.yaml"
    file.write_text(file.read_text().replace("do_sample: false", "do_sample: true\n  temperature: 0.7\n  top_p: 0.5"))
    with pytest.raises(CalibrationError, match="drawn with top_p"):
        evaluate_on_tasks(tiny_llama, Tasks(("own_write",), (folder,)))


@needs_lm_eval
@quiet
def test_the_command_shows_and_writes_the_answers(
    tiny_llama: Path, tiny_gpt2: Path, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "answers.json"
    options = ("--tasks", "own_choice,own_read", "--task-folder", folder, "--json", file)
    done = catonnx_("evaluate", tiny_llama, "--against", tiny_gpt2, *options)
    assert done.exit_code == 0, done.output
    for part in ("own_choice", "acc", "bits_per_byte", "questions"):
        assert part in done.stdout
    ours, theirs = json.loads(file.read_text())["models"]
    assert [row["metric"] for row in ours["tasks"]] == ["acc", "bits_per_byte"]
    assert f"{theirs['tasks'][1]['value']:.4f}" in done.stdout
    assert ours["tasks"][1]["value"] != theirs["tasks"][1]["value"]
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    both = catonnx_(
        *("evaluate", tiny_llama, "--text", tmp_path / "text.txt", "--samples", 2, "--seq-len", 16),
        *("--tasks", "own_read", "--task-folder", folder, "--json", file),
    )
    assert both.exit_code == 0, both.output
    (row,) = json.loads(file.read_text())["models"]
    assert row["perplexity"] > 1
    assert row["tasks"][0]["metric"] == "bits_per_byte"


def test_without_lm_eval_it_is_said_what_to_install(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    refused = catonnx_("evaluate", tiny_llama, "--tasks", "own_choice")
    assert refused.exit_code == 8
    assert "catonnx[tasks]" in refused.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "nothing to evaluate on"),
        (("--tasks", " , "), "nothing to evaluate on"),
        (("--text", "text.txt", "--limit", "3"), "are for --tasks"),
        (("--text", "text.txt", "--shots", "0"), "are for --tasks"),
        (("--text", "text.txt", "--task-folder", "."), "are for --tasks"),
    ],
)
def test_options_that_say_nothing_are_refused(options: tuple[str, ...], said: str, tiny_llama: Path) -> None:
    refused = catonnx_("evaluate", tiny_llama, *options)
    assert refused.exit_code == 2
    assert said in refused.stderr
