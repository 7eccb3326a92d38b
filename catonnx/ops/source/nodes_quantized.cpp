// DynamicQuantize and QuantizedMatMul: what their inputs and attributes must be, and ranges for the thread pool.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "nodes.h"
#include "nodes_quantize.h"
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
  static constexpr const auto& outputs = quantized_outputs;
  static constexpr bool in_place = false;

  static void infer(const Inference& inference) { infer_quantized_rows(inference); }

  explicit DynamicQuantize(const Creation& creation) : grid_(name, creation) {}

  void run(const Run& run) const {
    const Tensor x = run.input(0);
    if (x.shape.empty()) refuse(name, ": X is a scalar and must have an axis of channels");
    const int64_t channels = x.shape.back();
    const QuantizedRows y(run, x.shape);
    run.parallel(x.rows(), static_cast<double>(channels), 1, [&](int64_t first, int64_t last) {
      rows(x.as<T>() + first * channels, last - first, channels, y.codes + first * channels, y.scales + first);
    });
  }

 private:
  void rows(const float* x, int64_t rows, int64_t channels, int8_t* codes, float* scales) const {
    grid_.rows(x, rows, channels, codes, scales);
  }

  void rows(const Half* x, int64_t rows, int64_t channels, int8_t* codes, float* scales) const {
    const TransformKernels& kernels = transform_kernels(grid_.isa);
    const std::unique_ptr<float[]> wide(new float[std::max<int64_t>(channels, 1)]);
    for (int64_t row = 0; row < rows; ++row) {
      kernels.widen(x + row * channels, channels, wide.get());
      grid_.rows(wide.get(), 1, channels, codes + row * channels, scales + row);
    }
  }

  Grid grid_;
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
    product_ = {K_, N_, group_, nullptr, nullptr};
    const std::unique_ptr<Tensor> scales = creation.constant(3);
    if (scales == nullptr) return;
    check_scales(*scales);
    const Floats wide(scales->as<T>(), N_ * groups_);
    if (groups_ > 1 && groups_ * group_ == whole && are_of_channels(wide.data())) {
      product_.group = whole;  // the sums of all groups are one, in whole numbers
      for (int64_t n = 0; n < N_; ++n) scales_.push_back(wide.data()[n * groups_]);
    } else if (std::is_same_v<T, Half>) {
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
    check_scales(b_scale);
    shape.back() = N_;
    T* const y = static_cast<T*>(run.output(0, shape));
    const int64_t rows = a.rows();
    if (rows == 0) return;

    const float* const scales = a_scale.as<float>();
    if (scales_.empty()) {
      const Floats wide(b_scale.as<T>(), N_ * groups_);
      multiply_rows(run, b, wide.data(), a.as<int8_t>(), scales, rows, y);
    } else {
      multiply_rows(run, b, scales_.data(), a.as<int8_t>(), scales, rows, y);
    }
  }

 private:
  static void check_shape(const char* input, const Shape& shape, const Shape& wanted) {
    if (shape == wanted) return;
    refuse(name, ": the input ", input, " has the shape ", written(shape), " and must be ", written(wanted));
  }

  void check_scales(const Tensor& scales) const {
    if (count(scales.shape) == N_ * groups_ && scales.shape.size() <= 2) return;
    refuse(name, ": the input b_scale has the shape ", written(scales.shape), " and must be ",
           written({N_ * groups_}), " or ", written({N_, groups_}));
  }

  // Whether all groups of a column have the same scale.
  bool are_of_channels(const float* scales) const {
    for (int64_t n = 0; n < N_; ++n) {
      for (int64_t g = 1; g < groups_; ++g) {
        if (scales[n * groups_ + g] != scales[n * groups_]) return false;
      }
    }
    return true;
  }

  void multiply_rows(const Run& run, const Tensor& b, const float* scales, const int8_t* a, const float* a_scale,
                     int64_t rows, T* y) const {
    Product product = product_;
    product.codes = b.as<uint8_t>();
    product.scales = scales;
    const double cost = static_cast<double>(rows) * static_cast<double>(K_) / 16;
    if constexpr (std::is_same_v<T, float>) {
      run.parallel(N_, cost, COLUMNS, [&](int64_t first, int64_t last) {
        multiply(isa_, product, a, a_scale, rows, first, last, y + first, N_);
      });
    } else {
      const TransformKernels& kernels = transform_kernels(isa_);
      run.parallel(N_, cost, COLUMNS, [&](int64_t first, int64_t last) {
        const int64_t width = last - first;
        const std::unique_ptr<float[]> wide(new float[std::min(rows, WIDE_ROWS) * width]);
        for (int64_t row = 0; row < rows; row += WIDE_ROWS) {
          const int64_t some = std::min(rows - row, WIDE_ROWS);
          multiply(isa_, product, a + row * K_, a_scale + row, some, first, last, wide.get(), width);
          for (int64_t i = 0; i < some; ++i) kernels.narrow(wide.get() + i * width, width, y + (row + i) * N_ + first);
        }
      });
    }
  }

  static constexpr int64_t COLUMNS = 128;  // of a range, at least: multiply() rearranges A once for each
  static constexpr int64_t WIDE_ROWS = 1024;  // that are computed in float32 before they become float16

  const Isa isa_ = isa();
  int64_t K_, N_, group_, groups_ = 0;
  Product product_;            // without codes and scales
  std::vector<float> scales_;  // b_scale, where it is constant and is not taken as it is
};

}  // namespace

Grid::Grid(const char* op, const Creation& creation)
    : bits(static_cast<int>(creation.integer(op, "bits"))), clip(creation.number(op, "clip", 1.0f)) {
  if (bits != 4 && bits != 8) refuse(op, ": the attribute bits is ", bits, " and must be 4 or 8");
  if (!std::isfinite(clip) || clip <= 0) refuse(op, ": the attribute clip is ", clip, " and must be positive");
}

void Grid::rows(const float* x, int64_t rows, int64_t channels, int8_t* codes, float* scales) const {
  quantize_rows(isa, x, rows, channels, bits, clip, codes, scales);
}

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
