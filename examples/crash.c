/*
 * A program that crashes as programs do: it reads a list of numbers in parentheses, one thread
 * beside it waits for work, and a null pointer waits three levels down.
 *
 *     cc -O2 -fomit-frame-pointer -pthread -o crash crash.c
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct reader {
	const char *text;
	const char *unit; /* what numbers are measured in; nobody has set it */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ready = PTHREAD_COND_INITIALIZER;

__attribute__((noinline)) static size_t read_number(struct reader *reader)
{
	size_t digits = strspn(reader->text, "0123456789");

	reader->text += digits;
	return digits + strlen(reader->unit);
}

__attribute__((noinline)) static size_t read_list(struct reader *reader)
{
	size_t width = 0;

	reader->text++;
	while (*reader->text != ')')
		width += *reader->text == '(' ? read_list(reader) : read_number(reader);
	reader->text++;
	return width + 2;
}

__attribute__((noinline)) static void wait_for_work(void)
{
	pthread_mutex_lock(&lock);
	for (;;)
		pthread_cond_wait(&ready, &lock);
}

static void *worker(void *unused)
{
	wait_for_work();
	return unused;
}

int main(void)
{
	struct reader reader = { .text = "(((42)))" };
	pthread_t thread;

	pthread_create(&thread, NULL, worker, NULL);
	usleep(100000); /* let the worker reach its wait */
	printf("the list is %zu wide\n", read_list(&reader));
	return 0;
}
