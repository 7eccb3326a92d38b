"""Command-line arguments that several benchmarks have."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Add how much text is calibrated on."""
    parser.add_argument("--samples", type=int, default=32, help="calibration texts (default 32)")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens in each (default 512)")


def add_places(parser: argparse.ArgumentParser, results: Path) -> None:
    """Add which model is measured, and where the JSON goes."""
    parser.add_argument("--model", type=Path, help="folder of another language model with cache and tokenizer")
    parser.add_argument("--json", type=Path, default=results, help="where the JSON goes (default tools/results/)")
