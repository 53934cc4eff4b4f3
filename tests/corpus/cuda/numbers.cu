// Integers beyond 32 bits.
//
//   multiplyKern  256-bit times 256-bit to 512-bit, by chains of mad.cc (inline PTX); one pair a thread
//   addKern       1024-bit sums by a chain of add.cc / addc; the carry out beside it
//   divideKern    64-bit quotients and remainders, signed and unsigned: out: uint64[4][n]
//   wideKern      128-bit: products, quotients and remainders of __int128: out: uint128[3][n]
//   modpowKern    base^exponent mod m of 64-bit numbers, through 128-bit products
//   gcdKern       greatest common divisors by the binary algorithm
//   primesKern    sieve of Eratosthenes over one block's bits in shared memory; words: uint32[n / 32]
//   bitsKern      out: uint32[10][n]: popcounts, leading zeros, reversals, byte permutations, SIMD sums of absolute differences
//   collatzKern   steps until 1
#include <cstdint>

extern "C" __global__ void multiplyKern(uint32_t n, const uint32_t (*a)[8], const uint32_t (*b)[8], uint32_t (*out)[16]) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint32_t r[16] = {};
#pragma unroll
    for (int row = 0; row < 8; ++row) {
        const uint32_t x = a[i][row];
        asm volatile("mad.lo.cc.u32 %0, %1, %2, %0;" : "+r"(r[row]) : "r"(x), "r"(b[i][0]));
#pragma unroll
        for (int k = 1; k < 8; ++k) asm volatile("madc.lo.cc.u32 %0, %1, %2, %0;" : "+r"(r[row + k]) : "r"(x), "r"(b[i][k]));
        asm volatile("addc.u32 %0, %0, 0;" : "+r"(r[row + 8]));
        asm volatile("mad.hi.cc.u32 %0, %1, %2, %0;" : "+r"(r[row + 1]) : "r"(x), "r"(b[i][0]));
#pragma unroll
        for (int k = 1; k < 7; ++k) asm volatile("madc.hi.cc.u32 %0, %1, %2, %0;" : "+r"(r[row + k + 1]) : "r"(x), "r"(b[i][k]));
        asm volatile("madc.hi.u32 %0, %1, %2, %0;" : "+r"(r[row + 8]) : "r"(x), "r"(b[i][7]));
    }
    for (int k = 0; k < 16; ++k) out[i][k] = r[k];
}

extern "C" __global__ void addKern(uint32_t n, const uint64_t (*a)[16], const uint64_t (*b)[16], uint64_t (*out)[17]) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint64_t sum;
    asm volatile("add.cc.u64 %0, %1, %2;" : "=l"(sum) : "l"(a[i][0]), "l"(b[i][0]));
    out[i][0] = sum;
#pragma unroll
    for (int k = 1; k < 16; ++k) {
        asm volatile("addc.cc.u64 %0, %1, %2;" : "=l"(sum) : "l"(a[i][k]), "l"(b[i][k]));
        out[i][k] = sum;
    }
    asm volatile("addc.u64 %0, 0, 0;" : "=l"(sum));
    out[i][16] = sum;
}

extern "C" __global__ void divideKern(uint32_t n, const uint64_t* a, const uint64_t* b, uint64_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = a[i] / b[i];
    out[n + i] = a[i] % b[i];
    out[2 * n + i] = uint64_t(int64_t(a[i]) / int64_t(b[i]));
    out[3 * n + i] = uint64_t(int64_t(a[i]) % int64_t(b[i]));
}

extern "C" __global__ void wideKern(uint32_t n, const unsigned __int128* a, const unsigned __int128* b, unsigned __int128* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = a[i] * b[i];
    out[n + i] = a[i] / b[i];
    out[2 * n + i] = (unsigned __int128)((__int128)a[i] % (__int128)(b[i] >> 1));
}

extern "C" __global__ void modpowKern(uint32_t n, uint64_t m, const uint64_t* bases, const uint64_t* exponents, uint64_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint64_t base = bases[i] % m, result = 1;
    for (uint64_t exponent = exponents[i]; exponent; exponent >>= 1) {
        if (exponent & 1) result = uint64_t((unsigned __int128)result * base % m);
        base = uint64_t((unsigned __int128)base * base % m);
    }
    out[i] = result;
}

extern "C" __global__ void gcdKern(uint32_t n, const uint64_t* a, const uint64_t* b, uint64_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint64_t x = a[i], y = b[i];
    if (x == 0 || y == 0) {
        out[i] = x | y;
        return;
    }
    const int shift = __ffsll(x | y) - 1;
    x >>= __ffsll(x) - 1;
    while (y) {
        y >>= __ffsll(y) - 1;
        const uint64_t smaller = min(x, y);
        y = max(x, y) - smaller;
        x = smaller;
    }
    out[i] = x << shift;
}

extern "C" __global__ void primesKern(uint32_t n, uint32_t* words) {
    extern __shared__ uint32_t sieve[];
    for (uint32_t i = threadIdx.x; i < n / 32; i += blockDim.x) sieve[i] = i == 0 ? 0xfffffffc : 0xffffffff;
    for (uint32_t p = 2; p * p < n; ++p) {
        __syncthreads();
        if (!(sieve[p / 32] >> p % 32 & 1)) continue;
        for (uint32_t k = p * p + threadIdx.x * p; k < n; k += blockDim.x * p) atomicAnd(&sieve[k / 32], ~(1u << k % 32));
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n / 32; i += blockDim.x) words[i] = sieve[i];
}

extern "C" __global__ void bitsKern(uint32_t n, const uint64_t* in, uint32_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const uint64_t wide = in[i];
    const uint32_t low = uint32_t(wide), high = uint32_t(wide >> 32);
    const uint32_t results[10] = {
        uint32_t(__popcll(wide)), uint32_t(__clzll(wide)),  uint32_t(__brevll(wide) >> 32),    __byte_perm(low, high, 0x5140),
        __vsadu4(low, high),      __vaddus4(low, high),     __usad(low, high, 7),              uint32_t(__dp4a(int(low), int(high), 5)),
        uint32_t(__mulhi(int(low), int(high))), uint32_t(__hadd(int(low), int(high)))};
    for (uint32_t row = 0; row < 10; ++row) out[row * n + i] = results[row];
}

extern "C" __global__ void collatzKern(uint32_t n, uint32_t* steps) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint32_t count = 0;
    for (uint64_t x = i + 1; x != 1; ++count) x = x & 1 ? 3 * x + 1 : x / 2;
    steps[i] = count;
}
