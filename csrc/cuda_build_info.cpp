// Tells what lgfast._cuda was built with. It may come from another build than lgfast._C.
#define LGFAST_EXPORT extern "C" __attribute__((visibility("default")))

LGFAST_EXPORT const char* lgfast_cuda_compiler() { return LGFAST_CUDA_COMPILER; }
LGFAST_EXPORT const char* lgfast_cuda_archs() { return LGFAST_CUDA_ARCHS; }
