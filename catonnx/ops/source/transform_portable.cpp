#include "transform_kernels.h"

namespace catonnx {

const TransformKernels portable_transforms = kernels_here;

}  // namespace catonnx
