/* Burns time in stacks of many depths, through libc's qsort and its callbacks. */
#include <stdio.h>
#include <stdlib.h>

static int less(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

__attribute__((noinline)) static int sort(int count)
{
	int *numbers = malloc(count * sizeof *numbers);
	for (int n = 0; n < count; n++)
		numbers[n] = rand();
	qsort(numbers, count, sizeof *numbers, less);
	int found = numbers[count / 2];
	free(numbers);
	return found;
}

__attribute__((noinline)) int descend(int depth)
{
	volatile int room[5];
	room[depth % 5] = depth;
	if (depth == 0)
		return sort(2000);
	return descend(depth - 1) + room[depth % 5];
}

int main(int argc, char **argv)
{
	int rounds = argc > 1 ? atoi(argv[1]) : 300;
	unsigned sum = 0;
	for (int n = 0; n < rounds; n++)
		sum += descend(n % 24);
	printf("%u\n", sum);
}
