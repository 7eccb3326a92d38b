"""Operators of our own, in the domain `catonnx`: each a model-local function of standard operators.

    SharedTransform(X [..., K], scale, matrix [b, b])            every run of b channels of X * scale, times the matrix
    BlockTransform(X [..., K], scale, matrices [B, b, b])        run i times matrix i; K = B b
    KroneckerTransform(X [..., K], scale, first [a, a], second)  every run of a b channels times (first kron second)
    DynamicQuantize(X [..., K]) -> Q int8, S float32 [..., 1]    codes of each token, as a symmetric `ActivationGrid`
    SharedTransformQuantize(X, scale, matrix) -> Q, S            the two in one; Block..., Kronecker... likewise
    QuantizedMatMul(A int8 [..., K], a_scale, B, b_scale [N G])  with 4-bit weights, laid out as for MatMulNBits

`scale` is [K], or [1] where there is none. Where the library of `catonnx.ops` is registered its kernels run; everywhere
else ONNX Runtime puts the functions into the graph, and the model computes the same: a row with NaN or Inf has a scale
of NaN, and no rows at all are none.
"""

from __future__ import annotations

from functools import cache

import onnx
import onnx.parser
import onnx_ir as ir

DOMAIN, VERSION = "catonnx", 1

_BODIES = {
    "SharedTransform": """(X, scale, matrix) => (Y) {
        scaled = Mul(X, scale)
        rest = Constant<value_ints = [-1]>()
        width = Shape<start = 0, end = 1>(matrix)
        split = Concat<axis = 0>(rest, width)
        runs = Reshape(scaled, split)
        product = MatMul(runs, matrix)
        shape = Shape(X)
        Y = Reshape<allowzero = 1>(product, shape)
    }""",
    # The scale stands between Transpose and MatMul: ONNX Runtime 1.31 fuses the two, and then dies of no rows at all.
    "BlockTransform": """(X, scale, matrices) => (Y) {
        rest = Constant<value_ints = [-1]>()
        one = Constant<value_ints = [1]>()
        blocks = Shape<start = 0, end = 1>(matrices)
        width = Shape<start = 1, end = 2>(matrices)
        split = Concat<axis = 0>(rest, blocks, width)
        runs = Reshape(X, split)
        first = Transpose<perm = [1, 0, 2]>(runs)
        channels = Shape<start = -1>(X)
        scales = Expand(scale, channels)
        apart = Concat<axis = 0>(blocks, one, width)
        columns = Reshape(scales, apart)
        scaled = Mul(first, columns)
        products = MatMul(scaled, matrices)
        last = Transpose<perm = [1, 0, 2]>(products)
        shape = Shape(X)
        Y = Reshape<allowzero = 1>(last, shape)
    }""",
    # Two products of two axes each: of three, with one of them empty, ONNX Runtime says that they cannot broadcast.
    "KroneckerTransform": """(X, scale, first, second) => (Y) {
        scaled = Mul(X, scale)
        rest = Constant<value_ints = [-1]>()
        rows = Shape<start = 0, end = 1>(first)
        columns = Shape<start = 0, end = 1>(second)
        by_columns = Concat<axis = 0>(rest, columns)
        flat = Reshape(scaled, by_columns)
        inner = MatMul(flat, second)
        split = Concat<axis = 0>(rest, rows, columns)
        runs = Reshape(inner, split)
        turned = Transpose<perm = [0, 2, 1]>(runs)
        by_rows = Concat<axis = 0>(rest, rows)
        lines = Reshape(turned, by_rows)
        outer = MatMul(lines, first)
        split_turned = Concat<axis = 0>(rest, columns, rows)
        apart = Reshape(outer, split_turned)
        back = Transpose<perm = [0, 2, 1]>(apart)
        shape = Shape(X)
        Y = Reshape<allowzero = 1>(back, shape)
    }""",
    "DynamicQuantize": """<bits, clip>(X) => (Q, S) {
        wide = Cast<to = 1>(X)
        size = Abs(wide)
        last = Constant<value_ints = [-1]>()
        peak = ReduceMax<keepdims = 1>(size, last)
        two = Constant<value_float = 2.0>()
        one = Constant<value_float = 1.0>()
        width = Constant<value_int: int = @bits>()
        number = Cast<to = 1>(width)
        exponent = Sub(number, one)
        half = Pow(two, exponent)
        high = Sub(half, one)
        low = Neg(half)
        part = Constant<value_float: float = @clip>()
        kept = Mul(part, peak)
        range = Div(kept, high)
        zero = Constant<value_float = 0.0>()
        positive = Greater(range, zero)
        usual = Where(positive, range, one)
        zeros = Mul(wide, zero)
        nothing = ReduceSum<keepdims = 1>(zeros, last)
        S = Add(usual, nothing)
        steps = Div(wide, usual)
        whole = Round(steps)
        cut = Clip(whole, low, high)
        Q = Cast<to = 3>(cut)
    }""",
    "QuantizedMatMul": """<K, N, block_size>(A, a_scale, B, b_scale) => (Y) {
        codes = CastLike(A, a_scale)
        steps = Mul(codes, a_scale)
        rows = CastLike(steps, b_scale)
        Y = com.microsoft.MatMulNBits
            <K: int = @K, N: int = @N, bits = 4, block_size: int = @block_size> (rows, B, b_scale)
    }""",
}

FUSED = {name: f"{name}Quantize" for name in ("SharedTransform", "BlockTransform", "KroneckerTransform")}
"""Transform -> it and DynamicQuantize in one."""


def _fused(transform: str) -> str:
    inputs = _BODIES[transform].partition(" =>")[0]
    return f"""<bits, clip>{inputs} => (Q, S) {{
        Y = {DOMAIN}.{transform} {inputs}
        Q, S = {DOMAIN}.DynamicQuantize <bits: int = @bits, clip: float = @clip> (Y)
    }}"""


_BODIES |= {fused: _fused(transform) for transform, fused in FUSED.items()}


def declare(model: ir.Model, *operators: str) -> None:
    """Make operators of ours known to a model, with the functions that stand for them, in the model's own opset."""
    imports = model.graph.opset_imports
    imports[DOMAIN] = VERSION
    for name in operators:
        function = _function(name).clone()
        if "com.microsoft" in function.opset_imports:
            imports.setdefault("com.microsoft", 1)
        function.opset_imports[""] = imports[""]
        model.functions.setdefault(function.identifier(), function)
        declare(model, *sorted({node.op_type for node in function if node.domain == DOMAIN}))


@cache
def _function(name: str) -> ir.Function:
    others = (domain for domain in ("com.microsoft", DOMAIN) if f"{domain}." in _BODIES[name])
    imports = ", ".join(f'"{domain}" : 1' for domain in others)
    head = f'<domain: "{DOMAIN}", opset_import: ["" : 21{imports and ", "}{imports}]>'
    return ir.serde.deserialize_function(onnx.parser.parse_function(f"{head} {name} {_BODIES[name]}"))
