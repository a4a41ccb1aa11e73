#include "short_attention/short_attention_bwd.cuh"

namespace lgfast {
template const char* launch_short_attention_bwd<bf16, 64>(const ShortAttentionBwdParams&, void*);
}
