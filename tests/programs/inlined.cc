/* SPDX-License-Identifier: MIT */
/*
 * Functions within functions: calls that compilers inline, in C++, with their lines.
 *
 * Without an argument it crashes in deepest(), which is inlined three times over: into a lambda,
 * that into a template, and that into run(), which is not.
 */
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace shop {

int *volatile nowhere;

static inline __attribute__((always_inline)) int deepest(int n)
{
	if (nowhere == nullptr)
		__builtin_trap();
	return n + *nowhere;
}

template <typename T, typename F>
static inline __attribute__((always_inline)) T apply(T value, F function)
{
	return function(value) * 2;
}

struct Basket {
	std::vector<int> prices;

	int total() const
	{
		int sum = 0;
		for (int price : prices)
			sum += price > 100 ? price - 10 : price;
		return sum;
	}

	void sort()
	{
		std::sort(prices.begin(), prices.end(), [](int a, int b) { return a > b; });
	}
};

__attribute__((noinline)) int run(int n)
{
	if (__builtin_expect(n > 1000, 0)) {
		std::fprintf(stderr, "too many: %d\n", n);
		std::abort();
	}
	return apply(n, [](int value) __attribute__((always_inline)) {
		return deepest(value + 1);
	}) + 3;
}

__attribute__((noinline)) std::string names(const Basket &basket)
{
	std::string all;
	for (int price : basket.prices)
		all += std::to_string(price) + ";";
	return all;
}

} // namespace shop

int main(int argc, char **argv)
{
	shop::Basket basket;
	for (int n = 0; n < argc + 20; n++)
		basket.prices.push_back((n * 7919) % 113);
	basket.sort();
	std::string names = shop::names(basket);
	if (argc > 1) {
		std::printf("%d %s %s\n", basket.total(), names.c_str(), argv[1]);
		return 0;
	}
	return shop::run(basket.total() % 10) + 1;
}
