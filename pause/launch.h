#ifndef PAUSE_LAUNCH_H
#define PAUSE_LAUNCH_H

#include "protocol.h"

/* What pause does instead, if it has an argument. Does not return. */
void launch(void);

#endif
