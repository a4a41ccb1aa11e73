// feature_mse for every element type.
#include "feature_mse/feature_mse.cuh"

namespace lgfast {

template const char* launch_feature_mse_fwd<float>(const FeatureMseParams&, void*);
template const char* launch_feature_mse_fwd<double>(const FeatureMseParams&, void*);
template const char* launch_feature_mse_fwd<fp16>(const FeatureMseParams&, void*);
template const char* launch_feature_mse_fwd<bf16>(const FeatureMseParams&, void*);

template const char* launch_feature_mse_bwd<float>(const void*, const void*, void*, int64_t, double, void*);
template const char* launch_feature_mse_bwd<double>(const void*, const void*, void*, int64_t, double, void*);
template const char* launch_feature_mse_bwd<fp16>(const void*, const void*, void*, int64_t, double, void*);
template const char* launch_feature_mse_bwd<bf16>(const void*, const void*, void*, int64_t, double, void*);

}  // namespace lgfast
