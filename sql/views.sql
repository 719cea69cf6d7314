-- The views over the functions, and who may read them: superusers and members of pg_monitor.

CREATE VIEW postern.listeners AS
SELECT kind, address, listening, error, served, refused, failed
FROM postern.status_listeners();

CREATE VIEW postern.status AS
SELECT s.role, s.state, s.healthy, s.reason,
       s.timeline,
       s.written_lsn::pg_lsn AS written_lsn,
       s.received_lsn::pg_lsn AS received_lsn,
       s.replayed_lsn::pg_lsn AS replayed_lsn,
       s.primary_lsn::pg_lsn AS primary_lsn,
       s.lag_bytes,
       make_interval(secs => s.lag_seconds) AS lag,
       s.replay_paused,
       s.wal_receiver, s.wal_receiver_pid, s.sender,
       to_timestamp(s.last_message_at) AS last_message_at,
       s.clients, s.client_capacity,
       s.worker_pid, s.worker_starts,
       to_timestamp(s.worker_started_at) AS worker_started_at,
       s.problem AS worker_problem,
       s.log_lines_dropped,
       (SELECT coalesce(jsonb_agg(to_jsonb(l)), '[]') FROM postern.listeners l) AS listeners
FROM postern.server_status() s;

CREATE VIEW postern.settings AS
SELECT name, setting, unit, source, context = 'postmaster' AS needs_restart, pending_restart, boot_val, short_desc
FROM pg_catalog.pg_settings
WHERE name LIKE 'postern.%' OR name LIKE 'bgw_replstatus.%';

COMMENT ON VIEW postern.status IS 'This server, its replication and Postern''s status worker, as of now';
COMMENT ON VIEW postern.listeners IS 'Each address that the status worker listens on, and what it has done there';
COMMENT ON COLUMN postern.status.healthy IS 'Whether the server should get traffic, as the agent and HTTP checks judge';
COMMENT ON COLUMN postern.status.reason IS 'Why it is not healthy';
COMMENT ON COLUMN postern.status.primary_lsn IS 'The primary''s position as the WAL receiver knows it; lag is counted from it';
COMMENT ON COLUMN postern.status.lag IS 'How long the oldest change not replayed yet has been known';
COMMENT ON COLUMN postern.status.client_capacity IS 'Connections for ordinary clients, without the reserved ones';
COMMENT ON COLUMN postern.status.worker_starts IS 'Starts of the status worker since the server started or recovered';
COMMENT ON COLUMN postern.status.worker_problem IS 'Why there are no status answers';
COMMENT ON COLUMN postern.listeners.failed IS 'Checks that failed or ran into a limit';
COMMENT ON VIEW postern.settings IS 'Postern''s settings and where they come from';

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA postern FROM PUBLIC;
GRANT USAGE ON SCHEMA postern TO pg_monitor;
GRANT SELECT ON ALL TABLES IN SCHEMA postern TO pg_monitor;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA postern TO pg_monitor;
