// Products of warpgroups on the GPU, instructions of sm_90a. See ../device.cuh for the contract.
#pragma once

namespace lgfast {

// Whether the code is compiled for a GPU that has them.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
constexpr bool kHasWarpgroups = true;
#else
constexpr bool kHasWarpgroups = false;
#endif

__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{.reg .pred ended; again: mbarrier.try_wait.parity.shared.b64 ended, [%0], %1; @!ended bra again;}" ::"r"(
          barrier),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending, int kBlocks>
__device__ __forceinline__ void warpgroup_wait(float (&sums)[kBlocks][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#pragma unroll
  for (int i = 0; i < 4 * kBlocks; ++i) asm volatile("" : "+f"(sums[i / 4][i % 4])::"memory");  // not read before
}

template <int kCount>
__device__ __forceinline__ void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

__device__ __forceinline__ void stmatrix_x4(uint32_t row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
}
__device__ __forceinline__ void stmatrix_x2_trans(uint32_t row, uint32_t r0, uint32_t r1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(row), "r"(r0), "r"(r1)
               : "memory");
}
__device__ __forceinline__ void stmatrix_x4_trans(uint32_t row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// Text of the instructions. Operands: the sums of each block of eight columns, then the others.
#define LGFAST_SUMS_8(s) LGFAST_SUMS_4(s, 0), LGFAST_SUMS_4(s, 4)
#define LGFAST_SUMS_13(s) LGFAST_SUMS_8(s), LGFAST_SUMS_4(s, 8), LGFAST_SUMS_1(s, 12)
#define LGFAST_SUMS_4(s, j) \
  LGFAST_SUMS_1(s, j), LGFAST_SUMS_1(s, j + 1), LGFAST_SUMS_1(s, j + 2), LGFAST_SUMS_1(s, j + 3)
#define LGFAST_SUMS_2(s, j) LGFAST_SUMS_1(s, j), LGFAST_SUMS_1(s, j + 1)
#define LGFAST_SUMS_1(s, j) "+f"(s[j][0]), "+f"(s[j][1]), "+f"(s[j][2]), "+f"(s[j][3])

template <typename T, int kBlocks>
__device__ __forceinline__ void warpgroup_abt(float (&sums)[kBlocks][4], uint64_t a, uint64_t b, bool adds);
template <typename T>
__device__ __forceinline__ void warpgroup_ab(float (&sums)[8][4], const uint32_t (&a)[4], uint64_t b, bool adds);

template <typename T, int kBlocks>
__device__ __forceinline__ void warpgroup_atbt(float (&sums)[kBlocks][4], uint64_t a, uint64_t b, bool adds);

template <>
__device__ __forceinline__ void warpgroup_abt<bf16>(float (&sums)[13][4], uint64_t a, uint64_t b, bool adds) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %54, 0; wgmma.mma_async.sync.aligned.m64n104k16.f32.bf16.bf16 {%0, "
      "%1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, "
      "%41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51}, %52, %53, p, 1, 1, 0, 0;} "
      : LGFAST_SUMS_13(sums)
      : "l"(a), "l"(b), "r"(int(adds)));
}

template <>
__device__ __forceinline__ void warpgroup_ab<bf16>(float (&sums)[8][4], const uint32_t (&a)[4], uint64_t b, bool adds) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, "
      "%1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;} "
      : LGFAST_SUMS_8(sums)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(adds)));
}

template <>
__device__ __forceinline__ void warpgroup_abt<fp16>(float (&sums)[13][4], uint64_t a, uint64_t b, bool adds) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %54, 0; wgmma.mma_async.sync.aligned.m64n104k16.f32.f16.f16 {%0, "
      "%1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, "
      "%41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51}, %52, %53, p, 1, 1, 0, 0;} "
      : LGFAST_SUMS_13(sums)
      : "l"(a), "l"(b), "r"(int(adds)));
}

template <>
__device__ __forceinline__ void warpgroup_ab<fp16>(float (&sums)[8][4], const uint32_t (&a)[4], uint64_t b, bool adds) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, "
      "%1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;} "
      : LGFAST_SUMS_8(sums)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(adds)));
}

// Products of two matrices in shared memory whose result has eight columns. `order`: of a, then of b, "1" where its
// rows are the depth.
#define LGFAST_PRODUCT_8(function, T, type, order)                                                               \
  template <>                                                                                                    \
  __device__ __forceinline__ void function<T>(float (&sums)[1][4], uint64_t a, uint64_t b, bool adds) {          \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %6, 0; wgmma.mma_async.sync.aligned.m64n8k16.f32." type "." type \
                 " {%0, %1, %2, %3}, %4, %5, p, 1, 1, " order ";} "                                              \
                 : LGFAST_SUMS_1(sums, 0)                                                                        \
                 : "l"(a), "l"(b), "r"(int(adds)));                                                              \
  }

LGFAST_PRODUCT_8(warpgroup_abt, bf16, "bf16", "0, 0")
LGFAST_PRODUCT_8(warpgroup_abt, fp16, "f16", "0, 0")
LGFAST_PRODUCT_8(warpgroup_atbt, bf16, "bf16", "1, 0")
LGFAST_PRODUCT_8(warpgroup_atbt, fp16, "f16", "1, 0")

// The same with 8 `blocks` columns. The last three: the numbers of the operands a, b and adds.
#define LGFAST_WORDS_12                                                                                  \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "     \
  "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, " \
  "%41, %42, %43, %44, %45, %46, %47}"
#define LGFAST_WORDS_14                                                                                  \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "     \
  "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, " \
  "%41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55}"
#define LGFAST_ALL_12(s) LGFAST_SUMS_8(s), LGFAST_SUMS_4(s, 8)
#define LGFAST_ALL_14(s) LGFAST_ALL_12(s), LGFAST_SUMS_2(s, 12)
#define LGFAST_PRODUCT(function, T, type, order, blocks, columns, a_number, b_number, adds_number)                  \
  template <>                                                                                                       \
  __device__ __forceinline__ void function<T>(float (&sums)[blocks][4], uint64_t a, uint64_t b, bool adds) {        \
    asm volatile("{.reg .pred p; setp.ne.b32 p, " adds_number ", 0; wgmma.mma_async.sync.aligned.m64n" columns      \
                 "k16.f32." type "." type " " LGFAST_WORDS_##blocks ", " a_number ", " b_number ", p, 1, 1, " order \
                                                                    ";} "                                           \
                 : LGFAST_ALL_##blocks(sums)                                                                        \
                 : "l"(a), "l"(b), "r"(int(adds)));                                                                 \
  }
#define LGFAST_PRODUCTS(T, type)                                                 \
  LGFAST_PRODUCT(warpgroup_abt, T, type, "0, 0", 12, "96", "%48", "%49", "%50")  \
  LGFAST_PRODUCT(warpgroup_abt, T, type, "0, 0", 14, "112", "%56", "%57", "%58") \
  LGFAST_PRODUCT(warpgroup_atbt, T, type, "1, 0", 12, "96", "%48", "%49", "%50") \
  LGFAST_PRODUCT(warpgroup_atbt, T, type, "1, 0", 14, "112", "%56", "%57", "%58")

LGFAST_PRODUCTS(bf16, "bf16")
LGFAST_PRODUCTS(fp16, "f16")

}  // namespace lgfast
