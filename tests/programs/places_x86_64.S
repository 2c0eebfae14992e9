/* SPDX-License-Identifier: MIT */
/* For places.c: each function faults at .Lpc_<name> and tells that address in <name>_pc. */

	.macro	FUNCTION name
	.text
	.p2align 4
	.globl	\name
	.type	\name, @function
\name:
	.cfi_startproc
	.endm

	.macro	END name
	.cfi_endproc
	.size	\name, . - \name
	.endm

	.macro	TELL name
	.section .data.rel.ro, "aw"
	.globl	\name\()_pc
	.type	\name\()_pc, @object
	.size	\name\()_pc, 8
\name\()_pc:
	.quad	.Lpc_\name
	.endm

	/* Frame 0 is looked up at pc itself: pc - 1 is not even in this function. */
	FUNCTION crash_on_entry
.Lpc_crash_on_entry:
	movl	$0, 0
	ret
	END	crash_on_entry
	TELL	crash_on_entry

	/* Between two pushes; the frame pointer is saved but not yet set. */
	FUNCTION crash_in_prologue
	pushq	%rbp
	.cfi_adjust_cfa_offset 8
	.cfi_offset %rbp, -16
	pushq	%rbx
	.cfi_adjust_cfa_offset 8
	.cfi_offset %rbx, -24
	xorl	%ebp, %ebp		/* who takes the live register is lost */
.Lpc_crash_in_prologue:
	movl	$0, 0
	subq	$120, %rsp
	.cfi_adjust_cfa_offset 120
	addq	$120, %rsp
	.cfi_adjust_cfa_offset -120
	popq	%rbx
	.cfi_adjust_cfa_offset -8
	.cfi_restore %rbx
	popq	%rbp
	.cfi_adjust_cfa_offset -8
	.cfi_restore %rbp
	ret
	END	crash_in_prologue
	TELL	crash_in_prologue

	/* After the last pop: the slot that held rbp lies below sp and is wiped. */
	FUNCTION crash_in_epilogue
	pushq	%rbp
	.cfi_adjust_cfa_offset 8
	.cfi_offset %rbp, -16
	movq	%rsp, %rbp
	.cfi_def_cfa_register %rbp
	popq	%rbp
	.cfi_def_cfa %rsp, 8
	.cfi_restore %rbp
	movq	$-1, -8(%rsp)
.Lpc_crash_in_epilogue:
	movl	$0, 0
	ret
	END	crash_in_epilogue
	TELL	crash_in_epilogue

	/* Locals and a saved register in the red zone: sp never moves. */
	FUNCTION crash_in_leaf
	movq	%rbp, -16(%rsp)
	.cfi_offset %rbp, -24
	movq	%rdi, -8(%rsp)
	movq	$-1, %rbp
.Lpc_crash_in_leaf:
	movl	$0, 0
	movq	-16(%rsp), %rbp
	.cfi_restore %rbp
	ret
	END	crash_in_leaf
	TELL	crash_in_leaf

	FUNCTION crash_after_tail_call
	pushq	%rbx
	.cfi_adjust_cfa_offset 8
	.cfi_offset %rbx, -16
	movq	%rdi, %rbx
	popq	%rbx
	.cfi_adjust_cfa_offset -8
	.cfi_restore %rbx
	jmp	tail_callee
	END	crash_after_tail_call

	FUNCTION tail_callee
	subq	$24, %rsp
	.cfi_adjust_cfa_offset 24
.Lpc_crash_after_tail_call:
	movl	$0, 0
	addq	$24, %rsp
	.cfi_adjust_cfa_offset -24
	ret
	END	tail_callee
	TELL	crash_after_tail_call

	.section .note.GNU-stack, "", @progbits
