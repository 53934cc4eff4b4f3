// Checksums and ciphers, one message a thread.
//
//   crc32Kern   CRC-32 of messages of `length` bytes, with a table that the block computes into shared memory
//   sha256Kern  SHA-256 of messages of `length` bytes
//   chachaKern  ChaCha20 key stream, one block of 64 bytes a thread; key: uint32[8], nonce: uint32[3]
//   aesKern     AES-128 of one 16-byte block a thread; the block computes the S-box; round keys: uint32[44]
//   adlerKern   Adler-32 of messages of `length` bytes
//   siphashKern SipHash-2-4 of messages of 8-byte words
#include <cstdint>

extern "C" __global__ void crc32Kern(uint32_t messages, uint32_t length, const uint8_t* data, uint32_t* out) {
    __shared__ uint32_t table[256];
    for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xedb88320 : 0);
        table[i] = value;
    }
    __syncthreads();
    const uint32_t message = blockIdx.x * blockDim.x + threadIdx.x;
    if (message >= messages) return;
    uint32_t crc = 0xffffffff;
    for (uint32_t i = 0; i < length; ++i) crc = crc >> 8 ^ table[(crc ^ data[message * length + i]) & 255];
    out[message] = ~crc;
}

__constant__ uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

__device__ uint32_t rotate(uint32_t x, uint32_t by) { return __funnelshift_r(x, x, by); }

extern "C" __global__ void sha256Kern(uint32_t messages, uint32_t length, const uint8_t* data, uint32_t (*out)[8]) {
    const uint32_t message = blockIdx.x * blockDim.x + threadIdx.x;
    if (message >= messages) return;
    const uint8_t* own = data + message * length;
    uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    for (uint32_t start = 0; start < length + 9; start += 64) {
        uint32_t w[16];
        for (uint32_t i = 0; i < 16; ++i) {
            uint32_t word = 0;
            for (uint32_t j = 0; j < 4; ++j) {
                const uint32_t at = start + 4 * i + j;
                word = word << 8 | (at < length ? own[at] : at == length ? 0x80 : 0);
            }
            w[i] = word;
        }
        if (start + 64 >= length + 9) w[15] = 8 * length;
        uint32_t v[8];
        for (int i = 0; i < 8; ++i) v[i] = h[i];
#pragma unroll 16
        for (uint32_t i = 0; i < 64; ++i) {
            if (i >= 16) {
                const uint32_t a = w[(i + 1) % 16], b = w[(i + 14) % 16];
                w[i % 16] += (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[(i + 9) % 16] + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
            }
            const uint32_t t = v[7] + (rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25)) + ((v[4] & v[5]) ^ (~v[4] & v[6])) +
                               K[i] + w[i % 16];
            const uint32_t u = (rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22)) +
                               ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
            v[7] = v[6], v[6] = v[5], v[5] = v[4], v[4] = v[3] + t, v[3] = v[2], v[2] = v[1], v[1] = v[0], v[0] = t + u;
        }
        for (int i = 0; i < 8; ++i) h[i] += v[i];
    }
    for (int i = 0; i < 8; ++i) out[message][i] = h[i];
}

__device__ void quarter(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
    a += b, d = rotate(d ^ a, 16);
    c += d, b = rotate(b ^ c, 20);
    a += b, d = rotate(d ^ a, 24);
    c += d, b = rotate(b ^ c, 25);
}

extern "C" __global__ void chachaKern(const uint32_t* key, const uint32_t* nonce, uint4* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t first[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574}, s[16];
    for (int j = 0; j < 8; ++j) first[4 + j] = key[j];
    first[12] = i;
    for (int j = 0; j < 3; ++j) first[13 + j] = nonce[j];
    for (int j = 0; j < 16; ++j) s[j] = first[j];
    for (int round = 0; round < 10; ++round) {
        for (int j = 0; j < 4; ++j) quarter(s[j], s[4 + j], s[8 + j], s[12 + j]);
        for (int j = 0; j < 4; ++j) quarter(s[j], s[4 + (j + 1) % 4], s[8 + (j + 2) % 4], s[12 + (j + 3) % 4]);
    }
    for (int j = 0; j < 4; ++j) {
        out[4 * i + j] = make_uint4(s[4 * j] + first[4 * j], s[4 * j + 1] + first[4 * j + 1], s[4 * j + 2] + first[4 * j + 2],
                                    s[4 * j + 3] + first[4 * j + 3]);
    }
}

// In GF(2^8), for the S-box: inverses and an affine map.
__device__ uint8_t product(uint8_t a, uint8_t b) {
    uint8_t result = 0;
    for (; b; b >>= 1, a = a << 1 ^ (a & 0x80 ? 0x1b : 0)) {
        if (b & 1) result ^= a;
    }
    return result;
}

extern "C" __global__ void aesKern(uint32_t blocks, const uint32_t* round_keys, const uchar4 (*in)[4], uchar4 (*out)[4]) {
    __shared__ uint8_t sbox[256];
    for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x) {
        uint8_t inverse = 1;
        for (int times = 0; times < 254; ++times) inverse = product(inverse, i);
        const uint32_t twice = inverse << 8 | inverse;
        sbox[i] = (twice ^ twice >> 4 ^ twice >> 5 ^ twice >> 6 ^ twice >> 7) ^ 0x63;
    }
    __syncthreads();
    const uint32_t block = blockIdx.x * blockDim.x + threadIdx.x;
    if (block >= blocks) return;
    union State {
        uint32_t words[4];
        uint8_t bytes[16];
    } s, t;
    for (int i = 0; i < 4; ++i) s.words[i] = *(const uint32_t*)&in[block][i] ^ round_keys[i];
    for (int round = 1; round <= 10; ++round) {
        for (int i = 0; i < 16; ++i) t.bytes[i] = sbox[s.bytes[(5 * i) % 16]];
        for (int i = 0; i < 4; ++i) {
            const uint32_t w = t.words[i];
            const uint32_t doubled = (w & 0x7f7f7f7f) << 1 ^ (w >> 7 & 0x01010101) * 0x1b;
            const uint32_t next = __byte_perm(w, w, 0x0321);
            const uint32_t doubled_next = __byte_perm(doubled, doubled, 0x0321);
            const uint32_t mixed = doubled ^ doubled_next ^ next ^ __byte_perm(w, w, 0x1032) ^ __byte_perm(w, w, 0x2103);
            s.words[i] = (round < 10 ? mixed : w) ^ round_keys[4 * round + i];
        }
    }
    for (int i = 0; i < 4; ++i) *(uint32_t*)&out[block][i] = s.words[i];
}

extern "C" __global__ void adlerKern(uint32_t messages, uint32_t length, const uint8_t* data, uint32_t* out) {
    const uint32_t message = blockIdx.x * blockDim.x + threadIdx.x;
    if (message >= messages) return;
    uint32_t a = 1, b = 0;
    for (uint32_t i = 0; i < length; ++i) {
        a = (a + data[message * length + i]) % 65521;
        b = (b + a) % 65521;
    }
    out[message] = b << 16 | a;
}

__device__ uint64_t rotate64(uint64_t x, int by) { return x << by | x >> (64 - by); }

extern "C" __global__ void siphashKern(uint32_t messages, uint32_t words, ulonglong2 key, const uint64_t* data, uint64_t* out) {
    const uint32_t message = blockIdx.x * blockDim.x + threadIdx.x;
    if (message >= messages) return;
    uint64_t a = key.x ^ 0x736f6d6570736575, b = key.y ^ 0x646f72616e646f6d, c = key.x ^ 0x6c7967656e657261,
             d = key.y ^ 0x7465646279746573;
    auto rounds = [&](int count) {
        for (int i = 0; i < count; ++i) {
            a += b, b = rotate64(b, 13) ^ a, a = rotate64(a, 32);
            c += d, d = rotate64(d, 16) ^ c;
            a += d, d = rotate64(d, 21) ^ a;
            c += b, b = rotate64(b, 17) ^ c, c = rotate64(c, 32);
        }
    };
    for (uint32_t i = 0; i <= words; ++i) {
        const uint64_t word = i < words ? data[message * words + i] : uint64_t(8 * words) << 56;
        d ^= word;
        rounds(2);
        a ^= word;
    }
    c ^= 0xff;
    rounds(4);
    out[message] = a ^ b ^ c ^ d;
}
