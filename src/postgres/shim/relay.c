/*
 * The relay's worker hears notifications as a client would: what the server sends it goes to itself. Runs on its main thread.
 */
#include "postgres.h"

#include "commands/async.h"
#include "libpq/libpq.h"
#include "storage/sinval.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"

#include "shim.h"

/* A NotificationResponse for the worker, without its type and length. */
extern void postern_relay_hears(const char *body, size_t length);

static int
relay_putmessage(char type, const char *body, size_t length)
{
	if (type == 'A')
		postern_relay_hears(body, length);
	return 0;
}

static void
relay_putmessage_noblock(char type, const char *body, size_t length)
{
	(void) relay_putmessage(type, body, length);
}

static void
relay_nothing(void)
{
}

static int
relay_zero(void)
{
	return 0;
}

static bool
relay_false(void)
{
	return false;
}

static const PQcommMethods relay_methods = {
	.comm_reset = relay_nothing,
	.flush = relay_zero,
	.flush_if_writable = relay_zero,
	.is_send_pending = relay_false,
	.putmessage = relay_putmessage,
	.putmessage_noblock = relay_putmessage_noblock,
};

/* The worker's notifications go to itself. The server's own comment on Async_Listen() invites workers to do this. */
void
postern_relay_begin(void)
{
	PqCommMethods = &relay_methods;
	whereToSendOutput = DestRemote;
}

/* Hears what has been committed since: every notification of a channel that is listened to. Outside a transaction. */
void
postern_relay_hear(void)
{
	if (catchupInterruptPending)
		ProcessCatchupInterrupt();
	if (notifyInterruptPending)
		ProcessNotifyInterrupt(true);
}
