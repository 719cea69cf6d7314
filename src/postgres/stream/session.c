/*
 * What a stream worker, a scout or the launcher does in its transactions beside decoding: signals and errors, statements and rows by SPI,
 * databases and whether they are locked. There is no policy here, only access; every function is declared, with its meaning, in decoding.rs.
 * Runs on their main threads.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "executor/spi.h"
#include "libpq/pqsignal.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "parser/parser.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/origin.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/rel.h"

/* A SIGTERM ends the process at the next look at interrupts, also amid the server's own waits. */
void
postern_end_on_sigterm(void)
{
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
}

static void
cancel_and_end(SIGNAL_ARGS)
{
	int			save_errno = errno;

	ShutdownRequestPending = true;
	QueryCancelPending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
	errno = save_errno;
}

/*
 * A SIGTERM is kept in ShutdownRequestPending, and what the server is doing for the process, its own waits among it, ends as a cancelled
 * query does: by an error that the process catches. It may wait for what never comes: WAL that ends in the middle of a record is waited
 * for until somebody flushes the rest, and in a shutdown nobody does.
 */
void
postern_cancel_on_sigterm(void)
{
	pqsignal(SIGTERM, cancel_and_end);
}

/* After an error that was caught outside a transaction. */
void
postern_after_error(void)
{
	HOLD_INTERRUPTS();
	LWLockReleaseAll();
	ConditionVariableCancelSleep();
	pgstat_report_wait_end();
	AbortOutOfAnyTransaction();
	FlushErrorState();
	RESUME_INTERRUPTS();
}

/* What this transaction writes is left out by every stream of Postern. */
void
postern_hide_transaction(bool hide)
{
	replorigin_session_origin = hide ? DoNotReplicateId : InvalidRepOriginId;
}

/*
 * Reads what a query gives, under the transaction's snapshot, and calls back for each row: its columns as their types write them, in
 * UTF-8, null for null. Inside SPI.
 */
void
postern_copy_rows(const char *query, void (*row) (void *context, int columns, const char *const *values), void *context)
{
	Portal		portal = SPI_cursor_open_with_args(NULL, pg_client_to_server(query, strlen(query)), 0, NULL, NULL, NULL, true, CURSOR_OPT_NO_SCROLL);
	MemoryContext rows = AllocSetContextCreate(CurrentMemoryContext, "postern snapshot", ALLOCSET_DEFAULT_SIZES);
	int			columns = portal->tupDesc->natts;
	const char **values = palloc(sizeof(char *) * Max(columns, 1));

	for (;;)
	{
		SPI_cursor_fetch(portal, true, 100);
		if (SPI_processed == 0)
			break;
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			MemoryContext before = MemoryContextSwitchTo(rows);

			for (int column = 0; column < columns; column++)
			{
				char	   *value = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, column + 1);

				values[column] = value ? pg_server_to_client(value, strlen(value)) : NULL;
			}
			row(context, columns, values);
			MemoryContextSwitchTo(before);
			MemoryContextReset(rows);
			CHECK_FOR_INTERRUPTS();
		}
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
	MemoryContextDelete(rows);
}

/* Runs a text that is one statement, with nothing behind it; false when it is not. Inside SPI. */
bool
postern_execute_one(const char *statement)
{
	statement = pg_client_to_server(statement, strlen(statement));
	if (list_length(raw_parser(statement, RAW_PARSE_DEFAULT)) != 1)
		return false;
	SPI_execute(statement, false, 0);
	return true;
}

/* For a transaction that is to have a slot's snapshot. */
void
postern_repeatable_read(void)
{
	XactIsoLevel = XACT_REPEATABLE_READ;
	XactReadOnly = true;
}

/* Whether somebody holds a database against those who connect, as DROP DATABASE does; in a transaction, which has the lock until it ends. */
bool
postern_database_is_locked(uint32 database)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, database, 0);
	return LockAcquire(&tag, RowExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL;
}

/* Calls back for every database that can be connected to; in a transaction of a process without a database. */
void
postern_databases(void (*found) (void *context, uint32 database, const char *name), void *context)
{
	Relation	relation = table_open(DatabaseRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(relation, 0, NULL);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		if (form->datallowconn && !form->datistemplate)
			found(context, form->oid, NameStr(form->datname));
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
}
