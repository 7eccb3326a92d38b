"""Shapes are known for certain or not at all; ONNX Runtime is asked what they really are."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from catonnx.graph.dims import Dim
from catonnx.graph.shape_rules import Shape
from catonnx.graph.shapes import Shapes
from models.random_graphs import random_graph
from models.random_pieces import BATCH, DECODE, PREFILL
from tests.graph.builder import Net, run


def shape_of(net: Net, name: str) -> Shape | None:
    graph = net.model().graph
    value = next(value for node in graph for value in node.outputs if value.name == name)
    return Shapes(graph)[value]


def contents_of(net: Net, name: str) -> list[int | str | None] | None:
    graph = net.model().graph
    value = next(value for node in graph for value in node.outputs if value.name == name)
    contents = Shapes(graph).contents(value)
    return None if contents is None else [None if dim is None else dim.value or str(dim) for dim in contents]


def text(shape: Shape | None) -> list[str] | None:
    return None if shape is None else ["?" if "?" in str(dim) else str(dim) for dim in shape]


@pytest.fixture
def net() -> Net:
    net = Net()
    net.input("x", ["batch", "seq", 12])
    return net


@pytest.mark.parametrize("seed", range(25))
def test_every_shape_that_is_claimed_is_what_onnx_runtime_computes(seed: int) -> None:
    graph = random_graph(random.Random(seed))
    proto = graph.net.proto()
    model = ir.from_proto(proto)
    shapes = Shapes(model.graph)
    values = [value for node in model.graph for value in node.outputs if shapes[value] is not None and value.uses()]
    proto.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(str(value.name))
        for value in values
        if value.name not in {output.name for output in proto.graph.output}
    )
    for length, past in ((PREFILL, 0), (PREFILL if graph.seq != "seq" else DECODE, 2)):
        pasts = {name: np.ones((BATCH, heads, past, d), np.float32) for _, name, heads, d in graph.caches}
        actual = run(proto, graph.feeds(length, pasts))
        known = {"batch": BATCH, "seq": length, "past": past, "(past + seq)": past + length}
        for value in values:
            claimed = shapes[value]
            assert claimed is not None
            assert len(claimed) == actual[str(value.name)].ndim
            for dim, real in zip(claimed, actual[str(value.name)].shape, strict=True):
                if all(symbol in known for symbol in dim.symbols):
                    assert dim.coefficient * int(np.prod([known[s] for s in dim.symbols])) == real, value.name


def test_heads_are_seen_through_the_shape_arithmetic_of_exporters(net: Net) -> None:
    shape = net.op("Shape", "x")
    batch = net.op("Unsqueeze", net.op("Gather", shape, net.constant(0), axis=0), net.constant([0]))
    seq = net.op("Slice", shape, net.constant([1]), net.constant([2]))
    target = net.op("Concat", batch, seq, net.constant([-1]), net.constant([4]), axis=0, result="target")
    net.op("Reshape", "x", target, result="heads")
    assert contents_of(net, "target") == ["batch", "seq", -1, 4]
    assert text(shape_of(net, "heads")) == ["batch", "seq", "3", "4"]


def test_a_reshape_copies_infers_and_joins_lengths(net: Net) -> None:
    net.op("Reshape", "x", net.constant([0, -1]), result="joined")
    net.op("Reshape", "x", net.constant([-1, 12]), result="rows")
    net.op("Reshape", "x", net.constant([0, 0, 5, -1]), result="impossible")
    assert text(shape_of(net, "joined")) == ["batch", "12*seq"]
    assert text(shape_of(net, "rows")) == ["batch*seq", "12"]
    assert text(shape_of(net, "impossible")) == ["batch", "seq", "5", "?"]


def test_the_expand_of_query_groups_is_followed_through_where_and_equal(net: Net) -> None:
    wanted = net.op("Concat", net.op("Shape", "x", end=2), net.constant([-1]), axis=0)
    ones = net.op("ConstantOfShape", net.constant([3]), value=onnx.helper.make_tensor("v", TensorProto.INT64, [1], [1]))
    target = net.op("Where", net.op("Equal", wanted, net.constant([-1])), ones, wanted, result="target")
    net.op("Expand", "x", target, result="wide")
    assert contents_of(net, "target") == ["batch", "seq", 1]
    assert text(shape_of(net, "wide")) == ["batch", "seq", "12"]


def test_sums_of_lengths_are_equal_where_they_are_equal(net: Net) -> None:
    net.input("past", ["batch", "past", 12])
    net.op("Concat", "past", "x", axis=1, result="rows")
    net.op("Concat", "x", "past", axis=1, result="other")
    assert shape_of(net, "rows") == shape_of(net, "other")


@pytest.mark.parametrize(
    ("operator", "left", "right", "expected"),
    [
        ("Div", 7, 2, 3),
        ("Div", -7, 2, None),  # ONNX rounds towards zero, Python down
        ("Mul", -3, 2, -6),
        ("Sub", 2, 5, -3),
        ("Add", 2, 5, 7),
    ],
)
def test_integer_arithmetic_is_that_of_onnx_or_unknown(
    net: Net, operator: str, left: int, right: int, expected: int | None
) -> None:
    net.op(operator, net.constant([left]), net.constant([right]), result="r")
    assert contents_of(net, "r") == [expected]


def test_arithmetic_on_fractions_and_truth_values_is_not_mistaken_for_integers(net: Net) -> None:
    half = net.op("Cast", net.constant([7]), to=TensorProto.FLOAT)
    half = net.op("Div", half, net.op("Cast", net.constant([2]), to=TensorProto.FLOAT))
    twice = net.op("Mul", half, net.op("Cast", net.constant([2]), to=TensorProto.FLOAT))
    net.op("Cast", twice, to=TensorProto.INT64, result="seven")  # 7, and 6 in integers
    truth = net.op("Cast", net.constant([5]), to=TensorProto.BOOL)
    net.op("Cast", truth, to=TensorProto.INT64, result="one")
    assert contents_of(net, "seven") is None
    assert contents_of(net, "one") is None


def test_empty_shapes_take_part_in_arithmetic(net: Net) -> None:
    empty = net.op("Shape", "x", start=3)
    net.op("Mul", empty, net.constant([2]), result="still_empty")
    net.op("Mul", net.constant([2]), empty, result="also_empty")
    assert contents_of(net, "still_empty") == contents_of(net, "also_empty") == []


@pytest.mark.parametrize("name", ["?", "None", "-1", None])
def test_lengths_without_a_real_name_are_not_taken_for_equal(name: str | None) -> None:
    net = Net()
    net.input("x", [name, name, 4])
    net.op("Identity", "x", result="y")
    shape = shape_of(net, "y")
    assert shape is not None
    assert shape[0] != shape[1]
    assert shape[2] == Dim(4)


def test_a_value_of_unknown_rank_has_no_shape(net: Net) -> None:
    net.input("free", None)
    net.op("Relu", "free", result="a")
    net.op("Add", "a", "x", result="b")
    net.op("Reshape", "x", "free", result="c")
    assert [shape_of(net, name) for name in "abc"] == [None, None, None]


def test_an_operator_of_another_domain_is_not_taken_for_onnxs(net: Net) -> None:
    net.op("Relu", "x", domain="example.com", result="strange")
    net.op("Relu", "x", result="plain")
    assert shape_of(net, "strange") is None
    assert text(shape_of(net, "plain")) == ["batch", "seq", "12"]


def test_a_reduction_without_axes_keeps_the_shape_where_it_says_so(net: Net) -> None:
    net.op("ReduceMean", "x", net.constant(np.zeros(0, np.int64)), noop_with_empty_axes=1, result="same")
    net.op("ReduceMean", "x", result="all")
    net.op("ReduceMean", "x", net.constant([-1]), keepdims=0, result="rows")
    assert text(shape_of(net, "same")) == ["batch", "seq", "12"]
    assert text(shape_of(net, "all")) == ["1", "1", "1"]
    assert text(shape_of(net, "rows")) == ["batch", "seq"]


def test_uneven_splits_have_the_lengths_that_are_written_down(net: Net) -> None:
    net.ops("Split", "x", net.constant([8, 4]), results=["a", "b"], axis=-1)
    net.ops("Split", "x", results=["c", "d", "e"], axis=2, num_outputs=3)
    assert [text(shape_of(net, name)) for name in "abc"] == [["batch", "seq", n] for n in ("8", "4", "4")]


@pytest.mark.parametrize(
    ("operator", "operands", "options", "expected"),
    [
        ("Transpose", [], {}, ["12", "seq", "batch"]),
        ("Transpose", [], {"perm": [0, 2, 1]}, ["batch", "12", "seq"]),
        ("Unsqueeze", [[0, -1]], {}, ["1", "batch", "seq", "12", "1"]),
        ("Slice", [[0], [5], [2]], {}, ["batch", "seq", "5"]),
        ("Slice", [[-1], [-100], [2], [-3]], {}, ["batch", "seq", "4"]),
        ("Slice", [[0], [5]], {}, ["?", "?", "?"]),
        ("Gather", [[[0, 1]]], {"axis": 1}, ["batch", "1", "2", "12"]),
        ("Flatten", [], {"axis": 2}, ["batch*seq", "12"]),
        ("Expand", [[4, 1, 1, 12]], {}, ["4", "batch", "seq", "12"]),
        ("MatMul", [np.ones((12, 5))], {}, ["batch", "seq", "5"]),
    ],
)
def test_each_operator_that_moves_axes(
    net: Net, operator: str, operands: list[list[int] | np.ndarray], options: dict[str, Any], expected: list[str]
) -> None:
    net.op(operator, "x", *(net.constant(operand) for operand in operands), result="y", **options)
    assert text(shape_of(net, "y")) == expected


CONTRIB = "com.microsoft"
HEADS, GROUPED = {"num_heads": 4}, {"num_heads": 4, "kv_num_heads": 2}
ROTARY = np.ones((9, 2))

LESS_COMMON: dict[str, tuple[str, list[Any], dict[str, Any], list[list[str] | None]]] = {
    "repeats": ("Tile", ["x", [1, 1, 3]], {}, [["batch", "seq", "36"]]),
    "repeats of rows": ("Tile", ["x", [1, 2, 1]], {}, [["batch", "2*seq", "12"]]),
    "pads": ("Pad", ["x", [0, 0, 1, 0, 0, 2]], {}, [["batch", "seq", "15"]]),
    "pads of one axis": ("Pad", ["x", [1, 2], "", [2]], {}, [["?", "?", "?"]]),
    "largest": ("TopK", ["x", [5]], {}, [["batch", "seq", "5"], ["batch", "seq", "5"]]),
    "largest of rows": ("TopK", ["x", [1]], {"axis": 1}, [["batch", "1", "12"], ["batch", "1", "12"]]),
    "largest index": ("ArgMax", ["x"], {"axis": -1, "keepdims": 0}, [["batch", "seq"]]),
    "smallest index": ("ArgMin", ["x"], {"axis": 1}, [["batch", "1", "12"]]),
    "nonzero": ("NonZero", ["x"], {}, [["3", "?"]]),
    "found by indices": ("GatherND", ["x", [[0, 1], [1, 0], [0, 0]]], {}, [["3", "12"]]),
    "found in every batch": ("GatherND", ["x", [[1], [0]]], {"batch_dims": 1}, [["2", "12"]]),
    "found one by one": ("GatherElements", ["x", [[[1, 0]]]], {"axis": 2}, [["1", "1", "2"]]),
    "put in one by one": ("ScatterElements", ["x", [[[1]]], np.ones((1, 1, 1))], {}, [["batch", "seq", "12"]]),
    "floor": ("Floor", ["x"], {}, [["batch", "seq", "12"]]),
    "bias and gelu": (f"{CONTRIB}:BiasGelu", ["x", np.ones(12)], {}, [["batch", "seq", "12"]]),
    "norm and sum": (
        f"{CONTRIB}:SkipSimplifiedLayerNormalization",
        ["x", "x", np.ones(12)],
        {},
        [["batch", "seq", "12"], None, None, ["batch", "seq", "12"]],
    ),
    "grouped query attention": (
        f"{CONTRIB}:GroupQueryAttention",
        ["p", np.ones((2, 3, 16)), np.ones((2, 3, 16)), "", "", np.full(2, 2, np.int32), np.array(3, np.int32)],
        GROUPED,
        [["batch", "seq", "32"]],
    ),
    "packed grouped query attention": (
        f"{CONTRIB}:GroupQueryAttention",
        ["r", "", "", "", "", np.full(2, 2, np.int32), np.array(3, np.int32)],
        GROUPED,
        [["batch", "seq", "32"]],
    ),
    "multi-head attention": (
        f"{CONTRIB}:MultiHeadAttention",
        ["x", np.ones((2, 7, 12)), np.ones((2, 7, 20))],
        HEADS,
        [["batch", "seq", "20"]],
    ),
    "contrib attention": (
        f"{CONTRIB}:Attention",
        ["x", np.ones((12, 48)), np.ones(48)],
        HEADS,
        [["batch", "seq", "16"]],
    ),
    "rotary embedding": (
        f"{CONTRIB}:RotaryEmbedding",
        ["x", np.zeros((2, 3), np.int64), ROTARY, ROTARY],
        {"num_heads": 3},
        [["batch", "seq", "12"]],
    ),
}
"""Name -> operator, operands (names, or constants), attributes, and the shapes of its outputs."""


@pytest.mark.parametrize("name", LESS_COMMON)
def test_less_common_operators_are_seen_through(net: Net, name: str) -> None:
    operator, operands, options, expected = LESS_COMMON[name]
    domain, _, kind = operator.rpartition(":")
    widths = {"x": 12, "p": 32, "r": 64}
    for key in ("p", "r"):
        net.input(key, ["batch", "seq", widths[key]])
    inputs = [operand if isinstance(operand, str) else net.constant(np.asarray(operand)) for operand in operands]
    results = [f"y{place}" if shape else "" for place, shape in enumerate(expected)]
    net.ops(kind, *inputs, results=results, domain=domain, **options)
    assert [text(shape_of(net, result)) if result else None for result in results] == expected

    net.outputs = ["y0"]
    proto = net.proto()
    proto.graph.output[0].type.Clear()
    random = np.random.default_rng(0)
    feeds = {key: random.standard_normal((2, 3, width)).astype(np.float32) for key, width in widths.items()}
    (seen,) = run(proto, feeds).values()
    known = {"batch": 2, "seq": 3, "2*seq": 6}
    assert expected[0] is not None
    assert len(seen.shape) == len(expected[0])
    for length, dim in zip(seen.shape, expected[0], strict=True):
        assert dim == "?" or length == known.get(dim, None if dim in known else int(dim) if dim.isdigit() else None)


@pytest.mark.parametrize(
    ("shapes", "options", "expected"),
    [
        ([[2, 4, "q", 8], [2, 2, "k", 8], [2, 2, "k", 6]], {}, ["2", "4", "q", "6"]),
        ([[2, "q", 32], [2, "k", 16], [2, "k", 12]], {"q_num_heads": 4, "kv_num_heads": 2}, ["2", "q", "24"]),
    ],
)
def test_attention_of_the_standard_has_the_width_of_its_values(
    shapes: list[list[int | str]], options: dict[str, Any], expected: list[str]
) -> None:
    net = Net(opset=23)
    operands = [net.input(f"i{place}", shape) for place, shape in enumerate(shapes)]
    net.op("Attention", *operands, result="y", **options)
    assert text(shape_of(net, "y")) == expected
    net.outputs = ["y"]
    lengths = {"q": 3, "k": 5}
    feeds = {
        f"i{place}": np.ones([length if isinstance(length, int) else lengths[length] for length in shape], np.float32)
        for place, shape in enumerate(shapes)
    }
    (seen,) = run(net.proto(), feeds).values()
    assert list(seen.shape) == [lengths.get(dim) or int(dim) for dim in expected]
