// Caching allocator of tensors: blocks are reused between steps, large ones are mapped and ask for huge pages.
// Not thread-safe by itself: every caller holds the GIL.
#pragma once
#include <stddef.h>

void *allocator_take(size_t bytes, int *size_class);  // 64-byte aligned; NULL when memory is out
void allocator_give(void *memory, int size_class);    // back to the cache
void allocator_trim(size_t remaining);  // return cached blocks to the system until `remaining` bytes remain
size_t allocator_in_use(void);          // bytes handed out, as rounded to size classes
size_t allocator_peak(void);            // the largest that in_use has been since the last reset
size_t allocator_cached(void);          // bytes held for reuse
void allocator_reset_peak(void);
