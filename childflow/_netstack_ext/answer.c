/* answer.c: what Python says about a parked flow, carried out.
 *
 * Each answer counts once, and only while the flow still waits: one that died meanwhile is CF_EFLOW.
 * Not here: the question (flow.c), who decides (Python's policy). */
#include "stack.h"

int cf_flow_allow(cf_stack *st, cf_flow_id id)
{
	struct flow *f = flow_of_id(st, id);
	int error;

	if (!f || f->state != PARKED)
		return CF_EFLOW;
	if (f->protocol == PROTO_UDP)
		return udp_allow(st, f);
	f->state = CONNECTING;
	error = host_connect(st, f);
	if (error)
		tcp_connect_failed(st, f, error);
	return CF_OK;
}

int cf_flow_deny(cf_stack *st, cf_flow_id id, enum cf_denial how)
{
	struct flow *f = flow_of_id(st, id);

	if ((unsigned)how > CF_DENY_PROHIBITED)
		return CF_EINVAL;
	if (!f || f->state != PARKED)
		return CF_EFLOW;
	drop(st, CF_DROP_FLOW_DENIED);
	if (f->protocol == PROTO_UDP) {
		udp_deny(st, f, how);
		return CF_OK;
	}
	if (how == CF_DENY_RESET)
		tcp_send_reset(st, f);
	else if (how != CF_DENY_SILENT)
		icmp_send_for_flow(st, f, icmp_denial(how, f->address_len), NULL, 0);
	flow_close(st, f, CF_END_KILLED);
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
