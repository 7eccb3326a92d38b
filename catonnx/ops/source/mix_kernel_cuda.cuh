// Rows times dense blocks, rounded, in one pass. A tile of rows is copied to shared memory while the one before is computed;
// a warp multiplies 32 columns of a block at a time and keeps the results in registers until the largest of each row is
// known. Rows too wide for that are shared by the thread blocks of a cluster, each of which has some runs of them, and tells
// the others its largest numbers: so few matrices are its own that they stay in shared memory, tile after tile.
//
// Without rounding nobody waits for anybody: then the blocks of a row know nothing of each other.
//
// float16 goes to the tensor cores, whose sums are float32. Numbers times a scale go there in two parts, what float16 holds
// of them and what is left: nothing is rounded to float16 on the way.
#pragma once

#include "mix_cuda.cuh"

namespace catonnx {
namespace {

// Rounds of segments, one for each warp, whose results the registers hold of so many tiles of 16 rows.
template <int TILES>
constexpr int MOST_ROUNDS = 4 / TILES;

// What a thread has of its segments, as it is.
template <class T, int TILES, class Y>
__device__ __forceinline__ void store_sums(const MixTask<T>& task, const MixShape<T>& shape, int first_run, int runs,
                                           int64_t first_row, const Segment<TILES> (&sums)[MOST_ROUNDS<TILES>], Y* y) {
  const int warp = threadIdx.x / WARP, eighth = threadIdx.x % WARP / 4, quarter = threadIdx.x % 4;
#pragma unroll
  for (int round = 0; round < MOST_ROUNDS<TILES>; ++round) {
    const int segment = round * MIX_WARPS + warp, run = segment / shape.segments;
    if (run >= runs) break;
    const int column = segment % shape.segments * SEGMENT + quarter * 2;
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        const int64_t row = first_row + i * MIX_ROWS + lower * 8 + eighth;
        if (row >= task.rows) continue;
        Y* const to = y + row * task.channels + static_cast<int64_t>(first_run + run) * task.size + column;
#pragma unroll
        for (int j = 0; j < SEGMENT_TILES; ++j) {
          if (task.size % 2 == 0) {
            if (column + j * 8 < task.size) store_pair(sums[round][i][j][lower * 2], sums[round][i][j][lower * 2 + 1], to + j * 8);
          } else {
            if (column + j * 8 < task.size) narrow(sums[round][i][j][lower * 2], to[j * 8]);
            if (column + j * 8 + 1 < task.size) narrow(sums[round][i][j][lower * 2 + 1], to[j * 8 + 1]);
          }
        }
      }
    }
  }
}

template <class T, int TILES, class Out>
__global__ void __launch_bounds__(MIX_THREADS) mix_kernel(MixTask<T> task, Out out) {
  constexpr int ROWS = TILES * MIX_ROWS;
  const MixShape<T> shape(task.size, task.runs);
  uint32_t* const maxima = reinterpret_cast<uint32_t*>(shared_memory());  // [2, ROWS], of this rank
  uint32_t* const tops = maxima + 2 * ROWS;                               // of whole rows
  T* const scale = reinterpret_cast<T*>(tops + ROWS);
  T* const tiles = scale + task.runs * shape.wide;  // [task.buffers, ROWS, shape.row]
  uint32_t* const matrices = reinterpret_cast<uint32_t*>(tiles + task.buffers * ROWS * shape.row);

  const int thread = threadIdx.x, warp = thread / WARP, eighth = thread % WARP / 4, quarter = thread % 4;
  const int rank = static_cast<int>(blockIdx.x) % task.ranks, first_run = rank * task.runs;
  const int runs = max(0, min(task.runs, task.channels / task.size - first_run)), rounds = shape.rounds(task.runs);
  const bool scaled = task.scale != nullptr && !task.one_scale;
  float factor = task.scale != nullptr && task.one_scale ? widen(task.scale[0]) : 1.0f;
  const int64_t step = static_cast<int64_t>(gridDim.x / task.ranks) * ROWS;
  int64_t first_row = static_cast<int64_t>(blockIdx.x / task.ranks) * ROWS;

  load_tile(task, shape, first_run, runs, first_row, ROWS, tiles);
  commit_copies();
  for (int i = thread; i < 3 * ROWS; i += MIX_THREADS) maxima[i] = 0;
  uint32_t largest = 0;
  if (scaled) {
    for (int i = thread; i < task.runs * shape.wide; i += MIX_THREADS) {
      const int run = i / shape.wide, k = i % shape.wide;
      const bool there = run < runs && k < task.size;
      narrow(there ? widen(task.scale[static_cast<int64_t>(first_run + run) * task.size + k]) : 0.0f, scale[i]);
      largest = max(largest, magnitude(widen(scale[i])));
    }
    // Products with the scale are taken apart into numbers of T, which holds them only where the scale is no larger than 1:
    // a power of two above all of it waits until they are summed up.
    if constexpr (MixShape<T>::STAGED) {
      __syncthreads();
      atomicMax(tops, largest);
      __syncthreads();
      const uint32_t exponent = tops[0] & 0x7f800000u;
      if (exponent > 0 && exponent < 0x7f000000u) factor = __uint_as_float(exponent + 0x00800000u);
    }
  }
  if constexpr (MixShape<T>::STAGED) {
    if (task.resident) stage_matrices(task, shape, first_run, first_run + (task.matrix_step == 0 ? 1 : runs), matrices);
  }

  for (uint32_t turn = 0; first_row < task.rows; first_row += step, turn ^= 1) {
    T* const tile = tiles + (task.buffers == 2 ? turn : 0) * ROWS * shape.row;
    if (task.buffers == 2) {
      if (first_row + step < task.rows) {
        load_tile(task, shape, first_run, runs, first_row + step, ROWS, tiles + (turn ^ 1) * ROWS * shape.row);
      }
      commit_copies();
      await_copies<1>();
    } else {
      await_copies<0>();
    }
    __syncthreads();  // this tile is there for everybody

    Segment<TILES> sums[MOST_ROUNDS<TILES>] = {};
    uint32_t top[TILES][2] = {};
#pragma unroll
    for (int round = 0; round < MOST_ROUNDS<TILES>; ++round) {
      if (round >= rounds) break;
      [[maybe_unused]] int staged = 0;  // the first run whose matrix is
      if constexpr (MixShape<T>::STAGED) {
        if (!task.resident) {
          staged = round * MIX_WARPS / shape.segments;
          const int end = min(runs, (round * MIX_WARPS + MIX_WARPS - 1) / shape.segments + 1);
          __syncthreads();  // nobody reads those of the last round any more
          stage_matrices(task, shape, first_run + staged, first_run + max(staged, end), matrices);
          __syncthreads();
        }
      }
      const int segment = round * MIX_WARPS + warp, run = segment / shape.segments;
      if (run >= runs) continue;
      const T* const x = tile + run * shape.wide;
      const T* const factors = scaled ? scale + run * shape.wide : nullptr;
      const int column = segment % shape.segments * SEGMENT;
      if constexpr (MixShape<T>::STAGED) {
        const uint32_t* const own = matrices + (task.matrix_step == 0 ? 0 : run - staged) * shape.matrix_words();
        multiply_staged<T, TILES>(shape, x, factors, 1.0f / factor, own, column, sums[round]);
      } else {
        const T* const own = task.matrix + (first_run + run) * task.matrix_step;
        multiply_floats<TILES>(shape, x, factors, own, task.size, column, sums[round]);
      }
#pragma unroll
      for (int i = 0; i < TILES; ++i) {
#pragma unroll
        for (int j = 0; j < SEGMENT_TILES; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            sums[round][i][j][e] *= factor;
            top[i][e / 2] = max(top[i][e / 2], magnitude(sums[round][i][j][e]));
          }
        }
      }
    }
    if constexpr (Out::rounded) {
#pragma unroll
      for (int i = 0; i < TILES; ++i) {
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
          uint32_t most = top[i][lower];
          most = max(most, __shfl_xor_sync(ALL_LANES, most, 1));
          most = max(most, __shfl_xor_sync(ALL_LANES, most, 2));
          if (quarter == 0) atomicMax(maxima + turn * ROWS + i * MIX_ROWS + lower * 8 + eighth, most);
        }
      }

      if (task.ranks > 1) {
        cluster_barrier();
      } else {
        __syncthreads();
      }
      if (thread < ROWS) {
        uint32_t most = maxima[turn * ROWS + thread];
        for (int other = 0; other < task.ranks; ++other) {
          if (other != rank) most = max(most, read_of_rank(maxima + turn * ROWS + thread, other));
        }
        tops[thread] = most;
        maxima[(turn ^ 1) * ROWS + thread] = 0;  // read by everybody before this tile's barrier
        if (rank == 0 && first_row + thread < task.rows) out.scales[first_row + thread] = Rounder(out, most).written();
      }
      __syncthreads();

      int8_t* const codes = reinterpret_cast<int8_t*>(tile);  // which nobody reads any more
#pragma unroll
      for (int i = 0; i < TILES; ++i) {
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
          const int row = i * MIX_ROWS + lower * 8 + eighth;
          const Rounder rounder(out, tops[row]);
#pragma unroll
          for (int round = 0; round < MOST_ROUNDS<TILES>; ++round) {
            const int segment = round * MIX_WARPS + warp, run = segment / shape.segments;
            if (run >= runs) break;
            const int column = segment % shape.segments * SEGMENT + quarter * 2;
            int8_t* const to = codes + row * shape.code_row + run * task.size + column;
#pragma unroll
            for (int j = 0; j < SEGMENT_TILES; ++j) {
              const uint32_t one = rounder.code(sums[round][i][j][lower * 2]);
              const uint32_t other = rounder.code(sums[round][i][j][lower * 2 + 1]);
              if (task.size % 2 == 0) {
                if (column + j * 8 < task.size) *reinterpret_cast<uint16_t*>(to + j * 8) = static_cast<uint16_t>(one | other << 8);
              } else {
                if (column + j * 8 < task.size) to[j * 8] = static_cast<int8_t>(one);
                if (column + j * 8 + 1 < task.size) to[j * 8 + 1] = static_cast<int8_t>(other);
              }
            }
          }
        }
      }
      __syncthreads();
      const int piece = task.size % VECTOR == 0 ? VECTOR : 1, pieces = runs * task.size / piece;
      for (int item = thread; item < ROWS * pieces; item += MIX_THREADS) {
        const int row = item / pieces, at = item % pieces * piece;
        if (first_row + row >= task.rows) break;
        const int8_t* const from = codes + row * shape.code_row + at;
        int8_t* const to = out.codes + (first_row + row) * task.channels + static_cast<int64_t>(first_run) * task.size + at;
        if (piece == VECTOR) {
          *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(from);
        } else {
          *to = *from;
        }
      }
    } else {
      store_sums(task, shape, first_run, runs, first_row, sums, out.y);
    }
    __syncthreads();  // before another tile is copied there
    if (task.buffers == 1) {
      if (first_row + step < task.rows) load_tile(task, shape, first_run, runs, first_row + step, ROWS, tile);
      commit_copies();
    }
  }
  if (Out::rounded && task.ranks > 1) cluster_barrier();  // others may still read the maxima of this one
}

}  // namespace
}  // namespace catonnx
