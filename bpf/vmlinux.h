/* SPDX-License-Identifier: MIT */
/*
 * What our programs need of the kernel's types, and no more.
 *
 * No offset here is a promise: preserve_access_index has the loader put in those that the
 * running kernel's own BTF tells.  Only names and types count.
 */
#ifndef UNWIND_VMLINUX_H
#define UNWIND_VMLINUX_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef int __s32;
typedef long long __s64;
typedef __u8 bool;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	unsigned int inum;
};

struct pid_namespace {
	struct ns_common ns;
};

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid {
	unsigned int level;
	struct upid numbers[1];
};

/* Pages of user space's own code in which uretprobes have calls return. */
struct xol_area {
	unsigned long vaddr;
};

struct uprobes_state {
	struct xol_area *xol_area;
};

struct mm_struct {
	unsigned long exec_vm;	/* pages of code: it changes when code is mapped or unmapped */
	struct uprobes_state uprobes_state;
};

struct return_instance {
	unsigned long stack;
	unsigned long orig_ret_vaddr;
	struct return_instance *next;
};

struct uprobe_task {
	struct return_instance *return_instances;
};

struct task_struct {
	unsigned int flags;
	struct uprobe_task *utask;
	struct mm_struct *mm;
	struct task_struct *group_leader;
	struct pid *thread_pid;
};

#if defined(__TARGET_x86_64)
struct pt_regs {
	unsigned long r15;
	unsigned long r14;
	unsigned long r13;
	unsigned long r12;
	unsigned long bp;
	unsigned long bx;
	unsigned long r11;
	unsigned long r10;
	unsigned long r9;
	unsigned long r8;
	unsigned long ax;
	unsigned long cx;
	unsigned long dx;
	unsigned long si;
	unsigned long di;
	unsigned long orig_ax;
	unsigned long ip;
	__u16 cs;
	unsigned long flags;
	unsigned long sp;
};
#define USER_REGS	struct pt_regs
#elif defined(__TARGET_arm64)
/* The context of uprobes and kprobes, the first member of struct pt_regs. */
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};

struct pt_regs {
	struct user_pt_regs user_regs;
};
#define USER_REGS	struct user_pt_regs
#elif defined(__TARGET_mips)
/* MIPS kernels have 4-byte words here; `unsigned long` of the target bpf has 8. */
struct pt_regs {
	__u32 regs[32];
	__u32 cp0_status;
	__u32 hi;
	__u32 lo;
	__u32 cp0_badvaddr;
	__u32 cp0_cause;
	__u32 cp0_epc;
};
#define USER_REGS	struct pt_regs
#else
#error "say which: -D__TARGET_x86_64, -D__TARGET_arm64 or -D__TARGET_mips"
#endif

#pragma clang attribute pop

#endif /* UNWIND_VMLINUX_H */
