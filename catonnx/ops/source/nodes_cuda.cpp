// Our operators on CUDA, as ONNX Runtime sees them: they work in the session's stream, allocate nothing but scratch of ONNX
// Runtime's, and wait for nothing, so that a CUDA graph can capture them.
//
// Which matrices are Sylvester's is found out when a kernel is created, of constants: they are on the device by then, and are
// read back once. A matrix that is no constant is taken as any other.
#include <array>
#include <type_traits>

#include "nodes.h"
#include "operands.h"
#include "product_cuda.h"
#include "transform_cuda.h"

namespace catonnx {
namespace {

constexpr ONNXTensorElementDataType INT8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, FLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                    UINT8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;

void check(const char* op, Problem problem) {
  if (problem != nullptr) refuse(op, ": CUDA refuses it: ", problem);
}

// The numbers of a constant input, as floats; none if it is not known yet.
template <class T>
std::vector<float> constant_numbers(const Creation& creation, const char* op, size_t input, Shape* shape) {
  const std::unique_ptr<Tensor> tensor = creation.constant(input);
  if (tensor == nullptr) return {};
  *shape = tensor->shape;
  const int64_t number = count(tensor->shape);
  std::vector<T> copy(number);
  const T* numbers = tensor->as<T>();
  if (!tensor->on_cpu()) {
    check(op, copy_to_host(tensor->data, number * static_cast<int64_t>(sizeof(T)), copy.data()));
    numbers = copy.data();
  }
  const Floats wide(numbers, number);
  return {wide.data(), wide.data() + number};
}

// The c of a constant [size, size] or [1, size, size] that is c times Sylvester's matrix; 0 if it is none such.
float hadamard_factor(const std::vector<float>& matrix, const Shape& shape) {
  if (matrix.empty() || shape.empty() || shape.back() > WIDEST_HADAMARD) return 0.0f;
  const int64_t size = shape.back();
  return static_cast<int64_t>(matrix.size()) == size * size ? sylvester_factor(matrix.data(), size) : 0.0f;
}

void check_device(const char* op) {
  const int capability = compute_capability();
  if (capability >= 80) return;
  refuse(op, ": the GPU has compute capability ", capability / 10, ".", capability % 10,
         ", and our operators need 8.0 or more; open the model without the library of catonnx's operators");
}

Shape one_each(Shape shape) {
  shape.back() = 1;
  return shape;
}

template <class T, Form form, bool quantized>
class CudaTransformKernel {
 public:
  static const char* const name;
  static constexpr size_t matrices = form == Form::kronecker ? 2 : 1;
  static constexpr std::array<ONNXTensorElementDataType, 2 + matrices> inputs = [] {
    std::array<ONNXTensorElementDataType, 2 + matrices> types{};
    for (auto& one : types) one = type<T>;
    return types;
  }();
  static constexpr auto outputs = [] {
    if constexpr (quantized) {
      return std::array{INT8, FLOAT};
    } else {
      return std::array{type<T>};
    }
  }();
  static constexpr bool in_place = false;  // blocks read what others have written

  static void infer(const Inference& inference) {
    inference.like_input(0, quantized ? INT8 : inference.type(0), -1);
    if (quantized) inference.like_input(1, FLOAT, 1);
  }

  explicit CudaTransformKernel(const Creation& creation) {
    check_device(name);
    if constexpr (quantized) rounding_ = std::make_unique<Rounding>(creation, name);
    Shape shape;
    const std::vector<float> matrix = constant_numbers<T>(creation, name, 1 + matrices, &shape);
    const float factor = hadamard_factor(matrix, shape);
    if (factor == 0.0f) return;
    hadamard_ = true;
    factor_ = factor;
    if (form != Form::kronecker) return;
    Shape side;
    const std::vector<float> first = constant_numbers<T>(creation, name, 2, &side);
    if (first.empty() || side.size() != 2 || side[0] != side[1]) return;
    step_ = sylvester_part(first.data(), side[0], WIDEST_HADAMARD / shape.back());
    if (step_ == side[0]) factor_ *= first[0];
  }

  void run(const Run& run) const {
    const Tensor x = run.input(0), scale = run.input(1), first = run.input(2), last = run.input(1 + matrices);
    check_channels(name, x.shape);
    const int64_t channels = x.shape.back(), rows = x.rows();
    check_transform(form, name, "X", channels, scale.shape, first.shape, last.shape);
    CudaTransform<T> transform = {};
    transform.channels = channels;
    transform.inner = last.shape.back() * step_;
    transform.outer = transform.side = 1;
    transform.step = step_;
    if (form == Form::kronecker) {
      transform.outer = first.shape[0] / step_;
      transform.side = first.shape[0];
      transform.first = first.as<T>();
    }
    transform.hadamard = hadamard_;
    transform.per_run = form == Form::blocks && last.shape[0] > 1;
    transform.factor = factor_;
    transform.scale = scale.as<T>();
    transform.one_scale = scale.shape[0] == 1;
    transform.matrix = last.as<T>();
    if constexpr (quantized) {
      const Codes codes = {rounding_->bits, rounding_->clip, static_cast<int8_t*>(run.output(0, x.shape)),
                           static_cast<float*>(run.output(1, one_each(x.shape)))};
      const Scratch scratch = scratch_for(run, x, transform, rows);
      check(name, transform_quantize(transform, x.as<T>(), rows, static_cast<float*>(scratch.data()), codes,
                                     static_cast<Stream>(run.stream())));
    } else {
      T* const y = static_cast<T*>(run.output(0, x.shape));
      const Scratch scratch = scratch_for(run, x, transform, rows);
      check(name, catonnx::transform(transform, x.as<T>(), rows, static_cast<float*>(scratch.data()), y,
                                     static_cast<Stream>(run.stream())));
    }
  }

 private:
  static Scratch scratch_for(const Run& run, const Tensor& x, const CudaTransform<T>& transform, int64_t rows) {
    return Scratch(run, x, transform_scratch(transform, rows, quantized) * static_cast<int64_t>(sizeof(float)));
  }

  bool hadamard_ = false;
  float factor_ = 1.0f;
  int64_t step_ = 1;  // order of the Hadamard matrix in `first` that joins `second`
  std::unique_ptr<Rounding> rounding_;
};

template <class T, Form form, bool quantized>
const char* const CudaTransformKernel<T, form, quantized>::name = quantized ? quantized_name_of(form) : name_of(form);

template <class T>
class CudaQuantize {
 public:
  static constexpr const char* name = "DynamicQuantize";
  static constexpr ONNXTensorElementDataType inputs[] = {type<T>};
  static constexpr ONNXTensorElementDataType outputs[] = {INT8, FLOAT};
  static constexpr bool in_place = false;

  static void infer(const Inference& inference) {
    inference.like_input(0, INT8, -1);
    inference.like_input(1, FLOAT, 1);
  }

  explicit CudaQuantize(const Creation& creation) : rounding_(creation, name) { check_device(name); }

  void run(const Run& run) const {
    const Tensor x = run.input(0);
    check_channels(name, x.shape);
    const Codes codes = {rounding_.bits, rounding_.clip, static_cast<int8_t*>(run.output(0, x.shape)),
                         static_cast<float*>(run.output(1, one_each(x.shape)))};
    check(name, quantize(x.as<T>(), x.rows(), x.shape.back(), codes, static_cast<Stream>(run.stream())));
  }

 private:
  Rounding rounding_;
};

template <class T>
class CudaMatMul {
 public:
  static constexpr const char* name = "QuantizedMatMul";
  static constexpr ONNXTensorElementDataType inputs[] = {INT8, FLOAT, UINT8, type<T>};
  static constexpr ONNXTensorElementDataType outputs[] = {type<T>};
  static constexpr bool in_place = false;

  static void infer(const Inference& inference) {
    const int64_t columns = inference.integer("N");
    if (columns > 0) inference.like_input(0, inference.type(3), columns);
  }

  explicit CudaMatMul(const Creation& creation) : shape_(creation, name) {
    check_device(name);
    Shape shape;
    const std::vector<float> scales = constant_numbers<T>(creation, name, 3, &shape);
    if (scales.empty()) return;
    shape_.check_scales(name, shape);
    channels_ = shape_.are_of_channels(scales.data());
  }

  void run(const Run& run) const {
    const Tensor a = run.input(0), a_scale = run.input(1), b = run.input(2), b_scale = run.input(3);
    const Shape shape = shape_.check(name, a.shape, a_scale.shape, b.shape, b_scale.shape);
    T* const y = static_cast<T*>(run.output(0, shape));
    const CudaProduct<T> product = {shape_.K, shape_.N, shape_.group, b.as<uint8_t>(), b_scale.as<T>(), channels_};
    check(name, multiply(product, a.as<int8_t>(), a_scale.as<float>(), a.rows(), y, static_cast<Stream>(run.stream())));
  }

 private:
  ProductShape shape_;
  bool channels_ = false;
};

template <class Kernel>
struct CudaOp : Op<Kernel> {
  CudaOp() {
    this->GetExecutionProviderType = [](const OrtCustomOp*) { return "CUDAExecutionProvider"; };
  }
};

template <class T>
void add_ops(std::vector<const OrtCustomOp*>& ops) {
  static const CudaOp<CudaTransformKernel<T, Form::shared, false>> shared;
  static const CudaOp<CudaTransformKernel<T, Form::blocks, false>> blocks;
  static const CudaOp<CudaTransformKernel<T, Form::kronecker, false>> kronecker;
  static const CudaOp<CudaTransformKernel<T, Form::shared, true>> shared_quantize;
  static const CudaOp<CudaTransformKernel<T, Form::blocks, true>> blocks_quantize;
  static const CudaOp<CudaTransformKernel<T, Form::kronecker, true>> kronecker_quantize;
  static const CudaOp<CudaQuantize<T>> quantize;
  static const CudaOp<CudaMatMul<T>> product;
  ops.insert(ops.end(), {&shared, &blocks, &kronecker, &shared_quantize, &blocks_quantize, &kronecker_quantize, &quantize,
                         &product});
}

}  // namespace

std::vector<const OrtCustomOp*> cuda_ops() {
  std::vector<const OrtCustomOp*> ops;
  add_ops<float>(ops);
  add_ops<Half>(ops);
  add_ops<Bfloat16>(ops);
  return ops;
}

}  // namespace catonnx
