/*
 * Every difference between major versions of the server that the C files meet, in one place: each is a function or word that means
 * the same in all of them.
 */
#ifndef POSTERN_VERSIONS_H
#define POSTERN_VERSIONS_H

#include <signal.h>

#include "access/tupdesc.h"
#include "libpq/libpq.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
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

#endif
