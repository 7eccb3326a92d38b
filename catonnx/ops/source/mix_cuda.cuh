// What mix_kernel() is made of: where tiles of rows and matrices lie in shared memory, and how they are multiplied.
#pragma once

#include "transform_cuda.cuh"

namespace catonnx {
namespace {

constexpr int MIX_WARPS = 16, MIX_THREADS = MIX_WARPS * WARP;
constexpr int SEGMENT = 32, SEGMENT_TILES = SEGMENT / 8;  // columns that a warp computes at a time
constexpr int MIX_ROWS = 16, MIX_DEPTH = 16;              // of multiply_tile()
constexpr int WIDEST_MIXED = 256;                         // block; a wider one is a matrix product like any other
constexpr int MOST_RANKS = 8;                             // thread blocks of a cluster

template <class T>
struct MixTask {
  const T* x;  // [rows, channels], of which each run of `size` has a matrix
  int64_t rows;
  int channels, size;
  const T* scale;  // [channels], or [1]; null for none
  bool one_scale;
  const T* matrix;      // [size, size]
  int64_t matrix_step;  // from one run's to the next one's; 0 if all have the same
  int ranks;            // thread blocks that share a row
  int runs;             // of a rank, at most
  bool resident;        // a rank's matrices stay in shared memory; otherwise they are copied for every round
  int buffers;          // 2 if the next tile is copied while this one is computed, or 1
};

// How a rank's part of a tile, and matrices, lie in shared memory: in strides by which what the lanes of a warp read together
// is in different banks.
template <class T>
struct MixShape {
  static constexpr bool STAGED = sizeof(T) == 2;  // matrices are; those of floats are read where they are

  __host__ __device__ MixShape(int size, int runs)
      : wide((size + MIX_DEPTH - 1) / MIX_DEPTH * MIX_DEPTH),
        segments((size + SEGMENT - 1) / SEGMENT),
        row(static_cast<int>((runs * wide * sizeof(T) + 127) / 128 * 128 + 16) / static_cast<int>(sizeof(T))),
        code_row((runs * size + 127) / 128 * 128 + 8),
        pairs(segments * SEGMENT + 8),
        scale_bytes(runs * wide * static_cast<int>(sizeof(T))) {}

  __host__ __device__ int rounds(int runs) const { return (runs * segments + MIX_WARPS - 1) / MIX_WARPS; }
  __host__ __device__ int matrix_words() const { return STAGED ? wide / 2 * pairs : 0; }
  // Runs that the segments of a round may belong to.
  __host__ __device__ int round_runs() const {
    return MIX_WARPS % segments == 0 ? MIX_WARPS / segments : (MIX_WARPS - 2 + segments) / segments + 1;
  }

  __host__ size_t bytes(int rows, int buffers, int matrices) const {
    return static_cast<size_t>(3 * rows * 4 + scale_bytes) + buffers * rows * row * sizeof(T) +
           static_cast<size_t>(matrices) * matrix_words() * 4;
  }

  int wide;      // channels from run to run, zeros behind the last ones
  int segments;  // of a run
  int row;       // numbers from row to row of x
  int code_row;  // bytes from row to row of codes
  int pairs;     // words from one pair of rows of a matrix to the next: a word is a column's numbers in both
  int scale_bytes;
};

// --- shared memory --------------------------------------------------------------------------------------------------

// Begins to copy a rank's part of rows [first, first + rows) of x; zeros for what is not there.
template <class T>
__device__ __forceinline__ void load_tile(const MixTask<T>& task, const MixShape<T>& shape, int first_run, int runs,
                                          int64_t first, int rows, T* to) {
  const int vectors = shape.wide / VECTOR, per_row = task.runs * vectors;
  for (int item = threadIdx.x; item < rows * per_row; item += MIX_THREADS) {
    const int row = item / per_row, run = item % per_row / vectors, k = item % vectors * VECTOR;
    const bool there = first + row < task.rows && run < runs && k < task.size;
    const T* const from =
        there ? task.x + (first + row) * task.channels + static_cast<int64_t>(first_run + run) * task.size + k : task.x;
    T* const place = to + row * shape.row + run * shape.wide + k;
    if (task.size % VECTOR == 0) {
      constexpr int PIECE = 16 / sizeof(T);
#pragma unroll
      for (int i = 0; i < VECTOR; i += PIECE) copy_async<16>(place + i, from + i, there ? 16 : 0);
    } else {
#pragma unroll
      for (int i = 0; i < VECTOR; ++i) narrow(there && k + i < task.size ? widen(from[i]) : 0.0f, place[i]);
    }
  }
}

// Copies the matrices of runs [begin, end), rows in pairs; zeros around them.
template <class T>
__device__ __forceinline__ void stage_matrices(const MixTask<T>& task, const MixShape<T>& shape, int begin, int end,
                                               uint32_t* to) {
  const int vectors = shape.segments * SEGMENT / VECTOR, per_run = shape.wide / 2 * vectors;
  for (int item = threadIdx.x; item < (end - begin) * per_run; item += MIX_THREADS) {
    const int run = item / per_run, pair = item % per_run / vectors, column = item % vectors * VECTOR;
    const T* const from = task.matrix + (begin + run) * task.matrix_step + static_cast<int64_t>(2 * pair) * task.size + column;
    union {
      uint4 words[2];
      T numbers[2][VECTOR];
      uint16_t halves[2][VECTOR];
    } rows = {};
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      if (2 * pair + lower >= task.size || column >= task.size) continue;
      if (task.size % VECTOR == 0) {
        rows.words[lower] = *reinterpret_cast<const uint4*>(from + lower * task.size);
        continue;
      }
#pragma unroll
      for (int i = 0; i < VECTOR; ++i) {
        if (column + i < task.size) rows.numbers[lower][i] = from[lower * task.size + i];
      }
    }
    uint32_t words[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) words[i] = rows.halves[0][i] | static_cast<uint32_t>(rows.halves[1][i]) << 16;
    uint4* const place = reinterpret_cast<uint4*>(to + run * shape.matrix_words() + pair * shape.pairs + column);
    place[0] = make_uint4(words[0], words[1], words[2], words[3]);
    place[1] = make_uint4(words[4], words[5], words[6], words[7]);
  }
}

// --- products -------------------------------------------------------------------------------------------------------

// What a lane has of 32 columns of TILES x 16 rows, as multiply_tile() has it.
template <int TILES>
using Segment = float[TILES][SEGMENT_TILES][4];

// Two numbers times two of a scale, and `shift`: what T holds of the products, and what is left of them.
template <class T>
__device__ __forceinline__ void split(uint32_t numbers, uint32_t factors, float shift, uint32_t& most, uint32_t& left) {
  union Pair {
    uint32_t word;
    T numbers[2];
  };
  Pair x, scale, high, low;
  x.word = numbers;
  scale.word = factors;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float product = widen(x.numbers[i]) * widen(scale.numbers[i]) * shift;
    narrow(product, high.numbers[i]);
    narrow(product - widen(high.numbers[i]), low.numbers[i]);
  }
  most = high.word;
  left = low.word;
}

// sums += x times columns [column, column + SEGMENT) of the matrix, which is staged; x and scale begin at the run. The scale
// is multiplied by `shift`.
template <class T, int TILES>
__device__ __forceinline__ void multiply_staged(const MixShape<T>& shape, const T* x, const T* scale, float shift,
                                                const uint32_t* matrix, int column, Segment<TILES>& sums) {
  const int lane = threadIdx.x % WARP, eighth = lane / 4, quarter = lane % 4;
  for (int k = 0; k < shape.wide; k += MIX_DEPTH) {
    uint32_t right[SEGMENT_TILES][2];
#pragma unroll
    for (int j = 0; j < SEGMENT_TILES; ++j) {
      const uint32_t* const from = matrix + (k / 2 + quarter) * shape.pairs + column + j * 8 + eighth;
      right[j][0] = from[0];
      right[j][1] = from[4 * shape.pairs];
    }
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
      const uint32_t* const upper = reinterpret_cast<const uint32_t*>(x + (i * MIX_ROWS + eighth) * shape.row + k) + quarter;
      const uint32_t* const lower = upper + 8 * shape.row / 2;
      uint32_t left[4] = {upper[0], lower[0], upper[4], lower[4]};
      if (scale != nullptr) {
        const uint32_t* const factors = reinterpret_cast<const uint32_t*>(scale + k) + quarter;
        uint32_t rest[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) split<T>(left[e], factors[e / 2 * 4], shift, left[e], rest[e]);
#pragma unroll
        for (int j = 0; j < SEGMENT_TILES; ++j) multiply_tile<T>(sums[i][j], rest, right[j]);
      }
#pragma unroll
      for (int j = 0; j < SEGMENT_TILES; ++j) multiply_tile<T>(sums[i][j], left, right[j]);
    }
  }
}

// The same for floats, whose matrix is in device memory.
template <int TILES>
__device__ __forceinline__ void multiply_floats(const MixShape<float>& shape, const float* x, const float* scale,
                                                const float* matrix, int size, int column, Segment<TILES>& sums) {
  const int lane = threadIdx.x % WARP, eighth = lane / 4, first = column + lane % 4 * 2;
#pragma unroll 4
  for (int k = 0; k < size; ++k) {
    const float* const from = matrix + static_cast<int64_t>(k) * size + first;
    float right[SEGMENT_TILES][2];
#pragma unroll
    for (int j = 0; j < SEGMENT_TILES; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) right[j][e] = first + j * 8 + e < size ? __ldg(from + j * 8 + e) : 0.0f;
    }
    const float factor = scale == nullptr ? 1.0f : scale[k];
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        const float left = x[(i * MIX_ROWS + lower * 8 + eighth) * shape.row + k] * factor;
#pragma unroll
        for (int j = 0; j < SEGMENT_TILES; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) sums[i][j][lower * 2 + e] = fmaf(left, right[j][e], sums[i][j][lower * 2 + e]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace catonnx
