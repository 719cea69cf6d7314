/*
 * The server's hooks: what tells that the session's state may have changed, and the startup packet of a pooled backend. PostgreSQL
 * threads only.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "libpq/auth.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/syscache.h"

#include "shim.h"

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

/*
 * Whether a function is one of the extension set_user. These change the role behind the settings, and keep the one of before, and a token,
 * in memory of the library: also when the transaction is rolled back, and where nothing in the session says so.
 */
static bool
is_of_set_user(Oid function)
{
	static const char *const library = "set_user";
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	bool		found = false;

	if (!HeapTupleIsValid(tuple))
		return false;
	if (((Form_pg_proc) GETSTRUCT(tuple))->prolang == ClanguageId)
	{
		bool		null;
		Datum		file = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_probin, &null);

		if (!null)
		{
			char	   *name = TextDatumGetCString(file);
			char	   *last = last_dir_separator(name);

			last = last ? last + 1 : name;
			found = strncmp(last, library, strlen(library)) == 0 && strchr("-.", last[strlen(library)]) != NULL;
			pfree(name);
		}
	}
	ReleaseSysCache(tuple);
	return found;
}

static void
see_access(ObjectAccessType access, Oid class, Oid object, int sub, void *argument)
{
	if (access == OAT_FUNCTION_EXECUTE)
	{
		/* A function that is not the server's own may change settings from C, unseen by anything else. */
		if (object == F_SET_CONFIG || object >= FirstNormalObjectId)
		{
			postern_seen.settings = true;
			postern_seen.another |= object != F_SET_CONFIG && is_of_set_user(object);
		}
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

static ClientAuthentication_hook_type next_authentication;

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
