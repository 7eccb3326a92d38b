#include "operands.h"

#include <cmath>

namespace catonnx {
namespace {

constexpr int64_t WIDEST = int64_t{1} << 20;  // channels of which products of int8 and 4 bits add up in an int32

void check_square(const char* op, const char* input, const Shape& shape, size_t rank) {
  const bool square = shape.size() == rank && shape[rank - 1] == shape[rank - 2] && count(shape) > 0;
  if (square) return;
  refuse(op, ": the input ", input, " has the shape ", written(shape), " and must be ",
         rank == 3 ? "[blocks, size, size]" : "[size, size]");
}

void check_scale(const char* op, const Shape& scale, int64_t channels) {
  if (scale.size() == 1 && (scale[0] == 1 || scale[0] == channels)) return;
  refuse(op, ": the input scale has the shape ", written(scale), " and must be [", channels, "] or [1], as X has ",
         channels, " channels");
}

void check_shape(const char* op, const char* input, const Shape& shape, const Shape& wanted) {
  if (shape == wanted) return;
  refuse(op, ": the input ", input, " has the shape ", written(shape), " and must be ", written(wanted));
}

}  // namespace

void check_channels(const char* op, const Shape& x) {
  if (x.empty()) refuse(op, ": X is a scalar and must have an axis of channels");
}

void check_transform(Form form, const char* op, const char* who, int64_t channels, const Shape& scale, const Shape& first,
                     const Shape& second) {
  check_scale(op, scale, channels);
  if (form == Form::kronecker) {
    check_square(op, "first", first, 2);
    check_square(op, "second", second, 2);
    if (channels % (first[0] * second[0]) != 0) {
      refuse(op, ": ", who, " has ", channels, " channels, which is no multiple of ", first[0], " x ", second[0]);
    }
    return;
  }
  const bool blocks = form == Form::blocks;
  check_square(op, blocks ? "matrices" : "matrix", first, blocks ? 3 : 2);
  const int64_t size = first.back();
  if (blocks && first[0] * size != channels) {
    refuse(op, ": ", who, " has ", channels, " channels, and the matrices ", written(first), " are for ",
           first[0] * size);
  }
  if (channels % size != 0) refuse(op, ": ", who, " has ", channels, " channels, which is no multiple of ", size);
}

Rounding::Rounding(const Creation& creation, const char* op) : clip(creation.number(op, "clip", 1.0f)) {
  const int64_t wanted = creation.integer(op, "bits");
  if (wanted != 4 && wanted != 8) refuse(op, ": the attribute bits is ", wanted, " and must be 4 or 8");
  if (!std::isfinite(clip) || clip <= 0) refuse(op, ": the attribute clip is ", clip, " and must be positive");
  bits = static_cast<int>(wanted);
}

ProductShape::ProductShape(const Creation& creation, const char* op)
    : K(creation.integer(op, "K")), N(creation.integer(op, "N")), group(creation.integer(op, "block_size")) {
  if (K < 1 || K > WIDEST) refuse(op, ": the attribute K is ", K, " and must be 1 to ", WIDEST);
  if (N < 1) refuse(op, ": the attribute N is ", N, " and must be positive");
  const bool power = group >= 16 && group <= 256 && (group & (group - 1)) == 0;
  const int64_t whole = (K + 15) / 16 * 16;
  if (!power && group != whole) {
    refuse(op, ": the attribute block_size is ", group, " and must be 16, 32, 64, 128, 256 or ", whole,
           ", which is all of K = ", K);
  }
  groups = (K + group - 1) / group;
}

Shape ProductShape::check(const char* op, const Shape& a, const Shape& a_scale, const Shape& b,
                          const Shape& b_scale) const {
  if (a.empty() || a.back() != K) {
    refuse(op, ": A has the shape ", written(a), " and must have K = ", K, " channels");
  }
  Shape shape = a;
  shape.back() = 1;
  check_shape(op, "a_scale", a_scale, shape);
  check_shape(op, "B", b, {N, groups, group / 2});
  check_scales(op, b_scale);
  shape.back() = N;
  return shape;
}

void ProductShape::check_scales(const char* op, const Shape& b_scale) const {
  if (count(b_scale) == N * groups && b_scale.size() <= 2) return;
  refuse(op, ": the input b_scale has the shape ", written(b_scale), " and must be ", written({N * groups}), " or ",
         written({N, groups}));
}

bool ProductShape::are_of_channels(const float* scales) const {
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t g = 1; g < groups; ++g) {
      if (scales[n * groups + g] != scales[n * groups]) return false;
    }
  }
  return true;
}

}  // namespace catonnx
