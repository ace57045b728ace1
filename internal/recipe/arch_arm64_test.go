package recipe_test

import "golang.org/x/sys/unix"

// mkdirNumber is the system call by which busybox makes a directory.
const mkdirNumber = unix.SYS_MKDIRAT
