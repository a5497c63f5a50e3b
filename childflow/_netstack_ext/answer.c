/* answer.c: what Python says about a parked flow, carried out.
 *
 * Each answer counts once, and only while the flow still waits: one that died meanwhile is CF_EFLOW. A flow that Python holds
 * waits twice: parked for whether it may connect, and then for whether what the child says may leave (pass or deny).
 * Not here: the question (flow.c), who decides (Python's policy). */
#include <string.h>

#include "stack.h"

static struct far_end far_end_of(int address_len, const uint8_t *address, uint16_t port)
{
	struct far_end to = {.address_len = (uint8_t)address_len, .port = port};

	memcpy(to.address, address, (size_t)address_len);
	return to;
}

static void let_out(struct cf_stack *st, struct flow *f, const struct far_end *to)
{
	int error;

	f->host_address_len = to->address_len;
	if (f->protocol == PROTO_UDP) {
		udp_allow(st, f, to);
		return;
	}
	f->state = CONNECTING;
	error = host_connect(st, f, to);
	if (error)
		tcp_connect_failed(st, f, error);
}

int cf_flow_allow(cf_stack *st, cf_flow_id id)
{
	struct flow *f = flow_of_id(st, id);
	struct far_end to;

	if (!f || f->state != PARKED)
		return CF_EFLOW;
	to = far_end_of(f->address_len, f->remote, f->remote_port);
	let_out(st, f, &to);
	return CF_OK;
}

static bool is_unicast(int address_len, const uint8_t *address)
{
	static const uint8_t zero[16], ones[4] = {255, 255, 255, 255};

	if (memcmp(address, zero, (size_t)address_len) == 0)
		return false;
	return address_len == 16 ? address[0] != 0xff : address[0] >> 4 != 14 && memcmp(address, ones, 4) != 0;
}

int cf_flow_allow_to(cf_stack *st, cf_flow_id id, int address_len, const uint8_t *address, uint16_t port)
{
	struct flow *f = flow_of_id(st, id);
	struct far_end to;

	if ((address_len != 4 && address_len != 16) || !is_unicast(address_len, address))
		return CF_EINVAL;
	if (!f || f->state != PARKED)
		return CF_EFLOW;
	to = far_end_of(address_len, address, port);
	let_out(st, f, &to);
	return CF_OK;
}

static void tcp_deny(struct cf_stack *st, struct flow *f, enum cf_denial how)
{
	if (f->state > CONNECTING) {
		tcp_abort(st, f, CF_END_KILLED);
		return;
	}
	if (how == CF_DENY_RESET)
		tcp_send_reset(st, f);
	else if (how != CF_DENY_SILENT)
		icmp_send_for_flow(st, f, icmp_denial(how, f->address_len), NULL, 0);
	flow_close(st, f, CF_END_KILLED);
}

int cf_flow_deny(cf_stack *st, cf_flow_id id, enum cf_denial how)
{
	struct flow *f = flow_of_id(st, id);

	if ((unsigned)how > CF_DENY_PROHIBITED)
		return CF_EINVAL;
	if (!f || (f->state != PARKED && !f->held))
		return CF_EFLOW;
	drop(st, CF_DROP_FLOW_DENIED);
	if (f->protocol == PROTO_UDP)
		udp_deny(st, f, how);
	else
		tcp_deny(st, f, how);
	return CF_OK;
}

int cf_flow_forget(cf_stack *st, cf_flow_id id)
{
	struct flow *f = flow_of_id(st, id);

	if (!f || f->protocol != PROTO_UDP)
		return CF_EFLOW;
	flow_close(st, f, f->state == OPEN ? CF_END_IDLE : CF_END_KILLED);
	return CF_OK;
}

int cf_flow_attach(cf_stack *st, cf_flow_id id, int fd)
{
	struct flow *f = flow_of_id(st, id);

	if (!f || f->state != PARKED || f->protocol != PROTO_TCP)
		return CF_EFLOW;
	if (host_adopt(st, f, fd) < 0)
		return CF_ESYS;
	f->connect_error = 0;
	flow_report_connected(st, f);
	tcp_answer_syn(st, f);
	return CF_OK;
}

/* --- holding ---------------------------------------------------------------------------------------------- */

int cf_flow_hold(cf_stack *st, cf_flow_id id)
{
	struct flow *f = flow_of_id(st, id);

	if (!f || f->state != PARKED)
		return CF_EFLOW;
	f->held = true;
	if (f->protocol == PROTO_UDP && f->udp.parked)
		flow_report_flight(st, f);
	return CF_OK;
}

int64_t cf_flow_held(cf_stack *st, cf_flow_id id, uint32_t index, uint8_t *out, uint32_t max)
{
	struct flow *f = flow_of_id(st, id);

	if (!f || !f->held)
		return CF_EFLOW;
	if (f->protocol == PROTO_UDP)
		return udp_held(f, index, out, max);
	return index == 0 ? tcp_held(f, out, max) : 0;
}

int cf_flow_pass(cf_stack *st, cf_flow_id id)
{
	struct flow *f = flow_of_id(st, id);

	if (!f || !f->held || f->protocol != PROTO_TCP)
		return CF_EFLOW;
	f->held = false;
	f->pending &= (uint8_t)~PENDING_FLIGHT;
	list_push(st, LIST_READY, f);
	return CF_OK;
}
