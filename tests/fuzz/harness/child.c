/* child.c: frames as the child's kernel, or a hostile child, writes them; and the checks that a kernel would make of what
 * comes down, with some that only we can: the text is what the host sent, at its place, inside the window that was told.
 *
 * Written apart from wire.c on purpose: a mistake in the stack's parser must not be made here again. */
#include "child.h"

#include <netinet/in.h>
#include <string.h>

#include "world.h"

#define ETHERNET 14
#define VNET 10

struct seen seen[FLOWS_SEEN];
uint32_t down_icmp_errors;

const struct cf_config config_base = {
	.child4 = {192, 0, 0, 2}, .gateway4 = {192, 0, 0, 1},
	.child6 = {0xfd, 0x63, 0x68, 0x69, 0x6c, 0x64, [15] = 2}, .gateway6 = {0xfd, 0x63, 0x68, 0x69, 0x6c, 0x64, [15] = 1},
	.child_mac = {2, 'c', 'f', 0, 0, 2}, .gateway_mac = {2, 'c', 'f', 0, 0, 1},
	.parked_datagrams = 64, .parked_bytes = 1 << 20, .slow_packets = 256, .slow_bytes = 1 << 18, .control_rate = 1000,
	.fragment_rate = 1000, .icmp_error_rate = 1000, .challenge_ack_rate = 1000,
	.hash_key = "sixteen bytes...", .isn_key = "sixteen others..",
};

struct seen *seen_of(const struct flow *f)
{
	struct seen *s = &seen[f->index];

	HOLDS(f->index < FLOWS_SEEN);
	if (s->generation != f->generation)
		*s = (struct seen){.generation = f->generation};
	return s;
}

/* --- checksums, word by word ------------------------------------------------------------------------------ */

static uint32_t sum_words(uint32_t sum, const uint8_t *p, uint32_t len)
{
	for (uint32_t i = 0; i < len; i++) {
		sum += i & 1 ? p[i] : (uint32_t)p[i] << 8;
		sum = (sum & 0xffff) + (sum >> 16);
	}
	return sum;
}

static uint32_t sum_pseudo(const uint8_t *src, const uint8_t *dst, int address_len, uint8_t protocol, uint32_t len)
{
	uint8_t tail[8] = {(uint8_t)(len >> 24), (uint8_t)(len >> 16), (uint8_t)(len >> 8), (uint8_t)len, 0, 0, 0, protocol};

	return sum_words(sum_words(sum_words(0, src, (uint32_t)address_len), dst, (uint32_t)address_len), tail, 8);
}

static uint16_t folded(uint32_t sum) { return (uint16_t)((sum & 0xffff) + (sum >> 16)); }

/* --- up --------------------------------------------------------------------------------------------------- */

static uint8_t up[70000], up_tos;
static bool up_dont_fragment;

void child_manner(uint8_t tos, bool dont_fragment)
{
	up_tos = tos;
	up_dont_fragment = dont_fragment;
}

static uint32_t put_ethernet_and_ip(int address_len, uint8_t protocol, const uint8_t *dst, uint32_t payload_len, uint8_t hops)
{
	uint8_t *p = up + VNET + ETHERNET;

	memset(up, 0, VNET + ETHERNET + 40);
	memcpy(up + VNET, config_base.gateway_mac, 6);
	memcpy(up + VNET + 6, config_base.child_mac, 6);
	put16(up + VNET + 12, address_len == 4 ? 0x0800 : 0x86dd);
	if (address_len == 16) {
		put16(p, (uint16_t)(0x6000 | up_tos << 4));
		put16(p + 4, (uint16_t)payload_len);
		p[6] = protocol;
		p[7] = hops;
		memcpy(p + 8, config_base.child6, 16);
		memcpy(p + 24, dst, 16);
		return VNET + ETHERNET + 40;
	}
	p[0] = 0x45;
	p[1] = up_tos;
	put16(p + 2, (uint16_t)(20 + payload_len));
	p[6] = up_dont_fragment ? 0x40 : 0;
	p[8] = hops;
	p[9] = protocol;
	memcpy(p + 12, config_base.child4, 4);
	memcpy(p + 16, dst, 4);
	put16(p + 10, (uint16_t)~folded(sum_words(0, p, 20)));
	return VNET + ETHERNET + 20;
}

static void put_vnet(uint8_t gso, uint16_t gso_size, uint16_t start, uint16_t offset)
{
	up[0] = 1;
	up[1] = gso;
	memcpy(up + 4, &gso_size, 2);
	memcpy(up + 6, &start, 2);
	memcpy(up + 8, &offset, 2);
}

static void finish_transport(int address_len, uint8_t protocol, const uint8_t *dst, uint32_t at, uint32_t len, uint32_t offset,
			     bool partial, bool segmented)
{
	const uint8_t *src = address_len == 4 ? config_base.child4 : config_base.child6;
	uint32_t sum = sum_pseudo(src, dst, address_len, protocol, len);

	put16(up + at + offset, partial ? folded(sum) : 0);
	if (partial)
		put_vnet(segmented ? (address_len == 4 ? 1 : 4) : 0, segmented ? 1460 : 0, (uint16_t)(at - VNET), (uint16_t)offset);
	else
		put16(up + at + offset, (uint16_t)~folded(sum_words(sum, up + at, len)));
	world_queue_frame(up, at + len);
}

void child_says(const struct saying *s)
{
	uint32_t header = 20 + s->options_len, room = 65535 - 40 - header, len = s->text_len < room ? s->text_len : room;
	uint32_t at = put_ethernet_and_ip(s->address_len, 6, s->remote, header + len, s->hop_limit);
	uint8_t *p = up + at;

	memset(p, 0, 20);
	put16(p, s->child_port);
	put16(p + 2, s->remote_port);
	put32(p + 4, s->seq);
	put32(p + 8, s->ack);
	p[12] = (uint8_t)(header / 4 << 4);
	p[13] = s->flags;
	put16(p + 14, s->window);
	if (s->options_len > 0)
		memcpy(p + 20, s->options, s->options_len);
	for (uint32_t i = 0; i < len; i++)
		p[header + i] = child_byte(s->seq + (s->flags & TCP_SYN ? 1 : 0) + i);
	finish_transport(s->address_len, 6, s->remote, at, header + len, 16, s->partial || s->segmented, s->segmented);
}

void child_sends_datagram(int address_len, const uint8_t *remote, uint16_t child_port, uint16_t remote_port, uint32_t len,
			  uint8_t hop_limit)
{
	uint32_t at = put_ethernet_and_ip(address_len, 17, remote, 8 + len, hop_limit);
	uint8_t *p = up + at;

	put16(p, child_port);
	put16(p + 2, remote_port);
	put16(p + 4, (uint16_t)(8 + len));
	for (uint32_t i = 0; i < len; i++)
		p[8 + i] = child_byte(i);
	finish_transport(address_len, 17, remote, at, 8 + len, 6, true, false);
}

/* Where the transport header of the packet in up[] would be, its protocol and length; 0 when there is none. */
static uint32_t find_transport(uint32_t len, uint8_t *protocol, uint32_t *transport_len, int *address_len)
{
	uint8_t *p = up + VNET + ETHERNET;
	uint32_t left, header;

	if (len < VNET + ETHERNET + 40)
		return 0;
	left = len - VNET - ETHERNET;
	if (p[0] >> 4 == 4) {
		header = (p[0] & 15u) * 4;
		*protocol = p[9];
		*transport_len = be16(p + 2) - header;
		*address_len = 4;
		return header >= 20 && be16(p + 2) >= header && be16(p + 2) <= left ? VNET + ETHERNET + header : 0;
	}
	header = 40;
	*protocol = p[6];
	*address_len = 16;
	while ((*protocol == 0 || *protocol == 60) && header + 8 <= left) {
		*protocol = p[header];
		header += (p[header + 1] + 1u) * 8;
	}
	*transport_len = be16(p + 4) + 40u - header;
	return header <= be16(p + 4) + 40u && be16(p + 4) + 40u <= left ? VNET + ETHERNET + header : 0;
}

static void mend_icmp(uint32_t at, uint32_t len, int address_len)
{
	const uint8_t *p = up + VNET + ETHERNET;
	uint32_t sum = address_len == 4 ? 0 : sum_pseudo(p + 8, p + 24, 16, 58, len);

	if (len < 4)
		return;
	put16(up + at + 2, 0);
	put16(up + at + 2, (uint16_t)~folded(sum_words(sum, up + at, len)));
}

static void mend_frame(uint32_t len)
{
	uint8_t *p = up + VNET + ETHERNET, protocol, gso = up[1];
	uint32_t transport_len, at;
	int address_len;

	if (len < VNET + ETHERNET + 20)
		return;
	if (p[0] >> 4 == 4 && (p[0] & 15u) * 4 >= 20 && (p[0] & 15u) * 4 <= len - VNET - ETHERNET) {
		put16(p + 10, 0);
		put16(p + 10, (uint16_t)~folded(sum_words(0, p, (p[0] & 15u) * 4)));
	}
	at = find_transport(len, &protocol, &transport_len, &address_len);
	if (!at)
		return;
	if (protocol == 6 || protocol == 17)
		put_vnet(gso, 1460, (uint16_t)(at - VNET), protocol == 6 ? 16 : 6);
	else if (protocol == 1 || protocol == 58)
		mend_icmp(at, transport_len, address_len);
}

void child_sends_raw(const uint8_t *bytes, uint32_t len, bool mend)
{
	if (len > sizeof(up))
		len = sizeof(up);
	memcpy(up, bytes, len);
	if (mend)
		mend_frame(len);
	world.trusted = false;
	world_queue_frame(up, len);
}

static const uint8_t *next_frame(uint32_t *at, uint8_t *protocol, uint32_t *len)
{
	int address_len;

	if (world.frames_read == world.frames_queued)
		return NULL;
	memcpy(up, world.frames[world.frames_read].bytes, world.frames[world.frames_read].len);
	*at = find_transport(world.frames[world.frames_read].len, protocol, len, &address_len);
	return *at ? up + *at : NULL;
}

bool next_frame_is_reset(void)
{
	uint8_t protocol;
	uint32_t at, len;
	const uint8_t *p = next_frame(&at, &protocol, &len);

	return p && protocol == 6 && len >= 20 && (p[13] & TCP_RST);
}

static bool icmp_is_error(int address_len, uint8_t type)
{
	return address_len == 16 ? type < 128 : type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
}

bool next_frame_is_icmp_error(void)
{
	uint8_t protocol;
	uint32_t at, len;
	const uint8_t *p = next_frame(&at, &protocol, &len);
	bool v4 = up[VNET + ETHERNET] >> 4 == 4;

	return p && protocol == (v4 ? 1 : 58) && len > 0 && icmp_is_error(v4 ? 4 : 16, p[0]);
}

/* --- down ------------------------------------------------------------------------------------------------- */

struct down {
	const uint8_t *vnet, *src, *transport;
	uint8_t protocol;
	int address_len;
	uint32_t len;          /* of the transport segment */
};

static void view_ip(struct down *d, const uint8_t *p, uint32_t len)
{
	bool v4 = p[0] >> 4 == 4;

	HOLDS(len >= (v4 ? 20 : 40));
	*d = (struct down){.vnet = d->vnet, .protocol = v4 ? p[9] : p[6], .address_len = v4 ? 4 : 16,
			   .src = v4 ? p + 12 : p + 8, .transport = p + (v4 ? 20 : 40), .len = len - (v4 ? 20 : 40)};
	if (v4) {
		HOLDS(p[0] == 0x45 && be16(p + 2) == len && p[8] > 0);
		HOLDS(folded(sum_words(0, p, 20)) == 0xffff);
		HOLDS(memcmp(p + 16, config_base.child4, 4) == 0);
	} else {
		HOLDS(p[0] == 0x60 && be16(p + 4) + 40u == len && p[7] > 0);
		HOLDS(memcmp(p + 24, config_base.child6, 16) == 0);
	}
}

static void check_checksum(const struct down *d, uint16_t offset)
{
	const uint8_t *dst = d->address_len == 4 ? config_base.child4 : config_base.child6;
	bool pseudo = d->protocol != PROTO_ICMP;
	uint32_t sum = pseudo ? sum_pseudo(d->src, dst, d->address_len, d->protocol, d->len) : 0;
	uint16_t start, at;

	if (!d->vnet[0]) {
		HOLDS(folded(sum_words(sum, d->transport, d->len)) == 0xffff);
		return;
	}
	memcpy(&start, d->vnet + 6, 2);
	memcpy(&at, d->vnet + 8, 2);
	HOLDS(world.st->cfg.offload && d->vnet[0] == 1 && at == offset);
	HOLDS(start == ETHERNET + (d->address_len == 4 ? 20 : 40));
	HOLDS(be16(d->transport + offset) == folded(sum));
}

static void check_segmentation(const struct down *d, uint32_t header, uint32_t text)
{
	uint16_t size, header_len;

	memcpy(&header_len, d->vnet + 2, 2);
	memcpy(&size, d->vnet + 4, 2);
	if (d->vnet[1] == 0) {
		HOLDS(size == 0 && header_len == 0);
		return;
	}
	HOLDS(d->vnet[1] == (d->address_len == 4 ? 1 : 4) && world.st->cfg.offload);
	HOLDS(size > 0 && size < text);
	HOLDS(header_len == ETHERNET + (d->address_len == 4 ? 20u : 40u) + header);
}

/* Text for a flow in the table: of the host's stream, at its place, and no further than the child's window. */
static void check_text(const struct flow *f, uint32_t seq, const uint8_t *text, uint32_t len)
{
	const struct seen *s = seen_of(f);
	uint32_t from = seq - (f->tcp.iss.n + 1);

	for (uint32_t i = 0; i < len; i++)
		HOLDS(text[i] == host_byte(from + i));
	if (len > 1 && s->edge_known) /* one byte beyond is a probe */
		HOLDS((int32_t)(s->edge - (seq + len)) >= 0);
}

static void check_tcp(const struct down *d)
{
	const uint8_t *p = d->transport;
	uint32_t header = (p[12] >> 4) * 4u;
	const struct flow *f;

	HOLDS(d->len >= 20 && header >= 20 && header <= d->len);
	check_checksum(d, 16);
	check_segmentation(d, header, d->len - header);
	world.down_resets += (p[13] & TCP_RST) != 0;
	HOLDS(!((p[13] & TCP_RST) && d->len > header));
	f = flow_find(world.st, PROTO_TCP, d->address_len, be16(p + 2), d->src, be16(p));
	if (d->len > header)
		HOLDS(f != NULL);
	if (d->len > header && world.trusted)
		check_text(f, be32(p + 4), p + header, d->len - header);
}

static void check_udp(const struct down *d)
{
	const struct flow *f;

	HOLDS(d->len >= 8 && be16(d->transport + 4) == d->len);
	check_checksum(d, 6);
	HOLDS(be16(d->transport + 6) != 0 || d->vnet[0]);
	HOLDS(d->vnet[1] == 0);
	f = flow_find(world.st, PROTO_UDP, d->address_len, be16(d->transport + 2), d->src, be16(d->transport));
	HOLDS(f && f->state == OPEN); /* whatever address it really came from */
}

/* An error is about a packet that the child may have sent, and never about an error or to a group. */
static void check_icmp(const struct down *d)
{
	const uint8_t *p = d->transport, *quoted = p + 8;
	uint32_t room = d->len - 8;

	HOLDS(d->len >= 8 && d->vnet[0] == 0 && d->vnet[1] == 0);
	check_checksum(d, 2);
	if (!icmp_is_error(d->address_len, p[0]))
		return;
	down_icmp_errors++;
	HOLDS(room >= 20 && d->len <= 1240);
	if (quoted[0] >> 4 == 6) {
		HOLDS(room >= 40 && memcmp(quoted + 8, config_base.child6, 16) == 0 && quoted[24] != 0xff);
		HOLDS(!(quoted[6] == 58 && room > 40 && quoted[40] < 128));
	} else {
		HOLDS(quoted[0] >> 4 == 4 && memcmp(quoted + 12, config_base.child4, 4) == 0 && quoted[16] >> 4 != 14);
		HOLDS(!(quoted[9] == 1 && room > 20 && icmp_is_error(4, quoted[20])));
	}
}

void frame_came_down(const uint8_t *bytes, uint32_t len)
{
	struct down d = {.vnet = bytes};
	uint16_t kind = be16(bytes + VNET + 12);

	world.down_frames++;
	if (world.unchecked)
		return;
	HOLDS(len >= VNET + ETHERNET);
	if (kind != 0x0800 && kind != 0x86dd)
		return;
	HOLDS(memcmp(bytes + VNET, config_base.child_mac, 6) == 0 && memcmp(bytes + VNET + 6, config_base.gateway_mac, 6) == 0);
	view_ip(&d, bytes + VNET + ETHERNET, len - VNET - ETHERNET);
	HOLDS(kind == (d.address_len == 4 ? 0x0800 : 0x86dd));
	switch (d.protocol) {
	case 6: check_tcp(&d); break;
	case 17: check_udp(&d); break;
	case 1: case 58: check_icmp(&d); break;
	default: fail("a protocol that the stack does not speak");
	}
}

/* Bytes that the child sent, in their order and once: the n-th byte that the host gets is the child's n-th. */
void text_went_up(int fd, const struct iovec *iov, int pieces, uint32_t len)
{
	const struct world_fd *d = world_at(fd);
	const struct flow *f = flow_of_id(world.st, d->tag);
	uint32_t seq, done = 0;

	HOLDS(f && f->protocol == PROTO_TCP && f->host_fd == fd);
	HOLDS(!seen_of(f)->held);
	if (!world.trusted)
		return;
	seq = f->tcp.irs.n + 1 + (uint32_t)d->taken;
	for (int i = 0; i < pieces; i++)
		for (size_t k = 0; k < iov[i].iov_len && done < len; k++, done++)
			HOLDS(((const uint8_t *)iov[i].iov_base)[k] == child_byte(seq + done));
}

void stream_was_ended(int fd)
{
	const struct flow *f = flow_of_id(world.st, world_at(fd)->tag);

	HOLDS(f && f->protocol == PROTO_TCP && !seen_of(f)->held && f->fin_taken && !f->tcp.up);
}

static bool is_there(const struct far_end *to, const void *sockaddr)
{
	uint16_t port;
	const uint8_t *address = host_address_in(sockaddr, &port);
	int len = ((const struct sockaddr *)sockaddr)->sa_family == AF_INET ? 4 : 16;

	return to->address_len == len && to->port == port && memcmp(to->address, address, (size_t)len) == 0;
}

/* Only where Python has let it. */
void stream_was_opened(int fd, const void *sockaddr)
{
	for (uint32_t i = 0; i < world.st->flow_top; i++) {
		const struct flow *f = flow_at(world.st, i);

		if (f->state != CLOSED && f->protocol == PROTO_TCP && f->host_fd == fd) {
			HOLDS(is_there(&seen_of(f)->to, sockaddr));
			return;
		}
	}
	fail("a flow connects");
}

void datagram_went_up(const void *sockaddr)
{
	for (uint32_t i = 0; i < world.st->flow_top; i++) {
		const struct flow *f = flow_at(world.st, i);

		if (f->state == OPEN && f->protocol == PROTO_UDP && !seen_of(f)->held && is_there(&seen_of(f)->to, sockaddr))
			return;
	}
	fail("a datagram goes where one was let");
}
