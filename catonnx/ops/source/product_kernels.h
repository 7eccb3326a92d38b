// The kernels that a Multiplication chooses from. A file for one instruction set calls no inline function of the standard
// library: the linker keeps one copy of those for everyone, and that could be the one that was compiled for AVX-512.
#pragma once

#include "product.h"

namespace catonnx {

// Arranged activations of `count` rows with a scale each, and where their products with the first column go; those with
// the next one lie beside it, those of the next row `stride` further.
struct Rows {
  const int8_t* tiles;
  const float* scale;
  int64_t count;
  float* y;
  int64_t stride;
};

// K and the number of rows are at least 1, first < last; memory is aligned to 64 bytes.
struct Kernel {
  int64_t tile_rows;                              // rows that are arranged together; the last ones may be fewer
  int64_t block_tiles;                            // multiply() had best be given a multiple of so many tiles
  int64_t (*tile_bytes)(const Product& product);  // of each tile, arranged
  int64_t (*scratch_bytes)(const Product& product);
  void (*arrange)(const Product& product, const int8_t* a, int64_t rows, int8_t* tiles);
  void (*multiply)(const Product& product, const Rows& rows, int64_t first, int64_t last, uint8_t* scratch);
};

// "stream": few rows; codes are read once and unpacked in registers. "block": many rows; codes are unpacked to bytes, a
// panel of columns at a time, once for all rows.
extern const Kernel stream_avx2, stream_avx512vnni, stream_neon, stream_neondot;
extern const Kernel block_avx2, block_avx512vnni, block_amx, block_neon, block_neondot;

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t to) { return ceil_div(a, to) * to; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t group_count(const Product& p) { return ceil_div(p.K, p.group); }
static inline int64_t row_bytes(const Product& p) { return group_count(p) * p.group / 2; }

}  // namespace catonnx
