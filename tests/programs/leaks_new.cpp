/* SPDX-License-Identifier: MIT */
/* C++'s new and delete: what it leaks is so many bytes of so many blocks, which it prints. */
#include <cstdio>
#include <new>
#include <string>
#include <vector>

struct alignas(64) Wide {
	char room[192];
};

static void *volatile kept;

__attribute__((noinline)) static void leak_one(int n)
{
	kept = new char[100 + n];
}

__attribute__((noinline)) static void leak_wide()
{
	kept = new Wide;
}

__attribute__((noinline)) static void leak_quietly()
{
	kept = new (std::nothrow) int[50];
}

int main()
{
	long bytes = 0, count = 0;

	for (int n = 0; n < 10; n++) {
		leak_one(n);
		bytes += 100 + n;
		leak_wide();
		bytes += sizeof(Wide);
		leak_quietly();
		bytes += 50 * sizeof(int);
		count += 3;
		std::vector<std::string> gone(20, std::string(100, 'x'));
		delete new Wide;
		delete[] new int[n + 1];
	}
	std::fprintf(stderr, "%ld %ld\n", bytes, count);
	return 0;
}
