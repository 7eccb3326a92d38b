// What DynamicQuantize and its fusions with a transform share.
#pragma once

#include "ort.h"

namespace catonnx {

// Their outputs: codes like X, and a scale for each row.
struct QuantizedRows {
  QuantizedRows(const Run& run, const Shape& x);

  int8_t* codes;
  float* scales;
};

void infer_quantized_rows(const Inference& inference);

constexpr ONNXTensorElementDataType quantized_outputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
                                                           ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

}  // namespace catonnx
