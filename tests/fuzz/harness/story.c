/* story.c: the steps of a story: what the child says, what the hosts do, what Python answers, what the kernel refuses.
 *
 * Numbers are chosen relative to the flow as it is (the next sequence number, what was sent last), so that conversations get
 * somewhere; the raw frames and the odd offsets see to the rest. After each step the stack comes to rest by its own
 * wake-ups, and its books are checked. At the end everybody behaves, and nothing may be stuck. */
#include "story.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "books.h"
#include "child.h"
#include "world.h"

#define SLOTS 8
#define QUESTIONS 64
#define TURNS_TO_REST 3000
#define WAITING_MAX 300000
#define ROUNDS_AT_END 160

static cf_flow_id questions[QUESTIONS];
static uint32_t question_count;
static bool events_held;

/* --- choices ---------------------------------------------------------------------------------------------- */

static const uint32_t lengths[] = {0, 1, 2, 7, 100, 536, 1459, 1460, 1461, 2920, 9000, 30000, 60000, 65000, 65470, 3};
static const uint16_t windows[] = {0, 1, 2, 100, 536, 1459, 1460, 2920, 8192, 32768, 65534, 65535, 65535, 65535, 3, 20};
static const int32_t offsets[] = {0, 1, -1, 2, 1460, -1460, 2920, 100, -100, 65535, -65535, 70000, -70000, INT32_MAX, INT32_MIN, 5000};
static const uint64_t times_us[] = {0, 1, 1000, 40000, 199000, 200000, 201000, 1000000, 3000000, 17000000, 60000000, 61000000,
				    120000000, 300000000, 7200000000ull, 75000000};
static const int errors[] = {EINTR, EAGAIN, ECONNREFUSED, ENETUNREACH, EHOSTUNREACH, ETIMEDOUT, EACCES, EPERM, EMFILE, ENOBUFS,
			     ENOMEM, ECONNRESET, EPIPE, EIO, EBADFD, EMSGSIZE};
/* What may wait on a socket, or be said by connect. */
static const int socket_errors[] = {ECONNREFUSED, ENETUNREACH, EHOSTUNREACH, ETIMEDOUT, ECONNRESET, EPIPE, EACCES, ENETDOWN};
static const uint8_t flag_sets[] = {
	TCP_ACK, TCP_ACK | TCP_PSH, TCP_FIN | TCP_ACK, TCP_RST, TCP_RST | TCP_ACK, TCP_SYN, TCP_SYN | TCP_ACK, TCP_URG | TCP_ACK, 0,
	TCP_FIN, TCP_SYN | TCP_FIN, TCP_SYN | TCP_RST, 0x3f, TCP_ACK, TCP_ACK, TCP_ACK | 0xc0,
};

#define CHOOSE(table, byte) ((table)[(byte) % (sizeof(table) / sizeof((table)[0]))])

struct tuple {
	uint8_t remote[16];
	int address_len;
	uint16_t child_port, remote_port;
};

static struct tuple tuple_of(uint32_t slot)
{
	struct tuple t = {.address_len = slot & 1 ? 16 : 4, .child_port = (uint16_t)(40000 + slot / 2 % 2), .remote_port = 443};
	const uint8_t v4[4] = {203, 0, 113, (uint8_t)(5 + slot / 4)};
	const uint8_t v6[16] = {0x20, 1, 0x0d, 0xb8, [15] = (uint8_t)(5 + slot / 4)};

	memcpy(t.remote, t.address_len == 4 ? v4 : v6, (size_t)t.address_len);
	return t;
}

static struct flow *flow_of(struct cf_stack *st, const struct tuple *t, uint8_t protocol)
{
	return flow_find(st, protocol, t->address_len, t->child_port, t->remote, t->remote_port);
}

/* --- running ---------------------------------------------------------------------------------------------- */

static void read_events(struct cf_stack *st)
{
	struct cf_event events[16];
	int n;

	while ((n = cf_events(st, events, 16)) > 0) {
		note_events(events, n);
		for (int i = 0; i < n; i++)
			if (events[i].kind == CF_EVENT_QUESTION && question_count < QUESTIONS)
				questions[question_count++] = events[i].flow;
	}
}

/* @kick: Python has just answered something, after which its loop takes another turn in any case. */
void story_rest(struct cf_stack *st, bool kick)
{
	for (int i = 0; i < TURNS_TO_REST; i++) {
		if (!kick && !world_would_wake())
			return;
		world.calls = 0;
		kick = cf_turn(st, world.now) & CF_TURN_MORE;
		if (!events_held)
			read_events(st);
	}
	fail("the stack comes to rest");
}

static cf_flow_id take_question(uint32_t n)
{
	cf_flow_id id;

	if (question_count == 0)
		return 0;
	n %= question_count;
	id = questions[n];
	memmove(questions + n, questions + n + 1, (--question_count - n) * sizeof(id));
	return id;
}

/* --- what the child says ---------------------------------------------------------------------------------- */

static void note_edge(struct flow *f, uint32_t ack, uint16_t window)
{
	struct seen *s = seen_of(f);
	uint32_t edge = ack + ((uint32_t)window << (f->window_scaling ? f->tcp.child_wscale : 0));

	if (!s->edge_known || (int32_t)(edge - s->edge) > 0)
		s->edge = edge;
	s->edge_known = true;
}

/* Deliver what is queued; a reset or an ICMP error must not be answered by its like. */
static void deliver(struct cf_stack *st)
{
	bool reset = next_frame_is_reset(), error = next_frame_is_icmp_error();

	story_rest(st, true);
	if (reset)
		HOLDS(world.down_resets == 0);
	if (error)
		HOLDS(down_icmp_errors == 0);
}

static void begin_frame(struct cf_stack *st)
{
	story_rest(st, false);
	world.down_frames = world.down_resets = down_icmp_errors = 0;
}

static uint32_t put_syn_options(uint8_t *p, const uint8_t *r)
{
	static const uint16_t sizes[] = {1460, 1440, 536, 48, 1, 0, 8960, 65495};
	uint8_t *start = p;

	memset(p, TCP_OPTION_NOP, 40);
	if (r[2] & 1) {
		memcpy(p, "\2\4", 2);
		put16(p + 2, CHOOSE(sizes, r[3]));
		p += 4;
	}
	if (r[2] & 2) {
		memcpy(p + 1, "\3\3", 2);
		p[3] = r[4];
		p += 4;
	}
	if (r[2] & 4) {
		memcpy(p + 2, "\4\2", 2);
		p += 4;
	}
	if (r[2] & 8) {
		memcpy(p + 2, "\10\12", 2);
		p += 12;
	}
	if (r[2] & 16) {
		p[0] = r[7];
		p[1] = r[4];
		p += 4;
	}
	return (uint32_t)(p - start);
}

static void step_open(struct cf_stack *st, const uint8_t *r)
{
	static const uint32_t isns[] = {5000, 0, 0xfffffff0, 0x7ffffff0, 0xffffffff, 1000000, 0x80000000, 6000};
	struct tuple t = tuple_of(r[1] % SLOTS);
	struct flow *f = flow_of(st, &t, PROTO_TCP);
	uint8_t options[40];
	struct saying s = {.remote = t.remote, .address_len = t.address_len, .child_port = t.child_port, .remote_port = t.remote_port,
			   .window = CHOOSE(windows, r[5]), .seq = CHOOSE(isns, r[6]), .flags = TCP_SYN, .hop_limit = r[6] & 0x20 ? 5 : 64,
			   .options = options, .options_len = put_syn_options(options, r), .text_len = r[6] & 0x40 ? 10 : 0};

	if (f && (r[6] & 0x80)) /* beyond what was used: may take over TIME-WAIT */
		s.seq = f->tcp.rcv_nxt.n + 100000;
	begin_frame(st);
	child_says(&s);
	deliver(st);
	f = flow_of(st, &t, PROTO_TCP);
	if (f && f->state == PARKED)
		note_edge(f, f->tcp.iss.n, s.window);
	if (f && f->state == PARKED)
		note_edge(f, f->tcp.iss.n + 1, s.window);
}

static uint32_t put_options(uint8_t *p, const struct flow *f, uint8_t choice)
{
	uint32_t una = f ? f->tcp.snd_una.n : 1, blocks = choice >> 2 & 3;

	memset(p, TCP_OPTION_NOP, 40);
	switch (choice & 3) {
	case 1: /* selective acknowledgements, of what was sent and of what was not */
		p[2] = 5;
		p[3] = (uint8_t)(2 + 8 * blocks);
		for (uint32_t i = 0; i < blocks; i++) {
			put32(p + 4 + 8 * i, una + 1460 * (i * 2 + 1) + (choice >> 6) * 1460);
			put32(p + 8 + 8 * i, una + 1460 * (i * 2 + 2) + (choice >> 4 & 3) * 1460);
		}
		return 4 + 8 * blocks;
	case 2: /* of any shape */
		p[0] = choice >> 2;
		p[1] = choice >> 5;
		return 8;
	default:
		return 0;
	}
}

static uint32_t base_ack(const struct flow *f, uint8_t choice)
{
	if (!f)
		return 1000;
	switch (choice & 3) {
	case 0: return f->tcp.snd_max.n;
	case 1: return f->tcp.snd_una.n;
	case 2: return f->tcp.snd_una.n + (uint32_t)seq_diff(f->tcp.snd_max, f->tcp.snd_una) / 2;
	default: return f->tcp.snd_una.n + (f->tcp.mss ? f->tcp.mss : 1);
	}
}

static void step_say(struct cf_stack *st, const uint8_t *r)
{
	struct tuple t = tuple_of(r[1] % SLOTS);
	struct flow *f = flow_of(st, &t, PROTO_TCP);
	uint8_t options[40];
	struct saying s = {
		.remote = t.remote, .address_len = t.address_len, .child_port = t.child_port, .remote_port = t.remote_port,
		.flags = CHOOSE(flag_sets, r[2]), .window = CHOOSE(windows, r[5]), .text_len = CHOOSE(lengths, r[4]),
		.seq = (f ? f->tcp.rcv_nxt.n : 5001) + (uint32_t)CHOOSE(offsets, r[3] & 0xf), .hop_limit = r[7] & 4 ? 3 : 64,
		.ack = base_ack(f, r[3] >> 4) + (r[3] >> 6 ? (uint32_t)CHOOSE(offsets, r[3] >> 6) : 0),
		.partial = r[7] & 1, .segmented = (r[7] & 2) != 0, .options = options, .options_len = put_options(options, f, r[6]),
	};

	if (r[7] & 8)
		s.text_len = 0;
	begin_frame(st);
	if (f && (s.flags & TCP_ACK))
		note_edge(f, s.ack, s.window);
	child_says(&s);
	deliver(st);
}

/* The segment of a child that has received everything and has read it: acknowledge all, open the window, fill the gaps. */
static void speak_well(const struct flow *f, uint32_t text, uint8_t flags)
{
	const struct tcb *t = &f->tcp;
	struct saying s = {.remote = f->remote, .address_len = f->address_len, .child_port = f->child_port,
			   .remote_port = f->remote_port, .window = 65535, .seq = t->rcv_nxt.n, .ack = t->snd_max.n, .flags = flags | TCP_ACK,
			   .hop_limit = 64, .partial = true, .text_len = f->fin_taken ? 0 : text};
	uint32_t room = (uint32_t)seq_diff(t->rcv_adv, t->rcv_nxt), gap = 0;

	if (t->up && t->up->ahead_count > 0)
		gap = t->up->ahead[0].start - t->up->len;
	if (seq_after(t->snd_wl1, t->rcv_nxt) && gap < (uint32_t)seq_diff(t->snd_wl1, t->rcv_nxt) + 1)
		gap = (uint32_t)seq_diff(t->snd_wl1, t->rcv_nxt) + 1;
	if (f->fin_seen && !f->fin_taken)
		gap = (uint32_t)seq_diff(t->fin_seq, t->rcv_nxt);
	if (gap > s.text_len && !f->fin_taken)
		s.text_len = gap;
	if (s.text_len > room)
		s.text_len = room;
	note_edge((struct flow *)(uintptr_t)f, s.ack, s.window);
	child_says(&s);
}

static bool speaks(const struct flow *f)
{
	return f->state != CLOSED && f->protocol == PROTO_TCP && f->state >= SYN_RECEIVED && !child_is_done(f) && !f->unhashed;
}

static void all_speak_well(struct cf_stack *st)
{
	for (uint32_t i = 0; i < st->flow_top; i++) {
		if (!speaks(flow_at(st, i)))
			continue;
		begin_frame(st);
		speak_well(flow_at(st, i), 0, 0);
		deliver(st);
	}
}

static void step_honest(struct cf_stack *st, const uint8_t *r)
{
	struct tuple t = tuple_of(r[1] % SLOTS);
	struct flow *f = flow_of(st, &t, PROTO_TCP);

	if (r[2] & 1) {
		all_speak_well(st);
		return;
	}
	if (!f || !speaks(f))
		return;
	begin_frame(st);
	f = flow_of(st, &t, PROTO_TCP);
	if (f && speaks(f)) {
		speak_well(f, CHOOSE(lengths, r[3]), r[4] & 1 ? TCP_FIN : 0);
		deliver(st);
	}
}

/* Text both ways for some rounds. */
static void step_transfer(struct cf_stack *st, const uint8_t *r)
{
	struct tuple t = tuple_of(r[1] % SLOTS);

	for (int i = 0; i <= r[2] % 6; i++) {
		struct flow *f = flow_of(st, &t, PROTO_TCP);

		if (!f || !speaks(f))
			return;
		if (f->host_fd >= 0 && world_at(f->host_fd)->waiting < WAITING_MAX && !world_at(f->host_fd)->eof) {
			world_at(f->host_fd)->waiting += CHOOSE(lengths, r[3]);
			world_edge(world_at(f->host_fd));
		}
		begin_frame(st);
		f = flow_of(st, &t, PROTO_TCP);
		if (!f || !speaks(f))
			return;
		speak_well(f, CHOOSE(lengths, r[4]), 0);
		deliver(st);
	}
}

static void step_datagram(struct cf_stack *st, const uint8_t *r)
{
	struct tuple t = tuple_of(r[1] % SLOTS);
	bool dns = r[2] & 1;

	if (dns)
		memcpy(t.remote, t.address_len == 4 ? config_base.gateway4 : config_base.gateway6, (size_t)t.address_len);
	begin_frame(st);
	child_manner(r[6], r[7] & 1);
	child_sends_datagram(t.address_len, t.remote, t.child_port, dns || (r[2] & 2) ? 53 : 443, CHOOSE(lengths, r[3]), r[4] & 1 ? 64 : r[5]);
	child_manner(0, false);
	deliver(st);
}

static void step_flood(struct cf_stack *st, const uint8_t *r)
{
	for (int i = 0; i < r[2] % 40; i++) {
		struct tuple t = tuple_of(r[1] % SLOTS);
		struct saying s = {.remote = t.remote, .address_len = t.address_len, .child_port = (uint16_t)(50000 + r[3] + i), .remote_port = 80,
				   .window = 1000, .seq = 77, .flags = TCP_SYN, .hop_limit = 64, .partial = true};

		if (r[4] & 1)
			child_says(&s);
		else
			child_sends_datagram(t.address_len, t.remote, s.child_port, 80, 5, 64);
	}
	story_rest(st, false);
}

/* --- hosts ------------------------------------------------------------------------------------------------ */

static void step_connected(struct cf_stack *st, const uint8_t *r)
{
	struct world_fd *d = world_pick(KIND_STREAM, r[1]);

	world.connect_result = r[3] & 1 ? CHOOSE(socket_errors, r[4]) : r[3] & 2 ? 0 : EINPROGRESS;
	if (!d || d->connected || d->error)
		return;
	if (r[2] & 1)
		d->error = CHOOSE(socket_errors, r[4]);
	else
		d->connected = true;
	world_edge(d);
	story_rest(st, false);
}

static void step_host_sends(struct cf_stack *st, const uint8_t *r)
{
	struct world_fd *d = world_pick(KIND_STREAM, r[1]);

	if (!d || !d->connected || d->eof || d->waiting > WAITING_MAX)
		return;
	d->waiting += CHOOSE(lengths, r[2]) + r[3];
	d->urgent = (r[4] & 7) == 7 && d->waiting > 0;
	world_edge(d);
	story_rest(st, false);
}

static void step_host_ends(struct cf_stack *st, const uint8_t *r)
{
	struct world_fd *d = world_pick(KIND_STREAM, r[1]);

	if (!d || !d->connected)
		return;
	if (r[2] & 1)
		d->error = CHOOSE(socket_errors, r[3]);
	d->eof = d->eof || !(r[2] & 1);
	d->hang_up = d->hang_up || (r[2] & 2);
	world_edge(d);
	story_rest(st, false);
}

static void step_host_takes(struct cf_stack *st, const uint8_t *r)
{
	struct world_fd *d = world_pick(KIND_STREAM, r[1]);

	if (!d)
		return;
	d->room = r[2] & 1 ? ALL_ROOM : CHOOSE(lengths, r[3]);
	if (d->room > 0)
		world_edge(d);
	story_rest(st, false);
}

/* From a peer that the child has written to, mostly. */
static struct world_datagram datagram_from(const struct world_fd *d, const uint8_t *r)
{
	struct tuple t = tuple_of((r[2] & 0xfeu) | (d->address_len == 16));
	struct world_datagram g = {.remote_port = r[3] & 1 ? 53 : r[3] & 2 ? 9 : 443, .len = CHOOSE(lengths, r[4])};

	memcpy(g.remote, t.remote, 16);
	g.control_shape = r[2] >> 6 & 1;
	g.code = r[7];
	return g;
}

static void step_host_datagram(struct cf_stack *st, const uint8_t *r)
{
	struct world_fd *d = world_pick(KIND_DATAGRAM, r[1]);

	if (!d)
		return;
	for (int i = 0; i <= r[5] % 4 && d->queued < WORLD_DATAGRAMS; i++)
		d->queue[d->queued++] = datagram_from(d, r);
	if (r[6] & 1)
		d->error = CHOOSE(socket_errors, r[7]);
	world_edge(d);
	story_rest(st, false);
}

static void step_host_error(struct cf_stack *st, const uint8_t *r)
{
	struct world_fd *d = world_pick(r[7] & 1 ? KIND_STREAM : KIND_DATAGRAM, r[1]);
	struct world_datagram g;

	if (!d || d->errors_queued == WORLD_DATAGRAMS)
		return;
	g = datagram_from(d, r);
	g.origin = r[5] & 3;
	g.control_shape = (r[5] >> 2) & 3;
	g.type = r[6] & 0xf;
	g.code = r[6] >> 4;
	g.info = r[7] * 9u;
	d->errors[d->errors_queued++] = g;
	world_edge(d);
	story_rest(st, false);
}

/* --- Python ----------------------------------------------------------------------------------------------- */

static void attach(struct cf_stack *st, cf_flow_id id)
{
	int fd = world_connected_stream();

	if (fd >= 0 && cf_flow_attach(st, id, fd) != CF_OK)
		world_close(fd);
}

static void note_passed(struct cf_stack *st, cf_flow_id id)
{
	if (flow_of_id(st, id))
		seen_of(flow_of_id(st, id))->held = false;
}

/* Let @id out to where it wants, or, with r[4], to another slot's address and a port that hosts answer from. */
static void let_out(struct cf_stack *st, cf_flow_id id, const uint8_t *r)
{
	struct flow *f = flow_of_id(st, id);
	struct tuple t = tuple_of(r[5] % SLOTS);
	struct far_end to = {.address_len = (uint8_t)t.address_len, .port = r[6] & 1 ? 53 : r[6] & 2 ? 9 : 443};

	if (!f || f->state != PARKED) {
		HOLDS(cf_flow_allow(st, id) == CF_EFLOW);
		return;
	}
	memcpy(to.address, t.remote, 16);
	if (!(r[4] & 1)) {
		to = (struct far_end){.address_len = f->address_len, .port = f->remote_port};
		memcpy(to.address, f->remote, 16);
	}
	seen_of(f)->to = to;
	if (f->protocol == PROTO_UDP)
		seen_of(f)->held = false;
	HOLDS((r[4] & 1 ? cf_flow_allow_to(st, id, to.address_len, to.address, to.port) : cf_flow_allow(st, id)) == CF_OK);
}

/* No host: refused, and the flow is as it was. */
static void let_out_nowhere(struct cf_stack *st, cf_flow_id id, const uint8_t *r)
{
	static const uint8_t none[][16] = {{0}, {224, 0, 0, 1}, {255, 255, 255, 255}, {0}, {0xff, 2, [15] = 1}};
	uint32_t i = r[3] % 7;

	HOLDS(cf_flow_allow_to(st, id, i < 3 ? 4 : i < 5 ? 16 : (int)i, none[i % 5], 443) == CF_EINVAL);
}

/* Hold a flow that still waits for its answer. */
static void step_hold(struct cf_stack *st, const uint8_t *r)
{
	cf_flow_id id = question_count ? questions[r[1] % question_count] : 0;
	struct flow *f = flow_of_id(st, id);
	int code = cf_flow_hold(st, id);

	HOLDS(code == (f && f->state == PARKED ? CF_OK : CF_EFLOW));
	if (code == CF_OK)
		seen_of(f)->held = true;
	if (code == CF_OK && r[2] % 8 == 7)
		let_out_nowhere(st, id, r);
	story_rest(st, true);
}

/* What is held is what the child has said, from its first byte on. */
static void look_at(struct cf_stack *st, const struct flow *f)
{
	static uint8_t bytes[1 << 18];
	int64_t len = cf_flow_held(st, flow_id(f), 0, bytes, sizeof(bytes));
	uint32_t from = f->protocol == PROTO_TCP ? f->tcp.irs.n + 1 : 0;

	HOLDS(len >= 0 && len <= (int64_t)sizeof(bytes));
	if (f->protocol == PROTO_TCP)
		HOLDS(len == (f->tcp.up ? f->tcp.up->len : 0));
	for (int64_t i = 0; i < len && world.trusted; i++)
		HOLDS(bytes[i] == child_byte(from + (uint32_t)i));
	HOLDS(cf_flow_held(st, flow_id(f), 1, bytes, 1) >= 0);
	HOLDS(cf_flow_held(st, flow_id(f), 0, bytes, 1) == len);
}

static struct flow *held_flow(struct cf_stack *st, uint32_t n)
{
	uint32_t held = 0;

	for (uint32_t i = 0; i < st->flow_top; i++)
		held += flow_at(st, i)->state != CLOSED && flow_at(st, i)->held;
	n = held ? n % held : 0;
	for (uint32_t i = 0; held && i < st->flow_top; i++)
		if (flow_at(st, i)->state != CLOSED && flow_at(st, i)->held && n-- == 0)
			return flow_at(st, i);
	return NULL;
}

static void step_held(struct cf_stack *st, const uint8_t *r)
{
	struct flow *f = held_flow(st, r[1]);
	cf_flow_id id;

	if (!f)
		return;
	id = flow_id(f);
	look_at(st, f);
	switch (r[2] % 4) {
	case 0: break;
	case 1: HOLDS(cf_flow_deny(st, id, (enum cf_denial)(r[3] % 6)) == CF_OK && !flow_of_id(st, id)); break;
	default:
		if (f->protocol == PROTO_UDP) {
			let_out(st, id, r);
		} else {
			HOLDS(cf_flow_pass(st, id) == CF_OK && cf_flow_pass(st, id) == CF_EFLOW);
			note_passed(st, id);
		}
	}
	story_rest(st, true);
}

static void step_answer(struct cf_stack *st, const uint8_t *r)
{
	cf_flow_id id = r[2] & 0x80 ? r[3] : take_question(r[1]);

	if (id == 0)
		return;
	switch (r[2] % 5) {
	case 0: case 1: attach(st, id); break;
	case 2: case 3: let_out(st, id, r); break;
	default: cf_flow_deny(st, id, (enum cf_denial)(r[3] % 7)); break;
	}
	story_rest(st, true);
}

/* UDP's host side is gone. A question about what is forgotten is stale from then on. */
static void forget(struct cf_stack *st, const uint8_t *r)
{
	struct flow *f = st->flow_top ? flow_at(st, r[4] % st->flow_top) : NULL;
	cf_flow_id id;
	bool udp;

	if (!f || f->state == CLOSED)
		return;
	id = flow_id(f);
	udp = f->protocol == PROTO_UDP;
	HOLDS(cf_flow_forget(st, id) == (udp ? CF_OK : CF_EFLOW));
	HOLDS(!flow_of_id(st, id) == udp);
}

static void step_api(struct cf_stack *st, const uint8_t *r)
{
	uint8_t bytes[64] = {0x45, 0, 0, 40, [9] = 17};
	struct tuple t = tuple_of(r[1]);

	memcpy(bytes + 10, r, 6);
	world.unchecked = true;
	switch (r[2] % 7) {
	case 0: cf_send_ip(st, bytes, r[3] % 64); break;
	case 1: cf_send_frame(st, bytes, r[3] % 64); break;
	case 2: cf_reply_datagram(st, r[3] & 1 ? t.address_len : r[3] & 0x10, t.remote, t.child_port, bytes, r[4] & 1 ? 70000 : r[4] % 64); break;
	case 3: cf_drop(st, (enum cf_drop)r[3]); break;
	case 4: cf_input_ip(st, bytes, r[3] % 64); break;
	case 5: HOLDS(cf_unfinished(st) <= cf_flow_count(st)); break;
	default:
		if (r[3] == 0xff)
			cf_close_all(st);
		else if (r[3] & 1)
			forget(st, r);
		else
			cf_clock(st, world.now);
	}
	world.unchecked = false;
	story_rest(st, true);
}

/* --- the rest of the world -------------------------------------------------------------------------------- */

static void step_fault(const uint8_t *r)
{
	enum world_call call = r[2] % CALLS;

	world.fault[call].after = r[3] % 16;
	world.fault[call].error = call == CALL_ALLOCATE ? ENOMEM : CHOOSE(errors, r[4]);
	if (call == CALL_READ && world.fault[call].error == EINTR)
		world.fault[call].error = EIO;
}

static void step_tap(struct cf_stack *st, const uint8_t *r)
{
	world.tap_room = r[2] & 1 ? ALL_ROOM : r[3] % 8;
	world.tap_write_error = (r[2] & 0x0e) == 0x0e ? EIO : 0;
	if (r[2] == 0xff && r[3] == 0xff)
		world.tap_read_error = world.tap_write_error = EBADFD;
	world_edge(world_pick(KIND_TAP, 0));
	story_rest(st, false);
}

static void step_raw(struct cf_stack *st, const uint8_t *r, size_t left)
{
	size_t len = story_record_len(r, left) - STORY_RECORD;

	begin_frame(st);
	child_sends_raw(r + STORY_RECORD, (uint32_t)len, r[4] & 1);
	deliver(st);
}

static void step_clock(struct cf_stack *st, const uint8_t *r)
{
	world.now += CHOOSE(times_us, r[2]) + r[3];
	story_rest(st, r[4] & 1);
}

/* With TELL=1 in the environment: each step, and what the flows are after it, for whoever must understand a finding. */
static void tell(const struct cf_stack *st, const uint8_t *r)
{
	static const char *const names[STEPS] = {
		"open", "say", "say", "answer", "answer", "connected", "host sends", "host ends", "host takes", "clock", "datagram",
		"host datagram", "host error", "fault", "tap", "raw", "api", "honest", "transfer", "flood", "events", "establish", "hold", "held",
	};

	if (!getenv("TELL"))
		return;
	fprintf(stderr, "%-13s %02x %02x %02x %02x %02x %02x %02x", names[r[0] % STEPS], r[1], r[2], r[3], r[4], r[5], r[6], r[7]);
	for (uint32_t i = 0; i < st->flow_top; i++) {
		const struct flow *f = flow_at(st, i);
		const struct tcb *t = &f->tcp;

		if (f->state == CLOSED)
			continue;
		fprintf(stderr, " | %u: protocol %u state %u%s%s", i, f->protocol, f->state, f->held ? " held" : "", f->protocol == PROTO_UDP && f->udp.translated ? " translated" : "");
		if (f->protocol == PROTO_TCP)
			fprintf(stderr, " una %u nxt +%d max +%d window %u up %u down %u fd %d", t->snd_una.n - t->iss.n,
				seq_diff(t->snd_nxt, t->snd_una), seq_diff(t->snd_max, t->snd_una), t->child_window,
				t->up ? t->up->len : 0, t->down ? t->down->len : 0, f->host_fd);
	}
	fprintf(stderr, "\n");
}

static void take_step(struct cf_stack *st, const uint8_t *r, size_t left)
{
	switch (r[0] % STEPS) {
	case STEP_OPEN: step_open(st, r); break;
	case STEP_SAY: case STEP_SAY_AGAIN: step_say(st, r); break;
	case STEP_ANSWER: case STEP_ANSWER_AGAIN: step_answer(st, r); break;
	case STEP_CONNECTED: step_connected(st, r); break;
	case STEP_HOST_SENDS: step_host_sends(st, r); break;
	case STEP_HOST_ENDS: step_host_ends(st, r); break;
	case STEP_HOST_TAKES: step_host_takes(st, r); break;
	case STEP_CLOCK: step_clock(st, r); break;
	case STEP_DATAGRAM: step_datagram(st, r); break;
	case STEP_HOST_DATAGRAM: step_host_datagram(st, r); break;
	case STEP_HOST_ERROR: step_host_error(st, r); break;
	case STEP_FAULT: step_fault(r); break;
	case STEP_TAP: step_tap(st, r); break;
	case STEP_RAW: step_raw(st, r, left); break;
	case STEP_API: step_api(st, r); break;
	case STEP_HONEST: step_honest(st, r); break;
	case STEP_TRANSFER: step_transfer(st, r); break;
	case STEP_FLOOD: step_flood(st, r); break;
	case STEP_HOLD: step_hold(st, r); break;
	case STEP_HELD: step_held(st, r); break;
	case STEP_ESTABLISH: story_establish(st, r[1] % SLOTS); break;
	case STEP_EVENTS: events_held = r[2] & 1; story_rest(st, true); break;
	}
}

/* --- situations ------------------------------------------------------------------------------------------- */

void story_half_open(struct cf_stack *st, int slot)
{
	const uint8_t r[STORY_RECORD] = {STEP_OPEN, (uint8_t)slot, 7, 0, 7, 11, 0, 0};

	if (question_count == QUESTIONS)
		return;
	step_open(st, r);
	if (question_count > 0)
		attach(st, questions[--question_count]);
	story_rest(st, true);
}

void story_establish(struct cf_stack *st, int slot)
{
	struct tuple t = tuple_of((uint32_t)slot);
	struct flow *f = flow_of(st, &t, PROTO_TCP);

	if (!f)
		story_half_open(st, slot);
	f = flow_of(st, &t, PROTO_TCP);
	if (!f || f->state != SYN_RECEIVED)
		return;
	begin_frame(st);
	speak_well(f, 0, 0);
	deliver(st);
}

void story_peer(struct cf_stack *st, int slot)
{
	const uint8_t r[STORY_RECORD] = {STEP_DATAGRAM, (uint8_t)slot, 0, 4, 1, 0, 0, 0};
	struct tuple t = tuple_of((uint32_t)slot);
	struct flow *f;

	step_datagram(st, r);
	if (question_count > 0)
		let_out(st, questions[--question_count], r);
	story_rest(st, true);
	HOLDS((f = flow_of(st, &t, PROTO_UDP)) && f->state == OPEN);
}

/* --- beginning and end ------------------------------------------------------------------------------------ */

struct cf_stack *story_begin(const uint8_t config[STORY_CONFIG])
{
	static const uint16_t mtus[] = {1500, 1500, 1280, 576, 68, 9000, 65521, 296};
	struct cf_config c = config_base;

	world_begin();
	memset(seen, 0, sizeof(seen));
	question_count = 0;
	events_held = false;
	c.tap_fd = world_open(KIND_TAP);
	c.offload = config[0] & 1;
	c.mtu = CHOOSE(mtus, config[1] & 7);
	c.max_flows = config[2] & 1 ? 300 : config[2] & 2 ? 16 : 4;
	c.max_sockets = config[2] & 4 ? 3 : config[2] & 8 ? 8 : 300;
	c.flow_window = config[2] & 16 ? 131072 : 65536;
	c.max_half_open = config[3] & 4 ? 1 : c.max_sockets / 2;
	c.max_udp_sockets = config[3] & 8 ? 1 : c.max_sockets / 2;
	c.max_udp_peers = config[1] & 8 ? 1 : c.max_flows / 2;
	c.buffer_limit = c.flow_window * (config[3] & 1 ? 1ull : config[3] & 2 ? 3 : 64);
	if ((config[3] & 0xf0) == 0xf0)
		world.fault[config[0] >> 1 & 1 ? CALL_ALLOCATE : CALL_FCNTL] =
			(typeof(world.fault[0])){(uint32_t)config[3] & 15, config[0] & 4 ? ENOMEM : EBADF};
	world.st = cf_stack_new(&c);
	return world.st;
}

static void let_all_behave(struct cf_stack *st)
{
	memset(world.fault, 0, sizeof(world.fault));
	world.tap_room = ALL_ROOM;
	world.tap_write_error = 0;
	events_held = false;
	for (int i = 0; i < world.fd_top; i++) {
		struct world_fd *d = &world_fds[i];

		if (d->kind == KIND_FREE)
			continue;
		d->room = ALL_ROOM;
		d->connected = d->connected || !d->error;
		world_edge(d);
	}
	story_rest(st, true);
	for (struct flow *f; (f = held_flow(st, 0)); story_rest(st, true)) {
		const uint8_t pass[STORY_RECORD] = {STEP_HELD, 0, 2};

		step_held(st, pass);
	}
	while (question_count > 0) {
		cf_flow_deny(st, take_question(0), CF_DENY_RESET);
		story_rest(st, true);
	}
}

static bool something_waits(const struct cf_stack *st)
{
	for (uint32_t i = 0; i < st->flow_top; i++) {
		const struct flow *f = flow_at(st, i);

		if (f->state != CLOSED && f->protocol == PROTO_TCP &&
		    (f->tcp.up || f->tcp.down || f->state == SYN_RECEIVED || (f->host_fd >= 0 && world_at(f->host_fd)->waiting > 0)))
			return true;
	}
	return false;
}

/* Everybody behaves from here on: what waits must get where it belongs. */
static void come_to_a_good_end(struct cf_stack *st)
{
	let_all_behave(st);
	for (int i = 0; i < ROUNDS_AT_END && (i < 3 || something_waits(st)); i++) {
		all_speak_well(st);
		world.now += 300000;
		story_rest(st, false);
		tell(st, (const uint8_t[STORY_RECORD]){STEP_HONEST});
		check_books(st);
	}
	check_nothing_stuck(st);
}

void story_end(struct cf_stack *st)
{
	if (!st->tap_gone)
		come_to_a_good_end(st);
	HOLDS(cf_close_all(st) == CF_OK);
	read_events(st);
	HOLDS(cf_flow_count(st) == 0 && cf_buffered(st) == 0);
	for (uint32_t i = 0; st->translated && i <= st->bucket_mask; i++)
		HOLDS(st->translated[i] == 0);
	for (uint32_t i = 0; i < FLOWS_SEEN; i++)
		HOLDS(!seen[i].asked || seen[i].ended);
	cf_stack_free(st);
	HOLDS(world_end());
}

size_t story_record_len(const uint8_t *p, size_t left)
{
	size_t len = STORY_RECORD;

	if (left < STORY_RECORD)
		return 0;
	if (p[0] % STEPS == STEP_RAW)
		len += (size_t)p[2] << 8 | p[3];
	return len < left ? len : left;
}

void story_tell(const uint8_t *data, size_t len)
{
	static const uint8_t nothing[STORY_CONFIG];
	struct cf_stack *st = story_begin(len >= STORY_CONFIG ? data : nothing);

	if (!st) {
		HOLDS(world_end());
		return;
	}
	data += len >= STORY_CONFIG ? STORY_CONFIG : len;
	len -= len >= STORY_CONFIG ? STORY_CONFIG : len;
	for (int i = 0; i < STORY_STEPS_MAX && len >= STORY_RECORD; i++) {
		size_t taken = story_record_len(data, len);

		take_step(st, data, len);
		tell(st, data);
		check_books(st);
		data += taken;
		len -= taken;
	}
	story_end(st);
}
