"""float16 and bfloat16 models: the same types in and out, and what stands in for bfloat16 where it cannot run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from ml_dtypes import bfloat16
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

import catonnx
from catonnx import Recipe, Report
from catonnx.errors import UsageError
from catonnx.graph.twin import write_twin
from models.casting import write_cast
from models.dialects import TEXT, calibration, constant_matrices, file_of, signature
from tests.small_models import catonnx_, relative, run, set_weight, write_feeds, write_mlp

ELEMENTS: dict[str, int] = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
DIALECTS = [
    "tiny-llama",
    "tiny-llama-opset23",
    "tiny-gemma2",
    "tiny-gpt-neox",
    "tiny-opt",
    "tiny-bert-ort",
    "tiny-clip",
    "tiny-whisper/encoder_model",
    "tiny-t5-gated/decoder_model",
]
"""Norms, heads, activations and inputs of every kind; `tools/bench_dialects.py` measures all there are."""

Narrowed = Callable[[str, str], tuple[Path, Path, Report]]


@pytest.fixture(scope="module")
def narrowed(tmp_path_factory: pytest.TempPathFactory) -> Narrowed:
    """Return what casts a file to a type and rounds it to 4 bits; the same one only once."""
    folder = tmp_path_factory.mktemp("types")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    kept: dict[tuple[str, str], tuple[Path, Path, Report]] = {}

    def optimize(name: str, element: str) -> tuple[Path, Path, Report]:
        if (name, element) not in kept:
            place = folder / f"{name.replace('/', '-')}-{element}"
            source = write_cast(file_of(name), place / "source", element)
            recipe = Recipe(calibration=calibration(source, folder / "text.txt"), samples=2, seq_len=16)
            kept[name, element] = source, place / "out", catonnx.optimize(source, place / "out", recipe)
        return kept[name, element]

    return optimize


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("name", DIALECTS)
def test_a_model_keeps_its_type_and_its_function(name: str, element: str, narrowed: Narrowed) -> None:
    source, out, report = narrowed(name, element)
    assert signature(out / "model.onnx") == signature(source)
    assert {kind for _, kind in signature(source)} <= {ELEMENTS[element], TensorProto.INT64}
    tensors = onnx.load(out / "model.onnx", load_external_data=False).graph.initializer
    assert {tensor.data_type for tensor in tensors if is_scale(tensor)} == {ELEMENTS[element]}

    checked = report.verification
    assert checked["transform_relative_l2"] <= 2e-2  # measured: 1.5e-3 at most in float16, 9.4e-3 in bfloat16
    assert checked["float32_twin"] == (element == "bfloat16")
    assert checked["fused"] == checked["linears"]
    assert checked["deployed"]["exact activations"]["sqnr_db"] > 5  # measured: 8.9 to 29
    left = [reason for _, operator, reason in report.left if operator in ("MatMul", "Gemm")]
    assert checked["linears"] + len(left) == constant_matrices(source)
    assert all("output head" in reason for reason in left)


def is_scale(tensor: onnx.TensorProto) -> bool:
    return tensor.name.endswith("_scale")


@pytest.fixture
def half_mlp(tmp_path: Path) -> Path:
    """Model of three linears in bfloat16, and float32 inputs for it."""
    write_feeds(tmp_path / "feeds.npz", 8, 64)
    return write_mlp(tmp_path / "model.onnx", dtype=bfloat16)


FORMS: list[dict[str, Any]] = [
    {"form": "qdq"},
    {"form": "nbits"},
    {"form": "qdq", "scheme": "w4a8"},
    {"form": "qdq", "scheme": "w4a4", "correct_bias": True},
    {"form": "integer", "scheme": "w4a8", "group_size": None},
    {"form": "integer", "scheme": "w4a4", "group_size": None, "provider": "cpu"},
    {"form": "op", "scheme": "w4a8", "activation_range": "symmetric"},
    {"form": "qdq", "rounding": "gptq"},
    {"form": "qdq", "rounding": "sequential", "group_size": None},
    {"scheme": "float"},
]


@pytest.mark.parametrize("wishes", FORMS, ids=lambda wishes: "-".join(map(str, wishes.values())))
def test_every_form_is_sound_in_bfloat16(wishes: dict[str, Any], half_mlp: Path, tmp_path: Path) -> None:
    recipe = Recipe(calibration=str(tmp_path / "feeds.npz"), lm_head=True, **wishes)
    report = catonnx.optimize(half_mlp, tmp_path / "out", recipe)
    assert report.verification["float32_twin"]
    assert signature(tmp_path / "out" / "model.onnx") == signature(half_mlp)
    # ONNX Runtime infers and checks every type before it looks for a kernel, of which the CPU has none for bfloat16.
    with pytest.raises(NoKernel, match="Could not find an implementation"):
        ort.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])


def test_a_bfloat16_result_is_what_standard_onnx_says(half_mlp: Path, tmp_path: Path) -> None:
    catonnx.optimize(half_mlp, tmp_path / "out", Recipe(calibration=str(tmp_path / "feeds.npz")))
    out = tmp_path / "out" / "model.onnx"
    onnx.checker.check_model(out, full_check=True)
    write_twin(out, tmp_path / "twin.onnx")
    x = np.random.default_rng(4).standard_normal((8, 64)).astype(bfloat16)
    meant = np.asarray(ReferenceEvaluator(str(out)).run(None, {"x": x})[0])  # type: ignore[index]
    assert meant.dtype == bfloat16
    twin = run(tmp_path / "twin.onnx", {"x": x.astype(np.float32)}, exact=True)["y"]
    assert relative(meant.astype(np.float32), twin) < 2e-2  # measured: 5e-3, what bfloat16 rounds on the way


def test_what_cuda_has_no_kernel_for_is_refused(half_mlp: Path, tmp_path: Path) -> None:
    recipe = Recipe(calibration=str(tmp_path / "feeds.npz"), provider="cuda")
    with pytest.raises(UsageError, match=r"dequantizes weights to bfloat16.*fc0.*choose form nbits"):
        catonnx.optimize(half_mlp, tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_what_was_run(narrowed: Narrowed, half_mlp: Path, tmp_path: Path) -> None:
    result = catonnx_("optimize", half_mlp, "-o", tmp_path / "out", "--calibration", tmp_path / "feeds.npz")
    assert result.exit_code == 0, result.output
    assert "float32 twins" in result.stdout
    source, out, _ = narrowed("tiny-llama", "bfloat16")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    figures = tmp_path / "figures.json"
    judged = catonnx_(
        *("evaluate", out, "--against", source, "--text", tmp_path / "text.txt"),
        *("--samples", "2", "--seq-len", "16", "--json", figures),
    )
    assert judged.exit_code == 0, judged.output
    assert "float32 twins" in judged.stdout
    assert "decode" not in judged.stdout
    for model in json.loads(figures.read_text(encoding="utf-8"))["models"]:
        assert model["float32_twin"]
        assert model["perplexity"] > 1
        assert model["decode_tokens_per_second"] is None


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
@pytest.mark.parametrize(
    "wishes", [{"transform": "none"}, {"transform": "cat"}, {"transform": "none", "rounding": "gptq"}]
)
def test_weights_too_small_for_their_type(dtype: Any, wishes: dict[str, Any], tmp_path: Path) -> None:
    """Of one linear all weights are the smallest number there is; channels of another are dead on both sides."""

    def edit(model: onnx.ModelProto) -> None:
        smallest = np.nextafter(dtype(0), dtype(1))
        set_weight("w0", lambda weight: np.where(weight > 0, smallest, -smallest))(model)
        set_weight("w1", lambda weight: np.where(np.arange(len(weight))[:, None] < 5, dtype(0), weight))(model)

    model = write_mlp(tmp_path / "model.onnx", dtype=dtype, edit=edit)
    feeds = np.random.default_rng(5).standard_normal((4, 8, 64))
    feeds[..., :7] = 0
    fed = feeds.astype(np.float32 if dtype == bfloat16 else dtype)
    np.savez(tmp_path / "feeds.npz", allow_pickle=False, **{f"{i}/x": array for i, array in enumerate(fed)})
    recipe = Recipe(calibration=str(tmp_path / "feeds.npz"), lm_head=True, **wishes)
    report = catonnx.optimize(model, tmp_path / "out", recipe)
    assert report.verification["transform_relative_l2"] <= 2e-2
    tensors = onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
    stored = [numpy_helper.to_array(tensor) for tensor in tensors if is_scale(tensor)]
    assert [scales.dtype for scales in stored] == [dtype] * 3
    for scales in stored:
        assert np.isfinite(scales.astype(np.float64)).all()
        assert (scales != 0).all()
