/*
 * What differs between major versions and is more than a few lines (see versions.h): the list of settings. PostgreSQL threads only.
 */
#include "postgres.h"

#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "shim.h"

#if PG_VERSION_NUM >= 160000
/* The server's table of settings; null when it is not found, and then it is asked for a sorted copy each time. */
static HTAB *
postern_settings_table(void)
{
	static HTAB *found = NULL;
	static bool looked = false;
	MemoryContext context;

	if (looked)
		return found;
	looked = true;
	for (context = TopMemoryContext->firstchild; context; context = context->nextchild)
		if (strcmp(context->name, "GUCMemoryContext") == 0)
			found = postern_table_in(context, "GUC hash table");
	return found;
}
#endif

/* How many settings there are. There are never fewer later. */
int
postern_count_settings(void)
{
#if PG_VERSION_NUM >= 160000
	HTAB	   *table = postern_settings_table();
	int			count;

	if (table)
		return (int) hash_get_num_entries(table);
	pfree(get_guc_variables(&count));
	return count;
#else
	return GetNumConfigOptions();
#endif
}

/* The settings, in no order, as many as there is room for; their number. */
int
postern_settings(struct config_generic **into, int room)
{
	int			count = 0;
#if PG_VERSION_NUM >= 160000
	/* An entry of the server's table (guc.c, GUCHashEntry). */
	typedef struct
	{
		const char *name;
		struct config_generic *setting;
	} Entry;
	HTAB	   *table = postern_settings_table();

	if (table)
	{
		HASH_SEQ_STATUS status;
		Entry	   *entry;

		hash_seq_init(&status, table);
		while ((entry = hash_seq_search(&status)) != NULL)
		{
			if (count == room)
			{
				hash_seq_term(&status);
				break;
			}
			into[count++] = entry->setting;
		}
	}
	else
	{
		struct config_generic **all = get_guc_variables(&count);

		count = Min(count, room);
		memcpy(into, all, count * sizeof(*all));
		pfree(all);
	}
#else
	count = Min(GetNumConfigOptions(), room);
	memcpy(into, get_guc_variables(), count * sizeof(*into));
#endif
	return count;
}
