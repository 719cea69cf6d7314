/*
 * What only C can reach: structs of the server that no binding has (Port, HbaLine, PQcommMethods, the wait set of the client's
 * socket) and the two places on a query's path where nothing may be in the way. There is no policy in these files, only access;
 * every function is declared, with its meaning, in shim.rs. Here is what they say to each other. What differs between major versions
 * of the server is in versions.h and versions.c.
 */
#ifndef POSTERN_SHIM_H
#define POSTERN_SHIM_H

#include "libpq/pqcomm.h"
#include "utils/hsearch.h"

#include "versions.h"

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
	bool		another;		/* the client has called a function of set_user */
} PosternSeen;

extern PosternSeen postern_seen;

/* Called at an idle ReadyForQuery, after it was sent, with nothing pipelined behind it. */
extern void postern_agent_ready(void);
extern void postern_agent_reset(void);

/* A client's statement, or all of them, is to have its name in the table. */
extern void postern_agent_name(const char *name);
extern void postern_agent_all_names(void);

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

/* A pooled backend's session begins. */
extern void postern_session_begins(const char *token);

/* From one file to another. */
extern HTAB *postern_table_in(MemoryContext parent, const char *name);
extern void postern_see_parse(void);
extern void postern_recount_statements(void);
extern void postern_interrupts(void);
extern void postern_notify_interrupts(bool attached);
extern void postern_set_address(SockAddr *to, int family, const uint32 *address, int port);

#endif
