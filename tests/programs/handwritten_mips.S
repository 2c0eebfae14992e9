/* SPDX-License-Identifier: MIT */
/*
 * For handwritten.c.  Each function takes a0, the function to call, and a1, a piece of
 * memory; each one that says where s8 is saved ruins the live s8 before its call.
 */
	.set	noreorder

#ifdef __MIPSEB__
#define BRA(distance)	0x28, 0, distance
#else
#define BRA(distance)	0x28, distance, 0
#endif

	.macro	FUNCTION name
	.text
	.p2align 4
	.globl	\name
	.ent	\name
	.type	\name, @function
\name:
	.cfi_startproc
	.endm

	.macro	END name
	jr	$ra
	nop
	.cfi_endproc
	.end	\name
	.size	\name, . - \name
	.endm

	.macro	GROW size
	addiu	$sp, $sp, -\size
	.cfi_adjust_cfa_offset \size
	.endm

	.macro	SHRINK size
	addiu	$sp, $sp, \size
	.cfi_adjust_cfa_offset -\size
	.endm

	.macro	SAVE register, number, offset
	sw	\register, \offset($sp)
	.cfi_rel_offset \number, \offset
	.endm

	.macro	RESTORE register, number, offset
	lw	\register, \offset($sp)
	.cfi_restore \number
	.endm

	.macro	CALL register
	move	$t9, \register
	jalr	$t9
	nop
	.endm

	/* s8 is saved far from the stack, in memory that a word at CFA - 16 points to. */
	FUNCTION expression
	GROW	48
	SAVE	$ra, 31, 44
	sw	$a1, 32($sp)
	sw	$s8, 4($a1)
	/* DW_CFA_expression s8: lit16, minus, deref, plus_uconst 4 */
	.cfi_escape 0x10, 30, 5, 0x40, 0x1c, 0x06, 0x23, 4
	li	$s8, -1
	CALL	$a0
	lw	$a1, 32($sp)
	lw	$s8, 4($a1)
	.cfi_restore 30
	RESTORE	$ra, 31, 44
	SHRINK	48
	END	expression

	/* s8 is saved in disguise: its bits are turned over by an xor. */
	FUNCTION val_expression
	GROW	48
	SAVE	$ra, 31, 44
	xori	$t0, $s8, 0x5a
	sw	$t0, 32($sp)
	/* DW_CFA_val_expression s8: lit16, minus, deref, const1u 0x5a, xor */
	.cfi_escape 0x16, 30, 6, 0x40, 0x1c, 0x06, 0x08, 0x5a, 0x27
	li	$s8, -1
	CALL	$a0
	lw	$t0, 32($sp)
	xori	$s8, $t0, 0x5a
	.cfi_restore 30
	RESTORE	$ra, 31, 44
	SHRINK	48
	END	val_expression

	/* The CFA is a word on the stack; the expression branches on whether it is zero. */
	FUNCTION cfa_expression
	move	$t0, $sp
	.cfi_def_cfa 8, 0
	addiu	$sp, $sp, -64
	li	$t1, -64
	and	$sp, $sp, $t1
	sw	$t0, 16($sp)
	sw	$ra, 20($sp)
	/* DW_CFA_expression ra: breg29 20 */
	.cfi_escape 0x10, 31, 2, 0x8d, 20
	/* DW_CFA_def_cfa_expression: breg29 16, deref, dup, lit0, ne, bra +1, drop, nop */
	.cfi_escape 0x0f, 11, 0x8d, 16, 0x06, 0x12, 0x30, 0x2e, BRA(1), 0x13, 0x96
	CALL	$a0
	lw	$ra, 20($sp)
	lw	$t0, 16($sp)
	.cfi_restore 31
	.cfi_def_cfa 8, 0
	move	$sp, $t0
	.cfi_def_cfa 29, 0
	END	cfa_expression

	/* Two early ways out before the call; the state after them is the remembered one. */
	FUNCTION remember_restore
	GROW	32
	SAVE	$ra, 31, 28
	SAVE	$s8, 30, 24
	.cfi_remember_state
	GROW	32
	.cfi_remember_state
	bnez	$a0, 1f
	nop
	SHRINK	32
	RESTORE	$ra, 31, 28
	RESTORE	$s8, 30, 24
	SHRINK	32
	jr	$ra
	nop
1:
	.cfi_restore_state
	beqz	$a1, 2f
	nop
	addiu	$sp, $sp, 32
	.cfi_restore_state
	li	$s8, -1
	CALL	$a0
2:
	RESTORE	$ra, 31, 28
	RESTORE	$s8, 30, 24
	SHRINK	32
	END	remember_restore

	/* Arguments on the stack for the call. */
	FUNCTION args_size
	GROW	32
	SAVE	$ra, 31, 28
	GROW	16
	.cfi_escape 0x2e, 16		/* DW_CFA_GNU_args_size */
	CALL	$a0
	SHRINK	16
	.cfi_escape 0x2e, 0
	RESTORE	$ra, 31, 28
	SHRINK	32
	END	args_size

	/* The return address is kept in s0. */
	FUNCTION return_in_register
	GROW	32
	SAVE	$s0, 16, 24
	move	$s0, $ra
	.cfi_register 31, 16
	CALL	$a0
	move	$ra, $s0
	.cfi_restore 31
	RESTORE	$s0, 16, 24
	SHRINK	32
	END	return_in_register

	FUNCTION saved_in_register
	GROW	32
	SAVE	$ra, 31, 28
	SAVE	$s1, 17, 24
	move	$s1, $s8
	.cfi_register 30, 17
	li	$s8, -1
	CALL	$a0
	move	$s8, $s1
	.cfi_restore 30
	RESTORE	$s1, 17, 24
	RESTORE	$ra, 31, 28
	SHRINK	32
	END	saved_in_register

	/* The CFA hangs on s0, which points to the middle of the frame. */
	FUNCTION odd_cfa_register
	GROW	48
	SAVE	$ra, 31, 44
	SAVE	$s0, 16, 40
	addiu	$s0, $sp, 24
	.cfi_def_cfa 16, 24
	CALL	$a0
	.cfi_def_cfa 29, 48
	RESTORE	$s0, 16, 40
	RESTORE	$ra, 31, 44
	SHRINK	48
	END	odd_cfa_register

	/*
	 * Makes s8 point into its own frame, so that the functions below know it without
	 * having saved it: the CFA of a callee is s8 - 24.
	 */
	FUNCTION pointer_into_stack
	GROW	48
	SAVE	$ra, 31, 44
	SAVE	$s8, 30, 40
	addiu	$s8, $sp, 24
	.cfi_def_cfa 30, 24
	CALL	$a1
.Lpointer_into_stack_return:
	.cfi_def_cfa 29, 48
	RESTORE	$s8, 30, 40
	RESTORE	$ra, 31, 44
	SHRINK	48
	END	pointer_into_stack

	.section .data.rel.ro, "aw"
	.p2align 2
	.globl	pointer_into_stack_return
	.type	pointer_into_stack_return, @object
	.size	pointer_into_stack_return, 4
pointer_into_stack_return:
	.word	.Lpointer_into_stack_return

	/* The caller's s8 is no saved word, it is CFA + 24. */
	FUNCTION val_offset
	.cfi_val_offset 30, 24
	GROW	32
	SAVE	$ra, 31, 28
	li	$s8, -1
	CALL	$a0
	RESTORE	$ra, 31, 28
	SHRINK	32
	addiu	$s8, $sp, 24
	END	val_offset

	/* Saved above the CFA, in the caller's frame: DW_CFA_offset_extended_sf. */
	FUNCTION above_cfa
	sw	$s8, 28($sp)
	.cfi_offset 30, 28
	GROW	32
	SAVE	$ra, 31, 28
	li	$s8, -1
	CALL	$a0
	RESTORE	$ra, 31, 28
	SHRINK	32
	lw	$s8, 28($sp)
	END	above_cfa

	/* The same by the oldest of the vendor opcodes: CFA + 32. */
	FUNCTION negative_offset
	sw	$s8, 32($sp)
	.cfi_escape 0x2f, 30, 8		/* DW_CFA_GNU_negative_offset_extended s8, 8 */
	GROW	32
	SAVE	$ra, 31, 28
	li	$s8, -1
	CALL	$a0
	RESTORE	$ra, 31, 28
	SHRINK	32
	lw	$s8, 32($sp)
	END	negative_offset

	/* No caller, says the CFI, although there is one. */
	FUNCTION outermost
	.cfi_undefined 31
	GROW	32
	sw	$ra, 28($sp)
	CALL	$a0
	lw	$ra, 28($sp)
	SHRINK	32
	END	outermost

	.section .note.GNU-stack, "", @progbits
