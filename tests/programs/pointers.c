/* SPDX-License-Identifier: MIT */
/*
 * Calls through a pointer that leads nowhere.
 *
 * usage: pointers null       address 0
 *        pointers unmapped   an address that nothing is mapped at
 *        pointers data       an object of the program, which is not executable
 *        pointers heap       anonymous memory, not executable
 */
#include "truth.h"

typedef long (*callback)(long n);

static long not_code[64] = { 1, 2, 3 };

NOINLINE long call(callback function, long n)
{
	ENTER();
	volatile char *room = (volatile char *)__builtin_alloca(n * 10);

	room[0] = 1;
	CRASHING_AT(function);
	TRUTH_CALL(TRUTH_WILD, "", function, n);
	return room[0];
}

NOINLINE long choose(const char *mode)
{
	ENTER();
	void *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	callback function = NULL;

	if (!strcmp(mode, "unmapped")) {
		munmap(page, 8192);
		function = (callback)(uintptr_t)((char *)page + 0x123);
	} else if (!strcmp(mode, "data")) {
		function = (callback)(uintptr_t)&not_code[5];
	} else if (!strcmp(mode, "heap")) {
		function = (callback)(uintptr_t)((char *)page + 0x10);
	}
	return call(function, 7) + 1;
}

int main(int argc, char **argv)
{
	ENTER();
	return choose(argc > 1 ? argv[1] : "null") != 0;
}
