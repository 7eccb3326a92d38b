"""The stream turned: the same function, the stream in the new basis, and nothing else in it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from catonnx.graph.residual import find_streams
from catonnx.graph.residual_parts import Stream
from catonnx.math.stream_rotation import StreamRotation
from catonnx.passes.rotate_stream import RotateStream
from tests.graph.builder import Net, relative_error, run
from tests.graph.streams import IDS, NORMS, WIDTH, WORDS, fused, network, rms

FUSED = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
PLACED = IDS | {"places": np.array([[0, 1, 2, 3], [1, 2, 3, 0]])}


def turn(model: ir.Model, seed: int = 5) -> tuple[Stream, StreamRotation]:
    """Turn the only stream of a model."""
    (stream,) = find_streams(model.graph)
    assert stream.reason == ""
    rotation = StreamRotation.random(stream.width, seed, keeps_mean=stream.keeps_mean)
    assert RotateStream(((stream, rotation),))(model).modified
    return stream, rotation


def check(net: Net, feeds: dict[str, np.ndarray]) -> tuple[ir.Model, Stream]:
    """Turn a net, compare its outputs, and what it gives out for all values of its stream."""
    model = net.model()
    before = run(net.proto(), feeds)
    (found,) = find_streams(model.graph)
    # Names stay with what they stand for, whatever is put in between.
    sums = [str(value.name) for value in found.values if _is_sum(value)]
    stream, rotation = turn(model)
    after = run(model, feeds)
    for name, array in before.items():
        assert relative_error(array, after[name]) < 1e-5  # measured: 1e-7 to 4e-7
    shown = net.proto()
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    for name in sums:
        shown.graph.output.add().name = name
        values[name].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(values[name])
    old, new = run(shown, feeds), run(model, feeds)
    assert sums
    for name in sums:
        assert relative_error(rotation.apply(old[name].astype(np.float64)), new[name]) < 1e-5
        assert relative_error(old[name], new[name]) > 0.5
    return model, stream


def _is_sum(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and (node.op_type == "Add" or value is not node.outputs[0])


@pytest.mark.parametrize("norm", NORMS)
def test_every_form_of_norm(norm: str) -> None:
    net = network(NORMS[norm])
    operators = Counter(node.op_type for node in net.proto().graph.node)
    model, stream = check(net, IDS)
    assert stream.keeps_mean == norm.startswith("layer")
    added = Counter(node.op_type for node in model.graph) - operators
    removed = operators - Counter(node.op_type for node in model.graph)
    # The head has no bias for the last norm's offset; the offsets of plain norms are gone.
    assert added == ({"Add": 1} if norm == "layer_node" else {})
    assert removed == ({"Add": 2} if norm == "layer" else {})


def test_the_operator_of_opset_23() -> None:
    check(network(lambda net, x: net.op("RMSNormalization", x, net.vector(WIDTH)), opset=23), IDS)


@pytest.mark.parametrize("operator", FUSED)
def test_norms_that_add_two_streams(operator: str) -> None:
    model, stream = check(fused(operator), PLACED)
    assert len(stream.scales) == 3
    assert all(np.all(_array(node.inputs[index]) == 1) for node, index in stream.scales)
    assert [node.op_type for node in model.graph].count(operator) == 3


def _array(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def test_a_linear_from_a_norm_into_the_stream() -> None:
    net = Net(seed=1)
    x = net.op("Gather", net.normal(WORDS, WIDTH), net.input("ids", ["batch", 4], 7))
    for bias in (True, False):
        h = NORMS["layer_node"](net, x)
        h = net.op("MatMul", h, net.normal(WIDTH, WIDTH))
        x = net.op("Add", x, net.op("Add", h, net.vector(WIDTH)) if bias else h)
    net.output(net.op("MatMul", NORMS["layer_node"](net, x), net.normal(WIDTH, 5), result="y"))
    check(net, IDS)


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("turned", [0, 1])
def test_matrices_with_factors_of_their_own(turned: int, beta: float) -> None:
    net = Net(seed=8)
    x = net.op("Reshape", net.input("x", ["batch", 4]), net.constant([-1, 4]))
    x = net.op("Gemm", x, net.normal(4, WIDTH), net.vector(WIDTH))
    shapes = [(20, WIDTH), (WIDTH, 20)] if turned else [(WIDTH, 20), (20, WIDTH)]
    h = net.op("Gemm", NORMS["layer_node"](net, x), net.normal(*shapes[0]), net.vector(20), transB=turned, alpha=0.7)
    h = net.op("Tanh", h)
    h = net.op("Gemm", h, net.normal(*shapes[1]), net.vector(WIDTH), transB=turned, alpha=3.0, beta=beta)
    x = net.op("Add", x, h)
    h = NORMS["layer_node"](net, x)
    net.output(net.op("Gemm", h, net.normal(WIDTH, 5), net.vector(5), alpha=2.0, beta=beta, result="y"))
    check(net, {"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)})


def test_patches_of_an_image() -> None:
    net = Net(seed=2)
    image = net.input("image", ["batch", 3, 8, 8])
    x = net.op("Conv", image, net.normal(WIDTH, 3, 4, 4), net.vector(WIDTH), strides=[4, 4])
    x = net.op("Transpose", net.op("Reshape", x, net.constant([0, WIDTH, 4])), perm=[0, 2, 1])
    begin = net.op("Expand", net.vector(1, 1, WIDTH), net.constant([2, 1, WIDTH]))
    x = net.op("Add", net.op("Concat", begin, x, axis=1), net.normal(1, 5, WIDTH))
    x = net.op("Add", x, net.op("MatMul", NORMS["layer_node"](net, x), net.normal(WIDTH, WIDTH)))
    net.output(net.op("MatMul", NORMS["layer_node"](net, x), net.normal(WIDTH, 5), result="y"))
    check(net, {"image": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)})


def test_projections_within_an_attention_operator() -> None:
    net = Net(seed=5)
    x = net.op("Gather", net.normal(WORDS, WIDTH), net.input("ids", ["batch", 4], 7))
    h = NORMS["layer_node"](net, x)
    h = net.op("Attention", h, net.normal(WIDTH, 3 * WIDTH), net.vector(3 * WIDTH), domain="com.microsoft", num_heads=3)
    x = net.op("Add", x, net.op("MatMul", h, net.normal(WIDTH, WIDTH)))
    net.output(net.op("MatMul", NORMS["layer_node"](net, x), net.normal(WIDTH, 5), result="y"))
    check(net, IDS)


def test_tied_embeddings_are_stored_twice_and_that_is_known() -> None:
    net = Net(seed=6)
    table = net.normal(WORDS, WIDTH, hint="table")
    x = net.op("Gather", table, net.input("ids", ["batch", 4], 7))
    x = net.op("Add", x, net.op("MatMul", rms(net, x), net.normal(WIDTH, WIDTH)))
    net.output(net.op("MatMul", rms(net, x), net.op("Transpose", table, perm=[1, 0]), result="y"))
    model, stream = check(net, IDS)
    assert stream.multiplied == ((table, 2),)
    shapes = Counter(tuple(value.shape or ()) for value in model.graph.initializers.values())
    assert shapes[WORDS, WIDTH] == shapes[WIDTH, WORDS] == 1


def test_a_norm_whose_scale_is_one_number_may_write_into_the_stream() -> None:
    net = Net(seed=7)
    x = net.op("Gather", net.normal(WORDS, WIDTH), net.input("ids", ["batch", 4], 7))
    h = net.op("MatMul", rms(net, x), net.normal(WIDTH, WIDTH))
    scale = net.constant(np.full(WIDTH, 1.5))
    x = net.op("Add", x, net.op("SimplifiedLayerNormalization", h, scale, axis=-1, epsilon=1e-5))
    net.output(net.op("MatMul", rms(net, x), net.normal(WIDTH, 5), result="y"))
    check(net, IDS)


def test_a_table_is_turned_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catonnx.graph.edits._PIECE", 2 * WIDTH)
    seen = []
    apply = StreamRotation.apply

    def counted(self: StreamRotation, rows: np.ndarray) -> np.ndarray:
        seen.append(rows.size)
        return apply(self, rows)

    net = network(rms)
    model = net.model()
    turn(model)
    monkeypatch.setattr(StreamRotation, "apply", counted)
    assert relative_error(run(net.proto(), IDS)["y"], run(model, IDS)["y"]) < 1e-5
    assert max(seen) <= 3 * WIDTH


def test_a_second_run_on_the_same_stream_is_refused() -> None:
    model = network(rms).model()
    (stream,) = find_streams(model.graph)
    turned = RotateStream(((stream, StreamRotation.random(WIDTH, 0)),))
    turned(model)
    before = run(model, IDS)
    with pytest.raises(ir.passes.PreconditionError, match="changed since the stream was found"):
        turned(model)
    np.testing.assert_array_equal(before["y"], run(model, IDS)["y"])


def test_streams_of_others_and_such_that_cannot_turn_are_refused() -> None:
    (stream,) = find_streams(network(rms).model().graph)
    rotation = StreamRotation.random(WIDTH, 0)
    with pytest.raises(ir.passes.PreconditionError, match="changed since"):
        RotateStream(((stream, rotation),))(network(rms).model())
    with pytest.raises(ir.passes.PreconditionError, match="12 wide"):
        RotateStream(((stream, StreamRotation.random(8, 0)),))(network(rms).model())
    net = network(rms)
    net.output(next(node.output[0] for node in net.nodes if node.op_type == "Mul"))
    model = net.model()
    (blocked,) = find_streams(model.graph)
    with pytest.raises(ir.passes.PreconditionError, match=r"cannot be turned: .* is an output of the graph"):
        RotateStream(((blocked, rotation),))(model)


def test_turned_twice_by_streams_found_anew() -> None:
    net = network(NORMS["layer_node"])
    model = net.model()
    turn(model, 1)
    turn(model, 2)
    assert relative_error(run(net.proto(), IDS)["y"], run(model, IDS)["y"]) < 1e-5
