/* wire.c: bytes to views, each length checked once, each refusal named.
 *
 * Every frame is hostile. Of the virtio header nothing is believed but "the checksum is partial", and that only when it
 * points at the checksum of the transport header that the parse itself found (input.c compares). hdr_len and gso_size are
 * never read: the headers are located by parsing, and a segment of 64 KiB is handled as one.
 * Not here: who may send what to whom (input.c). */
#include "wire.h"

#include "checksum.h"
#include "stack.h"

#define VNET_F_NEEDS_CSUM 1
#define VNET_GSO_NONE 0
#define VNET_GSO_TCPV4 1
#define VNET_GSO_TCPV6 4
#define VNET_GSO_ECN 0x80

#define IPV4_FRAGMENT_MASK 0x3fff /* MF and the offset */
#define IPV4_DONT_FRAGMENT 0x40   /* in the first byte of the same field */
#define IPV6_EXTENSIONS_MAX 8     /* more than any honest stack sends */

static bool refuse(int *why, enum cf_drop reason)
{
	*why = (int)reason;
	return false;
}

static uint16_t native16(const uint8_t *p)
{
	uint16_t v;

	memcpy(&v, p, 2);
	return v;
}

bool vnet_view(struct vnet_view *v, const uint8_t *header, int *why)
{
	uint8_t gso = header[1] & (uint8_t)~VNET_GSO_ECN;

	if (gso != VNET_GSO_NONE && gso != VNET_GSO_TCPV4 && gso != VNET_GSO_TCPV6)
		return refuse(why, CF_DROP_BAD_VNET_HEADER);
	v->checksum = header[0] & VNET_F_NEEDS_CSUM ? CHECKSUM_PARTIAL : CHECKSUM_VERIFY;
	v->csum_start = native16(header + 6);
	v->csum_offset = native16(header + 8);
	if (gso != VNET_GSO_NONE && v->checksum != CHECKSUM_PARTIAL)
		return refuse(why, CF_DROP_BAD_VNET_HEADER);
	return true;
}

/* --- IPv4 ------------------------------------------------------------------------------------------------- */

#define IPV4_OPTION_END 0
#define IPV4_OPTION_NOP 1
#define IPV4_OPTION_LSRR 131
#define IPV4_OPTION_SSRR 137

static bool ipv4_options_ok(const uint8_t *p, const uint8_t *end, int *why)
{
	while (p < end && *p != IPV4_OPTION_END) {
		if (*p == IPV4_OPTION_NOP) {
			p++;
			continue;
		}
		if (end - p < 2 || p[1] < 2 || p[1] > end - p)
			return refuse(why, CF_DROP_BAD_IP_OPTIONS);
		if (*p == IPV4_OPTION_LSRR || *p == IPV4_OPTION_SSRR)
			return refuse(why, CF_DROP_SOURCE_ROUTE);
		p += p[1];
	}
	return true;
}

bool ipv4_view(struct ip_view *v, const uint8_t *bytes, uint32_t len, int *why)
{
	uint32_t header_len, total;

	if (len < IPV4_HEADER_LEN || bytes[0] >> 4 != 4)
		return refuse(why, CF_DROP_BAD_IP_HEADER);
	header_len = (bytes[0] & 15u) * 4;
	total = be16(bytes + 2);
	if (header_len < IPV4_HEADER_LEN || header_len > len || total < header_len || total > len)
		return refuse(why, CF_DROP_BAD_IP_HEADER);
	if (checksum_fold(checksum_add(0, bytes, header_len)) != 0xffff)
		return refuse(why, CF_DROP_BAD_IP_CHECKSUM);
	if (!ipv4_options_ok(bytes + IPV4_HEADER_LEN, bytes + header_len, why))
		return false;
	*v = (struct ip_view){
		.packet = bytes, .packet_len = total, .src = bytes + 12, .dst = bytes + 16, .address_len = 4,
		.protocol = bytes[9], .protocol_at = 9, .hop_limit = bytes[8], .tos = bytes[1],
		.fragment = (be16(bytes + 6) & IPV4_FRAGMENT_MASK) != 0, .dont_fragment = (bytes[6] & IPV4_DONT_FRAGMENT) != 0,
		.payload = bytes + header_len, .payload_len = total - header_len,
	};
	return true;
}

/* --- IPv6 ------------------------------------------------------------------------------------------------- */

#define IPV6_HOP_BY_HOP 0
#define IPV6_ROUTING 43
#define IPV6_FRAGMENT 44
#define IPV6_DESTINATION 60
#define IPV6_OPTION_PAD1 0
#define IPV6_OPTION_JUMBO 0xc2

static bool ipv6_options_ok(const uint8_t *p, const uint8_t *end, int *why)
{
	while (p < end) {
		if (*p == IPV6_OPTION_PAD1) {
			p++;
			continue;
		}
		if (end - p < 2 || p[1] > end - p - 2 || *p == IPV6_OPTION_JUMBO)
			return refuse(why, CF_DROP_BAD_EXTENSION_HEADER);
		p += 2 + p[1];
	}
	return true;
}

static bool ipv6_skip_options(struct ip_view *v, int *why)
{
	uint32_t len;

	if (v->payload_len < 8)
		return refuse(why, CF_DROP_BAD_EXTENSION_HEADER);
	len = (v->payload[1] + 1u) * 8;
	if (len > v->payload_len)
		return refuse(why, CF_DROP_BAD_EXTENSION_HEADER);
	if (!ipv6_options_ok(v->payload + 2, v->payload + len, why))
		return false;
	v->protocol = v->payload[0];
	v->protocol_at = (uint32_t)(v->payload - v->packet);
	v->payload += len;
	v->payload_len -= len;
	return true;
}

/* Walk to the transport header; a fragment header ends the walk, since what follows it is not ours to believe yet. */
static bool ipv6_skip_extensions(struct ip_view *v, int *why)
{
	for (int i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		switch (v->protocol) {
		case IPV6_HOP_BY_HOP:
		case IPV6_DESTINATION:
			if (!ipv6_skip_options(v, why))
				return false;
			continue;
		case IPV6_ROUTING:
			return refuse(why, CF_DROP_SOURCE_ROUTE);
		case IPV6_FRAGMENT:
			if (v->payload_len < 8)
				return refuse(why, CF_DROP_BAD_EXTENSION_HEADER);
			v->fragment = true;
			return true;
		default:
			return true;
		}
	}
	return refuse(why, CF_DROP_BAD_EXTENSION_HEADER);
}

bool ipv6_view(struct ip_view *v, const uint8_t *bytes, uint32_t len, int *why)
{
	uint32_t payload_len;

	if (len < IPV6_HEADER_LEN || bytes[0] >> 4 != 6)
		return refuse(why, CF_DROP_BAD_IP_HEADER);
	payload_len = be16(bytes + 4);
	if (payload_len == 0 || payload_len > len - IPV6_HEADER_LEN)
		return refuse(why, CF_DROP_BAD_IP_HEADER);
	*v = (struct ip_view){
		.packet = bytes, .packet_len = IPV6_HEADER_LEN + payload_len, .src = bytes + 8, .dst = bytes + 24,
		.address_len = 16, .protocol = bytes[6], .protocol_at = 6, .hop_limit = bytes[7], .tos = (uint8_t)(be16(bytes) >> 4),
		.dont_fragment = true,
		.payload = bytes + IPV6_HEADER_LEN, .payload_len = payload_len,
	};
	return ipv6_skip_extensions(v, why);
}

/* --- transport -------------------------------------------------------------------------------------------- */

static bool transport_checksum_ok(const struct ip_view *ip, uint8_t protocol, uint32_t len)
{
	uint64_t sum = checksum_pseudo(ip->src, ip->dst, ip->address_len, protocol, len);

	return checksum_fold(checksum_add(sum, ip->payload, len)) == 0xffff;
}

bool tcp_view(struct tcp_view *v, const struct ip_view *ip, enum transport_checksum checksum, int *why)
{
	const uint8_t *p = ip->payload;
	uint32_t header_len;

	if (ip->payload_len < TCP_HEADER_LEN)
		return refuse(why, CF_DROP_BAD_TCP_HEADER);
	header_len = (p[12] >> 4) * 4u;
	if (header_len < TCP_HEADER_LEN || header_len > ip->payload_len)
		return refuse(why, CF_DROP_BAD_TCP_HEADER);
	if (checksum == CHECKSUM_VERIFY && !transport_checksum_ok(ip, PROTO_TCP, ip->payload_len))
		return refuse(why, CF_DROP_BAD_TCP_CHECKSUM);
	*v = (struct tcp_view){
		.child_port = be16(p), .remote_port = be16(p + 2), .seq = seq_of(be32(p + 4)), .ack = seq_of(be32(p + 8)),
		.flags = p[13] & 0x3f, .window = be16(p + 14),
		.options = p + TCP_HEADER_LEN, .options_len = header_len - TCP_HEADER_LEN,
		.text = p + header_len, .text_len = ip->payload_len - header_len,
	};
	return true;
}

#define WINDOW_SCALE_MAX 14 /* RFC 7323, 2.3 */

static void sack_take(struct tcp_options *o, const uint8_t *p)
{
	for (const uint8_t *end = p + p[1], *block = p + 2; end - block >= 8 && o->sack_count < SACK_BLOCKS_MAX; block += 8)
		o->sack[o->sack_count++] = (struct sack_block){seq_of(be32(block)), seq_of(be32(block + 4))};
}

static void tcp_option_take(struct tcp_options *o, const uint8_t *p)
{
	if (p[0] == TCP_OPTION_MSS && p[1] == 4) {
		o->mss = be16(p + 2);
	} else if (p[0] == TCP_OPTION_WINDOW_SCALE && p[1] == 3) {
		o->has_window_scale = true;
		o->window_scale = p[2] > WINDOW_SCALE_MAX ? WINDOW_SCALE_MAX : p[2];
	} else if (p[0] == TCP_OPTION_SACK_PERMITTED && p[1] == 2) {
		o->sack_permitted = true;
	} else if (p[0] == TCP_OPTION_SACK && (p[1] - 2) % 8 == 0) {
		sack_take(o, p);
	}
}

bool tcp_options_view(struct tcp_options *o, const struct tcp_view *tcp, int *why)
{
	const uint8_t *p = tcp->options, *end = p + tcp->options_len;

	o->mss = o->sack_count = o->window_scale = 0;
	o->has_window_scale = o->sack_permitted = false;
	while (p < end && *p != TCP_OPTION_END) {
		if (*p == TCP_OPTION_NOP) {
			p++;
			continue;
		}
		if (end - p < 2 || p[1] < 2 || p[1] > end - p)
			return refuse(why, CF_DROP_BAD_TCP_OPTIONS);
		tcp_option_take(o, p);
		p += p[1];
	}
	return true;
}

bool udp_view(struct udp_view *v, const struct ip_view *ip, enum transport_checksum checksum, int *why)
{
	const uint8_t *p = ip->payload;
	uint32_t len;
	bool no_checksum;

	if (ip->payload_len < UDP_HEADER_LEN)
		return refuse(why, CF_DROP_BAD_UDP_HEADER);
	len = be16(p + 4);
	if (len < UDP_HEADER_LEN || len > ip->payload_len)
		return refuse(why, CF_DROP_BAD_UDP_HEADER);
	no_checksum = be16(p + 6) == 0;
	if (checksum == CHECKSUM_VERIFY && no_checksum && ip->address_len == 16)
		return refuse(why, CF_DROP_BAD_UDP_CHECKSUM); /* RFC 8200, 8.1 */
	if (checksum == CHECKSUM_VERIFY && !no_checksum && !transport_checksum_ok(ip, PROTO_UDP, len))
		return refuse(why, CF_DROP_BAD_UDP_CHECKSUM);
	*v = (struct udp_view){
		.child_port = be16(p), .remote_port = be16(p + 2),
		.text = p + UDP_HEADER_LEN, .text_len = len - UDP_HEADER_LEN,
	};
	return true;
}

bool icmp_view(const struct ip_view *ip, int *why)
{
	uint64_t sum = 0;

	if (ip->payload_len < ICMP_HEADER_LEN)
		return refuse(why, CF_DROP_BAD_ICMP);
	if (ip->address_len == 16)
		sum = checksum_pseudo(ip->src, ip->dst, 16, PROTO_ICMPV6, ip->payload_len);
	if (checksum_fold(checksum_add(sum, ip->payload, ip->payload_len)) != 0xffff)
		return refuse(why, CF_DROP_BAD_ICMP);
	return true;
}
