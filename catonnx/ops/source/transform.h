// The three transforms of rows of channels, without ONNX Runtime: what nodes.cpp runs.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu.h"

namespace catonnx {

// A float16 as it lies in memory.
struct Half {
  uint16_t bits;
};

// A bfloat16: the upper half of a float. There are kernels on CUDA alone.
struct Bfloat16 {
  uint16_t bits;
};

// Matrices are stored with rows of whole vectors of every instruction set, the padding zero. `static`, for no function may
// be shared between instruction sets: the linker would take anyone's.
static inline constexpr int64_t padded(int64_t columns) { return (columns + 15) / 16 * 16; }

constexpr int64_t SAME = 256;  // equal numbers that stand for those of all channels: as many as registers hold at once

// One number for each channel: that of channel i is numbers[i], or all are those SAME ones.
struct Scale {
  const float* numbers;  // null: nothing is scaled
  bool same;

  Scale from(int64_t channel) const { return {same ? numbers : numbers + channel, same}; }
};

// How the left matrix of a Kronecker product runs.
enum class Outer {
  none,
  dense,
  twelve,      // these two up to a factor as a few sums: see transform_outer.h
  thirty_six,
};

// What one transform does to each row, prepared.
struct TransformView {
  int64_t channels;     // of a row; a multiple of `run`
  int64_t run;          // channels that are mixed with each other
  int64_t outer;        // Kronecker: the size of `first`, less what joined `matrix`; 1 otherwise
  int64_t inner;        // the size of `matrix`: run = outer * inner
  bool hadamard;        // `matrix` is Sylvester's and runs as a fast Walsh-Hadamard transform
  bool per_run;         // every run of a row has a matrix of its own
  Outer kind;           // of `first`
  Scale scale;          // on the way in, with whatever factor a Hadamard matrix has
  const float* matrix;  // [inner, padded(inner)], once for each run if `per_run`; unused if `hadamard`
  const float* first;   // Kronecker: [outer, outer], transposed; unused unless it is dense
};

constexpr int64_t MOST_TILE_ROWS = 6;  // of runs that are multiplied at a time

// How many floats of scratch the kernels want: whole vectors of them, aligned to 64 if they are to be fast.
int64_t scratch_floats(const TransformView& view);

// The kernels of one instruction set. x and y are [rows, channels] and may be the same.
struct TransformKernels {
  void (*rows)(const TransformView& view, const float* x, int64_t rows, float* scratch, float* y);
  void (*half_rows)(const TransformView& view, const Half* x, int64_t rows, float* scratch, Half* y);
  void (*widen)(const Half* x, int64_t count, float* y);
  void (*narrow)(const float* x, int64_t count, Half* y);
};

const TransformKernels& transform_kernels(Isa isa);

extern const TransformKernels portable_transforms, avx2_transforms, avx512_transforms, neon_transforms;

// Prepares TransformViews, and holds what they point to.
class Transform {
 public:
  // matrices [count, size, size], count 1 or channels / size. scale [scales], scales 1 or channels. If the matrices `stay`
  // where they are and need no padding, they are not copied: `matrix` of the view is null, and its user's to set.
  static Transform blocks(int64_t channels, const float* scale, int64_t scales, const float* matrices, int64_t count,
                          int64_t size, bool stay);
  // first [outer, outer], second [inner, inner].
  static Transform kronecker(int64_t channels, const float* scale, int64_t scales, const float* first, int64_t outer,
                             const float* second, int64_t inner);

  TransformView view() const;

 private:
  Transform(int64_t channels, const float* scale, int64_t scales);
  void multiply_scale(float factor);

  int64_t channels_, run_ = 0, outer_ = 1, inner_ = 0;
  bool hadamard_ = false, per_run_ = false, same_ = true;
  Outer kind_ = Outer::none;
  std::vector<float> scale_, matrix_, first_;  // scale_ of all channels, or SAME of the same number
};

// The c of a matrix [size, size] whose entries are c (-1)^popcount(i & j); 0 if it is none such.
float sylvester_factor(const float* matrix, int64_t size);

// Which of the known matrices [size, size] this is, up to a common factor: matrix[0].
Outer outer_kind(const float* matrix, int64_t size);

// The largest power of two p, up to `most`, with matrix = F kron S: S is Sylvester's of order p, F [size / p, size / p] is any.
int64_t sylvester_part(const float* matrix, int64_t size, int64_t most);

}  // namespace catonnx
