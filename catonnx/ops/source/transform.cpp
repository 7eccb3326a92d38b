#include "transform.h"

#include <cmath>

namespace catonnx {
namespace {

// Rows of `size` with rows of padded(size) in between them.
std::vector<float> pack(const float* matrices, int64_t rows, int64_t size) {
  std::vector<float> packed(rows * padded(size), 0.0f);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < size; ++j) packed[i * padded(size) + j] = matrices[i * size + j];
  }
  return packed;
}

}  // namespace

int64_t scratch_floats(const TransformView& view) {
  return padded(view.run) + 2 * (MOST_TILE_ROWS + view.outer) * padded(view.inner);
}

const TransformKernels& transform_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2: return avx2_transforms;
    case Isa::avx512:
    case Isa::avx512vnni:
    case Isa::amx: return avx512_transforms;
#elif defined(__aarch64__)
    case Isa::neon:
    case Isa::neondot: return neon_transforms;
#endif
    default: return portable_transforms;
  }
}

int64_t sylvester_part(const float* matrix, int64_t size, int64_t most) {
  const auto splits = [&](int64_t part) {
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < size; ++j) {
        const float factor = matrix[i / part * part * size + j / part * part];
        const bool negative = __builtin_parityll(static_cast<unsigned long long>(i % part & j % part)) != 0;
        if (matrix[i * size + j] != (negative ? -factor : factor)) return false;
      }
    }
    return true;
  };
  int64_t part = size & -size;
  while (part > 1 && (part > most || !splits(part))) part /= 2;
  return part;
}

float sylvester_factor(const float* matrix, int64_t size) {
  if (size <= 0 || (size & (size - 1)) != 0) return 0.0f;
  const float factor = matrix[0];
  if (!std::isfinite(factor)) return 0.0f;
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j < size; ++j) {
      const bool negative = __builtin_parityll(static_cast<unsigned long long>(i & j)) != 0;
      if (matrix[i * size + j] != (negative ? -factor : factor)) return 0.0f;
    }
  }
  return factor;
}

// The matrices, to the sign, are those of catonnx/math/hadamard.py.
Outer outer_kind(const float* matrix, int64_t size) {
  const Outer kind = size == 12 ? Outer::twelve : size == 36 ? Outer::thirty_six : Outer::dense;
  if (kind == Outer::dense || !std::isfinite(matrix[0]) || matrix[0] == 0.0f) return Outer::dense;
  const bool signs[4][4] = {{false, false, false, false}, {true, false, true, false},
                            {true, false, false, true}, {true, true, false, false}};
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j < size; ++j) {
      bool negative;
      if (kind == Outer::twelve) {
        negative = signs[i / 3][j / 3] != (i / 3 != j / 3 && i % 3 == j % 3);
      } else {
        const bool letter = (i / 6 + i % 6) % 6 == (j / 6 + j % 6) % 6;
        negative = i != j && (i / 6 == j / 6 || i % 6 == j % 6 || letter);
      }
      if (matrix[i * size + j] != (negative ? -matrix[0] : matrix[0])) return Outer::dense;
    }
  }
  return kind;
}

Transform::Transform(int64_t channels, const float* scale, int64_t scales) : channels_(channels) {
  for (int64_t i = 1; i < scales; ++i) same_ = same_ && scale[i] == scale[0];
  if (same_ && scales > 0) {
    scale_.assign(SAME, scale[0]);
  } else {
    scale_.assign(scale, scale + scales);
  }
}

void Transform::multiply_scale(float factor) {
  for (float& value : scale_) value *= factor;
}

Transform Transform::blocks(int64_t channels, const float* scale, int64_t scales, const float* matrices, int64_t count,
                            int64_t size, bool stay) {
  Transform made(channels, scale, scales);
  made.run_ = made.inner_ = size;
  const float factor = count == 1 ? sylvester_factor(matrices, size) : 0.0f;
  if (factor != 0.0f) {
    made.hadamard_ = true;
    made.multiply_scale(factor);
  } else {
    made.per_run_ = count > 1;
    if (!stay || size != padded(size)) made.matrix_ = pack(matrices, count * size, size);
  }
  return made;
}

Transform Transform::kronecker(int64_t channels, const float* scale, int64_t scales, const float* first, int64_t outer,
                               const float* second, int64_t inner) {
  Transform made(channels, scale, scales);
  made.run_ = outer * inner;
  int64_t part = 1;
  const float factor = sylvester_factor(second, inner);
  if (factor != 0.0f) {  // Sylvester's matrices are Kronecker products of each other
    made.hadamard_ = true;
    made.multiply_scale(factor);
    part = sylvester_part(first, outer, outer);
  } else {
    made.matrix_ = pack(second, inner, inner);
  }
  made.outer_ = outer / part;
  made.inner_ = inner * part;
  if (made.hadamard_ && made.outer_ == 1) {
    made.multiply_scale(first[0]);
    return made;
  }
  std::vector<float> rest(made.outer_ * made.outer_);
  for (int64_t i = 0; i < made.outer_; ++i) {
    for (int64_t j = 0; j < made.outer_; ++j) rest[i * made.outer_ + j] = first[i * part * outer + j * part];
  }
  made.kind_ = outer_kind(rest.data(), made.outer_);
  if (made.kind_ != Outer::dense) {
    made.multiply_scale(rest[0]);
    return made;
  }
  made.first_.resize(made.outer_ * made.outer_);
  for (int64_t i = 0; i < made.outer_; ++i) {
    for (int64_t j = 0; j < made.outer_; ++j) made.first_[j * made.outer_ + i] = rest[i * made.outer_ + j];
  }
  return made;
}

TransformView Transform::view() const {
  return {channels_, run_,  outer_, inner_, hadamard_, per_run_,
          kind_,     {scale_.data(), same_}, matrix_.empty() ? nullptr : matrix_.data(),
          first_.empty() ? nullptr : first_.data()};
}

}  // namespace catonnx
