// QuantizedMatMul for many rows, on the tensor cores for int8: a block computes a tile of y, 64 channels at a time, which are
// copied to shared memory while earlier ones are multiplied; a warp computes MMA_ROWS x MMA_COLUMNS tiles of
// multiply_tile(). Codes stay in 4 bits until they are in registers.
//
// The whole-number sum of a group starts at the bits of the float 1.5 * 2^23, around which floats are 1 apart: read as a
// float it is that number plus the sum, without a conversion. A sum of 256 channels is at most 2^22.
#pragma once

#include "product_cuda.cuh"

namespace catonnx {
namespace {

constexpr int DEEP = 64;   // channels of a stage
constexpr int STEP = 32;   // channels of multiply_tile()
constexpr int STAGES = 4;
constexpr int PIECE = 16;  // bytes that are copied at once

template <int WARP_ROWS_, int WARP_COLUMNS_, int MMA_ROWS_, int MMA_COLUMNS_>
struct TileShape {
  static constexpr int WARP_ROWS = WARP_ROWS_, WARP_COLUMNS = WARP_COLUMNS_;  // warps along the rows and columns of a tile
  static constexpr int MMA_ROWS = MMA_ROWS_, MMA_COLUMNS = MMA_COLUMNS_;
  static constexpr int THREADS = WARP_ROWS * WARP_COLUMNS * WARP;
  static constexpr int ROWS = WARP_ROWS * MMA_ROWS * 16;
  static constexpr int COLUMNS = WARP_COLUMNS * MMA_COLUMNS * 8;
  static constexpr int STAGE_BYTES = ROWS * DEEP + COLUMNS * DEEP / 2;
  static constexpr int BYTES = STAGES * STAGE_BYTES;
};

using LargeTile = TileShape<2, 4, 4, 4>;
using SmallTile = TileShape<1, 4, 2, 2>;
static_assert(LargeTile::BYTES <= SHARED_BYTES);

// Where piece `piece` of a row of activations, or of a column of codes, lies in its part of a stage: so that what the lanes
// of a warp read together lies in different banks.
__device__ __forceinline__ int activation_byte(int row, int piece) {
  return row * DEEP + (piece ^ (row >> 1 & 1) << 1) * PIECE;
}
__device__ __forceinline__ int code_byte(int column, int piece) {
  return column * (DEEP / 2) + (piece ^ (column >> 2 & 1)) * PIECE;
}

// Begins to copy channels [begin, begin + DEEP) into a stage; zeros for what is not there.
template <class Shape>
__device__ __forceinline__ void fill_stage(const ProductTask& task, int64_t first_row, int64_t first_column, int begin,
                                           unsigned char* stage) {
  constexpr int PIECES = DEEP / PIECE, CODE_PIECES = DEEP / 2 / PIECE;
#pragma unroll
  for (int item = threadIdx.x; item < Shape::ROWS * PIECES; item += Shape::THREADS) {
    const int row = item / PIECES, piece = item % PIECES, channel = begin + piece * PIECE;
    unsigned char* const to = stage + activation_byte(row, piece);
    if (task.K % PIECE == 0) {
      const bool there = first_row + row < task.rows && channel < task.K;
      copy_async<PIECE>(to, there ? task.a + (first_row + row) * task.K + channel : task.a, there ? PIECE : 0);
    } else {
      const uint2 low = load_unit(task, first_row + row, channel), high = load_unit(task, first_row + row, channel + UNIT);
      *reinterpret_cast<uint4*>(to) = make_uint4(low.x, low.y, high.x, high.y);
    }
  }
  unsigned char* const codes = stage + Shape::ROWS * DEEP;
#pragma unroll
  for (int item = threadIdx.x; item < Shape::COLUMNS * CODE_PIECES; item += Shape::THREADS) {
    const int column = item / CODE_PIECES, piece = item % CODE_PIECES;
    const int64_t byte = begin / 2 + piece * PIECE, left = first_column + column < task.N ? task.row_bytes - byte : 0;
    const uint8_t* const from = left > 0 ? task.codes + (first_column + column) * task.row_bytes + byte : task.codes;
    unsigned char* const to = codes + code_byte(column, piece);
    if (task.row_bytes % PIECE == 0) {
      copy_async<PIECE>(to, from, left > 0 ? PIECE : 0);
    } else {
      copy_async<PIECE / 2>(to, from, left > 0 ? PIECE / 2 : 0);
      copy_async<PIECE / 2>(to + PIECE / 2, left > 8 ? from + PIECE / 2 : task.codes, left > 8 ? PIECE / 2 : 0);
    }
  }
}

// One lane's part of a warp's tile.
template <class Shape, bool CHANNELS>
struct Sums {
  static constexpr int START = CHANNELS ? 0 : 0x4b400000;  // the bits of ZERO
  static constexpr float ZERO = 12582912.0f;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < Shape::MMA_ROWS; ++i) {
#pragma unroll
      for (int j = 0; j < Shape::MMA_COLUMNS; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) whole[i][j][e] = START;
      }
    }
  }

  // totals += scales * sums of a group, and begins the next one.
  __device__ __forceinline__ void close_group(const float (&scales)[Shape::MMA_COLUMNS][2]) {
#pragma unroll
    for (int i = 0; i < Shape::MMA_ROWS; ++i) {
#pragma unroll
      for (int j = 0; j < Shape::MMA_COLUMNS; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          totals[i][j][e] = fmaf(scales[j][e % 2], __int_as_float(whole[i][j][e]) - ZERO, totals[i][j][e]);
        }
      }
    }
    clear();
  }

  int whole[Shape::MMA_ROWS][Shape::MMA_COLUMNS][4];
  float totals[CHANNELS ? 1 : Shape::MMA_ROWS][CHANNELS ? 1 : Shape::MMA_COLUMNS][4] = {};
};

// CHANNELS: the sum over all of K is one whole number, with one scale.
template <class Shape, bool CHANNELS>
__global__ void __launch_bounds__(Shape::THREADS) tile_kernel(ProductTask task) {
  unsigned char* const stages = shared_memory();
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, eighth = lane / 4, quarter = lane % 4;
  const int row_in_tile = warp / Shape::WARP_COLUMNS * Shape::MMA_ROWS * 16 + eighth;
  const int column_in_tile = warp % Shape::WARP_COLUMNS * Shape::MMA_COLUMNS * 8;
  const int64_t across = ceil_div(task.N, Shape::COLUMNS);
  const int64_t first_row = blockIdx.x / across * Shape::ROWS, first_column = blockIdx.x % across * Shape::COLUMNS;
  const auto column_of = [&](int j, int e) { return first_column + column_in_tile + j * 8 + quarter * 2 + e; };

  Sums<Shape, CHANNELS> sums;
  sums.clear();
  const int depths = static_cast<int>(ceil_div(task.K, DEEP));
#pragma unroll
  for (int depth = 0; depth < STAGES - 1; ++depth) {
    if (depth < depths) fill_stage<Shape>(task, first_row, first_column, depth * DEEP, stages + depth * Shape::STAGE_BYTES);
    commit_copies();
  }
  for (int depth = 0; depth < depths; ++depth) {
    await_copies<STAGES - 2>();
    __syncthreads();  // this stage is there for everybody, and nobody reads the one before any more
    const int ahead = depth + STAGES - 1;
    if (ahead < depths) {
      fill_stage<Shape>(task, first_row, first_column, ahead * DEEP, stages + ahead % STAGES * Shape::STAGE_BYTES);
    }
    commit_copies();

    const unsigned char* const activations = stages + depth % STAGES * Shape::STAGE_BYTES;
    const unsigned char* const codes = activations + Shape::ROWS * DEEP;
#pragma unroll
    for (int step = 0; step < DEEP / STEP; ++step) {
      const int channel = depth * DEEP + step * STEP;
      if (channel >= task.K) break;
      float scales[Shape::MMA_COLUMNS][2];
      const auto load_scales = [&](int group) {
#pragma unroll
        for (int j = 0; j < Shape::MMA_COLUMNS; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) scales[j][e] = scale_of(task, min(column_of(j, e), task.N - 1), group);
        }
      };
      const bool closes = !CHANNELS && ((channel + STEP) % task.interval == 0 || channel + STEP >= task.K);
      const bool halves = !CHANNELS && task.interval < STEP;  // two groups, of 16 channels each
      if (closes || halves) load_scales(channel >> task.shift);

      uint32_t right[Shape::MMA_COLUMNS][2];
#pragma unroll
      for (int j = 0; j < Shape::MMA_COLUMNS; ++j) {
        const int column = column_in_tile + j * 8 + eighth;
        const uint32_t word = *reinterpret_cast<const uint32_t*>(codes + code_byte(column, step) + quarter * 4);
        right[j][0] = even_codes(word);
        right[j][1] = odd_codes(word);
      }
      uint32_t left[Shape::MMA_ROWS][4];
#pragma unroll
      for (int i = 0; i < Shape::MMA_ROWS; ++i) {
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
          const int row = row_in_tile + i * 16 + lower * 8, byte = quarter * UNIT;
          const uint2 words = *reinterpret_cast<const uint2*>(
              activations + activation_byte(row, step * 2 + byte / PIECE) + byte % PIECE);
          left[i][lower] = __byte_perm(words.x, words.y, EVEN);
          left[i][2 + lower] = __byte_perm(words.x, words.y, ODD);
        }
      }
      // Of two groups in one step, the codes of one are taken as zeros at a time.
      for (int part = 0; part < (halves ? 2 : 1); ++part) {
        if (halves && channel + part * STEP / 2 >= task.K) break;
        const bool taken = !halves || quarter / 2 == part;
#pragma unroll
        for (int j = 0; j < Shape::MMA_COLUMNS; ++j) {
          const uint32_t some[2] = {taken ? right[j][0] : 0u, taken ? right[j][1] : 0u};
#pragma unroll
          for (int i = 0; i < Shape::MMA_ROWS; ++i) multiply_tile(sums.whole[i][j], left[i], some);
        }
        if constexpr (!CHANNELS) {
          if (halves && part == 1) load_scales((channel + STEP / 2) >> task.shift);
          if (closes || halves) sums.close_group(scales);
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < Shape::MMA_ROWS; ++i) {
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int64_t row = first_row + row_in_tile + i * 16 + lower * 8;
      if (row >= task.rows) continue;
      const float a_scale = task.a_scale[row];
#pragma unroll
      for (int j = 0; j < Shape::MMA_COLUMNS; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int64_t column = column_of(j, e);
          if (column >= task.N) continue;
          float product;
          if constexpr (CHANNELS) {
            product = scale_of(task, column, 0) * static_cast<float>(sums.whole[i][j][lower * 2 + e] / 16);
          } else {
            product = sums.totals[i][j][lower * 2 + e] * 0.0625f;
          }
          write(task, row, column, a_scale * product);
        }
      }
    }
  }
}

}  // namespace
}  // namespace catonnx
