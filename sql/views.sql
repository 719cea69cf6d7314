-- The views over the functions, and who may read them: superusers and members of pg_monitor. What changes something is for
-- superusers, and for whom they grant it to.

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

CREATE VIEW postern.pooler AS
SELECT worker_pid, worker_starts,
       to_timestamp(worker_started_at) AS worker_started_at,
       problem AS worker_problem,
       clients, client_capacity, logins, logins_done, logins_failed, cancels, log_lines_dropped
FROM postern.pooler_status();

CREATE VIEW postern.pools AS
SELECT database, role, pool_mode, size, paused,
       clients, clients_active, clients_waiting,
       make_interval(secs => max_wait) AS max_wait,
       servers, servers_active, servers_idle, servers_staying, servers_pinned, servers_opening,
       transactions, assignments, swaps,
       make_interval(secs => wait) AS wait
FROM postern.pooler_pools();

CREATE VIEW postern.clients AS
SELECT pid, database, role, application_name,
       client_addr::inet AS client_addr, client_port, tls,
       state, pinned_by, server_pid,
       to_timestamp(connected_at) AS connected_at,
       to_timestamp(state_since) AS state_since,
       transactions
FROM postern.pooler_clients();

CREATE VIEW postern.servers AS
SELECT pid, database, role, state, client_pid,
       to_timestamp(opened_at) AS opened_at,
       to_timestamp(state_since) AS state_since,
       transactions, swaps, retiring
FROM postern.pooler_servers();

CREATE VIEW postern.relay AS
SELECT databases, channels, channel_capacity, listens, listen_capacity, ring_size, clients_behind, backlog,
       clients, listened, unlistened, received, delivered, too_slow, refused
FROM postern.relay_status();

CREATE VIEW postern.channels AS
SELECT database, channel, listeners, delivered,
       to_timestamp(since) AS since,
       worker_pid
FROM postern.relay_channels();

CREATE VIEW postern.listens AS
SELECT pid, database, channel
FROM postern.relay_listens();

COMMENT ON VIEW postern.status IS 'This server, its replication and Postern''s status worker, as of now';
COMMENT ON VIEW postern.listeners IS 'Each address that the status worker and the pooler listen on, and what was done there';
COMMENT ON COLUMN postern.status.healthy IS 'Whether the server should get traffic, as the agent and HTTP checks judge';
COMMENT ON COLUMN postern.status.reason IS 'Why it is not healthy';
COMMENT ON COLUMN postern.status.primary_lsn IS 'The primary''s position as the WAL receiver knows it; lag is counted from it';
COMMENT ON COLUMN postern.status.lag IS 'How long the oldest change not replayed yet has been known';
COMMENT ON COLUMN postern.status.client_capacity IS 'Connections for ordinary clients, without the reserved ones';
COMMENT ON COLUMN postern.status.worker_starts IS 'Starts of the status worker since the server started or recovered';
COMMENT ON COLUMN postern.status.worker_problem IS 'Why there are no status answers';
COMMENT ON COLUMN postern.listeners.served IS 'Checks that were answered, and clients that the pooler accepted';
COMMENT ON COLUMN postern.listeners.failed IS 'Checks that failed or ran into a limit';
COMMENT ON VIEW postern.pooler IS 'The pooler as a whole';
COMMENT ON COLUMN postern.pooler.worker_problem IS 'Why there is no pooler';
COMMENT ON COLUMN postern.pooler.client_capacity IS 'Clients that postern.max_client_connections and the limit of open files allow';
COMMENT ON COLUMN postern.pooler.logins IS 'Clients that are logging in';
COMMENT ON COLUMN postern.pooler.logins_done IS 'Clients that have logged in since the server''s start';
COMMENT ON COLUMN postern.pooler.cancels IS 'Cancel requests with a right key';
COMMENT ON VIEW postern.pools IS 'Each pool of the pooler, a database and a role, with its clients and server connections';
COMMENT ON COLUMN postern.pools.pool_mode IS 'postern.pool_mode for its role and database; a client may have set another for itself';
COMMENT ON COLUMN postern.pools.paused IS 'Its clients get no server connection until postern.resume()';
COMMENT ON COLUMN postern.pools.clients_active IS 'Clients that a server connection serves';
COMMENT ON COLUMN postern.pools.clients_waiting IS 'Clients that have sent something and wait for a server connection; noticed within about a second';
COMMENT ON COLUMN postern.pools.max_wait IS 'How long the client has waited that has waited longest';
COMMENT ON COLUMN postern.pools.servers_active IS 'Server connections that serve a client';
COMMENT ON COLUMN postern.pools.servers_idle IS 'Server connections that wait for any client of the pool';
COMMENT ON COLUMN postern.pools.servers_staying IS 'Server connections that wait for the client that they served last, until another needs them';
COMMENT ON COLUMN postern.pools.servers_pinned IS 'Server connections that wait for a client whose session cannot move';
COMMENT ON COLUMN postern.pools.assignments IS 'How often a client got a server connection';
COMMENT ON COLUMN postern.pools.swaps IS 'How often a client got one whose last client was another';
COMMENT ON COLUMN postern.pools.wait IS 'How long clients have waited together; waits of less than a second may be left out';
COMMENT ON VIEW postern.clients IS 'Each client of the pooler that is logged in';
COMMENT ON COLUMN postern.clients.pid IS 'What the client was told as its backend''s process id; no process has it';
COMMENT ON COLUMN postern.clients.client_addr IS 'Null over a Unix socket';
COMMENT ON COLUMN postern.clients.state IS 'idle: it wants nothing now; active: a server connection serves it; waiting: it has none yet';
COMMENT ON COLUMN postern.clients.pinned_by IS 'Why it keeps its server connection when it is idle';
COMMENT ON COLUMN postern.clients.server_pid IS 'The backend that it has now';
COMMENT ON VIEW postern.servers IS 'Each server connection of the pooler';
COMMENT ON COLUMN postern.servers.pid IS 'Its backend''s process id';
COMMENT ON COLUMN postern.servers.state IS 'opening, idle, active, staying with its last client, or pinned to it';
COMMENT ON COLUMN postern.servers.swaps IS 'How often it went from one client to another';
COMMENT ON COLUMN postern.servers.retiring IS 'It is closed when it is next free';
COMMENT ON VIEW postern.relay IS 'The notification relay as a whole; counts are since the server''s start';
COMMENT ON COLUMN postern.relay.databases IS 'Databases that have listeners, each with a worker';
COMMENT ON COLUMN postern.relay.channels IS 'Channels that are listened to, or were a moment ago; postern.relay_max_channels is the limit';
COMMENT ON COLUMN postern.relay.listens IS 'LISTENs in force, one a client and channel; postern.relay_max_listens is the limit';
COMMENT ON COLUMN postern.relay.ring_size IS 'Bytes of shared memory for notifications on their way: postern.relay_ring_size';
COMMENT ON COLUMN postern.relay.clients_behind IS 'Idle clients that have not taken all notifications that they were sent';
COMMENT ON COLUMN postern.relay.backlog IS 'By how many bytes of the ring the furthest of them is behind; postern.relay_max_backlog limits it';
COMMENT ON COLUMN postern.relay.clients IS 'Clients that have listened to anything';
COMMENT ON COLUMN postern.relay.listened IS 'LISTENs that have taken effect';
COMMENT ON COLUMN postern.relay.unlistened IS 'LISTENs that have ended, by UNLISTEN or with their client';
COMMENT ON COLUMN postern.relay.received IS 'Notifications that the workers have heard';
COMMENT ON COLUMN postern.relay.delivered IS 'Notifications that clients were given';
COMMENT ON COLUMN postern.relay.too_slow IS 'Clients that were disconnected because they did not read their notifications in time';
COMMENT ON COLUMN postern.relay.refused IS 'LISTENs that a limit has refused';
COMMENT ON VIEW postern.channels IS 'Each channel that clients of the pooler listen to';
COMMENT ON COLUMN postern.channels.delivered IS 'Notifications that its listeners were given, together';
COMMENT ON COLUMN postern.channels.since IS 'Since when anybody listens to it';
COMMENT ON COLUMN postern.channels.worker_pid IS 'The worker that listens for them';
COMMENT ON VIEW postern.listens IS 'Which client of the pooler listens to which channel; pid is that of postern.clients';
COMMENT ON FUNCTION postern.listening_channels IS 'The channels that this session''s client listens to, through the pooler or not';
COMMENT ON FUNCTION postern.pause IS 'Clients of the pools that there are get no server connection until postern.resume(), and open ones are closed as they become free; returns how many pools, at once';
COMMENT ON FUNCTION postern.resume IS 'Ends postern.pause(); returns how many pools were paused';
COMMENT ON FUNCTION postern.reconnect IS 'Closes every server connection of now once it is free; returns how many';
COMMENT ON FUNCTION postern.disconnect_idle IS 'Closes the server connections that no client has; returns how many';
COMMENT ON FUNCTION postern.kill IS 'Ends a client by its pid in postern.clients, as pg_terminate_backend() ends a session';
COMMENT ON VIEW postern.settings IS 'Postern''s settings and where they come from';

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA postern FROM PUBLIC;
-- What pg_listening_channels() is to a session, this is to a client: for everybody.
GRANT USAGE ON SCHEMA postern TO PUBLIC;
GRANT EXECUTE ON FUNCTION postern.listening_channels TO PUBLIC;
GRANT USAGE ON SCHEMA postern TO pg_monitor;
GRANT SELECT ON ALL TABLES IN SCHEMA postern TO pg_monitor;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA postern TO pg_monitor;
REVOKE EXECUTE ON FUNCTION
    postern.pause, postern.resume, postern.reconnect, postern.disconnect_idle, postern.kill,
    postern.check_source, postern.check_sink,
    postern.create_source, postern.create_sink, postern.create_stream,
    postern.alter_source, postern.alter_sink, postern.alter_stream,
    postern.drop_source, postern.drop_sink, postern.drop_stream, postern.switch_streams, postern.expect_defined,
    postern.expect_given, postern.expect_new, postern.expect_options, postern.expect_unused,
    postern.is_defined,
    postern.start_source, postern.start_sink, postern.start_stream,
    postern.pause_source, postern.pause_sink, postern.pause_stream,
    postern.stop_source, postern.stop_sink, postern.stop_stream,
    postern.rewind_source, postern.rewind_stream
FROM pg_monitor;
-- They hold secrets.
REVOKE SELECT ON postern.source_definitions, postern.sink_definitions, postern.rejected_messages FROM pg_monitor;
