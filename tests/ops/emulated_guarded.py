"""Random operands for the emulated CUDA kernels, each with an end that a sanitizer watches; a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.ops.emulated import ORDERS, Emulated
from tests.ops.native import Product, exact, random_product, random_rows

TYPES = (np.float16, np.float32)


def check_product(kernels: Emulated, rng: np.random.Generator, *, half_a_step: bool = False) -> None:
    """Multiply once, shapes drawn at random; or such that the last group is the first half of a step of 32 channels."""
    K, N, rows = int(rng.integers(1, 300)), int(rng.integers(1, 70)), int(rng.integers(1, 40))
    group = int(rng.choice([16, 32, 64, 128, 256, -(-K // 16) * 16]))
    if half_a_step:
        K, N, rows, group = 41, 7, 20, 16
    drawn = random_product(rng, K, N, group)
    product = Product(K, N, group, drawn.codes, drawn.scales.astype(TYPES[rng.integers(2)]))
    a, a_scale = random_rows(rng, rows, K)
    wanted, bound = exact(product, a, a_scale)
    if product.scales.dtype == np.float16:
        bound = bound + 2.0**-11 * np.abs(wanted) + 2.0**-25
    assert (np.abs(kernels.multiply(product, a, a_scale) - wanted) <= bound).all(), (K, N, rows, group)


def check_rows(kernels: Emulated, rng: np.random.Generator) -> None:
    """Transform and round once, by a Hadamard matrix and another one, or by a dense one, shapes drawn at random."""
    outer, inner, runs = (int(rng.integers(1, most)) for most in (5, 70, 4))
    dtype = TYPES[rng.integers(2)]
    dense = bool(rng.integers(2))
    if not dense:
        inner = 1 << inner % 10
    channels = outer * inner * runs
    x = rng.standard_normal((int(rng.integers(1, 6)), channels)).astype(dtype)
    scale = rng.uniform(0.5, 2, channels if rng.integers(2) else 1).astype(dtype)
    first = rng.standard_normal((outer, outer)).astype(dtype) if outer > 1 else None
    matrix = rng.standard_normal((inner, inner)).astype(dtype) if dense else None
    given: dict[str, Any] = {"inner": inner, "outer": outer, "first": first}
    y, _ = kernels.transform(x, scale, matrix, **given)
    codes, scales = kernels.transform(x, scale, matrix, **given, bits=8)
    most = np.abs(y.astype(np.float64)).max(axis=-1, keepdims=True)
    assert (np.abs(codes * scales[:, None] - y) <= 0.5 * scales[:, None] + 2e-3 * most).all(), (outer, inner, runs)


def check_cluster(kernels: Emulated, rng: np.random.Generator) -> None:
    """Rows by dense blocks, three of them in one thread block and two in the other."""
    x = rng.standard_normal((17, 320)).astype(np.float16)
    scale, matrices = np.ones(320, np.float16), rng.standard_normal((5, 64, 64)).astype(np.float16)
    with kernels.under(0, False, 2):
        codes, scales = kernels.transform(x, scale, matrices, inner=64, bits=8)
    y = np.einsum("rbi,bij->rbj", x.reshape(17, 5, 64).astype(np.float64), matrices).reshape(17, 320)
    assert (np.abs(codes * scales[:, None] - y) <= 0.501 * scales[:, None]).all()


def main() -> None:
    kernels, rng = Emulated(Path(sys.argv[1])), np.random.default_rng(3)
    for order in ORDERS:
        with kernels.under(*order):
            check_product(kernels, rng, half_a_step=True)
            for _ in range(15):
                check_product(kernels, rng)
                check_rows(kernels, rng)
    check_cluster(kernels, rng)
    print("all right")


if __name__ == "__main__":
    main()
