// Fast Fourier transforms of 256 points, one a block, in shared memory.
//
//   fftKern       complex float32, Stockham, radix 2, twiddles from sincospif; block 128
//   fftDoubleKern complex float64, decimation in time after a bit reversal, twiddles from a table given; block 128
//   nttKern       number-theoretic transform modulo 3 * 2^30 + 1 (g = 5), uint32, twiddles by powers of `root`; block 128
#include <cstdint>

constexpr uint32_t N = 256;

extern "C" __global__ void fftKern(const float2* in, float2* out) {
    __shared__ float2 rooms[2][N];
    const uint32_t t = threadIdx.x;
    rooms[0][t] = in[blockIdx.x * N + t];
    rooms[0][t + N / 2] = in[blockIdx.x * N + t + N / 2];
    uint32_t from = 0;
    for (uint32_t half = 1; half < N; half *= 2, from ^= 1) {
        __syncthreads();
        const uint32_t k = t & (half - 1);
        float sine, cosine;
        sincospif(-float(k) / float(half), &sine, &cosine);
        const float2 a = rooms[from][t], b = rooms[from][t + N / 2];
        const float2 turned = make_float2(b.x * cosine - b.y * sine, b.x * sine + b.y * cosine);
        const uint32_t place = 2 * (t - k) + k;
        rooms[from ^ 1][place] = make_float2(a.x + turned.x, a.y + turned.y);
        rooms[from ^ 1][place + half] = make_float2(a.x - turned.x, a.y - turned.y);
    }
    __syncthreads();
    out[blockIdx.x * N + t] = rooms[from][t];
    out[blockIdx.x * N + t + N / 2] = rooms[from][t + N / 2];
}

extern "C" __global__ void fftDoubleKern(const double2* twiddles, const double2* in, double2* out) {
    __shared__ double2 data[N];
    const uint32_t t = threadIdx.x;
    for (uint32_t i = t; i < N; i += blockDim.x) data[__brev(i) >> 24] = in[blockIdx.x * N + i];
    for (uint32_t half = 1; half < N; half *= 2) {
        __syncthreads();
        const uint32_t k = t % half, low = 2 * (t - k) + k;
        const double2 w = twiddles[k * (N / 2 / half)], a = data[low], b = data[low + half];
        const double re = fma(b.x, w.x, -(b.y * w.y)), im = fma(b.x, w.y, b.y * w.x);
        data[low] = make_double2(a.x + re, a.y + im);
        data[low + half] = make_double2(a.x - re, a.y - im);
    }
    __syncthreads();
    for (uint32_t i = t; i < N; i += blockDim.x) out[blockIdx.x * N + i] = data[i];
}

constexpr uint32_t MODULUS = 3u << 30 | 1;

__device__ uint32_t times(uint32_t a, uint32_t b) { return uint64_t(a) * b % MODULUS; }

__device__ uint32_t power(uint32_t base, uint32_t exponent) {
    uint32_t result = 1;
    for (; exponent; exponent >>= 1, base = times(base, base)) {
        if (exponent & 1) result = times(result, base);
    }
    return result;
}

extern "C" __global__ void nttKern(uint32_t root, uint32_t* data) {
    __shared__ uint32_t rooms[N];
    const uint32_t t = threadIdx.x;
    for (uint32_t i = t; i < N; i += blockDim.x) rooms[__brev(i) >> 24] = data[blockIdx.x * N + i];
    for (uint32_t half = 1; half < N; half *= 2) {
        __syncthreads();
        const uint32_t k = t % half, low = 2 * (t - k) + k;
        const uint32_t a = rooms[low], b = times(rooms[low + half], power(root, k * (N / 2 / half)));
        const uint64_t sum = uint64_t(a) + b, difference = uint64_t(a) + MODULUS - b;
        rooms[low] = sum >= MODULUS ? sum - MODULUS : sum;
        rooms[low + half] = difference >= MODULUS ? difference - MODULUS : difference;
    }
    __syncthreads();
    for (uint32_t i = t; i < N; i += blockDim.x) data[blockIdx.x * N + i] = rooms[i];
}
