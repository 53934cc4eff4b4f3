// Kernels that use the heap of device code, in every way there is, and kernels that do not.
//
//   takeKern, giveKern, newKern   call malloc and free by a function, free alone, new and delete
//   throughKern                   which, out: calls one of two functions through a pointer; one of them takes memory
//   printKern, plainKern          out: uint32[1]: 7; the first prints it too
#include <cstdint>
#include <cstdio>
#include <cstdlib>

static __device__ __noinline__ uint32_t* taken(uint32_t n) {
    return static_cast<uint32_t*>(malloc(n * sizeof(uint32_t)));
}

static __device__ __noinline__ uint32_t* none(uint32_t) {
    return nullptr;
}

using Maker = uint32_t* (*)(uint32_t);
static __device__ const Maker makers[2] = {none, taken};

extern "C" __global__ void takeKern(uint32_t* out) {
    uint32_t* own = taken(64);
    *out = own != nullptr;
    free(own);
}

extern "C" __global__ void giveKern(uint32_t* out) {
    free(reinterpret_cast<void*>(static_cast<uintptr_t>(*out)));
}

extern "C" __global__ void newKern(uint32_t* out) {
    uint32_t* own = new uint32_t[*out];
    *out = own != nullptr;
    delete[] own;
}

extern "C" __global__ void throughKern(uint32_t which, uint32_t* out) {
    *out = makers[which & 1](4) != nullptr;
}

extern "C" __global__ void printKern(uint32_t* out) {
    *out = 7;
    printf("%u\n", *out);
}

extern "C" __global__ void plainKern(uint32_t* out) {
    *out = 7;
}
