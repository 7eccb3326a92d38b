// What the operators' inputs and attributes must be, wherever they run.
#pragma once

#include "ort.h"

namespace catonnx {

enum class Form { shared, blocks, kronecker };

constexpr const char* name_of(Form form) {
  return form == Form::shared ? "SharedTransform" : form == Form::blocks ? "BlockTransform" : "KroneckerTransform";
}

constexpr const char* quantized_name_of(Form form) {  // of the same, with DynamicQuantize behind it
  return form == Form::shared   ? "SharedTransformQuantize"
         : form == Form::blocks ? "BlockTransformQuantize"
                                : "KroneckerTransformQuantize";
}

// X must have an axis of channels.
void check_channels(const char* op, const Shape& x);

// The shapes of a transform's inputs behind X; `second` is of a Kronecker product only. `who` told how many channels there are.
void check_transform(Form form, const char* op, const char* who, int64_t channels, const Shape& scale, const Shape& first,
                     const Shape& second);

// The attributes of whatever rounds rows.
struct Rounding {
  Rounding(const Creation& creation, const char* op);

  int bits;
  float clip;
};

// The attributes of QuantizedMatMul, and what follows from them.
struct ProductShape {
  ProductShape(const Creation& creation, const char* op);

  // Returns the shape of the result.
  Shape check(const char* op, const Shape& a, const Shape& a_scale, const Shape& b, const Shape& b_scale) const;
  void check_scales(const char* op, const Shape& b_scale) const;

  // Whether all groups of a column have the same scale; scales [N, groups].
  bool are_of_channels(const float* scales) const;

  int64_t K, N, group, groups;
};

}  // namespace catonnx
