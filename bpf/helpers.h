/* SPDX-License-Identifier: MIT */
/*
 * The calls into the kernel that our programs make, by their numbers in enum bpf_func_id of
 * Linux v6.13 include/uapi/linux/bpf.h, and the sections that libbpf looks for.
 */
#ifndef UNWIND_HELPERS_H
#define UNWIND_HELPERS_H

#include "vmlinux.h"

#define SEC(name)	__attribute__((section(name), used))
#define inline_always	static inline __attribute__((always_inline))

/* libbpf reads a map's definition from the types of these fields. */
#define MAP_NUMBER(name, value)	int (*name)[value]
#define MAP_TYPE(name, value)	typeof(value) *name

enum {
	MAP_TYPE_HASH = 1,
	MAP_TYPE_ARRAY = 2,
	MAP_TYPE_PERCPU_ARRAY = 6,
	MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_F_USER_STACK = 1 << 8,
};

struct bpf_dynptr {
	__u64 opaque[2];
} __attribute__((aligned(8)));

static void *(*map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*map_update_elem)(void *map, const void *key, const void *value,
			       __u64 flags) = (void *)2;
static long (*map_delete_elem)(void *map, const void *key) = (void *)3;
static __u64 (*ktime_get_ns)(void) = (void *)5;
static __u32 (*get_prandom_u32)(void) = (void *)7;
static __u64 (*get_current_pid_tgid)(void) = (void *)14;
static long (*get_current_comm)(void *to, __u32 size) = (void *)16;
static long (*get_stack)(void *ctx, void *to, __u32 size, __u64 flags) = (void *)67;
static long (*probe_read_user)(void *to, __u32 size, const void *from) = (void *)112;
static long (*probe_read_kernel)(void *to, __u32 size, const void *from) = (void *)113;
static void *(*ringbuf_reserve)(void *ring, __u64 size, __u64 flags) = (void *)131;
static void (*ringbuf_submit)(void *data, __u64 flags) = (void *)132;
static long (*ringbuf_output)(void *ring, void *data, __u64 size, __u64 flags) = (void *)130;
static struct task_struct *(*get_current_task_btf)(void) = (void *)158;
static __u64 (*get_attach_cookie)(void *ctx) = (void *)174;
static struct pt_regs *(*task_pt_regs)(struct task_struct *task) = (void *)175;
static long (*loop)(__u32 times, void *step, void *ctx, __u64 flags) = (void *)181;
static long (*ringbuf_reserve_dynptr)(void *ring, __u32 size, __u64 flags,
				      struct bpf_dynptr *dynptr) = (void *)198;
static void (*ringbuf_submit_dynptr)(struct bpf_dynptr *dynptr, __u64 flags) = (void *)199;
static void (*ringbuf_discard_dynptr)(struct bpf_dynptr *dynptr, __u64 flags) = (void *)200;
static long (*dynptr_write)(const struct bpf_dynptr *to, __u32 offset, const void *from,
			    __u32 size, __u64 flags) = (void *)202;
static void *(*dynptr_data)(const struct bpf_dynptr *dynptr, __u32 offset,
			    __u32 size) = (void *)203;

/*
 * The same enumerator in the running kernel's BTF tells whether it knows a call: libbpf puts
 * the answer in as a constant, and the verifier does not look at what cannot be reached.
 */
enum bpf_func_id {
	BPF_FUNC_ringbuf_reserve_dynptr = 198,
};

#define kernel_has(enumerator) \
	__builtin_preserve_enum_value(*(typeof(enum bpf_func_id) *)enumerator, 0)

#endif /* UNWIND_HELPERS_H */
