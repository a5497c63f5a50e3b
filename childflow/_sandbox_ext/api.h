/* api.h: the system calls around the fork that Python 3.11 does not offer.
 *
 * This one text is cffi's cdef and what C includes. Each function is one system call; it returns 0 (or the
 * descriptor or pid it says) or -errno, never sets errno for the caller, and allocates nothing.
 */

/* unshare(2) with CLONE_NEW* flags. */
int cf_unshare(int flags);

/* mount(2); source, fstype and data may be NULL. */
int cf_mount(const char *source, const char *target, const char *fstype, unsigned long flags, const char *data);

/* umount2(2). */
int cf_umount(const char *target, int flags);

/* mount_setattr(2): set the MOUNT_ATTR_* bits of `attributes` on the mount at `path`, and on those below it if
 * `recursive`. -ENOSYS before Linux 5.12. */
int cf_mount_set(const char *path, int recursive, uint64_t attributes);

/* A fork whose child is the caller's sibling (CLONE_PARENT). Returns its pid as the caller sees it, and 0 in the child,
 * which may only exec or _exit: no atfork handler has run. */
int cf_fork_sibling(void);

/* prctl(2) with one argument. */
int cf_prctl(int option, unsigned long argument);

/* A non-blocking, close-on-exec signalfd(2) for the signals whose bit (number - 1) is set in `mask`. */
int cf_signalfd(uint64_t mask);

/* Let the capabilities of `mask` (bit n is capability n), which we must have, survive an exec: raise them as ambient. */
int cf_carry_capabilities(uint64_t mask);
