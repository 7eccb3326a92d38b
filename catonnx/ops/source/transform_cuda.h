// Transforms and quantization on CUDA devices, without ONNX Runtime: what nodes_cuda.cpp runs. All pointers are to the
// device, all work goes to `stream`; nothing allocates or waits.
#pragma once

#include <cstdint>

#include "transform.h"

struct CUstream_st;

namespace catonnx {

using Stream = CUstream_st*;  // cudaStream_t
using Problem = const char*;  // what CUDA says went wrong; null if nothing

// One transform of rows of T. Matrices are as the operators take them: row vectors times matrix.
template <class T>
struct CudaTransform {
  int64_t channels;    // of a row; a multiple of outer * inner
  int64_t outer;       // of a Kronecker product; 1 if there is none
  int64_t inner;       // channels that `matrix` mixes
  bool hadamard;       // `matrix` is Sylvester's and is not read; inner is at most WIDEST_HADAMARD
  bool per_run;        // every run of a row has a matrix of its own
  float factor;        // of the Hadamard matrix; 1 otherwise
  const T* scale;      // [channels], or [1] if `one_scale`; null for none
  bool one_scale;
  const T* matrix;     // [inner, inner], once for each run if `per_run`
  const T* first;      // the [outer, outer] in rows and columns 0, step, 2 step ... of a matrix [side, side]
  int64_t side, step;
};

constexpr int64_t WIDEST_HADAMARD = 16384;

// What DynamicQuantize makes of a row: a whole number for each channel, and a scale. See quantize.h.
struct Codes {
  int bits;
  float clip;
  int8_t* codes;  // [rows, channels]
  float* scales;  // [rows]
};

// How many floats of scratch these want; often none.
template <class T>
int64_t transform_scratch(const CudaTransform<T>& transform, int64_t rows, bool quantized);

// y [rows, channels] must not overlap x.
template <class T>
Problem transform(const CudaTransform<T>& transform, const T* x, int64_t rows, float* scratch, T* y, Stream stream);

// The same, rounded: one kernel where a thread block, or a cluster of them, can hold whole rows; two of wider rows, of dense
// matrices above 256, and of Kronecker products of dense ones.
template <class T>
Problem transform_quantize(const CudaTransform<T>& transform, const T* x, int64_t rows, float* scratch,
                           const Codes& codes, Stream stream);

// Rows as they are, rounded.
template <class T>
Problem quantize(const T* x, int64_t rows, int64_t channels, const Codes& codes, Stream stream);

// Of the device in use: 80 for 8.0; 0 if there is none.
int compute_capability();

// Waits for everything that is under way, and copies to the host.
Problem copy_to_host(const void* device, int64_t bytes, void* host);

}  // namespace catonnx
