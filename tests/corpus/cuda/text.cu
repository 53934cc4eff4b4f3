// Strings.
//
//   matchKern      out[i] = 1 where the pattern (in constant memory of the module, copied by storeKern) starts at text[i]
//   storeKern      copies a pattern of at most 64 bytes into a module's variable
//   automatonKern  counts matches of "ab*c" in each line of fixed length by a switch over states
//   smithKern      Smith–Waterman score of two sequences, one block, anti-diagonals in shared memory
//   levenshteinKern edit distance of each pair of words of at most 32 bytes, zero-terminated, with bit-parallel Myers
//   base64Kern     encodes three bytes a thread; n a multiple of 3
//   utf8Kern       code points of UTF-8 text, -1 at continuation bytes
#include <cstdint>

__device__ char pattern[64];
__device__ uint32_t pattern_length = 0;

extern "C" __global__ void storeKern(uint32_t length, const char* from) {
    if (threadIdx.x < length) pattern[threadIdx.x] = from[threadIdx.x];
    if (threadIdx.x == 0) pattern_length = length;
}

extern "C" __global__ void matchKern(uint32_t n, const char* text, uint8_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint32_t same = 0;
    while (same < pattern_length && i + same < n && text[i + same] == pattern[same]) ++same;
    out[i] = same == pattern_length;
}

extern "C" __global__ void automatonKern(uint32_t lines, uint32_t length, const char* text, uint32_t* counts) {
    const uint32_t line = blockIdx.x * blockDim.x + threadIdx.x;
    if (line >= lines) return;
    uint32_t state = 0, found = 0;
    for (uint32_t i = 0; i < length; ++i) {
        const char c = text[line * length + i];
        switch (c) {
            case 'a': state = 1; break;
            case 'b': state = state == 1; break;
            case 'c': found += state; state = 0; break;
            case 'd': state = 0; found += 1000; break;
            case 'e': state = 0; found ^= 1u << 31; break;
            case 'f': state = 0; found = __brev(found); break;
            case 'g': state = 0; found *= 3; break;
            default: state = 0;
        }
    }
    counts[line] = found;
}

extern "C" __global__ void smithKern(uint32_t a_length, uint32_t b_length, const char* a, const char* b, int32_t* best) {
    extern __shared__ int32_t diagonals[];  // three of a_length + 1
    const uint32_t width = a_length + 1;
    for (uint32_t i = threadIdx.x; i < 3 * width; i += blockDim.x) diagonals[i] = 0;
    int32_t largest = 0;
    __syncthreads();
    for (uint32_t d = 2; d <= a_length + b_length; ++d) {
        int32_t* now = diagonals + d % 3 * width;
        const int32_t* last = diagonals + (d + 2) % 3 * width;
        const int32_t* before = diagonals + (d + 1) % 3 * width;
        for (uint32_t i = threadIdx.x + 1; i <= a_length; i += blockDim.x) {
            const uint32_t j = d - i;
            int32_t score = 0;
            if (i < d && j <= b_length) {
                score = max(max(0, before[i - 1] + (a[i - 1] == b[j - 1] ? 3 : -2)), max(last[i - 1], last[i]) - 4);
                largest = max(largest, score);
            }
            now[i] = score;
        }
        __syncthreads();
    }
    atomicMax(best, largest);
}

extern "C" __global__ void levenshteinKern(uint32_t pairs, const char (*words)[2][32], uint32_t* distances) {
    const uint32_t pair = blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= pairs) return;
    const char *a = words[pair][0], *b = words[pair][1];
    uint32_t length = 0;
    while (length < 32 && a[length]) ++length;
    uint32_t positive = 0xffffffff, negative = 0, score = length;
    for (uint32_t j = 0; j < 32 && b[j]; ++j) {
        uint32_t equal = 0;
        for (uint32_t i = 0; i < length; ++i) equal |= uint32_t(a[i] == b[j]) << i;
        const uint32_t vertical = equal | negative;
        const uint32_t horizontal = (((equal & positive) + positive) ^ positive) | equal;
        uint32_t up = negative | ~(horizontal | positive), down = positive & horizontal;
        const uint32_t last = 1u << (length - 1);
        if (length) score += bool(up & last) - bool(down & last);
        else ++score;
        up = up << 1 | 1;
        positive = down << 1 | ~(vertical | up);
        negative = up & vertical;
    }
    distances[pair] = score;
}

__constant__ char ALPHABET[65] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

extern "C" __global__ void base64Kern(uint32_t groups, const uint8_t* in, char4* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= groups) return;
    const uint32_t bits = in[3 * i] << 16 | in[3 * i + 1] << 8 | in[3 * i + 2];
    out[i] = make_char4(ALPHABET[bits >> 18], ALPHABET[bits >> 12 & 63], ALPHABET[bits >> 6 & 63], ALPHABET[bits & 63]);
}

extern "C" __global__ void utf8Kern(uint32_t n, const uint8_t* text, int32_t* points) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const uint32_t first = text[i], more = __clz(~(first << 24));
    int32_t point = more == 0 ? int32_t(first) : more == 1 ? -1 : int32_t(first & (0x7f >> more));
    for (uint32_t j = 1; j < more && point >= 0; ++j) point = point << 6 | (text[i + j] & 0x3f);
    points[i] = point;
}
