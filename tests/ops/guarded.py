"""Random operands that end at a page which must not be touched; run as a process of its own."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np

from tests.ops.native import ISAS, Kernels, Product, exact, random_product, random_rows

PAGE = mmap.PAGESIZE


def guarded(array: np.ndarray) -> np.ndarray:
    """Copy an array to where its last byte is the last one before forbidden memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = -(-array.nbytes // PAGE) * PAGE
    memory = mmap.mmap(-1, pages + PAGE)
    whole = np.frombuffer(memory, np.uint8)
    forbidden = ctypes.c_void_p(whole.ctypes.data + pages)
    assert libc.mprotect(forbidden, ctypes.c_size_t(PAGE), 0) == 0
    copy = whole[pages - array.nbytes : pages].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def check(native: Kernels, rng: np.random.Generator) -> None:
    """Multiply and quantize once, shapes drawn at random."""
    K, N, rows = int(rng.integers(1, 300)), int(rng.integers(1, 70)), int(rng.integers(1, 20))
    group = int(rng.choice([16, 32, 64, 128, 256, -(-K // 16) * 16]))
    drawn = random_product(rng, K, N, group)
    product = Product(K, N, group, guarded(drawn.codes), guarded(drawn.scales))
    a, a_scale = map(guarded, random_rows(rng, rows, K))
    wanted, bound = exact(product, a, a_scale)
    assert (np.abs(native.multiply(product, a, a_scale) - wanted) <= bound).all(), (K, N, rows, group)

    x = guarded(rng.normal(size=(rows, K)).astype(np.float32))
    codes, scales = native.quantize_rows(x, 8)
    assert (np.abs(codes * scales[:, None] - x) <= 0.5001 * scales[:, None]).all(), (K, rows)


def main() -> None:
    native = Kernels(Path(sys.argv[1]))
    rng = np.random.default_rng(3)
    for isa in ISAS:
        with native.on(isa) as there:
            for _ in range(60 if there else 0):
                check(native, rng)
    print("all right")


if __name__ == "__main__":
    main()
