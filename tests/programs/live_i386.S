/* SPDX-License-Identifier: MIT */
/* A 32-bit process without any library: it sleeps in pause(2) for ever. */
	.code32
	.globl	_start
	.text
_start:
	movl	$29, %eax
	int	$0x80
	jmp	_start
	.section .note.GNU-stack, "", @progbits
