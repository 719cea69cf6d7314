/*
 * Changed rows as pgoutput writes them, byte for byte, in half its time: pgoutput asks the catalogs for the type of each value of each
 * row, and looks up its output function. Which tables are published, with which columns, rows and kinds of change, stays pgoutput's
 * to say: a change is written here only after pgoutput itself has written one of the same kind of the same table, with nothing
 * changed since, and where the publication has no WHERE and no list of columns for it. Builds for tests let pgoutput write each
 * one too, and compare (decoding.c). Runs on a stream worker's main thread.
 *
 * logicalrep_write_insert(), _update(), _delete() and _tuple() in src/backend/replication/logical/proto.c; pgoutput.c.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_publication_rel.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "pgtime.h"
#include "replication/logicalproto.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "../shim/versions.h"
#include "rows.h"

/* How a column's value becomes text. */
typedef enum
{
	LEFT_OUT,					/* a dropped column */
	AS_INT2,
	AS_INT4,
	AS_INT8,
	AS_TEXT,					/* the value's bytes are the text */
	AS_TIMESTAMP,
	AS_TIMESTAMPTZ,
	BY_FUNCTION,				/* a built-in type's function, which keeps nothing from call to call */
	BY_CATALOG,					/* as pgoutput finds it, each time */
} How;

typedef struct
{
	How			how;
	FmgrInfo	function;
} Column;

/* A table of which pgoutput has written a change. */
typedef struct
{
	Oid			oid;
	bool		known;			/* nothing has changed since */
	bool		plain;			/* its rows may be written here, in changes of which pgoutput has written one: */
	bool		inserts;
	bool		updates;
	bool		deletes;
	int			count;
	Column	   *columns;
	Datum	   *values;
	bool	   *nulls;
} Table;

static HTAB *tables = NULL;
static MemoryContext tables_context = NULL;
static MemoryContext row_context = NULL;
static const char *publication;

/* Counts what was told of changes. */
static uint64 changes = 0;

static Table *
find(Oid oid)
{
	static Table *last = NULL;

	if (last == NULL || last->oid != oid)
	{
		Table	   *found = hash_search(tables, &oid, HASH_FIND, NULL);

		/* Its place stays. */
		if (found)
			last = found;
		return found;
	}
	return last;
}

/* The tables' places stay: this may come amid a row. */
static void
forget(Oid oid)
{
	HASH_SEQ_STATUS each;
	Table	   *table;

	changes++;
	if (OidIsValid(oid))
	{
		table = hash_search(tables, &oid, HASH_FIND, NULL);
		if (table)
			table->known = false;
		return;
	}
	hash_seq_init(&each, tables);
	while ((table = hash_seq_search(&each)) != NULL)
		table->known = false;
}

static void
relation_changed(Datum argument, Oid oid)
{
	forget(oid);
}

static void
catalog_changed(Datum argument, int cache, uint32 hash)
{
	forget(InvalidOid);
}

/* How often something has changed that pgoutput listens to. */
uint64
postern_rows_changes(void)
{
	return changes;
}

/* Once in the process; `name` stays where it is. */
void
postern_rows_begin(const char *name)
{
	/* All that pgoutput listens to. What is kept of a type is that of a built-in one. */
	static const int caches[] = {PUBLICATIONOID, PUBLICATIONRELMAP, PUBLICATIONNAMESPACEMAP, NAMESPACEOID};
	HASHCTL		control = {.keysize = sizeof(Oid), .entrysize = sizeof(Table)};

	publication = name;
	tables_context = AllocSetContextCreate(TopMemoryContext, "postern stream tables", ALLOCSET_DEFAULT_SIZES);
	row_context = AllocSetContextCreate(TopMemoryContext, "postern stream row", ALLOCSET_DEFAULT_SIZES);
	control.hcxt = tables_context;
	tables = hash_create("postern stream tables", 64, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	for (int i = 0; i < lengthof(caches); i++)
		CacheRegisterSyscacheCallback(caches[i], catalog_changed, (Datum) 0);
}

static How
how_of(Oid type)
{
	switch (type)
	{
		case INT2OID:
			return AS_INT2;
		case INT4OID:
			return AS_INT4;
		case INT8OID:
			return AS_INT8;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case JSONOID:
			return AS_TEXT;
		case TIMESTAMPOID:
			return AS_TIMESTAMP;
		case TIMESTAMPTZOID:
			return AS_TIMESTAMPTZ;
		case BOOLOID:
		case BYTEAOID:
		case DATEOID:
		case FLOAT4OID:
		case FLOAT8OID:
		case INTERVALOID:
		case JSONBOID:
		case NUMERICOID:
		case TIMEOID:
		case TIMETZOID:
		case UUIDOID:
			return BY_FUNCTION;
		default:
			return BY_CATALOG;
	}
}

/* Whether the publication wants every row of the table and every column, as it is now. */
static bool
is_wanted_wholly(Relation relation)
{
	Oid			oid = get_publication_oid(publication, true);
	HeapTuple	tuple;
	bool		filtered;
	bool		listed;

	/* The rows of a partition may be published as another table's. */
	if (!OidIsValid(oid) || relation->rd_rel->relkind != RELKIND_RELATION || relation->rd_rel->relispartition)
		return false;
	tuple = SearchSysCache2(PUBLICATIONRELMAP, ObjectIdGetDatum(RelationGetRelid(relation)), ObjectIdGetDatum(oid));
	if (!HeapTupleIsValid(tuple))
		return true;
	SysCacheGetAttr(PUBLICATIONRELMAP, tuple, Anum_pg_publication_rel_prqual, &filtered);
	SysCacheGetAttr(PUBLICATIONRELMAP, tuple, Anum_pg_publication_rel_prattrs, &listed);
	ReleaseSysCache(tuple);
	/* Those were "is null". */
	return filtered && listed;
}

/* What says of a kind of change whether it may be written here; null for what no row is changed by. */
static bool *
kind_of(Table *table, ReorderBufferChangeType action)
{
	switch (action)
	{
		case REORDER_BUFFER_CHANGE_INSERT:
			return &table->inserts;
		case REORDER_BUFFER_CHANGE_UPDATE:
			return &table->updates;
		case REORDER_BUFFER_CHANGE_DELETE:
			return &table->deletes;
		default:
			return NULL;
	}
}

/* A row from before a column was added lacks it: what pgoutput says of that column differs from minor version to minor version. */
static bool
is_whole(const Table *table, HeapTuple tuple)
{
	return HeapTupleHeaderGetNatts(tuple->t_data) >= table->count;
}

/* Whether this change of the table is to be written here. */
bool
postern_row_is_plain(Relation relation, ReorderBufferChange *change)
{
	Table	   *table = find(RelationGetRelid(relation));
	HeapTuple	old;
	HeapTuple	new;
	bool	   *plain;

	if (table == NULL || !table->known || !table->plain || table->count != RelationGetNumberOfAttributes(relation))
		return false;
	plain = kind_of(table, change->action);
	if (plain == NULL || !*plain)
		return false;
	old = postern_old_tuple(change);
	new = postern_new_tuple(change);
	/* Of a deleted row that has no identity pgoutput says nothing. */
	if (change->action == REORDER_BUFFER_CHANGE_DELETE ? old == NULL : new == NULL)
		return false;
	return (old == NULL || is_whole(table, old)) && (new == NULL || is_whole(table, new));
}

/* Looks at a table; `found` when it has been looked at before. */
static void
learn_table(Relation relation, Table *table, bool found)
{
	TupleDesc	description = RelationGetDescr(relation);

	table->inserts = table->updates = table->deletes = false;
	table->plain = false;
	if (found && table->columns)
	{
		pfree(table->columns);
		pfree(table->values);
		pfree(table->nulls);
	}
	table->columns = NULL;
	table->count = description->natts;
	/* Before anything is asked, which may tell of a change. */
	table->known = true;
	/* Whether a generated column is published depends on the version and the publication. */
	for (int i = 0; i < description->natts; i++)
	{
		if (TupleDescAttr(description, i)->attgenerated)
			return;
	}
	if (!is_wanted_wholly(relation))
		return;
	table->plain = true;
	table->columns = MemoryContextAllocZero(tables_context, Max(description->natts, 1) * sizeof(Column));
	table->values = MemoryContextAllocZero(tables_context, Max(description->natts, 1) * sizeof(Datum));
	table->nulls = MemoryContextAllocZero(tables_context, Max(description->natts, 1) * sizeof(bool));
	for (int i = 0; i < description->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(description, i);
		Column	   *column = &table->columns[i];

		if (attribute->attisdropped)
		{
			column->how = LEFT_OUT;
			continue;
		}
		column->how = how_of(attribute->atttypid);
		if (column->how == BY_FUNCTION || column->how == AS_TIMESTAMP || column->how == AS_TIMESTAMPTZ)
		{
			Oid			function;
			bool		variable;

			getTypeOutputInfo(attribute->atttypid, &function, &variable);
			fmgr_info_cxt(function, &column->function, tables_context);
		}
	}
}

/* pgoutput has just written a change of the table. */
void
postern_row_learn(Relation relation, ReorderBufferChangeType action)
{
	Oid			oid = RelationGetRelid(relation);
	bool		found;
	Table	   *table = hash_search(tables, &oid, HASH_ENTER, &found);
	bool	   *plain;

	if (!found || !table->known)
		learn_table(relation, table, found);
	plain = kind_of(table, action);
	if (plain)
		*plain = true;
}

/* Bytes that a number or a timestamp has at most, with its length before it. */
#define SHORT 64

/* A number's digits, which a function of the server's writes, where there is room for them. */
#define write_digits(out, function, number) \
	do { \
		int			digits; \
		enlargeStringInfo(out, SHORT); \
		digits = function(number, (out)->data + (out)->len + sizeof(uint32)); \
		pq_writeint32(out, digits); \
		(out)->len += digits; \
	} while (0)

static char *
two_digits(char *at, int number)
{
	*at++ = '0' + number / 10;
	*at++ = '0' + number % 10;
	return at;
}

/*
 * A timestamp as EncodeDateTime() writes it with DateStyle ISO, one with a time zone in UTC, which is what a stream worker has set. False, and
 * nothing written, where that is not so, and for years that have not four digits. The date is the same for many.
 */
static bool
write_timestamp(StringInfo out, Timestamp timestamp, bool zone)
{
	static int64 day = PG_INT64_MIN;
	static char date[sizeof("2000-01-01 ")];
	int64		days = timestamp / USECS_PER_DAY;
	int64		micros = timestamp % USECS_PER_DAY;
	char	   *begin;
	char	   *at;
	int			seconds;
	int			fraction;

	if (DateStyle != USE_ISO_DATES || TIMESTAMP_NOT_FINITE(timestamp))
		return false;
	if (zone)
	{
		static pg_tz *known = NULL;
		long		offset;

		if (session_timezone != known)
		{
			if (!pg_get_timezone_offset(session_timezone, &offset) || offset != 0)
				return false;
			known = session_timezone;
		}
	}
	if (micros < 0)
	{
		micros += USECS_PER_DAY;
		days--;
	}
	if (days != day)
	{
		int			year;
		int			month;
		int			of_month;

		/* Years 1 to 9999. */
		if (days < -730119 || days > 2921939)
			return false;
		j2date((int) days + POSTGRES_EPOCH_JDATE, &year, &month, &of_month);
		at = two_digits(date, year / 100);
		at = two_digits(at, year % 100);
		*at++ = '-';
		at = two_digits(at, month);
		*at++ = '-';
		at = two_digits(at, of_month);
		*at = ' ';
		day = days;
	}
	seconds = micros / USECS_PER_SEC;
	fraction = micros % USECS_PER_SEC;
	enlargeStringInfo(out, SHORT);
	begin = at = out->data + out->len + sizeof(uint32);
	memcpy(at, date, sizeof(date) - 1);
	at = two_digits(at + sizeof(date) - 1, seconds / SECS_PER_HOUR);
	*at++ = ':';
	at = two_digits(at, seconds / SECS_PER_MINUTE % MINS_PER_HOUR);
	*at++ = ':';
	at = two_digits(at, seconds % SECS_PER_MINUTE);
	if (fraction != 0)
	{
		*at++ = '.';
		at = two_digits(at, fraction / 10000);
		at = two_digits(at, fraction / 100 % 100);
		at = two_digits(at, fraction % 100);
		while (at[-1] == '0')
			at--;
	}
	if (zone)
	{
		memcpy(at, "+00", 3);
		at += 3;
	}
	pq_writeint32(out, at - begin);
	out->len += at - begin;
	return true;
}

static void
write_text(StringInfo out, const char *text)
{
	postern_send_counted_text(out, text, strlen(text));
}

static void
write_value(StringInfo out, Column *column, Form_pg_attribute attribute, Datum value)
{
	switch (column->how)
	{
		case LEFT_OUT:
			break;
		case AS_INT2:
			write_digits(out, pg_itoa, DatumGetInt16(value));
			break;
		case AS_INT4:
			write_digits(out, pg_ltoa, DatumGetInt32(value));
			break;
		case AS_INT8:
			write_digits(out, pg_lltoa, DatumGetInt64(value));
			break;
		case AS_TEXT:
			{
				struct varlena *plain = pg_detoast_datum_packed((struct varlena *) DatumGetPointer(value));

				postern_send_counted_text(out, VARDATA_ANY(plain), VARSIZE_ANY_EXHDR(plain));
				break;
			}
		case AS_TIMESTAMP:
		case AS_TIMESTAMPTZ:
			if (write_timestamp(out, DatumGetTimestamp(value), column->how == AS_TIMESTAMPTZ))
				break;
			/* FALLTHROUGH */
		case BY_FUNCTION:
			write_text(out, OutputFunctionCall(&column->function, value));
			break;
		case BY_CATALOG:
			{
				Oid			function;
				bool		variable;

				getTypeOutputInfo(attribute->atttypid, &function, &variable);
				write_text(out, OidOutputFunctionCall(function, value));
				break;
			}
	}
}

/* logicalrep_write_tuple(). */
static void
write_tuple(StringInfo out, Table *table, TupleDesc description, HeapTuple tuple)
{
	int			count = 0;

	heap_deform_tuple(tuple, description, table->values, table->nulls);
	for (int i = 0; i < table->count; i++)
		count += table->columns[i].how != LEFT_OUT;
	pq_sendint16(out, count);
	for (int i = 0; i < table->count; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(description, i);
		Column	   *column = &table->columns[i];
		Datum		value = table->values[i];

		if (column->how == LEFT_OUT)
			continue;
		if (table->nulls[i])
			pq_sendbyte(out, LOGICALREP_COLUMN_NULL);
		else if (attribute->attlen == -1 && VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(value)))
			pq_sendbyte(out, LOGICALREP_COLUMN_UNCHANGED);
		else
		{
			pq_sendbyte(out, LOGICALREP_COLUMN_TEXT);
			write_value(out, column, attribute, value);
		}
	}
}

/* The message of a change of a table that is plain, in place of what `out` has. */
void
postern_row_write(StringInfo out, Relation relation, ReorderBufferChange *change)
{
	static const char kinds[] = {
		[REORDER_BUFFER_CHANGE_INSERT] = LOGICAL_REP_MSG_INSERT,
		[REORDER_BUFFER_CHANGE_UPDATE] = LOGICAL_REP_MSG_UPDATE,
		[REORDER_BUFFER_CHANGE_DELETE] = LOGICAL_REP_MSG_DELETE,
	};
	Oid			oid = RelationGetRelid(relation);
	Table	   *table = find(oid);
	TupleDesc	description = RelationGetDescr(relation);
	HeapTuple	old = postern_old_tuple(change);
	MemoryContext before = MemoryContextSwitchTo(row_context);

	resetStringInfo(out);
	pq_sendbyte(out, kinds[change->action]);
	pq_sendint32(out, oid);
	if (change->action != REORDER_BUFFER_CHANGE_INSERT && old)
	{
		pq_sendbyte(out, relation->rd_rel->relreplident == REPLICA_IDENTITY_FULL ? 'O' : 'K');
		write_tuple(out, table, description, old);
	}
	if (change->action != REORDER_BUFFER_CHANGE_DELETE)
	{
		pq_sendbyte(out, 'N');
		write_tuple(out, table, description, postern_new_tuple(change));
	}
	MemoryContextSwitchTo(before);
	MemoryContextReset(row_context);
}
