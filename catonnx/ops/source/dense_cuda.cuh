// Rows times dense matrices of any size, in float32 throughout: in tiles, or for few rows as soon as the matrices are there.
#pragma once

#include "transform_cuda.cuh"

namespace catonnx {
namespace {

constexpr int TILE = 64, DEPTH = 16;     // a block computes [TILE, TILE] of a product, DEPTH channels at a time
constexpr int TILE_STRIDE = TILE + 4;    // between rows of shared memory
constexpr int TILE_THREADS = 256;        // each computes [4, 4]
constexpr unsigned MOST_BLOCKS = 65535;  // along the second and third axis of a grid

template <class T>
struct DenseTask {
  const T* x;  // [rows, runs, size]
  int64_t rows, runs;
  int size;
  const T* scale;  // [period, size], or [1]; null for none
  bool one_scale;
  int64_t period;  // part r * runs + run of x is number (r * runs + run) % period of the scale
  const T* matrix;  // [size, size]; those of the runs are `matrix_step` apart
  int64_t matrix_step;
};

// Number k of part `part` of x, times its factor. `place` is where the factors of that part begin.
template <class T>
__device__ __forceinline__ float scaled(const DenseTask<T>& task, int64_t part, int64_t place, int k) {
  const float x = widen(task.x[part * task.size + k]);
  if (task.scale == nullptr) return x;
  return x * widen(task.scale[task.one_scale ? 0 : place + k]);
}

// y = (x * scale) matrix for every run; y is [rows, runs, size].
template <class T, class Y>
__global__ void __launch_bounds__(TILE_THREADS) dense_kernel(DenseTask<T> task, Y* y) {
  float* const left = reinterpret_cast<float*>(shared_memory());  // [DEPTH, TILE]: x, transposed
  float* const right = left + DEPTH * TILE_STRIDE;                // [DEPTH, TILE]
  const int thread = threadIdx.x, size = task.size;
  const int64_t tiles = ceil_div(task.rows, TILE);
  for (int64_t run = blockIdx.z; run < task.runs; run += gridDim.z) {
    const T* const matrix = task.matrix + run * task.matrix_step;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      for (int first = blockIdx.y * TILE; first < size; first += gridDim.y * TILE) {
        constexpr int ITEMS = TILE * DEPTH / TILE_THREADS;  // of each operand, that a thread loads at a time
        int64_t parts[ITEMS], places[ITEMS];
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
          parts[i] = (tile * TILE + (i * TILE_THREADS + thread) / DEPTH) * task.runs + run;
          places[i] = parts[i] % task.period * size;
        }
        float sums[4][4] = {};
        for (int depth = 0; depth < size; depth += DEPTH) {
#pragma unroll
          for (int i = 0; i < ITEMS; ++i) {
            const int item = i * TILE_THREADS + thread;
            const int row = item / DEPTH, k = item % DEPTH;
            const bool present = tile * TILE + row < task.rows && depth + k < size;
            left[k * TILE_STRIDE + row] = present ? scaled(task, parts[i], places[i], depth + k) : 0.0f;
            const int other = item / TILE, column = item % TILE;
            const bool there = depth + other < size && first + column < size;
            right[other * TILE_STRIDE + column] =
                there ? widen(matrix[static_cast<int64_t>(depth + other) * size + first + column]) : 0.0f;
          }
          __syncthreads();
#pragma unroll
          for (int k = 0; k < DEPTH; ++k) {
            const float4 a = *reinterpret_cast<const float4*>(left + k * TILE_STRIDE + thread / 16 * 4);
            const float4 b = *reinterpret_cast<const float4*>(right + k * TILE_STRIDE + thread % 16 * 4);
            const float rows[4] = {a.x, a.y, a.z, a.w}, columns[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
              for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(rows[i], columns[j], sums[i][j]);
            }
          }
          __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t row = tile * TILE + thread / 16 * 4 + i;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int column = first + thread % 16 * 4 + j;
            if (row < task.rows && column < size) narrow(sums[i][j], y[(row * task.runs + run) * size + column]);
          }
        }
      }
    }
  }
}

constexpr int FEW_ROWS = 4;         // of a block of few_kernel
constexpr int MOST_FEW_ROWS = 16;   // more are worth a tile
constexpr int FEW_WARPS = 8;        // each takes every FEW_WARPS-th channel, for all columns of the block: a lane has one

// The same for few rows, where all that counts is how soon the matrices are there.
template <class T, class Y>
__global__ void __launch_bounds__(FEW_WARPS * WARP) few_kernel(DenseTask<T> task, Y* y) {
  float* const parts = reinterpret_cast<float*>(shared_memory());  // [FEW_WARPS, FEW_ROWS, WARP]
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, size = task.size;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * FEW_ROWS;
  for (int64_t run = blockIdx.z; run < task.runs; run += gridDim.z) {
    const T* const matrix = task.matrix + run * task.matrix_step;
    for (int first = blockIdx.y * WARP; first < size; first += gridDim.y * WARP) {
      const int column = first + lane;
      float sums[FEW_ROWS] = {};
#pragma unroll 8
      for (int k = warp; k < size; k += FEW_WARPS) {
        const float weight = column < size ? widen(matrix[static_cast<int64_t>(k) * size + column]) : 0.0f;
#pragma unroll
        for (int i = 0; i < FEW_ROWS; ++i) {
          const int64_t part = (first_row + i) * task.runs + run;
          if (first_row + i < task.rows) sums[i] = fmaf(scaled(task, part, run * size, k), weight, sums[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < FEW_ROWS; ++i) parts[(warp * FEW_ROWS + i) * WARP + lane] = sums[i];
      __syncthreads();
      if (warp < FEW_ROWS && first_row + warp < task.rows && column < size) {
        float sum = 0.0f;
#pragma unroll
        for (int other = 0; other < FEW_WARPS; ++other) sum += parts[(other * FEW_ROWS + warp) * WARP + lane];
        narrow(sum, y[((first_row + warp) * task.runs + run) * size + column]);
      }
      __syncthreads();
    }
  }
}

// y = first^T x for every run x [outer, inner] of a row in device memory.
template <class T, class Y>
__global__ void outer_kernel(RowTask<T> task, const float* x, int64_t total, Y* y) {
  const int64_t run = static_cast<int64_t>(task.outer) * task.inner;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < total;
       at += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t from = at / run * run, column = (at - from) / task.inner, place = (at - from) % task.inner;
    float sum = 0.0f;
    for (int k = 0; k < task.outer; ++k) {
      const float weight = widen(task.first[static_cast<int64_t>(k) * task.step * task.side + column * task.step]);
      sum = fmaf(weight, x[from + static_cast<int64_t>(k) * task.inner + place], sum);
    }
    narrow(sum, y[at]);
  }
}

}  // namespace
}  // namespace catonnx
