// SharedTransform, BlockTransform and KroneckerTransform: what their inputs must be, and rows for the thread pool.
#include "nodes.h"
#include "operands.h"

#include <array>
#include <mutex>
#include <type_traits>

namespace catonnx {
namespace {

// `matrices` are the inputs behind the scale: one, or two for Kronecker. `who` told how many channels there are.
template <class T>
Transform prepare(Form form, const char* op, const char* who, int64_t channels, const Tensor& scale,
                  const Tensor* const* matrices) {
  const Shape& shape = matrices[0]->shape;
  const Shape& other = form == Form::kronecker ? matrices[1]->shape : shape;
  check_transform(form, op, who, channels, scale.shape, shape, other);
  const Floats factors(scale.as<T>(), count(scale.shape));
  const Floats first(matrices[0]->as<T>(), count(shape));
  if (form == Form::kronecker) {
    const Floats second(matrices[1]->as<T>(), count(other));
    return Transform::kronecker(channels, factors.data(), scale.shape[0], first.data(), shape[0], second.data(),
                                other[0]);
  }
  const int64_t number = form == Form::blocks ? shape[0] : 1;
  return Transform::blocks(channels, factors.data(), scale.shape[0], first.data(), number, shape.back());
}

// Roughly the operations of a row, in vectors.
double cost(const TransformView& view) {
  const double mixed = view.hadamard ? 1.0 : static_cast<double>(view.inner) / 4;
  const double outer = view.first == nullptr ? 0.0 : static_cast<double>(view.outer) / 4;
  return static_cast<double>(view.channels) * (1.0 + mixed + outer);
}

template <class T>
auto rows_kernel(const TransformKernels& kernels) {
  if constexpr (std::is_same_v<T, Half>) {
    return kernels.half_rows;
  } else {
    return kernels.rows;
  }
}

template <class T, Form form>
class TransformKernel {
 public:
  static constexpr const char* name = name_of(form);
  static constexpr size_t matrices = form == Form::kronecker ? 2 : 1;
  static constexpr std::array<ONNXTensorElementDataType, 2 + matrices> inputs = [] {
    std::array<ONNXTensorElementDataType, 2 + matrices> types{};
    for (auto& one : types) one = type<T>;
    return types;
  }();
  static constexpr ONNXTensorElementDataType outputs[] = {type<T>};
  static constexpr bool in_place = true;

  static void infer(const Inference& inference) { inference.like_input(0, inference.type(0), -1); }

  explicit TransformKernel(const Creation& creation) : kernels_(transform_kernels()) {
    const std::unique_ptr<Tensor> scale = creation.constant(1);
    std::unique_ptr<Tensor> held[matrices];
    const Tensor* found[matrices];
    constant_ = scale != nullptr;
    for (size_t i = 0; i < matrices; ++i) {
      held[i] = creation.constant(2 + i);
      found[i] = held[i].get();
      constant_ = constant_ && found[i] != nullptr;
    }
    // One scale for all does not tell how many channels there are: then the first run prepares.
    if (constant_ && scale->shape.size() == 1 && scale->shape[0] > 1) {
      prepared_ = made("scale", scale->shape[0], *scale, found);
    }
  }

  void run(const Run& run) {
    const Tensor x = run.input(0);
    check_channels(name, x.shape);
    const int64_t channels = x.shape.back();
    const std::shared_ptr<const Transform> transform = for_channels(run, channels);
    T* const y = static_cast<T*>(run.output(0, x.shape));
    if (count(x.shape) == 0) return;
    const TransformView view = transform->view();
    const auto rows = rows_kernel<T>(kernels_);
    const T* const from = x.as<T>();
    // Where every run has a matrix of its own, each is fetched once for all rows of a part.
    const int64_t step = view.per_run ? 8 * MOST_TILE_ROWS : 1;
    run.parallel(x.rows(), cost(view), step, [&](int64_t first, int64_t last) {
      const std::unique_ptr<float[]> scratch(new float[scratch_floats(view)]);
      rows(view, from + first * channels, last - first, scratch.get(), y + first * channels);
    });
  }

 private:
  using Prepared = std::shared_ptr<const Transform>;

  static Prepared made(const char* who, int64_t channels, const Tensor& scale, const Tensor* const* found) {
    return std::make_shared<const Transform>(prepare<T>(form, name, who, channels, scale, found));
  }

  static Prepared made(const Run& run, int64_t channels) {
    const Tensor scale = run.input(1), first = run.input(2), last = run.input(1 + matrices);
    const Tensor* const found[] = {&first, &last};
    return made("X", channels, scale, found);
  }

  Prepared for_channels(const Run& run, int64_t channels) {
    if (!constant_) return made(run, channels);
    const std::unique_lock<std::mutex> lock(preparing_);  // a session may be run by several threads
    if (prepared_ == nullptr || prepared_->view().channels != channels) prepared_ = made(run, channels);
    return prepared_;
  }

  const TransformKernels& kernels_;
  bool constant_;
  std::mutex preparing_;
  Prepared prepared_;
};

}  // namespace

std::vector<const OrtCustomOp*> transform_ops() {
  static const Op<TransformKernel<float, Form::shared>> shared;
  static const Op<TransformKernel<Half, Form::shared>> shared_half;
  static const Op<TransformKernel<float, Form::blocks>> blocks;
  static const Op<TransformKernel<Half, Form::blocks>> blocks_half;
  static const Op<TransformKernel<float, Form::kronecker>> kronecker;
  static const Op<TransformKernel<Half, Form::kronecker>> kronecker_half;
  return {&shared, &shared_half, &blocks, &blocks_half, &kronecker, &kronecker_half};
}

}  // namespace catonnx
