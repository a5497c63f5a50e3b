/* calls.h: put before every source of the stack when it is built for fuzzing (-include): what would go to the kernel goes
 * to the world (world.c), which has sockets, a TAP and a clock of its own and fails when it is told to.
 *
 * The headers come first, so that only the stack's calls are renamed and not their declarations. */
#ifndef FUZZ_CALLS_H
#define FUZZ_CALLS_H

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include "world.h"

#define socket(...) world_socket(__VA_ARGS__)
#define bind(...) world_bind(__VA_ARGS__)
#define connect(...) world_connect(__VA_ARGS__)
#define close(...) world_close(__VA_ARGS__)
#define read(...) world_read(__VA_ARGS__)
#define writev(...) world_writev(__VA_ARGS__)
#define sendmsg(...) world_sendmsg(__VA_ARGS__)
#define recvmsg(...) world_recvmsg(__VA_ARGS__)
#define recvmmsg(...) world_recvmmsg(__VA_ARGS__)
#define recv(...) world_recv(__VA_ARGS__)
#define shutdown(...) world_shutdown(__VA_ARGS__)
#define setsockopt(...) world_setsockopt(__VA_ARGS__)
#define getsockopt(...) world_getsockopt(__VA_ARGS__)
#define fcntl(...) world_fcntl(__VA_ARGS__)
#define epoll_create1(...) world_epoll_create1(__VA_ARGS__)
#define epoll_ctl(...) world_epoll_ctl(__VA_ARGS__)
#define epoll_wait(...) world_epoll_wait(__VA_ARGS__)
#define timerfd_create(...) world_timerfd_create(__VA_ARGS__)
#define timerfd_settime(...) world_timerfd_settime(__VA_ARGS__)
#define malloc(...) world_malloc(__VA_ARGS__)
#define calloc(...) world_calloc(__VA_ARGS__)
#define realloc(...) world_realloc(__VA_ARGS__)

#endif
