/* tcp_state.c: how a flow's state moves (RFC 9293, 3.3.2), in one table. What is absent is illegal and asserted.
 *
 * The host's end of file is our CLOSE call: it sends our FIN to the child. CHILD_ABORTED is an RST after the child's FIN, with
 * acknowledged bytes that the host has not taken yet: those are still delivered. */
#include "stack.h"

static const uint8_t next_state[FLOW_STATES][TCP_EVENTS] = {
	[ESTABLISHED] = {[GOT_CHILD_FIN] = CLOSE_WAIT, [SENT_FIN] = FIN_WAIT_1},
	[FIN_WAIT_1] = {[GOT_CHILD_FIN] = CLOSING, [FIN_ACKED] = FIN_WAIT_2},
	[FIN_WAIT_2] = {[GOT_CHILD_FIN] = TIME_WAIT},
	[CLOSE_WAIT] = {[SENT_FIN] = LAST_ACK, [CHILD_ABORTED] = DRAINING},
	[CLOSING] = {[FIN_ACKED] = TIME_WAIT, [CHILD_ABORTED] = DRAINING},
	[LAST_ACK] = {[FIN_ACKED] = DRAINING, [CHILD_ABORTED] = DRAINING},
};

void tcp_move(struct cf_stack *st, struct flow *f, enum tcp_event event)
{
	uint8_t to = next_state[f->state][event];

	MUST(st, to != CLOSED);
	f->state = to;
}
