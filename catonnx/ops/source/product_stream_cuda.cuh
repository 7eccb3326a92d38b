// QuantizedMatMul for few rows, where reading the weight is all the time: each warp streams a few columns, a lane taking 32
// channels of each at a time, and multiplies bytes by fours. The activations lie in shared memory.
#pragma once

#include "product_cuda.cuh"

namespace catonnx {
namespace {

constexpr int STREAM_WARPS = 4;
constexpr int STREAM_THREADS = STREAM_WARPS * WARP;
constexpr int CHUNK = 32;  // channels that a lane takes at a time: 16 bytes of codes

template <int ROWS_>
struct StreamShape {
  static constexpr int ROWS = ROWS_;
  static constexpr int COLUMNS = ROWS <= 2 ? 2 : 4;  // of a warp
  static constexpr int BLOCK_COLUMNS = STREAM_WARPS * COLUMNS;
  static constexpr int TILE = ROWS <= 2 ? 16384 : 4096;  // channels in shared memory
};

// Codes of a chunk; what of its 16 bytes is not there is 0.
__device__ __forceinline__ uint4 load_chunk(const ProductTask& task, int64_t column, int64_t byte) {
  const uint8_t* const from = task.codes + column * task.row_bytes + byte;
  if (task.row_bytes % 16 == 0) return *reinterpret_cast<const uint4*>(from);
  const uint2 low = *reinterpret_cast<const uint2*>(from);
  const uint2 high = byte + 8 < task.row_bytes ? *reinterpret_cast<const uint2*>(from + 8) : make_uint2(0, 0);
  return make_uint4(low.x, low.y, high.x, high.y);
}

// The activations of 16 channels against their codes. `a` holds even and odd channels of both units.
__device__ __forceinline__ int multiply_half(uint4 a, uint32_t first, uint32_t second, int sum) {
  sum = __dp4a(static_cast<int>(a.x), static_cast<int>(even_codes(first)), sum);
  sum = __dp4a(static_cast<int>(a.y), static_cast<int>(odd_codes(first)), sum);
  sum = __dp4a(static_cast<int>(a.z), static_cast<int>(even_codes(second)), sum);
  return __dp4a(static_cast<int>(a.w), static_cast<int>(odd_codes(second)), sum);
}

// CHANNELS: the sum over all of K is one whole number, with one scale.
template <int ROWS, bool CHANNELS>
__global__ void __launch_bounds__(STREAM_THREADS) stream_kernel(ProductTask task, int tile) {
  using Shape = StreamShape<ROWS>;
  constexpr int COLUMNS = Shape::COLUMNS;
  uint4* const staged = reinterpret_cast<uint4*>(shared_memory());  // [ROWS, 2, tile / CHUNK]: 16 channels each
  const int lane = threadIdx.x % WARP, chunks = tile / CHUNK;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * ROWS;
  const int64_t first_column = (static_cast<int64_t>(blockIdx.x) * STREAM_WARPS + threadIdx.x / WARP) * COLUMNS;
  int64_t columns[COLUMNS];  // those that are not there are read as the last one, and not written
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) columns[c] = min(first_column + c, task.N - 1);

  float totals[ROWS][COLUMNS] = {};
  int sums[ROWS][COLUMNS] = {};
  for (int begin = 0; begin < task.K; begin += tile) {
    __syncthreads();
    for (int item = threadIdx.x; item < ROWS * tile / UNIT; item += STREAM_THREADS) {
      const int row = item / (tile / UNIT), unit = item % (tile / UNIT), part = unit % 4;
      const uint2 words = load_unit(task, first_row + row, begin + unit * UNIT);
      uint2* const to = reinterpret_cast<uint2*>(staged + (row * 2 + part / 2) * chunks + unit / 4) + part % 2;
      *to = make_uint2(__byte_perm(words.x, words.y, EVEN), __byte_perm(words.x, words.y, ODD));
    }
    __syncthreads();
    const int present = min(chunks, static_cast<int>(ceil_div(task.K - begin, CHUNK)));
    uint4 next[COLUMNS];
    if (lane < present) {
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) next[c] = load_chunk(task, columns[c], begin / 2 + lane * (CHUNK / 2));
    }
    for (int chunk = lane; chunk < present; chunk += WARP) {
      uint4 codes[COLUMNS];
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        codes[c] = next[c];
        if (chunk + WARP < present) {
          next[c] = load_chunk(task, columns[c], begin / 2 + (chunk + WARP) * (CHUNK / 2));
        }
      }
      const int low = (begin + chunk * CHUNK) >> task.shift;
      const int high = min((begin + chunk * CHUNK + CHUNK / 2) >> task.shift, task.groups - 1);
      float scales[COLUMNS][2];
      if constexpr (!CHANNELS) {
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
          scales[c][0] = scale_of(task, columns[c], low);
          scales[c][1] = high == low ? scales[c][0] : scale_of(task, columns[c], high);
        }
      }
#pragma unroll
      for (int row = 0; row < ROWS; ++row) {
        const uint4 before = staged[row * 2 * chunks + chunk], behind = staged[(row * 2 + 1) * chunks + chunk];
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
          if constexpr (CHANNELS) {
            const int sum = multiply_half(before, codes[c].x, codes[c].y, sums[row][c]);
            sums[row][c] = multiply_half(behind, codes[c].z, codes[c].w, sum);
          } else if (high == low) {
            const int sum = multiply_half(before, codes[c].x, codes[c].y, 0);
            const int both = multiply_half(behind, codes[c].z, codes[c].w, sum);
            totals[row][c] = fmaf(scales[c][0], static_cast<float>(both), totals[row][c]);
          } else {
            const int one = multiply_half(before, codes[c].x, codes[c].y, 0);
            const int other = multiply_half(behind, codes[c].z, codes[c].w, 0);
            totals[row][c] = fmaf(scales[c][0], static_cast<float>(one), totals[row][c]);
            totals[row][c] = fmaf(scales[c][1], static_cast<float>(other), totals[row][c]);
          }
        }
      }
    }
  }

#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      float total = totals[row][c];
      int sum = sums[row][c] / 16;  // exact
#pragma unroll
      for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        if constexpr (CHANNELS) {
          sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
        } else {
          total += __shfl_xor_sync(ALL_LANES, total, lanes);
        }
      }
      const bool there = first_row + row < task.rows && first_column + c < task.N;
      if (!there || lane != (row * COLUMNS + c) % WARP) continue;
      const float product = CHANNELS ? scale_of(task, first_column + c, 0) * static_cast<float>(sum) : total * 0.0625f;
      write(task, first_row + row, first_column + c, task.a_scale[first_row + row] * product);
    }
  }
}

}  // namespace
}  // namespace catonnx
