/*
 * Catalogs and descriptions of results. PostgreSQL threads only, in a transaction.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_database.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_namespace.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"

#include "shim.h"

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
	attribute->attislocal = true;
	postern_finish_column(description, index);
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

/* The name of an encoding; empty for a number that is none. */
const char *
postern_encoding_name(int encoding)
{
	return pg_encoding_to_char(encoding);
}
