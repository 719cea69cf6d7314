/*
 * Prepared statements as the server keeps them: the table of names, the list of saved plan sources, the unnamed one. PostgreSQL
 * threads only.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "lib/ilist.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/plancache.h"

#include "shim.h"

/*
 * At a ParseComplete the newest of the saved plan sources is the one that was parsed, and whether the table
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

/* A ParseComplete goes by. */
void
postern_see_parse(void)
{
	long		count;

	if (statements == NULL)
		return;
	count = hash_get_num_entries(statements);
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
