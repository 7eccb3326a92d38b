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

// What the kernel has in scratch: one panel, and all rows, tile by tile. `Set` is the instruction set:
//   Vector, lanes: a vector, and its 32-bit lanes
//   tile_rows: rows of a tile, at most
//   load_transposed: as many words of as many rows as a vector has lanes; vector i holds word i of every row
//   store, store_nibbles: an aligned vector; the low and the high nibbles of its bytes, a step apart
//   tile<R>: the products of one panel with R rows
template <class Set>
struct Layout {
  static constexpr int64_t columns = 2 * Set::lanes;

  int64_t steps, group_steps, groups;
  uint8_t* panel;   // [steps rounded up, columns, 4]
  float* scales;    // [groups rounded up, columns]
  int8_t* rows;     // [steps, R, 4] for each tile of R rows
  int32_t* starts;  // [groups, R] for each tile of R rows
  int64_t bytes;    // of all of it

  Layout(const Product& p, int64_t count, uint8_t* scratch)
      : steps(ceil_div(p.K, 8) * 2), group_steps(p.group / 4), groups(group_count(p)) {
    const int64_t panel_bytes = round_up(steps, 2 * Set::lanes) * columns * 4;
    const int64_t scale_bytes = round_up(groups, Set::lanes) * columns * 4;
    const int64_t rows_bytes = round_up(steps * count * 4, 64);
    panel = scratch;
    scales = reinterpret_cast<float*>(scratch + panel_bytes);
    rows = reinterpret_cast<int8_t*>(scratch + panel_bytes + scale_bytes);
    starts = reinterpret_cast<int32_t*>(scratch + panel_bytes + scale_bytes + rows_bytes);
    bytes = panel_bytes + scale_bytes + rows_bytes + groups * count * 4;
  }
};

template <class Set>
void unpack(const Product& p, const Layout<Set>& to, int64_t n, int64_t count) {
  constexpr int lanes = Set::lanes;
  const int64_t words = row_bytes(p) / 4;
  for (int64_t c = 0; c < to.columns; c += lanes) {
    typename Set::Vector v[lanes];
    for (int64_t w = 0; w < to.steps / 2; w += lanes) {
      Set::load_transposed(p.codes + (n + c) * words * 4, words, w, count - c, v);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) {
        uint8_t* even = to.panel + ((w + i) * 2 * to.columns + c) * 4;
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

// R rows of a as steps of a tile, and where their sums start.
template <class Set>
void arrange(const Product& p, const int8_t* a, int64_t R, const Layout<Set>& layout, int8_t* rows, int32_t* starts) {
  for (int64_t r = 0; r < R; ++r)
    for (int64_t g = 0, step = 0; g < layout.groups; ++g) {
      const int64_t end = smaller(layout.steps, step + layout.group_steps);
      Sums4 sums = no_sums();
      for (; step < end; step += 4) {
        const Sixteen x = load_some(a + r * p.K, step * 4, p.K);
        sums = add_up(sums, x);
        alignas(16) int8_t words[16];
        store_steps(x, words);
        for (int64_t i = 0; i < smaller(4, layout.steps - step); ++i)
          std::memcpy(rows + ((step + i) * R + r) * 4, words + i * 4, 4);
      }
      starts[g * R + r] = -eight_times(sums);
    }
}

template <class Set>
void block(const Product& p, const Rows& rows, int64_t first, int64_t last, uint8_t* scratch) {
  constexpr decltype(&Set::template tile<1>) tiles[] = {Set::template tile<1>, Set::template tile<2>,
                                                        Set::template tile<3>, Set::template tile<4>,
                                                        Set::template tile<5>, Set::template tile<6>};
  static_assert(Set::tile_rows <= 6, "one of each");
  const Layout<Set> layout(p, rows.count, scratch);
  for (int64_t r = 0; r < rows.count; r += Set::tile_rows)
    arrange(p, rows.a + r * p.K, smaller(Set::tile_rows, rows.count - r), layout, layout.rows + r * layout.steps * 4,
            layout.starts + r * layout.groups);

  // unpack() reads in many places at once, which no prefetcher foresees: what it will read next is fetched by and by,
  // a piece with every tile.
  const int64_t piece = round_up(layout.columns * row_bytes(p) / ceil_div(rows.count, Set::tile_rows), 64) + 64;
  for (int64_t n = first; n < last; n += layout.columns) {
    const int64_t count = smaller(layout.columns, last - n);
    unpack(p, layout, n, count);
    const uint8_t* next = p.codes + (n + count) * row_bytes(p);
    const uint8_t* end = p.codes + smaller(n + count + layout.columns, last) * row_bytes(p);
    for (int64_t r = 0; r < rows.count; r += Set::tile_rows) {
      for (int64_t i = 0; i < piece && next < end; i += 64, next += 64)
        __builtin_prefetch(next);
      const Rows some = {layout.rows + r * layout.steps * 4, rows.scale + r, smaller(Set::tile_rows, rows.count - r),
                         rows.y + r * rows.stride + n - first, rows.stride};
      tiles[some.count - 1](layout, some, layout.starts + r * layout.groups, count);
    }
  }
}

}  // namespace
}  // namespace catonnx
