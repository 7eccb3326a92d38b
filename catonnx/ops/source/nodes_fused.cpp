// A transform and DynamicQuantize in one: what lies between stays in the caches of the processor.
#include <algorithm>

#include "memory.h"
#include "nodes.h"
#include "nodes_quantize.h"
#include "nodes_transform.h"
#include "quantize.h"

namespace catonnx {
namespace {

template <class T, Form form>
class TransformQuantize {
 public:
  static constexpr const char* name = quantized_name_of(form);
  static constexpr auto inputs = transform_inputs<T, form>();
  static constexpr const auto& outputs = quantized_outputs;
  static constexpr bool in_place = false;

  static void infer(const Inference& inference) { infer_quantized_rows(inference); }

  explicit TransformQuantize(const Creation& creation)
      : rounding_(creation, name), kernels_(transform_kernels(isa())), transform_(name, creation) {}

  void run(const Run& run) {
    const Tensor x = run.input(0);
    const std::shared_ptr<const Transform> transform = transform_.of(run, x);
    const QuantizedRows y(run, x.shape);
    const TransformView view = transform_.view(run, *transform);
    // Where every run has a matrix of its own, each is fetched once for several rows.
    const int64_t step = view.per_run ? 2 * MOST_TILE_ROWS : 1;
    run.parallel(x.rows(), cost(view) + static_cast<double>(view.channels), step, [&](int64_t first, int64_t last) {
      const int64_t most = std::min(step, last - first);
      const Lent memory((scratch_floats(view) + most * view.channels) * sizeof(float));
      float* const scratch = memory.as<float>();
      float* const between = scratch + scratch_floats(view);
      for (int64_t row = first; row < last; row += step) {
        const int64_t rows = std::min(step, last - row), at = row * view.channels;
        transform_rows(view, x.as<T>() + at, rows, scratch, between);
        quantize_rows(isa_, between, rows, view.channels, rounding_.bits, rounding_.clip, y.codes + at, y.scales + row);
      }
    });
  }

 private:
  void transform_rows(const TransformView& view, const float* x, int64_t rows, float* scratch, float* y) const {
    kernels_.rows(view, x, rows, scratch, y);
  }

  void transform_rows(const TransformView& view, const Half* x, int64_t rows, float* scratch, float* y) const {
    kernels_.widen(x, rows * view.channels, y);
    kernels_.rows(view, y, rows, scratch, y);
  }

  Rounding rounding_;
  const Isa isa_ = isa();
  const TransformKernels& kernels_;
  NodeTransform<T, form> transform_;
};

}  // namespace

std::vector<const OrtCustomOp*> fused_ops() {
  static const Op<TransformQuantize<float, Form::shared>> shared;
  static const Op<TransformQuantize<Half, Form::shared>> shared_half;
  static const Op<TransformQuantize<float, Form::blocks>> blocks;
  static const Op<TransformQuantize<Half, Form::blocks>> blocks_half;
  static const Op<TransformQuantize<float, Form::kronecker>> kronecker;
  static const Op<TransformQuantize<Half, Form::kronecker>> kronecker_half;
  return {&shared, &shared_half, &blocks, &blocks_half, &kronecker, &kronecker_half};
}

}  // namespace catonnx
