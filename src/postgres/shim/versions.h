/*
 * Every difference between major versions of the server that the C files meet, in one place: each is a function or word that means
 * the same in all of them.
 */
#ifndef POSTERN_VERSIONS_H
#define POSTERN_VERSIONS_H

#include <signal.h>

#include "access/tupdesc.h"
#include "libpq/libpq.h"
#include "libpq/pqformat.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "replication/reorderbuffer.h"
#include "replication/slot.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

/* Whether anything of the client's has been read off its socket and not been looked at. */
#if PG_VERSION_NUM >= 170000
#define pq_buffer_has_data() (pq_buffer_remaining_data() > 0)
#endif

/* A setting that RESET refuses; no such thing before 16. */
#ifndef GUC_NO_RESET
#define GUC_NO_RESET 0
#endif

/* SYSTEM_USER. */
#if PG_VERSION_NUM >= 160000
#define POSTERN_HAS_SYSTEM_USER
#endif

static inline void
postern_mask_signals(const sigset_t *blocked)
{
#if PG_VERSION_NUM >= 160000
	sigprocmask(SIG_SETMASK, blocked, NULL);
#else
	PG_SETMASK(unconstify(sigset_t *, blocked));
#endif
}

/*
 * The wait set of the client's socket is set to another socket where it stands: a new one would cost six system calls. The struct is
 * latch.c's own; whether it is what we think is looked at once, by what was put in.
 */
typedef struct
{
#if PG_VERSION_NUM >= 170000
	ResourceOwner owner;
#endif
	int			nevents;
	int			nevents_space;
	WaitEvent  *events;
	Latch	   *latch;
	int			latch_pos;
	bool		exit_on_postmaster_death;
	int			epoll_fd;
} PosternWaitSet;

/* One that lives as long as the process. */
static inline WaitEventSet *
postern_new_wait_set(int events)
{
#if PG_VERSION_NUM >= 170000
	return CreateWaitEventSet(NULL, events);
#else
	return CreateWaitEventSet(TopMemoryContext, events);
#endif
}

/* Whether this process holds a lock of that partition of the lock table. */
static inline bool
postern_locks_in(int partition)
{
#if PG_VERSION_NUM >= 160000
	return !dlist_is_empty(&MyProc->myProcLocks[partition]);
#else
	return !SHMQueueEmpty(&MyProc->myProcLocks[partition]);
#endif
}

/* This process's number in the table of processes. */
static inline int
postern_my_number(void)
{
#if PG_VERSION_NUM >= 170000
	return MyProcNumber;
#else
	return MyProc->pgprocno;
#endif
}

/* The transaction that a process is in. */
static inline LocalTransactionId
postern_transaction_of(volatile PGPROC *proc)
{
#if PG_VERSION_NUM >= 170000
	return proc->vxid.lxid;
#else
	return proc->lxid;
#endif
}

/* Whether a slot has lost what it needs; under its mutex. */
static inline bool
postern_slot_is_invalidated(ReplicationSlot *slot)
{
#if PG_VERSION_NUM >= 160000
	return slot->data.invalidated != RS_INVAL_NONE;
#else
	return slot->data.restart_lsn == InvalidXLogRecPtr && slot->data.invalidated_at != InvalidXLogRecPtr;
#endif
}

/* A logical slot; one that fails over, which standbys synchronize, where there is such a thing. */
static inline void
postern_make_slot(const char *name, ReplicationSlotPersistency persistency, bool failover)
{
#if PG_VERSION_NUM >= 170000
	ReplicationSlotCreate(name, true, persistency, false, failover, false);
#else
	ReplicationSlotCreate(name, true, persistency, false);
#endif
}

/* Takes a slot, if nobody has it and it is not invalidated. */
static inline void
postern_acquire_slot(const char *name)
{
#if PG_VERSION_NUM >= 180000
	ReplicationSlotAcquire(name, true, true);
#else
	ReplicationSlotAcquire(name, true);
#endif
}

/* Whether the standbys that `synchronized_standby_slots` names have everything before this position, where the slot is one that fails over. */
static inline bool
postern_standbys_have(ReplicationSlot *slot, XLogRecPtr lsn, int elevel)
{
#if PG_VERSION_NUM >= 170000
	return !slot->data.failover || StandbySlotsHaveCaughtup(lsn, elevel);
#else
	return true;
#endif
}

/*
 * Whether pg_stat_ssl has the names of a certificate in the database's encoding. From 18 on they are written down before the database is
 * known, in UTF-8 (pgstat_bestart_security()).
 */
#define POSTERN_CONVERTS_NAMES (PG_VERSION_NUM < 180000)

/* What a column of a description needs besides its fields, which are all set, and zero where nothing was said. */
static inline void
postern_finish_column(TupleDesc description, int index)
{
#if PG_VERSION_NUM < 180000
	TupleDescAttr(description, index)->attcacheoff = -1;
#endif
#if PG_VERSION_NUM < 170000
	TupleDescAttr(description, index)->attstattarget = -1;
#endif
#if PG_VERSION_NUM >= 180000
	populate_compact_attribute(description, index);
#endif
}

/* A decoded change's row as it was, or of it what identifies it; null when there is neither. */
static inline HeapTuple
postern_old_tuple(ReorderBufferChange *change)
{
#if PG_VERSION_NUM >= 170000
	return change->data.tp.oldtuple;
#else
	return change->data.tp.oldtuple ? &change->data.tp.oldtuple->tuple : NULL;
#endif
}

/* A decoded change's new row; null when it has none. */
static inline HeapTuple
postern_new_tuple(ReorderBufferChange *change)
{
#if PG_VERSION_NUM >= 170000
	return change->data.tp.newtuple;
#else
	return change->data.tp.newtuple ? &change->data.tp.newtuple->tuple : NULL;
#endif
}

/* A text with its length before it, in the client's encoding. */
static inline void
postern_send_counted_text(StringInfo out, const char *text, int length)
{
#if PG_VERSION_NUM >= 170000
	pq_sendcountedtext(out, text, length);
#else
	pq_sendcountedtext(out, text, length, false);
#endif
}

#endif
