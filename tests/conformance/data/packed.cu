// Kernels whose parameters are structs by value, with addresses of buffers in them.

struct View {
    float *data;
    int rows, columns;
    long long row_stride;
};

struct Shift {
    signed char x, y, z;
};

struct Pair {
    View from;
    unsigned long long *count;
};

// y[i, j] = scale.x * x[i, j] + scale.y, at places that are shifted by shift.x in a row.
extern "C" __global__ void affineKern(View x, Shift shift, float4 scale, View y) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    int from = column + shift.x;
    if (column < y.columns && row < y.rows) {
        float value = from >= 0 && from < x.columns ? x.data[row * x.row_stride + from] : scale.z;
        y.data[row * y.row_stride + column] = scale.x * value + scale.y + scale.w;
    }
}

// Counts the elements above 0, in a struct within a struct.
extern "C" __global__ void countKern(Pair pair) {
    unsigned long long count = 0;
    for (int row = 0; row < pair.from.rows; row++)
        for (int column = threadIdx.x; column < pair.from.columns; column += blockDim.x)
            count += pair.from.data[row * pair.from.row_stride + column] > 0;
    atomicAdd(pair.count, count);
}

struct Table {
    unsigned values[8000];
    unsigned *out;
};

// More than 4352 bytes of parameters.
extern "C" __global__ void tableKern(unsigned factor, const __grid_constant__ Table table) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < 8000)
        table.out[i] = factor * table.values[7999 - i];
}
