/*
 * Runs code that it has made itself, x86-64 only, and tells of it by a dump, jit-PID.dump in its
 * directory (Linux v6.13 tools/perf/Documentation/jitdump-specification.txt). The code moves once.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct head { uint32_t magic, version, size, machine, pad, pid; uint64_t time, flags; };
struct prefix { uint32_t id, size; uint64_t time; };
struct load { uint32_t pid, tid; uint64_t vma, code, size, index; };
struct move { uint32_t pid, tid; uint64_t vma, old, code, size, index; };

static const unsigned char CODE[] = {	/* count(n): push %rbp; mov %rsp,%rbp; 1: dec %rdi; jne 1b */
	0x55, 0x48, 0x89, 0xe5, 0x48, 0xff, 0xcf, 0x75, 0xfb, 0x5d, 0xc3	/* pop %rbp; ret */
};

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void *made(int prot)
{
	char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	memcpy(page + 64, CODE, sizeof CODE);
	mprotect(page, 4096, prot);
	return page + 64;
}

static void tell_load(FILE *dump, void *code, const char *name, int index)
{
	struct prefix p = {0, sizeof p + sizeof(struct load) + strlen(name) + 1 + sizeof CODE, now()};
	struct load l = {getpid(), getpid(), (uint64_t)code, (uint64_t)code, sizeof CODE, index};

	fwrite(&p, sizeof p, 1, dump);
	fwrite(&l, sizeof l, 1, dump);
	fwrite(name, strlen(name) + 1, 1, dump);
	fwrite(CODE, sizeof CODE, 1, dump);
	fflush(dump);
}

int main(int argc, char **argv)
{
	long milliseconds = argc > 1 ? atol(argv[1]) : 300;
	struct head h = {0x4a695444, 1, sizeof h, 62, 0, getpid(), now(), 0};
	char name[64];
	FILE *dump;
	void *(first) = made(PROT_READ | PROT_EXEC), *second = made(PROT_READ | PROT_EXEC);
	void *third = made(PROT_READ | PROT_EXEC);

	snprintf(name, sizeof name, "jit-%d.dump", getpid());
	dump = fopen(name, "w+");
	fwrite(&h, sizeof h, 1, dump);
	fflush(dump);
	/* perf tells of the dump because it is mapped as code */
	mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fileno(dump), 0);
	tell_load(dump, first, "made::counts", 1);
	tell_load(dump, second, "made::moves", 2);
	{
		struct prefix p = {1, sizeof p + sizeof(struct move), now()};
		struct move m = {getpid(), getpid(), (uint64_t)third, (uint64_t)second,
				 (uint64_t)third, sizeof CODE, 2};

		fwrite(&p, sizeof p, 1, dump);
		fwrite(&m, sizeof m, 1, dump);
		fflush(dump);
	}
	for (uint64_t end = now() + milliseconds * 1000000ull; now() < end;) {
		((void (*)(long))first)(100000);
		((void (*)(long))third)(100000);
	}
	printf("%p %p\n", first, third);
	return 0;
}
