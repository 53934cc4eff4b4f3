// What C++ brings: calls, recursion, pointers to functions, structures, classes, switches.
//
//   recursionKern   out: uint32[2][n]: Ackermann(2, i % 4) and moves of the Towers of Hanoi, by calls that are not inlined; no
//                   deeper than the 1024 bytes of stack that a thread has on a GPU unless it asks for more
//   pointersKern    applies the operation that `which` names through a table of function pointers in constant memory
//   foldKern        folds each row of 8 by a function whose pointer is passed on to a function that is not inlined
//   virtualKern     areas of shapes through virtual functions of objects made in local memory
//   structuresKern  a structure by value as parameter, another returned by value from a function that is not inlined
//   switchKern      a stack machine: a dense switch over opcodes, one program for all, one input a thread
//   queensKern      solutions of the n queens with the first queen in each column, by a recursive function
//   evaluateKern    values of expressions with + - * ( ), by functions that call each other
#include <cstdint>

__device__ __noinline__ uint32_t ackermann(uint32_t m, uint32_t n) {
    if (m == 0) return n + 1;
    return ackermann(m - 1, n == 0 ? 1 : ackermann(m, n - 1));
}

__device__ __noinline__ uint32_t hanoi(uint32_t discs, uint32_t from, uint32_t to, uint32_t seen) {
    if (discs == 0) return seen;
    const uint32_t by = 3 - from - to;
    seen = hanoi(discs - 1, from, by, seen);
    seen = seen * 31 + from * 3 + to;
    return hanoi(discs - 1, by, to, seen);
}

extern "C" __global__ void recursionKern(uint32_t n, uint32_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = ackermann(2, i % 4);
    out[n + i] = hanoi(i % 6, 0, 2, i);
}

typedef int64_t (*Operation)(int64_t, int64_t);

__device__ int64_t plus(int64_t a, int64_t b) { return a + b; }
__device__ int64_t minus(int64_t a, int64_t b) { return a - b; }
__device__ int64_t times(int64_t a, int64_t b) { return a * b; }
__device__ int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
__device__ int64_t exclusive(int64_t a, int64_t b) { return a ^ b; }

__constant__ Operation operations[5] = {plus, minus, times, larger, exclusive};

extern "C" __global__ void pointersKern(uint32_t n, const uint32_t* which, const int64_t* a, const int64_t* b, int64_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = operations[which[i]](a[i], b[i]);
}

__device__ __noinline__ int64_t fold(Operation operation, const int64_t* row, uint32_t count) {
    int64_t result = row[0];
    for (uint32_t i = 1; i < count; ++i) result = operation(result, row[i]);
    return result;
}

extern "C" __global__ void foldKern(uint32_t rows, const int64_t* in, int64_t* out) {
    const uint32_t row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) out[row] = fold(operations[row % 5], in + 8 * row, 8);
}

struct Shape {
    __device__ virtual float area() const = 0;
    __device__ virtual float scaled(float by) const { return area() * by; }
};

struct Rectangle : Shape {
    float a, b;
    __device__ Rectangle(float a, float b) : a(a), b(b) {}
    __device__ float area() const override { return a * b; }
};

struct Triangle : Shape {
    float a, b;
    __device__ Triangle(float a, float b) : a(a), b(b) {}
    __device__ float area() const override { return a * b / 2; }
    __device__ float scaled(float by) const override { return -area() * by; }
};

extern "C" __global__ void virtualKern(uint32_t n, const float2* sides, float* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Rectangle rectangle(sides[i].x, sides[i].y);
    Triangle triangle(sides[i].x, sides[i].y);
    const Shape* shapes[2] = {&rectangle, &triangle};
    out[i] = shapes[i % 3 == 0]->area() + shapes[i % 2]->scaled(3.0f);
}

struct Settings {
    uint8_t shift;
    uint16_t mask;
    double factor;
    struct {
        int32_t low, high;
    } limits;
    float table[3];
};

struct Result {
    double value;
    int32_t clamped;
    char kind;
};

__device__ __noinline__ Result process(Settings settings, int32_t x) {
    Result result;
    result.value = (x >> settings.shift & settings.mask) * settings.factor + settings.table[uint32_t(x) % 3];
    result.clamped = min(max(x, settings.limits.low), settings.limits.high);
    result.kind = result.clamped == x ? 'i' : 'o';
    return result;
}

extern "C" __global__ void structuresKern(uint32_t n, Settings settings, const int32_t* in, Result* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = process(settings, in[i]);
}

extern "C" __global__ void switchKern(uint32_t n, uint32_t length, const uint8_t* program, const int32_t* in, int32_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int32_t stack[16] = {in[i]};
    uint32_t top = 0;
    for (uint32_t at = 0; at < length; ++at) {
        switch (program[at]) {
            case 0: stack[top + 1] = stack[top]; ++top; break;
            case 1: --top; stack[top] += stack[top + 1]; break;
            case 2: --top; stack[top] -= stack[top + 1]; break;
            case 3: --top; stack[top] *= stack[top + 1]; break;
            case 4: stack[++top] = int8_t(program[++at]); break;
            case 5: stack[top] = ~stack[top]; break;
            case 6: { const int32_t kept = stack[top]; stack[top] = stack[top - 1]; stack[top - 1] = kept; break; }
            case 7: stack[top] >>= 3; break;
            case 8: if (stack[top--] & 1) at += program[at + 1]; ++at; break;
            case 9: --top; stack[top] = stack[top + 1] ? stack[top] / stack[top + 1] : 0; break;
            default: stack[top] ^= 0x5a5a5a5a;
        }
    }
    out[i] = stack[top];
}

__device__ __noinline__ uint32_t place(uint32_t all, uint32_t columns, uint32_t left, uint32_t right) {
    if (columns == all) return 1;
    uint32_t solutions = 0;
    for (uint32_t free = all & ~(columns | left | right); free; free &= free - 1) {
        const uint32_t here = free & -free;
        solutions += place(all, columns | here, (left | here) << 1, (right | here) >> 1);
    }
    return solutions;
}

extern "C" __global__ void queensKern(uint32_t n, uint32_t* solutions) {
    if (threadIdx.x >= n) return;
    const uint32_t here = 1u << threadIdx.x;
    solutions[threadIdx.x] = place((1u << n) - 1, here, here << 1, here >> 1);
}

struct Reader {
    const char* at;
};

__device__ __noinline__ int32_t product(Reader& reader);

__device__ __noinline__ int32_t sum(Reader& reader) {
    int32_t value = product(reader);
    while (*reader.at == '+' || *reader.at == '-') {
        const bool add = *reader.at++ == '+';
        const int32_t next = product(reader);
        value = add ? value + next : value - next;
    }
    return value;
}

__device__ __noinline__ int32_t product(Reader& reader) {
    int32_t value = 1;
    do {
        if (*reader.at == '*') ++reader.at;
        if (*reader.at == '(') {
            ++reader.at;
            value *= sum(reader);
            ++reader.at;
        } else {
            int32_t number = 0;
            while (*reader.at >= '0' && *reader.at <= '9') number = 10 * number + *reader.at++ - '0';
            value *= number;
        }
    } while (*reader.at == '*');
    return value;
}

extern "C" __global__ void evaluateKern(uint32_t n, uint32_t length, const char* expressions, int32_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Reader reader = {expressions + i * length};
    out[i] = sum(reader);
}
