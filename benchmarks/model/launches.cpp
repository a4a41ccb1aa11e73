// Records the launches of lgfast's kernels in bfloat16, as the operations' own planning code makes them. launches.py
// calls these functions with the memory to work on, then reads what was launched.
#include "add_layer_norm/add_layer_norm.cuh"
#include "augment/augment.cuh"
#include "bias_gelu/bias_gelu.cuh"
#include "feature_mse/feature_mse.cuh"
#include "flat_adamw/flat_adamw.cuh"
#include "short_attention/short_attention_bwd.cuh"
#include "short_attention/short_attention_fwd.cuh"

// clang-format off: the source comes after the headers
#include "augment/augment.cu"
// clang-format on

using namespace lgfast;

extern "C" {

void set_gpu(int multiprocessors, int smem_bytes, int has_wgmma) {
  recorder::has_wgmma() = has_wgmma != 0;
  recorder::multiprocessors() = multiprocessors;
  recorder::smem_limit() = smem_bytes;
  recorder::launches().clear();
}
int num_launches() { return int(recorder::launches().size()); }
const char* launch_kernel(int i) { return recorder::launches()[size_t(i)].kernel.c_str(); }
const int* launch_shape(int i) { return recorder::launches()[size_t(i)].grid; }  // x, y, z, block, shared memory
int launch_parameters(int i, const unsigned char** bytes) {
  const auto& parameters = recorder::launches()[size_t(i)].parameters;
  *bytes = parameters.data();
  return int(parameters.size());
}

// qkv [B, N, 3, H, 64], packed as the projection leaves it.
const char* attention(int batch, int tokens, int heads, void* qkv, void* out, void* dout, void* dqkv, float* lse,
                      float* dbias, int is_backward) {
  const int64_t row = int64_t{heads} * 64;
  const auto packed = [&](void* data, int part) {
    return HeadsOutput{static_cast<bf16*>(data) + part * row, tokens * 3 * row, 3 * row, 64};
  };
  const auto read = [](HeadsOutput view) {
    return HeadsInput{view.data, view.batch_stride, view.token_stride, view.head_stride};
  };
  const auto plain = [&](void* data) { return HeadsOutput{data, tokens * row, row, 64}; };
  if (is_backward == 0) {
    ShortAttentionFwdParams p{};
    p.q = read(packed(qkv, 0)), p.k = read(packed(qkv, 1)), p.v = read(packed(qkv, 2));
    p.out = plain(out), p.lse = lse;
    p.batch = batch, p.heads = heads, p.num_queries = p.num_keys = tokens, p.softmax_scale = 0.125f;
    return launch_short_attention_fwd<bf16, 64>(p, nullptr);
  }
  ShortAttentionBwdParams p{};
  p.q = read(packed(qkv, 0)), p.k = read(packed(qkv, 1)), p.v = read(packed(qkv, 2));
  p.out = read(plain(out)), p.dout = read(plain(dout)), p.lse = lse;
  p.dq = packed(dqkv, 0), p.dk = packed(dqkv, 1), p.dv = packed(dqkv, 2), p.dbias = dbias;
  p.batch = batch, p.heads = heads, p.num_queries = p.num_keys = tokens, p.softmax_scale = 0.125f;
  return launch_short_attention_bwd<bf16, 64>(p, nullptr);
}

// Three pairs of square maps, token-major students and channels-last teachers.
const char* guidance(int batch, const int* channels, const int* student_sides, const int* teacher_sides,
                     void** students, void** teachers, void** grads, double* partials, uint32_t* counter, float* weight,
                     float* loss, float* weighted) {
  FeatureMseParams params{};
  params.num_pairs = 3;
  for (int k = 0; k < 3; ++k) {
    FeatureMsePair& p = params.pairs[k];
    p.student = students[k], p.teacher = teachers[k], p.grad = grads[k];
    p.channels = channels[k];
    p.student_h = p.student_w = student_sides[k];
    p.teacher_h = p.teacher_w = teacher_sides[k];
    p.student_token_stride = p.teacher_column_stride = channels[k];
    p.student_image_stride = int64_t{student_sides[k]} * student_sides[k] * channels[k];
    p.teacher_row_stride = int64_t{teacher_sides[k]} * channels[k];
    p.teacher_image_stride = teacher_sides[k] * p.teacher_row_stride;
    complete_feature_mse_pair(p, batch, 1000.0);
  }
  if (!plan_feature_mse(params, batch, sizeof(bf16), max_smem_bytes())) return "no plan";
  params.partials = partials, params.counter = counter;
  params.scalars = {weight, loss, weighted};
  return launch_feature_mse_fwd<bf16>(params, nullptr);
}

const char* guidance_backward(void* grad, float* dloss, void* out, int64_t count) {
  return launch_feature_mse_bwd<bf16>(grad, dloss, out, count, 1.0, nullptr);
}

// Launches flat_adamw's update until all tensors have their turn, at most kFlatAdamWMaxTensors at a time. factors:
// AdamWFactors of each tensor.
const char* adamw(int num_tensors, const int* sizes, void** grads, float* params, float* m, float* v, void* low,
                  void* factors, void* control) {
  int64_t offset = 0;
  for (int first = 0; first < num_tensors; first += kFlatAdamWMaxTensors) {
    FlatAdamWParams p{};
    for (int k = first; k < num_tensors && k < first + kFlatAdamWMaxTensors; ++k) {
      p.tensors[p.num_tensors++] = {grads[k], uint32_t(offset / kFlatAdamWAlign), sizes[k]};
      offset += (sizes[k] + kFlatAdamWAlign - 1) / kFlatAdamWAlign * kFlatAdamWAlign;
    }
    p.params = params, p.exp_avg = m, p.exp_avg_sq = v, p.low = low, p.low_type = LowType::kBFloat16;
    p.control = static_cast<FlatAdamWControl*>(control);
    p.factors = static_cast<AdamWFactors*>(factors) + first;
    plan_flat_adamw(p);
    if (const char* error = launch_flat_adamw<bf16>(p, nullptr)) return error;
  }
  return nullptr;
}

const char* layer_norm(int64_t rows, int64_t rows_per_sample, int channels, void** t, int is_backward) {
  const AddLayerNormRows shape{rows, rows_per_sample, channels, t[0], t[1]};
  if (is_backward == 0)
    return launch_add_layer_norm_fwd<bf16>({shape, t[2], t[3], t[4], 1e-6, t[5], t[6], t[7], t[8]}, nullptr);
  return launch_add_layer_norm_bwd<bf16>(
      {shape, t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], static_cast<float*>(t[10])}, nullptr);
}

const char* gelu(int64_t rows, int channels, void* x, void* bias, void* dout, void* out, void* dbias, float* partials,
                 int is_backward) {
  const BiasGeluParams params{x, bias, dout, out, dbias, partials, rows, channels};
  return is_backward ? launch_bias_gelu_bwd<bf16>(params, nullptr) : launch_bias_gelu_fwd<bf16>(params, nullptr);
}

// Views from images of 32 pixels, bicubic, with the teacher's views of 32; erased with noise.
static AugmentParams params_of_views(int64_t batch, int size) {
  AugmentParams p{};
  p.batch = batch, p.image_size = size, p.teacher_size = 32;
  p.channel_stride = size * size, p.row_stride = size, p.column_stride = 1;
  p.teacher_channel_stride = 32 * 32, p.teacher_row_stride = 32, p.teacher_column_stride = 1;
  p.resample = Resample::kBicubic, p.erase_mode = EraseMode::kPixel;
  const int fill[3] = {124, 116, 104};
  const float mean[3] = {0.485f, 0.456f, 0.406f}, std[3] = {0.229f, 0.224f, 0.225f};
  for (int k = 0; k < 3; ++k) p.fill[k] = fill[k], p.mean[k] = mean[k], p.std[k] = std[k];
  return p;
}

// Bytes of global memory that they work in.
int64_t memory_of_views(int64_t batch, int size) {
  return plan_augment(params_of_views(batch, size), AugmentDtype::kBFloat16).memory_bytes();
}

const char* views(int64_t batch, int num_columns, void* pixels, int64_t* offsets, int32_t* sizes, int64_t* indices,
                  double* plan, void* images, void* teacher, void* memory) {
  AugmentParams p = params_of_views(batch, 224);
  p.pixels = static_cast<uint8_t*>(pixels), p.offsets = offsets, p.sizes = sizes, p.indices = indices, p.plan = plan;
  p.images = images, p.teacher = teacher, p.num_columns = num_columns;
  return launch_augment(p, AugmentDtype::kBFloat16, plan_augment(p, AugmentDtype::kBFloat16), memory, nullptr);
}

}  // extern "C"
