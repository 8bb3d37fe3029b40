// Scratch memory of kernels: per calling thread, 64-byte aligned, reused and grown between calls.
#pragma once
#include <stddef.h>

// Two kernels that may be active at once on one thread (one calls the other) use different slots.
enum { SCRATCH_PACKED_A, SCRATCH_PACKED_B, SCRATCH_ATTENTION, SCRATCH_PARTIALS, SCRATCH_SLOTS };
void *scratch_get(int slot, size_t bytes);  // NULL when memory is out
size_t scratch_bytes(void);                 // held by the calling thread
void scratch_release(void);                 // frees the calling thread's
