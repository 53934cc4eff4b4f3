// Layers of neural networks.
//
//   softmaxKern    of each row, online: one pass keeps largest value and scaled sum together; one warp a row
//   layerNormKern  float32 rows normalised, scaled and shifted; one block of 128 a row; Welford's variance
//   rmsNormKern    half rows by their root mean square, sums in float32; one warp a row
//   attentionKern  scaled dot-product attention of one head, one block of 64 threads a query, float32
//   flashKern      the same a tile of keys at a time with running maximum and sum; head dimension 32, one warp a query
//   geluKern       x * Phi(x) with erff, and its tanh approximation
//   crossEntropyKern loss of each row of logits and its gradient, float32
//   poolKern       2 x 2 max pooling of pixels of four channels, float4, with the index of the maximum
//   adamKern       one step of Adam in float32
#include <cmath>
#include <cstdint>
#include <cuda_fp16.h>

__device__ float warp_sum(float value) {
    for (uint32_t mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffff, value, mask);
    return value;
}

__device__ float warp_max(float value) {
    for (uint32_t mask = 16; mask > 0; mask /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, mask));
    return value;
}

extern "C" __global__ void softmaxKern(uint32_t columns, const float* in, float* out) {
    const uint32_t row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    float largest = -INFINITY, sum = 0;
    for (uint32_t i = lane; i < columns; i += 32) {
        const float x = in[row * columns + i], next = fmaxf(largest, x);
        sum = sum * expf(largest - next) + expf(x - next);
        largest = next;
    }
    const float of_all = warp_max(largest);
    sum = warp_sum(largest == -INFINITY ? 0 : sum * expf(largest - of_all));
    for (uint32_t i = lane; i < columns; i += 32) out[row * columns + i] = expf(in[row * columns + i] - of_all) / sum;
}

struct Moments {
    float count, mean, squares;
};

__device__ Moments merge(Moments a, Moments b) {
    const float count = a.count + b.count;
    if (count == 0) return a;
    const float difference = b.mean - a.mean, part = b.count / count;
    return {count, a.mean + difference * part, a.squares + b.squares + difference * difference * a.count * part};
}

extern "C" __global__ void layerNormKern(uint32_t columns, float epsilon, const float* in, const float* scale,
                                         const float* shift, float* out) {
    __shared__ Moments of_warp[4];
    const float* row = in + blockIdx.x * columns;
    Moments m = {0, 0, 0};
    for (uint32_t i = threadIdx.x; i < columns; i += blockDim.x) m = merge(m, {1, row[i], 0});
    for (uint32_t mask = 16; mask > 0; mask /= 2) {
        m = merge(m, {__shfl_xor_sync(0xffffffff, m.count, mask), __shfl_xor_sync(0xffffffff, m.mean, mask),
                      __shfl_xor_sync(0xffffffff, m.squares, mask)});
    }
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = m;
    __syncthreads();
    m = merge(merge(of_warp[0], of_warp[1]), merge(of_warp[2], of_warp[3]));
    const float inverse = rsqrtf(m.squares / columns + epsilon);
    for (uint32_t i = threadIdx.x; i < columns; i += blockDim.x) {
        out[blockIdx.x * columns + i] = (row[i] - m.mean) * inverse * scale[i] + shift[i];
    }
}

extern "C" __global__ void rmsNormKern(uint32_t pairs, const __half2* in, const __half2* scale, __half2* out) {
    const uint32_t row = blockIdx.x, lane = threadIdx.x;
    float sum = 0;
    for (uint32_t i = lane; i < pairs; i += 32) {
        const float2 x = __half22float2(in[row * pairs + i]);
        sum += x.x * x.x + x.y * x.y;
    }
    const float inverse = 1 / sqrtf(warp_sum(sum) / (2 * pairs) + 1e-5f);
    for (uint32_t i = lane; i < pairs; i += 32) {
        const float2 x = __half22float2(in[row * pairs + i]);
        out[row * pairs + i] = __hmul2(__floats2half2_rn(x.x * inverse, x.y * inverse), scale[i]);
    }
}

extern "C" __global__ void attentionKern(uint32_t keys, uint32_t width, const float* q, const float* k, const float* v, float* out) {
    extern __shared__ float scores[];
    __shared__ float of_warp[2];
    const float* query = q + blockIdx.x * width;
    float largest = -INFINITY;
    for (uint32_t j = threadIdx.x; j < keys; j += blockDim.x) {
        float score = 0;
        for (uint32_t d = 0; d < width; ++d) score += query[d] * k[j * width + d];
        scores[j] = score * rsqrtf(float(width));
        largest = fmaxf(largest, scores[j]);
    }
    largest = warp_max(largest);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = largest;
    __syncthreads();
    largest = fmaxf(of_warp[0], of_warp[1]);
    __syncthreads();
    float sum = 0;
    for (uint32_t j = threadIdx.x; j < keys; j += blockDim.x) sum += scores[j] = __expf(scores[j] - largest);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = of_warp[0] + of_warp[1];
    for (uint32_t d = threadIdx.x; d < width; d += blockDim.x) {
        float value = 0;
        for (uint32_t j = 0; j < keys; ++j) value += scores[j] * v[j * width + d];
        out[blockIdx.x * width + d] = value / sum;
    }
}

extern "C" __global__ void flashKern(uint32_t keys, const float (*q)[32], const float (*k)[32], const float (*v)[32],
                                     float (*out)[32]) {
    __shared__ float k_tile[32][33], v_tile[32][32];
    const uint32_t lane = threadIdx.x, row = blockIdx.x * blockDim.y + threadIdx.y;
    const float query = q[row][lane] * 0.17677669f;
    float largest = -INFINITY, sum = 0, value = 0;
    for (uint32_t start = 0; start < keys; start += 32) {
        for (uint32_t j = threadIdx.y; j < 32; j += blockDim.y) {
            k_tile[j][lane] = k[start + j][lane];
            v_tile[j][lane] = v[start + j][lane];
        }
        __syncthreads();
        float score = 0;
        for (uint32_t d = 0; d < 32; ++d) score = fmaf(__shfl_sync(0xffffffff, query, d), k_tile[lane][d], score);
        const float next = fmaxf(largest, warp_max(score)), keep = exp2f((largest - next) * 1.44269504f);
        const float weight = exp2f((score - next) * 1.44269504f);
        sum = sum * keep + warp_sum(weight);
        value *= keep;
        for (uint32_t j = 0; j < 32; ++j) value = fmaf(__shfl_sync(0xffffffff, weight, j), v_tile[j][lane], value);
        largest = next;
        __syncthreads();
    }
    out[row][lane] = value / sum;
}

extern "C" __global__ void geluKern(uint32_t n, const float* in, float* exact, float* approximate) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float x = in[i];
    exact[i] = 0.5f * x * (1 + erff(x * 0.70710678f));
    approximate[i] = 0.5f * x * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
}

extern "C" __global__ void crossEntropyKern(uint32_t columns, const float* logits, const int32_t* labels, float* loss,
                                            float* gradient) {
    const float* row = logits + blockIdx.x * columns;
    float largest = -INFINITY, sum = 0;
    for (uint32_t i = threadIdx.x; i < columns; i += 32) largest = fmaxf(largest, row[i]);
    largest = warp_max(largest);
    for (uint32_t i = threadIdx.x; i < columns; i += 32) sum += expf(row[i] - largest);
    sum = warp_sum(sum);
    const int32_t label = labels[blockIdx.x];
    if (threadIdx.x == 0) loss[blockIdx.x] = logf(sum) + largest - row[label];
    for (uint32_t i = threadIdx.x; i < columns; i += 32) {
        gradient[blockIdx.x * columns + i] = expf(row[i] - largest) / sum - (int32_t(i) == label);
    }
}

extern "C" __global__ void poolKern(uint32_t width, uint32_t height, const float4* in, float4* out, uchar4* places) {
    const uint32_t x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
    if (x >= width / 2) return;
    float4 best = in[2 * y * width + 2 * x];
    uchar4 place = make_uchar4(0, 0, 0, 0);
    for (uint8_t i = 1; i < 4; ++i) {
        const float4 other = in[(2 * y + i / 2) * width + 2 * x + i % 2];
        if (other.x > best.x) best.x = other.x, place.x = i;
        if (other.y > best.y) best.y = other.y, place.y = i;
        if (other.z > best.z) best.z = other.z, place.z = i;
        if (other.w > best.w) best.w = other.w, place.w = i;
    }
    out[y * (width / 2) + x] = best;
    places[y * (width / 2) + x] = place;
}

extern "C" __global__ void adamKern(uint32_t n, uint32_t step, float rate, const float* gradients, float* first, float* second,
                                    float* weights) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float g = gradients[i];
    const float m = first[i] = 0.9f * first[i] + 0.1f * g, v = second[i] = 0.999f * second[i] + 0.001f * g * g;
    weights[i] -= rate * (m / (1 - powf(0.9f, float(step)))) / (sqrtf(v / (1 - powf(0.999f, float(step)))) + 1e-8f);
}
