"""Proof that a rewritten model is the source's equal before rounding, and figures of how near it is after.

The source runs once; its outputs wait on disk for every candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from catonnx.errors import RuntimeUnavailableError, VerificationError
from catonnx.graph.edits import dequantizer
from catonnx.graph.operators import DOMAIN
from catonnx.graph.twin import holds_bfloat16, needs_twin
from catonnx.ops.place import BUILD, library
from catonnx.progress import Progress, silent
from catonnx.runtime.compare import Comparison, SitePair, first_difference
from catonnx.runtime.decoding import LOGITS
from catonnx.runtime.divergence import json_number
from catonnx.runtime.feeds import Feeds
from catonnx.runtime.fusion import OptimizedGraph
from catonnx.runtime.library import register
from catonnx.runtime.recording import Recording
from catonnx.runtime.running import Runnable, Unwritten
from catonnx.runtime.sessions import Optimization

TOLERANCE = {"float": 1e-4, "double": 1e-4, "float16": 2e-2, "bfloat16": 2e-2}
"""Relative L2 allowed between the source's outputs and those of the transformed model, by type of the activations.

In float32 the transforms themselves cost 1e-6 to 1e-5 on real models: another order of summation, nothing more."""

AS_WRITTEN: Optimization = "as written"
"""How far ONNX Runtime may rewrite two graphs that have to agree.

Its fusions may change the function: 1.31 makes the epsilon of a norm in plain operators 1e-5 where it is an initializer
that is an input too, as old exporters write it. The source and what we made of it would differ for that alone."""

_IN_FLOAT = {"session.disable_prepacking": "1"}
"""Session configuration of models in float: packed, each weight stands in memory twice, for a run or two."""

_LEVEL = "session.qdq_matmulnbits_accuracy_level"

_FARTHEST_DB = 3.0
"""How much less the outputs' SQNR may be with our library than with the functions; 0.1 dB is usual."""

_LOW_BIT_PRODUCTS = ("MatMulNBits", "MatMulInteger", "MatMulIntegerToFloat")
"""What linears are after ONNX Runtime's optimization, if they multiply codes."""


class Verifier(AbstractContextManager["Verifier"]):
    """Compares candidates with one reference on the same inputs.

    Args:
        reference: The source model.
        feeds: What to run it on.
        outputs: The outputs that must agree; caches that were handed a new basis are left out.
        continued: Also check that the model continues from its own cache as the source does from its own.
        provider: "cpu" or "cuda".
        scratch: A folder of ours for outputs that wait.
        progress: Told of every run.
    """

    def __init__(
        self,
        reference: Runnable,
        feeds: Sequence[Feeds],
        outputs: Sequence[str],
        *,
        continued: bool,
        provider: str,
        scratch: Path,
        progress: Progress = silent,
    ) -> None:
        self._reference, self._feeds, self._outputs, self._continued = reference, feeds, outputs, continued
        self._provider, self._scratch, self._progress = provider, scratch, progress

    def __enter__(self) -> Verifier:
        self._recording = Recording(
            self._reference,
            self._feeds,
            outputs=self._outputs,
            continued=self._continued,
            provider=self._provider,
            config=_IN_FLOAT,
            optimization=AS_WRITTEN,
            scratch=self._scratch,
            progress=self._progress,
        )
        self._recording.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._recording.__exit__(*error)

    def check_equivalent(
        self,
        transformed: Runnable,
        dtypes: Set[str],
        locate: Callable[[], tuple[Runnable, Runnable, Sequence[SitePair]]],
        advice: str = "--transform none changes no basis",
    ) -> dict[str, Any]:
        """Check that a model computes what the reference computes.

        Args:
            transformed: The rewritten model, not rounded.
            dtypes: Types of its activations; the coarsest sets the tolerance.
            locate: Called on a difference: returns both models with the value at every site as an output, and how they
                correspond.
            advice: What to try on a difference.

        Returns:
            The measured difference, and whether float32 twins ran in place of bfloat16 models.

        Raises:
            VerificationError: naming the first site that differs.
        """
        comparison = self._recording.compare(transformed, config=_IN_FLOAT, optimization=AS_WRITTEN)
        tolerance = max(TOLERANCE.get(dtype, 1e-4) for dtype in dtypes)
        if not comparison.relative_l2 <= tolerance:
            before, after, pairs = locate()
            place = first_difference(
                before, after, pairs, self._feeds, tolerance, provider=self._provider, scratch=self._scratch
            )
            raise VerificationError(
                "the transformed model differs from the source: "
                f"relative L2 {comparison.relative_l2:.1e}, allowed {tolerance:.0e}",
                where=f"first at site {place.name}, {place.relative_l2:.1e}" if place else "behind the last site",
                hint=f"catonnx is wrong here, or the model is not deterministic; {advice}",
            )
        return {
            "transform_relative_l2": json_number(comparison.relative_l2),
            "float32_twin": _runs_as_twin(transformed),
        }

    def check_deployed(self, result: Unwritten, linears: Sequence[str], *, rounds_activations: bool) -> dict[str, Any]:
        """Load the saved model afresh, as a user's session would, and measure it.

        Args:
            result: The saved model.
            linears: Names of the linears that were rounded.
            rounds_activations: The provider silently rounds activations to int8 here unless a session forbids it; both
                ways are measured then.

        Returns:
            Differences as the provider runs it by default and, on CPU, with exact activations, or with the library of
            our operators if it is built and the model has any; what its linears became.

        Raises:
            VerificationError: if an output is not finite or has another shape.
        """
        graphs: list[OptimizedGraph] = []
        comparison = self._recording.compare(result, see=graphs.append)
        figures = {"as deployed": _figures(comparison)}
        if rounds_activations:
            exact = self._recording.compare(result, config={_LEVEL: "0"})
            figures["exact activations"] = _figures(exact)
        remarks = self._check_library(result, figures) if DOMAIN in result.model.opset_imports else []
        # The source may hold quantized layers of its own; only ours count.
        ours = {dequantizer(name) for name in linears}
        unfused = [node for graph in graphs for node in graph.unfused if node in ours]
        products = sum(graph.operators[name] for graph in graphs for name in _LOW_BIT_PRODUCTS)
        return {
            "deployed": figures,
            "linears": len(linears),
            "fused": min(len(linears) - len(unfused), products),
            "not_fused": [f"{node}: ONNX Runtime dequantizes it at every run" for node in unfused],
            "remarks": remarks,
        }

    def _check_library(self, result: Unwritten, figures: dict[str, Any]) -> list[str]:
        """Measure a model with the library of our operators as well; return why not, or that it is wrong."""
        try:
            if library() is None:
                return []
            own = figures["with catonnx.ops"] = _figures(self._recording.compare(result, prepare=register))
        except (RuntimeUnavailableError, VerificationError) as error:  # what was made is sound without it
            return [f"not checked with the library of catonnx.ops: {error}"]
        both = own["sqnr_db"], figures["as deployed"]["sqnr_db"]
        reached, wanted = (math.inf if value is None else value for value in both)
        if reached < wanted - _FARTHEST_DB:
            return [f"the library of catonnx.ops does not compute what it should; {BUILD} anew"]
        return []


def _runs_as_twin(model: Runnable) -> bool:
    return holds_bfloat16(model.model) if isinstance(model, Unwritten) else needs_twin(Path(model))


def _figures(comparison: Comparison) -> dict[str, Any]:
    if not comparison.finite:
        raise VerificationError(
            "the rounded model gives NaN or Inf", hint="try another --transform or --exclude layers"
        )
    logits = comparison.logits
    judged = [comparison.outputs[LOGITS]] if logits else list(comparison.outputs.values())
    return {
        "sqnr_db": json_number(min(difference.sqnr_db for difference in judged)),
        "kl_nats": json_number(logits.kl_nats) if logits else None,
        "top1_agreement": json_number(logits.top1_agreement) if logits else None,
    }
