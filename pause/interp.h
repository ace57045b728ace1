/*
 * Recipes: a flat list of system calls that turns a cloned child into a
 * container's process. The format is described in PROTOCOL.md; it is built by
 * Go's internal/recipe and carried out here, without any policy.
 */
#ifndef PAUSE_INTERP_H
#define PAUSE_INTERP_H

#include "sys.h"

enum { RECIPE_MAGIC = 0x31525055 /* "UPR1" */, RECIPE_MAX = 8 << 20 };
enum { ARG_INT, ARG_PTR, ARG_FD, ARG_RESULT };
enum { RELOC_ADDRESS, RELOC_FD };

struct recipe_header {
	u32 magic, size;    /* size: of the whole blob, in bytes */
	u32 nsteps, steps;  /* how many, and the offset of the first */
	u32 nrelocs, relocs;
	u32 nfds;           /* descriptors that must come with the recipe */
	u32 zero;
};

struct recipe_step {
	u32 nr;             /* system call */
	u8 nargs, kind[6], zero;
	u16 tolerate[4];    /* errnos that do not fail the step; 0: unused */
	u32 store;          /* offset where the result goes as s32; 0: nowhere */
	u64 arg[6];
};

struct recipe_reloc { u32 where, kind, value; };

/* What a child writes to its report pipe. */
struct report { u32 step, error; };
enum { REPORT_RECIPE = 0xffffffff /* as a step: the recipe itself is bad */ };

/* recipe_check returns 0 if the blob is well formed and nfds are what it
 * needs, or an errno. Nothing else here may be called on an unchecked blob. */
int recipe_check(const void *blob, u64 size, u32 nfds);

/* recipe_run carries the blob out. It returns 0 if every step was done, or the
 * errno of the one that failed and its index in *step. Just before the first
 * step that normally does not return (execve, exit), {step, 0} is written to
 * report, unless that is negative. */
int recipe_run(void *blob, const int *fds, int report, u32 *step);

#endif
