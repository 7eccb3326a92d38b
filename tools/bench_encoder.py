"""How far the embeddings of a rounded sentence encoder turn away from the float model's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from catonnx.runtime.evaluate import disk_bytes
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.sessions import open_session, run
from catonnx.runtime.text import TokenStream, read_text
from tools.bench_subjects import CAT, EXACT, NONE, Subjects, file_of
from tools.tables import Row

GROUP = "minilm"

_LONGEST = 256
"""Tokens that sentence-transformers gives all-MiniLM-L6-v2 of a document, special ones included."""


def cosines(subjects: Subjects) -> list[Row]:
    """Compare embeddings of news documents with the float model's; calibrated on Wikipedia, not on these documents."""
    documents = [line for line in read_text(subjects.news).splitlines() if line.strip()]
    rows = tokenized(documents[: subjects.sizes.documents], TokenStream.load(subjects.encoder))
    source = subjects.encoder / "model.onnx"
    reference = embeddings(source, rows, {})
    files = {transform: file_of(subjects.optimized_encoder(transform)) for transform in (NONE, CAT)}
    found: dict[str, dict[str, float]] = {}
    table = []
    for transform, path in files.items():
        alike = {
            name: cosine(reference, embeddings(path, rows, config))
            for name, config in (("exact", EXACT), ("deployed", {}))
        }
        exact, deployed = (float(values.mean()) for values in alike.values())
        found[transform] = {"exact": exact, "deployed": deployed}
        lowest = float(alike["exact"].min())
        shown = f"{exact:.5f} (lowest {lowest:.4f}); int8 activations {deployed:.5f}"
        size = disk_bytes(path)
        table.append(
            Row(
                GROUP,
                f"w4a16 group 32, mean cosine to float on {len(rows)} documents: {transform}",
                shown,
                values=found[transform] | {"lowest_exact": lowest, "bytes": size, "source_bytes": disk_bytes(source)},
            )
        )
    gain = (1 - found[NONE]["exact"]) / max(1 - found[CAT]["exact"], 1e-12)
    better = found[CAT]["exact"] > found[NONE]["exact"]
    table.append(
        Row(GROUP, "cat against none", f"1 - cosine {gain:.2f} x smaller", "better", better, {"times_smaller": gain})
    )
    return table


def tokenized(documents: list[str], stream: TokenStream) -> list[np.ndarray]:
    """Return each document as int64 [1, tokens], cut to the encoder's length, [CLS] and [SEP] around it."""
    room = _LONGEST - len(stream.prefix) - len(stream.suffix)
    parts = ([stream.prefix, stream.encode(document)[:room], stream.suffix] for document in documents)
    return [np.concatenate([np.asarray(part, np.int64) for part in row])[np.newaxis] for row in parts]


def embeddings(path: Path, rows: list[np.ndarray], config: Mapping[str, str]) -> np.ndarray:
    """Return the mean over the tokens that the attention mask shows, normalized: float64 [documents, width].

    Documents are run one at a time, so that none is padded.
    """
    session = open_session(path, config=config)
    spec = InputSpec.from_session(session)
    output = session.get_outputs()[0].name
    vectors = []
    for row in rows:
        feeds = spec.first_feeds(row)
        (hidden,) = run(session, [output], feeds)  # [1, tokens, width]
        mask = feeds.get("attention_mask", np.ones_like(row))[..., np.newaxis].astype(np.float64)
        vectors.append(((hidden * mask).sum(axis=1) / mask.sum(axis=1))[0])
    stacked = np.stack(vectors)
    normalized: np.ndarray = stacked / np.linalg.norm(stacked, axis=1, keepdims=True)
    return normalized


def cosine(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of normalized rows."""
    cosines: np.ndarray = np.einsum("ij,ij->i", reference, other)
    return cosines
