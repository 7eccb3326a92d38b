"""What the user asked for, checked once."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from catonnx.errors import UsageError

Scheme = Literal["w4a16", "float"]
TransformName = Literal["none", "scale", "hadamard", "cat"]
Form = Literal["qdq", "nbits"]
Online = Literal["all", "none"]
Provider = Literal["cpu", "cuda"]
Caches = Literal["transformed", "exact"]
Rounding = Literal["nearest", "mse"]

GROUP_SIZES = (16, 32, 64, 128, 256)
SELF = "self"
"""Calibration on text that the model itself writes."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One optimization, as asked for.

    Attributes:
        scheme: `w4a16` rounds weights to int4; `float` applies the transforms and rounds nothing.
        group_size: Rows of a weight that share a scale; None for one scale per output channel.
        transform: `none`, `scale` (aligning scales), `hadamard`, or `cat` (alignment, then a Hadamard matrix).
        block_size: Width of CAT's blocks; 1 is a scaling. None takes the widest block that costs nothing at run time.
        hadamard_size: Width of the Hadamard matrix. None takes the group size, or the whole width without groups.
        online: Whether factors that cannot be absorbed stay as nodes (`all`) or are left out (`none`).
        caches: Whether attention caches may be handed out in a changed basis (`transformed`) or stay `exact`.
        rounding: `mse` searches scale and sign of every group, `nearest` takes the largest magnitude.
        calibration: A .txt or .npz file, or `self`; None takes `self`.
        samples: Number of calibration sequences.
        seq_len: Tokens in each.
        form: `qdq` writes DequantizeLinear (standard ONNX), `nbits` writes MatMulNBits.
        accuracy_level: Of MatMulNBits (form `nbits`): 0 computes in the activation's type, 4 in int8.
        include: Shell patterns of node names to round; empty for all.
        exclude: Shell patterns of node names to leave in float.
        lm_head: Whether the output head is rounded too.
        provider: Where calibration runs and the result is meant to run.
        seed: Of everything random.

    Raises:
        UsageError: when a value is out of range or two contradict each other.
    """

    scheme: Scheme = "w4a16"
    group_size: int | None = 32
    transform: TransformName = "cat"
    block_size: int | None = None
    hadamard_size: int | None = None
    online: Online = "all"
    caches: Caches = "transformed"
    rounding: Rounding = "mse"
    calibration: str | None = None
    samples: int = 32
    seq_len: int = 512
    form: Form = "qdq"
    accuracy_level: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    lm_head: bool = False
    provider: Provider = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} is {getattr(self, name)!r}", hint=f"choose one of {', '.join(choices)}")
        if self.group_size is not None and self.group_size not in GROUP_SIZES:
            raise UsageError(f"group_size is {self.group_size}", hint=f"choose one of {GROUP_SIZES} or channel")
        if self.block_size is not None and self.block_size < 1:
            raise UsageError(f"block_size is {self.block_size}", hint="1 is a scaling, larger widths mix channels")
        if self.hadamard_size is not None and self.hadamard_size < 1:
            raise UsageError(f"hadamard_size is {self.hadamard_size}", hint="1 leaves it out")
        if self.samples < 1 or self.seq_len < 2:
            raise UsageError(
                f"{self.samples} samples of {self.seq_len} tokens calibrate nothing", hint="take 1 x 2 at least"
            )
        if self.accuracy_level not in range(5):
            raise UsageError(f"accuracy_level is {self.accuracy_level}", hint="ONNX Runtime knows 0 to 4")
        if self.accuracy_level and self.form != "nbits":
            raise UsageError(
                "accuracy_level belongs to form nbits",
                hint="for form qdq set the session option session.qdq_matmulnbits_accuracy_level at run time",
            )

    @property
    def rounds(self) -> bool:
        """Whether weights are rounded."""
        return self.scheme != "float"

    @property
    def needs_moments(self) -> bool:
        """Whether the transform is fitted to activations."""
        return self.transform in ("scale", "cat")

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as plain data."""
        return dataclasses.asdict(self)


_CHOICES: dict[str, tuple[str, ...]] = {
    "scheme": get_args(Scheme),
    "transform": get_args(TransformName),
    "online": get_args(Online),
    "caches": get_args(Caches),
    "rounding": get_args(Rounding),
    "form": get_args(Form),
    "provider": get_args(Provider),
}
