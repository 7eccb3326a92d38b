"""Attention as one operator: V is found behind it, blocks stay within a head, heads that share values are tied."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from models.fused_attention import CHANNELS, DEPTH, FusedAttention
from tests.graph.builder import Net, absorbable, run
from tests.graph.equivalence import assert_equivalent, assert_same, rewritten

TOLERANCE = 1e-5
"""Relative L2. Measured over these layers: worst 3e-7."""

GQA, MHA, PROJECTING, STANDARD = "GroupQueryAttention", "MultiHeadAttention", "Attention", "standard"

FORMS = {
    "GQA, a head for each": FusedAttention(GQA),
    "GQA, two heads to one": FusedAttention(GQA, heads=4),
    "GQA, one head for all": FusedAttention(GQA, heads=3, shared=1),
    "GQA, six heads to two": FusedAttention(GQA, heads=6),
    "GQA, packed": FusedAttention(GQA, heads=4, packed=True),
    "GQA, packed, rotated": FusedAttention(GQA, heads=6, packed=True, rotary=True),
    "GQA, with a cache": FusedAttention(GQA, heads=4, cache=True),
    "GQA, all of it": FusedAttention(GQA, heads=4, packed=True, rotary=True, cache=True),
    "GQA, masked": FusedAttention(GQA, heads=4, mask=True),
    "GQA, softcap and window": FusedAttention(GQA, attributes=(("softcap", 5.0), ("local_window_size", 2))),
    "GQA, smooth softmax": FusedAttention(GQA, heads=4, attributes=(("smooth_softmax", 1), ("scale", 0.3))),
    "GQA, nothing quantized": FusedAttention(GQA, attributes=(("v_quant_type", "NONE"), ("kv_cache_bit_width", 0))),
    "MHA": FusedAttention(MHA),
    "MHA with a bias": FusedAttention(MHA, bias=True, mask=True),
    "MHA with a cache": FusedAttention(MHA, cache=True, attributes=(("unidirectional", 1),)),
    "MHA with a bias and a cache": FusedAttention(MHA, heads=3, shared=3, bias=True, cache=True),
    "MHA with narrow values": FusedAttention(MHA, bias=True, value_depth=8),
    "ORT's Attention": FusedAttention(PROJECTING, bias=True),
    "ORT's Attention, masked": FusedAttention(
        PROJECTING, heads=3, shared=3, bias=True, mask=True, attributes=(("unidirectional", 1),)
    ),
    "standard": FusedAttention(STANDARD),
    "standard, two heads to one": FusedAttention(STANDARD, heads=4, mask=True),
    "standard, with a cache": FusedAttention(STANDARD, heads=6, value_depth=8, cache=True),
    "standard, on four axes": FusedAttention(STANDARD, axes=4, attributes=(("is_causal", 1), ("softcap", 4.0))),
    "standard, on four axes, shared": FusedAttention(STANDARD, axes=4, heads=6, value_depth=4, mask=True),
    "standard, on four axes, one head": FusedAttention(STANDARD, axes=4, heads=1, shared=1),
    "standard, on four axes, a cache": FusedAttention(STANDARD, axes=4, heads=4, cache=True),
}


def same_number(numbers: np.ndarray) -> np.ndarray:
    same: np.ndarray = numbers[:, None] == numbers
    return same


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_blocks_stay_within_a_head_and_heads_that_share_values_are_tied(form: FusedAttention) -> None:
    net = form.net()
    absorption = absorbable(net)
    room = absorption.permutable
    assert absorption.width == form.value_depth
    head, channel = np.divmod(np.arange(form.width), form.value_depth)
    ties = head // (form.heads // form.shared) * form.value_depth + channel
    np.testing.assert_array_equal(same_number(absorption.ties), same_number(ties))
    caches = ("present_value",) if form.cache else ()
    assert absorption.caches == caches
    assert room is not None
    assert (room.caches, room.reason) == (caches, "")
    np.testing.assert_array_equal(same_number(room.groups), same_number(head))
    np.testing.assert_array_equal(same_number(room.ties), same_number(ties))
    assert_equivalent(net, form.feeds(), tolerance=TOLERANCE)


@pytest.mark.parametrize("form", [form for form in FORMS.values() if form.cache], ids=str)
def test_a_model_continues_from_its_own_cache_as_the_source_does_from_its(form: FusedAttention) -> None:
    source, changed = form.net().proto(), 0
    for seed in range(4):
        stages = rewritten(source, np.random.default_rng(seed))
        reference, actual = (run(model, form.feeds()) for model in (source, stages.absorbed))
        assert_same(reference, actual, "prefill", stages.caches, TOLERANCE)
        np.testing.assert_array_equal(reference["present_key"], actual["present_key"])
        if stages.caches:
            changed += 1
            assert np.abs(actual["present_value"] - reference["present_value"]).max() > 0.1
        expected = run(source, form.feeds(1, reference))
        assert_same(expected, run(stages.absorbed, form.feeds(1, actual)), "decode", stages.caches, TOLERANCE)
    assert changed >= 2, "no cache was changed: this tested nothing"


@pytest.mark.parametrize("operator", [GQA, MHA, STANDARD])
def test_caches_stay_as_they_are_where_the_recipe_wants_them_exact(operator: str) -> None:
    absorption = absorbable(FusedAttention(operator, cache=True).net(), change_caches=False)
    assert (absorption.width, absorption.caches) == (0, ())
    assert "present_value is also an output" in absorption.reason


@pytest.mark.parametrize("operator", [GQA, MHA, STANDARD])
def test_another_reader_of_past_keys_is_no_matter_but_one_of_past_values_is(operator: str) -> None:
    for name, caches in (("past_key", ("present_value",)), ("past_value", ())):
        net = FusedAttention(operator, cache=True).net()
        watched(name)(net)
        assert absorbable(net).caches == caches


def test_only_the_values_of_a_packed_projection_are_written() -> None:
    form = FusedAttention(GQA, heads=4, packed=True)
    for writer in absorbable(form.net()).writers:
        assert writer.sizes == ((4 + 2 + 2) * DEPTH,)
        np.testing.assert_array_equal(np.unique(writer.position), np.arange((4 + 2) * DEPTH, (4 + 2 + 2) * DEPTH))


def last_node(net: Net, operator: str) -> onnx.NodeProto:
    return next(node for node in net.nodes if node.op_type == operator)


def with_input(net: Net, index: int, value: str) -> None:
    """Set one input of the attention, whatever its number of inputs."""
    node = last_node(net, next(n.op_type for n in net.nodes if "Attention" in n.op_type))
    inputs = [*node.input, *[""] * (index + 1 - len(node.input))]
    inputs[index] = value
    del node.input[:]
    node.input.extend(inputs)


def fed(index: int) -> Callable[[Net], None]:
    return lambda net: with_input(net, index, net.input("more", None))


def packed_into(index: int) -> Callable[[Net], None]:
    """Leave out V, and give another input two or three parts of rank 5."""

    def change(net: Net) -> None:
        with_input(net, 2, "")
        with_input(net, index, net.op("Reshape", "x", net.constant([0, 0, 2, 3 - index, -1])))

    return change


def from_the_start(net: Net) -> None:
    """Give out the values of a model that takes none."""
    for name in ("past_key", "past_value"):
        net.inputs = [value for value in net.inputs if value.name != name]
        net.constant(np.zeros((2, 2, 0, DEPTH)))
        for node in net.nodes:
            for index, operand in enumerate(node.input):
                if operand == name:
                    node.input[index] = ""


def constant_past(net: Net) -> None:
    with_input(net, 4, net.constant(np.zeros((2, 2, 0, DEPTH))))


def same_past_twice(net: Net) -> None:
    with_input(net, 3, "past_value")


def not_given_back(net: Net) -> None:
    net.outputs.remove("present_value")


def watched(value: str) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        net.output(net.op("Tanh", value))

    return change


REFUSES: dict[str, tuple[FusedAttention, Callable[[Net], None], str]] = {
    "a quantized cache": (FusedAttention(GQA, cache=True), fed(13), "v_scale, a quantized cache"),
    "quantized keys": (FusedAttention(GQA, cache=True), fed(12), "k_scale, a quantized cache"),
    "a quantized cache by attribute": (
        FusedAttention(GQA, cache=True, attributes=(("v_quant_type", "PER_TENSOR"),)),
        lambda _: None,
        "with v_quant_type",
    ),
    "four bits": (FusedAttention(GQA, attributes=(("kv_cache_bit_width", 4),)), lambda _: None, "kv_cache_bit_width"),
    "an input of a later version": (FusedAttention(GQA), fed(16), "with input 16"),
    "an attribute of a later version": (
        FusedAttention(STANDARD, attributes=(("value_scale", 2.0),)),
        lambda _: None,
        "with value_scale",
    ),
    "an index of beams": (FusedAttention(MHA, cache=True), fed(9), "cache_indirection"),
    "a shared buffer": (FusedAttention(MHA, cache=True), fed(8), "past_sequence_length"),
    "packed keys and values": (FusedAttention(MHA), packed_into(1), "packed with keys"),
    "packed queries, keys and values": (FusedAttention(MHA), packed_into(0), "packed with keys"),
    "values of unknown rank": (FusedAttention(MHA), lambda net: with_input(net, 2, net.input("v", None)), "not known"),
    "values of five axes": (
        FusedAttention(GQA),
        lambda net: with_input(net, 2, net.input("v", [1, 2, 3, 4, 5])),
        "have 5 axes",
    ),
    "a bias that is no constant": (FusedAttention(MHA, bias=True), fed(3), "not a constant vector"),
    "a bias too short": (
        FusedAttention(MHA),
        lambda net: with_input(net, 3, net.vector(DEPTH)),
        "not a constant vector",
    ),
    "a bias of an outer product": (
        FusedAttention(MHA),
        lambda net: with_input(net, 3, net.vector(1, 6 * DEPTH)),
        "not a constant vector",
    ),
    "keys and values in one cache": (FusedAttention(PROJECTING, bias=True), fed(4), "keys and values in one cache"),
    "a weight that is no constant": (
        FusedAttention(PROJECTING, bias=True),
        lambda net: with_input(net, 1, net.input("w", [CHANNELS, 6 * DEPTH])),
        "not a constant matrix",
    ),
    "a projection's bias that is no constant": (FusedAttention(PROJECTING, bias=True), fed(2), "not a constant vector"),
    "widths that do not fit": (
        FusedAttention(PROJECTING, bias=True),
        lambda net: net.nodes[-2].attribute.append(helper.make_attribute("qkv_hidden_sizes", [8, 8, 2 * DEPTH])),
        "not known",
    ),
    "a cache that is not given back": (FusedAttention(GQA, cache=True), not_given_back, "does not give back"),
    "values that are given out from the start": (FusedAttention(GQA, cache=True), from_the_start, "also an output"),
    "past values that are constant": (FusedAttention(GQA, cache=True), constant_past, "also an output"),
    "one past for keys and values": (FusedAttention(GQA, cache=True), same_past_twice, "also an output"),
    "a cache that another node reads": (
        FusedAttention(GQA, cache=True),
        watched("past_value"),
        "also an output",
    ),
    "new rows that another node reads": (
        FusedAttention(STANDARD, cache=True),
        watched("present_value"),
        "also read by Tanh",
    ),
    "values that are the keys too": (
        FusedAttention(MHA),
        lambda net: with_input(net, 1, last_node(net, MHA).input[2]),
        "reads the value twice",
    ),
    "four heads that share three": (
        FusedAttention(GQA, heads=4, packed=True),
        lambda net: setattr(last_node(net, GQA).attribute[1], "i", 3),
        "not the heads",
    ),
}


@pytest.mark.parametrize(("form", "change", "reason"), REFUSES.values(), ids=REFUSES)
def test_what_is_refused_and_why(form: FusedAttention, change: Callable[[Net], None], reason: str) -> None:
    net = form.net()
    change(net)
    absorption = absorbable(net)
    assert (absorption.width, absorption.writers, absorption.caches) == (0, (), ())
    assert reason in absorption.reason
    room = absorption.permutable
    assert room is not None
    assert (room.writers, room.caches) == ((), ())


def test_a_shape_of_the_cache_tells_nothing_of_its_numbers() -> None:
    net = FusedAttention(GQA, cache=True).net()
    for name in ("past_value", "present_value"):
        net.output(net.op("Cast", net.op("Shape", name), to=TensorProto.FLOAT))
    assert absorbable(net).caches == ("present_value",)


@pytest.mark.parametrize(("heads", "width"), [(2, DEPTH), (4, 0)])
def test_a_part_of_the_heads_is_free_unless_they_share_their_values(heads: int, width: int) -> None:
    """Heads 0 and 1 read the same values: one linear sees the first, another the second."""
    form = FusedAttention(GQA, heads=heads)
    net = Net(seed=1, opset=23)
    out = form.output(net, net.input("x", ["batch", "seq", CHANNELS]))
    cuts = [DEPTH, form.width - DEPTH]
    for part, channels in zip(
        net.ops("Split", out, net.constant(cuts), results=["a", "b"], axis=-1), cuts, strict=True
    ):
        net.output(net.op("MatMul", part, net.normal(channels, 3)))
    absorption = absorbable(net, -2)
    assert absorption.width == width
    assert ("not the heads" in absorption.reason) == (not width)
    assert_equivalent(net, form.feeds(), tolerance=TOLERANCE)


def test_the_axes_of_rows_and_queries_are_no_heads() -> None:
    """Rows made channels: [batch, heads, rows, depth] flattened without turning the heads back."""
    net = Net(seed=1, opset=23)
    form = FusedAttention(STANDARD, axes=4)
    out = form.output(net, net.input("x", [2, 3, CHANNELS]))
    flat = net.op("Reshape", out, net.constant([2, 2, 3 * DEPTH]))
    net.output(net.op("MatMul", flat, net.normal(3 * DEPTH, 3)))
    assert "not the heads" in absorbable(net).reason
    assert_equivalent(net, form.feeds(), tolerance=TOLERANCE)


def test_as_many_rows_as_channels_are_still_rows() -> None:
    net = Net(seed=1, opset=23)
    form = FusedAttention(STANDARD, axes=4, value_depth=2)
    out = form.output(net, net.input("x", [2, 4, CHANNELS]))
    net.output(net.op("MatMul", net.op("Transpose", out, perm=[0, 1, 3, 2]), net.normal(4, 3)))
    assert "not the heads" in absorbable(net).reason
    assert_equivalent(net, form.feeds(4), tolerance=TOLERANCE)


def test_widths_of_their_own_put_the_values_last() -> None:
    """com.microsoft.Attention with qkv_hidden_sizes; the shape of its output is declared."""
    form = FusedAttention(PROJECTING, bias=True, value_depth=8)
    net = form.net()
    reshape = last_node(net, "Reshape")
    linear, attended = last_node(net, "MatMul"), last_node(net, "Attention").output[0]
    linear.input[0] = attended
    net.nodes.remove(reshape)
    proto = net.proto()
    info = helper.make_tensor_value_info(attended, TensorProto.FLOAT, ["batch", "seq", form.width])
    proto.graph.value_info.append(info)
    assert_equivalent(proto, form.feeds(), tolerance=TOLERANCE)
    stages = rewritten(proto, np.random.default_rng(0))
    (absorption,) = stages.absorptions
    assert (absorption.width, [w.index for w in absorption.writers]) == (8, [1, 2])
    for writer in absorption.writers:
        np.testing.assert_array_equal(writer.position, np.arange(4 * DEPTH, 4 * DEPTH + form.width))
    last_node(net, "Attention").attribute[1].ints[2] = 2 * form.width
    proto = net.proto()
    proto.graph.value_info.append(info)
    assert "does not hold" in absorbable(ir.from_proto(proto)).reason


def test_no_bias_and_no_cache_leave_the_weight_alone_to_be_written() -> None:
    """ONNX Runtime 1.31 falls over com.microsoft.Attention without a bias, so this one is not run."""
    absorption = absorbable(FusedAttention(PROJECTING).net())
    assert (absorption.width, [writer.index for writer in absorption.writers]) == (DEPTH, [1])


def test_a_cache_that_comes_out_of_onnx_runtimes_attention_is_refused() -> None:
    net = FusedAttention(PROJECTING, bias=True).net()
    last_node(net, PROJECTING).output.append("present")
    assert absorbable(net).width == DEPTH, "nobody reads it"
    net.output("present")
    assert "gives out keys and values in one cache" in absorbable(net).reason


def test_cross_attention_takes_keys_and_values_with_heads_of_their_own() -> None:
    """MultiHeadAttention with K and V [batch, heads, rows, depth], as decoders of Whisper have them."""
    form = FusedAttention(MHA)
    net = Net(seed=1)
    x = net.input("x", ["batch", "seq", CHANNELS])
    parts = [net.op("MatMul", x, net.normal(CHANNELS, 2 * DEPTH)) for _ in range(3)]
    for index in (1, 2):
        rows = net.op("Reshape", parts[index], net.constant([0, 0, 2, DEPTH]))
        parts[index] = net.op("Transpose", rows, perm=[0, 2, 1, 3])
    out = net.op("MultiHeadAttention", *parts, domain="com.microsoft", num_heads=2)
    out = net.op("Reshape", out, net.constant([2, -1, 2 * DEPTH]))
    net.output(net.op("MatMul", out, net.normal(2 * DEPTH, 3)))
    model = net.proto()
    info = helper.make_tensor_value_info(net.nodes[-3].output[0], TensorProto.FLOAT, ["batch", "seq", 2 * DEPTH])
    model.graph.value_info.append(info)
    stages = rewritten(model, np.random.default_rng(0))
    assert stages.absorptions[-1].width == DEPTH
    assert_equivalent(model, form.feeds(), tolerance=TOLERANCE)
    with_input(net, 3, net.vector(6 * DEPTH))
    model = net.proto()
    model.graph.value_info.append(info)
    assert "for values in rows" in absorbable(ir.from_proto(model)).reason


def test_fields_of_a_form_are_what_its_net_has() -> None:
    """A form that silently ignored a field would test nothing."""
    plain = FusedAttention(STANDARD)
    for change in ({"heads": 4}, {"cache": True}, {"axes": 4}, {"mask": True}, {"value_depth": 8}):
        assert dataclasses.replace(plain, **change).net().proto() != plain.net().proto()
