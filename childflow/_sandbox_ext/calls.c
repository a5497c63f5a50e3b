/* calls.c: api.h's functions, one system call each.
 *
 * Raw numbers where a C library may be older than the call (mount_setattr: Linux 5.12, glibc 2.36), so that one build runs on both.
 * Not here: any decision; the callers are in childflow/sandbox/. */

#include <errno.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "api.h"

#define CALL_MOUNT_SETATTR 442 /* the same number on every architecture: Linux's unified table, since 5.12 */
#define WITH_THE_TREE 0x8000   /* AT_RECURSIVE */

struct mount_attributes { /* struct mount_attr, version 0 */
	uint64_t set, clear, propagation, user_namespace;
};

static int result(long returned)
{
	return returned < 0 ? -errno : (int)returned;
}

int cf_unshare(int flags)
{
	return result(unshare(flags));
}

int cf_mount(const char *source, const char *target, const char *fstype, unsigned long flags, const char *data)
{
	return result(mount(source, target, fstype, flags, data));
}

int cf_umount(const char *target, int flags)
{
	return result(umount2(target, flags));
}

int cf_mount_set(const char *path, int recursive, uint64_t attributes)
{
	struct mount_attributes change = { .set = attributes };
	unsigned int how = recursive ? WITH_THE_TREE : 0;

	return result(syscall(CALL_MOUNT_SETATTR, -1, path, how, &change, sizeof(change)));
}

int cf_fork_sibling(void)
{
	/* All pointers are NULL, so the order of clone's arguments, which differs between architectures, does not matter. */
	return result(syscall(SYS_clone, (unsigned long)(CLONE_PARENT | SIGCHLD), 0UL, 0UL, 0UL, 0UL));
}

int cf_prctl(int option, unsigned long argument)
{
	return result(prctl(option, argument, 0UL, 0UL, 0UL));
}

int cf_signalfd(uint64_t mask)
{
	sigset_t signals;

	sigemptyset(&signals);
	for (int number = 1; number <= 64; number++)
		if (mask & (UINT64_C(1) << (number - 1)))
			sigaddset(&signals, number);
	return result(signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC));
}

static int inherit(uint64_t mask)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data))
		return -1;
	data[0].inheritable |= (uint32_t)mask;
	data[1].inheritable |= (uint32_t)(mask >> 32);
	return (int)syscall(SYS_capset, &header, data);
}

int cf_carry_capabilities(uint64_t mask)
{
	if (inherit(mask))
		return -errno;
	for (int capability = 0; capability < 64; capability++)
		if ((mask >> capability & 1) && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0L, 0L))
			return -errno;
	return 0;
}
