"""Feed a language model piece by piece, its key-value cache kept where the model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from catonnx.errors import CalibrationError
from catonnx.runtime.feeds import PAST_PREFIX, InputSpec, graph_inputs
from catonnx.runtime.sessions import PROVIDER_NAMES, quiet_run, run_failure, runtime_errors

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

LOGITS = "logits"
PRESENT_PREFIXES = ("present.", "present_key_values.")
"""How the names of outputs begin that a cache goes on with."""


class Decoder:
    """A language model in the middle of a batch of texts.

    The cache goes from one step's outputs to the next step's inputs as ONNX Runtime's own tensors. Copied through numpy
    it costs more than half of the time at 16 texts of 128 tokens.

    Raises:
        CalibrationError: the model has no cache, no logits, or a cache input without the output that feeds it.
    """

    def __init__(self, session: InferenceSession, spec: InputSpec) -> None:
        outputs = {node.name for node in session.get_outputs()}
        if not spec.has_cache or LOGITS not in outputs:
            raise CalibrationError(
                "the model cannot be fed piece by piece: it takes no past keys and values, or gives no logits",
                hint="export it with a cache (Optimum: --task text-generation-with-past)",
            )
        self._session = session
        self._spec = spec
        self._device = "cuda" if PROVIDER_NAMES["cuda"] in session.get_providers() else "cpu"
        self._present_names = tuple(present_name(name, outputs) for name in spec.past_names)
        self.start(1)

    def start(self, batch: int) -> None:
        """Forget everything and be ready for `batch` new texts."""
        self._empty = self._spec.zero_past(batch)
        self._cache: dict[str, object] = {}
        self.length = 0

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Append `tokens` int64 [batch, n] to the texts and return the logits after each, float [batch, n, vocabulary].

        Raises:
            ModelError: ONNX Runtime failed.
        """
        feeds = self._spec.feeds(tokens, self.length)
        if self.length == 0:
            feeds |= self._empty
        binding = self._session.io_binding()
        try:
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            for name, value in self._cache.items():
                binding.bind_ortvalue_input(name, value)
            binding.bind_output(LOGITS, "cpu")
            for name in self._present_names:
                binding.bind_output(name, self._device)
            self._session.run_with_iobinding(binding, quiet_run())
        except runtime_errors() as error:
            raise run_failure(error, {name: array.shape for name, array in feeds.items()}) from error
        logits, *cache = binding.get_outputs()
        self._cache = dict(zip(self._spec.past_names, cache, strict=True))
        self.length += tokens.shape[1]
        values: np.ndarray = logits.numpy()
        return values


def can_be_continued(model: ir.Model) -> bool:
    """Whether a model can be fed piece by piece: tokens and a cache in, logits and the cache out."""
    outputs = {str(value.name) for value in model.graph.outputs}
    try:
        past_names = InputSpec.of(graph_inputs(model)).past_names
        return LOGITS in outputs and bool([present_name(name, outputs) for name in past_names])
    except CalibrationError:
        return False


def is_cache_name(name: str) -> bool:
    """Whether an input or output is part of a cache, by the names that exporters give: callers hand it on unseen."""
    return name.startswith((PAST_PREFIX, *PRESENT_PREFIXES))


def present_name(past_name: str, outputs: set[str]) -> str:
    """Return the output that holds what the cache input `past_name` must be fed in the next step.

    Raises:
        CalibrationError: there is none among `outputs`.
    """
    rest = past_name.removeprefix("past_key_values.")
    for candidate in (f"{prefix}{rest}" for prefix in PRESENT_PREFIXES):
        if candidate in outputs:
            return candidate
    raise CalibrationError(f"no output continues the cache input {past_name}", hint=f"expected present.{rest}")
