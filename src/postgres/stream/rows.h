/* See rows.c. */
#ifndef POSTERN_ROWS_H
#define POSTERN_ROWS_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "replication/reorderbuffer.h"
#include "utils/relcache.h"

extern void postern_rows_begin(const char *publication);
extern uint64 postern_rows_changes(void);
extern bool postern_row_is_plain(Relation relation, ReorderBufferChange *change);
extern void postern_row_write(StringInfo out, Relation relation, ReorderBufferChange *change);
extern void postern_row_learn(Relation relation, ReorderBufferChangeType action);

#endif
