// Few rows: what the kernels of all instruction sets share. Codes are read once, a vector ("chunk") at a time.
//
// The low nibbles of a chunk are its even channels and the high nibbles its odd ones, so each row of activations is
// split that way beforehand. Codes are multiplied as they are, unsigned; each sum starts at -8 times the activations
// that it will meet. A 32-bit lane holds 8 successive channels, hence never two groups.
#pragma once

#include <cstring>

#include "product_kernels.h"

namespace catonnx {
namespace {

// channel: one scale per column. wide: groups of one chunk or several. narrow: several groups in one chunk.
enum class Grouping { channel, wide, narrow };

template <int bytes>
struct alignas(bytes) Chunk {
  int8_t even[bytes], odd[bytes];
  int32_t start[bytes / 4];  // Grouping::channel: of all chunks up to this one
};

template <int bytes>
void split_row(const int8_t* a, int64_t K, bool channel, int64_t count, Chunk<bytes>* chunks) {
  int32_t start[bytes / 4] = {};
  for (int64_t i = 0; i < count; ++i, ++chunks) {
    int8_t run[2 * bytes] = {};
    if (i * 2 * bytes < K)
      std::memcpy(run, a + i * 2 * bytes, static_cast<size_t>(smaller(2 * bytes, K - i * 2 * bytes)));
    for (int j = 0; j < bytes; ++j) {
      chunks->even[j] = run[2 * j];
      chunks->odd[j] = run[2 * j + 1];
    }
    for (int j = 0; j < bytes / 4; ++j)
      for (int k = 0; k < 8; ++k) start[j] -= 8 * run[8 * j + k];
    std::memcpy(chunks->start, start, sizeof start);
    if (!channel) std::memset(start, 0, sizeof start);
  }
}

// log2 of the chunks in a group (wide), or of the groups in a chunk (narrow).
inline int group_shift(int64_t group, int64_t chunk) {
  int shift = 0;
  while ((chunk << shift) < group) ++shift;
  while ((chunk >> shift) > group) ++shift;
  return shift;
}

// R rows with columns [n, n + count), count up to 4. `Set` is the instruction set:
//   Vector, bytes: a vector, and its size
//   columns: those that a tile of three rows or more takes at once
//   tile<grouping, R, C>: the partial sums of C columns with R rows, [C, R], int32 for Grouping::channel and else float
//   sums_of_4<whole>: the sums of the elements of four vectors
//
// With one row or two, one column comes after the other, so that the codes are read strictly in their order: only then
// does the processor fetch them from memory early enough. (Four columns at a time, with one row: half the speed.) More
// rows take longer than the memory does; then columns share the activations that they load.
template <class Set, Grouping grouping, int R>
void columns(const Product& p, const Set& set, const Chunk<Set::bytes>* a, const Rows& rows, int64_t n, int64_t count) {
  constexpr bool channel = grouping == Grouping::channel;
  constexpr int C = R <= 2 ? 1 : Set::columns;
  typename Set::Vector partial[4 * R] = {};
  int64_t c = 0;
  for (; c + C <= count; c += C) set.template tile<grouping, R, C>(p, a, n + c, partial + c * R);
  for (; c < count; ++c) set.template tile<grouping, R, 1>(p, a, n + c, partial + c * R);
  float sums[4 * R];
  for (int i = 0; i < 4 * R; i += 4) Set::template sums_of_4<channel>(partial + i, sums + i);
  for (c = 0; c < count; ++c)
    for (int r = 0; r < R; ++r)
      rows.y[r * rows.stride + c] = sums[c * R + r] * (channel ? rows.scale[r] * p.scales[n + c] : rows.scale[r]);
}

template <class Set, Grouping grouping>
void stream(const Product& p, const Set& set, const Chunk<Set::bytes>* a, const Rows& rows, int64_t first,
            int64_t last) {
  constexpr decltype(&columns<Set, grouping, 1>) kinds[] = {columns<Set, grouping, 1>, columns<Set, grouping, 2>,
                                                            columns<Set, grouping, 3>, columns<Set, grouping, 4>};
  for (int64_t n = first; n < last; n += 4)
    for (int64_t r = 0; r < rows.count; r += 4) {
      const Rows some = {nullptr, rows.scale + r, smaller(4, rows.count - r), rows.y + r * rows.stride + n - first,
                         rows.stride};
      kinds[some.count - 1](p, set, a + r * set.chunks, some, n, smaller(4, last - n));
    }
}

template <class Set>
int64_t row_chunks(const Product& p) {
  return ceil_div(row_bytes(p), Set::bytes);
}

template <class Set>
void split_rows(const Product& p, const int8_t* a, int64_t rows, int8_t* to) {
  auto* chunks = reinterpret_cast<Chunk<Set::bytes>*>(to);
  for (int64_t r = 0; r < rows; ++r, chunks += row_chunks<Set>(p))
    split_row<Set::bytes>(a + r * p.K, p.K, group_count(p) == 1, row_chunks<Set>(p), chunks);
}

template <class Set>
void stream(const Product& p, const Rows& rows, int64_t first, int64_t last, uint8_t*) {
  constexpr int bytes = Set::bytes;
  const Set set(p);
  const auto* split = reinterpret_cast<const Chunk<bytes>*>(rows.tiles);
  if (group_count(p) == 1) return stream<Set, Grouping::channel>(p, set, split, rows, first, last);
  if (p.group >= 2 * bytes) return stream<Set, Grouping::wide>(p, set, split, rows, first, last);
  stream<Set, Grouping::narrow>(p, set, split, rows, first, last);
}

template <class Set>
constexpr Kernel stream_kernel = {1,
                                  1,
                                  [](const Product& p) -> int64_t { return row_chunks<Set>(p) * sizeof(Chunk<Set::bytes>); },
                                  [](const Product&) -> int64_t { return 0; },
                                  split_rows<Set>,
                                  stream<Set>};

}  // namespace
}  // namespace catonnx
