#include "short_attention/short_attention_fwd.cuh"

namespace lgfast {
template const char* launch_short_attention_fwd<fp16, 48>(const ShortAttentionFwdParams&, void*);
}
