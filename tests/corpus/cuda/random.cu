// Random numbers.
//
//   xorshiftKern  xorshift128+, `count` numbers a thread; state: uint64[threads][2]
//   philoxKern    Philox4x32-10 of counter (index, stream, 0, 0) and a key
//   pcgKern       PCG-XSH-RR, 32 bits of 64, one number a thread after a jump ahead of its index
//   piKern        Monte-Carlo: points of the quarter circle among `count` a thread, from xorshift32; hits: uint64[1]
//   normalsKern   Box–Muller normal numbers of pairs of uniform words, float32
#include <cmath>
#include <cstdint>

extern "C" __global__ void xorshiftKern(uint32_t count, ulonglong2* state, uint64_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
    uint64_t a = state[i].x, b = state[i].y;
    for (uint32_t j = 0; j < count; ++j) {
        uint64_t t = a;
        a = b;
        t ^= t << 23;
        t ^= t >> 18 ^ b ^ b >> 5;
        b = t;
        out[j * threads + i] = a + b;
    }
    state[i] = make_ulonglong2(a, b);
}

extern "C" __global__ void philoxKern(uint32_t stream, uint2 key, uint4* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    uint4 c = make_uint4(i, stream, 0, 0);
    for (int round = 0; round < 10; ++round) {
        const uint32_t high0 = __umulhi(0xD2511F53, c.x), low0 = 0xD2511F53 * c.x;
        const uint32_t high1 = __umulhi(0xCD9E8D57, c.z), low1 = 0xCD9E8D57 * c.z;
        c = make_uint4(high1 ^ c.y ^ key.x, low1, high0 ^ c.w ^ key.y, low0);
        key.x += 0x9E3779B9, key.y += 0xBB67AE85;
    }
    out[i] = c;
}

extern "C" __global__ void pcgKern(uint64_t seed, uint32_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    uint64_t multiplier = 6364136223846793005, increment = 1442695040888963407, times = 1, plus = 0;
    for (uint64_t delta = i; delta; delta >>= 1) {
        if (delta & 1) {
            times *= multiplier;
            plus = plus * multiplier + increment;
        }
        increment *= multiplier + 1;
        multiplier *= multiplier;
    }
    const uint64_t state = times * seed + plus;
    const uint32_t mixed = uint32_t((state >> 18 ^ state) >> 27), turn = uint32_t(state >> 59);
    out[i] = __funnelshift_r(mixed, mixed, turn);
}

extern "C" __global__ void piKern(uint32_t count, unsigned long long* hits) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t state = (i + 1) * 2654435761u, own = 0;
    auto next = [&] {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        return state;
    };
    for (uint32_t j = 0; j < count; ++j) {
        const uint64_t x = next() >> 1, y = next() >> 1;
        own += x * x + y * y < 1ull << 62;
    }
    for (uint32_t offset = 16; offset > 0; offset /= 2) own += __shfl_down_sync(0xffffffff, own, offset);
    if (threadIdx.x % 32 == 0) atomicAdd(hits, own);
}

extern "C" __global__ void normalsKern(uint32_t n, const uint2* words, float2* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float u = (float(words[i].x >> 8) + 0.5f) * 0x1p-24f, v = float(words[i].y >> 8) * 0x1p-24f;
    const float radius = sqrtf(-2.0f * logf(u));
    float sine, cosine;
    sincospif(2.0f * v, &sine, &cosine);
    out[i] = make_float2(radius * cosine, radius * sine);
}
