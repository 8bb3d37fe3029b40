// Scratch memory and the choice of a tier: the parts of cpu.pyx that are C.
#include "scratch.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "simd/simd.h"

typedef struct {
    void *memory[SCRATCH_SLOTS];
    size_t bytes[SCRATCH_SLOTS];
} scratch_slots;

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Thread_local scratch_slots slots;

static void free_slots(void *pointer) {
    scratch_slots *mine = pointer;
    for (int i = 0; i < SCRATCH_SLOTS; i++) {
        free(mine->memory[i]);
        mine->memory[i] = NULL;
        mine->bytes[i] = 0;
    }
}
static void make_key(void) { pthread_key_create(&key, free_slots); }

void *scratch_get(int slot, size_t bytes) {
    if (slots.bytes[slot] >= bytes && slots.memory[slot]) return slots.memory[slot];
    pthread_once(&once, make_key);
    pthread_setspecific(key, &slots);  // so that a thread that ends frees its own
    free(slots.memory[slot]);
    slots.bytes[slot] = 0;
    size_t rounded = (bytes + 4095) & ~(size_t)4095;
    slots.memory[slot] = aligned_alloc(4096, rounded ? rounded : 4096);
    if (slots.memory[slot]) slots.bytes[slot] = rounded;
    return slots.memory[slot];
}
size_t scratch_bytes(void) {
    size_t total = 0;
    for (int i = 0; i < SCRATCH_SLOTS; i++) total += slots.bytes[i];
    return total;
}
void scratch_release(void) { free_slots(&slots); }

extern const simd_table simd_table_base;
#if defined(__x86_64__) || defined(__i386__)
extern const simd_table simd_table_v3, simd_table_v4, simd_table_v4i;
static const simd_table *const tables[] = {&simd_table_base, &simd_table_v3, &simd_table_v4, &simd_table_v4i};
#else
static const simd_table *const tables[] = {&simd_table_base};
#endif

const simd_table *simd_find(const char *tier) {
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if (!strcmp(tables[i]->tier, tier)) return tables[i];
    return NULL;
}

// __builtin_cpu_supports reads CPUID and XGETBV: a register file that the OS does not save counts as absent.
int simd_supported(const char *tier) {
    if (!simd_find(tier)) return 0;
    if (!strcmp(tier, "base")) return 1;
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2")) return 0;
    if (!strcmp(tier, "v3")) return 1;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return 0;
    if (!strcmp(tier, "v4")) return 1;
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
#else
    return 0;
#endif
}
