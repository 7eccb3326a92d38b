"""What the user asked for, checked once."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from catonnx.errors import UsageError
from catonnx.recipe.checks import check_recipe
from catonnx.recipe.types import as_typed, hints_of

Scheme = Literal["w4a16", "w4a8", "w4a4", "float"]
TransformName = Literal["none", "smoothquant", "scale", "hadamard", "cat", "wush", "spinquant", "flatquant"]
Form = Literal["qdq", "nbits", "integer", "op"]
Online = Literal["all", "none"]
Provider = Literal["cpu", "cuda"]
Dtype = Literal["source", "float16"]
Caches = Literal["transformed", "exact"]
Rounding = Literal["nearest", "mse", "gptq", "sequential"]
Scales = Literal["signed", "positive"]
Activations = Literal["dynamic", "static"]
ActivationRange = Literal["asymmetric", "symmetric"]

SELF = "self"
"""Calibration on text that the model itself writes."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One optimization, as asked for.

    Attributes:
        scheme: `w4a16` rounds weights to int4, `w4a8` and `w4a4` activations too, to 8 or 4 bits; `float` applies the
            transforms and rounds nothing.
        group_size: Rows of a weight that share a scale; None for one scale per output channel.
        transform: `none`; `smoothquant`, scales from maxima; `scale`, aligning scales; `hadamard`; `cat`, alignment in
            blocks, then a Hadamard matrix; `wush`, the same alignment with another orthogonal factor, block by block;
            `spinquant` and `flatquant`, learned per site (they need torch).
        block_size: Width of the blocks of `cat` and `wush`; 1 is a scaling. None takes the widest block that costs
            nothing at run time (`wush`: the group size).
        hadamard_size: Width of the Hadamard matrix. None takes the widest group that shares a scale: the group size
            without rounded activations, the whole width where tokens or output channels share one.
        permute: Whether channels are gathered into blocks with those that they are most alike, where the nodes before
            take up the new order; it matters to blocks that run online.
        rotate: Whether the residual stream is turned first, by one orthogonal matrix that the embedding, all that
            writes into the stream and all that reads it take up.
        refine: Whether scales, blocks and clip ratios are trained further on rows of calibration (needs torch).
        online: Whether factors that cannot be absorbed stay as nodes (`all`) or are left out (`none`).
        max_overhead: Multiply-adds of those nodes, as a part of those of the linears: narrower blocks and Hadamard
            matrices are taken where that costs least, until they fit. None sets no bound.
        caches: Whether attention caches may be handed out in a changed basis (`transformed`) or stay `exact`.
        rounding: How weights are rounded: `mse` searches the scale of every group, `nearest` takes the largest
            magnitude; `gptq` lets rows make up for each other, by the moments of calibration; `sequential` does it site
            by site and makes up for the sites before, too.
        damping: Of `gptq` and `sequential`, in units of the mean square of a channel: how little to trust the text.
        correct_bias: Whether the mean of the error that rounding brings is added to what linears give out: at no cost
            where they have a bias or ONNX Runtime takes one into the product.
        scales: Whether scales of weights may be negative (`signed`), so that the largest magnitude maps to -8.
        activations: `dynamic` finds the range of every token as it comes, `static` takes it from calibration.
        activation_range: `asymmetric` runs from the smallest to the largest number, `symmetric` has zero in the middle.
        activation_group_size: Channels of a token that share a scale; None for the whole token.
        clip: Part of the range of activations that is kept; None searches it for every site.
        w8: Shell patterns of node names: sites of such linears keep 8 bits, weights and activation.
        keep_8bit: Number of sites whose weights and activations keep 8 bits: those where 4 hurt most.
        target_bits: Mean bits of a weight, between 4 and 8: as many sites keep 8 bits as that allows.
        calibration: A .txt or .npz file, or `self`, or several of them; None takes `self`.
        samples: Number of calibration sequences, the same from each of them.
        seq_len: Tokens in each.
        form: `qdq` writes DequantizeLinear (standard ONNX), `nbits` writes MatMulNBits, `integer` MatMulInteger, `op`
            operators of our own with functions that stand for them.
        accuracy_level: Of MatMulNBits (form `nbits`): 0 computes in the activation's type, 4 in int8.
        include: Shell patterns of node names to round; empty for all.
        exclude: Shell patterns of node names to leave in float.
        lm_head: Whether the output head is rounded too.
        tied_embeddings: Bits of a table that embedding and output head share: rounded in the basis that it has, stored
            once for both. None leaves the embedding in float, and the head with it unless `lm_head`.
        dtype: Whether what is float32 stays so, as in the `source`, or becomes `float16` where that holds its numbers,
            caches included; other inputs and outputs stay.
        provider: Where calibration runs and the result is meant to run.
        seed: Of everything random.

    Raises:
        UsageError: when a value is of another type or out of range, or two contradict each other.
    """

    scheme: Scheme = "w4a16"
    group_size: int | None = 32
    transform: TransformName = "cat"
    block_size: int | None = None
    hadamard_size: int | None = None
    permute: bool = False
    rotate: bool = False
    refine: bool = False
    online: Online = "all"
    max_overhead: float | None = None
    caches: Caches = "transformed"
    rounding: Rounding = "mse"
    damping: float = 0.3
    correct_bias: bool = False
    scales: Scales = "signed"
    activations: Activations = "dynamic"
    activation_range: ActivationRange = "asymmetric"
    activation_group_size: int | None = None
    clip: float | None = None
    w8: tuple[str, ...] = ()
    keep_8bit: int = 0
    target_bits: float | None = None
    calibration: str | tuple[str, ...] | None = None
    samples: int = 32
    seq_len: int = 512
    form: Form = "qdq"
    accuracy_level: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    lm_head: bool = False
    tied_embeddings: Literal[4, 8] | None = None
    dtype: Dtype = "source"
    provider: Provider = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, hint in hints_of(Recipe).items():
            object.__setattr__(self, name, as_typed(name, getattr(self, name), hint))  # what is frozen settles itself
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} is {getattr(self, name)!r}", hint=f"choose one of {', '.join(choices)}")
        check_recipe(self)

    @property
    def texts(self) -> tuple[str, ...]:
        """What is calibrated on."""
        return (self.calibration,) if isinstance(self.calibration, str) else self.calibration or (SELF,)

    @property
    def rounds(self) -> bool:
        """Whether weights are rounded."""
        return self.scheme != "float"

    @property
    def activation_bits(self) -> Literal[4, 8] | None:
        """Bits of activations in nodes of our own; None where they stay in float or the kernel of nbits rounds them."""
        if self.form == "nbits":
            return None
        return {"w4a8": 8, "w4a4": 4}.get(self.scheme)  # type: ignore[return-value]

    @property
    def rounds_activations(self) -> bool:
        """Whether activations are rounded, by nodes of ours or in a kernel."""
        return self.scheme in ("w4a8", "w4a4")

    @property
    def kernel_level(self) -> int:
        """The accuracy level that form nbits writes."""
        return 4 if self.scheme == "w4a8" else self.accuracy_level

    @property
    def learns(self) -> bool:
        """Whether the transform is trained (with torch)."""
        return self.refine or self.transform in ("spinquant", "flatquant")

    @property
    def needs_moments(self) -> bool:
        """Whether anything is fitted to activations."""
        fitted = self.transform not in ("none", "hadamard")
        kept = bool(self.keep_8bit) or self.target_bits is not None
        sequential = self.rounding == "sequential"
        bounded = self.max_overhead is not None
        return fitted or self.needs_rows or self.needs_whole_moments or kept or sequential or bounded

    @property
    def needs_whole_moments(self) -> bool:
        """Whether products of all pairs of channels are needed, not only within blocks."""
        return self.rounding == "gptq" or self.permute

    @property
    def needs_rows(self) -> bool:
        """Whether some rows of every activation are kept: to find ranges, to learn from, to see errors on."""
        return self.activation_bits is not None or self.learns or self.correct_bias

    @property
    def rounds_by_data(self) -> bool:
        """Whether what weights are rounded to depends on activations."""
        return self.rounding in ("gptq", "sequential") or self.correct_bias

    def hadamard_width(self, width: int) -> int:
        """Return how wide the Hadamard matrix of a site should be: as wide as the widest group with one scale."""
        groups = [self.group_size or width]
        if self.activation_bits is not None:
            groups.append(width if self.activations == "static" else self.activation_group_size or width)
        return min(self.hadamard_size or max(groups), width)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as plain data."""
        return dataclasses.asdict(self)


_CHOICES: dict[str, tuple[str, ...]] = {
    "scheme": get_args(Scheme),
    "transform": get_args(TransformName),
    "online": get_args(Online),
    "caches": get_args(Caches),
    "rounding": get_args(Rounding),
    "scales": get_args(Scales),
    "activations": get_args(Activations),
    "activation_range": get_args(ActivationRange),
    "form": get_args(Form),
    "dtype": get_args(Dtype),
    "provider": get_args(Provider),
}
