// Graphs and tables.
//
//   bfsKern        one level of breadth-first search over a CSR graph: frontier in, frontier out, counts by atomics
//   componentsKern connected components by label propagation over edges; changed: uint32[1]
//   insertKern     puts keys (not 0) with values into an open-addressing table of 2^bits places by 64-bit compare-and-swap;
//                  equal keys keep the largest value
//   findKern       looks keys up; 0xffffffff where there is none
//   listKern       prepends to lists, one a bucket, by exchanging heads; a node is its index from 1
#include <cstdint>

typedef unsigned long long word64;

extern "C" __global__ void bfsKern(uint32_t depth, const uint32_t* starts, const uint32_t* neighbours, uint32_t* depths,
                                   const uint32_t* frontier, const uint32_t* frontier_size, uint32_t* next,
                                   uint32_t* next_size) {
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < *frontier_size; i += gridDim.x * blockDim.x) {
        const uint32_t node = frontier[i];
        for (uint32_t edge = starts[node]; edge < starts[node + 1]; ++edge) {
            const uint32_t other = neighbours[edge];
            if (atomicCAS(&depths[other], 0xffffffff, depth) == 0xffffffff) next[atomicAdd(next_size, 1)] = other;
        }
    }
}

extern "C" __global__ void componentsKern(uint32_t edges, const uint2* ends, uint32_t* labels, uint32_t* changed) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= edges) return;
    const uint32_t a = atomicOr(&labels[ends[i].x], 0), b = atomicOr(&labels[ends[i].y], 0);
    if (a == b) return;
    atomicMin(&labels[a < b ? ends[i].y : ends[i].x], min(a, b));
    atomicExch(changed, 1);
}

__device__ uint32_t hash(uint32_t key) {
    key = (key ^ key >> 16) * 0x85ebca6b;
    key = (key ^ key >> 13) * 0xc2b2ae35;
    return key ^ key >> 16;
}

extern "C" __global__ void insertKern(uint32_t n, uint32_t bits, const uint32_t* keys, const uint32_t* values, word64* table) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const word64 entry = word64(keys[i]) << 32 | values[i];
    for (uint32_t place = hash(keys[i]) >> (32 - bits);; place = (place + 1) & ((1u << bits) - 1)) {
        const word64 before = atomicCAS(&table[place], 0, entry);
        if (before == 0) return;
        if (before >> 32 == keys[i]) {
            atomicMax(&table[place], entry);
            return;
        }
    }
}

extern "C" __global__ void findKern(uint32_t n, uint32_t bits, const uint32_t* keys, const word64* table, uint32_t* values) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint32_t found = 0xffffffff;
    for (uint32_t place = hash(keys[i]) >> (32 - bits); table[place] != 0; place = (place + 1) & ((1u << bits) - 1)) {
        if (table[place] >> 32 == keys[i]) {
            found = uint32_t(table[place]);
            break;
        }
    }
    values[i] = found;
}

extern "C" __global__ void listKern(uint32_t n, uint32_t buckets, const uint32_t* keys, uint32_t* heads, uint32_t* next) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) next[i] = atomicExch(&heads[keys[i] % buckets], i + 1);
}
