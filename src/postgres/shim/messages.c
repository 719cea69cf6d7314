/*
 * Messages on their way out and in: what the server writes to the client goes by here, and what has come of the client's is looked
 * at and thrown away. PostgreSQL threads only.
 */
#include "postgres.h"

#include "commands/async.h"
#include "libpq/libpq.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "shim.h"

PosternSeen postern_seen;

static const PQcommMethods *server_methods;
static PQcommMethods methods;

/* Nothing has gone out to the client since an idle ReadyForQuery. */
static bool resting;

static int
agent_putmessage(char type, const char *body, size_t length)
{
	if (!postern_seen.mute)
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
			postern_see_parse();
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
	bool		ready = postern_seen.ready || (resting && !postern_seen.mute);
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

/*
 * A notification in the client's encoding. One with a character which that encoding lacks is left out, and the client is warned: a
 * session of its own would end by it, which is no way to treat one that others share. Whatever else goes wrong is raised.
 */
static void
send_converted(const char *channel, const char *payload, int32 pid)
{
	MemoryContext context = CurrentMemoryContext;
	/* An error resets them, and this one is over with at once. */
	uint32		held_cancels = QueryCancelHoldoffCount;
	uint32		held = InterruptHoldoffCount;

	PG_TRY();
	{
		NotifyMyFrontEnd(channel, payload, pid);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_UNTRANSLATABLE_CHARACTER &&
			error->sqlerrcode != ERRCODE_CHARACTER_NOT_IN_REPERTOIRE)
			PG_RE_THROW();
		FlushErrorState();
		QueryCancelHoldoffCount = held_cancels;
		InterruptHoldoffCount = held;
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("a notification has been left out: %s", error->message)));
	}
	PG_END_TRY();
}

/* Notifications, which are in the database's encoding, in the client's: as the server itself sends them. */
void
postern_send_converted(const char *bytes, size_t length)
{
	static MemoryContext messages = NULL;
	MemoryContext before;
	size_t		at = 0;
	bool		rested = resting;

	/* What of a message was put together before an error is in here. */
	if (messages == NULL)
		messages = AllocSetContextCreate(TopMemoryContext, "postern notifications", ALLOCSET_DEFAULT_SIZES);
	before = MemoryContextSwitchTo(messages);
	/* A warning is flushed at once, and that flush is not the end of a command. */
	resting = false;
	while (at + 9 <= length)
	{
		uint32		size;
		uint32		pid;
		const char *channel = bytes + at + 9;

		memcpy(&size, bytes + at + 1, 4);
		memcpy(&pid, bytes + at + 5, 4);
		send_converted(channel, channel + strlen(channel) + 1, (int32) pg_ntoh32(pid));
		at += 1 + pg_ntoh32(size);
	}
	/* The session is as idle as before. */
	resting = rested;
	MemoryContextSwitchTo(before);
	MemoryContextReset(messages);
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

/*
 * The settings that have changed are no news to the client: it did not change them. From 16 on the server tells of changes in an
 * order that follows their history, and this is none of the client's.
 */
void
postern_report_nothing(void)
{
	bool		mute = postern_seen.mute;
	bool		told = postern_seen.told;

	postern_seen.mute = true;
	ReportChangedGUCOptions();
	postern_seen.mute = mute;
	postern_seen.told = told;
}

/* What a session begins with after its authentication: the reported settings, the key for cancels, ReadyForQuery. */
void
postern_welcome(uint32 pid, const uint8 *key, size_t key_length)
{
	StringInfoData message;

	BeginReportingGUCOptions();
	/* Nothing of it is news at the first ReadyForQuery. */
	ReportChangedGUCOptions();
	pq_beginmessage(&message, 'K');
	pq_sendint32(&message, pid);
	pq_sendbytes(&message, (const char *) key, key_length);
	pq_endmessage(&message);
	pq_beginmessage(&message, 'Z');
	pq_sendbyte(&message, 'I');
	pq_endmessage(&message);
	postern_seen.ready = false;
	server_methods->flush();
}
