// Many rows: what the kernels of all instruction sets share. A panel of columns, two vectors wide, is unpacked to
// bytes; then one tile of rows after the other runs over it.
//
// A 32-bit lane holds 4 channels (a "step") of one column, a vector those of as many columns as it has lanes; 4
// activations of one row meet it as a broadcast. Steps come in pairs, the even and then the odd channels of a run of 8,
// because that is how the nibbles of 4 bytes come apart. Codes are multiplied as they are, unsigned; each sum starts at
// -8 times the sum of its activations.
#pragma once

#include "product_kernels.h"
#include "product_steps.h"

namespace catonnx {
namespace {

// A panel, in scratch. `Set` is the instruction set:
//   Vector, lanes: a vector, and its 32-bit lanes
//   load_transposed: as many words of as many rows as a vector has lanes; vector i holds word i of every row
//   store, store_nibbles: an aligned vector; the low and the high nibbles of its bytes, a step apart
template <class Set>
struct Panel {
  static constexpr int64_t columns = 2 * Set::lanes;

  int64_t steps, group_steps, groups;
  int64_t bytes;   // of all of it
  uint8_t* codes;  // [steps rounded up, columns, 4]
  float* scales;   // [groups rounded up, columns]

  Panel(const Product& p, uint8_t* scratch)
      : steps(ceil_div(p.K, 8) * 2), group_steps(p.group / 4), groups(group_count(p)), codes(scratch) {
    const int64_t panel_bytes = round_up(steps, 2 * Set::lanes) * columns * 4;
    scales = reinterpret_cast<float*>(scratch + panel_bytes);
    bytes = panel_bytes + round_up(groups, Set::lanes) * columns * 4;
  }
};

template <class Set>
void unpack(const Product& p, const Panel<Set>& to, int64_t n, int64_t count) {
  constexpr int lanes = Set::lanes;
  const int64_t words = row_bytes(p) / 4;
  for (int64_t c = 0; c < to.columns; c += lanes) {
    typename Set::Vector v[lanes];
    for (int64_t w = 0; w < to.steps / 2; w += lanes) {
      Set::load_transposed(p.codes + (n + c) * words * 4, words, w, count - c, v);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) {
        uint8_t* even = to.codes + ((w + i) * 2 * to.columns + c) * 4;
        Set::store_nibbles(v[i], even, even + to.columns * 4);
      }
    }
    for (int64_t g = 0; g < to.groups; g += lanes) {
      Set::load_transposed(p.scales + (n + c) * to.groups, to.groups, g, count - c, v);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) Set::store(to.scales + (g + i) * to.columns + c, v[i]);
    }
  }
}

// Rows of `a` as tiles: R of them are [steps, R, 4] with [groups, R] behind, where their sums start. `Set` has besides:
//   tile_rows: rows of a tile, at most
//   tile<R>: the products of one panel with R rows
template <class Set>
int64_t tile_bytes(const Product& p) {
  const Panel<Set> panel(p, nullptr);
  return (panel.steps + panel.groups) * Set::tile_rows * 4;
}

template <class Set>
void arrange_tile(const Product& p, const int8_t* a, int64_t R, int8_t* rows) {
  const Panel<Set> panel(p, nullptr);
  auto* starts = reinterpret_cast<int32_t*>(rows + panel.steps * R * 4);
  for (int64_t r = 0; r < R; ++r)
    for (int64_t g = 0, step = 0; g < panel.groups; ++g) {
      const int64_t end = smaller(panel.steps, step + panel.group_steps);
      Sums4 sums = no_sums();
      for (; step < end; step += 4) {
        const Sixteen x = load_some(a + r * p.K, step * 4, p.K);
        sums = add_up(sums, x);
        alignas(16) int8_t words[16];
        store_steps(x, words);
        for (int64_t i = 0; i < smaller(4, panel.steps - step); ++i)
          std::memcpy(rows + ((step + i) * R + r) * 4, words + i * 4, 4);
      }
      starts[g * R + r] = -eight_times(sums);
    }
}

template <class Set>
void arrange(const Product& p, const int8_t* a, int64_t rows, int8_t* tiles) {
  for (int64_t r = 0; r < rows; r += Set::tile_rows, tiles += tile_bytes<Set>(p))
    arrange_tile<Set>(p, a + r * p.K, smaller(Set::tile_rows, rows - r), tiles);
}

// unpack() reads in many places at once, which no prefetcher foresees: what it will read next is fetched by and by, a
// piece with every tile. What lies behind this range is most likely this thread's next one.
struct Ahead {
  const uint8_t *next, *end;
  int64_t piece;

  Ahead(const Product& p, int64_t first, int64_t columns, int64_t pieces)
      : next(p.codes + first * row_bytes(p)),
        end(p.codes + smaller(first + columns, p.N) * row_bytes(p)),
        piece(round_up((end - next) / pieces, 64) + 64) {}

  void fetch_piece() {
    for (int64_t i = 0; i < piece && next < end; i += 64, next += 64) __builtin_prefetch(next);
  }
};

template <class Set>
int64_t panel_bytes(const Product& p) {
  return Panel<Set>(p, nullptr).bytes;
}

template <class Set>
void block(const Product& p, const Rows& rows, int64_t first, int64_t last, uint8_t* scratch) {
  constexpr decltype(&Set::template tile<1>) tiles[] = {Set::template tile<1>, Set::template tile<2>,
                                                        Set::template tile<3>, Set::template tile<4>,
                                                        Set::template tile<5>, Set::template tile<6>};
  static_assert(Set::tile_rows <= 6, "one of each");
  const Panel<Set> panel(p, scratch);
  for (int64_t n = first; n < last; n += panel.columns) {
    const int64_t count = smaller(panel.columns, last - n);
    unpack(p, panel, n, count);
    Ahead ahead(p, n + count, panel.columns, ceil_div(rows.count, Set::tile_rows));
    const int8_t* from = rows.tiles;
    for (int64_t r = 0; r < rows.count; r += Set::tile_rows, from += tile_bytes<Set>(p)) {
      ahead.fetch_piece();
      const Rows some = {from, rows.scale + r, smaller(Set::tile_rows, rows.count - r),
                         rows.y + r * rows.stride + n - first, rows.stride};
      const auto* starts = reinterpret_cast<const int32_t*>(from + panel.steps * some.count * 4);
      tiles[some.count - 1](panel, some, starts, count);
    }
  }
}

template <class Set>
constexpr Kernel block_kernel = {Set::tile_rows, 1, tile_bytes<Set>, panel_bytes<Set>, arrange<Set>, block<Set>};

}  // namespace
}  // namespace catonnx
