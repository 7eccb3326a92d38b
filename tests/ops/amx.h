// The instructions for tiles in plain C++, to be included before anything else: as Intel's Software Developer's Manual
// describes them (volume 2: LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TDPBSSD, TILERELEASE), with every check that
// raises an exception there.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated {

constexpr int TILES = 8, MOST_ROWS = 16, MOST_BYTES = 64;

struct Tile {
  int rows, row_bytes;
  unsigned char data[MOST_ROWS][MOST_BYTES];
};

struct State {  // of one thread
  bool configured;
  Tile tiles[TILES];
};
static thread_local State state{};

inline void require(bool met, const char* what) {
  if (met) return;
  std::fprintf(stderr, "tiles: %s\n", what);
  std::abort();
}

inline void load_configuration(const void* memory) {
  unsigned char bytes[64];
  std::memcpy(bytes, memory, sizeof bytes);
  require(bytes[0] <= 1, "palette 0 or 1");
  state = {};
  if (bytes[0] == 0) return;
  require(bytes[1] == 0, "nothing was interrupted: start_row is 0");
  for (int i = 2; i < 16; ++i) require(bytes[i] == 0, "reserved bytes are 0");
  for (int i = 0; i < 16; ++i) {
    const int row_bytes = bytes[16 + 2 * i] | bytes[17 + 2 * i] << 8, rows = bytes[48 + i];
    require(i < TILES || (row_bytes == 0 && rows == 0), "palette 1 has 8 tiles");
    require(row_bytes <= MOST_BYTES && rows <= MOST_ROWS, "16 rows of 64 bytes at most");
    require((row_bytes == 0) == (rows == 0), "a tile has both or none");
    if (i < TILES) state.tiles[i] = {rows, row_bytes, {}};
  }
  state.configured = true;
}

inline void release() { state = {}; }

inline Tile& tile(int index) {
  require(state.configured, "no configuration is loaded");
  require(index >= 0 && index < TILES && state.tiles[index].rows > 0, "a tile that is configured");
  return state.tiles[index];
}

inline void clear(int index) { std::memset(tile(index).data, 0, sizeof(Tile::data)); }

inline void load(int index, const void* base, int64_t stride) {
  Tile& to = tile(index);
  clear(index);
  for (int i = 0; i < to.rows; ++i)
    std::memcpy(to.data[i], static_cast<const char*>(base) + i * stride, static_cast<size_t>(to.row_bytes));
}

inline void store(int index, void* base, int64_t stride) {
  const Tile& from = tile(index);
  for (int i = 0; i < from.rows; ++i)
    std::memcpy(static_cast<char*>(base) + i * stride, from.data[i], static_cast<size_t>(from.row_bytes));
}

inline void multiply_signed(int sums, int left, int right) {
  require(sums != left && sums != right && left != right, "three different tiles");
  Tile &to = tile(sums), &a = tile(left), &b = tile(right);
  require(to.row_bytes % 4 == 0 && a.row_bytes % 4 == 0 && b.row_bytes % 4 == 0, "whole words");
  require(to.rows == a.rows, "as many rows of sums as of the left tile");
  require(to.row_bytes == b.row_bytes, "as many columns of sums as of the right tile");
  require(a.row_bytes / 4 == b.rows, "as many words in a row on the left as rows on the right");
  for (int m = 0; m < to.rows; ++m)
    for (int n = 0; n < to.row_bytes / 4; ++n) {
      uint32_t sum;  // wraps
      std::memcpy(&sum, to.data[m] + 4 * n, 4);
      for (int k = 0; k < a.row_bytes; ++k)
        sum += static_cast<uint32_t>(static_cast<int8_t>(a.data[m][k]) * static_cast<int8_t>(b.data[k / 4][4 * n + k % 4]));
      std::memcpy(to.data[m] + 4 * n, &sum, 4);
    }
}

}  // namespace emulated

// Whether this thread has tiles configured: they should be released.
extern "C" bool tiles_in_use() { return emulated::state.configured; }

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#define _tile_loadconfig emulated::load_configuration
#define _tile_release emulated::release
#define _tile_zero emulated::clear
#define _tile_loadd emulated::load
#define _tile_stored emulated::store
#define _tile_dpbssd emulated::multiply_signed
