// SPDX-License-Identifier: MIT
/*
 * An allocator watched: what is outstanding, and each kind of stack once into the ring.
 *
 *	on_enter	a function is called: its arguments are kept, and the stack gets its key
 *	on_leave	it returns: what it gave is outstanding, or what it took is so again
 *	on_exec		the process runs another program, and has allocated nothing
 *
 * The stack is looked at on entry.  A uretprobe has the call return to a page of its own, but the
 * kernel writes that over the return address when all entry probes have run.
 *
 * Of calls within calls (calloc's of malloc) the outermost counts.
 */
/* 256 kB: of more, the verifier of Linux 6.1 follows too many, page by page. */
#define MOST_PAGES	65

#include "send.h"
#include "leaks.h"

#define CHUNK		16		/* words of the stack that are hashed at once */
#define CHUNK_SIZE	(CHUNK * sizeof(USER_WORD))
#define MOST_FRAMES	1024
#define CHECKED		1024		/* one of so many stacks that are known is sent again */
#define NOT_MAPPED	((USER_WORD)-1)
#define USER_BEGIN	(1ull << 16)	/* nothing is mapped below: vm.mmap_min_addr */
#define USER_END	(1ull << 56)	/* no address of user space lies above: arm64 with LVA */

/* A call that has not returned. */
struct call {
	__u64 sp;
	__u64 returns_to;
	__u64 size;
	__u64 into;		/* ALLOCATE_INTO */
	__u64 old;		/* RESIZE: the address */
	struct block had;	/* what was there, if `moves` */
	__u64 stack;
	__u32 function;
	__u16 moves;		/* RESIZE: something that we know */
	__u16 skipped;
};

struct {
	MAP_NUMBER(type, MAP_TYPE_HASH);
	MAP_NUMBER(max_entries, 1 << 20);
	MAP_TYPE(key, __u64);
	MAP_TYPE(value, struct block);
} blocks SEC(".maps");

struct {
	MAP_NUMBER(type, MAP_TYPE_HASH);
	MAP_NUMBER(max_entries, 1 << 16);
	MAP_TYPE(key, __u64);
	MAP_TYPE(value, struct site);
} sites SEC(".maps");

struct {
	MAP_NUMBER(type, MAP_TYPE_HASH);
	MAP_NUMBER(max_entries, 1 << 16);
	MAP_TYPE(key, struct place);
	MAP_TYPE(value, struct step);
} steps SEC(".maps");

struct {
	MAP_NUMBER(type, MAP_TYPE_HASH);
	MAP_NUMBER(max_entries, 1 << 14);
	MAP_TYPE(key, __u64);
	MAP_TYPE(value, struct call);
} calls SEC(".maps");

struct {
	MAP_NUMBER(type, MAP_TYPE_ARRAY);
	MAP_NUMBER(max_entries, 2);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct plan);
} plans SEC(".maps");

struct {
	MAP_NUMBER(type, MAP_TYPE_ARRAY);
	MAP_NUMBER(max_entries, 1);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct life);
} lives SEC(".maps");

struct {
	MAP_NUMBER(type, MAP_TYPE_PERCPU_ARRAY);
	MAP_NUMBER(max_entries, 1);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct totals);
} totals SEC(".maps");

struct {
	MAP_NUMBER(type, MAP_TYPE_RINGBUF);
	MAP_NUMBER(max_entries, 1 << 20);
} told SEC(".maps");

/* Nothing else would have the compiler describe these to user space. */
const enum allocator_function *const volatile function_names SEC(".rodata.layout") = 0;
const struct call_told *const volatile told_layout SEC(".rodata.layout") = 0;

inline_always struct plan *plan_now(void)
{
	__u32 first = 0, second = 1;
	struct plan *one = map_lookup_elem(&plans, &first);
	struct plan *two = map_lookup_elem(&plans, &second);

	if (!one || !two)
		return 0;
	/* A plan that is being written has two serials. */
	if (two->serial > one->serial && two->serial == two->serial_again)
		return two;
	return one->serial == one->serial_again ? one : two;
}

inline_always struct totals *totals_here(void)
{
	__u32 key = 0;

	return map_lookup_elem(&totals, &key);
}

#define COUNT(member, n)						\
	do {								\
		struct totals *here = totals_here();			\
									\
		if (here)						\
			__sync_fetch_and_add(&here->member, (n));	\
	} while (0)

/* ---------------------------------------------------------------- the key of a stack */

/*
 * The key is a hash of the pcs, where the stack can be walked here: user space has told, of the
 * places that it came to itself, what plain steps lead on from there.  Else the key is a hash of all
 * that its walk could depend on.  In both, two stacks of one key have the same walk, as long as
 * 64 bits do not collide; some known stacks are sent again, and there it would be seen.
 */
struct hashing {
	__u64 hash;
	__u64 sp;
	__u64 start;		/* of the first chunk */
	__u64 reach;		/* bytes from sp on that belong to the stack */
	__u64 settled;
};

inline_always void mix(struct hashing *hashing, __u64 place, __u64 word)
{
	__u64 hash = hashing->hash ^ (word + place * 0x9e3779b97f4a7c15);

	hash *= 0xd6e8feb86659fd93;
	hashing->hash = hash ^ hash >> 32;
}

/*
 * A walk finds pcs and CFAs, and nothing else decides where it goes: so of two stacks the walks
 * are alike if all words are alike that may be either, each at its place.  A word that lies in
 * the stack counts by its distance, so that the same calls of two threads are alike.
 */
inline_always void mix_word(struct hashing *hashing, const struct plan *plan, __u64 place,
			    __u64 word)
{
	__u64 within = word - hashing->sp;

	if (within < hashing->reach) {
		mix(hashing, place, within);
		return;
	}
	word = CODE_ADDRESS(word);
	if (word < USER_BEGIN || word >= USER_END)
		return;
	if (!hashing->settled) {
		mix(hashing, place, word);
		return;
	}
	for (__u32 n = 0; n < MOST_CODE; n++) {
		if (word - plan->code[n].start < plan->code[n].size) {
			mix(hashing, place, word);
			return;
		}
	}
}

static long hash_chunk(__u64 index, struct hashing *hashing)
{
	const struct plan *plan = plan_now();
	USER_WORD words[CHUNK];
	__u64 at = hashing->start + index * sizeof(words);

	if (!plan || probe_read_user(words, sizeof(words), (const void *)at))
		return 1;
	for (__u32 n = 0; n < CHUNK; n++) {
		__u64 place = at + sizeof(words[0]) * n - hashing->sp;

		if (place < hashing->reach)	/* what lies below the stack pointer is not below it */
			mix_word(hashing, plan, place, words[n]);
	}
	return 0;
}

struct walk {
	struct hashing hashing;
	struct place place;
	__u64 sp;
	__u64 fp;
	__u64 link;		/* where the innermost call returns to, if a register has that */
	__u64 finished;
};

static long take_step(__u64 index, struct walk *walk)
{
	struct step *step = map_lookup_elem(&steps, &walk->place);
	USER_WORD word = 0;
	__u64 cfa;

	if (!step)
		return 1;
	mix(&walk->hashing, walk->place.called, walk->place.pc);
	if (step->flags & STEP_OUTERMOST) {
		walk->finished = 1;
		return 1;
	}
	cfa = (step->flags & STEP_ON_FP ? walk->fp : walk->sp) + step->cfa;
	if (step->flags & STEP_IN_LINK) {
		if (index)
			return 1;
		walk->place.pc = walk->link;
	} else {
		if (cfa <= walk->sp || probe_read_user(&word, sizeof(word), (void *)(cfa + step->pc)))
			return 1;
		walk->place.pc = CODE_ADDRESS(word);
	}
	if (step->flags & STEP_SAVES_FP) {
		if (probe_read_user(&word, sizeof(word), (void *)(cfa + step->fp)))
			return 1;
		walk->fp = word;
	}
	walk->place.called = 1;
	walk->sp = cfa;
	return 0;
}

/* The key of a stack that can be walked here, 0 of another one. */
inline_always __u64 key_of_walk(const USER_REGS *regs, const struct plan *plan, __u32 epoch)
{
	struct walk walk = {
		.place = { .pc = USER_PC(regs), .generation = plan->generation },
		.sp = USER_SP(regs), .fp = USER_FP(regs), .link = CODE_ADDRESS(USER_LINK(regs)),
	};

	mix(&walk.hashing, plan->generation, epoch);
	loop(MOST_FRAMES, take_step, &walk, 0);
	return walk.finished ? walk.hashing.hash : 0;
}

/* The key of the stack: never 0. */
inline_always __u64 key_of(const USER_REGS *regs, const struct plan *plan, __u32 epoch,
			   bool settled)
{
	struct hashing hashing = { .settled = settled };
	__u64 place = -1;	/* of a register: none of the stack's */
	__u64 walked = settled ? key_of_walk(regs, plan, epoch) : 0;
	__u32 chunks;

	if (walked)
		return walked;
	hashing.sp = USER_SP(regs);
	hashing.start = hashing.sp & -(__u64)CHUNK_SIZE;
	/* As far as `send` copies. */
	hashing.reach = pages_wanted(hashing.sp) * PAGE_SIZE - hashing.sp % PAGE_SIZE;
	mix(&hashing, settled, plan->generation);
	mix(&hashing, 0, epoch);
	mix(&hashing, 1, USER_PC(regs));
#define MIX(word) mix_word(&hashing, plan, place--, (word));
	PRESERVED(MIX, regs)
#undef MIX
	chunks = (hashing.reach + CHUNK_SIZE - 1) / CHUNK_SIZE + 1;
	loop(chunks, hash_chunk, &hashing, 0);
	return hashing.hash ? hashing.hash : 1;
}

/* The key of the stack, which is sent if it is the first one; 0 where there is no room. */
inline_always __u64 stack_of(USER_REGS *regs, const struct plan *plan, struct task_struct *task)
{
	__u32 first = 0;
	struct life *life = map_lookup_elem(&lives, &first);
	struct site *site;
	__u64 key, calls;

	bool settled;

	if (!life)
		return 0;
	settled = task->mm->exec_vm == plan->exec_pages && life->epoch == plan->epoch;
	if (!settled)
		life->unsettled = plan->serial;
	key = key_of(regs, plan, life->epoch, settled);
	site = map_lookup_elem(&sites, &key);
	if (!site) {
		struct site fresh = { .epoch = life->epoch };

		map_update_elem(&sites, &key, &fresh, BPF_NOEXIST);
		site = map_lookup_elem(&sites, &key);
		if (!site)
			return 0;
	}
	calls = __sync_fetch_and_add(&site->calls, 1);
	if ((!site->posted || (calls && calls % CHECKED == 0)) && send(0, key, 1, regs))
		site->posted = 1;
	return key;
}

/* ---------------------------------------------------------------- what is outstanding */

inline_always void add_to_site(__u64 key, __u64 bytes, __u64 count, __u64 events)
{
	struct site *site = map_lookup_elem(&sites, &key);

	if (site) {
		__sync_fetch_and_add(&site->events, events);
		__sync_fetch_and_add(&site->bytes, bytes);
		__sync_fetch_and_add(&site->count, count);
	}
}

inline_always __u32 epoch_now(void)
{
	__u32 key = 0;
	struct life *life = map_lookup_elem(&lives, &key);

	return life ? life->epoch : 0;
}

inline_always void tell(const struct plan *plan, __u32 function, __u64 address, __u64 size,
			__u64 stack)
{
	struct call_told call = {
		.time = ktime_get_ns(), .address = address, .size = size, .stack = stack,
		.tid = number_of(get_current_task_btf()->thread_pid), .function = function,
	};

	if (plan->traced)
		ringbuf_output(&told, &call, sizeof(call), 0);
}

/* Take a block away; what it was in `had`.  False: it was none that we know. */
inline_always bool take_away(__u64 address, struct block *had)
{
	struct block *block = map_lookup_elem(&blocks, &address);

	if (!block)
		return 0;
	*had = *block;
	if (map_delete_elem(&blocks, &address))
		return 0;	/* another thread has been quicker */
	if (had->epoch != epoch_now())
		return 0;
	add_to_site(had->stack, -had->size, -1, 0);
	return 1;
}

/* `events`: 1 for a new allocation, 0 for one that is put back. */
inline_always void put(__u64 address, const struct block *block, const __u64 events)
{
	struct block before;

	if (take_away(address, &before)) {
		COUNT(replaced, 1);
		COUNT(replaced_bytes, before.size);
	}
	if (map_update_elem(&blocks, &address, block, BPF_ANY)) {
		COUNT(dropped, 1);
		COUNT(dropped_bytes, block->size);
		add_to_site(block->stack, 0, 0, events);
		return;
	}
	add_to_site(block->stack, block->size, 1, events);
}

inline_always void release(const struct plan *plan, __u32 function, __u64 address)
{
	struct block had;

	if (!take_away(address, &had))
		return;
	COUNT(frees, 1);
	tell(plan, function, address, had.size, had.stack);
}

/* Whole pages from the beginning on, or all of it. */
inline_always void unmap(const struct plan *plan, __u64 address, __u64 length)
{
	__u64 whole = (length + PAGE_SIZE - 1) & -(__u64)PAGE_SIZE;
	struct block had;

	if (!take_away(address, &had))
		return;
	tell(plan, UNMAP, address, had.size, had.stack);
	if (whole < had.size) {
		had.size -= whole;
		put(address + whole, &had, 0);
	} else {
		COUNT(frees, 1);
	}
}

/* ---------------------------------------------------------------- calls */

/* Whether this process is the one that is watched. */
inline_always bool is_wanted(struct task_struct *task)
{
	__u32 pid = number_of(task->group_leader->thread_pid);

	return pid && pid == settings.pid && pid != settings.self;
}

/* The bytes of an array; more than there can be where they are no number of 64 bits. */
inline_always __u64 product(__u64 count, __u64 size)
{
	return size && count > USER_END / size ? (__u64)-1 : count * size;
}

/* Where the call returns to. */
inline_always __u64 return_address(const USER_REGS *regs)
{
#if RETURN_SLOT
	USER_WORD found = 0;

	probe_read_user(&found, sizeof(found), (const void *)USER_SP(regs));
	return found;
#else
	return USER_LINK(regs);
#endif
}

/*
 * Whether a call is made within `outer`, which has not returned as far as we know.  A longjmp may
 * have left that; and a tail call has the same stack pointer, and returns to the kernel's page.
 */
inline_always bool is_within(const struct call *outer, const USER_REGS *regs,
			     struct task_struct *task)
{
	struct xol_area *area;

	if (USER_SP(regs) != outer->sp)
		return USER_SP(regs) < outer->sp;
	area = task->mm->uprobes_state.xol_area;
	return area && return_address(regs) - area->vaddr < PAGE_SIZE;
}

inline_always void read_arguments(struct call *call, const USER_REGS *regs)
{
	const __u64 arguments[] = USER_ARGUMENTS(regs);

	switch (call->function) {
	case ALLOCATE:
		call->size = arguments[0];
		break;
	case ALLOCATE_ARRAY:
		call->size = product(arguments[0], arguments[1]);
		break;
	case ALLOCATE_ALIGNED:
	case MAP:
		call->size = arguments[1];
		break;
	case ALLOCATE_INTO:
		call->into = arguments[0];
		call->size = arguments[2];
		break;
	case RESIZE:
		call->old = arguments[0];
		call->size = arguments[1];
		break;
	case RESIZE_ARRAY:
		call->old = arguments[0];
		call->size = product(arguments[1], arguments[2]);
		break;
	case REMAP:
		call->old = arguments[0];
		call->size = arguments[2];
		break;
	}
}

SEC("uprobe")
int on_enter(USER_REGS *ctx)
{
	__u32 function = get_attach_cookie(ctx);
	struct task_struct *task = get_current_task_btf();
	const struct plan *plan = plan_now();
	const __u64 arguments[] = USER_ARGUMENTS(ctx);
	__u64 me = get_current_pid_tgid();
	struct call call = { .function = function };
	struct call *outer;

	if (!plan || IS_COMPAT(ctx) || !is_wanted(task))
		return 0;
	if (function == FREE) {
		release(plan, FREE, arguments[0]);
		return 0;
	}
	if (function == UNMAP) {
		unmap(plan, arguments[0], arguments[1]);
		return 0;
	}
	outer = map_lookup_elem(&calls, &me);
	if (outer && is_within(outer, ctx, task))
		return 0;
	call.sp = USER_SP(ctx);
	read_arguments(&call, ctx);
	/* Before it is freed: as soon as it is, another thread may be given the address. */
	call.moves = call.old && take_away(call.old, &call.had);
	call.skipped = call.size < plan->smallest || call.size > plan->largest ||
		       (plan->every > 1 && get_prandom_u32() % plan->every);
	if (!call.skipped)
		call.stack = stack_of(ctx, plan, task);
	if (map_update_elem(&calls, &me, &call, BPF_ANY)) {
		COUNT(allocations, 1);	/* as far as we shall know */
		COUNT(dropped, 1);
		COUNT(dropped_bytes, call.size);
	}
	return 0;
}

inline_always bool has_failed(const struct call *call, __u64 address)
{
	if (call->function == MAP || call->function == REMAP)
		return address == NOT_MAPPED;
	return !address;
}

SEC("uretprobe")
int on_leave(USER_REGS *ctx)
{
	const struct plan *plan = plan_now();
	__u64 me = get_current_pid_tgid(), address = USER_RESULT(ctx);
	struct call *found = map_lookup_elem(&calls, &me);
	struct block made = {};
	struct call call;

	if (!plan || !found || USER_SP(ctx) != found->sp + RETURN_SLOT)
		return 0;
	call = *found;
	map_delete_elem(&calls, &me);
	if (call.function == ALLOCATE_INTO) {
		USER_WORD made_at = 0;

		if (!(__s32)address)
			probe_read_user(&made_at, sizeof(made_at), (const void *)call.into);
		address = made_at;
	}
	if (has_failed(&call, address)) {
		/* What could not be moved is still there; what was to have no bytes is freed. */
		if (call.moves && call.size) {
			put(call.old, &call.had, 0);
			return 0;
		}
	}
	if (call.moves) {
		COUNT(frees, 1);
		tell(plan, FREE, call.old, call.had.size, call.had.stack);
	}
	if (has_failed(&call, address))
		return 0;
	if (call.skipped)
		return 0;
	made.size = call.size;
	made.time = ktime_get_ns();
	made.stack = call.stack;
	made.tid = me;
	made.epoch = epoch_now();
	COUNT(allocations, 1);
	if (!call.stack)
		COUNT(nowhere, 1);
	put(address, &made, 1);
	tell(plan, call.function, address, call.size, call.stack);
	return 0;
}

SEC("raw_tracepoint")
int on_exec(void *ctx)
{
	__u32 key = 0;
	struct life *life = map_lookup_elem(&lives, &key);

	(void)ctx;
	if (life && is_wanted(get_current_task_btf()))
		__sync_fetch_and_add(&life->epoch, 1);
	return 0;
}

const char permission[] SEC("license") = "Dual MIT/GPL";
