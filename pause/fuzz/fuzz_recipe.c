/*
 * libFuzzer harness of the recipe interpreter: any blob is either refused or
 * carried out within its bounds. The kernel is a fake that answers from the
 * input. The blob lies in a heap block of exactly its size, so that ASan sees
 * the first byte too far.
 */
#include "../interp.c"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

static const unsigned char *script;
static size_t script_left;
static jmp_buf over;

static unsigned char next(void)
{
	return script_left ? (script_left--, *script++) : 0;
}

long syscall6(long nr, long a, long b, long c, long d, long e, long f)
{
	static const long answers[] = {0, 3, -2, -11, -1, 8, -4095, 1L << 40};

	(void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
	if (nr == __NR_exit_group)
		longjmp(over, 1);
	return answers[next() % 8];
}

/* Make a blob that is likely to be accepted, or nearly. */
static void tame(char *blob, size_t len, u32 nfds, unsigned char how)
{
	struct recipe_header *h = (struct recipe_header *)blob;
	struct recipe_step *s;
	struct recipe_reloc *r;

	h->magic = RECIPE_MAGIC;
	h->size = (u32)len;
	h->nfds = nfds;
	h->zero = 0;
	if (how & 4)
		return;
	h->nsteps = 1 + h->nsteps % 4;
	h->steps = sizeof *h + h->steps % 8 * 8;
	h->nrelocs %= 4;
	h->relocs = h->steps + h->nsteps * sizeof *s;
	if (h->relocs + h->nrelocs * sizeof *r > len)
		return;
	s = steps_of(h);
	for (u32 i = 0; i < h->nsteps; i++, s++) {
		s->nargs %= 7;
		s->zero = 0;
		for (int k = 0; k < 6; k++) {
			s->kind[k] %= 4;
			if (s->arg[k] >> 63)
				s->arg[k] %= s->kind[k] == ARG_PTR ? len + 1 : 4;
		}
		if (s->store >> 31)
			s->store = (u32)(s->store % len / 4 * 4);
	}
	r = relocs_of(h);
	for (u32 i = 0; i < h->nrelocs; i++, r++) {
		r->kind %= 3;
		r->where %= len + 8;
		r->value %= r->kind == RELOC_FD ? 8 : len;
	}
}

/* Input: how many descriptors; how to mend the blob; 16 answers of the kernel;
 * the blob. */
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
	enum { FRONT = 18 };
	u32 nfds, step = REPORT_RECIPE;
	size_t len;
	char *blob;
	int *fds;

	if (size < FRONT)
		return 0;
	len = size - FRONT;
	nfds = data[0] % 8;
	blob = malloc(len);
	fds = malloc(nfds * sizeof *fds);
	for (u32 i = 0; i < nfds; i++)
		fds[i] = 100 + (int)i;
	memcpy(blob, data + FRONT, len);
	if (data[1] & 1 && len >= sizeof(struct recipe_header))
		tame(blob, len, nfds, data[1]);
	script = data + 2;
	script_left = 16;
	if (!setjmp(over) && recipe_check(blob, len, nfds) == 0) {
		struct recipe_header before = *(struct recipe_header *)blob;
		int error = recipe_run(blob, fds, data[1] & 2 ? 9 : -1, &step);

		if (memcmp(&before, blob, sizeof before))
			abort();        /* nothing writes to the header */
		if (error && step >= before.nsteps)
			abort();
	}
	free(blob);
	free(fds);
	return 0;
}
