/* How the cost of unwinding grows: `growth SECONDS DEPTH LIBRARY...` calls functions of the
   libraries at random, DEPTH of them from one another. What they export tools/bench_perf.py says. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct state {
	int (**table)(struct state *, int);
	unsigned count, seed;
};

int main(int argc, char **argv)
{
	struct state s = {NULL, 0, 1};
	double seconds = argc > 1 ? atof(argv[1]) : 1;
	int depth = argc > 2 ? atoi(argv[2]) : 10, total = 0;

	for (int n = 3; n < argc; n++) {
		void *library = dlopen(argv[n], RTLD_NOW);
		if (!library) {
			fprintf(stderr, "%s\n", dlerror());
			return 1;
		}
		unsigned count = *(const unsigned *)dlsym(library, "count");
		int (**functions)(struct state *, int) = dlsym(library, "functions");
		s.table = realloc(s.table, (s.count + count) * sizeof *s.table);
		for (unsigned i = 0; i < count; i++)
			s.table[s.count++] = functions[i];
	}
	while (clock() < seconds * CLOCKS_PER_SEC)
		for (int n = 0; n < 100; n++)
			total += s.table[0](&s, depth);
	return total == 42;
}
