/*
 * What another backend does, by its number, and how it is woken. PostgreSQL threads only.
 */
#include "postgres.h"

#include "datatype/timestamp.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/backend_status.h"

#include "shim.h"

/* This process's number in the table of processes, and the latch of such a number. */
int
postern_proc_number(void)
{
	return postern_my_number();
}

void
postern_wake(int number)
{
	SetLatch(&ProcGlobal->allProcs[number].procLatch);
}

typedef struct
{
	bool		reads;			/* it waits for bytes of its client */
	bool		in_transaction;
	bool		failed;			/* the transaction that is idle */
	int64		runs_since;		/* microseconds since 1970; 0 when it does not */
	int64		idles_since;
	int64		transaction_since;
} PosternActivity;

/* Where this process's entry of pg_stat_activity is: shared memory has one address in all processes. */
uint64
postern_status(void)
{
	return (uint64) (uintptr_t) MyBEEntry;
}

static int64
since_1970(TimestampTz time)
{
	return time == 0 ? 0 : time + (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
}

/* Of the process with that number, entry and pid; false when it is gone. Takes no lock: a moment's words. */
bool
postern_activity(int number, uint64 status, int pid, PosternActivity *out)
{
	volatile PGPROC *proc = &ProcGlobal->allProcs[number];
	volatile PgBackendStatus *entry = (volatile PgBackendStatus *) (uintptr_t) status;
	int			tries;

	memset(out, 0, sizeof(*out));
	if (number < 0 || (uint32) number >= ProcGlobal->allProcCount || proc->pid != pid)
		return false;
	out->reads = proc->wait_event_info == WAIT_EVENT_CLIENT_READ;
	out->in_transaction = postern_transaction_of(proc) != InvalidLocalTransactionId;
	/* It is written within moments; when it is not, the next look will do. */
	for (tries = 0; tries < 100; tries++)
	{
		int			before;
		int			after;
		int			its;
		BackendState state;
		TimestampTz since;
		TimestampTz transaction;

		pgstat_begin_read_activity(entry, before);
		its = entry->st_procpid;
		state = entry->st_state;
		since = entry->st_state_start_timestamp;
		transaction = entry->st_xact_start_timestamp;
		pgstat_end_read_activity(entry, after);
		if (!pgstat_read_activity_complete(before, after))
			continue;
		if (its != pid)
			return false;
		if (state == STATE_RUNNING || state == STATE_FASTPATH)
			out->runs_since = since_1970(since);
		else if (state == STATE_IDLEINTRANSACTION || state == STATE_IDLEINTRANSACTION_ABORTED)
			out->idles_since = since_1970(since);
		out->failed = state == STATE_IDLEINTRANSACTION_ABORTED;
		out->transaction_since = since_1970(transaction);
		break;
	}
	return true;
}
