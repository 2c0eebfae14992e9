/* A library that burns time. */

__attribute__((noinline)) int burn_in_library(int depth, long rounds)
{
	volatile long sum = 0;
	if (depth > 0) {
		sum = burn_in_library(depth - 1, rounds);
		__asm__ volatile("" ::: "memory"); /* or gcc makes a loop of it */
		return (int)sum;
	}
	for (long n = 0; n < rounds; n++)
		sum += n;
	return (int)sum;
}
