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
	.p2align 3
	.globl	\name\()_pc
	.type	\name\()_pc, @object
	.size	\name\()_pc, 8
\name\()_pc:
	.quad	.Lpc_\name
	.endm

	/* Frame 0 is looked up at pc itself: pc - 4 is not even in this function.  x1 is null. */
	FUNCTION crash_on_entry
.Lpc_crash_on_entry:
	str	wzr, [x1]
	ret
	END	crash_on_entry
	TELL	crash_on_entry

	/* The record is on the stack, and x29 does not point to it yet. */
	FUNCTION crash_in_prologue
	mov	x9, #0
	stp	x29, x30, [sp, #-48]!
	.cfi_adjust_cfa_offset 48
	.cfi_offset x29, -48
	.cfi_offset x30, -40
	mov	x29, #0			/* who takes the live registers is lost */
	mov	x30, #0
.Lpc_crash_in_prologue:
	str	wzr, [x9]
	mov	x29, sp
	str	x19, [sp, #16]
	.cfi_offset x19, -32
	ldr	x19, [sp, #16]
	.cfi_restore x19
	ldp	x29, x30, [sp], #48
	.cfi_adjust_cfa_offset -48
	.cfi_restore x29
	.cfi_restore x30
	ret
	END	crash_in_prologue
	TELL	crash_in_prologue

	/* After the last load: the record lies below sp and is wiped. */
	FUNCTION crash_in_epilogue
	mov	x9, #0
	stp	x29, x30, [sp, #-32]!
	.cfi_adjust_cfa_offset 32
	.cfi_offset x29, -32
	.cfi_offset x30, -24
	mov	x29, sp
	ldp	x29, x30, [sp], #32
	.cfi_adjust_cfa_offset -32
	.cfi_restore x29
	.cfi_restore x30
	stp	xzr, xzr, [sp, #-32]
.Lpc_crash_in_epilogue:
	str	wzr, [x9]
	ret
	END	crash_in_epilogue
	TELL	crash_in_epilogue

	/* Locals, a saved register, and the return address in x30 all the while. */
	FUNCTION crash_in_leaf
	sub	sp, sp, #64
	.cfi_adjust_cfa_offset 64
	str	x19, [sp, #40]
	.cfi_offset x19, -24
	mov	x19, #-1
	mov	x9, #0
.Lpc_crash_in_leaf:
	str	wzr, [x9]
	ldr	x19, [sp, #40]
	.cfi_restore x19
	add	sp, sp, #64
	.cfi_adjust_cfa_offset -64
	ret
	END	crash_in_leaf
	TELL	crash_in_leaf

	FUNCTION crash_after_tail_call
	stp	x29, x30, [sp, #-16]!
	.cfi_adjust_cfa_offset 16
	.cfi_offset x29, -16
	.cfi_offset x30, -8
	mov	x29, sp
	ldp	x29, x30, [sp], #16
	.cfi_adjust_cfa_offset -16
	.cfi_restore x29
	.cfi_restore x30
	b	tail_callee
	END	crash_after_tail_call

	FUNCTION tail_callee
	sub	sp, sp, #32
	.cfi_adjust_cfa_offset 32
	mov	x9, #0
.Lpc_crash_after_tail_call:
	str	wzr, [x9]
	add	sp, sp, #32
	.cfi_adjust_cfa_offset -32
	ret
	END	tail_callee
	TELL	crash_after_tail_call

	.section .note.GNU-stack, "", @progbits
