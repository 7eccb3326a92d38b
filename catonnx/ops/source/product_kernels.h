// The kernels that multiply() chooses from. A file for one instruction set calls no inline function of the standard library:
// the linker keeps one copy of those for the whole library, and that could be the one that was compiled for AVX-512.
#pragma once

#include "product.h"

namespace catonnx {

// "stream": few rows, codes are read once and unpacked in registers. "block": many rows, codes are unpacked to bytes, a panel
// of columns at a time, once for all rows. K and rows are at least 1, first < last; scratch is aligned to 64 bytes and holds
// rows * stream_row_bytes, or block_bytes of the same instruction set.
using Kernel = void(const Product& product, const int8_t* a, const float* a_scale, int64_t rows, int64_t first, int64_t last, float* y, uint8_t* scratch);

Kernel stream_avx2, stream_avx512vnni, block_avx2, block_avx512vnni;

int64_t block_bytes_avx2(const Product& product, int64_t rows);
int64_t block_bytes_avx512vnni(const Product& product, int64_t rows);

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t group_count(const Product& p) { return ceil_div(p.K, p.group); }
static inline int64_t row_bytes(const Product& p) { return group_count(p) * p.group / 2; }

// 128 channels (64 bytes of codes) of activations, and 16 sums.
static inline int64_t stream_row_bytes(const Product& p) { return ceil_div(row_bytes(p), 64) * 192; }

}  // namespace catonnx
