"""Errors that nobody raised on purpose: the model's fault, if ONNX Runtime does not load it either."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

import catonnx
from catonnx.errors import CalibrationError, ModelError
from catonnx.inspection import inspect
from catonnx.runtime.blame import blaming
from tests.small_models import write_mlp


def _odd_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("transB", "yes"))


def test_an_unexpected_error_on_a_broken_model_is_about_the_model(tmp_path: Path) -> None:
    broken = write_mlp(tmp_path / "model.onnx", edit=_odd_attribute)
    with pytest.raises(ModelError, match="ONNX Runtime cannot load the model"), blaming(broken, "cpu"):
        raise TypeError("of attributes")


def test_on_a_sound_model_it_stays_what_it_is(tmp_path: Path) -> None:
    sound = write_mlp(tmp_path / "model.onnx")
    with pytest.raises(TypeError, match="a bug"), blaming(sound, "cpu"):
        raise TypeError("a bug of ours")
    with pytest.raises(CalibrationError, match="on purpose"), blaming(tmp_path / "nothing.onnx", "cpu"):
        raise CalibrationError("on purpose")


def test_inspect_and_optimize_ask(tmp_path: Path) -> None:
    broken = write_mlp(tmp_path / "model.onnx", edit=_odd_attribute)
    with pytest.raises(ModelError, match="cannot load") as caught:
        inspect(broken)
    assert isinstance(caught.value.__context__, Exception)
    with pytest.raises(ModelError, match="cannot load"):
        catonnx.optimize(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()
