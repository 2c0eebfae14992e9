/* Recursion a hundred frames deep: an expression tree is evaluated, printed and thrown away, again
   and again, for as many seconds of the processor as the argument says. */
#include <cstdlib>
#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <string>

namespace {

struct Node {
	virtual ~Node() = default;
	virtual long eval(const std::map<std::string, long> &names) const = 0;
	virtual std::string text() const = 0;
};

using Tree = std::unique_ptr<Node>;

struct Name : Node {
	std::string name;
	explicit Name(int n) : name("name" + std::to_string(n)) {}
	long eval(const std::map<std::string, long> &names) const override
	{
		auto found = names.find(name);
		return found == names.end() ? 1 : found->second;
	}
	std::string text() const override { return name; }
};

struct Sum : Node {
	Tree left, right;
	Sum(Tree a, Tree b) : left(std::move(a)), right(std::move(b)) {}
	long eval(const std::map<std::string, long> &names) const override
	{
		return left->eval(names) + right->eval(names);
	}
	std::string text() const override { return "(" + left->text() + "+" + right->text() + ")"; }
};

struct Call : Node {
	std::function<long(long)> function;
	Tree argument;
	Call(std::function<long(long)> f, Tree a) : function(std::move(f)), argument(std::move(a)) {}
	long eval(const std::map<std::string, long> &names) const override
	{
		return function(argument->eval(names));
	}
	std::string text() const override { return "f(" + argument->text() + ")"; }
};

Tree grow(int depth, unsigned &seed)
{
	seed = seed * 1664525 + 1013904223;
	unsigned choice = seed >> 24;
	if (depth == 0)
		return std::make_unique<Name>(choice % 50);
	if (choice < 100)
		return std::make_unique<Call>([choice](long n) { return n ^ choice; },
					      grow(depth - 1, seed));
	return std::make_unique<Sum>(std::make_unique<Name>(choice % 50), grow(depth - 1, seed));
}

} // namespace

int main(int argc, char **argv)
{
	double seconds = argc > 1 ? atof(argv[1]) : 1;
	std::map<std::string, long> names;
	for (int n = 0; n < 50; n++)
		names["name" + std::to_string(n)] = n;
	unsigned seed = 1;
	long total = 0;
	while (clock() < seconds * CLOCKS_PER_SEC) {
		Tree tree = grow(90, seed);
		for (int n = 0; n < 5; n++)
			total += tree->eval(names);
		total += tree->text().size();
	}
	return total == 42;
}
