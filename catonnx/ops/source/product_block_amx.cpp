// Many rows by the matrix unit (AMX): tiles of 16 rows and 64 channels times tiles of 64 channels and 16 columns.
//
// A panel of columns is unpacked as for AVX-512: a row of a tile of weights is one step of 16 columns. But its codes are
// signed: with tiles, setting out from other sums than 0 would cost as much as all else that becomes of a sum. Groups
// narrower than 64 channels take tiles as narrow.
#include "product_block_avx512.h"

namespace catonnx {
namespace {

constexpr int64_t tile_rows = 16, tile_columns = 16;

struct Amx : Avx512Panel {
  static void store_nibbles(Vector v, uint8_t* even, uint8_t* odd) {
    const __m512i low = _mm512_set1_epi8(15), eights = _mm512_set1_epi8(8);
    store(even, _mm512_sub_epi8(_mm512_and_si512(v, low), eights));
    store(odd, _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(v, 4), low), eights));
  }
};

// A panel, and rows of activations as tiles: [tiles of rows, chunks, tile_rows, width].
struct Tiles : Panel<Amx> {
  int64_t width;         // of a tile of activations: channels
  int64_t chunks;        // tiles that a row goes through
  int64_t group_chunks;  // those of one group
  const int8_t* rows;

  Tiles(const Product& p, const int8_t* rows, uint8_t* scratch)
      : Panel<Amx>(p, scratch),
        width(groups == 1 ? 64 : smaller(p.group, 64)),
        chunks(ceil_div(p.K, width)),
        group_chunks(groups == 1 ? chunks : p.group / width),
        rows(rows) {}

  int64_t row_tile_bytes() const { return tile_rows * chunks * width; }

  // Of rows [row, row + 16), `row` being a multiple, from tile `chunk` on; the next one begins activation_bytes() further.
  const int8_t* activations(int64_t row, int64_t chunk) const { return rows + (row * chunks + chunk * tile_rows) * width; }
  int64_t activation_bytes() const { return tile_rows * width; }

  // Of columns [column, column + 16) of the panel, likewise.
  const uint8_t* weights(int64_t column, int64_t chunk) const { return codes + chunk * weight_bytes() + column * 4; }
  int64_t weight_bytes() const { return width * columns; }
};

// What the instruction reads: tiles 0 to 3 are sums, 4 and 5 activations, 6 and 7 weights.
struct alignas(64) Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 0, 0, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16};

  explicit Configuration(int64_t width) {
    row_bytes[4] = row_bytes[5] = static_cast<uint16_t>(width);
    rows[6] = rows[7] = static_cast<uint8_t>(width / 4);
  }
};
static_assert(sizeof(Configuration) == 64, "as the processor has it");

// A tile of sums.
struct alignas(64) Sums {
  int32_t of[tile_rows][tile_columns];

  __m512 row(int r) const { return _mm512_cvtepi32_ps(_mm512_load_si512(of[r])); }
};

// GCC does not know that tiles and their configuration are read from memory: it shall have written it by now.
inline void settle(const void* memory) { asm volatile("" : : "r"(memory) : "memory"); }

// What lies in the last tile behind its rows is any numbers: they only reach sums that nobody reads.
void arrange(const Product& p, const int8_t* a, int64_t rows, int8_t* to) {
  const Tiles tiles(p, to, nullptr);
  for (int64_t r = 0; r < rows; ++r) {
    int8_t* row = to + r / tile_rows * tiles.row_tile_bytes() + r % tile_rows * tiles.width;
    for (int64_t k = 0; k < tiles.chunks * tiles.width; k += 16)
      store_steps(load_some(a + r * p.K, k, p.K), row + k / tiles.width * tiles.activation_bytes() + k % tiles.width);
  }
}

inline void store_columns(float* y, int64_t columns, __m512 v) {
  _mm512_mask_storeu_ps(y, static_cast<__mmask16>((1u << smaller(columns, tile_columns)) - 1), v);
}

// The sums of one group. Of two groups in a row each has tiles of its own: none waits for the other. (Which tiles is
// part of the instructions: no loop and no argument can tell them.)
inline void add_even_group(const Tiles& tiles, const int8_t* a, const uint8_t* b, int64_t chunks, Sums* sums) {
  _tile_zero(0);
  for (; chunks > 0; --chunks, a += tiles.activation_bytes(), b += tiles.weight_bytes()) {
    _tile_loadd(4, a, tiles.width);
    _tile_loadd(6, b, tiles.columns * 4);
    _tile_dpbssd(0, 4, 6);
  }
  _tile_stored(0, sums, 64);
}
inline void add_odd_group(const Tiles& tiles, const int8_t* a, const uint8_t* b, int64_t chunks, Sums* sums) {
  _tile_zero(1);
  for (; chunks > 0; --chunks, a += tiles.activation_bytes(), b += tiles.weight_bytes()) {
    _tile_loadd(5, a, tiles.width);
    _tile_loadd(7, b, tiles.columns * 4);
    _tile_dpbssd(1, 5, 7);
  }
  _tile_stored(1, sums, 64);
}

// 16 rows with columns [column, column + 16) of the panel, group by group; y is where the first of them goes.
void multiply_groups(const Tiles& tiles, const Rows& rows, int64_t row, int64_t column, int64_t columns, float* y) {
  Sums even, odd;
  __m512 real[tile_rows];
#pragma GCC unroll 16
  for (int r = 0; r < tile_rows; ++r) real[r] = _mm512_setzero_ps();
  auto add = [&](int64_t g, const Sums& sums) __attribute__((always_inline)) {
    const __m512 scale = _mm512_load_ps(tiles.scales + g * tiles.columns + column);
#pragma GCC unroll 16
    for (int r = 0; r < tile_rows; ++r) real[r] = _mm512_fmadd_ps(sums.row(r), scale, real[r]);
  };
  for (int64_t g = 0; g < tiles.groups; g += 2) {
    const int64_t chunk = g * tiles.group_chunks, next = chunk + tiles.group_chunks;
    add_even_group(tiles, tiles.activations(row, chunk), tiles.weights(column, chunk),
                   smaller(tiles.group_chunks, tiles.chunks - chunk), &even);
    if (g + 1 < tiles.groups)
      add_odd_group(tiles, tiles.activations(row, next), tiles.weights(column, next),
                    smaller(tiles.group_chunks, tiles.chunks - next), &odd);
    add(g, even);
    if (g + 1 < tiles.groups) add(g + 1, odd);
  }
  const int64_t count = rows.count - row;
#pragma GCC unroll 16
  for (int r = 0; r < tile_rows; ++r)
    if (r < count)
      store_columns(y + r * rows.stride, columns, _mm512_mul_ps(real[r], _mm512_set1_ps(rows.scale[row + r])));
}

// 32 rows with 32 columns of the panel; one scale per column. Each tile that is loaded takes part in two products.
void multiply_channels(const Tiles& tiles, const Rows& rows, int64_t row, int64_t columns, float* y) {
  const int64_t a_bytes = tiles.activation_bytes(), b_bytes = tiles.weight_bytes();
  const int8_t* upper = tiles.activations(row, 0);
  // Where there is only one tile of rows, it takes the place of the other too.
  const int8_t* lower = row + tile_rows < rows.count ? tiles.activations(row + tile_rows, 0) : upper;
  const uint8_t *left = tiles.weights(0, 0), *right = tiles.weights(tile_columns, 0);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < tiles.chunks; ++i) {
    _tile_loadd(4, upper + i * a_bytes, tiles.width);
    _tile_loadd(6, left + i * b_bytes, tiles.columns * 4);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, right + i * b_bytes, tiles.columns * 4);
    _tile_dpbssd(1, 4, 7);
    _tile_loadd(5, lower + i * a_bytes, tiles.width);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  Sums sums[2][2];
  _tile_stored(0, &sums[0][0], 64);
  _tile_stored(1, &sums[0][1], 64);
  _tile_stored(2, &sums[1][0], 64);
  _tile_stored(3, &sums[1][1], 64);
  for (int64_t r = 0; r < smaller(2 * tile_rows, rows.count - row); ++r)
    for (int64_t c = 0; c < columns; c += tile_columns) {
      const __m512 scale = _mm512_mul_ps(_mm512_load_ps(tiles.scales + c), _mm512_set1_ps(rows.scale[row + r]));
      const __m512 sum = sums[r / tile_rows][c / tile_columns].row(static_cast<int>(r % tile_rows));
      store_columns(y + r * rows.stride + c, columns - c, _mm512_mul_ps(sum, scale));
    }
}

void block(const Product& p, const Rows& rows, int64_t first, int64_t last, uint8_t* scratch) {
  const Tiles tiles(p, rows.tiles, scratch);
  const Configuration configuration(tiles.width);  // of this thread
  settle(&configuration);
  _tile_loadconfig(&configuration);
  for (int64_t n = first; n < last; n += tiles.columns) {
    const int64_t count = smaller(tiles.columns, last - n);
    unpack(p, tiles, n, count);
    settle(tiles.codes);
    Ahead ahead(p, n + count, tiles.columns, ceil_div(rows.count, 2 * tile_rows));
    for (int64_t r = 0; r < rows.count; r += 2 * tile_rows) {
      ahead.fetch_piece();
      float* y = rows.y + r * rows.stride + n - first;
      if (tiles.groups == 1) {
        multiply_channels(tiles, rows, r, count, y);
        continue;
      }
      for (int64_t row = r; row < smaller(r + 2 * tile_rows, rows.count); row += tile_rows)
        for (int64_t c = 0; c < count; c += tile_columns)
          multiply_groups(tiles, rows, row, c, count - c, y + (row - r) * rows.stride + c);
    }
  }
  _tile_release();
}

int64_t tile_bytes(const Product& p) { return Tiles(p, nullptr, nullptr).row_tile_bytes(); }

}  // namespace

const Kernel block_amx = {tile_rows, 2, tile_bytes, panel_bytes<Amx>, arrange, block};

}  // namespace catonnx
