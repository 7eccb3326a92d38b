// DynamicQuantize and QuantizedMatMul: what their inputs and attributes must be, and ranges for the thread pool.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "nodes.h"
#include "product.h"
#include "quantize.h"

namespace catonnx {
namespace {

constexpr int64_t WIDEST = int64_t{1} << 20;  // channels of which products of int8 and 4 bits add up in an int32

template <class T>
class DynamicQuantize {
 public:
  static constexpr const char* name = "DynamicQuantize";
  static constexpr ONNXTensorElementDataType inputs[] = {type<T>};
  static constexpr ONNXTensorElementDataType outputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, type<T>};
  static constexpr bool in_place = false;

  static void infer(const Inference& inference) {
    inference.like_input(0, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, -1);
    inference.like_input(1, inference.type(0), 1);
  }

  explicit DynamicQuantize(const Creation& creation)
      : bits_(creation.integer(name, "bits")), clip_(creation.number(name, "clip", 1.0f)) {
    if (bits_ != 4 && bits_ != 8) refuse(name, ": the attribute bits is ", bits_, " and must be 4 or 8");
    if (!std::isfinite(clip_) || clip_ <= 0) refuse(name, ": the attribute clip is ", clip_, " and must be positive");
  }

  void run(const Run& run) const {
    const Tensor x = run.input(0);
    if (x.shape.empty()) refuse(name, ": X is a scalar and must have an axis of channels");
    const int64_t channels = x.shape.back();
    Shape one = x.shape;
    one.back() = 1;
    int8_t* const codes = static_cast<int8_t*>(run.output(0, x.shape));
    T* const scales = static_cast<T*>(run.output(1, one));
    run.parallel(x.rows(), static_cast<double>(channels), 1, [&](int64_t first, int64_t last) {
      rows(x.as<T>() + first * channels, last - first, channels, codes + first * channels, scales + first);
    });
  }

 private:
  void rows(const float* x, int64_t rows, int64_t channels, int8_t* codes, float* scales) const {
    quantize_rows(x, rows, channels, static_cast<int>(bits_), clip_, codes, scales);
  }

  void rows(const Half* x, int64_t rows, int64_t channels, int8_t* codes, Half* scales) const {
    const TransformKernels& kernels = transform_kernels();
    const std::unique_ptr<float[]> wide(new float[std::max<int64_t>(channels, 1)]);
    for (int64_t row = 0; row < rows; ++row) {
      float scale = 0;
      kernels.widen(x + row * channels, channels, wide.get());
      quantize_rows(wide.get(), 1, channels, static_cast<int>(bits_), clip_, codes + row * channels, &scale);
      kernels.narrow(&scale, 1, scales + row);
    }
  }

  int64_t bits_;
  float clip_;
};

template <class T>
class QuantizedMatMul {
 public:
  static constexpr const char* name = "QuantizedMatMul";
  static constexpr ONNXTensorElementDataType inputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, type<T>,
                                                         ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, type<T>};
  static constexpr ONNXTensorElementDataType outputs[] = {type<T>};
  static constexpr bool in_place = false;

  static void infer(const Inference& inference) {
    const int64_t columns = inference.integer("N");
    if (columns > 0) inference.like_input(0, inference.type(1), columns);
  }

  explicit QuantizedMatMul(const Creation& creation)
      : K_(creation.integer(name, "K")), N_(creation.integer(name, "N")), group_(creation.integer(name, "block_size")) {
    if (K_ < 1 || K_ > WIDEST) refuse(name, ": the attribute K is ", K_, " and must be 1 to ", WIDEST);
    if (N_ < 1) refuse(name, ": the attribute N is ", N_, " and must be positive");
    const bool power = group_ >= 16 && group_ <= 256 && (group_ & (group_ - 1)) == 0;
    const int64_t whole = (K_ + 15) / 16 * 16;
    if (!power && group_ != whole) {
      refuse(name, ": the attribute block_size is ", group_, " and must be 16, 32, 64, 128, 256 or ", whole,
             ", which is all of K = ", K_);
    }
    groups_ = (K_ + group_ - 1) / group_;
    const std::unique_ptr<Tensor> scales = creation.constant(3);
    if (std::is_same_v<T, Half> && scales != nullptr) {
      check_shape("b_scale", scales->shape, {N_, groups_});
      const Floats wide(scales->as<T>(), N_ * groups_);
      scales_.assign(wide.data(), wide.data() + N_ * groups_);
    }
  }

  void run(const Run& run) const {
    const Tensor a = run.input(0), a_scale = run.input(1), b = run.input(2), b_scale = run.input(3);
    if (a.shape.empty() || a.shape.back() != K_) {
      refuse(name, ": A has the shape ", written(a.shape), " and must have K = ", K_, " channels");
    }
    Shape shape = a.shape;
    shape.back() = 1;
    check_shape("a_scale", a_scale.shape, shape);
    check_shape("B", b.shape, {N_, groups_, group_ / 2});
    check_shape("b_scale", b_scale.shape, {N_, groups_});
    shape.back() = N_;
    T* const y = static_cast<T*>(run.output(0, shape));
    const int64_t rows = a.rows();
    if (rows == 0) return;

    const Floats scales(a_scale.as<T>(), rows);
    if (scales_.empty()) {
      const Floats wide(b_scale.as<T>(), N_ * groups_);
      multiply_rows(run, b, wide.data(), a.as<int8_t>(), scales.data(), rows, y);
    } else {
      multiply_rows(run, b, scales_.data(), a.as<int8_t>(), scales.data(), rows, y);
    }
  }

 private:
  static void check_shape(const char* input, const Shape& shape, const Shape& wanted) {
    if (shape == wanted) return;
    refuse(name, ": the input ", input, " has the shape ", written(shape), " and must be ", written(wanted));
  }

  void multiply_rows(const Run& run, const Tensor& b, const float* scales, const int8_t* a, const float* a_scale,
                     int64_t rows, T* y) const {
    const Product product{K_, N_, group_, b.as<uint8_t>(), scales};
    const double cost = static_cast<double>(rows) * static_cast<double>(K_) / 16;
    if constexpr (std::is_same_v<T, float>) {
      run.parallel(N_, cost, COLUMNS, [&](int64_t first, int64_t last) {
        multiply(product, a, a_scale, rows, first, last, y);
      });
    } else {
      const std::unique_ptr<float[]> wide(new float[rows * N_]);
      run.parallel(N_, cost, COLUMNS, [&](int64_t first, int64_t last) {
        multiply(product, a, a_scale, rows, first, last, wide.get());
        for (int64_t row = 0; row < rows; ++row) {
          transform_kernels().narrow(wide.get() + row * N_ + first, last - first, y + row * N_ + first);
        }
      });
    }
  }

  static constexpr int64_t COLUMNS = 128;  // of a range, at least: multiply() rearranges A once for each

  int64_t K_, N_, group_, groups_ = 0;
  std::vector<float> scales_;  // b_scale, where it is constant and has to be converted
};

}  // namespace

std::vector<const OrtCustomOp*> quantized_ops() {
  static const Op<DynamicQuantize<float>> quantize;
  static const Op<DynamicQuantize<Half>> quantize_half;
  static const Op<QuantizedMatMul<float>> product;
  static const Op<QuantizedMatMul<Half>> product_half;
  return {&quantize, &quantize_half, &product, &product_half};
}

}  // namespace catonnx
