/*
 * What a session has of its own, and how it is put on and taken off: tables, locks, settings, contexts. PostgreSQL threads only.
 */
#include "postgres.h"

#include <getopt.h>

#include "access/xlog.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "replication/slot.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/dsa.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "shim.h"

/*
 * The session's hash table of that name. The server keeps the pointer to itself, but labels the table's memory context with the
 * name that stands right behind the table's header (dynahash.c, hash_create()). The header's own fields say whether that is what
 * was found: its context and its name.
 */
HTAB *
postern_table_in(MemoryContext parent, const char *name)
{
	MemoryContext context;

	for (context = parent->firstchild; context; context = context->nextchild)
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

HTAB *
postern_named_table(const char *name)
{
	return postern_table_in(TopMemoryContext, name);
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
		if (postern_locks_in(i))
			return true;
	return false;
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

		setting->flags &= ~GUC_NO_RESET;
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

/* A new area of dynamic shared memory. */
dsa_area *
postern_dsa_create(int tranche)
{
	return dsa_create(tranche);
}
