/* SPDX-License-Identifier: MIT */
/*
 * For handwritten.c.  Each function takes rdi, the function to call, and rsi, a piece
 * of memory; each one that says where rbp is saved ruins the live rbp before its call.
 */

	.macro	FUNCTION name
	.text
	.p2align 4
	.globl	\name
	.type	\name, @function
\name:
	.cfi_startproc
	.endm

	.macro	END name
	ret
	.cfi_endproc
	.size	\name, . - \name
	.endm

	.macro	PUSH register
	pushq	\register
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset \register, 0
	.endm

	.macro	POP register
	popq	\register
	.cfi_adjust_cfa_offset -8
	.cfi_restore \register
	.endm

	.macro	GROW size
	subq	$\size, %rsp
	.cfi_adjust_cfa_offset \size
	.endm

	.macro	SHRINK size
	addq	$\size, %rsp
	.cfi_adjust_cfa_offset -\size
	.endm

	/* rbp is saved far from the stack, in memory that a word at CFA - 16 points to. */
	FUNCTION expression
	GROW	24
	movq	%rsi, 16(%rsp)
	movq	%rbp, 8(%rsi)
	/* DW_CFA_expression rbp: lit16, minus, deref, plus_uconst 8 */
	.cfi_escape 0x10, 6, 5, 0x40, 0x1c, 0x06, 0x23, 8
	movq	$-1, %rbp
	call	*%rdi
	movq	16(%rsp), %rsi
	movq	8(%rsi), %rbp
	.cfi_restore %rbp
	SHRINK	24
	END	expression

	/* rbp is saved in disguise: its bits are turned over by an xor. */
	FUNCTION val_expression
	GROW	24
	movq	%rbp, %rax
	xorq	$0x5a, %rax
	movq	%rax, 8(%rsp)
	/* DW_CFA_val_expression rbp: lit24, minus, deref, const1u 0x5a, xor */
	.cfi_escape 0x16, 6, 6, 0x48, 0x1c, 0x06, 0x08, 0x5a, 0x27
	movq	$-1, %rbp
	call	*%rdi
	movq	8(%rsp), %rbp
	xorq	$0x5a, %rbp
	.cfi_restore %rbp
	SHRINK	24
	END	val_expression

	/* The CFA is a word on the stack; the expression branches on whether it is zero. */
	FUNCTION cfa_expression
	leaq	8(%rsp), %rax
	.cfi_def_cfa %rax, 0
	andq	$-64, %rsp
	subq	$64, %rsp
	movq	%rax, 16(%rsp)
	/* DW_CFA_def_cfa_expression: breg7 16, deref, dup, lit0, ne, bra +1, drop, nop */
	.cfi_escape 0x0f, 11, 0x77, 16, 0x06, 0x12, 0x30, 0x2e, 0x28, 1, 0, 0x13, 0x96
	call	*%rdi
	movq	16(%rsp), %rax
	leaq	-8(%rax), %rsp
	.cfi_def_cfa %rsp, 8
	END	cfa_expression

	/* Two early ways out before the call; the state after them is the remembered one. */
	FUNCTION remember_restore
	PUSH	%rbp
	.cfi_remember_state
	GROW	32
	.cfi_remember_state
	testq	%rdi, %rdi
	jnz	1f
	SHRINK	32
	POP	%rbp
	ret
1:
	.cfi_restore_state
	testq	%rsi, %rsi
	jz	2f
	addq	$32, %rsp
	.cfi_restore_state
	movq	$-1, %rbp
	call	*%rdi
2:
	POP	%rbp
	END	remember_restore

	/* Arguments pushed for the call, as gcc says it with -mno-accumulate-outgoing-args. */
	FUNCTION args_size
	GROW	8
	pushq	$1
	.cfi_adjust_cfa_offset 8
	pushq	$2
	.cfi_adjust_cfa_offset 8
	.cfi_escape 0x2e, 16		/* DW_CFA_GNU_args_size */
	call	*%rdi
	SHRINK	16
	.cfi_escape 0x2e, 0
	SHRINK	8
	END	args_size

	/* The return address leaves the stack for r12, as in glibc's vfork for rdi. */
	FUNCTION return_in_register
	PUSH	%r12
	movq	8(%rsp), %r12
	.cfi_register %rip, %r12
	movq	$0, 8(%rsp)
	call	*%rdi
	movq	%r12, 8(%rsp)
	.cfi_offset %rip, -8
	POP	%r12
	END	return_in_register

	FUNCTION saved_in_register
	PUSH	%r13
	movq	%rbp, %r13
	.cfi_register %rbp, %r13
	movq	$-1, %rbp
	call	*%rdi
	movq	%r13, %rbp
	.cfi_restore %rbp
	POP	%r13
	END	saved_in_register

	/* The CFA hangs on rbx, which points to the middle of the frame. */
	FUNCTION odd_cfa_register
	PUSH	%rbx
	GROW	32
	leaq	24(%rsp), %rbx
	.cfi_def_cfa %rbx, 24
	call	*%rdi
	.cfi_def_cfa %rsp, 48
	SHRINK	32
	POP	%rbx
	END	odd_cfa_register

	/*
	 * Makes rbp point into its own frame, so that the functions below know it without
	 * having saved it: the CFA of a callee is rbp - 16.
	 */
	FUNCTION pointer_into_stack
	PUSH	%rbp
	GROW	32
	leaq	16(%rsp), %rbp
	.cfi_def_cfa %rbp, 32
	call	*%rsi
.Lpointer_into_stack_return:
	.cfi_def_cfa %rsp, 48
	SHRINK	32
	POP	%rbp
	END	pointer_into_stack

	.section .data.rel.ro, "aw"
	.globl	pointer_into_stack_return
	.type	pointer_into_stack_return, @object
	.size	pointer_into_stack_return, 8
pointer_into_stack_return:
	.quad	.Lpointer_into_stack_return

	/* The caller's rbp is no saved word, it is CFA + 16. */
	FUNCTION val_offset
	.cfi_val_offset %rbp, 16
	GROW	8
	movq	$-1, %rbp
	call	*%rdi
	SHRINK	8
	leaq	24(%rsp), %rbp
	END	val_offset

	/* Saved above the CFA, in the caller's frame: DW_CFA_offset_extended_sf. */
	FUNCTION above_cfa
	movq	%rbp, 16(%rsp)
	.cfi_offset %rbp, 8
	GROW	8
	movq	$-1, %rbp
	call	*%rdi
	SHRINK	8
	movq	16(%rsp), %rbp
	END	above_cfa

	/* The same by the oldest of the vendor opcodes: CFA + 16. */
	FUNCTION negative_offset
	movq	%rbp, 24(%rsp)
	.cfi_escape 0x2f, 6, 2		/* DW_CFA_GNU_negative_offset_extended rbp, 2 */
	GROW	8
	movq	$-1, %rbp
	call	*%rdi
	SHRINK	8
	movq	24(%rsp), %rbp
	END	negative_offset

	/* No caller, says the CFI, although there is one. */
	FUNCTION outermost
	.cfi_undefined %rip
	GROW	8
	call	*%rdi
	SHRINK	8
	END	outermost

	.section .note.GNU-stack, "", @progbits
