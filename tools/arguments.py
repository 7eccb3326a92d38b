"""Command-line arguments that several benchmarks have."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_calibration(parser: argparse.ArgumentParser, *, samples: int = 32, seq_len: int = 512) -> None:
    """Add how much text is calibrated on."""
    parser.add_argument("--samples", type=int, default=samples, help=f"calibration texts (default {samples})")
    parser.add_argument("--seq-len", type=int, default=seq_len, help=f"tokens in each (default {seq_len})")


def add_places(parser: argparse.ArgumentParser, results: Path) -> None:
    """Add which model is measured, and where the JSON goes."""
    parser.add_argument("--model", type=Path, help="folder of another language model with cache and tokenizer")
    parser.add_argument("--json", type=Path, default=results, help="where the JSON goes (default tools/results/)")
