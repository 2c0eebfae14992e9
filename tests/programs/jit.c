/* SPDX-License-Identifier: MIT */
/*
 * Waits below code that it has made itself, in a page that it may write to: main, run, twice
 * the page, hold, pause.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const unsigned char CALL[] = {
	0x55, 0x48, 0x89, 0xe5,		/* push rbp; mov rbp, rsp */
	0xe8, 0x02, 0x00, 0x00, 0x00,	/* call what follows */
	0x5d, 0xc3,			/* pop rbp; ret */
	0x55, 0x48, 0x89, 0xe5,
	0xff, 0xd7,			/* call rdi */
	0x5d, 0xc3,
};

__attribute__((noinline)) static int hold(void)
{
	return pause() + 1; /* no tail call */
}

__attribute__((noinline)) static int run(unsigned char *page)
{
	return ((int (*)(int (*)(void)))page)(hold) + 1;
}

int main(void)
{
	int protection = PROT_READ | PROT_WRITE | PROT_EXEC;
	unsigned char *page = mmap(NULL, 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	memcpy(page, CALL, sizeof(CALL));
	return run(page) + 1;
}
