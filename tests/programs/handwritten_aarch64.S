/* SPDX-License-Identifier: MIT */
/*
 * For handwritten.c.  Each function takes x0, the function to call, and x1, a piece of
 * memory; each one that says where x29 is saved ruins the live x29 before its call.
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

	/* A frame with two registers at its bottom. */
	.macro	PUSH first, second, size
	stp	\first, \second, [sp, #-\size]!
	.cfi_adjust_cfa_offset \size
	.cfi_rel_offset \first, 0
	.cfi_rel_offset \second, 8
	.endm

	.macro	POP first, second, size
	ldp	\first, \second, [sp], #\size
	.cfi_adjust_cfa_offset -\size
	.cfi_restore \first
	.cfi_restore \second
	.endm

	.macro	GROW size
	sub	sp, sp, #\size
	.cfi_adjust_cfa_offset \size
	.endm

	.macro	SHRINK size
	add	sp, sp, #\size
	.cfi_adjust_cfa_offset -\size
	.endm

	/* x29 is saved far from the stack, in memory that a word at CFA - 16 points to. */
	FUNCTION expression
	PUSH	x30, x19, 32
	str	x1, [sp, #16]
	str	x29, [x1, #8]
	/* DW_CFA_expression x29: lit16, minus, deref, plus_uconst 8 */
	.cfi_escape 0x10, 29, 5, 0x40, 0x1c, 0x06, 0x23, 8
	mov	x29, #-1
	blr	x0
	ldr	x1, [sp, #16]
	ldr	x29, [x1, #8]
	.cfi_restore x29
	POP	x30, x19, 32
	END	expression

	/* x29 is saved in disguise: its bits are turned over by an xor. */
	FUNCTION val_expression
	PUSH	x30, x19, 32
	mov	x9, #0x5a
	eor	x9, x9, x29
	str	x9, [sp, #16]
	/* DW_CFA_val_expression x29: lit16, minus, deref, const1u 0x5a, xor */
	.cfi_escape 0x16, 29, 6, 0x40, 0x1c, 0x06, 0x08, 0x5a, 0x27
	mov	x29, #-1
	blr	x0
	ldr	x9, [sp, #16]
	mov	x29, #0x5a
	eor	x29, x29, x9
	.cfi_restore x29
	POP	x30, x19, 32
	END	val_expression

	/* The CFA is a word on the stack; the expression branches on whether it is zero. */
	FUNCTION cfa_expression
	mov	x9, sp
	.cfi_def_cfa x9, 0
	sub	x10, sp, #64
	and	sp, x10, #-64
	str	x9, [sp, #16]
	str	x30, [sp, #24]
	/* DW_CFA_expression x30: breg31 24 */
	.cfi_escape 0x10, 30, 2, 0x8f, 24
	/* DW_CFA_def_cfa_expression: breg31 16, deref, dup, lit0, ne, bra +1, drop, nop */
	.cfi_escape 0x0f, 11, 0x8f, 16, 0x06, 0x12, 0x30, 0x2e, 0x28, 1, 0, 0x13, 0x96
	blr	x0
	ldr	x30, [sp, #24]
	ldr	x9, [sp, #16]
	.cfi_restore x30
	.cfi_def_cfa x9, 0
	mov	sp, x9
	.cfi_def_cfa sp, 0
	END	cfa_expression

	/* Two early ways out before the call; the state after them is the remembered one. */
	FUNCTION remember_restore
	PUSH	x29, x30, 16
	.cfi_remember_state
	GROW	32
	.cfi_remember_state
	cbnz	x0, 1f
	SHRINK	32
	POP	x29, x30, 16
	ret
1:
	.cfi_restore_state
	cbz	x1, 2f
	add	sp, sp, #32
	.cfi_restore_state
	mov	x29, #-1
	blr	x0
2:
	POP	x29, x30, 16
	END	remember_restore

	/* Arguments on the stack for the call. */
	FUNCTION args_size
	PUSH	x30, x19, 16
	GROW	16
	.cfi_escape 0x2e, 16		/* DW_CFA_GNU_args_size */
	blr	x0
	SHRINK	16
	.cfi_escape 0x2e, 0
	POP	x30, x19, 16
	END	args_size

	/* The return address is kept in x19. */
	FUNCTION return_in_register
	str	x19, [sp, #-16]!
	.cfi_adjust_cfa_offset 16
	.cfi_rel_offset x19, 0
	mov	x19, x30
	.cfi_register x30, x19
	blr	x0
	mov	x30, x19
	.cfi_restore x30
	ldr	x19, [sp], #16
	.cfi_adjust_cfa_offset -16
	.cfi_restore x19
	END	return_in_register

	FUNCTION saved_in_register
	PUSH	x20, x30, 16
	mov	x20, x29
	.cfi_register x29, x20
	mov	x29, #-1
	blr	x0
	mov	x29, x20
	.cfi_restore x29
	POP	x20, x30, 16
	END	saved_in_register

	/* The CFA hangs on x19, which points to the middle of the frame. */
	FUNCTION odd_cfa_register
	PUSH	x19, x30, 48
	add	x19, sp, #24
	.cfi_def_cfa x19, 24
	blr	x0
	.cfi_def_cfa sp, 48
	POP	x19, x30, 48
	END	odd_cfa_register

	/*
	 * Makes x29 point into its own frame, so that the functions below know it without
	 * having saved it: the CFA of a callee is x29 - 32.
	 */
	FUNCTION pointer_into_stack
	PUSH	x29, x30, 48
	add	x29, sp, #32
	.cfi_def_cfa x29, 16
	blr	x1
.Lpointer_into_stack_return:
	.cfi_def_cfa sp, 48
	POP	x29, x30, 48
	END	pointer_into_stack

	.section .data.rel.ro, "aw"
	.p2align 3
	.globl	pointer_into_stack_return
	.type	pointer_into_stack_return, @object
	.size	pointer_into_stack_return, 8
pointer_into_stack_return:
	.quad	.Lpointer_into_stack_return

	/* The caller's x29 is no saved word, it is CFA + 32. */
	FUNCTION val_offset
	.cfi_val_offset x29, 32
	PUSH	x30, x19, 16
	mov	x29, #-1
	blr	x0
	POP	x30, x19, 16
	add	x29, sp, #32
	END	val_offset

	/* Saved above the CFA, in the caller's frame: DW_CFA_offset_extended_sf. */
	FUNCTION above_cfa
	str	x29, [sp, #16]
	.cfi_offset x29, 16
	PUSH	x30, x19, 16
	mov	x29, #-1
	blr	x0
	POP	x30, x19, 16
	ldr	x29, [sp, #16]
	END	above_cfa

	/* The same by the oldest of the vendor opcodes: CFA + 24. */
	FUNCTION negative_offset
	str	x29, [sp, #24]
	.cfi_escape 0x2f, 29, 3		/* DW_CFA_GNU_negative_offset_extended x29, 3 */
	PUSH	x30, x19, 16
	mov	x29, #-1
	blr	x0
	POP	x30, x19, 16
	ldr	x29, [sp, #24]
	END	negative_offset

	/* No caller, says the CFI, although there is one. */
	FUNCTION outermost
	.cfi_undefined x30
	str	x30, [sp, #-16]!
	.cfi_adjust_cfa_offset 16
	blr	x0
	ldr	x30, [sp], #16
	.cfi_adjust_cfa_offset -16
	END	outermost

	.section .note.GNU-stack, "", @progbits
