/* input.c: a frame from the child: Ethernet, IP, and then to TCP, UDP, the slow path, or a named drop.
 *
 * The source must be the child's own address, the MAC the gateway's (or a group for ARP and neighbour discovery); every
 * transport checksum is verified unless the kernel marked it partial at exactly the place where the parse finds it.
 * Not here: whether the destination may be reached, which Python decides per flow. */
#include <string.h>

#include "stack.h"

#define ICMP_ECHO_REQUEST 8
#define ICMP_TIME_EXCEEDED 11
#define ICMPV6_TIME_EXCEEDED 3
#define ICMPV6_PARAMETER 4
#define ICMPV6_ECHO_REQUEST 128
#define ND_FIRST 133
#define ND_LAST 137

static const struct vnet_view reassembled = {.checksum = CHECKSUM_VERIFY};

static bool is_gateway(const struct cf_stack *st, const struct ip_view *ip)
{
	return memcmp(ip->dst, ip->address_len == 4 ? st->cfg.gateway4 : st->cfg.gateway6, ip->address_len) == 0;
}

static bool is_group_address(const struct cf_stack *st, const struct ip_view *ip)
{
	static const uint8_t broadcast[4] = {255, 255, 255, 255};

	if (ip->address_len == 16)
		return ip->dst[0] == 0xff;
	if (ip->dst[0] >> 4 == 14 || memcmp(ip->dst, broadcast, 4) == 0)
		return true;
	return memcmp(ip->dst, st->cfg.child4, 3) == 0 && ip->dst[3] == (st->cfg.child4[3] | 7); /* of the /29 */
}

/* To a group, or to one by a frame to a group: no error may come of either (RFC 1122, 3.2.2 and 3.3.6). */
static bool is_for_a_group(const struct cf_stack *st, const struct ip_view *ip, const struct vnet_view *vnet,
			   const uint8_t *ethernet)
{
	return is_group_address(st, ip) || (vnet != &reassembled && (ethernet[0] & 1));
}

/* The child's own address, and not sent to itself (LAND): its kernel keeps such packets on lo. */
static bool source_is_right(const struct cf_stack *st, const struct ip_view *ip)
{
	const uint8_t *child = ip->address_len == 4 ? st->cfg.child4 : st->cfg.child6;

	return memcmp(ip->src, child, ip->address_len) == 0 && memcmp(ip->dst, child, ip->address_len) != 0;
}

static void to_slow_path(struct cf_stack *st, enum cf_slow kind, const uint8_t *bytes, uint32_t len)
{
	slow_push(st, (struct cf_event){.kind = CF_EVENT_SLOW, .detail = (uint8_t)kind}, bytes, len);
}

/* --- ICMP ------------------------------------------------------------------------------------------------- */

static bool is_neighbour_discovery(const struct ip_view *ip)
{
	return ip->address_len == 16 && ip->protocol == PROTO_ICMPV6 && !ip->fragment && ip->payload_len >= ICMP_HEADER_LEN &&
	       ip->payload[0] >= ND_FIRST && ip->payload[0] <= ND_LAST;
}

static void input_icmp(struct cf_stack *st, const struct ip_view *ip)
{
	uint8_t echo = ip->address_len == 4 ? ICMP_ECHO_REQUEST : ICMPV6_ECHO_REQUEST;
	int why;

	if (!icmp_view(ip, &why)) {
		drop(st, why);
		return;
	}
	if (ip->payload[0] == echo && ip->payload[1] == 0)
		to_slow_path(st, ip->dont_fragment ? CF_SLOW_ECHO : CF_SLOW_ECHO_FRAGMENTABLE, ip->packet, ip->packet_len);
	else
		drop(st, CF_DROP_ICMP_IGNORED);
}

static void unknown_protocol(struct cf_stack *st, const struct ip_view *ip)
{
	struct icmp_error e = {.type = 3, .code = 2};

	if (ip->address_len == 16)
		e = (struct icmp_error){.type = ICMPV6_PARAMETER, .code = 1, .extra = ip->protocol_at};
	drop(st, CF_DROP_UNKNOWN_PROTOCOL);
	icmp_send(st, ip->address_len, e, ip->packet, ip->packet_len);
}

static void time_exceeded(struct cf_stack *st, const struct ip_view *ip)
{
	struct icmp_error e = {.type = ip->address_len == 4 ? ICMP_TIME_EXCEEDED : ICMPV6_TIME_EXCEEDED};

	drop(st, CF_DROP_HOP_LIMIT);
	icmp_send(st, ip->address_len, e, ip->packet, ip->packet_len);
}

/* --- transport -------------------------------------------------------------------------------------------- */

/* A partial checksum counts only if it stands where the parse found the transport header. */
static bool checksum_state(const struct ip_view *ip, const struct vnet_view *vnet, const uint8_t *ethernet, uint16_t offset,
			   enum transport_checksum *out)
{
	*out = vnet->checksum;
	if (*out == CHECKSUM_VERIFY)
		return true;
	return ip->payload - ethernet == vnet->csum_start && vnet->csum_offset == offset;
}

static void input_tcp(struct cf_stack *st, const struct ip_view *ip, const struct vnet_view *vnet, const uint8_t *ethernet)
{
	enum transport_checksum checksum;
	struct tcp_view tcp;
	int why = CF_DROP_BAD_VNET_HEADER;

	if (!checksum_state(ip, vnet, ethernet, 16, &checksum) || !tcp_view(&tcp, ip, checksum, &why))
		drop(st, why);
	else
		tcp_input(st, ip, &tcp);
}

static void to_dns(struct cf_stack *st, const struct ip_view *ip, const struct udp_view *udp)
{
	struct cf_event e = {.kind = CF_EVENT_DATAGRAM, .protocol = PROTO_UDP, .address_len = ip->address_len,
			     .child_port = udp->child_port, .remote_port = udp->remote_port};

	memcpy(e.remote, ip->dst, ip->address_len);
	slow_push(st, e, udp->text, udp->text_len);
}

static void input_udp(struct cf_stack *st, const struct ip_view *ip, const struct vnet_view *vnet, const uint8_t *ethernet)
{
	enum transport_checksum checksum;
	struct udp_view udp;
	int why = CF_DROP_BAD_VNET_HEADER;

	if (!checksum_state(ip, vnet, ethernet, 6, &checksum) || !udp_view(&udp, ip, checksum, &why))
		drop(st, why);
	else if (udp.remote_port == DNS_PORT)
		to_dns(st, ip, &udp);
	else
		udp_input(st, ip, &udp);
}

static void input_packet(struct cf_stack *st, const struct ip_view *ip, const struct vnet_view *vnet, const uint8_t *ethernet)
{
	if (is_neighbour_discovery(ip)) {
		to_slow_path(st, CF_SLOW_ND, ip->packet, ip->packet_len);
	} else if (is_for_a_group(st, ip, vnet, ethernet)) {
		drop(st, CF_DROP_MULTICAST);
	} else if (!source_is_right(st, ip)) {
		drop(st, CF_DROP_SPOOFED_SOURCE);
		slow_tell_spoofed(st, ip->packet, ip->packet_len);
	} else if (ip->fragment) {
		to_slow_path(st, CF_SLOW_FRAGMENT, ip->packet, ip->packet_len);
	} else if (ip->protocol == (ip->address_len == 4 ? PROTO_ICMP : PROTO_ICMPV6)) {
		input_icmp(st, ip);
	} else if (ip->hop_limit <= 1 && !is_gateway(st, ip)) {
		time_exceeded(st, ip);
	} else if (ip->protocol == PROTO_TCP) {
		input_tcp(st, ip, vnet, ethernet);
	} else if (ip->protocol == PROTO_UDP) {
		input_udp(st, ip, vnet, ethernet);
	} else {
		unknown_protocol(st, ip);
	}
}

/* --- Ethernet --------------------------------------------------------------------------------------------- */

static bool mac_is_ours(const struct cf_stack *st, const uint8_t *ethernet)
{
	return (ethernet[0] & 1) || memcmp(ethernet, st->cfg.gateway_mac, 6) == 0;
}

static void input_ip(struct cf_stack *st, const uint8_t *bytes, uint32_t len, bool v4, const struct vnet_view *vnet,
		     const uint8_t *ethernet)
{
	struct ip_view ip;
	int why;

	if (!(v4 ? ipv4_view(&ip, bytes, len, &why) : ipv6_view(&ip, bytes, len, &why))) {
		drop(st, why);
		return;
	}
	if (vnet == &reassembled)
		ip.dont_fragment = false;
	input_packet(st, &ip, vnet, ethernet);
}

void input_frame(struct cf_stack *st, const uint8_t *bytes, uint32_t len)
{
	const uint8_t *ethernet = bytes + VNET_HEADER_LEN, *payload = ethernet + ETHERNET_HEADER_LEN;
	struct vnet_view vnet;
	int why;

	if (len < VNET_HEADER_LEN + ETHERNET_HEADER_LEN) {
		drop(st, CF_DROP_SHORT_FRAME);
		return;
	}
	if (!vnet_view(&vnet, bytes, &why)) {
		drop(st, why);
		return;
	}
	if (!mac_is_ours(st, ethernet)) {
		drop(st, CF_DROP_WRONG_MAC);
		return;
	}
	len -= VNET_HEADER_LEN + ETHERNET_HEADER_LEN;
	switch (be16(ethernet + 12)) {
	case ETHERTYPE_IPV4:
		input_ip(st, payload, len, true, &vnet, ethernet);
		return;
	case ETHERTYPE_IPV6:
		input_ip(st, payload, len, false, &vnet, ethernet);
		return;
	case ETHERTYPE_ARP:
		to_slow_path(st, CF_SLOW_ARP, ethernet, len + ETHERNET_HEADER_LEN);
		return;
	default:
		drop(st, CF_DROP_BAD_ETHERTYPE);
	}
}

int cf_input_ip(cf_stack *st, const uint8_t *bytes, uint32_t len)
{
	if (len == 0)
		return CF_EINVAL;
	input_ip(st, bytes, len, bytes[0] >> 4 == 4, &reassembled, bytes);
	return CF_OK;
}
