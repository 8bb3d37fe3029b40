// Mapped files: what to say when one is cut off under a running program.
#pragma once
#include <stddef.h>

int sigbus_watch(const void *start, size_t size, const char *name);  // the number of the range; -1 when all are taken
void sigbus_forget(int number);                                      // a range that is about to be unmapped
