/* SPDX-License-Identifier: MIT */
/*
 * A program that knows its leaks: threads that allocate in every way, at all depths, free some
 * of it, and keep the record of the rest: address, size, and the calls that led there, by return
 * addresses, as the functions themselves see them.
 *
 * usage: leaks record threads rounds depth [fork|exec|wait]
 *
 * `record` gets, at the end, for each block that is left, 8 bytes each of: address, size, n, and
 * n return addresses, innermost first, the number of bytes between records being 8 * (DEEPEST + 3).
 * With `fork` a child allocates and frees what it has inherited; with `exec` the program begins
 * anew when it has leaked already; with `wait` it says "done" and goes on until its input ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEEPEST 128
#define MOST 40000

struct shadow {
	unsigned long count, ra[DEEPEST];
};

struct block {
	unsigned long address, size, count, ra[DEEPEST];
};

static __thread struct shadow shadow;
static struct block blocks[MOST];
static unsigned long used;
static long rounds, depth;

static inline void leave(const int *unused)
{
	(void)unused;
	shadow.count--;
}

#define ENTER()									\
	int entered __attribute__((cleanup(leave)));				\
	shadow.ra[shadow.count++] = (unsigned long)__builtin_return_address(0)

#define NOINLINE __attribute__((noinline, noclone))

/* What the compiler cannot know. */
static void *hidden(void *p)
{
	__asm__ volatile("" : "+r"(p) : : "memory");
	return p;
}

static void keep(void *p, unsigned long size)
{
	unsigned long n = __atomic_fetch_add(&used, 1, __ATOMIC_RELAXED);
	struct block *block = &blocks[n];

	if (n >= MOST)
		abort();
	block->address = (unsigned long)p;
	block->size = size;
	block->count = shadow.count;
	for (unsigned long i = 0; i < shadow.count; i++)
		block->ra[i] = shadow.ra[shadow.count - 1 - i];
}

NOINLINE static void by_malloc(unsigned long n)
{
	ENTER();
	keep(hidden(malloc(n)), n);
	free(hidden(malloc(n + 1)));
}

NOINLINE static void by_calloc(unsigned long n)
{
	ENTER();
	keep(hidden(calloc(n, 3)), n * 3);
	free(hidden(calloc(n, 5)));
	hidden(calloc(SIZE_MAX / 2, n + 3));	/* fails */
}

NOINLINE static void by_realloc(unsigned long n)
{
	ENTER();
	void *p = hidden(malloc(n)), *q;
	void *volatile old;

	for (unsigned long i = 1; i < 6; i++)
		p = hidden(realloc(p, n << i));	/* of a place, or to another one */
	old = p;
	q = hidden(realloc(p, SIZE_MAX / 4));	/* fails: what was there stays there */
	if (q)
		abort();
	keep(hidden(realloc(old, n + 9)), n + 9);
	free(hidden(realloc(NULL, n)));
}

NOINLINE static void by_failed_realloc(unsigned long n)
{
	ENTER();
	void *p = hidden(malloc(n)), *q;

	keep(p, n);
	q = hidden(realloc(p, SIZE_MAX / 4));
	if (q)
		abort();
}

NOINLINE static void by_reallocarray(unsigned long n)
{
	ENTER();
	void *p = hidden(reallocarray(NULL, n, 7));

	keep(hidden(reallocarray(p, n, 11)), n * 11);
}

NOINLINE static void by_posix_memalign(unsigned long n)
{
	ENTER();
	void *p = NULL, *q = &p;

	if (posix_memalign(&p, 64, n))
		abort();
	keep(p, n);
	if (!posix_memalign(&q, 24, n))		/* fails: no power of two */
		abort();
	if (posix_memalign(&p, 4096, n))
		abort();
	free(hidden(p));
}

NOINLINE static void by_aligned(unsigned long n)
{
	ENTER();
	switch (n % 4) {
	case 0:
		keep(hidden(aligned_alloc(64, n)), n);
		break;
	case 1:
		keep(hidden(memalign(128, n)), n);
		break;
#ifdef __GLIBC__
	case 2:
		keep(hidden(valloc(n)), n);
		break;
	case 3:
		keep(hidden(pvalloc(n)), n);
		break;
#endif
	}
}

NOINLINE static void by_mmap(unsigned long n)
{
	ENTER();
	unsigned long page = 4096, size = page * (2 + n % 3);
	char *p = mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *q = mmap(NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED || q == MAP_FAILED || munmap(q, page) || munmap(p, page))
		abort();
	keep(p + page, size - page);	/* its first page has gone */
	mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);	/* fails */
}

static void (*const ways[])(unsigned long) = {
	by_malloc, by_calloc, by_realloc, by_failed_realloc, by_reallocarray, by_posix_memalign,
	by_aligned, by_mmap,
};

#define WAYS ((long)(sizeof(ways) / sizeof(ways[0])))

void descend(long left, long id);

NOINLINE static void plain(long left, long id)
{
	ENTER();
	descend(left - 1, id);
	__asm__ volatile("");
}

/* Wants every register that a call preserves. */
NOINLINE static long many(long left, long id)
{
	ENTER();
	volatile long seed = id;
	long a = seed, b = seed * 3, c = seed * 5, d = seed * 7, e = seed * 11, f = seed * 13;

	descend(left - 1, id);
	return (a ^ b) + (c ^ d) + (e ^ f);
}

NOINLINE static void variable(long left, long id)
{
	ENTER();
	volatile char room[16 + left % 7 * 8];

	room[left % 8] = 1;
	descend(left - 1, id);
	(void)room[left % 8];
}

NOINLINE void descend(long left, long id)
{
	ENTER();
	if (left <= 0) {
		ways[id % WAYS](8 + id % 99);
		__asm__ volatile("");
		return;
	}
	switch ((left + id) % 3) {
	case 0:
		plain(left - 1, id);
		break;
	case 1:
		many(left - 1, id);
		break;
	default:
		variable(left - 1, id);
	}
	__asm__ volatile("");
}

static void *work(void *argument)
{
	ENTER();
	for (long n = 0; n < rounds; n++)
		for (long way = 0; way < WAYS; way++)
			descend(n % (depth - 4), n * WAYS + way);
	return argument;
}

static void write_record(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	const char *at = (const char *)blocks;
	unsigned long left = used * sizeof(blocks[0]);

	while (left) {
		long done = write(fd, at, left);

		if (done <= 0)
			abort();
		at += done;
		left -= done;
	}
	close(fd);
}

int main(int argc, char **argv)
{
	long threads = atol(argv[2]);
	const char *more = argc > 5 ? argv[5] : "";
	pthread_t known[64];
	char go;

	rounds = atol(argv[3]);
	depth = atol(argv[4]);
	if (!strcmp(more, "exec")) {
		hidden(malloc(123456));
		argv[5] = "";
		execv("/proc/self/exe", argv);
		abort();
	}
	for (long n = 0; n < threads; n++)
		if (pthread_create(&known[n], NULL, work, (void *)n))
			return 1;
	work(NULL);
	for (long n = 0; n < threads; n++)
		pthread_join(known[n], NULL);
	if (!strcmp(more, "fork")) {
		pid_t child = fork();
		int status;

		if (!child) {
			hidden(malloc(654321));
			for (unsigned long n = 0; n < used; n++)
				if (blocks[n].address % 4096)
					free((void *)blocks[n].address);
			_exit(0);
		}
		if (waitpid(child, &status, 0) != child || status)
			return 1;
	}
	write_record(argv[1]);
	if (!strcmp(more, "wait")) {
		if (write(1, "done\n", 5) != 5)
			return 1;
		while (read(0, &go, 1) > 0)
			;
	}
	return 0;
}
