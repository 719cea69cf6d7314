/*
 * What only C can reach: structs of the server that no binding has (Port, HbaLine, PQcommMethods, the wait set of the client's
 * socket) and the two places on a query's path where nothing may be in the way. There is no policy here, only access; every
 * function is declared, with its meaning, in shim.rs. Runs on PostgreSQL threads only.
 */
#include "postgres.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <getopt.h>
#include <signal.h>
#include <unistd.h>

#include "access/genam.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_database.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_namespace.h"
#include "commands/async.h"
#include "commands/prepare.h"
#include "common/hashfn.h"
#include "common/ip.h"
#include "datatype/timestamp.h"
#include "executor/executor.h"
#include "libpq/auth.h"
#include "libpq/hba.h"
#include "libpq/libpq-be.h"
#include "libpq/libpq.h"
#include "libpq/pqformat.h"
#include "libpq/pqsignal.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "replication/origin.h"
#include "replication/slot.h"
#include "replication/walsender.h"
#include "storage/latch.h"
#include "storage/pmsignal.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/sinval.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#if PG_VERSION_NUM >= 170000
#define pq_buffer_has_data() (pq_buffer_remaining_data() > 0)
#endif

/* --- messages on their way out ----------------------------------------------------------------------------------- */

/* What has gone by since the agent last looked; read and reset by it. */
typedef struct
{
	bool		mute;			/* drop everything: no client is attached, or answers nobody asked for */
	bool		ready;			/* a ReadyForQuery has gone by */
	char		status;			/* its status: I, T or E */
	bool		told;			/* a ParameterStatus has gone by */
	bool		names;			/* the table of prepared statements may have changed */
	bool		settings;		/* a setting may have been changed */
	bool		seed;			/* the random generator was seeded */
	bool		loaded;			/* a library was loaded by name */
	bool		acts;			/* the transaction under way has run LISTEN, UNLISTEN or NOTIFY */
	bool		listens;		/* before the next ReadyForQuery, the client's notifications are to be looked after */
	bool		report;			/* before the next ReadyForQuery, tell the client what it does not know yet */
	bool		statement_mode; /* transaction blocks are refused */
	bool		nameless;		/* the client has statements whose names are not in the table yet */
} PosternSeen;

PosternSeen postern_seen;

static const PQcommMethods *server_methods;
static PQcommMethods methods;

/*
 * Prepared statements. At a ParseComplete the newest of the saved plan sources is the one that was parsed, and whether the table
 * has grown tells whether it has a name.
 */
static HTAB *statements;
static dlist_head *saved_plans;
static long statement_count;
static CachedPlanSource *unnamed;
static uint64 unnamed_number;

/* The plan source is freed: the next Parse or a simple Query replaced it. */
static void
unnamed_gone(void *plan)
{
	if (unnamed == plan)
		unnamed = NULL;
}

static void
see_parse(void)
{
	long		count = hash_get_num_entries(statements);

	if (count == statement_count)
	{
		CachedPlanSource *plan = dlist_tail_element(CachedPlanSource, node, saved_plans);

		if (plan != unnamed)
		{
			MemoryContextCallback *callback = MemoryContextAlloc(plan->context, sizeof(MemoryContextCallback));

			callback->func = unnamed_gone;
			callback->arg = plan;
			MemoryContextRegisterResetCallback(plan->context, callback);
			unnamed = plan;
		}
		unnamed_number++;
	}
	else
		postern_seen.names = true;
	statement_count = count;
}

/* The session's own statements from here on; the sentinel was saved last, so what follows it is the list's head. */
void
postern_watch_statements(HTAB *table, CachedPlanSource *sentinel)
{
	saved_plans = (dlist_head *) sentinel->node.next;
	statements = table;
	statement_count = hash_get_num_entries(table);
}

/* After the table was changed otherwise than by a Parse. */
void
postern_recount_statements(void)
{
	if (statements)
		statement_count = hash_get_num_entries(statements);
}

/*
 * A client's statements have their names in the table only once they are looked up: the table's hash function, which comes before
 * every lookup, asks the agent for the name first.
 */
extern void postern_agent_name(const char *name);
extern void postern_agent_all_names(void);
static HashValueFunc server_hash;

static uint32
see_name(const void *name, Size size)
{
	if (postern_seen.nameless)
		postern_agent_name(name);
	return server_hash(name, size);
}

/*
 * dynahash.c keeps the function in the table's header, as the third of its words, and for keys that are strings it is string_hash().
 * False when that is not what is found: then a client's statements must all be in the table before it speaks.
 */
bool
postern_watch_names(HTAB *table)
{
	HashValueFunc *place = (HashValueFunc *) ((void **) table + 2);

	if (*place != string_hash)
		return false;
	server_hash = *place;
	*place = see_name;
	return true;
}

/* What the unnamed statement stands for; null when there is none. */
CachedPlanSource *
postern_unnamed(void)
{
	return unnamed;
}

/* How many unnamed statements there have been: tells the present one from that of a client before. */
uint64
postern_unnamed_number(void)
{
	return unnamed_number;
}

/* Called at an idle ReadyForQuery, after it was sent, with nothing pipelined behind it. */
extern void postern_agent_ready(void);
extern void postern_agent_reset(void);

/*
 * LISTEN, UNLISTEN and NOTIFY. The client's own come to the agent when they have been queued, with the depth of the transaction: the
 * server's own bookkeeping of them cannot be read. A notification is announced before it is queued.
 */
extern void postern_agent_listens(int kind, const char *channel, int level);
extern void postern_agent_notifies(int level);
extern void postern_agent_transaction(int event);
extern void postern_agent_subtransaction(bool aborted, int level);
extern void postern_agent_notifications(bool idle);

enum
{
	POSTERN_LISTEN, POSTERN_UNLISTEN, POSTERN_UNLISTEN_ALL
};

enum
{
	POSTERN_BEFORE_COMMIT, POSTERN_COMMITTED, POSTERN_ABORTED
};

/* Nothing has gone out since an idle ReadyForQuery. */
static bool resting;

static int
agent_putmessage(char type, const char *body, size_t length)
{
	resting = false;
	switch (type)
	{
		case 'Z':
			if (postern_seen.report && !postern_seen.mute)
			{
				postern_seen.report = false;
				BeginReportingGUCOptions();
			}
			if (postern_seen.listens && !postern_seen.mute)
				postern_agent_notifications(body[0] == 'I');
			postern_seen.ready = true;
			postern_seen.status = body[0];
			resting = body[0] == 'I';
			break;
		case 'S':
			postern_seen.told = true;
			break;
		case '1':
			if (statements)
				see_parse();
			break;
		case '3':
			postern_seen.names = true;
			postern_recount_statements();
			break;
	}
	if (postern_seen.mute)
		return 0;
	return server_methods->putmessage(type, body, length);
}

static int
agent_flush(void)
{
	/* A Flush of the client's with nothing to flush: the session is as idle as before, and no ReadyForQuery will say so. */
	bool		ready = postern_seen.ready || resting;
	int			result;

	/* Before the flush: a SIGQUIT amid it reports and flushes again. */
	postern_seen.ready = false;
	result = postern_seen.mute ? 0 : server_methods->flush();
	if (ready && postern_seen.status == 'I')
		postern_agent_ready();
	return result;
}

static int
agent_flush_if_writable(void)
{
	return postern_seen.mute ? 0 : server_methods->flush_if_writable();
}

static void
agent_comm_reset(void)
{
	resting = false;
	server_methods->comm_reset();
	postern_agent_reset();
}

void
postern_install_methods(void)
{
	server_methods = PqCommMethods;
	methods = *server_methods;
	methods.putmessage = agent_putmessage;
	methods.flush = agent_flush;
	methods.flush_if_writable = agent_flush_if_writable;
	methods.comm_reset = agent_comm_reset;
	PqCommMethods = &methods;
}

/* Bytes that are already messages, past every flag. */
void
postern_send(const char *bytes, size_t length)
{
	size_t		at = 0;

	while (at + 5 <= length)
	{
		uint32		body;

		memcpy(&body, bytes + at + 1, 4);
		body = pg_ntoh32(body) - 4;
		server_methods->putmessage(bytes[at], bytes + at + 5, body);
		at += 5 + body;
	}
}

/* Notifications, which are in the database's encoding, in the client's: as the server itself sends them. */
void
postern_send_converted(const char *bytes, size_t length)
{
	size_t		at = 0;

	while (at + 9 <= length)
	{
		uint32		size;
		uint32		pid;
		const char *channel = bytes + at + 9;

		memcpy(&size, bytes + at + 1, 4);
		memcpy(&pid, bytes + at + 5, 4);
		NotifyMyFrontEnd(channel, channel + strlen(channel) + 1, (int32) pg_ntoh32(pid));
		at += 1 + pg_ntoh32(size);
	}
}

int
postern_flush(void)
{
	return server_methods->flush();
}

bool
postern_input_waits(void)
{
	return pq_buffer_has_data();
}

/* The first byte of the buffered input; call only when there is some. */
int
postern_peek_input(void)
{
	return pq_peekbyte();
}

/* --- what tells that the session's state may have changed -------------------------------------------------------- */

static ProcessUtility_hook_type next_utility;
static object_access_hook_type next_access;

static void
see_utility(PlannedStmt *statement, const char *text, bool read_only, ProcessUtilityContext context,
			ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *destination,
			QueryCompletion *completion)
{
	Node	   *node = statement->utilityStmt;
	bool		names = false;
	int			listens = -1;
	const char *channel = "";

	switch (nodeTag(node))
	{
		case T_VariableSetStmt:
			postern_seen.settings = true;
			if (((VariableSetStmt *) node)->name && strcmp(((VariableSetStmt *) node)->name, "seed") == 0)
				postern_seen.seed = true;
			break;
		case T_DiscardStmt:
			postern_seen.settings = true;
			names = true;
			if (((DiscardStmt *) node)->target == DISCARD_ALL)
			{
				listens = POSTERN_UNLISTEN_ALL;
				if (postern_seen.nameless)
					postern_agent_all_names();
			}
			break;
		case T_PrepareStmt:
			names = true;
			break;
		case T_DeallocateStmt:
			names = true;
			if (((DeallocateStmt *) node)->name == NULL && postern_seen.nameless)
				postern_agent_all_names();
			break;
		case T_ListenStmt:
			listens = POSTERN_LISTEN;
			channel = ((ListenStmt *) node)->conditionname;
			break;
		case T_UnlistenStmt:
			listens = POSTERN_UNLISTEN_ALL;
			if (((UnlistenStmt *) node)->conditionname)
			{
				listens = POSTERN_UNLISTEN;
				channel = ((UnlistenStmt *) node)->conditionname;
			}
			break;
		case T_NotifyStmt:
			postern_agent_notifies(GetCurrentTransactionNestLevel());
			break;
		case T_LoadStmt:
			postern_seen.loaded = true;
			break;
		case T_TransactionStmt:
			if (postern_seen.statement_mode &&
				(((TransactionStmt *) node)->kind == TRANS_STMT_BEGIN ||
				 ((TransactionStmt *) node)->kind == TRANS_STMT_START))
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("transaction blocks are not allowed in statement pooling mode"),
						 errhint("Set postern.pool_mode to transaction.")));
			break;
		default:
			break;
	}
	if (next_utility)
		next_utility(statement, text, read_only, context, parameters, environment, destination, completion);
	else
		standard_ProcessUtility(statement, text, read_only, context, parameters, environment, destination, completion);
	if (names)
	{
		postern_seen.names = true;
		postern_recount_statements();
	}
	/* Only what the server has taken. */
	if (listens >= 0)
		postern_agent_listens(listens, channel, GetCurrentTransactionNestLevel());
}

static void
see_transaction(XactEvent event, void *argument)
{
	if (!postern_seen.acts)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			postern_agent_transaction(POSTERN_BEFORE_COMMIT);
			break;
		case XACT_EVENT_COMMIT:
			postern_agent_transaction(POSTERN_COMMITTED);
			break;
		case XACT_EVENT_ABORT:
			postern_agent_transaction(POSTERN_ABORTED);
			break;
		default:
			break;
	}
}

static void
see_subtransaction(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *argument)
{
	if (!postern_seen.acts)
		return;
	if (event == SUBXACT_EVENT_COMMIT_SUB || event == SUBXACT_EVENT_ABORT_SUB)
		postern_agent_subtransaction(event == SUBXACT_EVENT_ABORT_SUB, GetCurrentTransactionNestLevel());
}

static void
see_access(ObjectAccessType access, Oid class, Oid object, int sub, void *argument)
{
	if (access == OAT_FUNCTION_EXECUTE)
	{
		/* A function that is not the server's own may change settings from C, unseen by anything else. */
		if (object == F_SET_CONFIG || object >= FirstNormalObjectId)
			postern_seen.settings = true;
		else if (object == F_SETSEED)
			postern_seen.seed = true;
		else if (object == F_PG_NOTIFY)
			postern_agent_notifies(GetCurrentTransactionNestLevel());
		else if (object == F_PG_PREPARED_STATEMENT && postern_seen.nameless)
			postern_agent_all_names();
	}
	if (next_access)
		next_access(access, class, object, sub, argument);
}

void
postern_install_hooks(void)
{
	next_utility = ProcessUtility_hook;
	ProcessUtility_hook = see_utility;
	next_access = object_access_hook;
	object_access_hook = see_access;
	RegisterXactCallback(see_transaction, NULL);
	RegisterSubXactCallback(see_subtransaction, NULL);
}

/* --- the relay's worker ------------------------------------------------------------------------------------------ */

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

/* --- the client's socket ----------------------------------------------------------------------------------------- */

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

static enum
{
	NOT_MADE, AS_EXPECTED, OTHERWISE
}			wait_set;

static void
make_wait_set(int descriptor)
{
	WaitEventSet *set;
	PosternWaitSet *seen;

#if PG_VERSION_NUM >= 170000
	set = CreateWaitEventSet(NULL, FeBeWaitSetNEvents);
#else
	set = CreateWaitEventSet(TopMemoryContext, FeBeWaitSetNEvents);
#endif
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
#if PG_VERSION_NUM >= 160000
		sigprocmask(SIG_SETMASK, &BlockSig, NULL);
#else
		PG_SETMASK(&BlockSig);
#endif
		if (InterruptPending || ConfigReloadPending || MyLatch->is_set)
			n = 0;
		else
			n = epoll_pwait(epoll, &event, 1, -1, &UnBlockSig);
#if PG_VERSION_NUM >= 160000
		sigprocmask(SIG_SETMASK, &UnBlockSig, NULL);
#else
		PG_SETMASK(&UnBlockSig);
#endif
	}
	if (n < 1)
		return PostmasterIsAlive() ? 0 : -1;
	*data = event.data.u64;
	return 1;
}

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

/* --- who the client is ------------------------------------------------------------------------------------------- */

static char client_host[NI_MAXHOST];
static char client_port[NI_MAXSERV];

/* family 4, 6 or 0 for a Unix socket; the address in network order. */
static void
set_address(SockAddr *to, int family, const uint32 *address, int port)
{
	memset(to, 0, sizeof(*to));
	if (family == 4)
	{
		struct sockaddr_in *in = (struct sockaddr_in *) &to->addr;

		in->sin_family = AF_INET;
		in->sin_port = pg_hton16(port);
		memcpy(&in->sin_addr, address, 4);
		to->salen = sizeof(*in);
	}
	else if (family == 6)
	{
		struct sockaddr_in6 *in = (struct sockaddr_in6 *) &to->addr;

		in->sin6_family = AF_INET6;
		in->sin6_port = pg_hton16(port);
		memcpy(&in->sin6_addr, address, 16);
		to->salen = sizeof(*in);
	}
	else
	{
		to->addr.ss_family = AF_UNIX;
		to->salen = sizeof(sa_family_t);
	}
}

/* The client and the front's end of its connection; application_name is a setting of its own. */
void
postern_set_client(int family, const uint32 *address, int port, const uint32 *local, int local_port)
{
	SockAddr   *remote = &MyProcPort->raddr;

	set_address(remote, family, address, port);
	set_address(&MyProcPort->laddr, family, local, local_port);
	client_host[0] = client_port[0] = '\0';
	/* What getnameinfo() with NI_NUMERICHOST would say, only faster; an address of the front's has no scope. */
	if (family == 0)
		strlcpy(client_host, "[local]", sizeof(client_host));
	else if (inet_ntop(family == 4 ? AF_INET : AF_INET6, address, client_host, sizeof(client_host)))
		pg_ltoa(port, client_port);
	MyProcPort->remote_host = client_host;
	MyProcPort->remote_port = client_port;
	MyProcPort->remote_hostname = NULL;
	if (MyBEEntry)
	{
		PGSTAT_BEGIN_WRITE_ACTIVITY(MyBEEntry);
		memcpy(&MyBEEntry->st_clientaddr, remote, sizeof(MyBEEntry->st_clientaddr));
		PGSTAT_END_WRITE_ACTIVITY(MyBEEntry);
	}
}

static char *
to_server(const char *text)
{
	const char *byte;

	for (byte = text; *byte; byte++)
		if (IS_HIGHBIT_SET(*byte))
			return pg_any_to_server(text, strlen(text), PG_UTF8);
	return unconstify(char *, text);
}

/*
 * pg_stat_ssl as pgstat_bestart() fills it for a session of its own; null versions are no TLS. Names come in UTF-8. The Port says
 * nothing of it: what it has would be read from and written to by OpenSSL.
 */
void
postern_set_tls(int bits, const char *version, const char *cipher, const char *subject, const char *serial,
				const char *issuer)
{
#ifdef USE_SSL
	volatile PgBackendStatus *entry = MyBEEntry;
	PgBackendSSLStatus status;

	if (entry == NULL)
		return;
	memset(&status, 0, sizeof(status));
	if (version)
	{
		/* Before the entry is touched: it may raise an error. What is ASCII needs no conversion, which wants a transaction. */
		char	   *dn = to_server(subject);
		char	   *issuer_dn = to_server(issuer);

		status.ssl_bits = bits;
		strlcpy(status.ssl_version, version, NAMEDATALEN);
		strlcpy(status.ssl_cipher, cipher, NAMEDATALEN);
		strlcpy(status.ssl_client_dn, dn, NAMEDATALEN);
		strlcpy(status.ssl_client_serial, serial, NAMEDATALEN);
		strlcpy(status.ssl_issuer_dn, issuer_dn, NAMEDATALEN);
	}
	PGSTAT_BEGIN_WRITE_ACTIVITY(entry);
	entry->st_ssl = version != NULL;
	memcpy(entry->st_sslstatus, &status, sizeof(status));
	PGSTAT_END_WRITE_ACTIVITY(entry);
#endif
}

/*
 * SYSTEM_USER, from 16 on, also in parallel workers of the session. The server makes its text once a session and has no way to change
 * it, so the first text is as long as any may be, and others are written in its place; in the place of none, an empty one.
 */
void
postern_set_identity(int method, const char *identity)
{
#if PG_VERSION_NUM >= 160000
#define LONGEST_IDENTITY 2048
	static const UserAuth authenticated[] = {uaTrust, uaPassword, uaMD5, uaSCRAM, uaCert, uaPeer};
	static char *text = NULL;
	static char *name = NULL;

	if (method <= 0 || method >= lengthof(authenticated))
	{
		MyClientConnectionInfo.authn_id = NULL;
		if (text)
			text[0] = '\0';
		return;
	}
	if (text == NULL)
	{
		char	   *room = palloc(LONGEST_IDENTITY);

		name = MemoryContextAllocZero(TopMemoryContext, LONGEST_IDENTITY);
		memset(room, ' ', LONGEST_IDENTITY - 1);
		room[LONGEST_IDENTITY - 1] = '\0';
		InitializeSystemUser(room, "");
		pfree(room);
		text = unconstify(char *, GetSystemUser());
	}
	/* A password has shown the role itself, under the name that it was asked for by. */
	strlcpy(name, identity[0] ? identity : MyProcPort->user_name, LONGEST_IDENTITY);
	MyClientConnectionInfo.authn_id = name;
	MyClientConnectionInfo.auth_method = authenticated[method];
	snprintf(text, LONGEST_IDENTITY, "%s:%s", hba_authname(authenticated[method]), name);
#endif
}

/* --- the startup packet of a pooled backend ---------------------------------------------------------------------- */

static ClientAuthentication_hook_type next_authentication;
extern void postern_session_begins(const char *token);

/* Takes the parameter out of the packet, so that the session never knows of it. */
static void
see_authentication(Port *port, int status)
{
	ListCell   *cell;
	int			at = 0;

	if (next_authentication)
		next_authentication(port, status);
	if (status != STATUS_OK || port == NULL)
		return;
	foreach(cell, port->guc_options)
	{
		if (at % 2 == 0 && strcmp(lfirst(cell), "postern.agent") == 0)
		{
			char	   *token = list_nth(port->guc_options, at + 1);

			port->guc_options = list_delete_nth_cell(port->guc_options, at + 1);
			port->guc_options = list_delete_nth_cell(port->guc_options, at);
			postern_session_begins(token);
			return;
		}
		at++;
	}
}

void
postern_install_authentication(void)
{
	next_authentication = ClientAuthentication_hook;
	ClientAuthentication_hook = see_authentication;
}

/* --- pg_hba.conf ------------------------------------------------------------------------------------------------- */

typedef struct
{
	int			method;			/* UserAuth, in our own numbers */
	int			line;
	int			client_certificate;	/* 0 off, 1 verify-ca, 2 verify-full */
	bool		certificate_by_dn;	/* clientname=DN */
	char		map[128];		/* pg_ident.conf map, or empty */
	char		text[512];		/* the line as it is written */
} PosternVerdict;

/* Whether this process has read pg_hba.conf and pg_ident.conf; until then nobody gets in by them. */
static bool hba_loaded = false;
static bool ident_loaded = false;

/*
 * The server's own verdict. host_name: the client's, confirmed, or null when it has none; no name is looked up here. replication: 0 none, 1 physical, 2 of a database, as the startup packet asks for it.
 */
void
postern_hba(const char *database, const char *role, int family, const uint32 *address, bool tls, const char *host_name,
			int replication, PosternVerdict *out)
{
	Port		port;
	HbaLine    *line;

	memset(&port, 0, sizeof(port));
	memset(out, 0, sizeof(*out));
	if (!hba_loaded)
	{
		/* What hba.c still points to are the postmaster's lines, whose memory is no more. */
		out->method = 2;
		return;
	}
	port.sock = PGINVALID_SOCKET;
	port.database_name = unconstify(char *, database);
	port.user_name = unconstify(char *, role);
#ifdef USE_SSL
	port.ssl_in_use = tls;
#endif
	set_address(&port.raddr, family, address, 0);
	port.remote_hostname = unconstify(char *, host_name);
	port.remote_hostname_resolv = host_name ? +1 : -1;
	/* The keyword "replication" in a line looks at these. */
	am_walsender = replication != 0;
	am_db_walsender = replication == 2;
	hba_getauthmethod(&port);
	am_walsender = am_db_walsender = false;
	line = port.hba;
	switch (line->auth_method)
	{
		case uaReject:
			out->method = 1;
			break;
		case uaImplicitReject:
			out->method = 2;
			break;
		case uaTrust:
			out->method = 3;
			break;
		case uaPassword:
			out->method = 4;
			break;
		case uaMD5:
			out->method = 5;
			break;
		case uaSCRAM:
			out->method = 6;
			break;
		case uaCert:
			out->method = 7;
			break;
		case uaPeer:
			out->method = 8;
			break;
		default:
			out->method = 0;
			strlcpy(out->text, hba_authname(line->auth_method), sizeof(out->text));
	}
	out->line = line->linenumber;
	out->client_certificate = line->clientcert;
	out->certificate_by_dn = line->clientcertname == clientCertDN;
	if (line->usermap)
		strlcpy(out->map, line->usermap, sizeof(out->map));
	if (out->method != 0 && line->rawline)
		strlcpy(out->text, line->rawline, sizeof(out->text));
}

/* pg_ident.conf: whether the map lets the outside name be the role. Logs as the server does when not. */
bool
postern_map_allows(const char *map, const char *role, const char *outside)
{
	if (map[0] && !ident_loaded)
		return false;
	return check_usermap(map[0] ? map : NULL, role, outside, false) == STATUS_OK;
}

/*
 * hba.c remembers the memory context of the lines that it read last and deletes it when it has read new ones. In a worker, what it
 * remembers is the postmaster's, which the start of every child process deletes without telling it. A deleted context of these sizes
 * is not freed but kept in a list, from which the next one of these sizes is taken (aset.c, context_freelists). So, before anything
 * else is made in this process, every place in that list is taken by a context of our own: what hba.c and ident's part of it then
 * delete are two of those, alive and empty. False when that was not so. Called once, first of all in a worker.
 */
#define FILLERS 48

static int
count_fillers(void)
{
	MemoryContext child;
	int			count = 0;

	for (child = PostmasterContext->firstchild; child; child = child->nextchild)
		if (strcmp(child->name, "postern filler") == 0)
			count++;
	return count;
}

bool
postern_first_load(bool *hba, bool *ident)
{
	int			i;

	PostmasterContext = AllocSetContextCreate(TopMemoryContext, "Postern HBA", ALLOCSET_DEFAULT_SIZES);
	for (i = 0; i < FILLERS; i++)
		(void) AllocSetContextCreate(PostmasterContext, "postern filler", ALLOCSET_SMALL_SIZES);
	*hba = hba_loaded = load_hba();
	if (*hba && count_fillers() != FILLERS - 1)
		return false;
	*ident = ident_loaded = load_ident();
	return !*ident || !*hba || count_fillers() == FILLERS - 2;
}

bool
postern_load_hba(void)
{
	bool		loaded = load_hba();

	hba_loaded |= loaded;
	return loaded;
}

bool
postern_load_ident(void)
{
	bool		loaded = load_ident();

	ident_loaded |= loaded;
	return loaded;
}

/* --- tables of the session --------------------------------------------------------------------------------------- */

/*
 * The session's hash table of that name. The server keeps the pointer to itself, but labels the table's memory context with the
 * name that stands right behind the table's header (dynahash.c, hash_create()). The header's own fields say whether that is what
 * was found: its context and its name.
 */
HTAB *
postern_named_table(const char *name)
{
	MemoryContext context;

	for (context = TopMemoryContext->firstchild; context; context = context->nextchild)
	{
		const char *label = context->ident;
		size_t		size;

		if (label == NULL || strcmp(context->name, "dynahash") != 0 || strcmp(label, name) != 0)
			continue;
		for (size = 8 * sizeof(void *); size <= 32 * sizeof(void *); size += sizeof(void *))
		{
			const char *header = label - size;

			if (((MemoryContext *) header)[6] == context && ((const char **) header)[7] == label)
				return (HTAB *) header;
		}
	}
	return NULL;
}

long
postern_entries(HTAB *table)
{
	return hash_get_num_entries(table);
}

/* Whether the process holds any lock; at an idle ReadyForQuery that is a session-level one. */
bool
postern_holds_locks(void)
{
	int			i;

	for (i = 0; i < NUM_LOCK_PARTITIONS; i++)
	{
#if PG_VERSION_NUM >= 160000
		if (!dlist_is_empty(&MyProc->myProcLocks[i]))
			return true;
#else
		if (!SHMQueueEmpty(&MyProc->myProcLocks[i]))
			return true;
#endif
	}
	return false;
}

/* This process's number in the table of processes, and the latch of such a number. */
int
postern_proc_number(void)
{
#if PG_VERSION_NUM >= 170000
	return MyProcNumber;
#else
	return MyProc->pgprocno;
#endif
}

void
postern_wake(int number)
{
	SetLatch(&ProcGlobal->allProcs[number].procLatch);
}

/* Where answers to the session go; DestNone would make the server read standard input. */
void
postern_answer_remote(void)
{
	whereToSendOutput = DestRemote;
}

void
postern_use_message_context(void)
{
	MemoryContextSwitchTo(MessageContext);
}

/*
 * transaction_isolation and its like as no SET has touched them, or as one has: all that is left of a SET once its transaction is over
 * is where the value came from. Outside a transaction. Newer servers forbid the RESET, which would change a transaction in progress.
 */
void
postern_mark_transaction_setting(struct config_generic *setting, bool set)
{
	if (set)
		(void) set_config_option(setting->name, GetConfigOptionResetString(setting->name), PGC_SUSET, PGC_S_SESSION,
								 GUC_ACTION_SET, true, LOG, false);
	else
	{
		int			flags = setting->flags;

#ifdef GUC_NO_RESET
		setting->flags &= ~GUC_NO_RESET;
#endif
		(void) set_config_option(setting->name, NULL, PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SET, true, LOG, false);
		setting->flags = flags;
	}
}

/* A startup packet's options, as process_startup_options() gives them to the settings. */
void
postern_apply_options(const char *options, bool superuser)
{
	char	  **av;
	int			ac = 0;
	int			most = 2 + (strlen(options) + 1) / 2;

	av = (char **) palloc(most * sizeof(char *));
	av[ac++] = "postgres";
	pg_split_opts(av, &ac, options);
	av[ac] = NULL;
	/* An option that was refused has left the scan of an earlier client's options in its middle; 0 begins anew. */
	optind = 0;
	(void) process_postgres_switches(ac, av, superuser ? PGC_SU_BACKEND : PGC_BACKEND, NULL);
}

/* --- ends of things ---------------------------------------------------------------------------------------------- */

/* Throws away all buffered input, which is of a client that has gone or must go. Does not block. */
void
postern_discard_input(void)
{
	pq_startmsgread();
	while (pq_buffer_has_data())
		(void) pq_getbyte();
	pq_endmsgread();
}

/*
 * Takes one message off the buffered input and throws it away; false when it is none. Waits for the rest of it when only a part has
 * come.
 */
bool
postern_skip_message(void)
{
	StringInfoData message;
	int			result;

	initStringInfo(&message);
	pq_startmsgread();
	(void) pq_getbyte();
	result = pq_getmessage(&message, PQ_LARGE_MESSAGE_LIMIT);
	pfree(message.data);
	return result != EOF;
}

/* What a session begins with after its authentication: the reported settings, the key for cancels, ReadyForQuery. */
void
postern_welcome(uint32 pid, uint32 key)
{
	StringInfoData message;

	BeginReportingGUCOptions();
	pq_beginmessage(&message, 'K');
	pq_sendint32(&message, pid);
	pq_sendint32(&message, key);
	pq_endmessage(&message);
	pq_beginmessage(&message, 'Z');
	pq_sendbyte(&message, 'I');
	pq_endmessage(&message);
	postern_seen.ready = false;
	server_methods->flush();
}

/* Session-level state that no setting shows and that cannot move. */
bool
postern_has_replication_state(void)
{
	return MyReplicationSlot != NULL || replorigin_session_origin != InvalidRepOriginId ||
		get_backup_status() != SESSION_BACKUP_NONE;
}

void
postern_release_advisory_locks(void)
{
	LockReleaseAll(USER_LOCKMETHOD, true);
}

/* --- catalogs ---------------------------------------------------------------------------------------------------- */

/* What ALTER ROLE and ALTER DATABASE ... SET give a new session: process_settings() of postinit.c. In a transaction. */
void
postern_apply_role_settings(void)
{
	Relation	relation = table_open(DbRoleSettingRelationId, AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetCatalogSnapshot(DbRoleSettingRelationId));
	Oid			role = GetSessionUserId();

	ApplySetting(snapshot, MyDatabaseId, role, relation, PGC_S_DATABASE_USER);
	ApplySetting(snapshot, InvalidOid, role, relation, PGC_S_USER);
	ApplySetting(snapshot, MyDatabaseId, InvalidOid, relation, PGC_S_DATABASE);
	ApplySetting(snapshot, InvalidOid, InvalidOid, relation, PGC_S_GLOBAL);
	UnregisterSnapshot(snapshot);
	table_close(relation, AccessShareLock);
}

/* Whether the session has a temporary schema, and whether anything is in it. In a transaction. */
bool
postern_has_temporary_schema(void)
{
	Oid			schema;
	Oid			toast;

	GetTempNamespaceState(&schema, &toast);
	return OidIsValid(schema);
}

bool
postern_has_temporary_objects(void)
{
	Oid			schema;
	Oid			toast;
	Relation	relation;
	ScanKeyData keys[2];
	SysScanDesc scan;
	bool		found;

	GetTempNamespaceState(&schema, &toast);
	relation = table_open(DependRelationId, AccessShareLock);
	ScanKeyInit(&keys[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(NamespaceRelationId));
	ScanKeyInit(&keys[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(schema));
	scan = systable_beginscan(relation, DependReferenceIndexId, true, NULL, 2, keys);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return found;
}

/* A column of a result; the name is the description's own. */
typedef struct
{
	Oid			type;
	int32		modifier;
	Oid			collation;
	int16		length;
	bool		by_value;
	char		alignment;
	char		storage;
} PosternColumn;

const char *
postern_column(TupleDesc description, int index, PosternColumn *out)
{
	Form_pg_attribute attribute = TupleDescAttr(description, index);

	out->type = attribute->atttypid;
	out->modifier = attribute->atttypmod;
	out->collation = attribute->attcollation;
	out->length = attribute->attlen;
	out->by_value = attribute->attbyval;
	out->alignment = attribute->attalign;
	out->storage = attribute->attstorage;
	return NameStr(attribute->attname);
}

/* The same into a new description, as TupleDescInitEntry() does it, which would look the type up. */
void
postern_set_column(TupleDesc description, int index, const char *name, const PosternColumn *column)
{
	Form_pg_attribute attribute = TupleDescAttr(description, index);

	memset(attribute, 0, ATTRIBUTE_FIXED_PART_SIZE);
	namestrcpy(&attribute->attname, name);
	attribute->atttypid = column->type;
	attribute->atttypmod = column->modifier;
	attribute->attcollation = column->collation;
	attribute->attlen = column->length;
	attribute->attbyval = column->by_value;
	attribute->attalign = column->alignment;
	attribute->attstorage = column->storage;
	attribute->attnum = index + 1;
#if PG_VERSION_NUM < 180000
	attribute->attcacheoff = -1;
#endif
#if PG_VERSION_NUM < 170000
	attribute->attstattarget = -1;
#endif
	attribute->attislocal = true;
#if PG_VERSION_NUM >= 180000
	populate_compact_attribute(description, index);
#endif
}

/*
 * A database by its name: false when there is none. Without a database of its own a process may use an index of a shared catalog only
 * once the relation cache has it, as GetDatabaseTuple() of postinit.c says. In a transaction.
 */
bool
postern_database(const char *name, Oid *oid, bool *allows_connections, int32 *connection_limit)
{
	Relation	relation = table_open(DatabaseRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_database_datname, BTEqualStrategyNumber, F_NAMEEQ, CStringGetDatum(name));
	scan = systable_beginscan(relation, DatabaseNameIndexId, criticalSharedRelcachesBuilt, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		*oid = form->oid;
		*allows_connections = form->datallowconn;
		*connection_limit = form->datconnlimit;
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return HeapTupleIsValid(tuple);
}

/* --- what a backend does ----------------------------------------------------------------------------------------- */

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
#if PG_VERSION_NUM >= 170000
	out->in_transaction = proc->vxid.lxid != InvalidLocalTransactionId;
#else
	out->in_transaction = proc->lxid != InvalidLocalTransactionId;
#endif
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
