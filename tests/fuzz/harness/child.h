/* child.h: the child's side of the wire: frames for the stack, and what it holds the stack's own frames to. */
#ifndef FUZZ_CHILD_H
#define FUZZ_CHILD_H

#include "stack.h"

#define FLOWS_SEEN 2048 /* more slots than any configuration here allows */

/* What the harness knows of the flow in one slot of the table. */
struct seen {
	uint32_t generation;
	bool asked, connected, ended;
	bool edge_known;
	bool held;                 /* nothing of it may leave */
	struct far_end to;         /* where it may go, once it was let out */
	uint32_t edge;             /* the right edge of the largest window that the child has told */
};
extern struct seen seen[FLOWS_SEEN];
struct seen *seen_of(const struct flow *f);

/* One segment to be. */
struct saying {
	const uint8_t *remote;
	int address_len;
	uint16_t child_port, remote_port, window;
	uint32_t seq, ack, text_len;
	uint8_t flags, hop_limit;
	const uint8_t *options;
	uint32_t options_len;      /* a multiple of 4, at most 40 */
	bool partial, segmented;   /* how the kernel would hand it over */
};

extern const struct cf_config config_base;
/* Of every frame that is built from here on: the TOS byte, and with IPv4 DF. */
void child_manner(uint8_t tos, bool dont_fragment);
/* Each queues one frame. */
void child_says(const struct saying *s);
void child_sends_datagram(int address_len, const uint8_t *remote, uint16_t child_port, uint16_t remote_port, uint32_t len,
			  uint8_t hop_limit);
/* A frame as it is; with @mend its checksums are made right where the parse would find them. Not trusted afterwards. */
void child_sends_raw(const uint8_t *bytes, uint32_t len, bool mend);
/* Whether the frame that is to be read next is one that must never be answered with an RST, or an ICMP error. */
bool next_frame_is_reset(void);
bool next_frame_is_icmp_error(void);

extern uint32_t down_icmp_errors;

#endif
