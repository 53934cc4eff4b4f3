// Host code that tells how it was called; it launches nothing.
#include <stdint.h>

// Writes what it got to the address that is the first argument: grid, block, shared_bytes, arg_count and stream, then the 32-bit
// values of the other arguments.
int record(const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes, void **args, uint32_t arg_count, void *stream) {
    uint64_t *to = *(uint64_t **)args[0];
    for (int i = 0; i < 3; ++i) to[i] = grid[i], to[3 + i] = block[i];
    to[6] = shared_bytes, to[7] = arg_count, to[8] = (uintptr_t)stream;
    for (uint32_t i = 1; i < arg_count; ++i) to[8 + i] = *(uint32_t *)args[i];
    return 0;
}

// Returns its first argument.
int give(const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes, void **args, uint32_t arg_count, void *stream) {
    return *(int *)args[0];
}

// Ends its process.
int crash(const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes, void **args, uint32_t arg_count, void *stream) {
    __builtin_trap();
}

// None of these can be called.
int a_variable = 1;
__attribute__((visibility("hidden"))) int hidden_function(void) { return 1; }
static __attribute__((used)) int static_function(void) { return 2; }

#ifdef INCOMPLETE
int not_there(void);
int needs_more(void) { return not_there(); }
#endif
