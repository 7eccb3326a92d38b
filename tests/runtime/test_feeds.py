"""Token ids and .npz files become exactly the inputs that a model wants, or are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from catonnx.errors import CalibrationError
from catonnx.runtime.feeds import (
    InputSpec,
    ModelInput,
    as_taken,
    check_feeds,
    load_npz_feeds,
    model_inputs,
    token_feeds,
)
from catonnx.runtime.sessions import open_session, run

Writer = Callable[..., Path]
X = (ModelInput("x", np.dtype("float32"), (None, 4)),)


def spec_of(*inputs: tuple[str, str, tuple[int | None, ...]]) -> InputSpec:
    return InputSpec.of(tuple(ModelInput(name, np.dtype(dtype), shape) for name, dtype, shape in inputs))


def test_a_causal_model_with_a_cache(language_model: Writer) -> None:
    session = open_session(language_model())
    spec = InputSpec.from_session(session)
    assert spec.past_names == ("past_key_values.0.value",)
    feeds = spec.first_feeds(np.array([[3, 4, 5], [3, 6, 7]]))
    assert {name: (array.shape, array.dtype.name) for name, array in feeds.items()} == {
        "input_ids": ((2, 3), "int64"),
        "attention_mask": ((2, 3), "int64"),
        "position_ids": ((2, 3), "int64"),
        "past_key_values.0.value": ((2, 1, 0, 4), "float32"),
    }
    assert run(session, ["logits"], feeds)[0].shape == (2, 3, 12)


def test_later_pieces_count_what_went_before() -> None:
    spec = spec_of(
        ("input_ids", "int32", (None, None)),
        ("attention_mask", "int64", (None, None)),
        ("position_ids", "int64", (None, None)),
        ("use_cache_branch", "bool", (1,)),
        ("past_key_values.0.key", "float16", (None, 3, None, 8)),
    )
    later = spec.feeds(np.array([[5, 6]]), past_length=7)
    assert later["input_ids"].dtype == np.int32
    assert later["attention_mask"].tolist() == [[1] * 9]
    assert later["position_ids"].tolist() == [[7, 8]]
    assert later["use_cache_branch"].tolist() == [True]
    first = spec.first_feeds(np.array([[5, 6]]))
    assert first["use_cache_branch"].tolist() == [False]
    past = first["past_key_values.0.key"]
    assert past.shape == (1, 3, 0, 8)
    assert past.dtype == np.float16


def test_an_encoder(encoder: Writer) -> None:
    spec = InputSpec.from_session(open_session(encoder()))
    assert not spec.has_cache
    feeds = token_feeds(spec, np.array([[1, 4, 2], [1, 5, 2]]))
    assert [sample["input_ids"].tolist() for sample in feeds] == [[[1, 4, 2]], [[1, 5, 2]]]
    assert feeds[0]["token_type_ids"].tolist() == [[0, 0, 0]]


def test_inputs_that_text_does_not_determine(linear: Writer) -> None:
    with pytest.raises(CalibrationError, match=r"no input_ids.*\(inputs: x\).*\.npz"):
        InputSpec.from_session(open_session(linear()))
    with pytest.raises(CalibrationError, match=r"text does not determine.*input pixel_values.*\.npz"):
        spec_of(("input_ids", "int64", (None, None)), ("pixel_values", "float32", (None, 3, 8, 8)))
    with pytest.raises(CalibrationError, match=r"cache of shape .*past_key_values\.0\.key"):
        spec_of(("input_ids", "int64", (None, None)), ("past_key_values.0.key", "float32", (None, 8, None)))


def test_a_fixed_sequence_length() -> None:
    spec = spec_of(("input_ids", "int64", (1, 16)))
    with pytest.raises(CalibrationError, match=r"shape \[1, 3\] where the model takes \[1, 16\].*"):
        spec.feeds(np.array([[3, 4, 5]]))


def test_an_input_that_numpy_cannot_hold(write_model: Writer) -> None:
    text = helper.make_tensor_value_info("x", TensorProto.STRING, [1])
    path = write_model("strings", [helper.make_node("Identity", ["x"], ["y"])], [text], [onnx.ValueInfoProto(name="y")])
    with pytest.raises(CalibrationError, match=r"type tensor\(string\).*input x"):
        model_inputs(open_session(path))


def test_npz_samples_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "feeds.npz"
    np.savez(path, allow_pickle=True, **{f"{n}/x": np.full((1, 4), n, np.float32) for n in (10, 9, 0)})
    assert [sample["x"][0, 0] for sample in load_npz_feeds(path, X)] == [0, 9, 10]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds no arrays"),
        ({"x": np.zeros((1, 4), np.float32)}, "array 'x' does not say its sample"),
        ({"0/z": np.zeros((1, 4), np.float32)}, "the sample lacks x and adds z .*sample 0.*inputs are x"),
        ({"0/x": np.zeros((1, 4))}, "is float64 where the model takes float32 .*sample 0, input x"),
        ({"0/x": np.zeros(4, np.float32)}, r"shape \[4\] where the model takes \[\?, 4\]"),
        ({"0/x": np.zeros((1, 5), np.float32)}, r"shape \[1, 5\] where the model takes \[\?, 4\]"),
        ({"0/x": np.full((1, 4), np.nan, np.float32)}, "holds NaN or Inf .*input x"),
        ({"0/x": np.array([[{}] * 4])}, "not an .npz file of plain arrays: Object arrays"),
    ],
    ids=["empty", "no sample", "names", "dtype", "rank", "dimension", "nan", "pickle"],
)
def test_npz_that_does_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "feeds.npz"
    np.savez(path, allow_pickle=True, **arrays)
    with pytest.raises(CalibrationError, match=message):
        load_npz_feeds(path, X)


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "feeds.npz"
    with pytest.raises(CalibrationError, match="does not exist"):
        load_npz_feeds(path, X)
    for content in (b"", b"text", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        with pytest.raises(CalibrationError, match=r"not an \.npz file of plain arrays"):
            load_npz_feeds(path, X)
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(CalibrationError, match="single array"):
        load_npz_feeds(tmp_path / "single.npy", X)


def test_check_feeds_takes_what_fits() -> None:
    check_feeds({"x": np.zeros((7, 4), np.float32)}, X, where="here")


def test_floats_are_given_in_the_type_that_a_model_takes_and_nothing_else_is() -> None:
    inputs = [ModelInput(name, np.dtype(kind), (None,)) for name, kind in (("a", "float16"), ("b", "float32"))]
    inputs.append(ModelInput("c", np.dtype("int64"), (None,)))
    given = {"a": "float32", "b": "int64", "c": "float32", "d": "float64"}
    feeds = {name: np.ones(2, kind) for name, kind in given.items()}
    taken = as_taken(feeds, inputs)
    # What has no float where one is wanted, or one where none is, is refused by `check_feeds`.
    assert {name: array.dtype.name for name, array in taken.items()} == given | {"a": "float16"}
