/*
 * Timers, cancels, reloads and interrupts of a session between two commands and between two clients. PostgreSQL threads only.
 */
#include "postgres.h"

#include "commands/async.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/sinval.h"
#include "utils/guc.h"
#include "utils/timeout.h"

#include "shim.h"

/* Timers and flags that belong to the client that was served. */
void
postern_disarm(void)
{
	if (get_timeout_active(IDLE_SESSION_TIMEOUT))
		disable_timeout(IDLE_SESSION_TIMEOUT, false);
	if (get_timeout_active(CLIENT_CONNECTION_CHECK_TIMEOUT))
		disable_timeout(CLIENT_CONNECTION_CHECK_TIMEOUT, false);
	IdleSessionTimeoutPending = false;
	CheckClientConnectionPending = false;
	QueryCancelPending = false;
	ClientConnectionLost = false;
}

/* What a session does while it waits for a command: the server's own ProcessClientReadInterrupt(). */
void
postern_interrupts(void)
{
	/* A cancel now is nobody's; held back, it would keep the interrupts pending for ever. */
	QueryCancelPending = false;
	CHECK_FOR_INTERRUPTS();
	if (IdleStatsUpdateTimeoutPending)
	{
		IdleStatsUpdateTimeoutPending = false;
		pgstat_report_stat(true);
	}
}

void
postern_notify_interrupts(bool attached)
{
	if (catchupInterruptPending)
		ProcessCatchupInterrupt();
	if (attached && notifyInterruptPending)
		ProcessNotifyInterrupt(true);
}

bool
postern_reload_pending(void)
{
	return ConfigReloadPending;
}

void
postern_reload(void)
{
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
}

bool
postern_dying(void)
{
	return ProcDiePending;
}

/* Set and not counted: an error amid it has reset the count. */
void
postern_hold_cancel(void)
{
	QueryCancelHoldoffCount = 1;
}

void
postern_resume_cancel(void)
{
	QueryCancelHoldoffCount = 0;
	/* A cancel that came while no query ran is nobody's. */
	QueryCancelPending = false;
}
