/*
 * The processes of the pod: cloning them, carrying out their recipes, reaping
 * them, and remembering how they ended.
 */
#ifndef PAUSE_CHILD_H
#define PAUSE_CHILD_H

#include "protocol.h"

enum {
	MAX_CHILDREN = 2048,    /* running, or ended and not released */
	MAX_KEEP = 8,           /* descriptors kept per child */
};

enum state { FREE, RUNNING, EXITED /* not told yet */, TOLD };

struct child {
	enum state state;
	s32 pid, status, nkeep, keep[MAX_KEEP];
	s64 started, finished;
	char id[ID_SIZE];
};

/* The first nchildren slots have been used. */
extern struct child children[MAX_CHILDREN];
extern u32 nchildren;

/* Once, before all else. Returns the descriptor it opened, or -errno. */
int children_init(void);

/* Clones a child. fds are the request's: recipe, report, [pidns], [cgroup], the
 * recipe's, and those to keep, which belong to the child if all went well. */
int spawn(const struct request *r, const int *fds, u32 nfds, int *pidfd, s64 *started);

/* Reaps everything that ended: our children, whose end is kept for the node,
 * and the orphans the kernel gave us, which nobody asks about. */
void reap(void);

/* Forgets a child that has ended, and closes what was kept. */
int release(const char *id);
int drop_kept(const char *id);

/* Maps a recipe, checks all of it, carries it out. Returns 0, or an errno and
 * the step it belongs to. */
int carry_out(int recipe, const int *fds, u32 nfds, int report, u32 *step);

/* In pause.c: lets go of the sockets, so that they end with pause itself and
 * not with a child that is being set up. */
void leave_conversation(void);

static inline void close_fd(int fd)
{
	sys(__NR_close, fd);
}

#endif
