"""Sessions open as asked, and every way in which they cannot says why."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from catonnx.cores import usable_cores
from catonnx.errors import ModelError, OutputError, RuntimeUnavailableError, UsageError
from catonnx.runtime import sessions
from catonnx.runtime.sessions import available_providers, open_session, run

pytestmark = pytest.mark.usefixtures("all_cores")


Writer = Callable[..., Path]
X = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])]
Y = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]


def test_a_session_runs_quietly_on_all_cores(linear: Writer) -> None:
    session = open_session(linear())
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(run(session, ["y"], {"x": x})[0], x)
    assert session.get_session_options().intra_op_num_threads == usable_cores()
    assert session.get_session_options().log_severity_level == 3
    assert open_session(linear(), verbose=True, threads=1).get_session_options().intra_op_num_threads == 1


def test_options_reach_the_session(linear: Writer, tmp_path: Path) -> None:
    written = tmp_path / "optimized.onnx"
    key = "session.qdq_matmulnbits_accuracy_level"
    session = open_session(linear(), config={key: "1"}, optimization="basic", optimized_path=written)
    assert session.get_session_options().get_session_config_entry(key) == "1"
    assert [node.op_type for node in onnx.load(written).graph.node] == ["Relu", "MatMul"]


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x08\x0a\x12\x07"], ids=["empty", "text", "truncated"])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"not an ONNX model, or the file is truncated .*model\.onnx"):
        open_session(path)


def test_a_truncated_model(linear: Writer) -> None:
    path = linear()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match="truncated"):
        open_session(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="found nothing"):
        open_session(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="found a folder"):
        open_session(tmp_path)


def test_missing_and_short_external_data(linear: Writer) -> None:
    path = linear(external=True)
    data = path.with_suffix(".data")
    data.write_bytes(b"ab")
    with pytest.raises(ModelError, match="external data file is too short to hold w"):
        open_session(path)
    data.unlink()
    with pytest.raises(ModelError, match=r"external data file .*linear\.data is missing .*belong side by side"):
        open_session(path)


def test_unknown_operators(write_model: Writer) -> None:
    custom = write_model("custom", [helper.make_node("Fancy", ["x"], ["y"], domain="my.ops")], X, Y, domains=["my.ops"])
    with pytest.raises(ModelError, match=r"does not know the operator my\.ops:Fancy .*needs its library"):
        open_session(custom)
    misspelled = write_model("misspelled", [helper.make_node("MatMull", ["x"], ["y"])], X, Y)
    with pytest.raises(ModelError, match="does not know the operator MatMull in opset 21"):
        open_session(misspelled)


def test_models_from_the_future(write_model: Writer) -> None:
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    with pytest.raises(ModelError, match="IR version 99"):
        open_session(write_model("ir", relu, X, Y, ir_version=99))
    with pytest.raises(ModelError, match="the model has opset 99"):
        open_session(write_model("opset", relu, X, Y, opset=99))


def test_a_reason_that_is_not_in_the_table_is_passed_on(write_model: Writer) -> None:
    dangling = write_model("dangling", [helper.make_node("Relu", ["z"], ["y"])], X, Y)
    with pytest.raises(ModelError, match=r"cannot load the model: .*input 'z' is not a graph input"):
        open_session(dangling)


def test_a_model_that_fails_while_it_runs(linear: Writer) -> None:
    session = open_session(linear())
    with pytest.raises(ModelError, match=r"Got invalid dimensions.*inputs x \[2, 5\]"):
        run(session, ["y"], {"x": np.zeros((2, 5), np.float32)})


def test_providers(linear: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cpu" in available_providers()
    with pytest.raises(UsageError, match="unknown execution provider 'tpu'"):
        open_session(linear(), provider="tpu")
    runtime = sessions.import_onnxruntime()
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RuntimeUnavailableError, match="CUDAExecutionProvider is not part of"):
        open_session(linear(), provider="cuda")


def test_cuda_that_silently_became_the_cpu(linear: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = sessions.import_onnxruntime()
    fake = SimpleNamespace(
        SessionOptions=runtime.SessionOptions,
        GraphOptimizationLevel=runtime.GraphOptimizationLevel,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        preload_dlls=lambda: None,
        InferenceSession=lambda *_, **__: SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"]),
    )
    monkeypatch.setattr(sessions, "import_onnxruntime", lambda: fake)
    with pytest.raises(RuntimeUnavailableError, match="is installed but did not start"):
        open_session(linear(), provider="cuda")


def test_without_onnxruntime(linear: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailableError, match=r'pip install "catonnx\[cpu\]"'):
        open_session(linear())


@pytest.fixture
def half_linear(write_model: Writer) -> Path:
    """A file with y = x W in bfloat16, which the CPU has no product for."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [None, 4]) for name in "xy")
    constants = {"w": np.eye(4, dtype=ml_dtypes.bfloat16)}
    return write_model("half", [helper.make_node("MatMul", ["x", "w"], ["y"])], [x], [y], constants)


def test_a_bfloat16_model_runs_as_its_float32_twin(half_linear: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    session = open_session(half_linear, scratch=scratch)
    assert [value.type for value in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float)"] * 2
    x = np.full((1, 4), 1 + 2**-20, np.float32)
    np.testing.assert_array_equal(run(session, ["y"], {"x": x})[0], x)
    assert len(list(scratch.iterdir())) == 1
    del session
    gc.collect()
    assert list(scratch.iterdir()) == []


def test_a_twin_that_does_not_load_goes_and_is_called_by_the_name_of_its_model(
    write_model: Writer, tmp_path: Path
) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [None, 4]) for name in "xy")
    path = write_model(
        "custom", [helper.make_node("Fancy", ["x"], ["y"], domain="my.ops")], [x], [y], domains=["my.ops"]
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(ModelError, match=r"my\.ops:Fancy .*custom\.onnx\)"):
        open_session(path, scratch=scratch)
    assert list(scratch.iterdir()) == []
    with pytest.raises(OutputError, match="no temporary folder"):
        open_session(path, scratch=tmp_path / "absent")


def test_the_room_imports_without_onnxruntime() -> None:
    rooms = "calibrate, compare, evaluate, feeds, fusion, recording, sampling, sessions, speed, text"
    code = f"import sys; sys.modules['onnxruntime'] = None; from catonnx.runtime import {rooms}"
    subprocess.run([sys.executable, "-c", code], check=True)
