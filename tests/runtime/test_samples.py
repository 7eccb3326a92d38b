"""Calibration runs are as long and as many as the model takes, and verification shortens only what may be shortened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from catonnx.errors import CalibrationError
from catonnx.runtime.feeds import Feeds, ModelInput
from catonnx.runtime.samples import gather, shortened

INT64 = np.dtype("int64")
Dims = tuple[int | None, ...]


def _inputs(ids: Dims, **others: Dims) -> tuple[ModelInput, ...]:
    return tuple(ModelInput(name, INT64, shape) for name, shape in {"input_ids": ids, **others}.items())


def _feeds(*shape: int, **others: tuple[int, ...]) -> Feeds:
    return {name: np.zeros(dims, np.int64) for name, dims in {"input_ids": shape, **others}.items()}


def _shapes(feeds: Feeds) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds.items()}


def test_tokens_are_cut_and_an_empty_cache_is_not() -> None:
    inputs = _inputs((None, None), attention_mask=(None, None), past=(None, 2, None, 8))
    feeds = _feeds(1, 512, attention_mask=(1, 512), past=(1, 2, 0, 8))
    assert _shapes(shortened(feeds, 256, inputs)) == {
        "input_ids": (1, 256),
        "attention_mask": (1, 256),
        "past": (1, 2, 0, 8),
    }


@pytest.mark.parametrize(
    ("feeds", "inputs"),
    [
        (_feeds(1, 100), _inputs((None, None))),
        (_feeds(1, 512), _inputs((1, 512))),
        (_feeds(1, 512, bbox=(1, 512, 4)), _inputs((None, None), bbox=(None, None, 4))),
        (_feeds(1, 512, attention_mask=(1, 600)), _inputs((None, None), attention_mask=(None, None))),
        ({"pixels": np.zeros((1, 3, 512, 512))}, ()),
    ],
    ids=["short enough", "one length only", "boxes beside tokens", "a mask over more", "no tokens"],
)
def test_what_cannot_be_cut_stays_as_it_is(feeds: Feeds, inputs: tuple[ModelInput, ...]) -> None:
    assert shortened(feeds, 256, inputs) is feeds


def _model(*dims: int | str) -> ir.Model:
    value = ir.val("input_ids", ir.DataType.INT64, list(dims))
    return ir.Model(ir.Graph([value], [], nodes=[], opset_imports={"": 21}), ir_version=10)


@pytest.mark.parametrize(
    ("dims", "runs"),
    [(("batch", "sequence"), [(5, 16)]), ((1, 16), [(1, 16)] * 5), ((2, "sequence"), [(2, 16)] * 2)],
)
def test_runs_hold_as_many_texts_as_the_model_takes(
    dims: tuple[int | str, ...], runs: list[tuple[int, int]], tokenizer_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder: Path = tokenizer_folder({"bos_token_id": 3})
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f g h " * 40, encoding="utf-8")
    feeds = gather(tmp_path / "none.onnx", _model(*dims), folder, str(text), samples=5, seq_len=16, seed=0)
    assert [run["input_ids"].shape for run in feeds] == runs


def test_a_model_without_bos_cannot_calibrate_itself(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot write its own calibration text"):
        gather(tmp_path / "none.onnx", _model("b", "s"), tmp_path, "self", samples=1, seq_len=4, seed=0)
