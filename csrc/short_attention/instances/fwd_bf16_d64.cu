#include "short_attention/short_attention_fwd.cuh"

namespace lgfast {
template const char* launch_short_attention_fwd<bf16, 64>(const ShortAttentionFwdParams&, void*);
}
