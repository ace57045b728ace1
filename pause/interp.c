#include "interp.h"

_Static_assert(sizeof(struct recipe_header) == 32, "wire format");
_Static_assert(sizeof(struct recipe_step) == 72, "wire format");
_Static_assert(sizeof(struct recipe_reloc) == 12, "wire format");

static struct recipe_step *steps_of(const struct recipe_header *h)
{
	return (struct recipe_step *)((char *)h + h->steps);
}

static struct recipe_reloc *relocs_of(const struct recipe_header *h)
{
	return (struct recipe_reloc *)((char *)h + h->relocs);
}

static int overlap(u64 a, u64 alen, u64 b, u64 blen)
{
	return a < b + blen && b < a + alen;
}

/* May len bytes be written at offset `where`? Only into plain data: the
 * header, steps and relocations stay as they were checked. */
static int is_data(const struct recipe_header *h, u64 where, u64 len)
{
	return where >= sizeof *h && where + len <= h->size &&
	       !overlap(where, len, h->steps, (u64)h->nsteps * sizeof(struct recipe_step)) &&
	       !overlap(where, len, h->relocs, (u64)h->nrelocs * sizeof(struct recipe_reloc));
}

/* Does a table of n elements lie inside the blob, behind the header? */
static int is_table(const struct recipe_header *h, u64 at, u64 n, u64 each)
{
	return n == 0 || (at >= sizeof *h && at % 8 == 0 && at + n * each <= h->size);
}

static int check_step(const struct recipe_header *h, const struct recipe_step *s, u32 index)
{
	if (s->nargs > 6 || s->zero)
		return EINVAL;
	for (int i = 0; i < s->nargs; i++) {
		u64 v = s->arg[i];

		switch (s->kind[i]) {
		case ARG_INT: break;
		case ARG_PTR: if (v >= h->size) return EINVAL; break;
		case ARG_FD: if (v >= h->nfds) return EINVAL; break;
		case ARG_RESULT: if (v >= index) return EINVAL; break;
		default: return EINVAL;
		}
	}
	if (s->store && (s->store % 4 || !is_data(h, s->store, 4)))
		return EINVAL;
	return 0;
}

static int check_reloc(const struct recipe_header *h, const struct recipe_reloc *r)
{
	switch (r->kind) {
	case RELOC_ADDRESS: return is_data(h, r->where, 8) && r->value < h->size ? 0 : EINVAL;
	case RELOC_FD: return is_data(h, r->where, 4) && r->value < h->nfds ? 0 : EINVAL;
	}
	return EINVAL;
}

int recipe_check(const void *blob, u64 size, u32 nfds)
{
	const struct recipe_header *h = blob;

	if (size > RECIPE_MAX)
		return E2BIG;
	if (size < sizeof *h || h->magic != RECIPE_MAGIC || h->size != size || h->zero)
		return EINVAL;
	if (h->nfds != nfds || h->nsteps == 0)
		return EINVAL;
	if (!is_table(h, h->steps, h->nsteps, sizeof(struct recipe_step)) ||
	    !is_table(h, h->relocs, h->nrelocs, sizeof(struct recipe_reloc)))
		return EINVAL;
	if (overlap(h->steps, (u64)h->nsteps * sizeof(struct recipe_step),
		    h->relocs, (u64)h->nrelocs * sizeof(struct recipe_reloc)))
		return EINVAL;
	for (u32 i = 0; i < h->nsteps; i++)
		if (check_step(h, &steps_of(h)[i], i))
			return EINVAL;
	for (u32 i = 0; i < h->nrelocs; i++)
		if (check_reloc(h, &relocs_of(h)[i]))
			return EINVAL;
	return 0;
}

static void relocate(struct recipe_header *h, const int *fds)
{
	for (u32 i = 0; i < h->nrelocs; i++) {
		const struct recipe_reloc *r = &relocs_of(h)[i];
		u64 address = (u64)((char *)h + r->value);

		if (r->kind == RELOC_ADDRESS)
			__builtin_memcpy((char *)h + r->where, &address, sizeof address);
		else
			__builtin_memcpy((char *)h + r->where, &fds[r->value], sizeof *fds);
	}
}

static int does_not_return(u32 nr)
{
	return nr == __NR_execve || nr == __NR_execveat || nr == __NR_exit || nr == __NR_exit_group;
}

static int tolerated(const struct recipe_step *s, long ret)
{
	for (int i = 0; i < 4; i++)
		if (s->tolerate[i] && s->tolerate[i] == -ret)
			return 1;
	return 0;
}

/* A step's result is kept in its arg[0], which isn't needed any more. */
static long call(struct recipe_header *h, const struct recipe_step *s, const int *fds)
{
	u64 a[6] = {0};
	long ret;
	int tries = 64;

	for (int i = 0; i < s->nargs; i++) {
		switch (s->kind[i]) {
		case ARG_INT: a[i] = s->arg[i]; break;
		case ARG_PTR: a[i] = (u64)((char *)h + s->arg[i]); break;
		case ARG_FD: a[i] = (u64)fds[s->arg[i]]; break;
		case ARG_RESULT: a[i] = steps_of(h)[s->arg[i]].arg[0]; break;
		}
	}
	/* openat2 in a root says EAGAIN if any rename or mount on the machine
	 * crossed its walk of a ".."; see openat2(2). */
	do
		ret = sys(s->nr, a[0], a[1], a[2], a[3], a[4], a[5]);
	while (ret == -EAGAIN && s->nr == __NR_openat2 && --tries);
	return ret;
}

int recipe_run(void *blob, const int *fds, int report, u32 *step)
{
	struct recipe_header *h = blob;
	struct recipe_step *s = steps_of(h);

	relocate(h, fds);
	for (u32 i = 0; i < h->nsteps; i++, s++) {
		long ret;

		if (report >= 0 && does_not_return(s->nr)) {
			struct report mark = {i, 0};

			/* Nobody reads it: the node that asked is gone. So are we. */
			if (sys(__NR_write, report, &mark, sizeof mark) != sizeof mark)
				sys(__NR_exit_group, 127);
			report = -1;
		}
		ret = call(h, s, fds);
		if (is_error(ret) && !tolerated(s, ret)) {
			*step = i;
			return (int)-ret;
		}
		s->arg[0] = (u64)ret;
		if (s->store && !is_error(ret))
			*(s32 *)((char *)h + s->store) = (s32)ret;
	}
	return 0;
}
