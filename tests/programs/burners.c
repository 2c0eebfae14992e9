/*
 * Burns time as argv[1] says: in threads, in a library that is loaded late (argv[2]) and perhaps
 * unlinked, in code made at run time, or in a child that runs no other program.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

__attribute__((noinline)) int spin(int depth, long rounds)
{
	volatile long sum = 0;
	if (depth > 0) {
		sum = spin(depth - 1, rounds);
		__asm__ volatile("" ::: "memory"); /* or gcc makes a loop of it */
		return (int)sum;
	}
	for (long n = 0; n < rounds; n++)
		sum += n;
	return (int)sum;
}

static void *thread(void *argument)
{
	char name[16];
	snprintf(name, sizeof name, "burner %ld", (long)argument);
	pthread_setname_np(pthread_self(), name);
	for (int n = 0; n < 40; n++)
		spin(3 + (int)(long)argument, 400000);
	return NULL;
}

static void threads(void)
{
	pthread_t made[4];
	for (long n = 0; n < 4; n++)
		pthread_create(&made[n], NULL, thread, (void *)n);
	for (int n = 0; n < 4; n++)
		pthread_join(made[n], NULL);
}

static void library(const char *path, int unlinked)
{
	void *handle = dlopen(path, RTLD_NOW);
	if (handle == NULL)
		exit(3);
	if (unlinked)
		unlink(path);
	int (*burn)(int, long) = dlsym(handle, "burn_in_library");
	for (int n = 0; n < 40; n++)
		burn(6, 1000000);
}

/* push rbp; mov rbp, rsp; mov rcx, rdi; dec rcx; jnz -5; pop rbp; ret */
static const unsigned char LOOP[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0xf9, 0x48,
				     0xff, 0xc9, 0x75, 0xfb, 0x5d, 0xc3};

__attribute__((noinline)) static int made(long rounds)
{
	int protection = PROT_READ | PROT_WRITE | PROT_EXEC;
	char path[64];
	unsigned char *code = mmap(NULL, 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(code + 64, LOOP, sizeof LOOP);
	snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
	FILE *map = fopen(path, "w");
	fprintf(map, "%lx %lx made at run time\n", (long)(code + 64), (long)sizeof LOOP);
	fclose(map);
	((void (*)(long))(code + 64))(rounds);
	return spin(2, 10000);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	if (!strcmp(mode, "threads"))
		threads();
	else if (!strcmp(mode, "library"))
		library(argv[2], 0);
	else if (!strcmp(mode, "unlinked"))
		library(argv[2], 1);
	else if (!strcmp(mode, "made"))
		made(200000000);
	else if (!strcmp(mode, "fork") && fork() == 0)
		return spin(9, 60000000) & 0;
	else if (!strcmp(mode, "exec") && fork() == 0)
		return execv(argv[2], argv + 2);
	while (wait(NULL) > 0)
		;
	return 0;
}
