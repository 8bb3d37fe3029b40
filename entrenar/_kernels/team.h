// The threads that run parallel regions, as the code that GCC makes of OpenMP pragmas calls them (team_calls.c).
#ifndef ENTRENAR_TEAM_H
#define ENTRENAR_TEAM_H

typedef void team_body(void *data);
typedef struct {
    void (*parallel)(team_body *body, void *data, unsigned threads);
    void (*barrier)(void);
    int (*loop_start)(long start, long end, long increment, long chunk, long *first, long *last);
    int (*loop_next)(long *first, long *last);
    int (*thread)(void);
    int (*threads)(void);
} team_calls;

extern const team_calls team;  // cpu's; other extensions get its address through the capsule TEAM_CAPSULE
#define TEAM_CAPSULE "entrenar._kernels.cpu._team"

enum { TEAM_ADAPTIVE, TEAM_PASSIVE, TEAM_ACTIVE };
void team_set_waiting(int policy);
int team_waiting(void);
// Let thread i of the calling thread's team, of `threads` that run it or of all that exist where 0, run on CPU
// cpus[i % count] alone, or where !each on all of them; 0, or the errno of a thread that could not be moved.
int team_place(int threads, const int *cpus, int count, int each);

#endif
