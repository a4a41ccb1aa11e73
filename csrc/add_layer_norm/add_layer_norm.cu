// add_layer_norm for every element type.
#include "add_layer_norm/add_layer_norm.cuh"

namespace lgfast {

template const char* launch_add_layer_norm_fwd<float>(const AddLayerNormFwdParams&, void*);
template const char* launch_add_layer_norm_fwd<bf16>(const AddLayerNormFwdParams&, void*);
template const char* launch_add_layer_norm_fwd<fp16>(const AddLayerNormFwdParams&, void*);

template const char* launch_add_layer_norm_bwd<float>(const AddLayerNormBwdParams&, void*);
template const char* launch_add_layer_norm_bwd<bf16>(const AddLayerNormBwdParams&, void*);
template const char* launch_add_layer_norm_bwd<fp16>(const AddLayerNormBwdParams&, void*);

}  // namespace lgfast
