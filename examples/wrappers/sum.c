/* A wrapper: host code that launches kernels itself. See docs/wrappers.md.
 *
 * It sums an array of any length, with as many launches as that takes. A request's own list of kernels has a fixed length.
 *
 * Loading it needs only libc: it looks up the driver's functions in the library that the process has open already, and the
 * kernel, sum.cu, is inside as PTX. */
#include <cuda.h>
#include <dlfcn.h>
#include <stdint.h>

extern const char partial_sum_ptx[] __attribute__((visibility("hidden")));
__asm__(".pushsection .rodata\n"
        "partial_sum_ptx: .incbin \"sum.ptx\"\n"
        ".byte 0\n"
        ".popsection\n");

static __typeof__(&cuLaunchKernel) launch_kernel;
static CUfunction partial_sum;

/* Once in the process, into the context that is current: kaasd calls wrappers from one thread. */
static CUresult prepare(void) {
    static CUmodule module;
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (!driver) return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
    __typeof__(&cuModuleLoadData) load = (__typeof__(load))dlsym(driver, "cuModuleLoadData");
    __typeof__(&cuModuleGetFunction) find = (__typeof__(find))dlsym(driver, "cuModuleGetFunction");
    launch_kernel = (__typeof__(launch_kernel))dlsym(driver, "cuLaunchKernel");
    if (!load || !find || !launch_kernel) return CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND;
    CUresult status = load(&module, partial_sum_ptx);
    return status ? status : find(&partial_sum, module, "partialSumKern");
}

/* Arguments: the array (input); partial sums, half as long or longer (temporary); the sum (output, 4 bytes); the array's length
 * (literal Q). Elements are uint32_t. Threads in a block, 2 or another power of it, are the request's; its grid is not used. */
__attribute__((visibility("default")))
int sum(const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes, void **args, uint32_t arg_count, void *stream) {
    (void)grid, (void)shared_bytes;
    const uint32_t threads = block[0];
    if (arg_count != 4 || block[1] != 1 || block[2] != 1 || threads < 2 || (threads & (threads - 1))) return CUDA_ERROR_INVALID_VALUE;
    CUdeviceptr in = *(CUdeviceptr *)args[0], partial = *(CUdeviceptr *)args[1], out = *(CUdeviceptr *)args[2];
    uint64_t n = *(uint64_t *)args[3];

    CUresult status = partial_sum ? CUDA_SUCCESS : prepare();
    while (!status) {
        const uint64_t blocks = n ? (n + 2 * threads - 1) / (2 * threads) : 1;
        CUdeviceptr to = blocks == 1 ? out : partial;
        void *parameters[] = {&in, &to, &n};
        status = launch_kernel(partial_sum, blocks, 1, 1, threads, 1, 1, 4 * threads, stream, parameters, 0);
        if (blocks == 1) break;
        in = partial, partial += 4 * blocks, n = blocks;
    }
    return status;
}
