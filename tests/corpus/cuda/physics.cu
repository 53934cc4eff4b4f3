// Particles, options, integrals.
//
//   nbodyKern        accelerations of bodies (x, y, z, mass) by gravity with softening, float32, tiles in shared memory
//   lennardJonesKern energies of particles in a periodic box, float64, exactly rounded division
//   blackScholesKern call and put prices, float32, with expf, logf, erfcf
//   simpsonKern      integral of sin(x^2) from 0 to each x, float64, by Simpson's rule with 64 intervals
//   rungeKuttaKern   the Lorenz attractor from each start, float64, fourth-order steps
#include <cmath>
#include <cstdint>

extern "C" __global__ void nbodyKern(uint32_t n, float softening, const float4* bodies, float3* acceleration) {
    extern __shared__ float4 tile[];
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    const float4 own = bodies[min(i, n - 1)];
    float3 sum = make_float3(0, 0, 0);
    for (uint32_t start = 0; start < n; start += blockDim.x) {
        if (start + threadIdx.x < n) tile[threadIdx.x] = bodies[start + threadIdx.x];
        __syncthreads();
        for (uint32_t j = 0; j < min(blockDim.x, n - start); ++j) {
            const float4 other = tile[j];
            const float x = other.x - own.x, y = other.y - own.y, z = other.z - own.z;
            const float inverse = rsqrtf(x * x + y * y + z * z + softening);
            const float strength = other.w * inverse * inverse * inverse;
            sum.x += strength * x, sum.y += strength * y, sum.z += strength * z;
        }
        __syncthreads();
    }
    if (i < n) acceleration[i] = sum;
}

extern "C" __global__ void lennardJonesKern(uint32_t n, double side, const double3* places, double* energy) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    double sum = 0;
    for (uint32_t j = 0; j < n; ++j) {
        if (j == i) continue;
        double x = places[j].x - places[i].x, y = places[j].y - places[i].y, z = places[j].z - places[i].z;
        x -= side * rint(x / side), y -= side * rint(y / side), z -= side * rint(z / side);
        const double inverse = 1 / (x * x + y * y + z * z), sixth = inverse * inverse * inverse;
        sum += 4 * sixth * (sixth - 1);
    }
    energy[i] = sum / 2;
}

__device__ float normal(float x) { return 0.5f * erfcf(-x * 0.70710678f); }

extern "C" __global__ void blackScholesKern(uint32_t n, float rate, float volatility, const float* price, const float* strike,
                                            const float* years, float* call, float* put) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float spread = volatility * sqrtf(years[i]);
    const float d1 = (logf(price[i] / strike[i]) + (rate + volatility * volatility / 2) * years[i]) / spread, d2 = d1 - spread;
    const float discounted = strike[i] * expf(-rate * years[i]);
    call[i] = price[i] * normal(d1) - discounted * normal(d2);
    put[i] = discounted * normal(-d2) - price[i] * normal(-d1);
}

extern "C" __global__ void simpsonKern(uint32_t n, const double* upper, double* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const double step = upper[i] / 64;
    double sum = 0;
    for (int j = 0; j <= 64; ++j) {
        const double x = j * step;
        sum += (j == 0 || j == 64 ? 1 : j % 2 ? 4 : 2) * sin(x * x);
    }
    out[i] = sum * step / 3;
}

__device__ double3 slope(double3 p) {
    return make_double3(10 * (p.y - p.x), p.x * (28 - p.z) - p.y, p.x * p.y - 8.0 / 3 * p.z);
}

__device__ double3 step(double3 p, double by, double3 k) { return make_double3(p.x + by * k.x, p.y + by * k.y, p.z + by * k.z); }

extern "C" __global__ void rungeKuttaKern(uint32_t n, uint32_t steps, double dt, double3* points) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    double3 p = points[i];
    for (uint32_t s = 0; s < steps; ++s) {
        const double3 a = slope(p), b = slope(step(p, dt / 2, a)), c = slope(step(p, dt / 2, b)), d = slope(step(p, dt, c));
        p.x += dt / 6 * (a.x + 2 * b.x + 2 * c.x + d.x);
        p.y += dt / 6 * (a.y + 2 * b.y + 2 * c.y + d.y);
        p.z += dt / 6 * (a.z + 2 * b.z + 2 * c.z + d.z);
    }
    points[i] = p;
}
