// bias_gelu for every element type.
#include "bias_gelu/bias_gelu.cuh"

namespace lgfast {

template const char* launch_bias_gelu_fwd<float>(const BiasGeluParams&, void*);
template const char* launch_bias_gelu_fwd<bf16>(const BiasGeluParams&, void*);
template const char* launch_bias_gelu_fwd<fp16>(const BiasGeluParams&, void*);

template const char* launch_bias_gelu_bwd<float>(const BiasGeluParams&, void*);
template const char* launch_bias_gelu_bwd<bf16>(const BiasGeluParams&, void*);
template const char* launch_bias_gelu_bwd<fp16>(const BiasGeluParams&, void*);

}  // namespace lgfast
