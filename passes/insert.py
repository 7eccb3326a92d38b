"""Put factors that no node before a site takes up into the graph, as few and fast nodes as ONNX Runtime has for them.

    scale            Mul
    hadamard m       Reshape [..., d/m, m], MatMul by one shared m x m matrix, Reshape back
      m > 64         the same with two small matrices: H_m = H_a kron H_b
    blocks k         Reshape [..., d/k, k], Transpose, MatMul batched over blocks, Transpose, Reshape back
      k = d          one MatMul
    permutation      Gather on the last axis: 1.7 ms for 128 rows of 1536 where blocks of 64 take 0.3 on one CPU core
    kronecker a, b   Reshape [..., a, b], MatMul by the second, MatMul by the first from the left, Reshape back
  rank unknown   rows are joined, [-1, d/m, m], [-1, d/k, k] or [-1, a, b], and a Shape node gives them back their axes

With `operators`, a scale and what follows it become one node of `catonnx` (see `graph.operators`): SharedTransform for
a Hadamard matrix of up to 64, KroneckerTransform for two matrices, BlockTransform for blocks. For bfloat16 they
have kernels on CUDA alone, as all else has.

The inverse goes into the weights behind, so the function of the model does not change. Neighbouring factors that fit
one matrix per block are multiplied out first. A second run on a site is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from catonnx.errors import VerificationError
from catonnx.graph.edits import Names, Step, add_constant, cast, insert_before
from catonnx.graph.operators import DOMAIN, declare
from catonnx.graph.shapes import Shapes
from catonnx.graph.sites import Site
from catonnx.math.factors import Blocks, Factor, Hadamard, Kronecker, Permutation, Scale, Transform
from catonnx.math.hadamard import hadamard_matrix, kronecker_pair
from catonnx.math.merging import merged
from catonnx.passes._protocol import check_read_directly, cleaned
from catonnx.passes.absorb import undo_in_readers

_WIDEST_SHARED = 64
"""Wider Hadamard matrices are run as two small ones: fewer multiply-adds, one more node."""

_OPERATOR_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

_BY_MATRICES = {1: "SharedTransform", 2: "KroneckerTransform"}


@dataclasses.dataclass(frozen=True, eq=False)
class OnlineTransform:
    """Factors for one site that are run as nodes."""

    site: Site
    factors: tuple[Factor, ...]


@dataclasses.dataclass(frozen=True)
class Insert(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        transforms: What to insert, in graph order; the sites must belong to the model.
        operators: Write nodes of our own domain.
    """

    transforms: tuple[OnlineTransform, ...]
    operators: bool = False

    def requires(self, model: ir.Model) -> None:
        """Refuse sites of another model, and such as have something inserted."""
        check_read_directly(model, (item.site for item in self.transforms))

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert every transform between its site and the linears that read it."""
        graph = model.graph
        names, shapes = Names(graph), Shapes(graph)
        shared: dict[tuple[int, ir.DataType], ir.Value] = {}
        known: dict[tuple[bytes, ir.DataType, tuple[int, ...]], ir.Value] = {}
        for item in self.transforms:
            writer, factors = _Nodes(graph, names, item.site, shared, known, shapes), merged(item.factors)
            if self.operators and item.site.dtype in _OPERATOR_TYPES:
                steps = list(writer.operators(factors))
                declare(model, *(step.operator for step in steps if step.domain == DOMAIN))
            else:
                steps = [step for factor in factors for step in writer.steps(factor)]
            stored = writer.as_stored(factors)
            readers = [linear.node for linear in item.site.linears]
            insert_before(graph, names, readers, item.site.value, steps)
            undo_in_readers(graph, names, item.site, Transform(stored))
        return cleaned(model, bool(self.transforms))


@dataclasses.dataclass(frozen=True)
class _Nodes:
    """Spells factors as steps of a chain, for one site."""

    graph: ir.Graph
    names: Names
    site: Site
    shared: dict[tuple[int, ir.DataType], ir.Value]
    known: dict[tuple[bytes, ir.DataType, tuple[int, ...]], ir.Value]
    shapes: Shapes

    def steps(self, factor: Factor) -> list[Step]:
        match factor:
            case Scale():
                return [self._step("scale", "Mul", [None, self._constant("scale", factor.vector)])]
            case Hadamard():
                return self._hadamard(factor)
            case Blocks():
                return self._blocks(factor.matrices)
            case Permutation():
                order = add_constant(self.graph, self.names, f"{self.site.name}/cat/order", np.array(factor.order))
                return [self._step("permute", "Gather", [None, order], axis=-1)]
            case Kronecker():
                return self._kronecker(factor)

    def operators(self, factors: Sequence[Factor]) -> Iterator[Step]:
        """Yield a chain in which a scale joins what follows it in one node of our own."""
        scale: Scale | None = None
        for factor in factors:
            if isinstance(factor, Scale) and scale is None:
                scale = factor
                continue
            joined = self._operator(factor, scale)
            if joined is None:
                yield from self.steps(scale) if scale else ()
                yield from self.steps(factor)
            else:
                yield joined
            scale = None
        yield from self.steps(scale) if scale else ()

    def _operator(self, factor: Factor, scale: Scale | None) -> Step | None:
        match factor:
            case Hadamard():
                *outer, inner = self._orders(factor)
                matrices = [self._matrix(order) for order in (*outer, inner)]
            case Blocks() if len(factor.matrices) > 1:
                matrices = [self._constant("transform", factor.matrices)]
            case Kronecker():
                matrices = [self._constant("transform", matrix) for matrix in (factor.first, factor.second)]
            case _:
                return None
        name = "BlockTransform" if isinstance(factor, Blocks) else _BY_MATRICES[len(matrices)]
        vector = self._constant("scale", np.ones(1) if scale is None else scale.vector)
        return self._step("transform", name, [None, vector, *matrices], domain=DOMAIN)

    def as_stored(self, factors: Sequence[Factor]) -> tuple[Factor, ...]:
        """Return factors with their numbers as the file will hold them: what the weights behind have to undo.

        1 / sqrt(16) is exact; 1 / sqrt(12) becomes 0.03 % too small in float16 and 0.13 % too large in bfloat16.

        Raises:
            VerificationError: if their type leaves nothing to invert.
        """
        try:
            return tuple(part for factor in factors for part in self._as_stored(factor))
        except ValueError as error:
            raise VerificationError(
                f"the new basis does not survive {self.site.dtype.name.lower()}: {error}",
                where=f"site {self.site.name}",
                hint="choose another --transform, or take a float32 model",
            ) from error

    def _as_stored(self, factor: Factor) -> tuple[Factor, ...]:
        match factor:
            case Scale():
                return (Scale(self._rounded(factor.vector)),)
            case Hadamard():
                matrices = [hadamard_matrix(order) for order in self._orders(factor)]
                gain = np.prod([self._rounded(matrix)[0, 0] / matrix[0, 0] for matrix in matrices])
                return factor, Scale(np.full(factor.width, gain))
            case Blocks():
                return (Blocks(self._rounded(factor.matrices)),)
            case Permutation():
                return (factor,)
            case Kronecker():
                return (Kronecker(self._rounded(factor.first), self._rounded(factor.second)),)

    @property
    def _rank(self) -> int | None:
        shape = self.shapes[self.site.value]
        return None if shape is None else len(shape)

    def _hadamard(self, factor: Hadamard) -> list[Step]:
        *outer, inner = self._orders(factor)
        products = [self._step("hadamard", "MatMul", [None, self._matrix(inner)])]
        for order in outer:
            products.append(self._step("hadamard_outer", "MatMul", [self._matrix(order, transposed=True), None]))
        return [self._split([factor.width // factor.order, *outer, inner]), *products, self._join()]

    def _orders(self, factor: Hadamard) -> list[int]:
        """Return the orders of the matrices whose Kronecker product is run: one, or two."""
        first, second = kronecker_pair(factor.order)
        return [factor.order] if factor.order <= _WIDEST_SHARED or first == 1 else [first, second]

    def _blocks(self, matrices: np.ndarray) -> list[Step]:
        count, block, _ = matrices.shape
        if count == 1:
            return [self._step("transform", "MatMul", [None, self._constant("transform", matrices[0])])]
        rank = max(2, self._rank or 2)
        to_front = [rank - 1, *range(rank - 1), rank]
        to_back = [*range(1, rank), 0, rank]
        weight = matrices.reshape(count, *(1,) * (rank - 2), block, block)
        return [
            self._split([count, block]),
            self._step("blocks_first", "Transpose", [None], perm=to_front),
            self._step("transform", "MatMul", [None, self._constant("transform", weight)]),
            self._step("blocks_last", "Transpose", [None], perm=to_back),
            self._join(),
        ]

    def _kronecker(self, factor: Kronecker) -> list[Step]:
        return [
            self._split([len(factor.first), len(factor.second)]),
            self._step("transform", "MatMul", [None, self._constant("transform", factor.second)]),
            self._step("transform_outer", "MatMul", [self._constant("transform_outer", factor.first.T), None]),
            self._join(),
        ]

    def _step(
        self, what: str, operator: str, inputs: Sequence[ir.Value | None], domain: str = "", **attributes: object
    ) -> Step:
        return Step(f"{self.site.name}/cat/{what}", operator, tuple(inputs), attributes, domain)

    def _split(self, tail: Sequence[int]) -> Step:
        """Reshape the channel axis to `tail` and leave the others (a 0 copies a length); join them if none is known."""
        head = (0,) * (self._rank - 1) if self._rank and self._rank > 1 else (-1,)
        return self._step("split", "Reshape", [None, self._target("split", [*head, *tail])])

    def _join(self) -> Step:
        """Undo `_split`."""
        if self._rank is None:
            return self._step("join", "Reshape", [None, self._shape_at_run_time()])
        return self._step("join", "Reshape", [None, self._target("join", [*(0,) * (self._rank - 1), self.site.width])])

    def _target(self, what: str, lengths: Sequence[int]) -> ir.Value:
        array = np.array(lengths, np.int64)
        return add_constant(self.graph, self.names, f"{self.site.name}/cat/{what}_shape", array)

    def _shape_at_run_time(self) -> ir.Value:
        name = self.names.new(f"{self.site.name}/cat/shape")
        output = ir.Value(name=self.names.new(f"{name}_output"), type=ir.TensorType(ir.DataType.INT64))
        node = ir.node("Shape", [self.site.value], outputs=[output], name=name)
        self.graph.insert_before(self.site.linears[0].node, node)
        return output

    def _constant(self, what: str, array: np.ndarray) -> ir.Value:
        tensor = self._typed(array)
        key = hashlib.sha256(tensor.tobytes()).digest(), tensor.dtype, tuple(tensor.shape.numpy())
        if key not in self.known:  # else a site has it whose weights this one shares
            self.known[key] = add_constant(self.graph, self.names, f"{self.site.name}/cat/{what}_matrix", tensor)
        return self.known[key]

    def _matrix(self, order: int, *, transposed: bool = False) -> ir.Value:
        """Return the Hadamard matrix of an order, one initializer for the whole model."""
        key = (-order if transposed else order, self.site.dtype)
        if key not in self.shared:
            matrix = hadamard_matrix(order)
            wanted = f"catonnx/hadamard_{order}"
            self.shared[key] = add_constant(
                self.graph, self.names, wanted, self._typed(matrix.T if transposed else matrix)
            )
        return self.shared[key]

    def _typed(self, array: np.ndarray) -> ir.TensorProtocol:
        exact = np.ascontiguousarray(array)
        return ir.Tensor(cast(exact, self.site.dtype, f"what is inserted at {self.site.name}"), dtype=self.site.dtype)

    def _rounded(self, array: np.ndarray) -> np.ndarray:
        return self._typed(array).numpy().astype(np.float64)
