"""A model in float16: the same function, one type on every edge, and what callers see as it was."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from catonnx.errors import ModelError
from catonnx.graph import edits
from catonnx.graph.precision import Precision
from catonnx.passes.narrow import Narrow
from models.net import Net
from tests.graph.builder import relative_error, run
from tests.graph.test_precision import layer_norm, rms_norm, softmax

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
X = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)


def narrow(model: ir.Model, *half: str, ranges: dict[str, float] | None = None) -> ir.Model:
    """Run the pass on a model."""
    inputs = frozenset(value for value in model.graph.inputs if value.name in half)
    assert Narrow(Precision(model.graph, ranges, inputs), frozenset(half))(model).modified
    return model


def types_of(model: ir.Model) -> dict[str, str]:
    """Return the element type of every value that ONNX's own strict inference finds in a model."""
    proto = ir.to_proto(model)
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    values = (*graph.value_info, *graph.output, *graph.input)
    return {value.name: TensorProto.DataType.Name(value.type.tensor_type.elem_type) for value in values}


def block(net: Net, x: str) -> str:
    """Build two linears around all that stays in float32."""
    hidden = net.op("MatMul", rms_norm(net, x), net.normal(8, 8))
    return net.op("MatMul", softmax(net, layer_norm(net, net.op("Add", x, hidden))), net.normal(8, 8))


def test_the_function_stays_and_products_are_float16() -> None:
    net = Net()
    net.output(net.op("Identity", block(net, net.input("x", ["n", 8])), result="y"))
    model = net.model()
    before = run(model, {"x": X})["y"]
    narrow(model)
    after = run(model, {"x": X})["y"]
    assert after.dtype == np.float32
    assert 0 < relative_error(before, after) < 2e-3  # measured: 4e-4
    types = types_of(model)
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert {types[str(node.outputs[0].name)] for node in products} == {"FLOAT16"}
    assert {types[name] for name in ("x", "y")} == {"FLOAT"}
    norms = [node for node in model.graph if node.op_type in ("Pow", "ReduceMean", "Sqrt", "ReduceSum")]
    assert {types[str(node.outputs[0].name)] for node in norms} == {"FLOAT"}


@pytest.mark.parametrize("flag", [True, False])
def test_one_branch_that_returns_a_constant(flag: bool) -> None:
    net = Net()
    x, branches = net.input("x", ["n", 8]), [net.body(), net.body()]
    branches[0].output(branches[0].vector(1, 8))
    branches[1].output(branches[1].op("MatMul", x, branches[1].normal(8, 8)))
    chosen = net.op(
        "If", net.input("flag", [], TensorProto.BOOL), then_branch=branches[0].graph(), else_branch=branches[1].graph()
    )
    net.output(net.op("MatMul", net.op("Add", x, chosen), net.normal(8, 8), result="y"))
    model, feeds = net.model(), {"x": X, "flag": np.array(flag)}
    before = run(model, feeds)["y"]
    assert relative_error(before, run(narrow(model), feeds)["y"]) < 2e-3


def test_a_weight_that_is_an_output_stays_float32_there() -> None:
    net = Net()
    weight = net.normal(8, 8)
    net.output(net.op("MatMul", net.input("x", ["n", 8]), weight, result="y"))
    net.output(weight)
    model = net.model()
    before = run(model, {"x": X})[weight]
    np.testing.assert_array_equal(run(narrow(model), {"x": X})[weight], before)


def test_one_cast_serves_all_readers() -> None:
    net = Net()
    x = net.input("x", ["n", 8])
    for result in ("y", "z"):
        net.output(net.op("MatMul", x, net.normal(8, 8), result=result))
    model = narrow(net.model())
    assert [node.op_type for node in model.graph].count("Cast") == 3  # of x, and before either output


def test_a_second_run_changes_nothing() -> None:
    net = Net()
    net.output(net.op("Identity", block(net, net.input("x", ["n", 8])), result="y"))
    model = narrow(net.model())
    nodes = len(model.graph)
    assert not Narrow(Precision(model.graph))(model).modified
    assert len(model.graph) == nodes


def test_another_models_decision_is_refused() -> None:
    net = Net()
    net.output(net.op("MatMul", net.input("x", ["n", 8]), net.normal(8, 8), result="y"))
    with pytest.raises(ir.passes.PreconditionError, match="another model"):
        Narrow(Precision(net.model().graph))(net.model())


def test_a_cache_is_float16_on_both_sides() -> None:
    net = Net()
    x, past = net.input("x", ["n", 8]), net.input("past", ["m", 8])
    present = net.op("Concat", past, net.op("MatMul", x, net.normal(8, 8)), axis=0, result="present")
    net.output(present)
    net.output(net.op("MatMul", net.op("Relu", present), net.normal(8, 8), result="y"))
    model = net.model()
    feeds = {"x": X, "past": X[:2]}
    before = run(model, feeds)
    narrow(model, "past", "present")
    after = run(model, {"x": X, "past": X[:2].astype(np.float16)})
    assert {name: array.dtype.name for name, array in after.items()} == {"present": "float16", "y": "float32"}
    for name, array in before.items():
        assert relative_error(array, after[name].astype(np.float32)) < 2e-3
    assert [node.op_type for node in model.graph].count("Cast") == 2


def test_a_constant_is_stored_for_each_type_that_reads_it() -> None:
    net = Net()
    x, vector = net.input("x", ["n", 8]), net.vector(8)
    total = net.op("ReduceSumSquare", net.op("MatMul", x, net.normal(8, 8)))
    net.output(net.op("Mul", total, vector, result="y"))  # what follows from a sum
    net.output(net.op("Mul", net.op("Relu", x), vector, result="z"))
    model = net.model()
    before = run(model, {"x": X})
    narrow(model)
    kinds = sorted(str(value.dtype) for value in model.graph.initializers.values() if value.shape == ir.Shape([8]))
    assert kinds == ["FLOAT", "FLOAT16"]
    after = run(model, {"x": X})
    assert all(relative_error(before[name], after[name]) < 2e-3 for name in before)


def test_folds_start_from_the_numbers_of_the_source() -> None:
    net = Net()
    weight = net.normal(8, 8)
    net.output(net.op("MatMul", net.input("x", ["n", 8]), weight, result="y"))
    exact = net.initializers[weight].astype(np.float64)
    model = narrow(net.model())
    value = model.graph.initializers[weight]
    assert value.dtype == HALF
    np.testing.assert_array_equal(edits.float64_of(value)(), exact)
    assert value.const_value is not None
    np.testing.assert_array_equal(value.const_value.numpy(), exact.astype(np.float16))


def test_a_weight_that_float16_does_not_hold_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    weight = net.constant(np.full((8, 8), 1e5), "w")
    net.output(net.op("MatMul", net.input("x", ["n", 8]), weight, result="y"))
    # Small ones are looked through, and their product stays in float32.
    assert [node.op_type for node in Precision(net.model().graph).kept] == ["MatMul"]
    monkeypatch.setattr("catonnx.graph.precision._SEARCHED", 10)
    model = narrow(net.model())
    with pytest.raises(ModelError, match=r"reach 1\.0e\+05 and overflow float16.*constant w_1.*--dtype source"):
        model.graph.initializers[weight].const_value.numpy()  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [2.5, None])
def test_attributes_that_name_a_type_follow(value: float | None) -> None:
    net = Net()
    x = net.input("x", ["n", 8])
    attributes = {} if value is None else {"value": helper.make_tensor("", TensorProto.FLOAT, [1], [value])}
    filled = net.op("ConstantOfShape", net.op("Shape", x), **attributes)
    cast = net.op("Cast", net.input("i", ["n", 8], TensorProto.INT64), to=TensorProto.FLOAT)
    noise = net.op("Mul", net.op("RandomNormalLike", x, dtype=TensorProto.FLOAT), net.constant(0.0))
    total = net.op("Add", net.op("Add", net.op("Add", x, filled), cast), noise)
    net.output(net.op("MatMul", total, net.normal(8, 8), result="y"))
    model = net.model()
    feeds: dict[str, np.ndarray] = {"x": X, "i": np.arange(24).reshape(3, 8)}
    before = run(model, feeds)["y"]
    narrow(model)
    assert relative_error(before, run(model, feeds)["y"]) < 2e-3
    types = types_of(model)
    made = {node.op_type: types[str(node.outputs[0].name)] for node in model.graph if node.op_type != "Cast"}
    assert made["ConstantOfShape"] == made["RandomNormalLike"] == "FLOAT16"


def test_branches_give_the_same_type_whatever_they_compute_in() -> None:
    net = Net()
    x, flag = net.input("x", ["n", 8]), net.input("flag", [], TensorProto.BOOL)
    hidden = net.op("MatMul", x, net.normal(8, 8))
    bodies = [net.body() for _ in range(2)]
    bodies[0].output(bodies[0].op("MatMul", hidden, bodies[0].normal(8, 8)))
    bodies[1].output(bodies[1].op("CumSum", hidden, bodies[1].constant(np.array(1))))  # no float16 for it
    chosen = net.op("If", flag, then_branch=bodies[0].graph(), else_branch=bodies[1].graph())
    net.output(net.op("MatMul", chosen, net.normal(8, 8), result="y"))
    model = net.model()
    samples = [{"x": X, "flag": np.array(flag)} for flag in (True, False)]
    before = [run(model, sample)["y"] for sample in samples]
    narrow(model)
    for sample, expected in zip(samples, before, strict=True):
        assert relative_error(expected, run(model, sample)["y"]) < 2e-3


def test_a_branch_that_returns_a_constant() -> None:
    net = Net()
    x, flag = net.input("x", ["n", 8]), net.input("flag", [], TensorProto.BOOL)
    hidden = net.op("MatMul", x, net.normal(8, 8))
    bodies = [net.body() for _ in range(2)]
    bodies[0].output(bodies[0].op("Relu", hidden))
    bodies[1].output(bodies[1].op("Constant", value=numpy_helper.from_array(X, "")))
    chosen = net.op("If", flag, then_branch=bodies[0].graph(), else_branch=bodies[1].graph())
    net.output(net.op("MatMul", chosen, net.normal(8, 8), result="y"))
    model = net.model()
    sample = {"x": X, "flag": np.array(False)}
    before = run(model, sample)["y"]
    narrow(model)
    assert relative_error(before, run(model, sample)["y"]) < 2e-3


def test_a_loop_takes_and_gives_float32() -> None:
    net = Net()
    x = net.input("x", ["n", 8])
    body = net.body()
    body.input(body.name("turn"), [], TensorProto.INT64)
    again = body.input(body.name("again"), [], TensorProto.BOOL)
    state = body.input(body.name("state"), ["n", 8])
    body.outputs += [body.op("Identity", again), body.op("MatMul", body.op("Relu", state), body.normal(8, 8))]
    graph = body.graph()
    graph.output[0].CopyFrom(helper.make_tensor_value_info(graph.output[0].name, TensorProto.BOOL, []))
    first = net.op("MatMul", x, net.normal(8, 8))
    looped = net.op("Loop", net.constant(np.array(3)), "", first, body=graph)
    net.output(net.op("MatMul", looped, net.normal(8, 8), result="y"))
    model = net.model()
    before = run(model, {"x": X})["y"]
    narrow(model)
    assert relative_error(before, run(model, {"x": X})["y"]) < 3e-3
    (inner,) = (node for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.op_type == "Relu")
    assert inner.outputs[0].dtype == HALF


def test_what_was_measured_beyond_float16_is_computed_in_float32() -> None:
    net = Net()
    x = net.input("x", ["n", 8])
    stream = net.op("Add", net.op("Mul", x, net.constant(60000.0)), x, result="stream")
    net.output(net.op("MatMul", rms_norm(net, stream), net.normal(8, 8), result="y"))
    before = run(net.model(), {"x": X})["y"]
    ranges = dict.fromkeys([net.nodes[0].output[0], "stream"], 2e5)
    # On the CPU, ONNX Runtime computes both in float32: only the types tell.
    for known, expected in (({}, "FLOAT16"), (ranges, "FLOAT")):
        model = narrow(net.model(), ranges=known)
        assert types_of(model)["stream"] == expected
        assert relative_error(before, run(model, {"x": X})["y"]) < 2e-3


def test_a_sequence_stays_what_it_was() -> None:
    net = Net()
    x = net.input("x", ["n", 8])
    sequence = net.op("Identity", net.op("SequenceConstruct", net.op("MatMul", x, net.normal(8, 8)), x))
    element = net.op("SequenceAt", sequence, net.constant(np.array(0)))
    net.output(net.op("MatMul", element, net.normal(8, 8), result="y"))
    model = net.model()
    before = run(model, {"x": X})["y"]
    narrow(model)
    assert relative_error(before, run(model, {"x": X})["y"]) < 2e-3
