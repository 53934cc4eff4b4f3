// Where memory comes from.
//
//   variablesKern    reads and counts in variables of the module that have initialisers: scalars, arrays, a pointer to another
//   polynomialKern   Horner's scheme on coefficients in constant memory, a row chosen by thread
//   carveKern        dynamic shared memory carved into arrays of several types
//   heapKern         every thread builds a list of `i % 7 + 1` nodes with malloc, sums it and frees it
//   printKern        prints a line for each of the first threads, with arguments of every kind
//   localKern        an array indexed at random: each thread's 64 numbers shuffled and hashed
//   genericKern      one function reads through pointers to global, shared, constant and local memory
//   vectorsKern      loads and stores of 2 and 4 elements of 1 to 8 bytes
#include <cstdint>
#include <cstdio>

__device__ uint32_t counter = 40;
__device__ int16_t shorts[5] = {-1, 2, -3, 4, -5};
__device__ double2 pairs[2] = {{0.5, -1.25}, {1e300, 3}};
__device__ int16_t* middle = shorts + 2;
__device__ const char* const words[3] = {"one", "two", "three"};
__device__ struct {
    char tag;
    float value;
    uint64_t big;
} mixed = {'x', 2.5f, 0x123456789abcdef0};

extern "C" __global__ void variablesKern(uint32_t* counts, double* out) {
    counts[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(&counter, 2);
    if (blockIdx.x || threadIdx.x) return;
    out[0] = middle[-2] + 10 * middle[2];
    out[1] = pairs[0].x + pairs[0].y;
    out[2] = pairs[1].x;
    out[3] = words[2][4] + 256 * words[0][1];
    out[4] = mixed.tag * mixed.value;
    out[5] = double(mixed.big >> 32);
    shorts[2] = 7;
    out[6] = *middle;
    shorts[2] = -3;
}

__constant__ float coefficients[4][6] = {
    {1, -2, 3, -4, 5, -6}, {0.5f, 0.25f, 0.125f, 0.0625f, 0.03125f, 0.015625f}, {1e-3f, 1e3f}, {0, 0, 0, 0, 0, 1}};

extern "C" __global__ void polynomialKern(uint32_t n, const float* x, float* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float value = 0;
    for (int j = 5; j >= 0; --j) value = fmaf(value, x[i], coefficients[i % 4][j]);
    out[i] = value;
}

extern "C" __global__ void carveKern(uint32_t n, const uint32_t* in, double* sums, uint32_t* bytes_out) {
    extern __shared__ double doubles[];  // n doubles, n words, n bytes
    uint32_t* words = (uint32_t*)(doubles + n);
    uint8_t* bytes = (uint8_t*)(words + n);
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        doubles[i] = in[i] * 0.5;
        words[n - 1 - i] = in[i];
        bytes[i] = in[i] >> 24;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        sums[i] = doubles[n - 1 - i] + words[i];
        bytes_out[i] = bytes[i] | bytes[(i + 1) % n] << 8 | bytes[(i + 2) % n] << 16;
    }
}

struct Node {
    uint32_t value;
    Node* next;
};

extern "C" __global__ void heapKern(uint32_t n, uint64_t* sums) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Node* head = nullptr;
    for (uint32_t j = 0; j <= i % 7; ++j) {
        Node* node = (Node*)malloc(sizeof(Node));
        *node = {i * j + 1, head};
        head = node;
    }
    uint64_t sum = 0;
    while (head) {
        Node* next = head->next;
        sum = sum * 10 + head->value;
        free(head);
        head = next;
    }
    sums[i] = sum;
}

extern "C" __global__ void printKern(uint32_t lines, uint32_t* printed) {
    if (threadIdx.x < lines) {
        const char* parity = threadIdx.x % 2 ? "odd" : "even";
        printed[threadIdx.x] = printf("thread %u is %s: %5.2f %lld %c %#x%%\n", threadIdx.x, parity, threadIdx.x * 1.5,
                                      -1000000000000ll * threadIdx.x, 'a' + int(threadIdx.x), threadIdx.x * 17);
    }
}

extern "C" __global__ void localKern(uint32_t n, uint32_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint32_t deck[64], state = i * 747796405u + 2891336453u;
    for (uint32_t j = 0; j < 64; ++j) deck[j] = j;
    for (uint32_t j = 63; j > 0; --j) {
        state = state * 1664525 + 1013904223;
        const uint32_t other = (state >> 16) % (j + 1), kept = deck[j];
        deck[j] = deck[other];
        deck[other] = kept;
    }
    uint32_t hash = 2166136261;
    for (uint32_t j = 0; j < 64; ++j) hash = (hash ^ deck[j]) * 16777619;
    out[i] = hash;
}

__device__ __noinline__ uint32_t weigh(const uint32_t* words, uint32_t count) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < count; ++i) sum = sum * 3 + words[i];
    return sum;
}

__constant__ uint32_t fixed[4] = {11, 22, 33, 44};

extern "C" __global__ void genericKern(const uint32_t* in, uint32_t* out) {
    __shared__ uint32_t of_block[64];
    uint32_t own[4];
    of_block[threadIdx.x] = threadIdx.x * 5;
    for (uint32_t j = 0; j < 4; ++j) own[j] = threadIdx.x + j;
    __syncthreads();
    const uint32_t* sources[4] = {in + threadIdx.x, of_block + threadIdx.x % 60, fixed, own};
    uint32_t value = weigh(sources[threadIdx.x % 4], 4);
    value = value << 4 | __isGlobal(sources[threadIdx.x % 4]) << 3 | __isShared(sources[threadIdx.x % 4]) << 2 |
            __isConstant(sources[threadIdx.x % 4]) << 1 | __isLocal(sources[threadIdx.x % 4]);
    out[threadIdx.x] = value;
}

extern "C" __global__ void vectorsKern(const uchar4* bytes, const short2* shorts, const uint4* words, const double2* doubles,
                                       uchar4* bytes_out, short2* shorts_out, uint4* words_out, double2* doubles_out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    const uchar4 b = bytes[i];
    bytes_out[i] = make_uchar4(b.w, b.z, b.y, b.x);
    const short2 s = shorts[i];
    shorts_out[i] = make_short2(-s.y, s.x + 1);
    const uint4 w = __ldcs(&words[i]);
    __stcg(&words_out[i], make_uint4(w.y, w.z, w.w, w.x));
    const double2 d = __ldcg(&doubles[i]);
    doubles_out[i] = make_double2(d.x + d.y, d.x - d.y);
}
