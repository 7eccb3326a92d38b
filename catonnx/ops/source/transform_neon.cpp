// Every aarch64 has NEON, so no flag of the compiler tells this file from the portable one.
#define CATONNX_NEON
#include "transform_kernels.h"

namespace catonnx {

const TransformKernels neon_transforms = kernels_here;

}  // namespace catonnx
