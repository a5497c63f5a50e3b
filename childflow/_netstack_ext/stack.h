/* stack.h: what the files of the stack share.
 *
 * The way of a packet, in file order: up   tap.c -> input.c (wire.c) -> flow.c -> tcp_input.c | udp.c -> host.c
 *                                     down host.c -> tcp_output.c | udp.c -> ip.c -> tap.c
 * One stack owns: the epoll set, the flow table (flow.c), the heap of deadlines (timer.c), the payload rings (ring.c),
 * the slow-path queue (slow.c) and the counters. Everything is reached from struct cf_stack; there is no global state. */
#ifndef CHILDFLOW_STACK_H
#define CHILDFLOW_STACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "api.h"
#include "crash.h"
#include "ring.h"
#include "seq.h"
#include "wire.h"

#define NONE UINT32_MAX
#define NEVER UINT64_MAX
#define US_PER_MS 1000ull
#define US_PER_S 1000000ull
#define PARKED_MAX_US (60 * US_PER_S) /* a question that Python does not answer in this time is forgotten */
#define HOP_LIMIT_DEFAULT 64 /* of Linux, child and host alike; another one was asked for by a program */

/* --- flows ------------------------------------------------------------------------------------------------ */

/* Seen from the child, whose connection we answer; RFC 9293's names, with PARKED and CONNECTING for the time between the
 * child's SYN and our SYN-ACK, and DRAINING when the child is done but the host socket still has bytes to take. UDP peers use PARKED, OPEN and CLOSED only. */
enum flow_state {
	CLOSED, PARKED, CONNECTING, SYN_RECEIVED, ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, CLOSE_WAIT, CLOSING, LAST_ACK,
	TIME_WAIT, DRAINING, OPEN, FLOW_STATES
};

/* Where a flow stands in line for being given up, oldest or least recently used first, when a limit is reached: TCP before
 * the handshake is complete, TCP in TIME-WAIT that nothing waits for, UDP peers. */
enum flow_queue { QUEUE_NONE, QUEUE_HALF_OPEN, QUEUE_DONE, QUEUE_PEERS, FLOW_QUEUES };

/* Flows that have something to do, that owe an ACK, that Python must hear of, that wait for a payload ring, that wait until
 * the kernel may have memory again. */
enum flow_list { LIST_READY, LIST_ACK, LIST_PENDING, LIST_RING, LIST_MEMORY, FLOW_LISTS };

struct tcb {
	/* down: what we send to the child. snd_una <= snd_nxt <= snd_max; the down ring starts at snd_una (or one
	 * behind it while the SYN is not acknowledged). */
	seq iss, snd_una, snd_nxt, snd_max, recover;
	seq snd_wl1, snd_wl2;
	uint32_t child_window;         /* bytes from snd_una */
	uint16_t mss;
	uint8_t child_wscale, our_wscale, dup_acks, retries, probes, keepalives;
	/* what was lost on its way down (tcp_recovery.c). snd_una <= sacked <= snd_max: all before it is reported or in a hole */
	seq sacked;
	uint32_t sent_order, delivered_order; /* retransmissions: how many, and the newest that arrived */
	uint32_t allowance;            /* bytes that may be sent again now, with `slow` or not for the first time */
	bool sack;                     /* both ends permit selective acknowledgements */
	bool slow;                     /* after a timeout: as fast as the child acknowledges */
	bool probed;                   /* the tail was sent again since something was last reported */
	/* up: what we take from the child. rcv_nxt <= rcv_adv, the right edge that the child was told. */
	seq irs, rcv_nxt, rcv_adv;
	seq fin_seq;                   /* of a FIN that waits for text before it; valid with fin_seen */
	seq recent[SACK_BLOCKS_MAX];   /* a place in each interval that last got text ahead of a gap, the newest first */
	uint8_t recent_count, acks_ahead; /* acks_ahead: sent at once since rcv_nxt stands */
	struct ring *up, *down;        /* NULL when empty */
	/* RFC 6298, microseconds */
	uint32_t srtt, rttvar, rto;
	seq timed_seq;
	uint64_t timed_at;             /* 0: no segment is timed */
	uint64_t rtx_at, persist_at;   /* NEVER: off */
	uint64_t keepalive_sent_at;
};

/* An address and port as the host's kernel is told them. */
struct far_end {
	uint8_t address[16], address_len;
	uint16_t port;
};

struct udp_peer {
	struct far_end to;
	uint32_t to_prev, to_next;     /* in its bucket of cf_stack.translated: index + 1, 0 at either end */
	uint32_t map;                  /* index of the child port's host socket, NONE before the verdict */
	uint32_t map_prev, map_next;   /* other peers of that socket */
	struct parked *parked;         /* datagrams that wait for the verdict, oldest first */
	bool translated;               /* `to` is not what the child uses */
	uint8_t parked_count;
	bool answered;
};

struct flow {
	uint32_t index, generation, hash_next, next[FLOW_LISTS];
	uint32_t bucket;               /* of the hash */
	uint32_t queue_prev, queue_next;
	uint8_t queue;                 /* enum flow_queue */
	uint8_t on_list;               /* bit per enum flow_list */
	uint8_t state, protocol, address_len, hop_limit, tos;
	bool held;                     /* what the child says stays here until Python has seen it */
	uint8_t host_address_len;      /* 4 or 16: the family of the host side */
	uint8_t pending;               /* bit per event that Python has not read yet: PENDING_ below */
	uint8_t end;
	bool asked;                    /* Python knows of this flow */
	bool ended;                    /* CF_EVENT_ENDED was queued */
	bool unhashed;                 /* its tuple belongs to another flow, or to none */
	/* of the host socket, as epoll last told. read_to_end: a hang-up or an urgent mark is there, so that a short read does
	 * not mean that it is drained. */
	bool host_readable, host_writable, read_to_end, host_error, host_eof, host_shut;
	int send_error;                /* errno of a failed send: told to the child once all that can be read was read */
	/* of the child side */
	bool ack_due, fin_seen, fin_taken, window_scaling;
	uint16_t child_port, remote_port;
	uint8_t remote[16];
	int host_fd, connect_error;
	uint32_t heap_pos;
	uint64_t deadline, heap_key, active_at, asked_at, connected_at, ended_at;
	uint64_t bytes_up, bytes_down;
	union {
		struct tcb tcp;
		struct udp_peer udp;
	};
};

#define PENDING_QUESTION 1
#define PENDING_CONNECTED 2
#define PENDING_ENDED 4
#define PENDING_FLIGHT 8

struct list {
	uint32_t head, tail;
};

struct queue { /* doubly linked: a flow may leave from anywhere */
	uint32_t head, tail, count;
};

/* One UDP host socket for one child port and family (RFC 4787 REQ-1: endpoint-independent mapping). */
struct udp_map {
	int host_fd;
	uint32_t generation, peers, translated, next_free; /* translated: of its peers */
	uint32_t first_peer, prev, next; /* the maps in use, least recently used first */
	uint16_t child_port;
	uint8_t address_len;
	bool used, ready, errors;      /* ready: on that queue; errors: its error queue is not empty */
	bool may_fragment;             /* what the socket was last told */
	uint32_t next_ready;
};

/* Token bucket: @rate a second, at most @burst at once. */
struct bucket {
	uint64_t at;
	uint32_t tokens, rate, burst;
};

struct slow_queue {
	uint8_t *bytes;
	uint32_t used, count, taken;
	struct slow_entry *entries;
	struct bucket control, fragments, spoofed;
};

struct cf_stack {
	uint32_t magic;
	struct cf_config cfg;
	uint64_t now;
	int epoll_fd, timer_fd;
	uint64_t timer_armed;
	uint64_t retry_at;             /* when what failed for want of memory is tried again; NEVER: nothing did */
	bool tap_gone, tap_readable, tap_writable;
	bool tap_failing;              /* reads fail, and not because nothing is there: tried again at retry_at */
	uint8_t *frame;                /* where one frame is read */
	uint32_t max_payload;          /* bytes of TCP text in one frame down: 64 KiB or one MSS */

	struct flow **blocks;          /* slab: blocks of FLOW_BLOCK flows, made as they are needed */
	uint32_t block_count, flow_count, free_flow, flow_top;
	uint32_t *buckets, bucket_mask;
	struct list lists[FLOW_LISTS];
	struct queue queues[FLOW_QUEUES];

	uint32_t *heap;                /* indices of flows, by deadline */
	uint32_t heap_len;

	struct ring_pool rings;
	uint32_t host_sockets, udp_sockets; /* held against their limits */
	uint64_t parked_bytes;

	struct udp_map *maps;
	uint32_t map_count, map_room, free_map;
	struct list maps_by_use;
	uint32_t ready_head, ready_tail; /* queue of maps with datagrams or errors to read */
	uint32_t *map_of_port[2];      /* by the host side's family and child port */
	uint32_t *translated;          /* UDP peers by host side and child port; NULL before the first one */
	struct udp_batch *batch;

	struct slow_queue slow;
	struct bucket icmp_errors, challenge_acks;
	uint64_t drops[CF_DROP_COUNT];
	struct crash_ring crash;
};

static inline void drop(struct cf_stack *st, int why) { st->drops[why]++; }
/* The child has closed or aborted and needs nothing more; the host may still have bytes to take. */
static inline bool child_is_done(const struct flow *f) { return f->state == TIME_WAIT || f->state == DRAINING; }
/* All that the child has said, its FIN included if that came, was passed on to the host. */
static inline bool up_is_done(const struct flow *f) { return !f->tcp.up && !f->held; }
/* The largest segment that the link's MTU takes. */
static inline uint16_t own_mss(const struct cf_stack *st, const struct flow *f)
{
	return (uint16_t)(st->cfg.mtu - TCP_HEADER_LEN - (f->address_len == 4 ? IPV4_HEADER_LEN : IPV6_HEADER_LEN));
}

/* tap.c: frames in and out */
struct frame_out { /* one frame for the child: headers built back to front by ip.c, text in up to two pieces */
	uint8_t room[VNET_HEADER_LEN + ETHERNET_HEADER_LEN + IPV6_HEADER_LEN + 60];
	uint32_t start;                /* of what is filled in of @room */
	struct iovec text[2];
	int text_pieces;
	uint32_t text_len;
	uint16_t gso_size;             /* 0: one segment */
	uint8_t protocol, hop_limit, tos; /* hop_limit 0 means the default */
};
int tap_read(struct cf_stack *st, int budget);
bool tap_write(struct cf_stack *st, const struct frame_out *out);
int tap_write_bytes(struct cf_stack *st, const uint8_t *bytes, uint32_t len, bool ethernet);

/* input.c: a frame from the child to whom it concerns */
void input_frame(struct cf_stack *st, const uint8_t *bytes, uint32_t len);

/* ip.c: put headers before a transport segment and send it */
void frame_begin(struct frame_out *out, uint8_t protocol);
uint8_t *frame_prepend(struct frame_out *out, uint32_t len);
/* @transport is the header at out->start; @checksum_offset within it. @src NULL: the gateway. */
bool ip_send(struct cf_stack *st, struct frame_out *out, int address_len, const uint8_t *src, uint32_t transport_len,
	     uint32_t checksum_offset);

/* icmp.c: errors to the child */
struct icmp_error {
	uint8_t type, code;
	uint32_t extra;                /* bytes 4 to 7: an MTU */
	const uint8_t *from;           /* who says it; NULL: the gateway */
};
struct icmp_error icmp_denial(enum cf_denial how, int address_len);
struct icmp_error icmp_too_big(int address_len, uint32_t mtu);
bool icmp_is_too_big(int address_len, uint8_t type, uint8_t code);
/* Make of *@e, which came for what the host side of @f sent to @to, what the child would see; false when it would see nothing. */
bool icmp_for_child(const struct flow *f, const uint8_t *to, struct icmp_error *e);
/* Quote @quoted, an IP packet of the child's. */
void icmp_send(struct cf_stack *st, int address_len, struct icmp_error e, const uint8_t *quoted, uint32_t quoted_len);
/* Quote the packet that opened or belongs to @f, rebuilt: its transport header, with @text behind a UDP header. */
void icmp_send_for_flow(struct cf_stack *st, const struct flow *f, struct icmp_error e, const uint8_t *text, uint32_t text_len);

/* flow.c: the table */
bool flow_table_init(struct cf_stack *st);
void flow_table_free(struct cf_stack *st);
struct flow *flow_at(const struct cf_stack *st, uint32_t index);
struct flow *flow_of_id(const struct cf_stack *st, cf_flow_id id);
cf_flow_id flow_id(const struct flow *f);
struct flow *flow_find(const struct cf_stack *st, uint8_t protocol, int address_len, uint16_t child_port,
		       const uint8_t *remote, uint16_t remote_port);
struct flow *flow_new(struct cf_stack *st, uint8_t protocol, int address_len, uint16_t child_port, const uint8_t *remote,
		      uint16_t remote_port);
void flow_ask(struct cf_stack *st, struct flow *f);
void flow_report_connected(struct cf_stack *st, struct flow *f);
void flow_report_flight(struct cf_stack *st, struct flow *f);
/* Queue CF_EVENT_ENDED, once. The flow may stay in the table (TIME-WAIT). */
void flow_report_end(struct cf_stack *st, struct flow *f, enum cf_end end);
/* Take the flow out of the table, report its end, free what it holds. @f must not be used after it. */
void flow_close(struct cf_stack *st, struct flow *f, enum cf_end end);
void flow_unhash(struct cf_stack *st, struct flow *f);
/* Put @f at the end of a queue: it is the youngest there, or was used last. */
void flow_queue(struct cf_stack *st, struct flow *f, enum flow_queue which);
void flow_unqueue(struct cf_stack *st, struct flow *f);
void list_push(struct cf_stack *st, enum flow_list which, struct flow *f);
struct flow *list_pop(struct cf_stack *st, enum flow_list which);
uint64_t flow_hash(const uint8_t key[16], uint8_t protocol, int address_len, uint16_t child_port, const uint8_t *remote,
		   uint16_t remote_port);

/* timer.c: a heap of deadlines; moving one later costs nothing until it fires */
void timer_set(struct cf_stack *st, struct flow *f, uint64_t deadline);
void timer_remove(struct cf_stack *st, struct flow *f);
struct flow *timer_due(struct cf_stack *st);
bool timer_arm(struct cf_stack *st);

/* host.c: real sockets */
int host_connect(struct cf_stack *st, struct flow *f, const struct far_end *to);
int host_adopt(struct cf_stack *st, struct flow *f, int fd);
int host_take_error(const struct flow *f);
#define HOST_ERROR_ROOM 512 /* bytes of control messages with an entry of an error queue */
bool host_told_icmp(struct msghdr *m, int address_len, struct icmp_error *e);
void host_told_mtu(struct msghdr *m, uint32_t *mtu);
bool host_connect_told_icmp(const struct flow *f, void *control, struct icmp_error *e);
void host_connected(const struct flow *f);
void host_close(struct cf_stack *st, struct flow *f, bool reset);
int host_udp_socket(struct cf_stack *st, int address_len, uint64_t epoll_tag);
void host_udp_may_fragment(int fd, int address_len, bool may);
void host_follow_tos(struct flow *f, uint8_t tos);
void host_address_of(const struct far_end *to, void *sockaddr_in6, uint32_t *len);
const uint8_t *host_address_in(const void *sockaddr, uint16_t *port);
void host_close_udp(struct cf_stack *st, int fd);
#define MAP_TAG (1ull << 63)
#define TAP_TAG UINT64_MAX
#define TIMER_TAG (UINT64_MAX - 1)

/* tcp_*.c */
void tcp_input(struct cf_stack *st, const struct ip_view *ip, const struct tcp_view *tcp);
void tcp_host_event(struct cf_stack *st, struct flow *f, uint32_t events);
void tcp_service(struct cf_stack *st, struct flow *f);
void tcp_timer(struct cf_stack *st, struct flow *f);
void tcp_deadline(struct cf_stack *st, struct flow *f);
void tcp_answer_syn(struct cf_stack *st, struct flow *f);
void tcp_connect_failed(struct cf_stack *st, struct flow *f, int error);
void tcp_output(struct cf_stack *st, struct flow *f);
bool tcp_send_ack(struct cf_stack *st, struct flow *f);
void tcp_ack_soon(struct cf_stack *st, struct flow *f);
bool tcp_window_opened(const struct cf_stack *st, const struct flow *f);
void tcp_retransmit(struct cf_stack *st, struct flow *f);
uint32_t tcp_send_again(struct cf_stack *st, struct flow *f, seq from, uint32_t len);
uint32_t tcp_loss_timeout(const struct flow *f);
void tcp_send_probe(struct cf_stack *st, struct flow *f);
void tcp_send_keepalive(struct cf_stack *st, struct flow *f);
void tcp_send_reset(struct cf_stack *st, struct flow *f);
void tcp_refuse_ack(struct cf_stack *st, struct flow *f, seq ack);
void tcp_refuse_segment(struct cf_stack *st, const struct ip_view *ip, const struct tcp_view *tcp);
void tcp_abort(struct cf_stack *st, struct flow *f, enum cf_end end);
uint32_t tcp_held(const struct flow *f, uint8_t *out, uint32_t max);
void tcp_take_up(struct cf_stack *st, struct flow *f, seq at, const uint8_t *text, uint32_t len);
void tcp_arm_persist(struct cf_stack *st, struct flow *f);
void tcp_rtt_sample(struct flow *f, uint64_t now);
void tcp_end_back_off(struct tcb *t);
void tcp_free(struct cf_stack *st, struct flow *f);
/* tcp_recovery.c: what was lost on its way to the child */
bool tcp_take_sack(struct flow *f, const struct tcp_options *o);
void tcp_forget_acked(struct flow *f, uint32_t acked);
void tcp_start_over(struct flow *f);
void tcp_infer_losses(struct flow *f);
bool tcp_send_lost(struct cf_stack *st, struct flow *f);
void tcp_lose_all(struct flow *f);
bool tcp_probe_tail(struct cf_stack *st, struct flow *f);
bool tcp_note_ahead(struct flow *f, seq at);
uint32_t tcp_sack_options(const struct flow *f, uint8_t *p);

enum tcp_event { GOT_CHILD_FIN, SENT_FIN, FIN_ACKED, CHILD_ABORTED, TCP_EVENTS };
void tcp_move(struct cf_stack *st, struct flow *f, enum tcp_event event);

/* udp.c */
bool udp_init(struct cf_stack *st);
void udp_shutdown(struct cf_stack *st);
void udp_input(struct cf_stack *st, const struct ip_view *ip, const struct udp_view *udp);
void udp_allow(struct cf_stack *st, struct flow *f, const struct far_end *to);
uint32_t udp_held(const struct flow *f, uint32_t index, uint8_t *out, uint32_t max);
void udp_deny(struct cf_stack *st, struct flow *f, enum cf_denial how);
void udp_host_event(struct cf_stack *st, uint64_t tag, uint32_t events);
void udp_service(struct cf_stack *st);
void udp_timer(struct cf_stack *st, struct flow *f);
void udp_deadline(struct cf_stack *st, struct flow *f);
void udp_free(struct cf_stack *st, struct flow *f);

/* slow.c: what Python handles, and how often a thing may happen */
struct bucket bucket_of_rate(uint32_t rate, uint32_t burst);
bool bucket_take(struct bucket *b, uint64_t now);
bool slow_init(struct cf_stack *st);
void slow_free(struct cf_stack *st);
void slow_push(struct cf_stack *st, struct cf_event e, const uint8_t *bytes, uint32_t len);
void slow_begin_turn(struct cf_stack *st);
void slow_tell_spoofed(struct cf_stack *st, const uint8_t *packet, uint32_t len);
int slow_events(struct cf_stack *st, struct cf_event *out, int max);

#endif
