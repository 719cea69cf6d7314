/*
 * The client's socket, which is another for every client, and the waits on it. PostgreSQL threads only.
 */
#include "postgres.h"

#include <sys/epoll.h>
#include <signal.h>

#include "libpq/libpq-be.h"
#include "libpq/libpq.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/latch.h"
#include "storage/pmsignal.h"

#include "shim.h"

int
postern_socket(void)
{
	return MyProcPort->sock;
}

void
postern_set_socket(int descriptor)
{
	MyProcPort->sock = descriptor;
}

static enum
{
	NOT_MADE, AS_EXPECTED, OTHERWISE
}			wait_set;

static void
make_wait_set(int descriptor)
{
	WaitEventSet *set;
	PosternWaitSet *seen;

	set = postern_new_wait_set(FeBeWaitSetNEvents);
	AddWaitEventToSet(set, WL_SOCKET_READABLE, descriptor, NULL, NULL);
	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_POSTMASTER_DEATH, PGINVALID_SOCKET, NULL, NULL);
	FreeWaitEventSet(FeBeWaitSet);
	FeBeWaitSet = set;
	if (wait_set == NOT_MADE)
	{
		seen = (PosternWaitSet *) set;
		if (seen->nevents == FeBeWaitSetNEvents && seen->nevents_space >= FeBeWaitSetNEvents &&
			seen->latch == MyLatch && seen->latch_pos == FeBeWaitSetLatchPos &&
			seen->events[FeBeWaitSetSocketPos].fd == descriptor &&
			seen->events[FeBeWaitSetSocketPos].events == WL_SOCKET_READABLE &&
			epoll_ctl(seen->epoll_fd, EPOLL_CTL_ADD, descriptor, &(struct epoll_event) {0}) == -1 && errno == EEXIST)
			wait_set = AS_EXPECTED;
		else
			wait_set = OTHERWISE;
	}
}

/* Raises an error when there is no descriptor for it. */
void
postern_wait_on(int descriptor)
{
	PosternWaitSet *set = (PosternWaitSet *) FeBeWaitSet;
	WaitEvent  *event;
	struct epoll_event entry;

	if (wait_set != AS_EXPECTED)
	{
		make_wait_set(descriptor);
		return;
	}
	event = &set->events[FeBeWaitSetSocketPos];
	if (event->fd != PGINVALID_SOCKET)
		(void) epoll_ctl(set->epoll_fd, EPOLL_CTL_DEL, event->fd, NULL);
	/* As WaitEventAdjustEpoll() has it. */
	memset(&entry, 0, sizeof(entry));
	entry.data.ptr = event;
	entry.events = EPOLLERR | EPOLLHUP | EPOLLIN;
	event->fd = descriptor;
	event->events = WL_SOCKET_READABLE;
	if (epoll_ctl(set->epoll_fd, EPOLL_CTL_ADD, descriptor, &entry) == -1)
		make_wait_set(descriptor);
}

/* Before the socket's descriptor is closed here: others have it too, and it would be heard of for as long as they do. */
void
postern_wait_on_none(void)
{
	PosternWaitSet *set = (PosternWaitSet *) FeBeWaitSet;

	if (wait_set == AS_EXPECTED)
	{
		(void) epoll_ctl(set->epoll_fd, EPOLL_CTL_DEL, set->events[FeBeWaitSetSocketPos].fd, NULL);
		set->events[FeBeWaitSetSocketPos].fd = PGINVALID_SOCKET;
	}
}

/*
 * Waits for any client of the pool: 1 and what the client was added with, 0 when a signal came, -1 when the postmaster is gone. slept
 * tells whether nobody was ready. Signals are let in by the wait itself, so that none is missed between the look and the sleep.
 */
int
postern_wait_for_any(int epoll, uint64 *data, bool *slept)
{
	struct epoll_event event;
	int			n = 0;

	*slept = false;
	if (!InterruptPending && !ConfigReloadPending && !MyLatch->is_set)
		n = epoll_wait(epoll, &event, 1, 0);
	if (n < 1)
	{
		*slept = true;
		postern_mask_signals(&BlockSig);
		if (InterruptPending || ConfigReloadPending || MyLatch->is_set)
			n = 0;
		else
		{
			/* Shown as what an idle session's is. */
			pgstat_report_wait_start(WAIT_EVENT_CLIENT_READ);
			n = epoll_pwait(epoll, &event, 1, -1, &UnBlockSig);
			pgstat_report_wait_end();
		}
		postern_mask_signals(&UnBlockSig);
	}
	if (n < 1)
		return PostmasterIsAlive() ? 0 : -1;
	*data = event.data.u64;
	return 1;
}

/*
 * Waits on the wait set until the socket can be read, the latch is set or the postmaster is gone: the events. Before it, what a session
 * does while it waits for a command.
 */
uint32
postern_wait_for_client(bool notify)
{
	WaitEvent	event;

	postern_interrupts();
	postern_notify_interrupts(notify);
	/* secure_write() and pq_check_connection() change the mask. */
	ModifyWaitEvent(FeBeWaitSet, FeBeWaitSetSocketPos, WL_SOCKET_READABLE, NULL);
	if (WaitEventSetWait(FeBeWaitSet, -1, &event, 1, WAIT_EVENT_CLIENT_READ) < 1)
		return 0;
	return event.events;
}
