// Size classes split each power of two in eight, so at most an eighth of a block is unused, or a third where a free
// larger one serves. A free block holds the link of its class's free list in its own first bytes.
#include "allocator.h"
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { SMALLEST_BITS = 6, STEPS = 8, CLASSES = (48 - SMALLEST_BITS) * STEPS };
enum { NEAR = 4 };  // a mapped block may be so many classes larger, about half, than what is asked for
static const size_t MAPPED = (size_t)1 << 20;  // from here on blocks are mapped, and unmapped when trimmed
static const size_t HUGE_PAGE = (size_t)2 << 20;

typedef struct block {
    struct block *next;
} block;
static block *free_blocks[CLASSES];
static size_t in_use, cached, peak;
static size_t footprint;  // the most that was in use and cached at once, since the cache was emptied

static size_t class_bytes(int size_class) {
    size_t base = (size_t)1 << (SMALLEST_BITS + size_class / STEPS);
    size_t bytes = base + base / STEPS * (size_t)(size_class % STEPS);
    size_t unit = bytes >= MAPPED ? 4096 : 64;
    return (bytes + unit - 1) / unit * unit;
}

static int class_of(size_t bytes) {
    if (bytes <= ((size_t)1 << SMALLEST_BITS)) return 0;
    int bits = 63 - __builtin_clzll(bytes - 1);  // 2^bits <= bytes - 1 < 2^(bits + 1)
    size_t base = (size_t)1 << bits;
    size_t step = base / STEPS;
    return (bits - SMALLEST_BITS) * STEPS + (int)((bytes - base + step - 1) / step);
}

static void *system_take(size_t bytes) {
    if (bytes < MAPPED) return aligned_alloc(64, bytes);
    size_t slack = bytes >= 2 * HUGE_PAGE ? HUGE_PAGE : 0;
    char *memory = mmap(NULL, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    if (!slack) return memory;
    // trim the mapping to a 2 MiB boundary so that huge pages fit
    size_t head = (size_t)(-(uintptr_t)memory) & (HUGE_PAGE - 1);
    if (head) munmap(memory, head);
    if (slack > head) munmap(memory + head + bytes, slack - head);
#ifdef MADV_HUGEPAGE
    madvise(memory + head, bytes, MADV_HUGEPAGE);
#endif
    return memory + head;
}

static void system_give(void *memory, size_t bytes) {
    if (bytes < MAPPED) free(memory);
    else munmap(memory, bytes);
}

void allocator_trim(size_t remaining) {
    for (int c = CLASSES - 1; c >= 0 && cached > remaining; c--)
        while (free_blocks[c] && cached > remaining) {
            block *first = free_blocks[c];
            free_blocks[c] = first->next;
            cached -= class_bytes(c);
            system_give(first, class_bytes(c));
        }
    if (!remaining) footprint = in_use;
}

void *allocator_take(size_t bytes, int *size_class) {
    if (bytes > (size_t)1 << 47) return NULL;
    int c = class_of(bytes);
    if (bytes >= MAPPED)  // sizes that vary from step to step share blocks, so that no cache of each piles up
        for (int larger = c; larger <= c + NEAR && larger < CLASSES; larger++)
            if (free_blocks[larger]) {
                c = larger;
                break;
            }
    size_t rounded = class_bytes(c);
    *size_class = c;
    block *memory = free_blocks[c];
    if (memory) {
        free_blocks[c] = memory->next;
        cached -= rounded;
    } else {
        // Beyond the footprint the cache is kept small against what is in use: sizes that never come back must not pile
        // up. Below it they stay: after an evaluation the next step finds its blocks again.
        size_t total = in_use + cached + rounded;
        if (total > footprint && cached > in_use / 4 + (64u << 20)) {
            size_t few = in_use / 8 + (32u << 20), excess = total - footprint;
            allocator_trim(cached > few + excess ? cached - excess : few);
        }
        memory = system_take(rounded);
        if (!memory) {
            allocator_trim(0);
            memory = system_take(rounded);
        }
        if (!memory) return NULL;
    }
    in_use += rounded;
    if (in_use > peak) peak = in_use;
    if (in_use + cached > footprint) footprint = in_use + cached;
    return memory;
}

void allocator_give(void *memory, int size_class) {
    block *freed = memory;
    freed->next = free_blocks[size_class];
    free_blocks[size_class] = freed;
    in_use -= class_bytes(size_class);
    cached += class_bytes(size_class);
}

size_t allocator_in_use(void) { return in_use; }
size_t allocator_peak(void) { return peak; }
size_t allocator_cached(void) { return cached; }
void allocator_reset_peak(void) { peak = in_use; }
