// DynamicQuantize and QuantizedMatMul: what their inputs and attributes must be, and ranges for the thread pool.
#include <algorithm>
#include <type_traits>

#include "memory.h"
#include "nodes.h"
#include "nodes_quantize.h"
#include "operands.h"
#include "product.h"
#include "quantize.h"

namespace catonnx {
namespace {

template <class T>
class DynamicQuantize {
 public:
  static constexpr const char* name = "DynamicQuantize";
  static constexpr ONNXTensorElementDataType inputs[] = {type<T>};
  static constexpr const auto& outputs = quantized_outputs;
  static constexpr bool in_place = false;

  static void infer(const Inference& inference) { infer_quantized_rows(inference); }

  explicit DynamicQuantize(const Creation& creation) : rounding_(creation, name) {}

  void run(const Run& run) const {
    const Tensor x = run.input(0);
    check_channels(name, x.shape);
    const int64_t channels = x.shape.back();
    const QuantizedRows y(run, x.shape);
    run.parallel(x.rows(), static_cast<double>(channels), 1, [&](int64_t first, int64_t last) {
      rows(x.as<T>() + first * channels, last - first, channels, y.codes + first * channels, y.scales + first);
    });
  }

 private:
  void rows(const float* x, int64_t rows, int64_t channels, int8_t* codes, float* scales) const {
    quantize_rows(isa_, x, rows, channels, rounding_.bits, rounding_.clip, codes, scales);
  }

  void rows(const Half* x, int64_t rows, int64_t channels, int8_t* codes, float* scales) const {
    const TransformKernels& kernels = transform_kernels(isa_);
    const std::unique_ptr<float[]> wide(new float[std::max<int64_t>(channels, 1)]);
    for (int64_t row = 0; row < rows; ++row) {
      kernels.widen(x + row * channels, channels, wide.get());
      quantize_rows(isa_, wide.get(), 1, channels, rounding_.bits, rounding_.clip, codes + row * channels, scales + row);
    }
  }

  const Isa isa_ = isa();
  Rounding rounding_;
};

template <class T>
class QuantizedMatMul {
 public:
  static constexpr const char* name = "QuantizedMatMul";
  static constexpr ONNXTensorElementDataType inputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                         ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, type<T>};
  static constexpr ONNXTensorElementDataType outputs[] = {type<T>};
  static constexpr bool in_place = false;

  static void infer(const Inference& inference) {
    const int64_t columns = inference.integer("N");
    if (columns > 0) inference.like_input(0, inference.type(3), columns);
  }

  explicit QuantizedMatMul(const Creation& creation) : shape_(creation, name) {
    const int64_t whole = (shape_.K + 15) / 16 * 16;
    product_ = {shape_.K, shape_.N, shape_.group, nullptr, nullptr};
    const std::unique_ptr<Tensor> scales = creation.constant(3);
    if (scales == nullptr) return;
    shape_.check_scales(name, scales->shape);
    const Floats wide(scales->as<T>(), shape_.N * shape_.groups);
    if (shape_.groups > 1 && shape_.groups * shape_.group == whole && shape_.are_of_channels(wide.data())) {
      product_.group = whole;  // the sums of all groups are one, in whole numbers
      for (int64_t n = 0; n < shape_.N; ++n) scales_.push_back(wide.data()[n * shape_.groups]);
    } else if (std::is_same_v<T, Half>) {
      scales_.assign(wide.data(), wide.data() + shape_.N * shape_.groups);
    }
  }

  void run(const Run& run) const {
    const Tensor a = run.input(0), a_scale = run.input(1), b = run.input(2), b_scale = run.input(3);
    const Shape shape = shape_.check(name, a.shape, a_scale.shape, b.shape, b_scale.shape);
    T* const y = static_cast<T*>(run.output(0, shape));
    const int64_t rows = a.rows();
    if (rows == 0) return;

    const float* const scales = a_scale.as<float>();
    if (scales_.empty()) {
      const Floats wide(b_scale.as<T>(), shape_.N * shape_.groups);
      multiply_rows(run, b, wide.data(), a.as<int8_t>(), scales, rows, y);
    } else {
      multiply_rows(run, b, scales_.data(), a.as<int8_t>(), scales, rows, y);
    }
  }

 private:
  void multiply_rows(const Run& run, const Tensor& b, const float* scales, const int8_t* a, const float* a_scale,
                     int64_t rows, T* y) const {
    Product product = product_;
    product.codes = b.as<uint8_t>();
    product.scales = scales;
    for (int64_t row = 0; row < rows; row += MOST_ROWS) {
      const int64_t some = std::min(rows - row, MOST_ROWS);
      const Multiplication multiplication(isa_, product, a + row * shape_.K, a_scale + row, some);
      multiply_some(run, multiplication, some, y + row * shape_.N);
    }
  }

  void multiply_some(const Run& run, const Multiplication& multiplication, int64_t rows, T* y) const {
    const Lent memory(multiplication.bytes());
    int8_t* const arranged = memory.as<int8_t>();
    const double cost = static_cast<double>(shape_.K) / 16;
    run.parallel(multiplication.tiles(), cost * static_cast<double>(multiplication.tile_rows()), 1,
                 [&](int64_t first, int64_t last) { multiplication.arrange(first, last, arranged); });
    run.parallel(shape_.N, cost * static_cast<double>(rows), Multiplication::COLUMNS, [&](int64_t first, int64_t last) {
      if constexpr (std::is_same_v<T, float>) {
        multiplication.columns(arranged, first, last, y + first, shape_.N);
      } else {
        const int64_t width = last - first;
        const std::unique_ptr<float[]> wide(new float[rows * width]);
        multiplication.columns(arranged, first, last, wide.get(), width);
        const TransformKernels& kernels = transform_kernels(isa_);
        for (int64_t i = 0; i < rows; ++i) kernels.narrow(wide.get() + i * width, width, y + i * shape_.N + first);
      }
    });
  }

  static constexpr int64_t MOST_ROWS = 1024;  // at a time: as many are held arranged

  const Isa isa_ = isa();
  ProductShape shape_;
  Product product_;            // without codes and scales
  std::vector<float> scales_;  // b_scale, where it is constant and is not taken as it is
};

}  // namespace

QuantizedRows::QuantizedRows(const Run& run, const Shape& x) : codes(static_cast<int8_t*>(run.output(0, x))) {
  Shape one = x;
  one.back() = 1;
  scales = static_cast<float*>(run.output(1, one));
}

void infer_quantized_rows(const Inference& inference) {
  inference.like_input(0, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, -1);
  inference.like_input(1, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 1);
}

std::vector<const OrtCustomOp*> quantized_ops() {
  static const Op<DynamicQuantize<float>> quantize;
  static const Op<DynamicQuantize<Half>> quantize_half;
  static const Op<QuantizedMatMul<float>> product;
  static const Op<QuantizedMatMul<Half>> product_half;
  return {&quantize, &quantize_half, &product, &product_half};
}

}  // namespace catonnx
