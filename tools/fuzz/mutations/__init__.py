"""Ways to break a model on disk. Each changes one thing in a folder with `model.onnx`; all choices come from one seed.

Beside that folder lies another, `outside`, whose files nobody may read.
"""

from __future__ import annotations

from collections.abc import Mapping

from tools.fuzz.mutations.beside import BESIDE
from tools.fuzz.mutations.broken_bytes import BYTES
from tools.fuzz.mutations.external_data import EXTERNAL_DATA
from tools.fuzz.mutations.graph import GRAPH
from tools.fuzz.mutations.messages import MESSAGES
from tools.fuzz.mutations.mutation import SECRET, Mutation

__all__ = ["MUTATIONS", "SECRET", "Mutation"]

MUTATIONS: Mapping[str, Mutation] = {**BYTES, **MESSAGES, **EXTERNAL_DATA, **GRAPH, **BESIDE}
"""Name -> how a model is broken."""
