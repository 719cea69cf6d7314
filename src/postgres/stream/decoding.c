/*
 * Logical decoding in this process, as the server's own SQL functions do it (logicalfuncs.c, walsender.c): pgoutput
 * turns changes into the replication protocol's messages, and our own write callback takes them. There is no policy here, only
 * access; every function is declared, with its meaning, in decoding.rs. Runs on a stream worker's main thread.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlogreader.h"
#include "access/xlogutils.h"
#include "catalog/namespace.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "port/pg_bswap.h"
#include "replication/decode.h"
#include "replication/logical.h"
#include "replication/logicalproto.h"
#include "replication/message.h"
#include "replication/origin.h"
#include "replication/output_plugin.h"
#include "replication/reorderbuffer.h"
#include "replication/slot.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/resowner.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "../shim/versions.h"
#include "rows.h"

/* A transaction that is being replayed. Mirrored in decoding.rs. */
typedef struct
{
	uint64		commit_end;		/* end of its commit record */
	int64		commit_time;	/* microseconds since 2000 */
	uint32		xid;			/* 0: a logical message outside a transaction */
} PosternTransaction;

/* What a type is that is not built in. Mirrored in decoding.rs. */
typedef struct
{
	uint32		same;			/* a domain over this type, else 0 */
	uint32		element;		/* an array of this type, else 0 */
	char		delimiter;
} PosternType;

/* In decoding.rs. */
extern void postern_decoded(const PosternTransaction *transaction, uint64 lsn, const char *data, size_t length);
extern void postern_decoded_type(uint32 type, const PosternType *described);
extern void postern_decoded_key(uint32 relation, const char *names, size_t length);
extern void postern_decoded_unpublished(uint64 lsn);
extern void postern_decoded_commit(const PosternTransaction *transaction);
extern void postern_decoding_goes_on(void);

static LogicalDecodingContext *decoding = NULL;
static OutputPluginCallbacks plugin;
static PosternTransaction replayed;
static MemoryContext round_context = NULL;
static ResourceOwner owner = NULL;
static char publication[NAMEDATALEN];

/*
 * Of the transaction that is replayed: pgoutput has told that it begins, or we have in its place, and tell that it commits.
 */
static bool told;
static bool began;

/* The table of a changed row that pgoutput wrote last. */
static Oid	written;

/* What the catalogs say at the point of the WAL that is replayed, until they change. */
static struct
{
	bool		known;
	bool		published;		/* there is a publication of that name */
	Oid			own_schema;
}			catalogs;

static void
prepare_write(LogicalDecodingContext *ctx, XLogRecPtr lsn, TransactionId xid, bool last_write)
{
	resetStringInfo(ctx->out);
}

/* The OID that a message about a type or a relation has behind its kind; none of one that is too short for it. */
static Oid
subject(const StringInfo message)
{
	uint32		oid;

	if (message->len < (int) (1 + sizeof(oid)))
		return InvalidOid;
	memcpy(&oid, message->data + 1, sizeof(oid));
	return pg_ntoh32(oid);
}

/*
 * Tells the worker of a type that is not built in, and of what it is made of, under the snapshot of the change that is replayed. Not
 * recursive: whoever may make domains may make domains over domains, as many as they like.
 */
void
postern_tell_type(uint32 type)
{
	while (type >= FirstGenbkiObjectId)
	{
		HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
		PosternType described = {0};
		Form_pg_type form;

		if (!HeapTupleIsValid(tuple))
			return;
		form = (Form_pg_type) GETSTRUCT(tuple);
		if (form->typtype == TYPTYPE_DOMAIN)
			described.same = form->typbasetype;
		else if (IsTrueArrayType(form))
		{
			described.element = form->typelem;
			described.delimiter = form->typdelim;
		}
		ReleaseSysCache(tuple);
		postern_decoded_type(type, &described);
		type = described.same ? described.same : described.element;
	}
}

/*
 * The primary key of a table that was just described, when its replica identity is FULL: pgoutput then marks every column. Under the
 * snapshot of the change that is replayed, so the index is read without a lock, as RelationGetIdentityKeyBitmap() does it.
 */
static void
tell_key(const StringInfo message)
{
	StringInfoData names;
	const char *at;
	const char *end = message->data + message->len;
	Oid			oid = subject(message);
	Relation	relation;
	Oid			index_oid;

	if (!OidIsValid(oid))
		return;
	at = message->data + 1 + sizeof(oid);
	/* Schema and name. */
	for (int i = 0; i < 2 && at < end; i++)
		at += strnlen(at, end - at) + 1;
	if (at >= end || *at != REPLICA_IDENTITY_FULL)
		return;
	relation = RelationIdGetRelation(oid);
	if (!RelationIsValid(relation))
		return;
	list_free(RelationGetIndexList(relation));
	index_oid = relation->rd_pkindex;
	if (OidIsValid(index_oid))
	{
		Relation	index = RelationIdGetRelation(index_oid);

		if (RelationIsValid(index))
		{
			initStringInfo(&names);
			for (int i = 0; i < index->rd_index->indnkeyatts; i++)
			{
				AttrNumber	number = index->rd_index->indkey.values[i];
				char	   *name;

				if (number <= 0 || number > RelationGetNumberOfAttributes(relation))
					continue;
				name = NameStr(TupleDescAttr(RelationGetDescr(relation), number - 1)->attname);
				name = pg_server_to_client(name, strlen(name));
				appendBinaryStringInfo(&names, name, strlen(name) + 1);
			}
			postern_decoded_key(oid, names.data, names.len);
			pfree(names.data);
			RelationClose(index);
		}
	}
	RelationClose(relation);
}

#ifdef POSTERN_CHECKS_ROWS
/* The row that we have written, while pgoutput writes it too. */
static StringInfoData row;
static bool comparing = false;
static uint64 changes_before;

static bool
is_compared(const StringInfo message)
{
	char		kind = message->len > 0 ? message->data[0] : 0;

	if (!comparing)
		return false;
	if (kind == LOGICAL_REP_MSG_BEGIN)
		return true;
	/* It has heard of a change meanwhile. */
	if ((kind == LOGICAL_REP_MSG_RELATION || kind == LOGICAL_REP_MSG_TYPE) && changes_before != postern_rows_changes())
		return false;
	if (message->len != row.len || memcmp(message->data, row.data, row.len) != 0)
		elog(ERROR, "a row is not as pgoutput writes it: it wrote a message \"%c\" of %d bytes, we one of %d",
			 kind, message->len, row.len);
	comparing = false;
	return true;
}
#endif

static void
do_write(LogicalDecodingContext *ctx, XLogRecPtr lsn, TransactionId xid, bool last_write)
{
	char		kind = ctx->out->len > 0 ? ctx->out->data[0] : 0;

#ifdef POSTERN_CHECKS_ROWS
	if (is_compared(ctx->out))
		return;
#endif
	if (began && (kind == LOGICAL_REP_MSG_BEGIN || kind == LOGICAL_REP_MSG_COMMIT))
		return;
	if (kind == LOGICAL_REP_MSG_BEGIN)
		told = true;
	if (kind == LOGICAL_REP_MSG_INSERT || kind == LOGICAL_REP_MSG_UPDATE || kind == LOGICAL_REP_MSG_DELETE)
		written = subject(ctx->out);
	if (kind == 'Y')
		postern_tell_type(subject(ctx->out));
	postern_decoded(&replayed, lsn, ctx->out->data, ctx->out->len);
	if (kind == 'R')
		tell_key(ctx->out);
}

static void
catalogs_changed(Datum argument, int cache, uint32 hash)
{
	catalogs.known = false;
}

/*
 * Looks at the catalogs as they were when the change was made. Where there was no publication of that name, nothing was published:
 * pgoutput of 15 to 17 would fail there for ever, however often it is started again.
 */
static void
look_at_catalogs(void)
{
	if (catalogs.known)
		return;
	catalogs.published = OidIsValid(get_publication_oid(publication, true));
	catalogs.own_schema = get_namespace_oid("postern", true);
	/* Also when something comes in between: what is not there is asked for again. */
	catalogs.known = catalogs.published;
}

/* What is in our own tables, secrets of sinks among it, is nobody's business. */
static bool
is_own(Relation relation)
{
	return OidIsValid(catalogs.own_schema) && RelationGetNamespace(relation) == catalogs.own_schema;
}

#ifdef POSTERN_CHECKS_ROWS
/* For tests: rows of this kind are written here at all. */
static void
tell_once(char kind)
{
	static bool known[UCHAR_MAX + 1];

	if (!known[(unsigned char) kind])
		elog(LOG, "rows of kind %c are written without pgoutput", kind);
	known[(unsigned char) kind] = true;
}

static void
compare(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation, ReorderBufferChange *change)
{
	if (row.data == NULL)
	{
		MemoryContext before = MemoryContextSwitchTo(TopMemoryContext);

		initStringInfo(&row);
		MemoryContextSwitchTo(before);
	}
	resetStringInfo(&row);
	appendBinaryStringInfo(&row, ctx->out->data, ctx->out->len);
	comparing = true;
	plugin.change_cb(ctx, txn, relation, change);
	if (comparing)
		elog(ERROR, "pgoutput does not write a row that we do");
	resetStringInfo(ctx->out);
	appendBinaryStringInfo(ctx->out, row.data, row.len);
}
#endif

/* A changed row, without pgoutput. A transaction's origin is what it says before the first change. */
static bool
write_row(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation, ReorderBufferChange *change)
{
	if (txn->origin_id != InvalidRepOriginId || !postern_row_is_plain(relation, change))
		return false;
	if (!told && !began)
	{
		began = true;
		resetStringInfo(ctx->out);
		logicalrep_write_begin(ctx->out, txn);
		postern_decoded(&replayed, ctx->write_location, ctx->out->data, ctx->out->len);
	}
#ifdef POSTERN_CHECKS_ROWS
	changes_before = postern_rows_changes();
#endif
	postern_row_write(ctx->out, relation, change);
#ifdef POSTERN_CHECKS_ROWS
	tell_once(ctx->out->data[0]);
	/* Of every other transaction: the others go the way that they go elsewhere. */
	if (txn->xid % 2 == 0)
		compare(ctx, txn, relation, change);
#endif
	postern_decoded(&replayed, ctx->write_location, ctx->out->data, ctx->out->len);
	return true;
}

static void
on_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation, ReorderBufferChange *change)
{
	uint64		changes;

	look_at_catalogs();
	if (is_own(relation))
		return;
	if (!catalogs.published)
	{
		postern_decoded_unpublished(change->lsn);
		return;
	}
	if (write_row(ctx, txn, relation, change))
		return;
	written = InvalidOid;
	changes = postern_rows_changes();
	plugin.change_cb(ctx, txn, relation, change);
	if (written == RelationGetRelid(relation) && changes == postern_rows_changes())
		postern_row_learn(relation, change->action);
}

static void
on_truncate(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, int count, Relation relations[], ReorderBufferChange *change)
{
	Relation   *others = palloc(count * sizeof(Relation));
	int			kept = 0;

	look_at_catalogs();
	for (int i = 0; i < count; i++)
	{
		if (!is_own(relations[i]))
			others[kept++] = relations[i];
	}
	if (kept > 0 && catalogs.published)
		plugin.truncate_cb(ctx, txn, kept, others, change);
	else if (kept > 0)
		postern_decoded_unpublished(change->lsn);
	pfree(others);
}

/* Called from time to time while a large transaction writes nothing. */
static void
update_progress(LogicalDecodingContext *ctx, XLogRecPtr lsn, TransactionId xid, bool skipped_xact)
{
	postern_decoding_goes_on();
}

static void
on_begin(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
	replayed.commit_end = txn->end_lsn;
	replayed.commit_time = txn->xact_time.commit_time;
	replayed.xid = txn->xid;
	told = began = false;
	plugin.begin_cb(ctx, txn);
}

static void
on_commit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn)
{
	plugin.commit_cb(ctx, txn, commit_lsn);
	if (began)
	{
		resetStringInfo(ctx->out);
		logicalrep_write_commit(ctx->out, txn, commit_lsn);
		postern_decoded(&replayed, ctx->write_location, ctx->out->data, ctx->out->len);
	}
	postern_decoded_commit(&replayed);
}

static void
on_message(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr lsn, bool transactional,
		   const char *prefix, Size size, const char *message)
{
	if (!transactional)
	{
		/* A transaction of its own, between two others. */
		replayed.commit_end = ctx->reader->EndRecPtr;
		replayed.commit_time = 0;
		replayed.xid = 0;
	}
	plugin.message_cb(ctx, txn, lsn, transactional, prefix, size, message);
	if (!transactional)
		postern_decoded_commit(&replayed);
}

/* What Postern itself writes down is nobody's change. */
static bool
on_filter_by_origin(LogicalDecodingContext *ctx, RepOriginId origin)
{
	if (origin == DoNotReplicateId)
		return true;
	return plugin.filter_by_origin_cb != NULL && plugin.filter_by_origin_cb(ctx, origin);
}

/*
 * This process writes down where its streams are, in transactions of its own. While it is marked as one that decodes, no snapshot has its
 * transactions among those that run (GetSnapshotData() in procarray.c): who reads what one of them has written and not yet committed takes
 * it for what a crash has left, and says so in the row, for good. The mark only keeps such a process from holding VACUUM up; without it
 * this one is as a session that calls pg_logical_slot_get_changes().
 */
static void
show_own_transactions(void)
{
	LWLockAcquire(ProcArrayLock, LW_EXCLUSIVE);
	MyProc->statusFlags &= ~PROC_IN_LOGICAL_DECODING;
	ProcGlobal->statusFlags[MyProc->pgxactoff] = MyProc->statusFlags;
	LWLockRelease(ProcArrayLock);
}

/* Begins to decode what the slot has not confirmed. Outside a transaction; the slot is held until the process ends. */
void
postern_decoding_begin(const char *slot, const char *publication_name, bool messages)
{
	List	   *options = NIL;
	MemoryContext before;

	owner = ResourceOwnerCreate(NULL, "postern stream");
	CurrentResourceOwner = owner;
	round_context = AllocSetContextCreate(TopMemoryContext, "postern stream", ALLOCSET_DEFAULT_SIZES);
	before = MemoryContextSwitchTo(TopMemoryContext);
	options = lappend(options, makeDefElem("proto_version", (Node *) makeString("1"), -1));
	strlcpy(publication, pg_client_to_server(publication_name, strlen(publication_name)), sizeof(publication));
	options = lappend(options, makeDefElem("publication_names",
										   (Node *) makeString(pstrdup(quote_identifier(publication))), -1));
	if (messages)
		options = lappend(options, makeDefElem("messages", (Node *) makeString("true"), -1));
	CheckLogicalDecodingRequirements();
	postern_acquire_slot(slot);
	decoding = CreateDecodingContext(InvalidXLogRecPtr, options, false,
									 XL_ROUTINE(.page_read = read_local_xlog_page,
												.segment_open = wal_segment_open,
												.segment_close = wal_segment_close),
									 prepare_write, do_write, update_progress);
	show_own_transactions();
	plugin = decoding->callbacks;
	decoding->callbacks.begin_cb = on_begin;
	decoding->callbacks.commit_cb = on_commit;
	decoding->callbacks.filter_by_origin_cb = on_filter_by_origin;
	decoding->callbacks.change_cb = on_change;
	if (plugin.truncate_cb)
		decoding->callbacks.truncate_cb = on_truncate;
	if (plugin.message_cb)
		decoding->callbacks.message_cb = on_message;
	postern_rows_begin(publication);
	CacheRegisterSyscacheCallback(PUBLICATIONOID, catalogs_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, catalogs_changed, (Datum) 0);
	MemoryContextSwitchTo(before);
	XLogBeginRead(decoding->reader, MyReplicationSlot->data.restart_lsn);
	InvalidateSystemCaches();
}

/* For how long standbys are waited for before the log says which of their slots are missing or not in use. */
#define PATIENCE_MS 10000

/*
 * How far may be decoded: what has been flushed, and for a slot that fails over, what the standbys have, one of which may be the primary next
 * and would not know what was delivered (as WalSndWaitForWal() does it). They may be behind for ever and never be done, so it is one
 * position that is waited for, and then the next.
 */
static XLogRecPtr
decodable(void)
{
	static XLogRecPtr had = InvalidXLogRecPtr;
	static XLogRecPtr wanted = InvalidXLogRecPtr;
	static TimestampTz since;
	static bool told;
	XLogRecPtr	flushed = GetFlushRecPtr(NULL);
	bool		tell;

	if (had >= flushed)
		return flushed;
	if (wanted == InvalidXLogRecPtr)
	{
		wanted = flushed;
		since = GetCurrentTimestamp();
		told = false;
	}
	tell = !told && TimestampDifferenceExceeds(since, GetCurrentTimestamp(), PATIENCE_MS);
	if (postern_standbys_have(MyReplicationSlot, wanted, tell ? WARNING : DEBUG1))
	{
		had = wanted;
		wanted = InvalidXLogRecPtr;
	}
	told = told || tell;
	return had;
}

/* Decodes at most so many records of what may be decoded. Returns how far it has read; `more` when there is more to read. */
uint64
postern_decoding_step(int records, bool *more)
{
	XLogRecPtr	flushed = decodable();
	MemoryContext before = CurrentMemoryContext;

	for (int i = 0; i < records && decoding->reader->EndRecPtr < flushed; i++)
	{
		char	   *error = NULL;
		XLogRecord *record;

		/* The reader makes its buffers at its first record, and keeps them. */
		MemoryContextSwitchTo(decoding->context);
		record = XLogReadRecord(decoding->reader, &error);
		MemoryContextSwitchTo(round_context);
		if (error)
			elog(ERROR, "could not read WAL: %s", error);
		if (record)
			LogicalDecodingProcessRecord(decoding, decoding->reader);
		/* Replaying a transaction leaves another in its place, as pg_logical_slot_get_changes() says too. */
		CurrentResourceOwner = owner;
		CHECK_FOR_INTERRUPTS();
	}
	*more = decoding->reader->EndRecPtr < flushed;
	MemoryContextSwitchTo(before);
	MemoryContextReset(round_context);
	return decoding->reader->EndRecPtr;
}

/* What has a commit record that begins before this position is not decoded again. It never goes back. */
void
postern_decoding_confirm(uint64 lsn)
{
	if (MyReplicationSlot && lsn > MyReplicationSlot->data.confirmed_flush)
	{
		LogicalConfirmReceivedLocation(lsn);
		ReplicationSlotMarkDirty();
	}
}

/* The slot is written to disk and let go. */
void
postern_decoding_end(void)
{
	if (MyReplicationSlot)
	{
		ReplicationSlotMarkDirty();
		ReplicationSlotSave();
		ReplicationSlotRelease();
	}
}
