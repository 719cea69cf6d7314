/*
 * Replication slots by their names, as the server's own SQL functions have them (slotfuncs.c): what one says, making it, dropping it. There
 * is no policy here, only access; every function is declared, with its meaning, in decoding.rs. Runs on the main threads of stream workers
 * and scouts.
 */
#include "postgres.h"

#include "access/xlogreader.h"
#include "access/xlogutils.h"
#include "miscadmin.h"
#include "replication/logical.h"
#include "replication/slot.h"
#include "replication/snapbuild.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/snapmgr.h"

#include "../shim/versions.h"

/* The words of a slot, as they are now; false when there is none of that name. */
bool
postern_slot(const char *name, uint32 *database, int *active_pid, uint64 *confirmed, uint64 *restart, bool *invalidated,
			 bool *logical, bool *two_phase, char *slot_plugin)
{
	bool		found = false;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];

		if (!slot->in_use || strcmp(NameStr(slot->data.name), name) != 0)
			continue;
		found = true;
		SpinLockAcquire(&slot->mutex);
		*database = slot->data.database;
		*active_pid = slot->active_pid;
		*confirmed = slot->data.confirmed_flush;
		*restart = slot->data.restart_lsn;
		*invalidated = postern_slot_is_invalidated(slot);
		*logical = SlotIsLogical(slot);
		*two_phase = slot->data.two_phase;
		strlcpy(slot_plugin, NameStr(slot->data.plugin), NAMEDATALEN);
		SpinLockRelease(&slot->mutex);
		break;
	}
	LWLockRelease(ReplicationSlotControlLock);
	return found;
}

/*
 * Makes a logical slot; in a transaction. With a snapshot, the transaction, which must be REPEATABLE READ and have read nothing,
 * sees exactly what was committed before the slot begins. A slot that does not stay is dropped by postern_slot_drop().
 */
uint64
postern_slot_create(const char *name, bool stays, bool with_snapshot, bool failover)
{
	LogicalDecodingContext *ctx;
	uint64		begins;

	CheckSlotPermissions();
	CheckLogicalDecodingRequirements();
	postern_make_slot(name, stays ? RS_EPHEMERAL : RS_TEMPORARY, failover);
	ctx = CreateInitDecodingContext("pgoutput", NIL, with_snapshot, InvalidXLogRecPtr,
									XL_ROUTINE(.page_read = read_local_xlog_page,
											   .segment_open = wal_segment_open,
											   .segment_close = wal_segment_close),
									NULL, NULL, NULL);
	DecodingContextFindStartpoint(ctx);
	begins = MyReplicationSlot->data.confirmed_flush;
	if (with_snapshot)
		RestoreTransactionSnapshot(SnapBuildInitialSnapshot(ctx->snapshot_builder), MyProc);
	FreeDecodingContext(ctx);
	if (stays)
		ReplicationSlotPersist();
	ReplicationSlotRelease();
	return begins;
}

void
postern_slot_drop(const char *name)
{
	ReplicationSlotDrop(name, true);
}
