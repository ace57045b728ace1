/*
 * The messages between the node and pause, one per SOCK_SEQPACKET datagram,
 * little-endian. PROTOCOL.md describes them; structures only grow at the end.
 */
#ifndef PAUSE_PROTOCOL_H
#define PAUSE_PROTOCOL_H

#include "sys.h"

enum { PROTOCOL_MAGIC = 0x31505055 /* "UPP1" */, PROTOCOL_VERSION = 1 };

/* The descriptors pause is born with: sockets, and for a launcher its program. */
enum { LISTENER = 3, CREATOR = 4, PROGRAM = 5 };

/* node -> pause */
enum { HELLO = 1, SETUP = 2, FILES = 3, SPAWN = 4, RELEASE = 5, LIST = 6, LAUNCH = 7, DROP = 8 };
/* pause -> node */
enum { RESULT = 101, EXIT = 102, CHILD = 103 };

enum { ID_SIZE = 72 };  /* of which 64 bytes may be used; the rest is zero */
enum { SPAWN_PIDNS = 1, SPAWN_CGROUP = 2 };

struct request {
	u32 type, serial;
	u32 magic, version;     /* HELLO */
	u64 cloneflags;         /* SPAWN, LAUNCH: CLONE_NEW* */
	u32 flags;              /* SPAWN: SPAWN_* */
	u32 nkeep;              /* SPAWN: how many of the last descriptors to keep */
	char id[ID_SIZE];       /* SPAWN, RELEASE, DROP */
};

struct message {
	u32 type, serial;       /* serial: the request's; 0 for EXIT */
	u32 error, step;        /* RESULT, CHILD: errno; SETUP: the recipe's failed step */
	u32 magic, version;     /* RESULT of HELLO */
	u32 oldest, limit;      /* RESULT of HELLO: oldest version understood; children at most */
	u32 exited;             /* CHILD */
	s32 status;             /* EXIT, CHILD: as wait(2) gives it */
	s64 started, finished;  /* EXIT, CHILD, RESULT of SPAWN: ns since 1970 */
	char id[ID_SIZE];       /* EXIT, CHILD */
};

#endif
