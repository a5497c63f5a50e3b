/* tap.c: frames in and out of the TAP, a virtio header before each.
 *
 * The descriptor may be anything that keeps frame boundaries: tests use a SOCK_SEQPACKET pair. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "stack.h"

#define READS_AGAIN 2 /* at once, after an error that may pass: no second edge tells of a frame that is there still */

static bool is_gone(int error) { return error == EBADFD || error == EBADF || error == EPIPE; }

/* A read that brought no frame: whether to read again now. */
static bool read_again(struct cf_stack *st, ssize_t len, int *failures)
{
	if (len == 0 || is_gone(errno))
		st->tap_gone = true; /* the device was deleted; its POLLERR would never end */
	else if (errno != EAGAIN && (*failures)++ < READS_AGAIN)
		return true;
	st->tap_readable = false;
	st->tap_failing = errno != EAGAIN && !st->tap_gone;
	return false;
}

/* Read and handle at most @budget frames; returns how many. Sets tap_readable to whether more may be waiting. */
int tap_read(struct cf_stack *st, int budget)
{
	int n = 0, failures = 0;

	while (n < budget) {
		ssize_t len = read(st->cfg.tap_fd, st->frame, FRAME_MAX);

		if (len <= 0) {
			if (!read_again(st, len, &failures))
				return n;
			continue;
		}
		n++;
		crash_keep(st, CRASH_UP, &(struct iovec){st->frame, (size_t)len}, 1);
		input_frame(st, st->frame, (uint32_t)len);
	}
	return n;
}

/* False: the TAP takes nothing now, and an edge will tell when it does. */
static bool write_frame(struct cf_stack *st, const struct iovec *iov, int pieces)
{
	crash_keep(st, CRASH_DOWN, iov, pieces);
	while (writev(st->cfg.tap_fd, iov, pieces) < 0) {
		if (errno == EINTR)
			continue;
		drop(st, CF_DROP_TAP_FULL);
		if (errno == EAGAIN) {
			st->tap_writable = false;
			return false;
		}
		if (is_gone(errno))
			st->tap_gone = true;
		return true; /* lost as on a wire: the link is down, or memory short. What retransmits will; no edge would tell */
	}
	return true;
}

bool tap_write(struct cf_stack *st, const struct frame_out *out)
{
	struct iovec iov[3];

	iov[0] = (struct iovec){(void *)(uintptr_t)(out->room + out->start), sizeof(out->room) - out->start};
	for (int i = 0; i < out->text_pieces; i++)
		iov[1 + i] = out->text[i];
	return write_frame(st, iov, 1 + out->text_pieces);
}

int tap_write_bytes(struct cf_stack *st, const uint8_t *bytes, uint32_t len, bool ethernet)
{
	uint8_t head[VNET_HEADER_LEN + ETHERNET_HEADER_LEN] = {0}, *eth = head + VNET_HEADER_LEN;
	struct iovec iov[2] = {{head, ethernet ? VNET_HEADER_LEN : sizeof(head)}, {(void *)(uintptr_t)bytes, len}};

	if (len == 0 || len > FRAME_MAX - sizeof(head))
		return CF_EINVAL;
	memcpy(eth, st->cfg.child_mac, 6);
	memcpy(eth + 6, st->cfg.gateway_mac, 6);
	put16(eth + 12, bytes[0] >> 4 == 4 ? ETHERTYPE_IPV4 : ETHERTYPE_IPV6);
	return write_frame(st, iov, 2) ? CF_OK : CF_EBUSY;
}
