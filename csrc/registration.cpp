// Defines every op schema. Each op registers its kernels beside their code in csrc/<op>/.
#include <torch/csrc/stable/library.h>

namespace {
constexpr const char* kSchemas[] = {
#include "schemas.inc"
};
}  // namespace

STABLE_TORCH_LIBRARY(lgfast, m) {
  for (const char* schema : kSchemas) m.def(schema);
}
