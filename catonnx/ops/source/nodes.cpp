// SharedTransform, BlockTransform and KroneckerTransform: what their inputs must be, and rows for the thread pool.
#include "nodes_transform.h"

#include "memory.h"
#include "nodes.h"

namespace catonnx {

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
  const bool stay = std::is_same_v<T, float>;  // NodeTransform::view() knows them
  return Transform::blocks(channels, factors.data(), scale.shape[0], first.data(), number, shape.back(), stay);
}

template Transform prepare<float>(Form, const char*, const char*, int64_t, const Tensor&, const Tensor* const*);
template Transform prepare<Half>(Form, const char*, const char*, int64_t, const Tensor&, const Tensor* const*);

double cost(const TransformView& view) {
  const double mixed = view.hadamard ? 1.0 : static_cast<double>(view.inner) / 4;
  const double outer = view.kind == Outer::none ? 0.0 : view.kind == Outer::dense ? static_cast<double>(view.outer) / 4 : 1.0;
  return static_cast<double>(view.channels) * (1.0 + mixed + outer);
}

namespace {

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
  static constexpr auto inputs = transform_inputs<T, form>();
  static constexpr ONNXTensorElementDataType outputs[] = {type<T>};
  static constexpr bool in_place = true;

  static void infer(const Inference& inference) { inference.like_input(0, inference.type(0), -1); }

  explicit TransformKernel(const Creation& creation) : kernels_(transform_kernels(isa())), transform_(name, creation) {}

  void run(const Run& run) {
    const Tensor x = run.input(0);
    const std::shared_ptr<const Transform> transform = transform_.of(run, x);
    T* const y = static_cast<T*>(run.output(0, x.shape));
    if (count(x.shape) == 0) return;
    const TransformView view = transform_.view(run, *transform);
    const auto rows = rows_kernel<T>(kernels_);
    const T* const from = x.as<T>();
    // Where every run has a matrix of its own, each is fetched once for all rows of a part.
    const int64_t step = view.per_run ? 8 * MOST_TILE_ROWS : 1;
    run.parallel(x.rows(), cost(view), step, [&](int64_t first, int64_t last) {
      const Lent scratch(scratch_floats(view) * sizeof(float));
      const int64_t at = first * view.channels;
      rows(view, from + at, last - first, scratch.as<float>(), y + at);
    });
  }

 private:
  const TransformKernels& kernels_;
  NodeTransform<T, form> transform_;
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
