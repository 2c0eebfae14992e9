/* SPDX-License-Identifier: MIT */
/* The user's registers: as the kernel keeps them in, in DWARF order and by their names out. */
#ifndef UNWIND_REGISTERS_H
#define UNWIND_REGISTERS_H

#include "event.h"

/* psABIs and Linux v6.13 include/uapi/linux/elf-em.h. */
#if defined(__TARGET_x86_64)
#define EVENT_ARCH	62	/* EM_X86_64 */
#define USER_SP(from)	((from)->sp)
#define USER_PC(from)	((from)->ip)
#define USER_FP(from)	((from)->bp)
#define USER_LINK(from)	0

/* Arguments of a call, and what it gives back: x86-64 psABI 1.0 §3.2.3. */
#define USER_RESULT(from)	((from)->ax)
#define USER_ARGUMENTS(from)	{ (from)->di, (from)->si, (from)->dx }

/* The call has pushed where it returns to, and its return takes that off. */
#define RETURN_SLOT	8

/* What a call preserves: ibidem fig. 3.4. */
#define PRESERVED(each, from) \
	each((from)->bx) each((from)->bp) each((from)->r12) each((from)->r13) \
	each((from)->r14) each((from)->r15)

/* A segment of 32-bit code: __USER32_CS, Linux v6.13 arch/x86/include/asm/segment.h. */
#define IS_COMPAT(from)	((from)->cs == 0x23)

inline_always void copy_registers(struct registers *to, const USER_REGS *from)
{
	to->rax = from->ax;
	to->rdx = from->dx;
	to->rcx = from->cx;
	to->rbx = from->bx;
	to->rsi = from->si;
	to->rdi = from->di;
	to->rbp = from->bp;
	to->rsp = from->sp;
	to->r8 = from->r8;
	to->r9 = from->r9;
	to->r10 = from->r10;
	to->r11 = from->r11;
	to->r12 = from->r12;
	to->r13 = from->r13;
	to->r14 = from->r14;
	to->r15 = from->r15;
	to->rip = from->ip;
	to->rflags = from->flags;
	to->orig_rax = from->orig_ax;
}

#elif defined(__TARGET_arm64)
#define EVENT_ARCH	183	/* EM_AARCH64 */
#define USER_SP(from)	((from)->sp)
#define USER_PC(from)	((from)->pc)
#define USER_FP(from)	((from)->regs[29])
#define USER_LINK(from)	((from)->regs[30])

/* Arguments of a call, what it gives back, what it preserves, and where it returns to: AAPCS64. */
#define USER_RESULT(from)	((from)->regs[0])
#define USER_ARGUMENTS(from)	{ (from)->regs[0], (from)->regs[1], (from)->regs[2] }
#define RETURN_SLOT	0
#define PRESERVED(each, from) \
	each((from)->regs[19]) each((from)->regs[20]) each((from)->regs[21]) \
	each((from)->regs[22]) each((from)->regs[23]) each((from)->regs[24]) \
	each((from)->regs[25]) each((from)->regs[26]) each((from)->regs[27]) \
	each((from)->regs[28]) each((from)->regs[29]) each((from)->regs[30])

/* PSR_MODE32_BIT: Linux v6.13 arch/arm64/include/uapi/asm/ptrace.h */
#define IS_COMPAT(from)	((from)->pstate & 0x10)

#define COPY(n)	(to->x##n = from->regs[n])

inline_always void copy_registers(struct registers *to, const USER_REGS *from)
{
	COPY(0); COPY(1); COPY(2); COPY(3); COPY(4); COPY(5); COPY(6); COPY(7);
	COPY(8); COPY(9); COPY(10); COPY(11); COPY(12); COPY(13); COPY(14); COPY(15);
	COPY(16); COPY(17); COPY(18); COPY(19); COPY(20); COPY(21); COPY(22); COPY(23);
	COPY(24); COPY(25); COPY(26); COPY(27); COPY(28); COPY(29); COPY(30);
	to->sp = from->sp;
	to->pc = from->pc;
}

#elif defined(__TARGET_mips)
#define EVENT_ARCH	8	/* EM_MIPS */
#define USER_WORD	__u32
#define USER_SP(from)	((from)->regs[29])
#define USER_PC(from)	((from)->cp0_epc)
#define USER_FP(from)	((from)->regs[30])
#define USER_LINK(from)	((from)->regs[31])
#define IS_COMPAT(from)	0

/* The same, o32: MIPS psABI 3rd ed. §3-16. */
#define USER_RESULT(from)	((from)->regs[2])
#define USER_ARGUMENTS(from)	{ (from)->regs[4], (from)->regs[5], (from)->regs[6] }
#define RETURN_SLOT	0
#define PRESERVED(each, from) \
	each((from)->regs[16]) each((from)->regs[17]) each((from)->regs[18]) \
	each((from)->regs[19]) each((from)->regs[20]) each((from)->regs[21]) \
	each((from)->regs[22]) each((from)->regs[23]) each((from)->regs[28]) \
	each((from)->regs[30]) each((from)->regs[31])

#define COPY(name, n)	(to->name = from->regs[n])

inline_always void copy_registers(struct registers *to, const USER_REGS *from)
{
	to->zero = 0;
	COPY(at, 1); COPY(v0, 2); COPY(v1, 3); COPY(a0, 4); COPY(a1, 5); COPY(a2, 6); COPY(a3, 7);
	COPY(t0, 8); COPY(t1, 9); COPY(t2, 10); COPY(t3, 11);
	COPY(t4, 12); COPY(t5, 13); COPY(t6, 14); COPY(t7, 15);
	COPY(s0, 16); COPY(s1, 17); COPY(s2, 18); COPY(s3, 19);
	COPY(s4, 20); COPY(s5, 21); COPY(s6, 22); COPY(s7, 23);
	COPY(t8, 24); COPY(t9, 25); COPY(k0, 26); COPY(k1, 27);
	COPY(gp, 28); COPY(sp, 29); COPY(s8, 30); COPY(ra, 31);
	to->hi = from->hi;
	to->lo = from->lo;
	to->pc = from->cp0_epc;
	to->cause = from->cp0_cause;
}
#endif

/* A return address without what signs it: of those bits, no address of a process has any. */
#if defined(__TARGET_arm64)
#define CODE_ADDRESS(word)	((word) & 0x007fffffffffffffull)
#else
#define CODE_ADDRESS(word)	(word)
#endif

#if !defined(USER_WORD)
#define USER_WORD	__u64
#endif

/* Where the kernel keeps what the user had when he entered it. */
inline_always const USER_REGS *user_of(struct task_struct *task)
{
#if defined(__TARGET_arm64)
	return &task_pt_regs(task)->user_regs;
#else
	return task_pt_regs(task);
#endif
}

#endif /* UNWIND_REGISTERS_H */
