// What the three transforms are made of when they are nodes: their inputs, checked, as a Transform.
#pragma once

#include <array>
#include <memory>
#include <mutex>

#include "operands.h"

namespace catonnx {

// Types of the inputs of one: X, scale and the matrices.
template <class T, Form form>
constexpr auto transform_inputs() {
  std::array<ONNXTensorElementDataType, form == Form::kronecker ? 4 : 3> types{};
  for (auto& one : types) one = type<T>;
  return types;
}

// Checks scale and matrices against each other and against `channels`, which `who` told. `matrices` are the inputs behind
// the scale: one, or two for Kronecker.
template <class T>
Transform prepare(Form form, const char* op, const char* who, int64_t channels, const Tensor& scale,
                  const Tensor* const* matrices);

// Roughly the operations of a row, in vectors.
double cost(const TransformView& view);

// The transform of one node: prepared when its kernel is created, if it is constant, or else at each run.
template <class T, Form form>
class NodeTransform {
 public:
  NodeTransform(const char* op, const Creation& creation) : op_(op) {
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

  // For the rows of x, which has an axis of channels.
  std::shared_ptr<const Transform> of(const Run& run, const Tensor& x) {
    check_channels(op_, x.shape);
    const int64_t channels = x.shape.back();
    if (!constant_) return made(run, channels);
    const std::unique_lock<std::mutex> lock(preparing_);  // a session may be run by several threads
    if (prepared_ == nullptr || prepared_->view().channels != channels) prepared_ = made(run, channels);
    return prepared_;
  }

 private:
  static constexpr size_t matrices = form == Form::kronecker ? 2 : 1;
  using Prepared = std::shared_ptr<const Transform>;

  Prepared made(const char* who, int64_t channels, const Tensor& scale, const Tensor* const* found) const {
    return std::make_shared<const Transform>(prepare<T>(form, op_, who, channels, scale, found));
  }

  Prepared made(const Run& run, int64_t channels) const {
    const Tensor scale = run.input(1), first = run.input(2), last = run.input(1 + matrices);
    const Tensor* const found[] = {&first, &last};
    return made("X", channels, scale, found);
  }

  const char* op_;
  bool constant_;
  std::mutex preparing_;
  Prepared prepared_;
};

}  // namespace catonnx
