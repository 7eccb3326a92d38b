"""`optimize` on graphs made for one point each: odd sizes, shared weights, old opsets, other outputs, saved plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import catonnx
from catonnx import Recipe, Report
from catonnx.errors import NothingToOptimizeError, UsageError, VerificationError
from catonnx.planning.planfile import load_plan, save_plan
from tests.graph.test_fused_attention import FORMS
from tests.small_models import (
    edited,
    first_sample,
    language_feeds,
    relative,
    run,
    set_weight,
    signature,
    write_feeds,
    write_mlp,
)


def _optimize(model: Path, out: Path, *shape: int, dtype: type = np.float32, **wishes: Any) -> Report:
    feeds = write_feeds(out.parent / f"{out.name}.npz", *shape, dtype=dtype)
    return catonnx.optimize(model, out, Recipe(calibration=str(feeds), **wishes))


def _error(model: Path, out: Path, *, exact: bool = True) -> float:
    feeds = first_sample(out.parent / f"{out.name}.npz")
    before, after = run(model, feeds)["y"], run(out, feeds, exact=exact)["y"]
    return relative(before, after)


@pytest.mark.parametrize("form", ["qdq", "nbits"])
@pytest.mark.parametrize("group", [16, 32, 64, 128, 256, None])
def test_a_width_that_no_group_divides(group: int | None, form: str, tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "model.onnx", (100, 40, 7))
    report = _optimize(model, tmp_path / "out", 64, 100, group_size=group, form=form, lm_head=True)
    assert report.verification["fused"] == report.verification["linears"] == 2
    assert signature(tmp_path / "out") == signature(model)
    assert _error(model, tmp_path / "out") < 0.15  # measured: 0.04 to 0.09
    if form == "qdq":
        proto = onnx.load(tmp_path / "out" / "model.onnx")
        scales = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer if "scale" in tensor.name}
        assert [-(-100 // group), 40] in scales.values() if group else [40] in scales.values()


@pytest.mark.parametrize("transform", ["none", "scale", "hadamard", "cat"])
@pytest.mark.parametrize("widths", [(37, 13, 5), (1, 1), (3, 1, 2)])
def test_odd_sizes(widths: tuple[int, ...], transform: str, tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "model.onnx", widths, gemm=False)
    _optimize(model, tmp_path / "out", 64, widths[0], transform=transform, lm_head=True)
    assert _error(model, tmp_path / "out") < 0.2


@pytest.mark.parametrize("axes", [(), ("rows",), ("batch", "rows"), ("batch", "page", "rows")])
def test_any_number_of_axes(axes: tuple[str, ...], tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "model.onnx", (64, 48, 32), gemm=False, axes=axes)
    report = _optimize(model, tmp_path / "out", *(5, 3, 4)[: len(axes)], 64)
    assert report.verification["fused"] == 1
    assert _error(model, tmp_path / "out") < 0.2


def test_wishes_for_widths_that_do_not_fit_are_narrowed_and_noted(tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "model.onnx", (60, 48, 8))
    report = _optimize(model, tmp_path / "out", 64, 60, block_size=7, hadamard_size=32)
    assert report.sites[0].online == ("blocks 6", "hadamard 4")
    assert "blocks narrowed to 6" in report.sites[0].why
    assert "no Hadamard matrix of width 32 tiles 60 channels; 4 does" in report.sites[0].why


@pytest.mark.parametrize("opset", [11, 13, 17, 23, 26])
def test_other_opsets(opset: int, tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "model.onnx", opset=opset)
    report = _optimize(model, tmp_path / "out", 64, 64)
    assert report.verification["fused"] == 2
    written = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert written.opset_import[0].version == max(opset, 21)
    assert _error(model, tmp_path / "out") < 0.2


def test_both_names_of_the_standard_operators_are_known(tmp_path: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.opset_import[0].domain = "ai.onnx"

    model = write_mlp(tmp_path / "model.onnx", edit=rename)
    assert _optimize(model, tmp_path / "out", 64, 64).verification["fused"] == 2


def test_a_weight_that_two_products_share_is_rounded_for_each(tmp_path: Path) -> None:
    def share(model: onnx.ModelProto) -> None:
        model.graph.node[2].input[1] = "w0"
        del model.graph.initializer[2]

    model = write_mlp(tmp_path / "model.onnx", (64, 64, 64, 8), edit=share)
    assert _optimize(model, tmp_path / "out", 64, 64).verification["fused"] == 2
    assert _error(model, tmp_path / "out") < 0.2


def test_weights_of_zeros_stay_zeros(tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "model.onnx", edit=set_weight("w0", np.zeros_like))
    report = _optimize(model, tmp_path / "out", 64, 64)
    assert report.sites[0].sqnr_before is None
    assert _error(model, tmp_path / "out") < 0.2


def _add(model: onnx.ModelProto, node: onnx.NodeProto, output: onnx.ValueInfoProto) -> None:
    model.graph.node.append(node)
    model.graph.output.append(output)


def _label(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    model.graph.node.append(helper.make_node("ArgMax", ["y"], ["best"], "best", axis=-1, keepdims=0))
    classes: dict[str, Any] = {"keys_int64s": range(8), "values_strings": [f"class {number}" for number in range(8)]}
    node = helper.make_node("LabelEncoder", ["best"], ["extra"], "label", domain="ai.onnx.ml", **classes)
    _add(model, node, helper.make_tensor_value_info("extra", TensorProto.STRING, ["rows"]))


def _sequence(model: onnx.ModelProto) -> None:
    node = helper.make_node("SequenceConstruct", ["y"], ["extra"], "list")
    _add(model, node, helper.make_tensor_sequence_value_info("extra", TensorProto.FLOAT, None))


def _flag(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nought"))
    node = helper.make_node("Greater", ["y", "nought"], ["extra"], "flag")
    _add(model, node, helper.make_tensor_value_info("extra", TensorProto.BOOL, ["rows", 8]))


def _inner(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("a0", TensorProto.FLOAT, ["rows", 48]))


def _weight(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [48, 32]))


def _input(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["x"], ["extra"], "same")
    _add(model, node, helper.make_tensor_value_info("extra", TensorProto.FLOAT, ["rows", 64]))


@pytest.mark.parametrize("edit", [_label, _sequence, _flag, _inner, _weight, _input])
def test_outputs_of_other_kinds(edit: Any, tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "model.onnx", edit=edit)
    checked = _optimize(model, tmp_path / "out", 64, 64).verification
    assert checked["fused"] == checked["linears"] >= 2
    assert signature(tmp_path / "out") == signature(model)
    feeds = first_sample(tmp_path / "out.npz")
    before, after = run(model, feeds), run(tmp_path / "out", feeds)
    if edit in (_weight, _input):
        name = "w1" if edit is _weight else "extra"
        assert np.array_equal(before[name], after[name])


def test_nodes_without_names_and_descriptions_of_the_model(tmp_path: Path) -> None:
    def describe(model: onnx.ModelProto) -> None:
        model.metadata_props.add(key="author", value="somebody")
        model.doc_string = "what it is"
        for node in model.graph.node:
            node.name = ""

    model = write_mlp(tmp_path / "model.onnx", edit=describe)
    assert _optimize(model, tmp_path / "out", 64, 64).verification["fused"] == 2
    written = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert {item.key: item.value for item in written.metadata_props} == {"author": "somebody", "catonnx": "w4a16"}
    assert written.doc_string == "what it is"


@pytest.mark.parametrize("scheme", ["w4a16", "float"])
def test_a_second_run_is_refused(scheme: Any, tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "model.onnx")
    _optimize(model, tmp_path / "out", 64, 64, scheme=scheme)
    with pytest.raises(NothingToOptimizeError, match=f"made this model already, with scheme {scheme}"):
        _optimize(tmp_path / "out", tmp_path / "again", 64, 64)


def test_double_precision_is_left_alone(tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "model.onnx", dtype=np.float64)
    with pytest.raises(NothingToOptimizeError, match="of type DOUBLE"):
        _optimize(model, tmp_path / "out", 64, 64, dtype=np.float64)


@pytest.mark.parametrize("width", [64, 8])  # the weights of the latter are written into the model file itself
def test_a_half_precision_weight_that_its_new_basis_would_overflow(width: int, tmp_path: Path) -> None:
    big = set_weight("w0", lambda weight: np.full_like(weight, 60000))
    model = write_mlp(tmp_path / "model.onnx", (width, 8, 8), dtype=np.float16, edit=big)
    np.savez(tmp_path / "small.npz", allow_pickle=False, **{"0/x": np.full((8, width), 1e-3, np.float16)})
    feeds = str(tmp_path / "small.npz")
    with pytest.raises(VerificationError, match=r"reach \d\.\de\+05 and overflow float16 \(input 1 of fc0\)"):
        catonnx.optimize(model, tmp_path / "out", Recipe(transform="hadamard", calibration=feeds))
    report = catonnx.optimize(model, tmp_path / "out", Recipe(transform="none", calibration=feeds))
    assert report.verification["linears"] >= 1


def test_a_saved_plan_gives_the_same_bytes(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = Recipe(samples=2, seq_len=16)
    first = catonnx.optimize(tiny_llama, tmp_path / "first", recipe)
    save_plan(tmp_path / "plan.npz", first.plan, first.digest, first.recipe)
    saved = load_plan(tmp_path / "plan.npz")
    catonnx.optimize(tiny_llama, tmp_path / "second", saved.recipe(recipe), plan=saved.plan)
    for file in ("model.onnx", "model.onnx_data"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_a_filled_cache_needs_exact_caches(tiny_llama: Path, tmp_path: Path) -> None:
    feeds = language_feeds(tiny_llama, past=4)
    np.savez(tmp_path / "feeds.npz", allow_pickle=False, **{f"0/{name}": array for name, array in feeds.items()})
    calibration = str(tmp_path / "feeds.npz")
    with pytest.raises(UsageError, match=r"hold a filled cache.*past_key_values\.0\.value.*--caches exact"):
        catonnx.optimize(tiny_llama, tmp_path / "out", Recipe(calibration=calibration))
    report = catonnx.optimize(tiny_llama, tmp_path / "out", Recipe(calibration=calibration, caches="exact"))
    assert report.verification["fused"] == 21


def test_caches_that_cannot_be_proven_stay_exact(tiny_llama: Path, tmp_path: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *(node for node in model.graph.node)):
            names = [value.name] if isinstance(value, onnx.ValueInfoProto) else list(value.input)
            renamed = ["tokens" if name == "input_ids" else name for name in names]
            if isinstance(value, onnx.ValueInfoProto):
                value.name = renamed[0]
            else:
                value.input[:] = renamed

    source = edited(tiny_llama, tmp_path / "source", rename)
    feeds = language_feeds(tiny_llama)
    feeds["tokens"] = feeds.pop("input_ids")
    np.savez(tmp_path / "feeds.npz", allow_pickle=False, **{f"0/{name}": array for name, array in feeds.items()})
    report = catonnx.optimize(source, tmp_path / "out", Recipe(calibration=str(tmp_path / "feeds.npz")))
    assert report.changed_caches == ()
    assert report.verification["fused"] == 21


@pytest.mark.parametrize(
    "wishes",
    [
        {},
        {"rounding": "gptq"},
        {"rounding": "sequential"},
        {"scheme": "w4a4", "group_size": None},
        {"correct_bias": True},
    ],
    ids=lambda wishes: "-".join(map(str, wishes.values())) or "default",
)
def test_a_linear_that_calibration_does_not_reach(wishes: dict[str, Any], tmp_path: Path) -> None:
    """As an expert that no token is routed to."""

    def edit(model: onnx.ModelProto) -> None:
        ends = [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in (("from", 0), ("to", 0))]
        model.graph.initializer.extend(ends)
        model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 16), np.float32), "expert"))
        model.graph.node.append(helper.make_node("Slice", ["x", "from", "to", "from"], ["none"], "slice"))
        model.graph.node.append(helper.make_node("MatMul", ["none", "expert"], ["few"], "never"))
        model.graph.output.append(helper.make_tensor_value_info("few", TensorProto.FLOAT, ["some", 16]))

    model = write_mlp(tmp_path / "model.onnx", edit=edit)
    feeds = write_feeds(tmp_path / "feeds.npz", 8, 64)
    report = catonnx.optimize(model, tmp_path / "out", Recipe(calibration=str(feeds), lm_head=True, **wishes))
    (row,) = [row for row in report.sites if row.linears == ("never",)]
    assert "calibration did not reach it" in row.why
    nodes = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph.node
    assert not any(node.name == "never/corrected" for node in nodes)  # the mean of nothing is no bias
    assert report.verification["fused"] == report.verification["linears"]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("rounding", ["mse", "sequential"])
def test_attention_in_one_operator(name: str, rounding: str, tmp_path: Path) -> None:
    form = FORMS[name]
    onnx.save(form.net().proto(), tmp_path / "model.onnx")
    arrays = {f"{sample}/{key}": array for sample in range(4) for key, array in form.feeds(3).items()}
    np.savez(tmp_path / "feeds.npz", allow_pickle=False, **arrays)
    recipe = Recipe(calibration=str(tmp_path / "feeds.npz"), group_size=16, lm_head=True, rounding=rounding)  # type: ignore[arg-type]
    report = catonnx.optimize(tmp_path / "model.onnx", tmp_path / "out", recipe)
    assert report.verification["transform_relative_l2"] < 1e-5
    assert report.verification["fused"] == len([row for row in report.sites for _ in row.linears])
    behind = report.sites[-1]
    assert (behind.absorbed != ()) is not form.cache  # a cache of another name than exporters give it stays exact
